"""Class maps in the catalogue of Earth Engine, and how their codes are sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.types import ByteArray

_EUCROPMAP = (100, *range(211, 220), 221, 222, 223, *range(230, 234), 240, 250, 290, 300, 500, 600, 700, 800)
_WORLDCOVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
_OTHER = -1  # code of a pixel whose code is not in the legend


@dataclass(frozen=True)
class MapAsset:
    """An image collection that is one map, or one for each `year`. `codes` is its legend.

    Codes are sent as one byte, their position in the legend, so that a label map and six months of an ROI
    of 480 px square fit into one response.
    """

    collection: str
    band: str
    codes: tuple[int, ...]
    year: int | None = None

    def decode(self, stored_hw: ByteArray) -> npt.NDArray[np.int32]:
        """Codes from bytes: positions in the legend from 1 on, 255 for other codes, 0 for masked pixels."""
        codes = np.full(256, _OTHER, np.int32)
        codes[: len(self.codes) + 1] = (0, *self.codes)
        decoded: npt.NDArray[np.int32] = codes[stored_hw]
        return decoded


def map_asset(name: str, eucropmap_year: int) -> MapAsset:
    """The asset of a map by its name in the settings. Raises InputError for an unknown name.

    Legends as in the catalogue of Earth Engine: d'Andrimont et al. 2021 (doi:10.1016/j.rse.2021.112708) and
    ESA WorldCover 2021 (doi:10.5281/zenodo.7254221).
    """
    maps = {
        "eucropmap": MapAsset("JRC/D5/EUCROPMAP/V1", "classification", _EUCROPMAP, eucropmap_year),
        "land_cover": MapAsset("ESA/WorldCover/v200", "Map", _WORLDCOVER),
    }
    if name not in maps:
        raise InputError(
            f"source.kind: earthengine has no map {name!r}; source: takes one of {', '.join(maps)}, "
            "another map can be given as a raster file"
        )
    return maps[name]

"""The input of a registered model from GeoTIFFs or an xarray data set. It travels with the model.

Shape suffixes: B samples (one area is one), C bands, T months (oldest first), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint

ModelInput = dict[str, npt.NDArray[Any]]
"""s1 and s2 (B, C, T, H, W): float32 in dB and reflectance, NaN where nothing was seen."""

_BANDS = {band.name: band for band in (*S1_BANDS, *S2_BANDS)}


def from_geotiffs(checkpoint: Checkpoint, s1: Sequence[Any], s2: Sequence[Any]) -> ModelInput:
    """The input of one area: for each sensor one GeoTIFF a month, oldest first, all on the same grid.

    A file has all bands of its sensor in the model's order, in dB or reflectance; the scale, offset and
    nodata value that it states are applied. It needs rasterio. Raises InputError that names the file if one
    is unreadable, has other bands or another grid than the first.
    """
    from cropray.rasters import read_physical

    first, cubes = None, {}
    for name, files, bands in (("s1", s1, checkpoint.s1_bands), ("s2", s2, checkpoint.s2_bands)):
        months = []
        if not files:
            raise InputError(f"{name} has no files: give one GeoTIFF a month, oldest first")
        for file in files:
            values_chw, grid = read_physical(str(file))
            first = first or grid
            if grid != first:
                raise InputError(f"{file} is on {grid}, the first file on {first}: warp all to one grid")
            if len(values_chw) != len(bands):
                wanted = ", ".join(bands)
                raise InputError(f"{file} has {len(values_chw)} bands, wanted are {wanted} in this order")
            months.append(values_chw)
        cubes[name] = np.stack(months, axis=1)[None]
    return cubes


def from_xarray(checkpoint: Checkpoint, data: Any) -> ModelInput:
    """The input of one area from an xarray.Dataset: one variable a band, with the dimensions time, y and x.

    A variable has the name of its band (B02 … B12, VV, VH) or the common one of STAC (blue … swir22, vv,
    vh), in reflectance or dB, or int16 as stored. Raises InputError that names a band that is missing.
    """
    data, cubes = data.sortby("time"), {}
    for name, bands in (("s1", checkpoint.s1_bands), ("s2", checkpoint.s2_bands)):
        months = []
        for band in (_BANDS[band] for band in bands):
            found = [alias for alias in (band.name, *band.aliases) if alias in data]
            if not found:
                known = ", ".join(map(str, data))
                raise InputError(f"the data set has no {band.name} ({', '.join(band.aliases)}), but {known}")
            months.append(data[found[0]].transpose("time", "y", "x").to_numpy())
        cube_bcthw = np.stack(months)[None]
        cubes[name] = cube_bcthw if cube_bcthw.dtype == np.int16 else cube_bcthw.astype(np.float32)
    return cubes

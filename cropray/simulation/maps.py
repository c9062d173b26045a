"""Maps of the simulated world: the truth, and two that are wrong in the way that real ones are.

- "truth": codes of EUCROPMAP (d'Andrimont et al. 2021, doi:10.1016/j.rse.2021.112708; legend of its
  Earth Engine edition) for all land: see `TRUTH_CODES`. Onion takes "other root crops".
- "eucropmap": the same with errors: 14 % of fields bear another, mostly similar, class, and edges
  lie off by up to 10 m. Stated: 15 to 20 % of pixels wrong; EUCROPMAP 2018 reports an overall
  accuracy of 80.3 % in groups of crops, 76 % by crop.
- "land_cover": codes of ESA WorldCover (Zanaga et al. 2022, doi:10.5281/zenodo.7254221): 10 trees,
  30 grass, 40 cropland, 50 built, 80 water; fallow is cropland. Stated: about 5 % of land without
  crops is called cropland, and about 5 % of what is called other than cropland bears a crop.
  Errors are systematic: whole fields, the same every year, often mown meadows; and the canopies of
  woods reach 8 m into the fields beside them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.grid import Grid
from cropray.simulation.fields import CROPS, LANDS, Place, field_uniform, land_of
from cropray.simulation.noise import uniform

TRUTH_CODES = {
    "winter_wheat": 211,
    "winter_barley": 213,
    "rapeseed": 232,
    "maize": 216,
    "potato": 221,
    "sugar_beet": 222,
    "pea": 240,
    "onion": 223,
    "grass": 500,
    "trees": 300,
    "built": 100,
    "water": 700,
    "fallow": 290,
}
LAND_COVER_CODES = dict.fromkeys((*CROPS, "fallow"), 40) | {
    "grass": 30,
    "trees": 10,
    "built": 50,
    "water": 80,
}

_WRONG_FIELDS = 0.14
_LOOKS_LIKE = {  # what a classifier takes each land for
    "winter_wheat": ("winter_barley", "grass"),
    "winter_barley": ("winter_wheat", "rapeseed"),
    "rapeseed": ("winter_barley", "winter_wheat"),
    "maize": ("sugar_beet", "potato"),
    "potato": ("sugar_beet", "maize"),
    "sugar_beet": ("potato", "maize"),
    "pea": ("winter_wheat", "onion"),
    "onion": ("maize", "fallow"),
    "grass": ("fallow", "winter_wheat"),
    "trees": ("grass", "grass"),
    "built": ("fallow", "grass"),
    "water": ("trees", "trees"),
    "fallow": ("grass", "onion"),
}
_SHIFTED_M = 10.0
# Shares of fields that the land cover has wrong, and what it calls them.
_COVER_WRONG = {"grass": (0.085, 40), "trees": (0.02, 40), "built": (0.02, 40), "water": (0.01, 10)}
_CROP_WRONG = (0.018, 30)
_CANOPY_M = 8.0


def class_map(name: str, grid: Grid, seed: int, year: int) -> npt.NDArray[np.int32]:
    """Codes (H, W) of a map at the pixel centres. Raises InputError for a name there is not."""
    return codes_at(name, Place.on(grid, seed), year).reshape(grid.shape)


def codes_at(name: str, place: Place, year: int) -> npt.NDArray[np.int32]:
    """Codes (P,) of a map at the pixels of a place. Raises InputError for a name there is not."""
    maps = {"truth": _truth, "eucropmap": _eucropmap, "land_cover": _land_cover}
    if name not in maps:
        raise InputError(f"the simulated world has no map {name!r}; wanted one of {', '.join(maps)}")
    codes: npt.NDArray[np.int32] = maps[name](place, land_of(place.seed, place.fields, year), year)
    return codes


def _truth(place: Place, land: npt.NDArray[np.uint8], _year: int) -> npt.NDArray[np.int32]:
    return _coded(TRUTH_CODES)[land[place.field]]


def _eucropmap(place: Place, land: npt.NDArray[np.uint8], year: int) -> npt.NDArray[np.int32]:
    looks_like = np.array([[LANDS.index(other) for other in _LOOKS_LIKE[name]] for name in LANDS])
    chance = field_uniform(place.seed, place.fields, "eucropmap", year)
    second = field_uniform(place.seed, place.fields, "eucropmap other", year) >= 0.7
    mapped = np.where(chance < _WRONG_FIELDS, looks_like[land, second.astype(np.intp)], land)
    # An edge is off by as much, and to the side, as the 20 m cell says.
    chance = uniform(place.seed, "eucropmap edge", place.cells[1].astype(np.int64))
    over = place.edge_m < _SHIFTED_M * (2 * chance - 1)
    return _coded(TRUTH_CODES)[mapped[np.where(over, place.neighbour, place.field)]]


def _land_cover(place: Place, land: npt.NDArray[np.uint8], _year: int) -> npt.NDArray[np.int32]:
    codes = _coded(LAND_COVER_CODES)[land]
    chance = field_uniform(place.seed, place.fields, "land cover")
    for index, name in enumerate(LANDS):
        share, wrong = _CROP_WRONG if name in CROPS else _COVER_WRONG.get(name, (0.0, 0))
        codes[(land == index) & (chance < share)] = wrong
    pixels = codes[place.field]
    reached = (land[place.neighbour] == LANDS.index("trees")) & (place.edge_m < _CANOPY_M)
    pixels[reached] = LAND_COVER_CODES["trees"]
    return pixels


def _coded(codes: dict[str, int]) -> npt.NDArray[np.int32]:
    return np.array([codes[name] for name in LANDS], np.int32)

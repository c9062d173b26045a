"""Patch folders of GeoTIFFs, as the published system keeps its data: their layout, and one patch of them.

A folder holds `s1/<month>/NAME.tif` (VV, VH in dB), `s2/<month>/NAME.tif` (ten bands of reflectance) and
`crop_map/NAME.tif`, months numbered from the oldest, the same names in each. Names end in `_r<row>_c<col>`,
the place of a patch within its region; what stands before is the region. Patches hold 0 where there was
no view, and mostly no georeference: then their samples have no place either (an empty CRS).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.bands import NODATA, S1_BANDS, S1_NAMES, S2_BANDS, S2_NAMES
from cropray.config import Config
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.labels import encode_classes
from cropray.rasters import read_pages
from cropray.rois.splits import SPLITS
from cropray.shards.schema import quantise
from cropray.types import UNLABELLED, ByteArray, IntArray, Patch, Roi

_NAME = re.compile(r"(?P<region>.+)_r(?P<row>\d+)_c(?P<col>\d+)")
_BRIGHTEST = 2.0  # reflectance that clouds and snow hardly reach, and integers of 1e-4 exceed


Label = Callable[[npt.NDArray[Any], Path], ByteArray]
"""Turns what a file of `crop_map` holds (H, W) into labels."""


@dataclass(frozen=True)
class Origin:
    """What the files do not say of their patches.

    `crop` is that of a mask (its pixels above one half are the crop, all others unlabelled); where it
    is empty, `crop_map` holds codes.
    """

    harvest: date
    split: str
    crop: str = ""
    country: str = ""


def origin(harvest: str, split: str, crop: str, country: str) -> Origin:
    """From a user's text. Raises InputError."""
    if split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    try:
        return Origin(date.fromisoformat(harvest), split, crop, country)
    except ValueError as error:
        raise InputError(f"harvest {harvest!r} is no date; wanted YYYY-MM-DD") from error


def label_rule(config: Config, origin: Origin) -> Label:
    if origin.crop:
        if origin.crop not in config.classes:
            raise InputError(
                f"crop {origin.crop!r} is none of the classes ({', '.join(config.classes) or 'not set'}); "
                "name one of them, or give --config with `classes`"
            )
        number = config.classes.index(origin.crop)
        return lambda mask_hw, _path: mask_to_label(mask_hw, number)
    chosen = config.labels.class_map
    if chosen is None or not config.classes:
        raise InputError(
            "nothing says what the values of crop_map mean: give --config with `classes` and "
            "`labels.class_map.codes` (configs/europe.yaml has them), or --crop where they are masks"
        )
    return lambda codes_hw, path: _codes_to_label(codes_hw, chosen.codes, chosen.nodata, path)


def mask_to_label(mask_hw: npt.NDArray[Any], number: int) -> ByteArray:
    """Class `number` where a mask of 0..1 or 0..255 is above one half, and UNLABELLED elsewhere.

    Masks were resized by interpolation, so one half is where the outline of the parcel was. What lies
    outside the parcels of one crop is not known: it is no negative.
    """
    half = 127.5 if mask_hw.max() > 1 else 0.5
    return np.where(mask_hw > half, number, UNLABELLED).astype(np.uint8)


def _codes_to_label(codes_hw: npt.NDArray[Any], codes: Sequence[int], nodata: int, path: Path) -> ByteArray:
    if not np.array_equal(codes_hw, np.rint(codes_hw)):
        raise InputError(f"{path} holds numbers that are no codes, such as interpolation makes of codes")
    return encode_classes(codes_hw, codes, nodata)


def common_names(source: Path, months: int) -> list[str]:
    """Names of the patches, which every folder must have. Raises InputError that names what is missing."""
    if not source.is_dir():
        raise InputError(f"there is no folder {source}; wanted one that holds s1/, s2/ and crop_map/")
    folders = [f"{sensor}/{month}" for sensor in ("s1", "s2") for month in range(1, months + 1)]
    for sensor in ("s1", "s2"):
        there = sorted(path.name for path in (source / sensor).glob("*") if path.is_dir())
        if there != sorted(str(month) for month in range(1, months + 1)):
            raise InputError(
                f"{source}/{sensor} has {'the months ' + ', '.join(there) if there else 'no month'}; wanted "
                f"the folders 1 to {months}, from the oldest (window.months says how many)"
            )
    names = {
        folder: {path.relative_to(source / folder).as_posix() for path in (source / folder).rglob("*.tif")}
        for folder in (*folders, "crop_map")
    }
    everywhere, anywhere = set.intersection(*names.values()), set.union(*names.values())
    for folder, some in names.items():
        if lacking := sorted(anywhere - some):
            raise InputError(
                f"{source}/{folder} lacks {len(lacking)} of {len(anywhere)} patches, such as {lacking[0]}; "
                "every month and crop_map must have the same files"
            )
    if not everywhere:
        raise InputError(f"there are no .tif files in {source}/crop_map and beside it")
    return sorted(everywhere)


def place_of(name: str) -> tuple[str, int, int]:
    """Region, row and column of a patch, counted in patches."""
    stem = name.removesuffix(".tif").replace("/", "-")
    match = _NAME.fullmatch(stem)
    return (match["region"], int(match["row"]), int(match["col"])) if match else (stem, 0, 0)


@dataclass(frozen=True)
class PlacedPatch:
    """A patch, the region it is of, and that region's grid."""

    patch: Patch
    roi: Roi
    extent: Grid


def read_patch(source: Path, name: str, config: Config, label: Label, origin: Origin) -> PlacedPatch:
    """One patch. Raises InputError that names the file that is not as wanted."""
    size, months = config.patch.size, config.window.months

    def read(folder: str, bands: int) -> tuple[npt.NDArray[Any], Grid | None]:
        path = source / folder / name
        values, grid = read_pages(str(path))
        if values.shape != (bands, size, size):
            raise InputError(
                f"{path} has (bands, rows, columns) {values.shape}; wanted {(bands, size, size)} (patch.size)"
            )
        return values, grid

    s2_tchw = np.stack([read(f"s2/{month}", len(S2_NAMES))[0] for month in range(1, months + 1)])
    s1_tchw = np.stack([read(f"s1/{month}", len(S1_NAMES))[0] for month in range(1, months + 1)])
    codes_bhw, grid = read("crop_map", 1)
    s2_cthw, s1_cthw = _stored(s2_tchw, S2_BANDS[0].scale), _stored(s1_tchw, S1_BANDS[0].scale)
    seen_s2, seen_s1 = s2_cthw[s2_cthw != NODATA], s1_cthw[1][s1_cthw[1] != NODATA]
    if seen_s2.size and seen_s2.max() * S2_BANDS[0].scale > _BRIGHTEST:
        raise InputError(
            f"{source}/s2/*/{name} holds values above {_BRIGHTEST:g}; wanted reflectance of 0 to 1"
        )
    if seen_s1.size and seen_s1.min() >= 0:
        raise InputError(f"{source}/s1/*/{name} has no VH below 0; wanted dB, not linear power")
    region, row, col = place_of(name)
    sample = f"{source.resolve().name}-{region}-{row:05d}-{col:05d}"
    roi_id = f"{source.resolve().name}-{region}"
    # Patches overlap by what their names do not tell: without a georeference they lie side by side.
    place, extent = (row * size, col * size), Grid("", 0.0, 0.0, config.grid.resolution, size, size)
    if grid is not None:
        roi_id, place, extent = sample, (0, 0), grid
    roi = Roi(roi_id, origin.crop, "", "", origin.country, origin.split, extent.bounds, extent.crs)
    label_hw = label(codes_bhw[0], source / "crop_map" / name)
    return PlacedPatch(Patch(sample, *place, s2_cthw, s1_cthw, label_hw), roi, extent)


def _stored(values_tchw: npt.NDArray[Any], scale: float) -> IntArray:
    """(C, T, H, W) as stored: no view where all bands are 0, or one is not finite."""
    valid_thw = np.isfinite(values_tchw).all(axis=1) & (values_tchw != 0).any(axis=1)
    stored: IntArray = quantise(values_tchw, valid_thw[:, None], scale).swapaxes(0, 1)
    return stored

"""Import of patch folders of GeoTIFFs, the layout of the published system, as parts of a run.

A folder holds `s1/<month>/NAME.tif` (VV and VH in dB), `s2/<month>/NAME.tif` (ten bands of reflectance) and
`crop_map/NAME.tif`, with months numbered from the oldest and the same names in each. Names end in
`_r<row>_c<col>`, the place of a patch in its region; the text before it names the region. Patches hold 0
where there was no view. Most have no georeference, and their samples then have an empty CRS.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.config import Config
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.labels import encode_classes
from cropray.pipeline.tiles import part_metadata, write_part
from cropray.progress import progress
from cropray.rasters import read_pages
from cropray.rois.calendar import periods_for
from cropray.rois.splits import SPLITS
from cropray.run import Run, Summary
from cropray.shards.ledger import part_name, read_rows, write_ledger
from cropray.shards.schema import encode_patch, quantise
from cropray.types import UNLABELLED, ByteArray, IntArray, Patch, Roi

_PART_PATCHES = 128  # at most: what an import that is stopped can lose
_THREADS = 4
_STAGE = {"imported": "patch folders"}
_NAME = re.compile(r"(?P<region>.+)_r(?P<row>\d+)_c(?P<col>\d+)")
_BRIGHTEST = 2.0  # reflectance that clouds and snow hardly reach, and integers of 1e-4 exceed


@dataclass(frozen=True)
class Origin:
    """What the files do not say about their patches.

    With `crop`, the files of `crop_map` are masks: pixels above one half are that crop, all others are
    unlabelled. Without it they hold codes.
    """

    harvest: date
    split: str
    crop: str = ""
    country: str = ""


def parse_origin(harvest: str, split: str, crop: str, country: str) -> Origin:
    """An origin from the options of a user. Raises InputError."""
    if split not in SPLITS:
        raise InputError(f"split {split!r} does not exist. Choose from {', '.join(SPLITS)}.")
    try:
        return Origin(date.fromisoformat(harvest), split, crop, country)
    except ValueError as error:
        raise InputError(f"harvest {harvest!r} is not a date. Write it as YYYY-MM-DD.") from error


def import_tiff(directory: str, run: Run, origin: Origin) -> Summary:
    """Write a patch folder as parts of a run and rebuild its ledger, for `compact` to read.

    Codes are those of `labels.class_map.codes`; sizes and months are those of the configuration. Existing
    parts are kept. Raises InputError for files that are missing, unreadable, or of other size or bands, for
    a configuration that does not give the labels a meaning, and for existing parts of other patches.
    """
    source, config = Path(directory), run.config
    _check_meaning(config, origin)
    names = common_names(source, config.window.months)
    periods = periods_for(config.window, origin.harvest)
    identity = {"kind": "patch folders", "s1_quantity": "sigma0"}  # as in Earth Engine's S1_GRD
    metadata = part_metadata(config, identity, {"classes", "window", "labels", "patch"})
    if run.summary("rois") not in (None, _STAGE):
        raise InputError(f"{run.folder} has regions of its own; import into a new --run folder")
    parts = _parts(source.resolve().name, names)
    inputs = {tile_id: _inputs(source, chosen, origin) for tile_id, chosen in parts.items()}
    existing = read_rows(run.folder, _parts_in(run), metadata.recipe)
    _check_same({row.tile_id: row.inputs for row in existing}, inputs, run, source)
    missing = parts.keys() - {row.tile_id for row in existing}
    run.finish("rois", _STAGE)

    def write(tile_id: str) -> int:
        patches, rois, extents = zip(
            *(read_patch(source, name, config, origin) for name in parts[tile_id]), strict=True
        )
        write_part(
            run.folder,
            metadata,
            map(encode_patch, patches, rois, extents, repeat(periods)),
            tile_id=tile_id,
            roi=rois[0],
            window=Window(patches[0].row, patches[0].col, metadata.size, metadata.size),
            inputs=inputs[tile_id],
            reason="",
            valid_s2=_valid_by_month([patch.s2_cthw for patch in patches]),
            valid_s1=_valid_by_month([patch.s1_cthw for patch in patches]),
            scenes_s2=[],
            scenes_s1=[],
        )
        return len(patches)

    with (
        warnings.catch_warnings(),
        progress("import", len(names)) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        # Threads share their filters, so those that `rasters` sets in each would undo one another.
        warnings.simplefilter("ignore", UserWarning)
        bar.advance(sum(len(parts[tile_id]) for tile_id in parts.keys() - missing))
        for count in pool.map(write, sorted(missing)):
            bar.advance(count)
    rows = read_rows(run.folder, _parts_in(run), metadata.recipe)
    write_ledger(run.folder, rows)
    summary = {
        "patches": len(names),
        "parts": len(parts),
        "patches_of_the_run": sum(row.patches for row in rows),
    }
    run.finish("export", summary)
    return summary


def _parts_in(run: Run) -> list[str]:
    return [name.removesuffix(".parquet") for name in run.folder.child("parts").names(".parquet")]


def _parts(prefix: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The patches of each part: at most `_PART_PATCHES` of one region."""
    parts, seen = defaultdict(list), Counter[str]()
    for name in names:
        region, _, _ = _place_of(name)
        parts[f"{prefix}-{region}-{seen[region] // _PART_PATCHES:03d}"].append(name)
        seen[region] += 1
    return parts


def _inputs(source: Path, names: Sequence[str], origin: Origin) -> str:
    """Hash of a part's origin, the names of its patches, and the files of the first one only."""
    digest = xxhash.xxh3_64(repr((origin, names)).encode())
    for path in (*sorted(source.glob(f"s[12]/*/{names[0]}")), source / "crop_map" / names[0]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_same(existing: Mapping[str, str], inputs: Mapping[str, str], run: Run, source: Path) -> None:
    """Raise InputError if existing parts are not what this import would write."""
    others = [tile_id for tile_id, hash_ in inputs.items() if existing.get(tile_id, hash_) != hash_]
    if others:
        raise InputError(
            f"{run.folder}/{part_name(others[0])} and {len(others) - 1} others hold other patches of these "
            f"names: from another folder {source.resolve().name!r}, with other options, or before files "
            "changed. Rename the folder, whose name is part of the samples' names, or delete these parts."
        )


def _valid_by_month(images_cthw: Sequence[IntArray]) -> list[float]:
    """Share of pixels with a view, by month."""
    shares: list[float] = np.mean([image[0] != NODATA for image in images_cthw], axis=(0, 2, 3)).tolist()
    return shares


def _check_meaning(config: Config, origin: Origin) -> None:
    """Raises InputError if options and configuration do not say what the values of `crop_map` mean."""
    if origin.crop and origin.crop not in config.classes:
        raise InputError(
            f"crop {origin.crop!r} is not one of the classes ({', '.join(config.classes) or 'not set'}). "
            "Name one of them, or give --config with `classes`."
        )
    if not origin.crop and (config.labels.class_map is None or not config.classes):
        raise InputError(
            "the values of crop_map have no meaning. Give --config with `classes` and "
            "`labels.class_map.codes`, as in configs/europe.yaml, or --crop if they are masks."
        )


def _to_label(values_hw: npt.NDArray[Any], path: Path, config: Config, origin: Origin) -> ByteArray:
    if origin.crop:
        return mask_to_label(values_hw, config.classes.index(origin.crop))
    if not np.array_equal(values_hw, np.rint(values_hw)):
        raise InputError(f"{path} holds numbers that are not codes. Were the codes interpolated?")
    chosen = config.labels.class_map
    assert chosen is not None  # _check_meaning
    return encode_classes(values_hw, chosen.codes, chosen.nodata)


def mask_to_label(mask_hw: npt.NDArray[Any], number: int) -> ByteArray:
    """Class `number` where a mask of 0..1 or 0..255 is above one half, and UNLABELLED elsewhere.

    Masks were resized by interpolation, so one half marks the outline of the parcel. What lies outside the
    parcels of one crop is unknown, not negative.
    """
    half = 127.5 if mask_hw.max() > 1 else 0.5
    return np.where(mask_hw > half, number, UNLABELLED).astype(np.uint8)


def common_names(source: Path, months: int) -> list[str]:
    """The names of the patches. Raises InputError if a folder is missing or lacks some of them."""
    if not source.is_dir():
        raise InputError(f"the folder {source} does not exist; give one that holds s1/, s2/ and crop_map/")
    wanted = sorted(str(month) for month in range(1, months + 1))
    for sensor in ("s1", "s2"):
        found = sorted(path.name for path in (source / sensor).glob("*") if path.is_dir())
        if found != wanted:
            raise InputError(
                f"{source}/{sensor} has {'the months ' + ', '.join(found) if found else 'no month'}; "
                f"it needs the folders 1 to {months}, from the oldest (window.months)"
            )
    folders = [source / sensor / month for sensor in ("s1", "s2") for month in wanted] + [source / "crop_map"]
    names = {
        folder: {path.relative_to(folder).as_posix() for path in folder.rglob("*.tif")} for folder in folders
    }
    anywhere = set.union(*names.values())
    for folder, some in names.items():
        if missing := sorted(anywhere - some):
            raise InputError(
                f"{folder} lacks {len(missing)} of {len(anywhere)} patches, such as {missing[0]}. "
                "Every month and crop_map must have the same files."
            )
    if not anywhere:
        raise InputError(f"{source} has no .tif files in s1/, s2/ and crop_map/")
    return sorted(anywhere)


def _place_of(name: str) -> tuple[str, int, int]:
    """Region, row and column of a patch, counted in patches."""
    stem = name.removesuffix(".tif").replace("/", "-")
    match = _NAME.fullmatch(stem)
    return (match["region"], int(match["row"]), int(match["col"])) if match else (stem, 0, 0)


def read_patch(source: Path, name: str, config: Config, origin: Origin) -> tuple[Patch, Roi, Grid]:
    """A patch, its region, and the grid of that region.

    Raises InputError that names a file of wrong size, bands or units.
    """
    size = config.patch.size

    def read(folder: str, bands: int) -> tuple[npt.NDArray[Any], Grid | None]:
        path = source / folder / name
        values, grid = read_pages(str(path))
        if values.shape != (bands, size, size):
            raise InputError(
                f"{path} has (bands, rows, columns) {values.shape}; patch.size needs {(bands, size, size)}"
            )
        return values, grid

    def read_months(sensor: str, bands: Sequence[Band]) -> IntArray:
        images = [read(f"{sensor}/{month}", len(bands))[0] for month in range(1, config.window.months + 1)]
        return _stored(np.stack(images), bands[0].scale)

    s2_cthw, s1_cthw = read_months("s2", S2_BANDS), read_months("s1", S1_BANDS)
    codes_bhw, grid = read("crop_map", 1)
    seen_s2, seen_s1 = s2_cthw[s2_cthw != NODATA], s1_cthw[1][s1_cthw[1] != NODATA]
    if seen_s2.size and seen_s2.max() * S2_BANDS[0].scale > _BRIGHTEST:
        raise InputError(f"{source}/s2/*/{name} holds values above {_BRIGHTEST:g}, not reflectance of 0 to 1")
    if seen_s1.size and seen_s1.min() >= 0:
        raise InputError(f"{source}/s1/*/{name} has no VH below 0; it needs dB, not linear power")
    folder = source.resolve().name
    region, row, col = _place_of(name)
    sample = f"{folder}-{region}-{row:05d}-{col:05d}"
    # Names do not tell by how much patches overlap. Without a georeference they lie side by side.
    roi_id, place = f"{folder}-{region}", (row * size, col * size)
    extent = Grid("", 0.0, 0.0, config.grid.resolution, size, size)
    if grid is not None:
        roi_id, place, extent = sample, (0, 0), grid
    roi = Roi(roi_id, origin.crop, "", "", origin.country, origin.split, extent.bounds, extent.crs)
    label_hw = _to_label(codes_bhw[0], source / "crop_map" / name, config, origin)
    return Patch(sample, *place, s2_cthw, s1_cthw, label_hw), roi, extent


def _stored(values_tchw: npt.NDArray[Any], scale: float) -> IntArray:
    """(C, T, H, W) as stored; no view where all bands are 0, or one is not finite."""
    valid_thw = np.isfinite(values_tchw).all(axis=1) & (values_tchw != 0).any(axis=1)
    stored: IntArray = quantise(values_tchw, valid_thw[:, None], scale).swapaxes(0, 1)
    return stored

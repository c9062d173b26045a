"""The parcels of every crop, and which of them belong to which season."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
import xxhash

from cropray.config.rois import CropConfig, RoisConfig
from cropray.errors import InputError
from cropray.progress import progress
from cropray.rois.store import Dropped, identity
from cropray.rois.vectors import LONLAT, find_files, matching, mend, read_polygons, relative, reproject
from cropray.run import Inputs
from cropray.types import BoolArray


def fingerprints(config: RoisConfig) -> Inputs:
    """One hash of the content of each path (or glob) that the settings name.

    One of which no file is there is left out: what was made of it stands, and who reads it says so.
    """
    if config.kind == "table":
        paths = [config.table]
    else:
        paths = [*(crop.path for crop in config.parcels), config.provinces.path, config.calendar.path]
    files = {path: matching(config.data_root, path) for path in paths if path}
    return {path: _content(found) for path, found in files.items() if found}


def _content(files: Iterable[Path]) -> str:
    """One hash of files with what lies beside them under their names, as a shapefile's .dbf and .prj."""
    found = {beside for file in files for beside in file.parent.iterdir() if beside.stem == file.stem}
    whole = xxhash.xxh3_64()
    for path in sorted(found):
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                whole.update(part.name.encode())
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        whole.update(block)
    return whole.hexdigest()


IndexArray = npt.NDArray[np.intp]


class Season(NamedTuple):
    """One sowing of one crop: its parcels are clustered together."""

    crop: str
    name: str
    sheet: str


@dataclass(frozen=True)
class Parcels:
    """All parcels with an area that some season keeps, and the rows of `frame` of each season.

    `frame`: parcel_id, crop, file, geometry (valid polygons, EPSG:4326). A parcel that files repeat
    stands once for every time, with one parcel_id.
    """

    frame: gpd.GeoDataFrame
    seasons: dict[Season, IndexArray]
    mended: int
    dropped: tuple[Dropped, ...]

    @cached_property
    def ids(self) -> npt.NDArray[np.object_]:
        """(N,) parcel_id."""
        return np.array(self.frame["parcel_id"].tolist(), dtype=object)

    @cached_property
    def files(self) -> npt.NDArray[np.object_]:
        """(N,) file."""
        return np.array(self.frame["file"].tolist(), dtype=object)


@dataclass(frozen=True)
class _File:
    """Features of one file: `frame` as in `Parcels` but with those of no use, the attributes that
    filters look at, as text, and which season keeps which.
    """

    frame: gpd.GeoDataFrame
    attributes: pd.DataFrame
    has_area: BoolArray
    mended: BoolArray
    kept_by: dict[Season, BoolArray]

    @property
    def used(self) -> BoolArray:
        keeps: BoolArray = np.logical_or.reduce(list(self.kept_by.values()))
        return keeps & self.has_area


def read_parcels(root: str, crops: Sequence[CropConfig]) -> Parcels:
    """Read, mend and sort into seasons. Raises InputError for files or filters of no use."""
    files: list[_File] = []
    with progress("parcels", len(crops)) as bar:
        for crop in crops:
            found = [_read_file(file, root, crop) for file in find_files(root, crop.path)]
            _check_filters(crop, found)
            files += found
            bar.advance(note=crop.crop)
    used = [file.used for file in files]
    starts = np.cumsum([0, *(mask.sum() for mask in used)])
    seasons: dict[Season, list[IndexArray]] = {}
    for file, mask, start in zip(files, used, starts[:-1], strict=True):
        for season, keeps in file.kept_by.items():
            seasons.setdefault(season, []).append(np.flatnonzero(keeps[mask]) + start)
    frames = [file.frame[mask] for file, mask in zip(files, used, strict=True)]
    return Parcels(
        frame=pd.concat(frames, ignore_index=True),
        seasons={season: np.concatenate(parts) for season, parts in seasons.items()},
        mended=sum(int((file.mended & mask).sum()) for file, mask in zip(files, used, strict=True)),
        dropped=tuple(row for file in files for row in _dropped(file)),
    )


def _read_file(file: Path, root: str, crop: CropConfig) -> _File:
    wanted = sorted({column for season in crop.seasons for column in season.where})
    stored = read_polygons(file, wanted)
    # Identity is of the geometry as stored: mending and projecting differ between library versions.
    identities = [
        identity(crop.crop, [wkb or b""]) for wkb in shapely.to_wkb(stored.geometry.to_numpy(), byte_order=1)
    ]
    geometry, mended = mend(reproject(stored, LONLAT, file).geometry.to_numpy())
    has_area = shapely.area(geometry) > 0
    if not has_area.any():
        raise InputError(f"{file}: none of its {len(stored)} features has an area; wanted polygons")
    columns = {"parcel_id": identities, "crop": crop.crop, "file": relative(file, root)}
    frame = gpd.GeoDataFrame(columns, geometry=geometry, crs=LONLAT)
    attributes = pd.DataFrame({name: stored[name].map(_plain) for name in wanted}, index=frame.index)
    kept_by: dict[Season, BoolArray] = {}
    for setting in crop.seasons:
        season = Season(crop.crop, setting.name, setting.sheet)
        matches = np.ones(len(frame), dtype=bool)
        for column, value in setting.where.items():
            matches &= (attributes[column] == _plain(value)).to_numpy()
        kept_by[season] = kept_by.get(season, False) | matches
    return _File(frame, attributes, has_area, mended, kept_by)


def _check_filters(crop: CropConfig, files: Sequence[_File]) -> None:
    for setting in crop.seasons:
        season = Season(crop.crop, setting.name, setting.sheet)
        if any((file.kept_by[season] & file.has_area).any() for file in files):
            continue
        values = {
            column: sorted({value for file in files for value in file.attributes[column]})[:12]
            for column in setting.where
        }
        raise InputError(
            f"no parcel of {crop.crop} in {crop.path} fits `where` {setting.where}; present: {values}"
        )


def _dropped(file: _File) -> list[Dropped]:
    names, crops = file.frame["file"], file.frame["crop"]
    reasons = np.where(file.has_area, "kept by no season's `where`", "no area")
    return [
        Dropped(names[row], crops[row], "", f"feature {row}", str(reasons[row]))
        for row in np.flatnonzero(~file.used)
    ]


def _plain(value: object) -> str:
    """An attribute as text: composed letters, no outer blanks; a whole number without its `.0`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip()

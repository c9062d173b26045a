"""The parcels of every crop, sorted into seasons."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xxhash

from cropray.config.rois import CropConfig, RoisConfig
from cropray.errors import InputError
from cropray.progress import progress
from cropray.rois.store import Dropped, identity
from cropray.rois.vectors import LONLAT, find_files, matching, mend, read_polygons, reproject
from cropray.run import Inputs
from cropray.types import BoolArray, IndexArray


class Season(NamedTuple):
    """One sowing of one crop. Its parcels are clustered together."""

    crop: str
    name: str
    sheet: str


@dataclass(frozen=True)
class Parcels:
    """All parcels with an area that belong to a season, and the rows of `frame` by season.

    `frame` has the columns parcel_id, crop, file and geometry (valid polygons, EPSG:4326). A parcel
    that occurs in several files has a row for each, with the same parcel_id.
    """

    frame: gpd.GeoDataFrame
    seasons: dict[Season, IndexArray]
    mended: int
    dropped: tuple[Dropped, ...]

    @classmethod
    def none(cls) -> Parcels:
        frame = gpd.GeoDataFrame({"parcel_id": [], "crop": [], "file": []}, geometry=[], crs=LONLAT)
        return cls(frame, {}, mended=0, dropped=())


def fingerprints(config: RoisConfig) -> Inputs:
    """One hash of the content for each path or glob in the settings.

    A path without a file has none: a finished stage stays valid after its inputs are gone.
    """
    if config.kind == "table":
        paths = [config.table]
    else:
        paths = [*(crop.path for crop in config.parcels), config.provinces.path, config.calendar.path]
    files = {path: matching(config.data_root, path) for path in paths if path}
    return {path: _content(found) for path, found in files.items() if found}


def _content(files: Iterable[Path]) -> str:
    """One hash of files and of their namesakes, such as the .dbf and .prj of a shapefile."""
    names = {(file.parent, file.stem) for file in files}
    folders = {folder for folder, _ in names}
    found = [path for folder in folders for path in folder.iterdir() if (folder, path.stem) in names]
    whole = xxhash.xxh3_64()
    for path in sorted(found):
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                whole.update(part.name.encode())
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        whole.update(block)
    return whole.hexdigest()


def read_parcels(root: str, crops: Sequence[CropConfig]) -> Parcels:
    """Read and repair the parcels of all crops. Raises InputError for unusable files and filters."""
    frames: list[gpd.GeoDataFrame] = []
    seasons: dict[Season, list[IndexArray]] = {}
    dropped: list[Dropped] = []
    start = 0
    with progress("parcels", len(crops)) as bar:
        for crop in crops:
            frame, attributes = _read_crop(root, crop)
            members = _members(crop, attributes, frame["has_area"].to_numpy())
            used = np.logical_or.reduce(list(members.values()))
            for season, mask in members.items():
                seasons.setdefault(season, []).append(np.flatnonzero(mask[used]) + start)
            for row in frame[~used].itertuples():
                reason = "matches no season's `where`" if row.has_area else "no area"
                dropped.append(Dropped(row.file, crop.crop, "", f"feature {row.feature}", reason))
            frames.append(frame[used])
            start += int(used.sum())
            bar.advance(note=crop.crop)
    frame = pd.concat(frames, ignore_index=True)
    return Parcels(
        frame=frame[["parcel_id", "crop", "file", "geometry"]],
        seasons={season: np.concatenate(parts) for season, parts in seasons.items()},
        mended=int(frame["mended"].sum()),
        dropped=tuple(dropped),
    )


def _read_crop(root: str, crop: CropConfig) -> tuple[gpd.GeoDataFrame, pd.DataFrame]:
    """All features of the files of a crop, and as text their attributes that filters use.

    The columns are those of `Parcels.frame`, feature (the number in its file), mended and has_area.
    """
    columns = sorted({column for season in crop.seasons for column in season.where})
    frames, attributes = [], []
    for file in find_files(root, crop.path):
        stored = read_polygons(file, columns)
        geometry, mended = mend(reproject(stored, LONLAT, file).geometry.to_numpy())
        has_area = shapely.area(geometry) > 0
        if not has_area.any():
            raise InputError(
                f"{file}: none of its {len(stored)} features has an area. Give a file of polygons."
            )
        # Hash the geometry as stored: repaired and reprojected ones differ between versions of libraries.
        wkbs = shapely.to_wkb(stored.geometry.to_numpy(), byte_order=1)
        fields = {
            "parcel_id": [identity(crop.crop, [wkb or b""]) for wkb in wkbs],
            "crop": crop.crop,
            "file": _below(file, root),
            "feature": np.arange(len(stored)),
            "mended": mended,
            "has_area": has_area,
        }
        frames.append(gpd.GeoDataFrame(fields, geometry=geometry, crs=LONLAT))
        attributes.append(pd.DataFrame({name: stored[name].map(_plain) for name in columns}))
    return pd.concat(frames, ignore_index=True), pd.concat(attributes, ignore_index=True)


def _members(crop: CropConfig, attributes: pd.DataFrame, has_area: BoolArray) -> dict[Season, BoolArray]:
    """(N,) by season: True for its parcels. Raises InputError for a season without any."""
    members: dict[Season, BoolArray] = {}
    for setting in crop.seasons:
        mask = has_area.copy()
        for column, value in setting.where.items():
            mask &= (attributes[column] == _plain(value)).to_numpy()
        if not mask.any():
            present = {column: sorted(set(attributes[column]))[:12] for column in setting.where}
            raise InputError(
                f"no parcel of {crop.crop} in {crop.path} matches `where` {setting.where}. "
                f"Use values that are present: {present}"
            )
        season = Season(crop.crop, setting.name, setting.sheet)
        members[season] = members.get(season, False) | mask
    return members


def _below(file: Path, root: str) -> str:
    """The name of a file relative to `root`, so that records are the same on every machine."""
    folder = Path(root).expanduser()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def _plain(value: object) -> str:
    """An attribute as text: composed letters, no outer blanks; a whole number without its `.0`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip()

"""The parcels and points of every crop, sorted into seasons. Each file is read once."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
import xxhash

from cropray.config.rois import CropConfig, RoisConfig, SeasonConfig
from cropray.errors import InputError
from cropray.progress import progress
from cropray.rois.shapes import LONLAT, areas_m2, circles, mend, reproject
from cropray.rois.store import Dropped, identity
from cropray.rois.vectors import find_files, matching, read_features
from cropray.run import Inputs
from cropray.types import BoolArray, DoubleArray, IndexArray

_NO_AREA = "no area"
_TINY, _SMALLEST_M2 = "less than 1 m², which is no parcel", 1.0
_HUGE = "more than rois.max_parcel_km2"
_UNSELECTED = "matches no season's `where`"
_SHOWN = 12


class Season(NamedTuple):
    """One sowing of one crop. Its parcels are clustered together."""

    crop: str
    name: str
    sheet: str


@dataclass(frozen=True)
class Parcels:
    """All parcels with an area that belong to a season, and the rows of `frame` by season.

    `frame` has the columns parcel_id, crop, file and geometry (valid polygons and points, EPSG:4326, each in
    one piece across 180°). A parcel that occurs in several files has a row for each, with the same
    parcel_id.
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


class _Layer(NamedTuple):
    """A file, and how it is read."""

    file: Path
    layer: str
    encoding: str
    radius_m: float


class _Text(NamedTuple):
    """A column as text: the number of each row's value, -1 for none, and the values."""

    codes: IndexArray
    values: list[str]

    def among(self, wanted: Iterable[bool]) -> BoolArray:
        """(N,) True for rows whose value is wanted, given for each value."""
        chosen: BoolArray = np.array([*wanted, False])[self.codes]  # -1 is the last one
        return chosen


class _Selected(NamedTuple):
    """What a layer adds to `Parcels`, the (entry, season) numbers that it has, and its columns."""

    parcels: Parcels
    found: set[tuple[int, int]]
    texts: dict[str, _Text]


def read_parcels(root: str, entries: Sequence[CropConfig], max_km2: float) -> Parcels:
    """Read and repair the parcels of all entries of `rois.parcels`.

    A parcel without an area, of more than `max_km2` or of less than 1 m² is dropped. Raises InputError for
    unusable files and filters, and for a season without a parcel.
    """
    numbers: dict[_Layer, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        for file in find_files(root, entry.path):
            numbers[_Layer(file, entry.layer, entry.encoding, entry.radius_m)].append(number)
    selected: list[_Selected] = []
    with progress("parcels", len(numbers)) as bar:
        for layer, mine in numbers.items():
            chosen = {number: entries[number] for number in mine}
            selected.append(_select(layer, chosen, _below(layer.file, root), max_km2))
            bar.advance(note=layer.file.name)
    _check_found(entries, selected)
    parts = [one.parcels for one in selected]
    seasons: dict[Season, list[IndexArray]] = defaultdict(list)
    for first, part in zip(accumulate((len(part.frame) for part in parts), initial=0), parts, strict=False):
        for season, rows in part.seasons.items():
            seasons[season].append(rows + first)
    return Parcels(
        frame=pd.concat([part.frame for part in parts], ignore_index=True),
        seasons={season: np.concatenate(rows) for season, rows in seasons.items()},
        mended=sum(part.mended for part in parts),
        dropped=tuple(row for part in parts for row in part.dropped),
    )


def _select(layer: _Layer, entries: Mapping[int, CropConfig], file: str, max_km2: float) -> _Selected:
    """The parcels of a layer that its entries select. A feature of two crops is two parcels."""
    columns = sorted({column for entry in entries.values() for column in _columns(entry)})
    stored = read_features(layer.file, columns, layer=layer.layer, encoding=layer.encoding, points=True)
    geometry, mended = mend(reproject(stored, LONLAT, layer.file).geometry.to_numpy())
    area_m2 = areas_m2(geometry)
    flaws = np.full(len(stored), "", object)
    flaws[area_m2 > max_km2 * 1e6] = _HUGE
    flaws[area_m2 < _SMALLEST_M2] = _TINY
    flaws[area_m2 == 0] = _NO_AREA
    usable = flaws == ""
    if not usable.any():
        raise InputError(
            f"{layer.file}: none of its {len(stored)} features is a parcel. Feature 0 has "
            f"{_size(area_m2[0])}: {flaws[0]}. Check its CRS, and give a file of polygons or points."
        )
    if layer.radius_m:
        geometry = circles(geometry, layer.radius_m)
    texts = {column: _text(stored[column]) for column in columns}
    found: set[tuple[int, int]] = set()
    masks: dict[Season, BoolArray] = {}
    for number, entry in entries.items():
        for crop, of_crop in _by_crop(entry, texts, usable):
            for at, setting in enumerate(entry.seasons):
                mask = of_crop & _where(setting, texts, usable)
                if mask.any():
                    season = Season(crop, setting.name, setting.sheet)
                    masks[season] = masks.get(season, False) | mask
                    found.add((number, at))
    used: dict[str, BoolArray] = {}
    for season, mask in masks.items():
        used[season.crop] = used.get(season.crop, False) | mask
    counts = [int(mask.sum()) for mask in used.values()]
    first = dict(zip(used, accumulate(counts, initial=0), strict=False))
    rows = np.concatenate([np.empty(0, np.intp), *(np.flatnonzero(mask) for mask in used.values())])
    crops = np.repeat(np.array([*used], object), counts)
    # Hash the geometry as stored: repaired and reprojected ones differ between versions of libraries.
    wkbs = shapely.to_wkb(stored.geometry.to_numpy()[rows], byte_order=1)
    ids = [identity(crop, [wkb]) for crop, wkb in zip(crops, wkbs, strict=True)]
    flaws[usable & ~np.isin(np.arange(len(stored)), rows)] = _UNSELECTED
    parcels = Parcels(
        gpd.GeoDataFrame(
            {"parcel_id": ids, "crop": crops, "file": file}, geometry=geometry[rows], crs=LONLAT
        ),
        {
            season: first[season.crop] + np.cumsum(used[season.crop])[mask] - 1
            for season, mask in masks.items()
        },
        int(mended[rows].sum()),
        tuple(_dropped(flaws, area_m2, file, entries.values(), texts)),
    )
    return _Selected(parcels, found, texts)


def _columns(entry: CropConfig) -> set[str]:
    """The attributes by which an entry selects."""
    wanted = {column for season in entry.seasons for column in season.where}
    return wanted | ({entry.crops.column} if entry.crops else set())


def _by_crop(
    entry: CropConfig, texts: Mapping[str, _Text], usable: BoolArray
) -> Iterator[tuple[str, BoolArray]]:
    """The crops of an entry, each with (N,) True for its features."""
    if entry.crops is None:
        yield entry.crop, usable
        return
    text = texts[entry.crops.column]
    of_values = [crop_of(value, entry.crops.map) for value in text.values]
    for crop in sorted(set(of_values) - {""}):
        yield crop, usable & text.among(crop == other for other in of_values)


def crop_of(value: str, crops: Mapping[str, str]) -> str:
    """The crop of a value of the crop column: its own, else that of the longest `PREFIX*`, else ""."""
    prefixes = [key for key in crops if key.endswith("*") and value.startswith(key[:-1])]
    return crops.get(value) or crops.get(max(prefixes, key=len, default=""), "")


def _where(setting: SeasonConfig, texts: Mapping[str, _Text], usable: BoolArray) -> BoolArray:
    mask = usable.copy()
    for column, wanted in setting.where.items():
        mask &= texts[column].among(value == _plain(wanted) for value in texts[column].values)
    return mask


def _dropped(
    flaws: npt.NDArray[np.object_],
    area_m2: DoubleArray,
    file: str,
    entries: Collection[CropConfig],
    texts: Mapping[str, _Text],
) -> Iterator[Dropped]:
    """A row for each feature with a flaw. It names the crop if all entries of the file have the same."""
    crops, columns = {entry.crop for entry in entries}, {e.crops.column for e in entries if e.crops}
    for row in np.flatnonzero(flaws != ""):
        item, reason = f"feature {row}", flaws[row]
        if reason in (_TINY, _HUGE):
            item += f" ({_size(area_m2[row])})"
        elif reason == _UNSELECTED and columns:
            reason = "is none of the crops in `crops.map`"
            values = [(texts[name].values or [""])[texts[name].codes[row]] for name in sorted(columns)]
            item += f" ({', '.join(values)})"
        yield Dropped(file, crops.pop() if len(crops) == 1 else "", "", item, reason)


def _size(area_m2: float) -> str:
    return f"{area_m2 / 1e6:,.1f} km²" if area_m2 >= 1e5 else f"{area_m2:.3g} m²"


def _check_found(entries: Sequence[CropConfig], selected: Sequence[_Selected]) -> None:
    """Raises InputError for a season of an entry without any parcel."""
    found = set[tuple[int, int]]().union(*(one.found for one in selected))
    for number, entry in enumerate(entries):
        for at, setting in enumerate(entry.seasons):
            if (number, at) in found:
                continue
            present = {
                column: sorted(
                    {v for one in selected if column in one.texts for v in one.texts[column].values}
                )
                for column in sorted(set(setting.where) | ({entry.crops.column} if entry.crops else set()))
            }
            shown = {column: values[:_SHOWN] for column, values in present.items()}
            wanted = f"`where` {setting.where}" if setting.where else ""
            if entry.crops:
                wanted = " and ".join(filter(None, [f"`crops.map` of {entry.crops.column}", wanted]))
            raise InputError(
                f"no parcel of {entry.crop or 'any crop'} in {entry.path} matches {wanted}. "
                f"Use values that are present: {shown}. If these look wrong, set `encoding`."
            )


def _text(column: pd.Series) -> _Text:
    codes, values = pd.factorize(column)
    plain = [_plain(value) for value in values]
    return _Text(codes, plain)


def _below(file: Path, root: str) -> str:
    """The name of a file relative to `root`, so that records are the same on every machine."""
    folder = Path(root).expanduser()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def _plain(value: object) -> str:
    """An attribute as text: composed letters, no outer blanks; a whole number without its `.0`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip()

"""The parcels and points of every crop, sorted into seasons. Each file is read once."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import shapely
import xxhash
from pyproj import CRS

from cropray.config.rois import CropConfig
from cropray.errors import InputError, counted
from cropray.progress import progress, say
from cropray.rois.shapes import LONLAT, Geometries, areas_m2, circles, mend, reproject, slices
from cropray.rois.store import Dropped, identity_of_digests
from cropray.rois.vectors import find_files, read_features
from cropray.types import BoolArray, DoubleArray, IndexArray

_NO_AREA, _NO_GEOMETRY = "no area", "no geometry"
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

    @property
    def unique(self) -> gpd.GeoDataFrame:
        """Each parcel once."""
        repeated = self.frame["parcel_id"].duplicated()
        return self.frame[~repeated].reset_index(drop=True) if repeated.any() else self.frame

    @classmethod
    def none(cls) -> Parcels:
        frame = gpd.GeoDataFrame({"parcel_id": [], "crop": [], "file": []}, geometry=[], crs=LONLAT)
        return cls(frame, {}, mended=0, dropped=())


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

    def of(self, row: int) -> str:
        return self.values[self.codes[row]] if self.codes[row] >= 0 else "no value"


class _LayerParcels(NamedTuple):
    """What a layer adds to `Parcels`, the (entry, season) numbers that found some, and its columns."""

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
    read: list[_LayerParcels] = []
    with progress("parcels", len(numbers)) as bar:
        for layer, mine in numbers.items():
            chosen = {number: entries[number] for number in mine}
            read.append(_read(layer, chosen, _below(layer.file, root), max_km2))
            bar.advance(note=layer.file.name)
    _check_found(entries, read)
    parts = [one.parcels for one in read]
    seasons: dict[Season, list[IndexArray]] = defaultdict(list)
    for first, part in zip(accumulate((len(part.frame) for part in parts), initial=0), parts, strict=False):
        for season, rows in part.seasons.items():
            seasons[season].append(rows + first)
    parcels = Parcels(
        frame=pd.concat([part.frame for part in parts], ignore_index=True),
        seasons={season: np.concatenate(rows) for season, rows in seasons.items()},
        mended=sum(part.mended for part in parts),
        dropped=tuple(row for part in parts for row in part.dropped),
    )
    _warn(entries, parcels)
    return parcels


def _read(layer: _Layer, entries: Mapping[int, CropConfig], file: str, max_km2: float) -> _LayerParcels:
    """The parcels of a layer that its entries select. A feature of two crops is two parcels."""
    columns = sorted({column for entry in entries.values() for column in _columns(entry)})
    stored = read_features(layer.file, columns, layer=layer.layer, encoding=layer.encoding, points=True)
    geometry, crs = stored.geometry.to_numpy(), stored.crs
    stored = pd.DataFrame(stored.drop(columns="geometry"))  # or it would keep what `_repair` replaces
    repaired = _repair(geometry, crs, layer.file)
    area_m2 = areas_m2(geometry)
    flaws = _flaws(area_m2, max_km2)
    flaws[repaired.gone] = _NO_GEOMETRY
    if (flaws != "").all():
        raise InputError(
            f"{layer.file}: none of its {len(stored)} features is a parcel. Feature 0 has "
            f"{_size(area_m2[0])}: {flaws[0]}. Check its CRS, and give a file of polygons or points."
        )
    if layer.radius_m:
        geometry = circles(geometry, layer.radius_m)
    texts = {column: _text(stored[column]) for column in columns}
    masks, found = _masks(entries, texts, flaws == "")
    by_crop: dict[str, BoolArray] = {}
    for season, mask in masks.items():
        by_crop[season.crop] = by_crop.get(season.crop, False) | mask
    counts = [int(mask.sum()) for mask in by_crop.values()]
    first = dict(zip(by_crop, accumulate(counts, initial=0), strict=False))
    rows = np.concatenate([np.empty(0, np.intp), *(np.flatnonzero(mask) for mask in by_crop.values())])
    crops = np.repeat(np.array([*by_crop], object), counts)
    digests = zip(crops, map(bytes, repaired.digests[rows]), strict=True)
    named = (identity_of_digests(crop, [digest]) for crop, digest in digests)
    ids = pd.arrays.ArrowExtensionArray(pa.array(named, pa.string(), size=len(rows)))
    fields = {"parcel_id": ids, "crop": crops, "file": file}
    flaws[(flaws == "") & ~np.isin(np.arange(len(stored)), rows)] = _UNSELECTED
    parcels = Parcels(
        frame=gpd.GeoDataFrame(fields, geometry=geometry[rows], crs=LONLAT),
        seasons={s: first[s.crop] + np.cumsum(by_crop[s.crop])[mask] - 1 for s, mask in masks.items()},
        mended=int(repaired.mended[rows].sum()),
        dropped=tuple(_dropped(flaws, area_m2, file, entries.values(), texts)),
    )
    return _LayerParcels(parcels, found, texts)


class _Repaired(NamedTuple):
    """(N,) by feature: whether it was repaired, whether it had no geometry, and the digest of its WKB."""

    mended: BoolArray
    gone: BoolArray
    digests: npt.NDArray[np.void]


def _repair(geometry: Geometries, crs: CRS, file: Path) -> _Repaired:
    """Put valid geometries in degrees in place of (N,) stored ones, slice by slice."""
    count = len(geometry)
    found = _Repaired(np.zeros(count, np.bool_), np.zeros(count, np.bool_), np.empty(count, "V8"))
    for rows in slices(count):
        numbers = np.arange(count)[rows]
        stored = gpd.GeoDataFrame(index=numbers, geometry=geometry[rows].copy(), crs=crs)
        # As stored: repaired and reprojected geometries differ between versions of libraries.
        wkbs = shapely.to_wkb(stored.geometry.to_numpy(), byte_order=1)
        found.digests[rows] = [xxhash.xxh3_64_digest(wkb or b"") for wkb in wkbs]
        found.gone[rows] = stored.geometry.isna() | stored.geometry.is_empty
        geometry[rows], found.mended[rows] = mend(reproject(stored, LONLAT, file).geometry.to_numpy())
    return found


def _flaws(area_m2: DoubleArray, max_km2: float) -> npt.NDArray[np.object_]:
    """(N,) why a feature of this area is no parcel, empty for parcels and points."""
    flaws = np.full(len(area_m2), "", object)
    flaws[area_m2 > max_km2 * 1e6] = _HUGE
    flaws[area_m2 < _SMALLEST_M2] = _TINY
    flaws[area_m2 == 0] = _NO_AREA
    return flaws


def _masks(
    entries: Mapping[int, CropConfig], texts: Mapping[str, _Text], usable: BoolArray
) -> tuple[dict[Season, BoolArray], set[tuple[int, int]]]:
    """(N,) by season: True for its features; and the numbers of entries and their seasons that have some."""
    masks: dict[Season, BoolArray] = {}
    found: set[tuple[int, int]] = set()
    for number, entry in entries.items():
        for at, setting in enumerate(entry.seasons):
            chosen = usable.copy()
            for column, wanted in setting.where.items():
                chosen &= texts[column].among(value == _plain(wanted) for value in texts[column].values)
            for crop, of_crop in _by_crop(entry, texts):
                if (mask := chosen & of_crop).any():
                    season = Season(crop, setting.name, setting.sheet)
                    masks[season] = masks.get(season, False) | mask
                    found.add((number, at))
    return masks, found


def _columns(entry: CropConfig) -> set[str]:
    """The attributes by which an entry selects."""
    wanted = {column for season in entry.seasons for column in season.where}
    return wanted | ({entry.crops.column} if entry.crops else set())


def _by_crop(
    entry: CropConfig, texts: Mapping[str, _Text]
) -> Iterator[tuple[str, BoolArray | Literal[True]]]:
    """The crops of an entry, each with (N,) True for its features."""
    if entry.crops is None:
        yield entry.crop, True
        return
    text = texts[entry.crops.column]
    of_values = [crop_of(value, entry.crops.map) for value in text.values]
    for crop in sorted(set(of_values) - {""}):
        yield crop, text.among(crop == other for other in of_values)


def crop_of(value: str, crops: Mapping[str, str]) -> str:
    """The crop of a value of the crop column: its own, else that of the longest `PREFIX*`, else ""."""
    prefixes = [key for key in crops if key.endswith("*") and value.startswith(key[:-1])]
    return crops.get(value) or crops.get(max(prefixes, key=len, default=""), "")


def _dropped(
    flaws: npt.NDArray[np.object_],
    area_m2: DoubleArray,
    file: str,
    entries: Collection[CropConfig],
    texts: Mapping[str, _Text],
) -> Iterator[Dropped]:
    """A row for each feature with a flaw. It names the crop if all entries of the file have the same."""
    crops, columns = {entry.crop for entry in entries}, {e.crops.column for e in entries if e.crops}
    crop = crops.pop() if len(crops) == 1 else ""
    for row in np.flatnonzero(flaws != "").tolist():
        item, reason = f"feature {row}", flaws[row]
        if reason in (_TINY, _HUGE):
            item += f" ({_size(area_m2[row])})"
        elif reason == _UNSELECTED and columns:
            reason = "is none of the crops in `crops.map`"
            item += f" ({', '.join(texts[column].of(row) for column in sorted(columns))})"
        yield Dropped(file, crop, "", item, reason)


def _size(area_m2: float) -> str:
    return f"{area_m2 / 1e6:,.1f} km²" if area_m2 >= 1e5 else f"{area_m2:.3g} m²"


def _check_found(entries: Sequence[CropConfig], read: Sequence[_LayerParcels]) -> None:
    """Raises InputError for a season of an entry without any parcel."""
    found = set[tuple[int, int]]().union(*(one.found for one in read))
    for number, entry in enumerate(entries):
        for at, setting in enumerate(entry.seasons):
            if (number, at) not in found:
                columns = set(setting.where) | ({entry.crops.column} if entry.crops else set())
                present = {name: _present(name, read) for name in sorted(columns)}
                wanted = [f"`crops.map` of {entry.crops.column}"] if entry.crops else []
                wanted += [f"`where` {setting.where}"] if setting.where else []
                raise InputError(
                    f"no parcel of {entry.crop or 'any crop'} in {entry.path} matches "
                    f"{' and '.join(wanted)}. Use values that are present: {present}. If these look "
                    "wrong, set `encoding`."
                )


def _present(column: str, read: Sequence[_LayerParcels]) -> list[str]:
    values = {value for one in read if column in one.texts for value in one.texts[column].values}
    return sorted(values)[:_SHOWN]


def _warn(entries: Sequence[CropConfig], parcels: Parcels) -> None:
    """Name parcels of an implausible size or with several crops, and mapped crops that no parcel has."""
    for reason in (_TINY, _HUGE):
        if odd := [row for row in parcels.dropped if row.reason == reason]:
            say(
                f"rois: warning: {counted(len(odd), 'parcel')} left out, such as {odd[0].item} of "
                f"{odd[0].file}: {reason}"
            )
    bounds = parcels.frame.geometry.bounds  # those of one field in several files are the same
    again = bounds.duplicated(keep=False)
    sides = [column for _, column in bounds[again].items()]
    crops = parcels.frame.loc[again, "crop"].groupby(sides, sort=False).transform("nunique")
    if len(several := parcels.frame.loc[crops.index[crops > 1]]):
        places = bounds.loc[several.index].drop_duplicates()
        rows = several[(bounds.loc[several.index] == places.iloc[0]).all(axis=1)].drop_duplicates("crop")
        named = ", ".join(f"{crop} in {file}" for crop, file in zip(rows["crop"], rows["file"], strict=True))
        say(
            f"rois: warning: {counted(len(places), 'field')} with more than one crop, such as that at "
            f"{places.iloc[0, 0]:.5f}, {places.iloc[0, 1]:.5f} ({named}). Its pixels stay unlabelled"
        )
    mapped = {crop for entry in entries if entry.crops for crop in entry.crops.map.values()}
    if absent := sorted(mapped - {season.crop for season in parcels.seasons}):
        say(f"rois: warning: no parcel of {', '.join(absent)}")


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

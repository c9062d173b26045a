"""Points to be checked on the ground: written as GeoPackage and KML, and read back with what was found.

The files do not say what the map shows at a point, so whoever looks at it is not led by the map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyogrio.errors

from cropray.errors import InputError, listed, nearest
from cropray.grid import Grid
from cropray.maps.strata import Stratum
from cropray.maps.tables import plain
from cropray.types import IndexArray

SAMPLE = "sample.json"
POINTS = "points.gpkg"
NONE = "none"
"""What to write for a point where none of the classes grows."""

_COLUMNS = ("crop", "checked_on", "checked_by", "note")  # for whoever checks the points
_SUFFIXES = ".gpkg, .geojson, .shp, .csv or .xlsx"


@dataclass(frozen=True)
class Sample:
    """A stratified random sample of a map's pixels: what its points are and how they were drawn."""

    map_id: str
    map_checksum: str
    grid: Grid
    classes: tuple[str, ...]
    strata: tuple[Stratum, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    stratum: tuple[int, ...]
    seed: int

    @property
    def key(self) -> str:
        """The hash of the sample. Its points carry it."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def names(self) -> list[str]:
        """P0001, P0002, … in random order: the first points are a sample of their own."""
        return [f"P{number:04d}" for number in range(1, len(self.rows) + 1)]

    def to_json(self) -> str:
        return json.dumps({"key": self.key, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Sample:
        """Raises InputError if the text is damaged or was changed."""
        try:
            data = json.loads(text)
            key = data.pop("key")
            lists = {name: tuple(data[name]) for name in ("classes", "rows", "cols", "stratum")}
            strata = tuple(Stratum(**each) for each in data["strata"])
            sample = cls(**data | lists | {"grid": Grid(**data["grid"]), "strata": strata})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{where} is damaged ({error}). Draw a new sample, or restore the file."
            ) from error
        if sample.key != key:
            raise InputError(
                f"{where} was changed since its points were drawn, so their chances to be drawn are unknown. "
                "Restore the file, or draw a new sample."
            )
        return sample

    def places(self) -> gpd.GeoSeries:
        """The centres of the pixels, in degrees."""
        x, y = self.grid.centres()
        points = gpd.points_from_xy(x[list(self.cols)], y[list(self.rows)], crs=self.grid.crs)
        return gpd.GeoSeries(points).to_crs("EPSG:4326")


def write_points(sample: Sample, directory: Path, *, pictures: bool) -> list[Path]:
    """Write points.gpkg and points.kml with blank columns into a local directory."""
    places = sample.places()
    data: dict[str, Any] = {"point": sample.names, **dict.fromkeys(_COLUMNS, "")}
    data |= {"lon": places.x.round(6), "lat": places.y.round(6), "sample": sample.key}
    if pictures:
        data["picture"] = [f"pictures/{name}.png" for name in sample.names]
    frame = gpd.GeoDataFrame(data, geometry=places)
    paths = [directory / POINTS, directory / "points.kml"]
    pyogrio.write_dataframe(frame, paths[0], layer="points", driver="GPKG")
    marks = frame[["point", "sample", "geometry"]].rename(columns={"point": "Name"})
    if pictures:
        marks["Description"] = [f'<img src="{picture}">' for picture in frame["picture"]]
    pyogrio.write_dataframe(marks, paths[1], driver="KML")
    return paths


def read_checked(file: str, sample: Sample, *, skip_blank: bool, where: str) -> tuple[IndexArray, IndexArray]:
    """Which points of a sample were checked (N,), and the number of the class (N,) found at each.

    The last points may be blank: the others are a random sample too. Raises InputError for blank points
    elsewhere (unless `skip_blank`), other samples' points, points that are named twice, that are missing or
    were moved, unknown crops, and strata with fewer than two checked points.
    """
    path = Path(file).expanduser()
    frame = _read(path)
    for column in ("point", "sample", "crop"):
        if column not in frame:
            raise InputError(f"{path} has no column {column!r}.{nearest(column, map(str, frame.columns))}")
    text = frame[["point", "sample", "crop"]].fillna("").astype(str).apply(lambda each: each.str.strip())
    _check_identity(path, text, sample, where)
    if isinstance(frame, gpd.GeoDataFrame):
        _check_places(path, frame.geometry, text["point"], sample)
    crops = dict(zip(text["point"], text["crop"], strict=True))
    classes = _classes(path, crops, sample.classes)
    blank = [name for name in sample.names if classes[name] is None]
    if len(blank) == len(crops):
        raise InputError(f"{path}: no point was checked yet. Write what grows there into the column 'crop'.")
    last = max(number for number, name in enumerate(sample.names) if classes[name] is not None)
    gaps = [name for name in blank if name in sample.names[:last]]
    if gaps and not skip_blank:
        raise InputError(
            f"{path}: {len(gaps)} points before the last checked one have no crop: {_few(gaps)}. Check them. "
            "If they could not be checked for reasons that have nothing to do with what grows there, leave "
            "them out: --skip-blank"
        )
    used = np.array([n for n, name in enumerate(sample.names) if classes[name] is not None], np.intp)
    counts_h = np.bincount(np.array(sample.stratum)[used], minlength=len(sample.strata))
    few = [
        name
        for name in blank
        if counts_h[(h := sample.stratum[sample.names.index(name)])] < min(2, sample.strata[h].pixels)
    ]
    if few:
        raise InputError(
            f"{path}: too few points were checked for an interval: every stratum needs two. Check these too: "
            f"{_few(few)}"
        )
    return used, np.array([classes[sample.names[n]] for n in used], np.intp)


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"{path} does not exist. Give the file with the checked points: {_SUFFIXES}.")
    try:
        if path.suffix.lower() == ".csv":
            return pd.read_csv(path, dtype=str)
        if path.suffix.lower() == ".xlsx":
            return pd.read_excel(path, dtype=str)
        frame: pd.DataFrame = pyogrio.read_dataframe(path)
    except (pyogrio.errors.DataSourceError, ValueError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}. Give {_SUFFIXES}.") from error
    return frame


def _check_identity(path: Path, text: pd.DataFrame, sample: Sample, where: str) -> None:
    others = sorted(set(text["sample"]) - {sample.key})
    if others:
        raise InputError(
            f"{path} holds points of another sample ({_few([other or 'none named' for other in others])}; "
            f"{where} is {sample.key}). Give the points that were drawn with it: an estimate is valid for a "
            "random sample of this land only. Keep the column 'sample' in tables."
        )
    names = text["point"]
    twice = sorted(set(names[names.duplicated()]))
    if twice:
        raise InputError(f"{path} names points more than once: {_few(twice)}. Keep one row for each.")
    for what, wrong in (
        ("unknown points", sorted(set(names) - set(sample.names))),
        ("no row for the points", [name for name in sample.names if name not in set(names)]),
    ):
        if wrong:
            raise InputError(
                f"{path} has {what} {_few(wrong)}. It needs the {len(sample.names)} points of {where}; leave "
                "'crop' blank where nothing was found out."
            )


def _check_places(path: Path, geometry: gpd.GeoSeries, names: pd.Series[str], sample: Sample) -> None:
    """Raises InputError if a point was moved by more than a pixel."""
    if geometry.isna().all():
        return
    drawn = gpd.GeoSeries(sample.places().to_numpy(), index=sample.names, crs="EPSG:4326")
    given = geometry.set_axis(names)
    away = given.to_crs(sample.grid.crs).distance(drawn.to_crs(sample.grid.crs), align=True)
    moved = [str(name) for name in away.index[~(away < sample.grid.resolution)]]
    if moved:
        raise InputError(
            f"{path}: points lie elsewhere than they were drawn: {_few(moved)}. Check the ground at the "
            f"places of {POINTS}, and do not move points to easier ones."
        )


def _classes(path: Path, crops: Mapping[str, str], classes: Sequence[str]) -> dict[str, int | None]:
    """The number of the class of each point, None for a blank one; case, spaces and _ do not matter."""
    known = {plain(name): number for number, name in enumerate(classes)}
    known |= {plain(NONE): len(classes), plain("none of the classes"): len(classes)}
    wrong = sorted({crop for crop in crops.values() if crop and plain(crop) not in known})
    if wrong:
        lines = [f"{crop!r}.{nearest(crop, [*classes, NONE])}" for crop in wrong]
        raise InputError(
            f"{path}: the column 'crop' has names that are no class of the map:\n{listed(lines)}\n"
            f"Write {NONE!r} for any other land."
        )
    return {name: known[plain(crop)] if crop else None for name, crop in crops.items()}


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

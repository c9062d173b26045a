"""Rectangles from a spreadsheet, for regions whose every pixel is labelled (pretraining)."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import shapely
import shapely.geometry
from shapely.errors import ShapelyError

from cropray.config.rois import RoisConfig
from cropray.errors import InputError, nearest
from cropray.grid import Bounds
from cropray.progress import progress
from cropray.rois.store import identity
from cropray.rois.vectors import LONLAT, metric_crs
from cropray.types import Roi

_CORNERS = ("min_lon", "min_lat", "max_lon", "max_lat")


def read_table(config: RoisConfig, classes: Sequence[str]) -> list[Roi]:
    """The ROIs of a csv or xlsx file (its first sheet), without splits unless `split.named` has them.

    A row gives its box as min_lon, min_lat, max_lon, max_lat (degrees), or in one column `roi` as
    "minx,miny,maxx,maxy", WKT, or GeoJSON (a geometry, or its coordinates alone), of which the
    bounds are taken. Coordinates of `roi` that all lie within ±180 and ±90 are degrees (EPSG:4326);
    others are of `rois.crs`, which must then name a CRS. Optional columns: harvest_date
    (YYYY-MM-DD, Gregorian), country, uuid (becomes the roi_id), main_type; others are not read.
    A main_type that names one of `classes` (in any case) becomes the crop of the ROI. Any other, such
    as "suger beat, kolza, barley" of a published table, is a remark: the ROI has no crop of its own.
    Raises InputError that names the row for whatever else is there.
    """
    path = Path(config.data_root).expanduser() / config.table
    if not config.table or not path.is_file():
        raise InputError(f"there is no table of ROIs {path}; check rois.table and rois.data_root")
    frame = _read_frame(path)
    records: Any = frame.to_dict("records")
    rois = []
    with progress("regions", len(records)) as bar:
        for number, record in enumerate(records, start=2):
            rois.append(_read_row(record, f"{path}, row {number}", config, classes))
            bar.advance()
    if not rois:
        raise InputError(f"{path} has no rows; wanted one for each ROI")
    _check_unique(rois, path)
    systems = sorted({roi.crs for roi in rois})
    if len(systems) > 1:
        raise InputError(f"{path} mixes coordinates of {' and '.join(systems)}; wanted one CRS in a table")
    return rois


def _read_frame(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        else:
            frame = pd.read_excel(path, dtype=str, keep_default_na=False)
    except (ValueError, BadZipFile) as error:
        raise InputError(f"cannot read the table {path} ({error}); wanted csv or xlsx") from error
    frame.columns = frame.columns.str.strip().str.lower()
    for column in () if "roi" in frame else _CORNERS:
        if column not in frame:
            raise InputError(
                f"{path} has neither a column 'roi' nor {column!r}.{nearest(column, frame.columns)}"
            )
    return frame


def _read_row(record: dict[str, str], where: str, config: RoisConfig, classes: Sequence[str]) -> Roi:
    bounds, crs = _box(record, where, config)
    country = record.get("country", "").strip() or config.country
    uuid = record.get("uuid", "").strip()
    if re.search(r"[^\w.-]", uuid):
        raise InputError(f"{where}: uuid {uuid!r} cannot name files; use letters, digits, - and _")
    harvest = record.get("harvest_date", "").strip()
    parts = [np.array(bounds, "<f8").tobytes(), harvest.encode()]
    return Roi(
        roi_id=uuid or identity(country, parts),
        crop=_crop(record.get("main_type", ""), classes),
        season="",
        province="",
        country=country,
        split=_named_split((uuid, country), where, config),
        bounds=bounds,
        crs=crs,
        harvest_start=_harvest(harvest, where),
    )


def _crop(main_type: str, classes: Sequence[str]) -> str:
    named = main_type.strip().casefold()
    return next((name for name in classes if name.casefold() == named), "")


def _box(record: dict[str, str], where: str, config: RoisConfig) -> tuple[Bounds, str]:
    if "roi" in record:
        bounds = _parse_box(record["roi"], where)
    else:
        try:
            min_x, min_y, max_x, max_y = (float(record[corner]) for corner in _CORNERS)
        except ValueError as error:
            raise InputError(f"{where}: {error}; wanted degrees in {', '.join(_CORNERS)}") from error
        bounds = (min_x, min_y, max_x, max_y)
    if not (all(map(math.isfinite, bounds)) and bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        raise InputError(f"{where}: {bounds} is no box; wanted min x < max x and min y < max y")
    if max(abs(bounds[0]), abs(bounds[2])) <= 180 and max(abs(bounds[1]), abs(bounds[3])) <= 90:
        return bounds, LONLAT
    if "roi" not in record or config.crs == "utm":
        raise InputError(
            f"{where}: {bounds} are no degrees; correct them, or name their CRS in rois.crs (EPSG:3857 …)"
        )
    return bounds, metric_crs(config.crs)


def _parse_box(text: str, where: str) -> Bounds:
    """Bounds of "minx,miny,maxx,maxy", WKT, GeoJSON or a list of coordinates (JSON or Python)."""
    for parse in (_numbers, _wkt, _json, _literal):
        try:
            bounds = parse(text)
        except (ValueError, SyntaxError, TypeError, KeyError, ShapelyError):
            continue
        min_x, min_y, max_x, max_y = bounds
        return float(min_x), float(min_y), float(max_x), float(max_y)
    raise InputError(
        f"{where}: cannot read roi {text[:60]!r}; wanted minx,miny,maxx,maxy, WKT or GeoJSON coordinates"
    )


def _numbers(text: str) -> Bounds:
    min_x, min_y, max_x, max_y = (float(number) for number in text.strip(" ()[]").split(","))
    return min_x, min_y, max_x, max_y


def _wkt(text: str) -> Any:
    return shapely.from_wkt(text).bounds


def _json(text: str) -> Any:
    return _geojson_bounds(json.loads(text))


def _literal(text: str) -> Any:
    return _geojson_bounds(ast.literal_eval(text))


def _geojson_bounds(value: Any) -> Any:
    if isinstance(value, dict):
        return shapely.geometry.shape(value.get("geometry", value)).bounds
    coordinates = np.array(value, dtype=float)
    if coordinates.ndim < 2:
        raise ValueError("a single point")
    points = coordinates.reshape(-1, coordinates.shape[-1])[:, :2]
    return (*points.min(axis=0), *points.max(axis=0))


def _harvest(text: str, where: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text.removesuffix(" 00:00:00"))
    except ValueError as error:
        raise InputError(f"{where}: harvest_date is {text!r} ({error}); wanted YYYY-MM-DD") from error


def _named_split(names: tuple[str, str], where: str, config: RoisConfig) -> str:
    named = config.split.named
    if not named:
        return ""
    for name in names:
        if name in named:
            return named[name]
    wrong = next(filter(None, names), "")
    raise InputError(f"{where}: rois.split.named has no split for {wrong!r}.{nearest(wrong, named)}")


def _check_unique(rois: list[Roi], path: Path) -> None:
    seen: set[str] = set()
    for roi in rois:
        if roi.roi_id in seen:
            raise InputError(f"{path} has {roi.roi_id} twice; wanted every ROI once, and every uuid")
        seen.add(roi.roi_id)

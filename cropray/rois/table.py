"""ROIs from the rectangles in the rows of a table (pretraining on dense labels)."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from shapely.errors import ShapelyError

from cropray.config.rois import RoisConfig
from cropray.errors import InputError, check_name, nearest
from cropray.grid import Bounds
from cropray.progress import progress
from cropray.rois.shapes import LONLAT, metric_crs
from cropray.rois.sheets import read_sheets
from cropray.rois.store import identity
from cropray.types import Roi

_CORNERS = ("min_lon", "min_lat", "max_lon", "max_lat")


def read_table(config: RoisConfig, classes: Sequence[str]) -> list[Roi]:
    """The ROIs in the rows of a csv file or of the first sheet of an xlsx file.

    A row gives its box in the columns min_lon, min_lat, max_lon and max_lat (degrees), or in one column
    `roi` as "minx,miny,maxx,maxy", WKT, or GeoJSON (a geometry, or its coordinates alone), whose bounds
    count. Coordinates of `roi` within ±180 and ±90 are degrees (EPSG:4326); a box across 180° has min_lon >
    max_lon. Others are in `rois.crs`, which must then name a CRS. Optional columns: harvest_date
    (YYYY-MM-DD, Gregorian), country, uuid (becomes the roi_id), main_type. A main_type that equals one of
    `classes`, in any case, becomes the crop of the ROI. Other values of it and other columns are ignored.

    ROIs have no split unless `split.named` gives one. Raises InputError that names the row.
    """
    if not config.table:
        raise InputError("rois.kind is table, but rois.table is not set. Set it to a csv or xlsx file.")
    path = Path(config.data_root).expanduser() / config.table
    if not path.is_file():
        raise InputError(f"there is no table of ROIs {path}. Check rois.table and rois.data_root.")
    header, *rows = next(iter(read_sheets(path, ("roi", *_CORNERS)).values()), None) or [[]]
    columns = [column.lower() for column in header]
    for column in () if "roi" in columns else _CORNERS:
        if column not in columns:
            raise InputError(
                f"{path} has no column 'roi' and no column {column!r}."
                f"{nearest(column, set(columns) - set(_CORNERS))} "
                f"Give the boxes in 'roi', or in {', '.join(_CORNERS)}."
            )
    rois = []
    with progress("ROIs", sum(map(any, rows))) as bar:
        for number, row in enumerate(rows, start=2):
            if any(row):
                record = dict(zip(columns, row, strict=True))
                rois.append(_read_row(record, f"{path}, row {number}", config, classes))
                bar.advance()
    _check_rois(rois, path)
    return rois


def _check_rois(rois: Sequence[Roi], path: Path) -> None:
    if not rois:
        raise InputError(f"{path} has no rows. Add one row for each ROI.")
    seen: set[str] = set()
    for roi in rois:
        if roi.roi_id in seen:
            raise InputError(f"{path} has two rows for the ROI {roi.roi_id!r}. Remove one of them.")
        seen.add(roi.roi_id)
    systems = sorted({roi.crs for roi in rois})
    if len(systems) > 1:
        raise InputError(f"{path} mixes coordinates in {' and '.join(systems)}. Use one CRS in a table.")


def _read_row(record: dict[str, str], where: str, config: RoisConfig, classes: Sequence[str]) -> Roi:
    bounds, crs = _box(record, where, config)
    country = record.get("country") or config.country
    uuid = record.get("uuid", "")
    if uuid:
        try:
            check_name(uuid)
        except InputError as error:
            raise InputError(f"{where}: uuid {error}") from error
    harvest = record.get("harvest_date", "")
    main_type = record.get("main_type", "").casefold()
    parts = [np.array(bounds, "<f8").tobytes(), harvest.encode()]
    return Roi(
        roi_id=uuid or identity(country, parts),
        crop=next((name for name in classes if name.casefold() == main_type), ""),
        season="",
        province="",
        country=country,
        split=_named_split((uuid, country), where, config),
        bounds=bounds,
        crs=crs,
        harvest_start=_harvest(harvest, where),
    )


def _box(record: dict[str, str], where: str, config: RoisConfig) -> tuple[Bounds, str]:
    if "roi" in record:
        bounds = _parse_box(record["roi"], where)
    else:
        try:
            west, south, east, north = (float(record[corner]) for corner in _CORNERS)
        except ValueError as error:
            raise InputError(f"{where}: {error}. Give degrees in {', '.join(_CORNERS)}.") from error
        bounds = (west, south, east, north)
    min_x, min_y, max_x, max_y = bounds
    in_degrees = max(abs(min_x), abs(max_x)) <= 180 and max(abs(min_y), abs(max_y)) <= 90
    if in_degrees and max_x < min_x - 180:  # less than half the globe: it crosses 180°
        max_x += 360
    if not (all(map(math.isfinite, bounds)) and min_x < max_x and min_y < max_y):
        raise InputError(
            f"{where}: {bounds} is not a box. Give min x < max x and min y < max y "
            "(only a box across 180° has min_lon > max_lon: 179.5, …, -179.5, …)."
        )
    if in_degrees:
        return (min_x, min_y, max_x, max_y), LONLAT
    if "roi" not in record or config.crs == "utm":
        raise InputError(
            f"{where}: {bounds} are not degrees. Correct them, or give the boxes in a column 'roi' and set "
            "rois.crs to their CRS (EPSG:3857 …)."
        )
    return bounds, metric_crs(config.crs)


def _parse_box(text: str, where: str) -> Bounds:
    """Bounds of "minx,miny,maxx,maxy", WKT, GeoJSON or a list of coordinates (JSON or Python)."""
    for parse in (_corners, _wkt, _geojson):
        try:
            min_x, min_y, max_x, max_y = map(float, parse(text))
        except (ValueError, SyntaxError, TypeError, KeyError, ShapelyError):
            continue
        return min_x, min_y, max_x, max_y
    raise InputError(
        f"{where}: cannot read roi {text[:60]!r}. Write minx,miny,maxx,maxy, WKT or GeoJSON coordinates."
    )


def _corners(text: str) -> Any:
    return text.strip(" ()[]").split(",")


def _wkt(text: str) -> Any:
    return shapely.from_wkt(text).bounds


def _geojson(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = ast.literal_eval(text)
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
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{where}: harvest_date is {text!r} ({error}). Write YYYY-MM-DD.") from error


def _named_split(names: tuple[str, str], where: str, config: RoisConfig) -> str:
    named = config.split.named
    if not named:
        return ""
    for name in names:
        if name in named:
            return named[name]
    wrong = next(filter(None, names), "")
    raise InputError(f"{where}: rois.split.named has no split for {wrong!r}.{nearest(wrong, named)}")

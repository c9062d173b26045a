"""Tables from xlsx and csv files, and the rectangles in one as ROIs (pretraining on dense labels)."""

from __future__ import annotations

import ast
import csv
import json
import math
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import openpyxl
import shapely
import shapely.geometry
from openpyxl.utils.exceptions import InvalidFileException
from shapely.errors import ShapelyError

from cropray.config.rois import RoisConfig
from cropray.errors import InputError, check_name, nearest
from cropray.grid import Bounds
from cropray.progress import progress
from cropray.rois.store import identity
from cropray.rois.vectors import LONLAT, metric_crs
from cropray.types import Roi

_CORNERS = ("min_lon", "min_lat", "max_lon", "max_lat")

Rows = list[list[str]]
"""A sheet: its header, then its rows, all of the same length. Cells are text without outer blanks."""


def read_sheets(path: Path) -> dict[str, Rows]:
    """The sheets of an xlsx file, or the one sheet of a csv file (comma-separated, UTF-8).

    Raises InputError for a file that cannot be read.
    """
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                sheets: dict[str, Any] = {path.stem: list(csv.reader(file))}
            _check_separator(sheets[path.stem], path)
        else:
            with closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
                sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}). Save it as csv in UTF-8.") from error
    except (BadZipFile, KeyError, InvalidFileException, csv.Error) as error:
        raise InputError(f"cannot read {path} ({error}). Save it as xlsx or csv.") from error
    return {name: _as_text(rows, path) for name, rows in sheets.items()}


def _check_separator(rows: Sequence[Sequence[str]], path: Path) -> None:
    if rows and len(rows[0]) == 1:
        for separator in (";", "\t"):
            if separator in rows[0][0]:
                raise InputError(f"{path}: columns are separated by {separator!r}. Save it with ','.")


def _as_text(rows: Sequence[Sequence[Any]], path: Path) -> Rows:
    text = [["" if cell is None else str(cell).strip() for cell in row] for row in rows]
    width = len(text[0]) if text else 0
    for number, row in enumerate(text, start=1):
        if any(row[width:]):
            raise InputError(
                f"{path}, row {number} has {len(row)} columns, its header {width}. "
                "Put quotes around text with commas."
            )
    return [row[:width] + [""] * (width - len(row)) for row in text]


def read_table(config: RoisConfig, classes: Sequence[str]) -> list[Roi]:
    """The ROIs in the rows of a csv file or of the first sheet of an xlsx file.

    A row gives its box in the columns min_lon, min_lat, max_lon and max_lat (degrees), or in one column
    `roi` as "minx,miny,maxx,maxy", WKT, or GeoJSON (a geometry, or its coordinates alone), whose bounds
    count. Coordinates of `roi` within ±180 and ±90 are degrees (EPSG:4326). Others are in `rois.crs`,
    which must then name a CRS. Optional columns: harvest_date (YYYY-MM-DD, Gregorian), country, uuid
    (becomes the roi_id), main_type. A main_type that equals one of `classes`, in any case, becomes the
    crop of the ROI. Any other main_type, and any other column, is ignored.

    ROIs have no split unless `split.named` gives one. Raises InputError that names the row.
    """
    if not config.table:
        raise InputError("rois.kind is table, but rois.table is not set. Set it to a csv or xlsx file.")
    path = Path(config.data_root).expanduser() / config.table
    if not path.is_file():
        raise InputError(f"there is no table of ROIs {path}. Check rois.table and rois.data_root.")
    header, *rows = next(iter(read_sheets(path).values()), None) or [[]]
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
            min_x, min_y, max_x, max_y = (float(record[corner]) for corner in _CORNERS)
        except ValueError as error:
            raise InputError(f"{where}: {error}. Give degrees in {', '.join(_CORNERS)}.") from error
        bounds = (min_x, min_y, max_x, max_y)
    if not (all(map(math.isfinite, bounds)) and bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        raise InputError(
            f"{where}: {bounds} is not a box. Give min x < max x and min y < max y. "
            "Split a box that crosses 180° into two rows."
        )
    if max(abs(bounds[0]), abs(bounds[2])) <= 180 and max(abs(bounds[1]), abs(bounds[3])) <= 90:
        return bounds, LONLAT
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
        return date.fromisoformat(text.removesuffix(" 00:00:00"))
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

"""The crop calendar: when a crop is sown and harvested in a province, in either calendar."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import jdatetime
import openpyxl
import pandas as pd

from cropray.config.rois import CalendarConfig, WindowConfig
from cropray.errors import InputError, nearest
from cropray.types import Period


def periods_for(window: WindowConfig, harvest_start: date | None) -> tuple[Period, ...]:
    """The months of a window, oldest first.

    Anchored on the harvest, with h its start, the last month is [h - (lead + 1) months, h - lead
    months). Anchored on an as-of date, the last month ends with that day. Every bound is reckoned
    from the anchor, so a day that a short month lacks becomes that month's last day, without
    drift; neighbours share their bound. Raises InputError where the anchor is not known.
    """
    if window.anchor == "as_of":
        assert window.as_of is not None  # the configuration is checked when it is made
        end, lead = window.as_of + timedelta(days=1), 0
    elif harvest_start is None:
        raise InputError(
            "window.anchor is harvest, but the harvest of this ROI is not known; "
            "give its harvest_date, or set window.anchor=as_of and window.as_of"
        )
    else:
        end, lead = harvest_start, window.lead_months
    bounds = [_months_before(end, lead + back) for back in range(window.months, -1, -1)]
    return tuple(Period(start, stop) for start, stop in pairwise(bounds))


def _months_before(day: date, months: int) -> date:
    return (pd.Timestamp(day) - pd.DateOffset(months=months)).date()


_COLUMNS = ("planting_start", "planting_end", "harvest_start", "harvest_end")
_MISSING = ("", "-")

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Dates:
    """Gregorian days of one sowing; None where no calendar is set."""

    planting_start: date | None = None
    planting_end: date | None = None
    harvest_start: date | None = None
    harvest_end: date | None = None


Sheet = dict[str, Dates | None]
"""By province; None where the row lacks a date."""


def read_calendar(root: str, config: CalendarConfig, sheets: Iterable[str]) -> dict[str, Sheet]:
    """These sheets of an xlsx file, or of a csv file that has a column `sheet`.

    "" is the only sheet of a file with one. Columns, where letter case, blanks and a final "date" do
    not matter: province, planting start, planting end, harvest start, harvest end; days as MM-DD or,
    in one of the agricultural years, YYYY-MM-DD; empty or "-" where not known. Raises InputError for
    anything else, with the nearest right name for a sheet or column, and for a day that its month
    does not have.
    """
    path = Path(root).expanduser() / config.path
    if not path.is_file():
        raise InputError(f"there is no crop calendar {path}; check rois.calendar.path and rois.data_root")
    raw = _read_csv(path) if path.suffix.lower() == ".csv" else _read_xlsx(path)
    if len(raw) == 1:
        raw[""] = next(iter(raw.values()))
    parsed: dict[str, Sheet] = {}
    for name in sorted(set(sheets)):
        if name not in raw:
            raise InputError(f"{path} has no sheet {name!r}.{nearest(name, raw)}")
        parsed[name] = _parse_sheet(raw[name], f"{path}, sheet {name!r}", config)
    return parsed


def to_dates(
    days_of_year: Sequence[tuple[int | None, int, int]],
    years: tuple[int, int],
    system: Literal["jalali", "gregorian"],
) -> list[date]:
    """Gregorian days of (year, month, day) in order of time.

    Where no year is given it is the first agricultural year until the month first decreases, the
    second from there on. Raises ValueError for a day that does not exist or lies in another year.
    """
    days: list[date] = []
    agricultural_year, last_month = years[0], 0
    for given_year, month, day in days_of_year:
        if month < last_month:
            agricultural_year = years[1]
        last_month = month
        year = agricultural_year if given_year is None else given_year
        if year not in years:
            raise ValueError(f"{year} is none of these years")
        days.append(
            jdatetime.date(year, month, day).togregorian() if system == "jalali" else date(year, month, day)
        )
    return days


def _read_xlsx(path: Path) -> dict[str, Rows]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, KeyError, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise InputError(f"cannot read the crop calendar {path} ({error}); wanted xlsx or csv") from error
    try:
        return {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    finally:
        book.close()


def _read_csv(path: Path) -> dict[str, Rows]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the crop calendar {path} ({error}); wanted csv in UTF-8") from error
    header = [_key(cell) for cell in rows[0]] if rows else []
    if "sheet" not in header:
        return {path.stem: rows}
    at = header.index("sheet")
    sheets: dict[str, list[Sequence[Any]]] = {}
    for row in filter(any, rows[1:]):
        sheets.setdefault(row[at].strip(), [rows[0]]).append(row)
    return dict(sheets)


def _parse_sheet(rows: Rows, where: str, config: CalendarConfig) -> Sheet:
    header = [_key(cell) for cell in rows[0]] if rows else []
    for column in ("province", *_COLUMNS):
        if column not in header:
            raise InputError(f"{where} has no column {column!r}.{nearest(column, header)}")
    sheet: Sheet = {}
    for row in rows[1:]:
        province = _text(row[header.index("province")])
        cells = [_text(row[header.index(column)]) for column in _COLUMNS]
        if not province and not any(cells):
            continue
        if province in sheet:
            raise InputError(f"{where} has two rows for {province!r}; wanted one (seasons are sheets)")
        sheet[province] = _parse_row(cells, f"{where}, {province}", config)
    return sheet


def _parse_row(cells: Sequence[str], where: str, config: CalendarConfig) -> Dates | None:
    if any(cell in _MISSING for cell in cells):
        return None
    days: list[tuple[int | None, int, int]] = []
    for column, cell in zip(_COLUMNS, cells, strict=True):
        match = re.fullmatch(r"(?:(\d{4})-)?(\d{1,2})-(\d{1,2})", cell)
        if match is None:
            raise InputError(
                f"{where}: {column} is {cell!r}; wanted MM-DD or YYYY-MM-DD as text, or - where not known"
            )
        days.append((int(match[1]) if match[1] else None, int(match[2]), int(match[3])))
        try:
            found = to_dates(days, config.agricultural_years, config.system)
        except ValueError as error:
            raise InputError(
                f"{where}: {column} {cell!r} is no day of the {config.system} calendar in the agricultural "
                f"years {config.agricultural_years[0]}-{config.agricultural_years[1]} ({error}); "
                "correct it, or set rois.calendar.system"
            ) from error
    return Dates(*found)


def _key(cell: object) -> str:
    words = _text(cell).lower().replace("_", " ").split()
    return "_".join(words[:-1] if len(words) > 1 and words[-1] == "date" else words)


def _text(cell: object) -> str:
    return "" if cell is None else str(cell).strip()

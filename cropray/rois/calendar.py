"""The crop calendar, Jalali or Gregorian, and the months that an ROI is seen in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import jdatetime
import pandas as pd

from cropray.config.rois import CalendarConfig, WindowConfig
from cropray.errors import InputError, nearest
from cropray.rois.sheets import Rows, column_key, folded, read_sheets
from cropray.types import Period

_COLUMNS = ("planting_start", "planting_end", "harvest_start", "harvest_end")
_UNKNOWN = ("", "-", "na", "n/a", "nan", "none")
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"))
_MIDNIGHT = re.compile(r"[T ]00:00(:00(\.0+)?)?$")
_YEAR_FIRST = re.compile(r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})")
_MONTH_FIRST = re.compile(r"(?P<month>\d{1,2})([-/.])(?P<day>\d{1,2})(?:\2(?P<year>\d{4}))?")
_DAY_FIRST = re.compile(r"(?P<day>\d{1,2})([-/.])(?P<month>\d{1,2})(?:\2(?P<year>\d{4}))?")
_PLAIN = re.compile(r"(?P<month>\d{1,2})-(?P<day>\d{1,2})(?P<year>)")


@dataclass(frozen=True)
class Dates:
    """Gregorian days of one sowing. They are None if no calendar is set."""

    planting_start: date | None = None
    planting_end: date | None = None
    harvest_start: date | None = None
    harvest_end: date | None = None


Sheet = dict[str, Dates | None]
"""Dates by province, its name `folded`, None for a row that lacks one."""


def read_calendar(
    root: str, config: CalendarConfig, wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Sheet]:
    """The calendar of each wanted (sheet, crop): the sheet, or if it is "", that of the crop or the only one.

    Sheets are those of an xlsx file, or the values of a column `sheet` in a csv file. The columns are
    province, planting start, planting end, harvest start and harvest end; a title may stand above them.
    Letter case, accents, blanks, hyphens, underscores and a final "date" do not matter in names. Days are
    MM-DD, or YYYY-MM-DD (also as dates of Excel) in one of the agricultural years, or as `day_first` says. An
    unknown day is empty, "-" or "NA". Raises InputError for anything else, and for a harvest before the
    planting.
    """
    path = Path(root).expanduser() / config.path
    if not path.is_file():
        raise InputError(f"there is no crop calendar {path}. Check rois.calendar.path and rois.data_root.")
    found = read_sheets(path, ("province", *_COLUMNS))
    if path.suffix.lower() == ".csv":
        found = _by_sheet_column(found)
    by_name = {folded(name): name for name in found}
    parsed: dict[tuple[str, str], Sheet] = {}
    for sheet, crop in sorted(set(wanted)):
        name = by_name.get(folded(sheet or crop))
        if name is None and not sheet and len(found) == 1:
            (name,) = found
        if name is None:
            hint = nearest(sheet or crop, found)
            if not sheet:
                hint = f" Set `sheet` in rois.parcels to one of {', '.join(found)}."
            elif list(found) == [path.stem]:
                hint = " Give the csv file a column 'sheet', or leave `sheet` empty in rois.parcels."
            raise InputError(f"{path} has no sheet {sheet or crop!r}.{hint}")
        parsed[sheet, crop] = _parse_sheet(found[name], f"{path}, sheet {name!r}", config)
    return parsed


def to_dates(
    days_of_year: Sequence[tuple[int | None, int, int]],
    years: tuple[int, int],
    system: Literal["jalali", "gregorian"],
) -> list[date]:
    """Gregorian days of (year, month, day) in order of time.

    A day without a year lies in the first agricultural year until the month first decreases, and in
    the second one from then on. Raises ValueError for a day that does not exist or lies in another year.
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


def periods_for(window: WindowConfig, harvest_start: date | None) -> tuple[Period, ...]:
    """The months of a window, oldest first.

    With h the start of the harvest, the last month of a harvest window is [h - (lead + 1) months,
    h - lead months). The last month of an as-of window ends with the as-of date. Every bound is counted
    from the anchor: a day that a short month lacks becomes its last day, and the bounds do not drift.
    Raises InputError if the window needs a harvest that is not known.
    """
    if window.anchor == "as_of":
        assert window.as_of is not None  # checked by the configuration
        end, lead = window.as_of + timedelta(days=1), 0
    elif harvest_start is None:
        raise InputError(
            "window.anchor is harvest, but the harvest of this ROI is unknown. "
            "Give its harvest_date, or set window.anchor=as_of and window.as_of."
        )
    else:
        end, lead = harvest_start, window.lead_months
    bounds = [
        (pd.Timestamp(end) - pd.DateOffset(months=lead + back)).date()
        for back in range(window.months, -1, -1)
    ]
    return tuple(Period(start, stop) for start, stop in pairwise(bounds))


def season_so_far(window: WindowConfig, as_of: date, fewest: int) -> tuple[Period, ...]:
    """The months of a window, whose end recurs each year, that are over by `as_of` in its season.

    Raises InputError, with the dates that are served, if they are fewer than `fewest`.
    """
    assert window.as_of is not None
    later = as_of.year - window.as_of.year
    ends = [(window.as_of + pd.DateOffset(years=years)).date() for years in (later, later + 1)]
    end = ends[0] if ends[0] >= as_of else ends[1]
    periods = periods_for(window.model_copy(update={"as_of": end}), None)
    over = tuple(period for period in periods if period.end - timedelta(days=1) <= as_of)
    if len(over) < fewest:
        first = periods[fewest - 1].end - timedelta(days=1)
        raise InputError(
            f"as of {as_of} fewer than {fewest} months of the model's season are over. It serves dates from "
            f"{first} to {end}, and those days of other years. Give such a date"
        )
    return over


def _by_sheet_column(sheets: dict[str, Rows]) -> dict[str, Rows]:
    """A csv file as sheets by the value of its column `sheet`, if it has one."""
    header, *rows = next(iter(sheets.values())) or [[]]
    names = [column_key(cell) for cell in header]
    if "sheet" not in names:
        return sheets
    split: dict[str, Rows] = {}
    for row in filter(any, rows):
        split.setdefault(row[names.index("sheet")], [header]).append(row)
    return split


def _parse_sheet(rows: Rows, where: str, config: CalendarConfig) -> Sheet:
    header = [column_key(cell) for cell in rows[0]] if rows else []
    for column in ("province", *_COLUMNS):
        if column not in header:
            raise InputError(f"{where} has no column {column!r}.{nearest(column, header)}")
    sheet: Sheet = {}
    for row in rows[1:]:
        province = row[header.index("province")]
        cells = [row[header.index(column)] for column in _COLUMNS]
        if not province and not any(cells):
            continue
        if folded(province) in sheet:
            raise InputError(
                f"{where} has two rows for {province!r}. Remove one, or give each season its own sheet."
            )
        sheet[folded(province)] = _parse_row(cells, f"{where}, {province}", config)
    return sheet


def _parse_row(cells: Sequence[str], where: str, config: CalendarConfig) -> Dates | None:
    cells = [cell.translate(_DASHES) for cell in cells]
    if any(cell.lower() in _UNKNOWN for cell in cells):
        return None
    days: list[tuple[int | None, int, int]] = []
    for column, cell in zip(_COLUMNS, cells, strict=True):
        days.append(_day(cell, f"{where}: {column}", config.day_first))
        try:
            dates = to_dates(days, config.agricultural_years, config.system)
        except ValueError as error:
            first, second = config.agricultural_years
            raise InputError(
                f"{where}: {column} {cell!r} is not a day of the {config.system} calendar in the "
                f"agricultural years {first}-{second} ({error}). Correct it, or set rois.calendar.system "
                "or rois.calendar.agricultural_years. (Excel turns MM-DD into a date of the year in which it "
                "is typed: format such cells as text.)"
            ) from error
    planting_start, planting_end, harvest_start, harvest_end = dates
    if planting_end < planting_start or harvest_end < harvest_start or harvest_start <= planting_start:
        raise InputError(
            f"{where}: planting from {cells[0]} to {cells[1]} and harvest from {cells[2]} to {cells[3]} are "
            f"{', '.join(map(str, dates))}, which is not the order of a season. Correct them, or give years "
            "(YYYY-MM-DD) or other rois.calendar.agricultural_years."
        )
    return Dates(*dates)


def _day(cell: str, where: str, day_first: bool | None) -> tuple[int | None, int, int]:
    """Year (None if it is not written), month and day of a cell. Raises InputError for other text."""
    written = _MIDNIGHT.sub("", cell)
    second = {None: _PLAIN, True: _DAY_FIRST, False: _MONTH_FIRST}[day_first]
    match = _YEAR_FIRST.fullmatch(written) or second.fullmatch(written)
    if match is None:
        order = ""
        if day_first is None and _DAY_FIRST.fullmatch(written):
            order = ". For days such as 31/10/2022 set rois.calendar.day_first=true, for 10/31/2022 false"
        raise InputError(
            f"{where} is {cell!r}. Write MM-DD or YYYY-MM-DD as text, or - for an unknown day{order}."
        )
    year = match["year"]
    return int(year) if year else None, int(match["month"]), int(match["day"])

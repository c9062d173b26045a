from datetime import date, datetime, timedelta
from pathlib import Path

import jdatetime
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.config.rois import CalendarConfig
from cropray.errors import InputError
from cropray.rois.calendar import Dates, Sheet, read_calendar, to_dates
from tests.rois_inputs import HEADER, write_calendar


def sheets(folder: Path, config: CalendarConfig, *names: str) -> dict[str, Sheet]:
    return {
        name: sheet
        for (name, _), sheet in read_calendar(str(folder), config, [(n, "") for n in names]).items()
    }


JALALI = CalendarConfig(path="calendar.xlsx", system="jalali", agricultural_years=(1400, 1401))


def test_a_given_year_is_kept() -> None:
    days = to_dates([(2022, 4, 22), (2022, 5, 14), (2022, 9, 15), (2022, 10, 12)], (2021, 2022), "gregorian")
    assert days == [date(2022, 4, 22), date(2022, 5, 14), date(2022, 9, 15), date(2022, 10, 12)]


def test_the_second_year_begins_when_the_months_first_decrease() -> None:
    days = to_dates([(None, 7, 11), (None, 9, 20), (None, 2, 21), (None, 5, 31)], (1400, 1401), "jalali")
    # 1 Farvardin (Nowruz) was 21 March in 2021 and in 2022; months 1 to 6 have 31 days.
    assert days[0] == date(2021, 3, 21) + timedelta(days=6 * 31 + 10)
    assert days[2] == date(2022, 3, 21) + timedelta(days=31 + 20) == date(2022, 5, 11)
    assert days == sorted(days)


def test_the_second_year_lasts_once_it_has_begun() -> None:
    days = to_dates([(None, 11, 1), (None, 2, 1), (None, 1, 5), (None, 3, 1)], (2021, 2022), "gregorian")
    assert [day.year for day in days] == [2021, 2022, 2022, 2022]


@given(
    months=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    day=st.integers(1, 28),
    year=st.integers(1350, 1450),
)
def test_each_day_goes_back_to_its_month_and_day(months: list[int], day: int, year: int) -> None:
    found = to_dates([(None, month, day) for month in months], (year, year + 1), "jalali")
    back = [jdatetime.date.fromgregorian(date=gregorian) for gregorian in found]
    assert [(b.month, b.day) for b in back] == [(month, day) for month in months]
    turned = [any(months[k] < months[k - 1] for k in range(1, end + 1)) for end in range(4)]
    assert [b.year for b in back] == [year + flag for flag in turned]


def test_a_missing_date_empties_the_row_and_blanks_do_not_matter(tmp_path: Path) -> None:
    rows = [("West ", "06-11", "08-01", "-", "-"), (" East", " 07-01", "07-20", "02-01", "02-31")]
    write_calendar(tmp_path / "calendar.xlsx", Canola=rows)
    sheet = sheets(tmp_path, JALALI, "Canola")["Canola"]
    assert sheet["west"] is None
    east = sheet["east"]
    assert east is not None
    assert (east.planting_start, east.harvest_start) == (date(2021, 9, 23), date(2022, 4, 21))


def test_a_csv_with_a_sheet_column_is_the_same_calendar(tmp_path: Path) -> None:
    rows = {
        "A": [("West", "10-01", "11-15", "07-01", "08-01")],
        "B": [("West", "03-01", "04-01", "09-01", "")],
    }
    write_calendar(tmp_path / "calendar.xlsx", **rows)
    lines = ["sheet,province,planting_start,planting_end,harvest_start,harvest_end"]
    lines += [",".join([sheet, *row]) for sheet, content in rows.items() for row in content]
    (tmp_path / "calendar.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    xlsx, csv = (
        sheets(tmp_path, CalendarConfig(path=f"calendar.{kind}"), "A", "B") for kind in ("xlsx", "csv")
    )
    assert xlsx == csv
    assert xlsx["B"] == {"west": None}


def test_the_only_sheet_needs_no_name(tmp_path: Path) -> None:
    write_calendar(tmp_path / "calendar.xlsx", Maize=[("West", "03-01", "04-01", "06-01", "07-01")])
    assert "west" in sheets(tmp_path, JALALI, "")[""]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ("07-31", "08-01", "02-01", "03-01"),
            r"sheet 'Canola', West: planting_start '07-31' .*jalali",
        ),
        (("07-01", "12-30", "02-01", "03-01"), r"planting_end '12-30' is not a day"),  # 1400 has no leap day
        (("07-01", "13-01", "02-01", "03-01"), r"planting_end '13-01' is not a day"),
        (("07-01", "08-01", "spring", "03-01"), r"harvest_start is 'spring'.*MM-DD"),
        (
            ("07-01", "08-01", "2022-02-01", "03-01"),
            r"harvest_start '2022-02-01' .*years 1400-1401 .*2022",
        ),
    ],
)
def test_an_impossible_day_is_named(tmp_path: Path, cells: tuple[str, ...], message: str) -> None:
    write_calendar(tmp_path / "calendar.xlsx", Canola=[("West", *cells)])
    with pytest.raises(InputError, match=message):
        sheets(tmp_path, JALALI, "Canola")


def test_a_leap_day_exists_in_its_leap_year_only(tmp_path: Path) -> None:
    assert to_dates([(None, 12, 30)], (1399, 1400), "jalali") == [date(2021, 3, 20)]
    with pytest.raises(ValueError, match="day"):
        to_dates([(None, 2, 29)], (2021, 2022), "gregorian")


def test_mistakes_in_sheets_and_columns_name_the_nearest_right_one(tmp_path: Path) -> None:
    write_calendar(tmp_path / "calendar.xlsx", SugarBeet_Spring=[], Canola=[])
    with pytest.raises(InputError, match=r"no sheet 'SugerBeet_Spring'. Did you mean 'SugarBeet_Spring'"):
        sheets(tmp_path, JALALI, "SugerBeet_Spring")
    (tmp_path / "bad.csv").write_text("province,planting_start,planting_end,harvest_begin,harvest_end\n")
    with pytest.raises(InputError, match=r"bad\.csv.* no column 'harvest_start'. Did you mean"):
        sheets(tmp_path, CalendarConfig(path="bad.csv"), "")
    (tmp_path / "twice.csv").write_text("\n".join([",".join(HEADER), *["West,03-01,04-01,06-01,07-01"] * 2]))
    with pytest.raises(InputError, match="two rows for 'West'"):
        sheets(tmp_path, CalendarConfig(path="twice.csv"), "")


def test_a_season_of_a_calendar_with_several_sheets_must_name_one(tmp_path: Path) -> None:
    write_calendar(tmp_path / "calendar.xlsx", Wheat=[], Beet=[])
    with pytest.raises(InputError, match=r"no sheet ''.*rois\.parcels.*Wheat, Beet"):
        sheets(tmp_path, JALALI, "")
    (tmp_path / "one.csv").write_text(",".join(HEADER))
    with pytest.raises(InputError, match=r"no sheet 'Wheat'.*column 'sheet'"):
        sheets(tmp_path, CalendarConfig(path="one.csv"), "Wheat")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_may_have_other_separators_and_a_title(tmp_path: Path, separator: str) -> None:
    row = separator.join(["West, and more", "10-01", "11-15", "07-01", "08-01"])
    lines = ["Crop calendar, 2021 to 2022", "", separator.join(HEADER), row]
    (tmp_path / "semi.csv").write_text("\n".join(lines) + "\n")
    (found,) = sheets(tmp_path, CalendarConfig(path="semi.csv"), "").values()
    assert found["west, and more"] == Dates(
        date(2021, 10, 1), date(2021, 11, 15), date(2022, 7, 1), date(2022, 8, 1)
    )


def test_dates_of_excel_below_a_title_are_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    days = [datetime(2021, 10, 1), date(2021, 11, 15), "2022/07/01", "2022.8.1"]
    for row in (["Calendar of the ministry"], [], HEADER, ["West", *days]):
        book.active.append(row)
    book.save(tmp_path / "calendar.xlsx")
    (found,) = sheets(tmp_path, CalendarConfig(path="calendar.xlsx"), "").values()
    assert found == {"west": Dates(date(2021, 10, 1), date(2021, 11, 15), date(2022, 7, 1), date(2022, 8, 1))}


SEASON = Dates(date(2021, 10, 1), date(2021, 11, 15), date(2022, 7, 1), date(2022, 8, 1))


@pytest.mark.parametrize(
    ("day_first", "cells"),
    [
        (None, ("10‑01", "11–15", "2022-07-01 00:00:00", "2022-08-01T00:00")),
        (True, ("1/10", "15.11", "1/7/2022", "01-08-2022")),
        (False, ("10/1", "11.15", "7/1/2022", "08-01-2022")),
        (True, ("2021-10-01", "2021/11/15", "2022.7.1", "2022-08-01")),
    ],
)
def test_days_may_be_written_in_other_ways(
    tmp_path: Path, day_first: bool | None, cells: tuple[str, ...]
) -> None:
    write_calendar(tmp_path / "calendar.xlsx", Wheat=[("West", *cells)])
    config = CalendarConfig(path="calendar.xlsx", day_first=day_first)
    assert sheets(tmp_path, config, "Wheat")["Wheat"] == {"west": SEASON}


@pytest.mark.parametrize("cell", ["10/01", "01.10.2021", "13/10/2021"])
def test_an_order_of_day_and_month_that_is_open_names_its_setting(tmp_path: Path, cell: str) -> None:
    write_calendar(tmp_path / "calendar.xlsx", Wheat=[("West", cell, "11-15", "07-01", "08-01")])
    with pytest.raises(InputError, match=r"planting_start is .*rois\.calendar\.day_first"):
        sheets(tmp_path, CalendarConfig(path="calendar.xlsx"), "Wheat")


def test_years_that_do_not_follow_each_other_are_refused() -> None:
    for years in ((2022, 2021), (2021, 2025)):
        with pytest.raises(ValueError, match="one after the other"):
            CalendarConfig(agricultural_years=years)


def test_a_name_may_have_other_hyphens_and_an_unknown_day_is_na(tmp_path: Path) -> None:
    head = "Province;Planting-start;PLANTING END;harvest_start;Harvest-End"
    row = ["10-01", "11-15", "07-01", "08-01"]
    lines = [head, ";".join(["West-Azerbaijan", *row]), ";".join(["East", "NA", *row[1:]])]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    (found,) = sheets(tmp_path, CalendarConfig(path="c.csv"), "").values()
    assert found == {"west azerbaijan": SEASON, "east": None}


def test_an_empty_sheet_name_is_that_of_the_crop(tmp_path: Path) -> None:
    dates = ("10-01", "11-15", "07-01", "08-01")
    write_calendar(tmp_path / "calendar.xlsx", Maïs=[("A", *dates)], Wheat=[("B", *dates)])
    config = CalendarConfig(path="calendar.xlsx")
    found = read_calendar(str(tmp_path), config, [("", "mais"), ("", "WHEAT")])
    assert {crop: set(sheet) for (_, crop), sheet in found.items()} == {"mais": {"a"}, "WHEAT": {"b"}}
    with pytest.raises(InputError, match=r"no sheet 'rye'.*Maïs, Wheat"):
        read_calendar(str(tmp_path), config, [("", "rye")])


@pytest.mark.parametrize(
    "cells",
    [
        ("10-01", "11-15", "07-01", "06-01"),
        ("2021-10-01", "2021-11-15", "2021-07-01", "2021-08-01"),
        ("05-20", "05-10", "09-01", "10-01"),
    ],
)
def test_days_that_are_no_season_are_refused(tmp_path: Path, cells: tuple[str, ...]) -> None:
    write_calendar(tmp_path / "calendar.xlsx", Wheat=[("West", *cells)])
    with pytest.raises(InputError, match=r"West: .*order of a season"):
        sheets(tmp_path, CalendarConfig(path="calendar.xlsx"), "Wheat")


def test_a_comma_too_many_is_named_with_its_row(tmp_path: Path) -> None:
    rows = ["West,03-01,04-01,06-01,07-01,", "East, or so,03-01,04-01,06-01,07-01"]
    (tmp_path / "commas.csv").write_text("\n".join([",".join(HEADER), *rows]))
    with pytest.raises(InputError, match=r"commas\.csv, row 3 has 6 columns, its header 5.*quotes"):
        sheets(tmp_path, CalendarConfig(path="commas.csv"), "")
    (tmp_path / "commas.csv").write_text("\n".join([",".join(HEADER), rows[0]]))
    assert set(sheets(tmp_path, CalendarConfig(path="commas.csv"), "")[""]) == {"west"}


def test_a_file_that_is_not_a_calendar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calendar.xlsx").write_text("not a workbook")
    with pytest.raises(InputError, match=r"cannot read .*calendar\.xlsx"):
        sheets(tmp_path, JALALI, "Canola")
    with pytest.raises(InputError, match="there is no crop calendar"):
        sheets(tmp_path, CalendarConfig(path="none.xlsx"), "Canola")
    (tmp_path / "latin.csv").write_bytes("province,Kohgilūye\xe9".encode("utf-16"))
    with pytest.raises(InputError, match=r"latin\.csv .*UTF-8"):
        sheets(tmp_path, CalendarConfig(path="latin.csv"), "")

from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.config.rois import WindowConfig
from cropray.errors import InputError
from cropray.rois.calendar import periods_for

DAYS = st.dates(date(2010, 1, 1), date(2040, 12, 31))


def test_the_seeds_six_months_leave_the_last_month_before_harvest_unseen() -> None:
    periods = periods_for(WindowConfig(), date(2022, 5, 1))
    starts = [(2021, 10), (2021, 11), (2021, 12), (2022, 1), (2022, 2), (2022, 3)]
    assert [(p.start.year, p.start.month) for p in periods] == starts
    assert {p.start.day for p in periods} == {1}
    assert periods[-1].end == date(2022, 4, 1)


def test_the_as_of_date_is_the_last_day_seen() -> None:
    periods = periods_for(WindowConfig(anchor="as_of", months=2, as_of=date(2022, 2, 28)), None)
    assert [(p.start, p.end) for p in periods] == [
        (date(2022, 1, 1), date(2022, 2, 1)),
        (date(2022, 2, 1), date(2022, 3, 1)),
    ]


def test_a_day_that_a_short_month_lacks_does_not_drift() -> None:
    periods = periods_for(WindowConfig(months=4, lead_months=0), date(2022, 5, 31))
    assert [p.start for p in periods] == [
        date(2022, 1, 31),
        date(2022, 2, 28),
        date(2022, 3, 31),
        date(2022, 4, 30),
    ]


@given(harvest=DAYS, months=st.integers(1, 24), lead=st.integers(0, 6))
def test_months_touch_and_end_the_lead_before_harvest(harvest: date, months: int, lead: int) -> None:
    periods = periods_for(WindowConfig(months=months, lead_months=lead), harvest)
    assert len(periods) == months
    assert all(earlier.end == later.start for earlier, later in pairwise(periods))
    assert all(28 <= (period.end - period.start).days <= 31 for period in periods)
    ahead = (harvest.year - periods[-1].end.year) * 12 + harvest.month - periods[-1].end.month
    assert ahead == lead


def test_an_unknown_harvest_is_refused() -> None:
    with pytest.raises(InputError, match=r"harvest.*as_of"):
        periods_for(WindowConfig(), None)

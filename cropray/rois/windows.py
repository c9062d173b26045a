"""Which months are seen of an ROI."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

import pandas as pd

from cropray.config.regions import WindowConfig
from cropray.types import InputError, Period


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

"""Phenology of the simulated world: how each field's canopy stands on each day.

A land has one or more timelines: canopy against the day of the harvest year (1 January = 0, so
autumn is negative). A field follows one of them, shifted by its own days, stretched by its own
pace, its green cover scaled by its vigour. Before a spring crop there is a winter cover, or none.
The timelines and where they come from stand in `world_timelines`.
Shapes: F fields, L timelines, D days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cropray.simulation.fields import LANDS, Fields, field_normal, field_uniform
from cropray.simulation.noise import Array, smooth
from cropray.simulation.timelines import COVER_SHARES, COVERS, TIMELINES

FIRST_DAY, LAST_DAY = -110, 320
"""Days for which timelines are tabulated; a season is seen from -78 (15 October) to 287."""

# Standard deviation between fields of the shift, in days: sowing spreads over four weeks for winter
# cereals and three for spring crops.
_SHIFT_DAYS = {"winter_wheat": 9.0, "winter_barley": 7.5, "rapeseed": 7.0, "grass": 12.0, "fallow": 12.0}
_SHIFT_DAY = 5.5
_YEAR_DAYS = 3.0  # whole seasons come earlier or later by days, differently across 100 km
_VIGOUR = 0.12  # of green cover, between fields
_VIGOUR_OF = {"water": 0.0, "built": 0.35}  # where it is another

_LINES = [(land, knots) for land, lines in TIMELINES.items() for knots in lines]
_COVER_AT = len(_LINES)


@dataclass(frozen=True)
class Canopy:
    """The canopy of every field on one day (F,): shares of the ground, and backscatter."""

    green: Array
    dry: Array
    flower: Array  # share of the green that flowers
    vv_db: Array  # of the canopy alone, sigma0
    vh_db: Array
    is_cover: npt.NDArray[np.bool_]  # what stands is the winter cover, not the crop


@dataclass(frozen=True)
class Habits:
    """How each field grows in one season (F,): drawn once a season, read on every date."""

    line: npt.NDArray[np.intp]
    cover: npt.NDArray[np.intp]  # timeline of the winter cover, -1 for none
    shift_days: Array
    cover_shift_days: Array
    pace: Array
    vigour: Array


def season_of(day: date) -> int:
    """The harvest year to which a day belongs: from 15 October it is the next one."""
    return day.year + (day >= date(day.year, 10, 15))


def habits(seed: int, fields: Fields, land: npt.NDArray[np.uint8], season: int) -> Habits:
    """How each field grows in a harvest year; `land` (F,) are indices into LANDS."""
    names = np.array(LANDS)[land]
    line = np.zeros(len(land), np.intp)
    cover = np.full(len(land), -1, np.intp)
    shift = np.full(len(land), _SHIFT_DAY)
    spread = np.full(len(land), _VIGOUR)
    pick, winter = (field_uniform(seed, fields, name, season) for name in ("line", "cover"))
    for name in LANDS:
        here = names == name
        lines = [index for index, (land_name, _) in enumerate(_LINES) if land_name == name]
        line[here] = lines[0] + (pick[here] * len(lines)).astype(np.intp)
        shift[here] = _SHIFT_DAYS.get(name, _SHIFT_DAY)
        spread[here] = _VIGOUR_OF.get(name, _VIGOUR)
        if name in COVER_SHARES:
            shares = np.cumsum(COVER_SHARES[name])
            cover[here] = _COVER_AT + np.searchsorted(shares[:-1], winter[here], side="right")
    weather = _YEAR_DAYS * smooth(seed, "year", fields.x, fields.y, 100_000.0, season)
    return Habits(
        line,
        cover,
        weather + shift * field_normal(seed, fields, "shift", season),
        weather + 10.0 * field_normal(seed, fields, "cover shift", season),
        1.0 + 0.06 * field_normal(seed, fields, "pace", season),
        np.clip(1.0 + spread * field_normal(seed, fields, "vigour", season), 0.3, 1.25),
    )


def canopy_on(habits: Habits, day: date) -> Canopy:
    """The canopy of every field on a day of the season that the habits were drawn for."""
    year_day = (day - date(season_of(day), 1, 1)).days
    # The pace stretches a season around mid-April, when winter and spring crops part ways.
    own_day = 105 + (year_day - 105 - habits.shift_days) * habits.pace
    values = _read(habits.line, own_day)
    cover = np.where(habits.cover[:, None] >= 0, _read(habits.cover, year_day - habits.cover_shift_days), 0.0)
    taller = cover[:, 0] + cover[:, 1] > values[:, 0] + values[:, 1]
    values = np.where(taller[:, None], cover, values)
    green = np.minimum(values[:, 0] * habits.vigour, 0.985)
    dry = np.minimum(values[:, 1], 1.0 - green)
    return Canopy(green, dry, values[:, 2], values[:, 3], values[:, 4], taller)


@lru_cache
def _table() -> npt.NDArray[np.float64]:
    """(L, D, 5): the timelines day by day, rounded off over about a week."""
    days = np.arange(FIRST_DAY, LAST_DAY + 1)
    kernel = np.exp(-0.5 * (np.arange(-7, 8) / 2.5) ** 2)
    kernel /= kernel.sum()
    lines = []
    for knots in [*(knots for _, knots in _LINES), *COVERS]:
        table = np.array(knots, np.float64)
        columns = []
        for column in range(1, 6):
            daily = np.interp(days, table[:, 0], table[:, column])
            columns.append(np.convolve(np.pad(daily, 7, mode="edge"), kernel, mode="valid"))
        lines.append(np.stack(columns, axis=-1))
    return np.stack(lines)


def _read(line: npt.NDArray[np.intp], day: Array) -> Array:
    at = np.clip(day - FIRST_DAY, 0, LAST_DAY - FIRST_DAY - 1)
    low = at.astype(np.intp)
    part = (at - low)[:, None]
    table = _table()
    return (1 - part) * table[line, low] + part * table[line, low + 1]

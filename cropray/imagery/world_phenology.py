"""Phenology of the simulated world: how each field's canopy stands on each day.

A land has one or more timelines: canopy against the day of the harvest year (1 January = 0, so
autumn is negative). A field follows one of them, shifted by its own days, stretched by its own
pace, its green cover scaled by its vigour. Before a spring crop there is a winter cover, or none.

Dates follow the crop calendars of Belgium and northern France (JRC MARS bulletins; Veloso et al.
2017, doi:10.1016/j.rse.2017.07.015) and NDVI through the months measured over Flanders in
2018-2019; those of rapeseed d'Andrimont et al. 2020, doi:10.1016/j.rse.2020.111660. Shapes:
F fields, L timelines, D days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cropray.imagery.world_fields import LANDS, Fields, field_normal, field_uniform
from cropray.imagery.world_noise import Array, smooth

FIRST_DAY, LAST_DAY = -110, 320
"""Days for which timelines are tabulated; a season is seen from -78 (15 October) to 287."""

Knot = tuple[int, float, float, float, float, float]

# Knots: day; share of ground under green leaves, under dry matter (straw, litter), under open
# flowers (of the green); backscatter of the canopy alone, sigma0 in dB, VV and VH at 39 degrees.
# Backscatter by stage: Flanders 2018-2019; Veloso et al. 2017; Khabbazan et al. 2019
# (doi:10.3390/rs11161887); Mercier et al. 2020 (doi:10.3390/rs12182901) for rapeseed and pea.
_TIMELINES: dict[str, tuple[tuple[Knot, ...], ...]] = {
    "winter_wheat": (
        (
            (-75, 0.00, 0.05, 0, -8.0, -16.0),
            (-50, 0.10, 0.02, 0, -8.0, -16.0),
            (-18, 0.33, 0.00, 0, -7.5, -16.3),
            (15, 0.40, 0.00, 0, -7.5, -16.5),
            (45, 0.40, 0.00, 0, -7.5, -16.0),
            (75, 0.64, 0.00, 0, -8.5, -16.3),
            (100, 0.82, 0.00, 0, -11.8, -17.6),
            (120, 0.93, 0.00, 0, -15.6, -20.6),
            (140, 0.95, 0.00, 0, -16.6, -22.2),
            (160, 0.92, 0.02, 0, -13.6, -20.0),
            (175, 0.80, 0.11, 0, -12.3, -18.8),
            (190, 0.38, 0.48, 0, -11.3, -18.0),
            (204, 0.12, 0.78, 0, -10.8, -17.8),
            (214, 0.03, 0.87, 0, -10.5, -18.0),
            (218, 0.02, 0.60, 0, -10.2, -20.0),
            (245, 0.08, 0.35, 0, -9.8, -19.0),
            (262, 0.35, 0.15, 0, -9.0, -17.0),
            (285, 0.80, 0.00, 0, -8.3, -15.6),
        ),
    ),
    "winter_barley": (
        (
            (-88, 0.00, 0.05, 0, -8.0, -16.0),
            (-62, 0.15, 0.02, 0, -8.0, -16.0),
            (-35, 0.45, 0.00, 0, -7.2, -14.6),
            (-15, 0.58, 0.00, 0, -7.3, -14.6),
            (20, 0.64, 0.00, 0, -7.8, -15.0),
            (50, 0.68, 0.00, 0, -8.0, -15.0),
            (72, 0.82, 0.00, 0, -9.8, -16.4),
            (98, 0.96, 0.00, 0, -14.2, -19.8),
            (120, 0.98, 0.00, 0, -15.6, -21.6),
            (140, 0.97, 0.00, 0, -13.8, -20.6),
            (152, 0.90, 0.08, 0, -9.5, -16.2),
            (165, 0.64, 0.34, 0, -8.0, -14.3),
            (178, 0.22, 0.75, 0, -8.2, -16.0),
            (190, 0.04, 0.92, 0, -8.6, -18.0),
            (199, 0.03, 0.90, 0, -8.8, -18.5),
            (203, 0.02, 0.60, 0, -9.6, -21.0),
            (228, 0.10, 0.35, 0, -9.5, -20.0),
            (250, 0.50, 0.10, 0, -8.7, -16.5),
            (280, 0.85, 0.00, 0, -8.6, -14.8),
        ),
    ),
    "rapeseed": (
        (
            (-100, 0.25, 0.05, 0, -9.5, -17.0),
            (-70, 0.62, 0.00, 0, -9.2, -16.0),
            (-40, 0.72, 0.00, 0, -9.3, -15.8),
            (0, 0.62, 0.06, 0, -9.6, -16.6),
            (40, 0.56, 0.08, 0, -9.8, -17.0),
            (70, 0.70, 0.02, 0, -10.2, -17.2),
            (95, 0.88, 0.00, 0.00, -10.6, -16.2),
            (106, 0.91, 0.00, 0.35, -11.3, -15.4),
            (117, 0.90, 0.00, 0.90, -11.8, -14.8),
            (128, 0.90, 0.00, 0.80, -11.2, -14.2),
            (140, 0.92, 0.00, 0.12, -9.8, -12.9),
            (158, 0.90, 0.00, 0, -8.9, -12.3),
            (172, 0.66, 0.26, 0, -9.2, -12.8),
            (185, 0.28, 0.64, 0, -9.6, -14.0),
            (200, 0.06, 0.86, 0, -9.9, -15.4),
            (209, 0.04, 0.86, 0, -10.0, -16.0),
            (213, 0.03, 0.50, 0, -10.2, -19.5),
            (240, 0.30, 0.20, 0, -9.8, -17.5),
            (280, 0.55, 0.05, 0, -9.3, -16.0),
        ),
    ),
    "pea": (
        (
            (92, 0.00, 0.02, 0, -10.5, -18.5),
            (108, 0.12, 0.00, 0, -10.5, -18.5),
            (124, 0.40, 0.00, 0, -10.3, -17.6),
            (140, 0.76, 0.00, 0, -9.9, -15.9),
            (155, 0.92, 0.00, 0.04, -9.4, -14.6),
            (170, 0.88, 0.03, 0.04, -9.2, -14.4),
            (183, 0.52, 0.38, 0, -9.8, -15.6),
            (196, 0.12, 0.76, 0, -10.4, -17.4),
            (207, 0.05, 0.75, 0, -10.6, -18.0),
            (211, 0.03, 0.35, 0, -10.4, -20.0),
            (245, 0.20, 0.12, 0, -9.5, -18.0),
            (280, 0.65, 0.00, 0, -8.6, -15.6),
        ),
    ),
    "maize": (
        (
            (128, 0.00, 0.03, 0, -10.8, -19.0),
            (142, 0.07, 0.02, 0, -10.8, -19.0),
            (158, 0.25, 0.00, 0, -10.4, -18.0),
            (170, 0.48, 0.00, 0, -10.0, -17.0),
            (184, 0.76, 0.00, 0, -9.7, -16.2),
            (200, 0.92, 0.00, 0, -9.5, -15.9),
            (222, 0.93, 0.00, 0, -8.9, -15.6),
            (242, 0.84, 0.08, 0, -8.9, -15.9),
            (258, 0.62, 0.28, 0, -9.0, -16.6),
            (272, 0.40, 0.48, 0, -9.2, -17.2),
            (277, 0.03, 0.35, 0, -8.8, -18.0),
        ),
    ),
    "potato": (
        (
            (132, 0.00, 0.00, 0, -8.5, -17.5),
            (144, 0.07, 0.00, 0, -8.3, -17.0),
            (155, 0.37, 0.00, 0, -7.4, -15.2),
            (166, 0.74, 0.00, 0, -7.0, -13.8),
            (182, 0.94, 0.00, 0, -7.2, -12.9),
            (204, 0.94, 0.00, 0.03, -7.0, -12.7),
            (222, 0.80, 0.12, 0, -6.4, -13.2),
            (240, 0.42, 0.38, 0, -7.0, -14.6),
            (254, 0.10, 0.45, 0, -8.0, -16.5),
            (262, 0.03, 0.15, 0, -9.5, -19.0),
        ),
    ),
    "sugar_beet": (
        (
            (105, 0.00, 0.00, 0, -9.5, -18.0),
            (122, 0.06, 0.00, 0, -9.3, -17.5),
            (140, 0.17, 0.00, 0, -8.4, -16.4),
            (155, 0.43, 0.00, 0, -7.3, -15.3),
            (168, 0.72, 0.00, 0, -6.7, -14.7),
            (184, 0.90, 0.00, 0, -6.4, -14.4),
            (215, 0.93, 0.00, 0, -6.1, -14.1),
            (250, 0.92, 0.00, 0, -5.9, -14.0),
            (287, 0.90, 0.00, 0, -5.7, -13.8),
        ),
    ),
    "onion": (
        (
            (98, 0.00, 0.00, 0, -10.8, -20.0),
            (118, 0.05, 0.00, 0, -10.8, -20.0),
            (138, 0.13, 0.00, 0, -10.8, -19.6),
            (156, 0.27, 0.00, 0, -10.5, -19.0),
            (172, 0.46, 0.00, 0, -10.0, -18.2),
            (192, 0.68, 0.00, 0, -9.2, -16.5),
            (208, 0.62, 0.08, 0, -9.4, -16.8),
            (222, 0.30, 0.35, 0, -9.8, -17.8),
            (234, 0.08, 0.50, 0, -10.2, -18.8),
            (240, 0.03, 0.20, 0, -10.2, -20.0),
            (270, 0.30, 0.05, 0, -9.0, -17.0),
        ),
    ),
    "grass": (  # grazed; one early cut; two cuts; a ley sown last autumn
        (
            (-110, 0.84, 0.08, 0, -10.7, -17.9),
            (0, 0.82, 0.08, 0, -10.3, -17.6),
            (60, 0.86, 0.05, 0, -10.4, -17.4),
            (100, 0.95, 0.01, 0, -12.0, -18.2),
            (135, 0.94, 0.02, 0, -11.9, -17.6),
            (190, 0.76, 0.18, 0, -11.2, -17.0),
            (235, 0.74, 0.20, 0, -11.2, -17.5),
            (320, 0.86, 0.06, 0, -10.5, -17.5),
        ),
        (
            (-110, 0.84, 0.08, 0, -10.7, -17.9),
            (0, 0.80, 0.10, 0, -10.3, -17.6),
            (60, 0.86, 0.05, 0, -10.4, -17.4),
            (100, 0.93, 0.02, 0, -12.2, -18.4),
            (124, 0.95, 0.01, 0, -13.0, -18.2),
            (128, 0.50, 0.26, 0, -11.0, -18.8),
            (150, 0.88, 0.04, 0, -11.6, -17.2),
            (235, 0.72, 0.20, 0, -11.2, -17.5),
            (320, 0.86, 0.06, 0, -10.5, -17.5),
        ),
        (
            (-110, 0.80, 0.10, 0, -10.7, -17.9),
            (0, 0.74, 0.14, 0, -10.3, -17.6),
            (60, 0.76, 0.12, 0, -10.4, -17.4),
            (110, 0.92, 0.02, 0, -12.2, -18.2),
            (146, 0.94, 0.03, 0, -12.6, -17.6),
            (150, 0.46, 0.30, 0, -11.0, -18.8),
            (176, 0.84, 0.08, 0, -11.4, -17.0),
            (206, 0.48, 0.34, 0, -11.0, -18.4),
            (320, 0.86, 0.06, 0, -10.5, -17.5),
        ),
        (
            (-110, 0.00, 0.10, 0, -9.0, -18.0),
            (-70, 0.10, 0.05, 0, -8.5, -17.0),
            (-20, 0.38, 0.02, 0, -8.2, -16.4),
            (45, 0.46, 0.02, 0, -8.4, -16.4),
            (75, 0.66, 0.01, 0, -9.4, -16.8),
            (105, 0.90, 0.00, 0, -12.4, -18.0),
            (132, 0.95, 0.01, 0, -13.8, -19.2),
            (137, 0.46, 0.26, 0, -11.2, -18.8),
            (162, 0.86, 0.04, 0, -11.4, -17.2),
            (235, 0.74, 0.18, 0, -11.2, -17.5),
            (320, 0.84, 0.06, 0, -10.5, -17.5),
        ),
    ),
    "trees": (  # broad-leaved; conifers
        (
            (-110, 0.85, 0.05, 0, -9.2, -14.4),
            (-55, 0.30, 0.45, 0, -9.2, -14.8),
            (85, 0.24, 0.45, 0, -9.4, -15.0),
            (105, 0.50, 0.35, 0, -9.5, -15.0),
            (125, 0.90, 0.05, 0, -9.6, -14.8),
            (230, 0.93, 0.02, 0, -9.4, -14.4),
            (320, 0.60, 0.20, 0, -9.2, -14.6),
        ),
        ((-110, 0.92, 0.05, 0, -9.6, -15.2), (320, 0.92, 0.05, 0, -9.6, -15.2)),
    ),
    "built": (  # gardens among roofs and streets
        (
            (-110, 0.30, 0.12, 0, -6.2, -14.2),
            (60, 0.28, 0.12, 0, -6.2, -14.2),
            (120, 0.38, 0.08, 0, -6.2, -14.0),
            (320, 0.30, 0.12, 0, -6.2, -14.2),
        ),
    ),
    "water": (((-110, 0.0, 0.0, 0, -20.0, -26.0), (320, 0.0, 0.0, 0, -20.0, -26.0)),),
    "fallow": (
        (
            (-110, 0.25, 0.35, 0, -9.8, -18.0),
            (50, 0.28, 0.30, 0, -9.8, -17.8),
            (120, 0.50, 0.18, 0, -10.4, -17.6),
            (165, 0.58, 0.24, 0, -10.4, -17.0),
            (220, 0.42, 0.40, 0, -10.4, -17.6),
            (320, 0.40, 0.28, 0, -10.0, -17.6),
        ),
    ),
}
# Covers before a spring crop: stubble with volunteers; mustard or phacelia until the frost, then
# ploughed; rye-grass, cut and ploughed in spring. Shares by crop: a catch crop is common, and
# rye-grass mostly goes before maize (Flanders 2018-2019: NDVI of maize fields 0.5 still in April).
_COVERS: tuple[tuple[Knot, ...], ...] = (
    ((-110, 0.15, 0.35, 0, -9.5, -18), (-60, 0.22, 0.20, 0, -8.5, -16), (-20, 0.06, 0.05, 0, -7.5, -15)),
    (
        (-110, 0.40, 0.10, 0, -9.0, -16.5),
        (-60, 0.82, 0.0, 0, -8.6, -15.6),
        (-12, 0.80, 0.02, 0, -8.3, -14.2),
        (16, 0.45, 0.22, 0, -8.0, -14.4),
        (36, 0.05, 0.06, 0, -7.2, -14.0),
        (60, 0.03, 0.02, 0, -7.0, -14.5),
    ),
    (
        (-110, 0.35, 0.10, 0, -9.0, -17.0),
        (-60, 0.72, 0.02, 0, -8.6, -15.8),
        (0, 0.74, 0.04, 0, -8.6, -15.4),
        (75, 0.76, 0.02, 0, -9.0, -16.2),
        (92, 0.82, 0.02, 0, -9.8, -17.0),
        (106, 0.25, 0.25, 0, -9.8, -18.5),
        (118, 0.02, 0.05, 0, -9.5, -18.5),
    ),
)
_COVER_SHARES = {
    "maize": (0.20, 0.25, 0.55),
    "potato": (0.20, 0.66, 0.14),
    "sugar_beet": (0.22, 0.74, 0.04),
    "pea": (0.35, 0.65, 0.0),
    "onion": (0.45, 0.55, 0.0),
}

# Standard deviation between fields of the shift, in days: sowing spreads over four weeks for winter
# cereals and three for spring crops.
_SHIFT_DAYS = {"winter_wheat": 9.0, "winter_barley": 7.5, "rapeseed": 7.0, "grass": 12.0, "fallow": 12.0}
_SHIFT_DAY = 5.5
_YEAR_DAYS = 3.0  # whole seasons come earlier or later by days, differently across 100 km
_VIGOUR = 0.12  # of green cover, between fields
_CUT = {"water": 0.0, "built": 0.35}  # other vigour spread

_LINES = [(land, knots) for land, lines in _TIMELINES.items() for knots in lines]
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
        spread[here] = _CUT.get(name, _VIGOUR)
        if name in _COVER_SHARES:
            shares = np.cumsum(_COVER_SHARES[name])
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
    for knots in [*(knots for _, knots in _LINES), *_COVERS]:
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

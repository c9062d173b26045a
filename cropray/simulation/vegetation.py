"""Vegetation of the simulation: the canopy of each field on each day, and its reflectance.

A field follows one timeline of its land (`data/timelines.csv`), shifted by its own days, stretched by its
own pace, with its green cover scaled by its vigour. Before a spring crop there is a winter cover. Reflectance
is a mixture of soil, green leaves and dry matter (`data/spectra.csv`), linear in their shares of the ground,
as in spectral mixture analysis (Roberts et al. 1998, doi:10.1016/S0034-4257(98)00037-6).
Shapes: F fields, L timelines, D days, C the ten bands in the order of `bands.S2_BANDS`.
"""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import NamedTuple

import numpy as np

from cropray.simulation.landscape import Fields
from cropray.simulation.tables import LANDS, land_values, monthly, read_csv, spectrum
from cropray.types import BoolArray, ByteArray, DoubleArray, FloatArray, IndexArray

_FIRST_DAY, _LAST_DAY = -110, 320  # of the tabulated timelines; a season is seen from -78 (15 October) to 287
_KNOT = ("green", "dry", "flower", "vv_db", "vh_db")
_YEAR_DAYS = 3.0  # whole seasons come earlier or later by days, differently across 100 km

# Spread between fields of one land (standard deviation of a factor), by groups of bands that vary
# together: visible (pigments), red edge, near infrared (structure), short-wave infrared (water).
_GROUPS = np.array((0, 0, 0, 1, 2, 2, 2, 2, 3, 3))
_GREEN_SPREAD = np.array((0.18, 0.14, 0.11, 0.15))
_SOIL_SPREAD, _DRY_SPREAD = 0.13, 0.14


class Growth(NamedTuple):
    """How each field grows in one season (F,). Drawn once a season, read on every date."""

    line: IndexArray
    cover: IndexArray  # timeline of the winter cover, -1 for none
    shift_days: DoubleArray
    cover_shift_days: DoubleArray
    pace: DoubleArray
    vigour: DoubleArray


class Canopy(NamedTuple):
    """The canopy of every field on one day (F,): shares of the ground, and backscatter."""

    green: DoubleArray
    dry: DoubleArray
    flower: DoubleArray  # share of the green that flowers
    vv_db: DoubleArray  # of the canopy alone, sigma0
    vh_db: DoubleArray
    is_cover: BoolArray  # the winter cover stands, not the crop


def season_of(day: date) -> int:
    """The harvest year to which a day belongs: from 15 October it is the next one."""
    return day.year + (day >= date(day.year, 10, 15))


def draw_growth(fields: Fields, land: ByteArray, season: int) -> Growth:
    """How each field grows in a harvest year; `land` (F,) are indices into LANDS."""
    owners, _ = _timelines()
    first = np.array([owners.index(name) for name in LANDS])
    count = np.array([owners.count(name) for name in LANDS])
    bounds = np.cumsum(land_values("winter_cover"), axis=1)[land]
    cover = owners.index("cover") + (fields.uniform("cover", season)[:, None] >= bounds[:, :-1]).sum(axis=1)
    weather = _YEAR_DAYS * fields.smooth("year", 100_000.0, season)
    vigour = land_values("vigour")[land] * fields.normal("vigour", season)
    return Growth(
        first[land] + (fields.uniform("line", season) * count[land]).astype(np.intp),
        np.where(bounds[:, -1] > 0, cover, -1),
        weather + land_values("shift_days")[land] * fields.normal("shift", season),
        weather + 10.0 * fields.normal("cover shift", season),
        1.0 + 0.06 * fields.normal("pace", season),
        np.clip(1.0 + vigour, 0.3, 1.25),
    )


def canopy_on(growth: Growth, day: date) -> Canopy:
    """The canopy of every field on a day of the season that the growth was drawn for."""
    year_day = (day - date(season_of(day), 1, 1)).days
    # The pace stretches a season around mid-April, when winter and spring crops part.
    own_day = 105 + (year_day - 105 - growth.shift_days) * growth.pace
    values = _read(growth.line, own_day)
    cover = np.where(growth.cover[:, None] >= 0, _read(growth.cover, year_day - growth.cover_shift_days), 0.0)
    taller = cover[:, 0] + cover[:, 1] > values[:, 0] + values[:, 1]
    values = np.where(taller[:, None], cover, values)
    green = np.minimum(values[:, 0] * growth.vigour, 0.985)
    dry = np.minimum(values[:, 1], 1.0 - green)
    return Canopy(green, dry, values[:, 2], values[:, 3], values[:, 4], taller)


@cache
def _timelines() -> tuple[list[str], DoubleArray]:
    """The land of each timeline, and the timelines (L, D, 5) day by day, smoothed over about a week."""
    days = np.arange(_FIRST_DAY, _LAST_DAY + 1)
    kernel = np.exp(-0.5 * (np.arange(-7, 8) / 2.5) ** 2)
    kernel /= kernel.sum()
    table = read_csv("timelines.csv")
    names = list(dict.fromkeys(zip(table["land"], table["variant"], strict=True)))
    lines = []
    for land, variant in names:
        knots = table[(table["land"] == land) & (table["variant"] == variant)]
        columns = [np.interp(days, knots["day"], knots[name]) for name in _KNOT]
        padded = [np.pad(column, 7, mode="edge") for column in columns]
        lines.append(np.stack([np.convolve(column, kernel, mode="valid") for column in padded], axis=-1))
    return [str(land) for land, _ in names], np.stack(lines)


def _read(line: IndexArray, day: DoubleArray) -> DoubleArray:
    at = np.clip(day - _FIRST_DAY, 0, _LAST_DAY - _FIRST_DAY - 1)
    low = at.astype(np.intp)
    part = (at - low)[:, None]
    _, values = _timelines()
    return (1 - part) * values[line, low] + part * values[line, low + 1]


class FieldSpectra(NamedTuple):
    """The spectra (F, C) of each field, which last through a season."""

    green: DoubleArray
    cover: DoubleArray
    soil_dry: DoubleArray
    soil_wet: DoubleArray
    dry: DoubleArray
    within: DoubleArray  # (F, 2) spread of the pixels: of vigour, of soil


def draw_spectra(fields: Fields, land: ByteArray, season: int) -> FieldSpectra:
    """Each field's own spectra: those of its land, varied in groups of bands that vary together."""
    spread = np.stack([fields.normal(f"pigment {group}", season) for group in range(4)], axis=-1)
    spread *= land_values("leaf_spread")[land, None]
    factor = np.exp(spread * _GREEN_SPREAD)[:, _GROUPS]
    green = np.array([spectrum("green", name) for name in LANDS])[land] * factor
    conifer = (land == LANDS.index("trees")) & (fields.uniform("line", season) >= 0.5)
    green[conifer] *= spectrum("change", "conifers")
    brightness = np.exp(_SOIL_SPREAD * fields.normal("soil brightness"))
    hue = 0.05 * fields.normal("soil hue")[:, None] * np.linspace(-1, 1, 10)
    soil_factor = brightness[:, None] * np.exp(hue)
    soil_dry, soil_wet = (np.tile(spectrum("soil", name), (len(land), 1)) for name in ("dry", "wet"))
    for name in ("built", "water", "trees"):
        here = land == LANDS.index(name)
        soil_dry[here] = soil_wet[here] = spectrum("ground", name)
    return FieldSpectra(
        green,
        spectrum("green", "cover") * factor,
        soil_dry * soil_factor,
        soil_wet * soil_factor,
        spectrum("dry", "straw") * np.exp(_DRY_SPREAD * fields.normal("straw", season))[:, None],
        land_values("within")[land],
    )


def wetness(fields: Fields, day: date) -> DoubleArray:
    """Wetness of the top soil (F,), 0 to 1: the month's, and recent rain, 30 km across."""
    rain = 0.16 * fields.smooth("rain", 30_000.0, day.toordinal() // 4)
    own = 0.07 * fields.normal("drainage")
    return np.clip(monthly("wetness", day) + rain + own, 0.0, 1.0)


def reflectance(spectra: FieldSpectra, canopy: Canopy, wet: DoubleArray) -> FloatArray:
    """(F, 3, C): mean of each field; change by one standard deviation of vigour; of soil."""
    green_spectrum = np.where(canopy.is_cover[:, None], spectra.cover, spectra.green)
    flower = canopy.flower[:, None]
    green_spectrum = (1 - 0.75 * flower) * green_spectrum + 0.75 * flower * spectrum("flower", "rapeseed")
    # Straw and stubble darken when wet, as soil does.
    dry_spectrum = spectra.dry * (1.08 - 0.30 * wet[:, None])
    soil = spectra.soil_dry + (spectra.soil_wet - spectra.soil_dry) * wet[:, None]
    green, dry = canopy.green[:, None], canopy.dry[:, None]
    bare = np.maximum(1 - green - dry, 0.0)
    below = bare * soil + dry * dry_spectrum
    mean = green * green_spectrum + bare * soil + dry * dry_spectrum
    # Vigour moves green against what lies under it; a closed canopy also varies in its own depth.
    denser = 0.35 * green_spectrum * spectrum("change", "denser")
    by_vigour = (
        spectra.within[:, :1] * green * (green_spectrum - below / np.maximum(bare + dry, 1e-6) + denser)
    )
    by_soil = spectra.within[:, 1:] * below
    return np.stack([mean, by_vigour, by_soil], axis=1).astype(np.float32)

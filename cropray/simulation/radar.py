"""Radar of the simulation: two orbits, backscatter of fields in VV and VH, and speckle.

Backscatter of a field lies between that of its soil and that of its canopy, in dB, by the share of the
ground that is covered. The soil's follows wetness and roughness through the year (`data/months.csv`), the
canopy's follows its stage (`data/timelines.csv`). Both are sigma0 at 39 degrees. Spreads are rounded from
fields over Flanders in 2018-2019. Speckle is that of the Sentinel-1 product definition (IW GRD high
resolution: 20 x 22 m on a 10 m grid, 4.4 equivalent looks). Shapes: P pixels, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

import numpy as np

from cropray.simulation.landscape import Fields, Place
from cropray.simulation.noise import gamma_rows, hashed, scene_rows, uniform
from cropray.simulation.tables import LANDS, land_values, monthly
from cropray.simulation.vegetation import Canopy, season_of
from cropray.types import BoolArray, ByteArray, DoubleArray, FloatArray, Period

GAMMA0_DB = float(-10 * np.log10(np.cos(np.deg2rad(39.0))))
"""gamma0 less sigma0 at the incidence of 39 degrees."""
LOOKS = 4.4

_RAIN_DB = 0.9  # a wet or dry spell moves the soil
_ROUGH_DB, _ROUGH_VH_DB = 1.3, 1.1  # between fields: tillage, row direction
_CANOPY_DB, _CANOPY_VH_DB = 1.1, 1.1  # between fields: density, row direction, variety
_NO_SOIL = tuple(LANDS.index(name) for name in ("trees", "built", "water"))


@dataclass(frozen=True)
class Orbit:
    """A relative orbit. Its swath is a band `swath_m` wide of every `spacing_m`, along its heading."""

    number: int
    orbit_pass: Literal["ascending", "descending"]
    hour: int
    first_day: int  # ordinal modulo 6
    heading_deg: float
    swath_m: float
    spacing_m: float
    edge_m: float

    def covers(self, x: DoubleArray, y: DoubleArray) -> BoolArray:
        """Whether places on the plane lie in the swath."""
        heading = np.deg2rad(self.heading_deg)
        across = np.cos(heading) * x - np.sin(heading) * y
        inside: BoolArray = np.mod(across - self.edge_m, self.spacing_m) < self.swath_m
        return inside

    def days(self, seed: int, period: Period) -> list[date]:
        """Days of acquisition. About one in twelve is missing, and sometimes a month."""
        days = np.arange(period.start.toordinal(), period.end.toordinal())
        days = days[days % 6 == self.first_day]
        lost = uniform(seed, "s1 lost", self.number, days) < 0.08
        outage = uniform(seed, "s1 outage", self.number, days // 30) < 0.06
        return [date.fromordinal(day) for day in days[~(lost | outage)].tolist()]


# An IW swath is 250 km wide. The ascending one leaves gaps, whose edge crosses the sites of `inputs`; the
# descending one overlaps and is everywhere.
ORBITS = (
    Orbit(88, "ascending", 17, 2, -12.0, 250_000.0, 320_000.0, 68_000.0),
    Orbit(37, "descending", 5, 5, 12.0, 250_000.0, 250_000.0, 0.0),
)


class FieldBackscatter(NamedTuple):
    """How each field differs from its land, which lasts through a season: dB in VV and VH (F, 2)."""

    soil_db: DoubleArray
    canopy_db: DoubleArray
    within_db: DoubleArray  # standard deviation of the pixels


def draw_backscatter(fields: Fields, land: ByteArray, season: int) -> FieldBackscatter:
    """Roughness and canopy of each field. VV and VH vary together for the most part."""
    rough = fields.normal("rough", season)
    rough_vh = 0.75 * rough + 0.66 * fields.normal("rough vh", season)
    spread = land_values("canopy_spread")[land]
    dense = spread * fields.normal("dense", season)
    dense_vh = 0.6 * dense + 0.8 * spread * fields.normal("dense vh", season)
    return FieldBackscatter(
        np.stack([_ROUGH_DB * rough, _ROUGH_VH_DB * rough_vh], axis=-1),
        np.stack([_CANOPY_DB * dense, _CANOPY_VH_DB * dense_vh], axis=-1),
        land_values("within_db")[land],
    )


def backscatter_db(
    fields: Fields, land: ByteArray, own: FieldBackscatter, canopy: Canopy, late_days: DoubleArray, day: date
) -> DoubleArray:
    """gamma0 (F, 2) of every field on a day, in dB; `late_days` (F,) is how late it was sown."""
    soil = np.array([monthly(column, day) for column in ("soil_vv_db", "soil_vh_db")])
    tilled = _tillage_db(land, day, late_days)[:, None] * np.array((1.0, 0.8))
    rain = _RAIN_DB * fields.smooth("rain", 30_000.0, day.toordinal() // 4)
    soil_db = soil + tilled + rain[:, None] + own.soil_db
    canopy_db = np.stack([canopy.vv_db, canopy.vh_db], axis=-1) + own.canopy_db
    # The beam is slanted: leaves hide the soil sooner than they cover it as seen from above.
    cover = np.clip(canopy.green + 0.6 * canopy.dry, 0.0, 1.0) ** 0.8
    cover = np.where(np.isin(land, _NO_SOIL), 1.0, cover)[:, None]
    sigma0: DoubleArray = cover * canopy_db + (1 - cover) * soil_db
    return sigma0 + GAMMA0_DB


def _tillage_db(land: ByteArray, day: date, late_days: DoubleArray) -> DoubleArray:
    seedbed_day, before_db, after_db = land_values("seedbed")[land].T
    since = (day - date(season_of(day), 1, 1)).days - late_days - seedbed_day
    done = 1 / (1 + np.exp(-np.clip(since / 3.0, -30, 30)))
    db: DoubleArray = before_db + (after_db - before_db) * done
    return db


def speckle(place: Place, orbit: Orbit, day: date) -> FloatArray:
    """A factor (P, 2) of mean 1 and variance 1 / LOOKS, correlated between pixels of one 20 m cell.

    The grid of 10 m oversamples the resolution of 20 m: half of the deviate is the cell's.
    """
    table = gamma_rows(LOOKS / 2)
    fine, coarse = place.cells
    name, at = f"speckle {orbit.number}", day.toordinal()
    rows = scene_rows(fine, place.seed, name, at)
    cell_rows = scene_rows(coarse, place.seed, name + " cell", at)
    mixed: FloatArray = (table[rows] + table[cell_rows]) * np.float32(0.5)
    return mixed


def within_field(place: Place, own: FieldBackscatter) -> FloatArray:
    """Lasting differences of the pixels (P, 2) as factors of power."""
    vigour, soil = place.textures
    db = own.within_db.astype(np.float32)[place.nearest.field]
    bits = hashed(place.seed, "scatterer", place.cells[1].astype(np.int64)) >> np.uint64(40)
    cell = (bits.astype(np.float32) / np.float32(1 << 23) - 1) * np.float32(1.2)
    texture = np.stack([0.6 * cell + 0.6 * soil, 0.6 * cell + 0.6 * vigour], axis=-1)
    factors: FloatArray = np.power(np.float32(10), texture * db * np.float32(0.1), dtype=np.float32)
    return factors

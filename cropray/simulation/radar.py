"""Radar of the simulated world: backscatter of fields in VV and VH, speckle, and two orbits.

Backscatter of a field lies between that of its soil and that of its canopy, in dB, by the share of
the ground that is covered: the soil's follows wetness and roughness through the year, the canopy's
its stage (`phenology`). Soil, canopy and spreads are sigma0 at 39 degrees, rounded from
fields over Flanders in 2018-2019; speckle and looks from the Sentinel-1 product definition (IW GRD
high resolution: 20 x 22 m on a 10 m grid, 4.4 equivalent looks). Shapes: P pixels, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from cropray.simulation.fields import LANDS, Fields, Place, field_normal
from cropray.simulation.noise import Array, gamma_rows, hashed, scene_rows, smooth, uniform
from cropray.simulation.phenology import Canopy, season_of
from cropray.types import BoolArray, FloatArray, Period

GAMMA0_DB = float(-10 * np.log10(np.cos(np.deg2rad(39.0))))
"""gamma0 less sigma0 at the incidence of 39 degrees."""
LOOKS = 4.4

# Bare arable soil, sigma0 dB, January to December: rough and wet in winter, a dry seedbed in May.
_SOIL_VV = (-7.4, -6.9, -6.6, -8.2, -11.3, -11.2, -10.8, -10.2, -10.2, -9.3, -7.6, -7.0)
_SOIL_VH = (-14.5, -13.7, -14.8, -17.4, -22.0, -21.0, -20.5, -20.5, -19.8, -18.0, -15.6, -14.2)
# Tillage: day of the year around which a seedbed is made; how its soil differs in VV before and
# after (VH: 0.8 of it). Rough furrows before, smooth after; a potato's ridges stay rough.
_SEEDBED = {
    "pea": (75, 0.3, -1.2),
    "onion": (80, 0.3, -1.6),
    "sugar_beet": (92, 0.6, -0.8),
    "potato": (104, 0.8, 1.6),
    "maize": (120, 1.0, -0.4),
}
_RAIN_DB = 0.9  # a wet or dry spell moves the soil
_ROUGH_DB, _ROUGH_VH_DB = 1.3, 1.1  # between fields: tillage, row direction
_CANOPY_DB, _CANOPY_VH_DB = 1.1, 1.1  # between fields: density, row direction, variety
_UNEVEN = {"grass": 1.4, "sugar_beet": 1.6}  # spreads of the canopy, times this
_WITHIN_DB = {"built": (3.2, 2.2), "trees": (0.7, 0.6), "water": (0.8, 0.6)}
_WITHIN_FIELD_DB = (0.6, 0.6)


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

    def covers(self, x: Array, y: Array) -> BoolArray:
        """Whether places in the world plane lie in the swath."""
        heading = np.deg2rad(self.heading_deg)
        across = np.cos(heading) * x - np.sin(heading) * y
        inside: BoolArray = np.mod(across - self.edge_m, self.spacing_m) < self.swath_m
        return inside

    def days(self, seed: int, period: Period) -> list[date]:
        """Days of acquisition; about one in twelve is missing, and sometimes a month."""
        days = [period.start + timedelta(n) for n in range((period.end - period.start).days)]
        days = [day for day in days if day.toordinal() % 6 == self.first_day]
        return [day for day in days if not self._missing(seed, day)]

    def _missing(self, seed: int, day: date) -> bool:
        lost = uniform(seed, "s1 lost", self.number, day.toordinal())[0] < 0.08
        outage = uniform(seed, "s1 outage", self.number, day.toordinal() // 30)[0] < 0.06
        return bool(lost or outage)


# An IW swath is 250 km wide. The ascending one leaves a gap between neighbours, whose edge crosses
# the land in which `world_inputs` puts its sites; the descending one overlaps and is everywhere.
ORBITS = (
    Orbit(88, "ascending", 17, 2, -12.0, 250_000.0, 320_000.0, 68_000.0),
    Orbit(37, "descending", 5, 5, 12.0, 250_000.0, 250_000.0, 0.0),
)


@dataclass(frozen=True)
class Surface:
    """What stays of a field's backscatter through a season, in dB (F,)."""

    soil_db: Array  # (F, 2) VV, VH
    canopy_db: Array  # (F, 2)
    within_db: Array  # (F, 2) standard deviation of the pixels


def surfaces(seed: int, fields: Fields, land: npt.NDArray[np.uint8], season: int) -> Surface:
    """Roughness and canopy of each field: VV and VH vary together for the most part."""
    rough = field_normal(seed, fields, "rough", season)
    rough_vh = 0.75 * rough + 0.66 * field_normal(seed, fields, "rough vh", season)
    uneven = np.array([_UNEVEN.get(name, 1.0) for name in LANDS])[land]
    dense = uneven * field_normal(seed, fields, "dense", season)
    dense_vh = 0.6 * dense + 0.8 * uneven * field_normal(seed, fields, "dense vh", season)
    within = np.array([_WITHIN_DB.get(name, _WITHIN_FIELD_DB) for name in LANDS])[land]
    return Surface(
        np.stack([_ROUGH_DB * rough, _ROUGH_VH_DB * rough_vh], axis=-1),
        np.stack([_CANOPY_DB * dense, _CANOPY_VH_DB * dense_vh], axis=-1),
        within,
    )


def backscatter_db(
    seed: int,
    fields: Fields,
    land: npt.NDArray[np.uint8],
    surface: Surface,
    canopy: Canopy,
    shift_days: Array,
    day: date,
) -> Array:
    """gamma0 (F, 2) of every field on a day, in dB; `shift_days` (F,) is how late it was sown."""
    month = (day - date(day.year, 1, 1)).days / 365.25
    at = (np.arange(-1, 13) + 0.5) / 12
    soil = np.array([np.interp(month, at, (v[-1], *v, v[0])) for v in (_SOIL_VV, _SOIL_VH)])
    tilled = _tillage_db(land, day, shift_days)[:, None] * np.array((1.0, 0.8))
    rain = _RAIN_DB * smooth(seed, "rain", fields.x, fields.y, 30_000.0, day.toordinal() // 4)
    soil_db = soil + tilled + rain[:, None] + surface.soil_db
    canopy_db = np.stack([canopy.vv_db, canopy.vh_db], axis=-1) + surface.canopy_db
    # Leaves hide the soil sooner than they cover it as seen from above: the beam is slanted.
    cover = np.clip(canopy.green + 0.6 * canopy.dry, 0.0, 1.0) ** 0.8
    cover = np.where(np.isin(land, _NO_SOIL), 1.0, cover)[:, None]
    sigma0: Array = cover * canopy_db + (1 - cover) * soil_db
    return sigma0 + GAMMA0_DB


def _tillage_db(land: npt.NDArray[np.uint8], day: date, shift_days: Array) -> Array:
    table = np.array([_SEEDBED.get(name, (0, 0.0, 0.0)) for name in LANDS])[land]
    since = (day - date(season_of(day), 1, 1)).days - shift_days - table[:, 0]
    done = 1 / (1 + np.exp(-np.clip(since / 3.0, -30, 30)))
    db: Array = table[:, 1] + (table[:, 2] - table[:, 1]) * done
    return db


_NO_SOIL = tuple(LANDS.index(name) for name in ("trees", "built", "water"))


def speckle(place: Place, orbit: Orbit, day: date) -> FloatArray:
    """Factor (P, 2) of mean 1 and variance 1 / LOOKS, correlated between pixels of one 20 m cell.

    The grid of 10 m oversamples the resolution of 20 m: half of the deviate is the cell's.
    """
    table = gamma_rows(LOOKS / 2)
    fine, coarse = place.cells
    name, at = f"speckle {orbit.number}", day.toordinal()
    rows = scene_rows(fine, place.seed, name, at)
    cell_rows = scene_rows(coarse, place.seed, name + " cell", at)
    mixed: FloatArray = (table[rows] + table[cell_rows]) * np.float32(0.5)
    return mixed


def within_field(place: Place, surface: Surface) -> FloatArray:
    """Standing differences of the pixels (P, 2) as factors of power."""
    vigour, soil = place.textures
    db = surface.within_db.astype(np.float32)[place.field]
    other = (hashed(place.seed, "scatterer", place.cells[1].astype(np.int64)) >> np.uint64(40)).astype(
        np.float32
    )
    own = (other / np.float32(1 << 23) - 1) * np.float32(1.2)
    texture = np.stack([0.6 * own + 0.6 * soil, 0.6 * own + 0.6 * vigour], axis=-1)
    factors: FloatArray = np.power(np.float32(10), texture * db * np.float32(0.1), dtype=np.float32)
    return factors

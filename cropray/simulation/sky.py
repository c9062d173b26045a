"""Sky of the simulation: days of acquisition, clouds and their shadows, and what SCL says of them.

Skies are mostly all clear or all covered: a cloud field of two scales. Sen2Cor's masks agree with reference
masks in 84 % of the pixels (Baetens et al. 2019, doi:10.3390/rs11040433). Which clouds it misses here, thin
ones and some opaque ones, is assumed. Shapes: P pixels, C the ten bands.
"""

from __future__ import annotations

from datetime import date
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from cropray.simulation.landscape import Place
from cropray.simulation.noise import bilinear, smooth, uniform
from cropray.simulation.tables import read_csv, spectrum
from cropray.types import ByteArray, DoubleArray, FloatArray, Period

_REVISIT_DAYS, _FIRST_DAY, _LOST = 5, 3, 0.08
_LATTICE_M = 50.0
_LARGE, _LARGE_M, _SMALL = 2.0, 60_000.0, ((0.8, 2600.0), (0.5, 700.0), (0.33, 220.0))
_SPREAD = float(np.sqrt(_LARGE**2 + sum(height**2 for height, _ in _SMALL)))
_EDGE = 0.9  # from no cloud to an opaque one, in units of the field
CLOUD = spectrum("cloud", "opaque").astype(np.float32)

SCL_SHADOW, SCL_VEGETATION, SCL_BARE, SCL_WATER, SCL_UNCLASSIFIED = 3, 4, 5, 6, 7
SCL_MEDIUM, SCL_HIGH, SCL_CIRRUS = 8, 9, 10


class Sky(NamedTuple):
    """The sky of one acquisition, over P pixels."""

    cloud: FloatArray  # thickness, 0 to 1
    shadow: FloatArray  # depth, 0 to 1
    missed: FloatArray  # standard normal and smooth: where it is high, Sen2Cor overlooks clouds


class CloudLattice:
    """Clouds over a place, drawn at the corners of a lattice and bilinear to the pixels."""

    def __init__(self, place: Place) -> None:
        u, v = place.x / _LATTICE_M, place.y / _LATTICE_M
        i, j = np.floor(u), np.floor(v)
        self._seed = place.seed
        self._rows = np.arange(int(i.min()), int(i.max()) + 2)
        self._cols = np.arange(int(j.min()), int(j.max()) + 2)
        self._at = ((i - self._rows[0]) * len(self._cols) + (j - self._cols[0])).astype(np.int32)
        self._u, self._v = (u - i).astype(np.float32), (v - j).astype(np.float32)

    def at(self, day: date) -> Sky:
        toward = 2 * np.pi * uniform(self._seed, "sun", day.month)[0] * 0.1 + 0.6 * np.pi
        # The shadow lies north to north-west of the cloud at 10:50 local time, farther in winter.
        far = 8 + 10 * abs(day.month - 6.5) / 5.5
        step_i, step_j = round(far * float(np.cos(toward))), round(far * float(np.sin(toward)))
        cloud = cloud_thickness(self._seed, *self._corners(), day).astype(np.float32)
        caster = cloud_thickness(self._seed, *self._corners(step_i, step_j), day).astype(np.float32)
        missed = smooth(self._seed, "missed", *self._corners(), 300.0, day.toordinal()).astype(np.float32)
        return Sky(self._read(cloud), self._read(caster * (1 - cloud)), self._read(missed))

    def _corners(self, step_i: int = 0, step_j: int = 0) -> tuple[DoubleArray, DoubleArray]:
        rows, cols = (self._rows - step_i) * _LATTICE_M, (self._cols - step_j) * _LATTICE_M
        x, y = np.meshgrid(rows, cols, indexing="ij")
        return x, y

    def _read(self, corners: FloatArray) -> FloatArray:
        if corners.min() == corners.max():  # all clear or all covered
            return np.full(len(self._at), corners[0, 0], np.float32)
        values: FloatArray = bilinear(corners, self._at, self._u, self._v)
        return values


def s2_days(seed: int, period: Period) -> list[date]:
    """Days of acquisition: every fifth, some lost."""
    days = np.arange(period.start.toordinal(), period.end.toordinal())
    days = days[days % _REVISIT_DAYS == _FIRST_DAY]
    return [date.fromordinal(day) for day in days[uniform(seed, "s2 lost", days) >= _LOST].tolist()]


def cloud_thickness(seed: int, x: DoubleArray, y: DoubleArray, day: date) -> DoubleArray:
    """From 0, a clear view, to 1, an opaque cloud, at places on the plane on a day."""
    at = day.toordinal()
    amount = read_csv("months.csv")["cloudiness"][day.month - 1]
    height = _LARGE * smooth(seed, "cloud large", x, y, _LARGE_M, at)
    for scale, (share, wavelength) in enumerate(_SMALL):
        height = height + share * smooth(seed, f"cloud {scale}", x, y, wavelength, at)
    # The sum is nearly normal: its quantile at the clear share is the base of the clouds.
    base = _SPREAD * NormalDist().inv_cdf(1 - amount) - 0.1 * _EDGE
    return np.clip((height - base) / _EDGE, 0.0, 1.0)


def through(ground_pc: FloatArray, cloud: FloatArray, shadow: FloatArray) -> FloatArray:
    """The ground (P, C) as seen through cloud and under shadow (P,)."""
    # Skylight still reaches a shadow: more in the blue than in the infrared.
    dark = np.linspace(0.45, 0.68, 10, dtype=np.float32)
    seen = ground_pc * (1 - cloud)[:, None]
    shaded = np.flatnonzero(shadow > 0)
    seen[shaded] *= 1 - dark * shadow[shaded, None]
    seen += cloud[:, None] * CLOUD
    return seen


def scene_classes(place: Place, sky: Sky, ground: ByteArray, day: date) -> ByteArray:
    """SCL (P,) as Sen2Cor would give it: `ground` where it finds neither cloud nor shadow.

    Thin cloud passes for clear ground, and so do patches of thicker but not opaque cloud (some 3 %) and of
    shadow (15 %). 1 % of the clear ground is called cloud or left unclassified.
    """
    chance = uniform(place.seed, "scl", place.cells[1].astype(np.int64), day.toordinal()).astype(np.float32)
    classes = ground.copy()
    classes[chance > 0.995] = SCL_UNCLASSIFIED
    classes[chance < 0.006] = SCL_MEDIUM
    classes[(sky.shadow > 0.30) & (sky.missed < 1.0)] = SCL_SHADOW
    found = (sky.missed < 1.7) | (sky.cloud > 0.7)
    for thickness, scl in ((0.08, SCL_CIRRUS), (0.30, SCL_MEDIUM), (0.60, SCL_HIGH)):
        classes[(sky.cloud > thickness) & found] = scl
    return classes

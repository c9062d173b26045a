"""Sky of the simulated world: days of acquisition, clouds, their shadows, and what SCL says of them.

Cloud amounts by month are assumed, as for the Low Countries: about 0.75 in December and 0.6 in
summer, above the 0.55 that MODIS finds over all land (King et al. 2013,
doi:10.1109/TGRS.2012.2227333). Skies are mostly all clear or all covered, which is a cloud field of
two scales. Sen2Cor's masks agree with reference masks in 84 % of the pixels (Baetens et al. 2019,
doi:10.3390/rs11040433); which clouds it misses here, thin ones and some opaque ones, is assumed.
Shapes: P pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cropray.simulation.fields import Place
from cropray.simulation.noise import Array, smooth, uniform
from cropray.types import ByteArray, FloatArray, Period

_REVISIT_DAYS, _FIRST_DAY, _LOST = 5, 3, 0.08
# Amount of cloud that hides the ground, January to December: those figures less 0.06 for thin cloud.
_CLOUDINESS = (0.68, 0.64, 0.58, 0.52, 0.52, 0.54, 0.52, 0.50, 0.52, 0.58, 0.66, 0.70)
_LATTICE_M = 50.0  # clouds are drawn on a lattice of the world and interpolated
_LARGE, _LARGE_M, _SMALL = 2.0, 60_000.0, ((0.8, 2600.0), (0.5, 700.0), (0.33, 220.0))
_SPREAD = float(np.sqrt(_LARGE**2 + sum(height**2 for height, _ in _SMALL)))
_EDGE = 0.9  # from no cloud to an opaque one, in units of the field
CLOUD = np.array((0.56, 0.55, 0.54, 0.55, 0.57, 0.58, 0.58, 0.58, 0.42, 0.34), np.float32)

SCL_SHADOW, SCL_VEGETATION, SCL_BARE, SCL_WATER, SCL_UNCLASSIFIED = 3, 4, 5, 6, 7
SCL_MEDIUM, SCL_HIGH, SCL_CIRRUS = 8, 9, 10


@dataclass(frozen=True)
class Sky:
    """Of one acquisition: over P, thickness of the cloud and depth of the shadow, 0..1."""

    cloud: FloatArray
    shadow: FloatArray
    missed: FloatArray  # standard normal and smooth: where it is high, Sen2Cor overlooks things


@dataclass(frozen=True)
class SkyLattice:
    """The cloud lattice over a place: its corners, and how each pixel reads them bilinearly."""

    place: Place

    @cached_property
    def _reading(self) -> tuple[int, int, int, int, npt.NDArray[np.int32], FloatArray, FloatArray]:
        u, v = self.place.x / _LATTICE_M, self.place.y / _LATTICE_M
        i, j = np.floor(u), np.floor(v)
        i0, j0 = int(i.min()), int(j.min())
        rows, cols = int(i.max()) - i0 + 2, int(j.max()) - j0 + 2
        at = ((i - i0) * cols + (j - j0)).astype(np.int32)
        return i0, j0, rows, cols, at, (u - i).astype(np.float32), (v - j).astype(np.float32)

    def at(self, day: date) -> Sky:
        seed = self.place.seed
        toward = 2 * np.pi * uniform(seed, "sun", day.month)[0] * 0.1 + 0.6 * np.pi
        # The shadow lies north to north-west of the cloud at 10:50 local time, farther in winter.
        far = 8 + 10 * abs(day.month - 6.5) / 5.5
        step_i, step_j = round(far * float(np.cos(toward))), round(far * float(np.sin(toward)))
        cloud = cloud_thickness(seed, *self._corners(0, 0), day).astype(np.float32)
        caster = cloud_thickness(seed, *self._corners(step_i, step_j), day).astype(np.float32)
        missed = smooth(seed, "missed", *self._corners(0, 0), 300.0, day.toordinal()).astype(np.float32)
        return Sky(self._read(cloud), self._read(caster * (1 - cloud)), self._read(missed))

    def _corners(self, step_i: int, step_j: int) -> tuple[Array, Array]:
        i0, j0, rows, cols, *_ = self._reading
        x, y = np.meshgrid(
            (np.arange(rows) + i0 - step_i) * _LATTICE_M,
            (np.arange(cols) + j0 - step_j) * _LATTICE_M,
            indexing="ij",
        )
        return x, y

    def _read(self, corners: FloatArray) -> FloatArray:
        _, _, _, cols, at, u, v = self._reading
        if corners.min() == corners.max():
            return np.full(len(at), corners[0, 0], np.float32)
        flat = corners.ravel()
        near = flat[at] + (flat[at + 1] - flat[at]) * v
        far = flat[at + cols] + (flat[at + cols + 1] - flat[at + cols]) * v
        read: FloatArray = near + (far - near) * u
        return read


def s2_days(seed: int, period: Period) -> list[date]:
    """Days of acquisition: every fifth, some lost."""
    days = [period.start + timedelta(n) for n in range((period.end - period.start).days)]
    return [
        day
        for day in days
        if day.toordinal() % _REVISIT_DAYS == _FIRST_DAY
        and uniform(seed, "s2 lost", day.toordinal())[0] >= _LOST
    ]


def cloud_thickness(seed: int, x: Array, y: Array, day: date) -> Array:
    """0 for a clear view to 1 for an opaque cloud, at places in the world plane on a day."""
    at = day.toordinal()
    amount = _CLOUDINESS[day.month - 1]
    height = _LARGE * smooth(seed, "cloud large", x, y, _LARGE_M, at)
    for scale, (share, wavelength) in enumerate(_SMALL):
        height = height + share * smooth(seed, f"cloud {scale}", x, y, wavelength, at)
    # The sum is nearly normal: its quantile at the clear share is the base of the clouds.
    base = _SPREAD * NormalDist().inv_cdf(1 - amount) - 0.1 * _EDGE
    return np.clip((height - base) / _EDGE, 0.0, 1.0)


def through(ground_pc: FloatArray, cloud: FloatArray, shadow: FloatArray) -> FloatArray:
    """What is seen of the ground (P, C) through cloud and under shadow (P,)."""
    # Skylight still reaches a shadow: more in the blue than in the infrared.
    dark = np.linspace(0.45, 0.68, 10, dtype=np.float32)
    seen = ground_pc * (1 - cloud)[:, None]
    shaded = np.flatnonzero(shadow > 0)
    seen[shaded] *= 1 - dark * shadow[shaded, None]
    seen += cloud[:, None] * CLOUD
    return seen


def scene_classes(place: Place, sky: Sky, ground: ByteArray, day: date) -> ByteArray:
    """SCL (P,) as Sen2Cor would say: `ground` where it sees none of cloud or shadow.

    Thin cloud passes for clear ground, and so do patches of thicker but not of opaque cloud (some
    3 %) and of shadow (15 %); 1 % of clear ground is called cloud or left unclassified.
    """
    cells = place.cells[1].astype(np.int64)
    chance = uniform(place.seed, "scl", cells, day.toordinal()).astype(np.float32)
    classes = ground.copy()
    classes[chance > 0.995] = SCL_UNCLASSIFIED
    classes[chance < 0.006] = SCL_MEDIUM
    classes[(sky.shadow > 0.30) & (sky.missed < 1.0)] = SCL_SHADOW
    seen = (sky.missed < 1.7) | (sky.cloud > 0.7)
    for thickness, scl in ((0.08, SCL_CIRRUS), (0.30, SCL_MEDIUM), (0.60, SCL_HIGH)):
        classes[(sky.cloud > thickness) & seen] = scl
    return classes

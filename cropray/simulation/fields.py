"""Geography of the simulated world: what lies where, field by field, and what grows there each year.

The world is drawn on the plane of ETRS89-LAEA (EPSG:3035, equal area), in metres. Fields are the
cells of a jittered lattice (a Voronoi diagram), some joined in pairs, in a plane that is warped so
that sizes and directions vary. Shapes: P pixels, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from cropray.grid import Grid
from cropray.simulation.noise import Array, Indices, hashed, normal, smooth, uniform
from cropray.types import FloatArray

WORLD_CRS = "EPSG:3035"

CROPS = ("winter_wheat", "winter_barley", "rapeseed", "maize", "potato", "sugar_beet", "pea", "onion")
LANDS = (*CROPS, "grass", "trees", "built", "water", "fallow")
"""Everything that land can be; a land is an index into this."""

# Mean share of each land. Arable crops roughly as in the loam belt of Belgium and northern France;
# pea and onion are commoner than there, so that all eight can be learnt.
_LAND_SHARE = {"arable": 0.66, "grass": 0.15, "trees": 0.10, "built": 0.06, "water": 0.03}
_CROP_SHARE = (0.24, 0.13, 0.12, 0.17, 0.10, 0.11, 0.07, 0.06)
_FALLOW_SHARE = 0.04  # of arable land

# Lattice of the fields: 165 m x 205 m; with a third of the pairs joined, 1 to 8 ha, 4.4 on average.
_CELL_M = (165.0, 205.0)
_JITTER = 0.3  # up to 0.3 the nearest seed is always among the 3 x 3 around a point
_JOINED = 0.35
_ANGLE = np.deg2rad(23.0)
# Warps (metres, wavelength): large ones turn and stretch the fields, small ones bend their edges.
_WARPS = ((70.0, 1700.0), (2.5, 140.0))


@dataclass(frozen=True)
class Fields:
    """The fields of a tile. Identity is the lattice cell (i, j) of the field's first seed."""

    i: Indices  # (F,)
    j: Indices  # (F,)
    x: Array  # (F,) seed in the world plane, metres
    y: Array  # (F,)


@dataclass(frozen=True)
class Place:
    """Where the pixels of a grid lie in the world, pixel by pixel in row-major order."""

    seed: int
    x: Array  # (P,) metres in WORLD_CRS
    y: Array  # (P,)

    @classmethod
    def on(cls, grid: Grid, seed: int) -> Place:
        x, y = np.meshgrid(*grid.centres())
        return cls(seed, *to_world(x.ravel(), y.ravel(), grid.crs))

    @cached_property
    def cells(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Hashes (P,) of the pixel and of the 20 m cell around it, of NOISE_BITS bits.

        Pixels are told apart by 5 m cells: two centres 10 m apart never share one.
        """
        return _pixel_hash(self, 5.0), _pixel_hash(self, 20.0)

    @cached_property
    def textures(self) -> tuple[FloatArray, FloatArray]:
        """Standing differences within fields (P,): of vigour and of soil; standard deviation 1."""
        vigour = 0.7 * smooth(self.seed, "vigour 60", self.x, self.y, 60.0)
        vigour += 0.5 * smooth(self.seed, "vigour 250", self.x, self.y, 250.0)
        soil = 0.8 * smooth(self.seed, "soil 180", self.x, self.y, 180.0)
        fine = self.cells[0].astype(np.float64) / 32768.0 - 1.0  # uniform, standard deviation 0.58
        return (vigour + 0.85 * fine).astype(np.float32), (soil - 1.0 * fine).astype(np.float32)

    @cached_property
    def _nearest(self) -> tuple[Fields, npt.NDArray[np.int32], npt.NDArray[np.int32], FloatArray]:
        return _nearest_fields(self)

    @property
    def fields(self) -> Fields:
        return self._nearest[0]

    @property
    def field(self) -> npt.NDArray[np.int32]:
        """Index into `fields` of the field that holds each pixel's centre (P,)."""
        return self._nearest[1]

    @property
    def neighbour(self) -> npt.NDArray[np.int32]:
        """Index into `fields` of the field on the other side of the nearest edge (P,)."""
        return self._nearest[2]

    @property
    def edge_m(self) -> FloatArray:
        """Distance to the nearest edge of the lattice, in metres, about (P,)."""
        return self._nearest[3]


def to_world(x: Array, y: Array, crs: str) -> tuple[Array, Array]:
    """Coordinates in a CRS to metres of the world plane."""
    world_x, world_y = _transformer(crs, WORLD_CRS).transform(x, y)
    return world_x, world_y


def from_world(x: Array, y: Array, crs: str) -> tuple[Array, Array]:
    """Metres of the world plane to coordinates in a CRS."""
    crs_x, crs_y = _transformer(WORLD_CRS, crs).transform(x, y)
    return crs_x, crs_y


@lru_cache(64)
def _transformer(src_crs: str, dst_crs: str) -> Transformer:
    # Making one takes as long as a million pixels; they may be shared between threads.
    return Transformer.from_crs(src_crs, dst_crs, always_xy=True)


def lattice(seed: int, x: Array, y: Array) -> tuple[Array, Array]:
    """World metres to the plane of the fields, in which a lattice cell is a unit square."""
    u = np.cos(_ANGLE) * x + np.sin(_ANGLE) * y
    v = np.cos(_ANGLE) * y - np.sin(_ANGLE) * x
    for height, wavelength in _WARPS:
        u = u + height * smooth(seed, "warp u", x, y, wavelength)
        v = v + height * smooth(seed, "warp v", x, y, wavelength)
    return u / _CELL_M[0], v / _CELL_M[1]


def from_lattice(seed: int, u: Array, v: Array) -> tuple[Array, Array]:
    """The inverse of `lattice`, by fixed point: the warps move less than they are long."""
    goal_x, goal_y = _unturned(u * _CELL_M[0], v * _CELL_M[1])
    x, y = goal_x, goal_y
    # Always as many steps: a place must not depend on the places that are asked for with it.
    for _ in range(14):
        found = lattice(seed, x, y)
        back_x, back_y = _unturned(found[0] * _CELL_M[0], found[1] * _CELL_M[1])
        step_x, step_y = goal_x - back_x, goal_y - back_y
        x, y = x + step_x, y + step_y
    assert max(np.abs(step_x).max(), np.abs(step_y).max()) < 0.1, "the warps of the world fold over"
    return x, y


def seeds(seed: int, i: Indices, j: Indices) -> tuple[Array, Array]:
    """The jittered seed of lattice cells, in the plane of the fields."""
    u = i + 0.5 + _JITTER * (2 * uniform(seed, "seed u", i, j) - 1)
    v = j + 0.5 + _JITTER * (2 * uniform(seed, "seed v", i, j) - 1)
    return u, v


def owners(seed: int, i: Indices, j: Indices) -> Indices:
    """The i of the cell whose field a cell belongs to: pairs along i are joined here and there."""
    first = i - np.mod(i, 2)
    return np.where(uniform(seed, "joined", first, j) < _JOINED, first, i)


def land_of(seed: int, fields: Fields, year: int) -> npt.NDArray[np.uint8]:
    """What a field is in the season that is harvested in `year` (F,): index into LANDS.

    Woods, towns and waters lie in clumps and stay; arable land takes a crop each year, more of
    one crop in one district than in another. Drawn by the Gumbel-max trick.
    """
    kinds = tuple(_LAND_SHARE)
    scores = [
        np.log(_LAND_SHARE[kind])
        + (0.0 if kind == "arable" else 0.9 * smooth(seed, f"clump {kind}", fields.x, fields.y, 1400.0))
        + _gumbel(seed, f"kind {kind}", fields.i, fields.j)
        for kind in kinds
    ]
    kind = np.argmax(scores, axis=0)
    crop_scores = [
        np.log(share)
        + 0.5 * smooth(seed, f"district {crop}", fields.x, fields.y, 12_000.0)
        + _gumbel(seed, f"crop {crop}", fields.i, fields.j, year)
        for crop, share in zip(CROPS, _CROP_SHARE, strict=True)
    ]
    crop = np.argmax(crop_scores, axis=0)
    fallow = uniform(seed, "fallow", fields.i, fields.j, year) < _FALLOW_SHARE
    arable = np.where(fallow, LANDS.index("fallow"), crop)
    others = np.array([0, *(LANDS.index(kind) for kind in kinds[1:])])
    return np.where(kind == 0, arable, others[kind]).astype(np.uint8)


def field_normal(seed: int, fields: Fields, stream: str, year: int = 0) -> Array:
    """(F,) standard normal, cut at 2.5 deviations; `year` 0 is for what stays through the years."""
    return normal(seed, stream, fields.i, fields.j, year)


def field_uniform(seed: int, fields: Fields, stream: str, year: int = 0) -> Array:
    """(F,) in [0, 1); `year` 0 is for what stays through the years."""
    return uniform(seed, stream, fields.i, fields.j, year)


def fields_of(seed: int, i: Indices, j: Indices) -> Fields:
    """The fields whose first seeds lie in the lattice cells i, j (F,)."""
    return Fields(i, j, *from_lattice(seed, *seeds(seed, i, j)))


def _nearest_fields(
    place: Place,
) -> tuple[Fields, npt.NDArray[np.int32], npt.NDArray[np.int32], FloatArray]:
    """Fields, index of the nearest and of the second nearest, distance to the edge between them."""
    u, v = lattice(place.seed, place.x, place.y)
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    i0, j0 = int(i.min()) - 2, int(j.min()) - 1
    ii = np.arange(i0, int(i.max()) + 3)
    jj = np.arange(j0, int(j.max()) + 2)
    ii, jj = (grid.ravel() for grid in np.meshgrid(ii, jj, indexing="ij"))
    across = int(j.max()) + 2 - j0
    seed_u, seed_v = (values.astype(np.float64) for values in seeds(place.seed, ii, jj))
    home = (i - i0) * across + (j - j0)
    first = np.full(len(u), np.inf)
    second = np.full(len(u), np.inf)
    at_first = np.zeros(len(u), np.int32)
    at_second = np.zeros(len(u), np.int32)
    for step in (di * across + dj for di in (-1, 0, 1) for dj in (-1, 0, 1)):
        at = home + step
        distance = (u - seed_u[at]) ** 2 + (v - seed_v[at]) ** 2
        nearer = distance < first
        at_second = np.where(nearer, at_first, np.where(distance < second, at, at_second))
        second = np.where(nearer, first, np.minimum(distance, second))
        at_first = np.where(nearer, at, at_first)
        first = np.minimum(distance, first)
    # The edge is the perpendicular bisector of the two seeds.
    apart = np.hypot(seed_u[at_first] - seed_u[at_second], seed_v[at_first] - seed_v[at_second])
    edge_m = (second - first) / (2 * np.maximum(apart, 1e-6)) * np.sqrt(_CELL_M[0] * _CELL_M[1])
    owner = (owners(place.seed, ii, jj) - i0) * across + (jj - j0)
    at_first, at_second = owner[at_first], owner[at_second]
    used = np.zeros(len(ii), np.bool_)
    used[at_first] = used[at_second] = True
    compact = np.cumsum(used, dtype=np.int32) - 1
    fields = fields_of(place.seed, ii[used], jj[used])
    return fields, compact[at_first], compact[at_second], edge_m.astype(np.float32)


def _pixel_hash(place: Place, size_m: float) -> npt.NDArray[np.uint32]:
    column = np.floor(place.x / size_m).astype(np.int64)
    row = np.floor(place.y / size_m).astype(np.int64)
    return (hashed(place.seed, f"pixel {size_m}", column, row) >> np.uint64(48)).astype(np.uint32)


def _gumbel(seed: int, stream: str, *cells: Indices | int) -> Array:
    return -np.log(-np.log(uniform(seed, stream, *cells) * (1 - 2e-9) + 1e-9))


def _unturned(u: Array, v: Array) -> tuple[Array, Array]:
    return np.cos(_ANGLE) * u - np.sin(_ANGLE) * v, np.sin(_ANGLE) * u + np.cos(_ANGLE) * v

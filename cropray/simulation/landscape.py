"""The simulated landscape: in which field each pixel lies, what each field grows, and maps of it.

The landscape is drawn on the plane of ETRS89-LAEA (EPSG:3035, equal area), in metres. Fields are the cells
of a jittered lattice (a Voronoi diagram), some of them joined in pairs. The lattice is warped so that sizes
and directions vary. `data/lands.yaml` describes the maps and their errors. Shapes: P pixels, F fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.grid import Grid, transformer
from cropray.simulation.noise import Indices, hashed, normal, smooth, uniform
from cropray.simulation.tables import ARABLE_SHARE, CROPS, LANDS, land_values
from cropray.types import ByteArray, DoubleArray, FloatArray

PLANE_CRS = "EPSG:3035"
TRUTH_CODES: dict[str, int] = dict(zip(LANDS, land_values("eucropmap").tolist(), strict=True))
LAND_COVER_CODES: dict[str, int] = dict(zip(LANDS, land_values("land_cover").tolist(), strict=True))

# Lattice of the fields: 165 m x 205 m; with a third of the pairs joined, 1 to 8 ha, 4.4 on average.
_CELL_M = (165.0, 205.0)
_JITTER = 0.3  # up to 0.3 the nearest seed is always among the 3 x 3 around a point
_JOINED = 0.35
_ANGLE = np.deg2rad(23.0)
# Warps (metres, wavelength): large ones turn and stretch the fields, small ones bend their edges.
_WARPS = ((70.0, 1700.0), (2.5, 140.0))
_MISCLASSIFIED, _EDGE_ERROR_M = 0.14, 10.0  # of eucropmap: share of the fields, and up to
_CANOPY_M = 8.0


@dataclass(frozen=True)
class Fields:
    """Fields (F,), identified by the lattice cell (i, j) of their first seed."""

    seed: int
    i: Indices
    j: Indices

    def normal(self, stream: str, year: int = 0) -> DoubleArray:
        """Standard normal deviates, cut at 2.5; `year` 0 for what lasts through the years."""
        return normal(self.seed, stream, self.i, self.j, year)

    def uniform(self, stream: str, year: int = 0) -> DoubleArray:
        """Numbers in [0, 1); `year` 0 for what lasts through the years."""
        return uniform(self.seed, stream, self.i, self.j, year)

    def smooth(self, stream: str, wavelength_m: float, *keys: int) -> DoubleArray:
        """Value noise at the first seeds."""
        return smooth(self.seed, stream, *self.xy, wavelength_m, *keys)

    @cached_property
    def uv(self) -> tuple[DoubleArray, DoubleArray]:
        """The jittered seeds of the cells, in lattice coordinates."""
        u = self.i + 0.5 + _JITTER * (2 * uniform(self.seed, "seed u", self.i, self.j) - 1)
        v = self.j + 0.5 + _JITTER * (2 * uniform(self.seed, "seed v", self.i, self.j) - 1)
        return u, v

    @cached_property
    def xy(self) -> tuple[DoubleArray, DoubleArray]:
        """The seeds on the plane, metres."""
        return from_lattice(self.seed, *self.uv)

    @cached_property
    def owner_i(self) -> Indices:
        """The i of the cell to whose field a cell belongs: some pairs along i are joined."""
        first = self.i - np.mod(self.i, 2)
        return np.where(uniform(self.seed, "joined", first, self.j) < _JOINED, first, self.i)


class Nearest(NamedTuple):
    """The fields around the pixels of a place."""

    fields: Fields
    field: npt.NDArray[np.int32]  # (P,) index of the field that holds the pixel's centre
    neighbour: npt.NDArray[np.int32]  # (P,) index of the field beyond the nearest edge
    edge_m: FloatArray  # (P,) approximate distance to that edge


@dataclass(frozen=True)
class Place:
    """Where the pixels of a grid lie on the plane, pixel by pixel in row-major order."""

    seed: int
    x: DoubleArray  # (P,) metres in PLANE_CRS
    y: DoubleArray  # (P,)

    @classmethod
    def on(cls, grid: Grid, seed: int) -> Place:
        x, y = np.meshgrid(*grid.centres())
        return cls(seed, *project(x.ravel(), y.ravel(), grid.crs))

    @cached_property
    def cells(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Hashes (P,) of NOISE_BITS bits: of the pixel, and of the 20 m cell around it.

        Pixels are distinguished by 5 m cells: two centres 10 m apart never share one.
        """
        return self._hash(5.0), self._hash(20.0)

    def _hash(self, size_m: float) -> npt.NDArray[np.uint32]:
        column, row = (np.floor(values / size_m).astype(np.int64) for values in (self.x, self.y))
        return (hashed(self.seed, f"pixel {size_m}", column, row) >> np.uint64(48)).astype(np.uint32)

    @cached_property
    def textures(self) -> tuple[FloatArray, FloatArray]:
        """Lasting differences within fields (P,), of vigour and of soil; standard deviation 1."""
        vigour = 0.7 * smooth(self.seed, "vigour 60", self.x, self.y, 60.0)
        vigour += 0.5 * smooth(self.seed, "vigour 250", self.x, self.y, 250.0)
        soil = 0.8 * smooth(self.seed, "soil 180", self.x, self.y, 180.0)
        fine = self.cells[0].astype(np.float64) / 32768.0 - 1.0  # uniform, standard deviation 0.58
        return (vigour + 0.85 * fine).astype(np.float32), (soil - 1.0 * fine).astype(np.float32)

    @cached_property
    def nearest(self) -> Nearest:
        return _nearest_fields(self)


def project(
    x: DoubleArray, y: DoubleArray, src_crs: str, dst_crs: str = PLANE_CRS
) -> tuple[DoubleArray, DoubleArray]:
    """Coordinates in another CRS."""
    dst_x, dst_y = transformer(src_crs, dst_crs).transform(x, y)
    return dst_x, dst_y


def to_lattice(seed: int, x: DoubleArray, y: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Metres on the plane to the lattice of the fields, whose cells are unit squares."""
    u = np.cos(_ANGLE) * x + np.sin(_ANGLE) * y
    v = np.cos(_ANGLE) * y - np.sin(_ANGLE) * x
    for height, wavelength in _WARPS:
        u = u + height * smooth(seed, "warp u", x, y, wavelength)
        v = v + height * smooth(seed, "warp v", x, y, wavelength)
    return u / _CELL_M[0], v / _CELL_M[1]


def from_lattice(seed: int, u: DoubleArray, v: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """The inverse of `to_lattice`, by fixed-point iteration: the warps move less than their wavelength."""
    goal_x, goal_y = _unrotated(u * _CELL_M[0], v * _CELL_M[1])
    x, y = goal_x, goal_y
    # A fixed number of steps: the result for a place must not depend on the places given with it.
    for _ in range(14):
        found = to_lattice(seed, x, y)
        back_x, back_y = _unrotated(found[0] * _CELL_M[0], found[1] * _CELL_M[1])
        step_x, step_y = goal_x - back_x, goal_y - back_y
        x, y = x + step_x, y + step_y
    assert max(np.abs(step_x).max(), np.abs(step_y).max()) < 0.1, "the warps of the landscape fold over"
    return x, y


def _unrotated(u: DoubleArray, v: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    return np.cos(_ANGLE) * u - np.sin(_ANGLE) * v, np.sin(_ANGLE) * u + np.cos(_ANGLE) * v


def _nearest_fields(place: Place) -> Nearest:
    u, v = to_lattice(place.seed, place.x, place.y)
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    rows, cols = np.arange(i.min() - 2, i.max() + 3), np.arange(j.min() - 1, j.max() + 2)
    ii, jj = (index.ravel() for index in np.meshgrid(rows, cols, indexing="ij"))
    cells = Fields(place.seed, ii, jj)
    seed_u, seed_v = cells.uv
    home = (i - rows[0]) * len(cols) + (j - cols[0])
    first, second = np.full(len(u), np.inf), np.full(len(u), np.inf)
    at_first, at_second = np.zeros(len(u), np.int32), np.zeros(len(u), np.int32)
    for step in (di * len(cols) + dj for di in (-1, 0, 1) for dj in (-1, 0, 1)):
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
    owner = (cells.owner_i - rows[0]) * len(cols) + (jj - cols[0])
    at_first, at_second = owner[at_first], owner[at_second]
    used = np.zeros(len(ii), np.bool_)
    used[at_first] = used[at_second] = True
    compact = np.cumsum(used, dtype=np.int32) - 1
    fields = Fields(place.seed, ii[used], jj[used])
    return Nearest(fields, compact[at_first], compact[at_second], edge_m.astype(np.float32))


def land_of(fields: Fields, year: int) -> ByteArray:
    """What each field is in the season that is harvested in `year` (F,): an index into LANDS.

    Woods, towns and waters lie in clumps and last. Arable land takes a crop each year; each district
    prefers some crops. Drawn by the Gumbel-max trick.
    """
    share = dict(zip(LANDS, land_values("share"), strict=True))
    lasting = [name for name in LANDS if name not in (*CROPS, "fallow")]
    cells = (fields.i, fields.j)
    scores = [np.log(ARABLE_SHARE) + _gumbel(uniform(fields.seed, "kind arable", *cells))]
    for name in lasting:
        clump = 0.9 * fields.smooth(f"clump {name}", 1400.0)
        scores.append(np.log(share[name]) + clump + _gumbel(uniform(fields.seed, f"kind {name}", *cells)))
    kind = np.argmax(scores, axis=0)
    crop_scores = []
    for crop in CROPS:
        district = 0.5 * fields.smooth(f"district {crop}", 12_000.0)
        crop_scores.append(np.log(share[crop]) + district + _gumbel(fields.uniform(f"crop {crop}", year)))
    fallow = fields.uniform("fallow", year) < share["fallow"]
    arable = np.where(fallow, LANDS.index("fallow"), np.argmax(crop_scores, axis=0))
    others = np.array([0, *(LANDS.index(name) for name in lasting)])
    return np.where(kind == 0, arable, others[kind]).astype(np.uint8)


def _gumbel(chance: DoubleArray) -> DoubleArray:
    return -np.log(-np.log(chance * (1 - 2e-9) + 1e-9))


def codes_at(name: str, place: Place, year: int) -> npt.NDArray[np.int32]:
    """Codes (P,) of a map at the pixels of a place. Raises InputError for an unknown name."""
    fields, field, neighbour, edge_m = place.nearest
    land = land_of(fields, year)
    codes: npt.NDArray[Any]
    match name:
        case "truth":
            codes = land_values("eucropmap")[land[field]]
        case "eucropmap":
            confused = np.array([[LANDS.index(other) for other in to] for to in land_values("confused_with")])
            second = fields.uniform("eucropmap other", year) >= 0.7
            wrong = fields.uniform("eucropmap", year) < _MISCLASSIFIED
            mapped = np.where(wrong, confused[land, second.astype(np.intp)], land)
            # The 20 m cell decides how far, and to which side, an edge is off.
            chance = uniform(place.seed, "eucropmap edge", place.cells[1].astype(np.int64))
            over = edge_m < _EDGE_ERROR_M * (2 * chance - 1)
            codes = land_values("eucropmap")[mapped[np.where(over, neighbour, field)]]
        case "land_cover":
            share, other = land_values("land_cover_wrong")[land].T
            covers = np.where(fields.uniform("land cover") < share, other, land_values("land_cover")[land])
            reached = (land[neighbour] == LANDS.index("trees")) & (edge_m < _CANOPY_M)
            codes = np.where(reached, LAND_COVER_CODES["trees"], covers[field])
        case _:
            raise InputError(f"the simulation has no map {name!r}; it has truth, eucropmap and land_cover")
    return codes.astype(np.int32)

"""What expressions are made of: images of lazy bands, collections, dates, and pixel types.

Nothing here is computed until a `View`, the pixel grid of one request, reads a band. Geometries are
shapely geometries on the plane of the simulated world. A mask's True means valid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer
from pyproj.exceptions import CRSError

from cropray.simulation.landscape import Place, project

_MEMORY = 96 << 20  # bytes of intermediate bands that one request keeps


class ServiceError(Exception):
    """An answer of the service other than 200, with the status and the words it uses."""

    def __init__(self, message: str, code: int = 400, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.message, self.code, self.status = message, code, status


@dataclass(frozen=True)
class PixelType:
    """Precision and, of integers, the range that the values can take."""

    precision: Literal["int", "float", "double"]
    low: float = -np.inf
    high: float = np.inf

    def union(self, other: PixelType) -> PixelType:
        for precision in (DOUBLE, FLOAT):
            if precision in (self, other):
                return precision
        return PixelType("int", min(self.low, other.low), max(self.high, other.high))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest numpy type that holds the values: what a download has."""
        if self.precision != "int":
            return np.dtype(np.float32 if self.precision == "float" else np.float64)
        for candidate in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32):
            info = np.iinfo(candidate)
            if info.min <= self.low and self.high <= info.max:
                return np.dtype(candidate)
        return np.dtype(np.int64)


def int_type(dtype: npt.DTypeLike) -> PixelType:
    info = np.iinfo(dtype)
    return PixelType("int", info.min, info.max)


FLOAT, DOUBLE = PixelType("float"), PixelType("double")
BOOLEAN, BYTE, UINT16 = PixelType("int", 0, 1), int_type(np.uint8), int_type(np.uint16)


class Pixels(NamedTuple):
    values: npt.NDArray[Any]  # (H, W)
    mask: npt.NDArray[np.bool_]  # (H, W)


class View:
    """The pixel grid of one request, sampled at the centres of its pixels.

    `affine` is (a, b, c, d, e, f): x = a·col + b·row + c, y = d·col + e·row + f. Bands that were
    read are kept, the least recently used given up beyond a bound.
    """

    def __init__(self, crs: str, affine: tuple[float, ...], height: int, width: int) -> None:
        self.crs, self.affine, self.shape = crs, affine, (height, width)
        self._kept: OrderedDict[Band, Pixels] = OrderedDict()
        self._bytes = 0
        self._inside: dict[shapely.Geometry, npt.NDArray[np.bool_]] = {}

    @property
    def key(self) -> tuple[Any, ...]:
        return self.crs, self.affine, self.shape

    @cached_property
    def world(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """World coordinates (P,) of the pixel centres, row by row."""
        a, b, c, d, e, f = self.affine
        col, row = np.meshgrid(np.arange(self.shape[1]) + 0.5, np.arange(self.shape[0]) + 0.5)
        try:
            x, y = project((a * col + b * row + c).ravel(), (d * col + e * row + f).ravel(), self.crs)
        except CRSError as error:
            raise ServiceError(f"The CRS {self.crs!r} could not be parsed.") from error
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ServiceError(f"Unable to transform the requested pixels from {self.crs}.")
        return x, y

    def place(self, seed: int) -> Place:
        return Place(seed, *self.world)

    def inside(self, geometry: shapely.Geometry | None) -> npt.NDArray[np.bool_]:
        """Where (H, W) pixel centres lie in a geometry; None is unbounded."""
        if geometry is None:
            return np.ones(self.shape, np.bool_)
        if geometry not in self._inside:
            found: npt.NDArray[np.bool_] = related(shapely.contains_xy, geometry, *self.world)
            self._inside[geometry] = found.reshape(self.shape)
        return self._inside[geometry]

    def read(self, band: Band) -> Pixels:
        if band in self._kept:
            self._kept.move_to_end(band)
            return self._kept[band]
        pixels = band.pixels(self)
        assert pixels.values.shape == pixels.mask.shape == self.shape, band
        self._kept[band] = pixels
        self._bytes += pixels.values.nbytes + pixels.mask.nbytes
        while self._bytes > _MEMORY and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= old.values.nbytes + old.mask.nbytes
        return pixels

    def filled(self, value: float, *, valid: bool = True) -> Pixels:
        return Pixels(np.broadcast_to(np.asarray(value), self.shape), np.broadcast_to(valid, self.shape))


@dataclass(frozen=True, eq=False)
class Band:
    name: str
    type: PixelType
    pixels: Callable[[View], Pixels]
    footprint: shapely.Geometry | None = None  # None: unbounded

    def named(self, name: str) -> Band:
        return self if name == self.name else replace(self, name=name, pixels=lambda view: view.read(self))


@dataclass(frozen=True, eq=False)
class Image:
    bands: tuple[Band, ...]
    properties: dict[str, Any] = field(default_factory=dict)
    geometry: shapely.Geometry | None = None
    id: str = ""

    @property
    def names(self) -> list[str]:
        return [band.name for band in self.bands]

    def band(self, name: str) -> Band | None:
        return next((band for band in self.bands if band.name == name), None)

    def with_bands(self, bands: Iterable[Band]) -> Image:
        """The same image, its metadata too, of other bands."""
        return replace(self, bands=tuple(bands))

    def with_properties(self, properties: dict[str, Any]) -> Image:
        """Properties replaced; a null removes one."""
        return replace(self, properties={k: v for k, v in properties.items() if v is not None})


@dataclass(frozen=True, eq=False)
class Collection:
    elements: tuple[Image, ...]
    id: str = ""


@dataclass(frozen=True, order=True)
class Date:
    millis: float  # since 1970, UTC


@dataclass(frozen=True)
class DateRange:
    """Half-open."""

    start: Date
    end: Date


@dataclass(frozen=True)
class Algorithm:
    """A function of an expression, applied to as many values as it has arguments."""

    argument_count: int
    apply: Callable[..., Any]


Filter = Callable[[Any], bool]
"""Whether an element passes."""

_MOST_SEGMENTS = 32
_ONE_AT_A_TIME = Lock()


def related(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function of shapely of geometries that threads share: GEOS indexes them when it is first asked,
    in place, and threads that meet there bring the process down.
    """
    with _ONE_AT_A_TIME:
        return function(*arguments)


def geometry_in_world(shape: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A geometry of straight edges in a CRS, on the plane of the world, its edges densified."""
    longest = max(1e-9, *(shape.bounds[i + 2] - shape.bounds[i] for i in (0, 1)))
    dense = shapely.segmentize(shape, longest / _MOST_SEGMENTS)
    return shapely.transform(dense, lambda xy: np.stack(project(*xy.T, crs), axis=-1))


def geometry_from_world(shape: shapely.Geometry) -> dict[str, Any]:
    """GeoJSON in longitude and latitude."""
    transformer = Transformer.from_crs("EPSG:3035", "EPSG:4326", always_xy=True)
    lonlat = shapely.transform(shape, lambda xy: np.stack(transformer.transform(*xy.T), axis=-1))
    return shapely.geometry.mapping(lonlat)

"""Arithmetic of images, pixel by pixel: matching of bands, masks and types of the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from tests.earthengine_server.functions import function
from tests.earthengine_server.values import (
    BOOLEAN,
    DOUBLE,
    FLOAT,
    Band,
    Image,
    Pixels,
    PixelType,
    ServiceError,
    View,
    int_type,
    related,
)

_Values = npt.NDArray[Any]
_INT64 = int_type(np.int64)


def matched(one: Image, two: Image, caller: str) -> list[tuple[str, Band, Band]]:
    """Pairs of bands and the name of each result, as every function of two images documents it.

    An image of one band is used against all of the other. As many bands are paired by name where the
    names are the same, else in their order. The names are those of the longer, or of the first.
    """
    first, second = one.bands, two.bands
    if len(first) == len(second):
        if set(one.names) == set(two.names):
            second = tuple(band for name in one.names if (band := two.band(name)) is not None)
        return [(a.name, a, b) for a, b in zip(first, second, strict=True)]
    if len(second) == 1:
        return [(a.name, a, second[0]) for a in first]
    if len(first) == 1:
        return [(b.name, first[0], b) for b in second]
    raise ServiceError(f"{caller}: images of {len(first)} and {len(second)} bands do not match.")


def _binary(
    name: str,
    operate: Callable[[_Values, _Values], _Values],
    result: Callable[[PixelType, PixelType], PixelType],
) -> None:
    @function(name)
    def body(one: Image, two: Image) -> Image:
        def of(label: str, a: Band, b: Band) -> Band:
            held = result(a.type, b.type)

            def read(view: View) -> Pixels:
                (x, x_valid), (y, y_valid) = view.read(a), view.read(b)
                working = np.int64 if held.precision == "int" else np.float64
                with np.errstate(all="ignore"):
                    values = operate(x.astype(working, copy=False), y.astype(working, copy=False))
                return Pixels(values.astype(_storage(held), copy=False), x_valid & y_valid)

            return Band(label, held, read, _common(a.footprint, b.footprint))

        # Properties are dropped, as the service drops the times of what `divide` gives.
        return Image(tuple(of(*pair) for pair in matched(one, two, name)), geometry=one.geometry)


def _comparison(name: str, operate: Callable[[_Values, _Values], _Values]) -> None:
    @function(name)
    def body(one: Image, two: Image) -> Image:
        def of(label: str, a: Band, b: Band) -> Band:
            def read(view: View) -> Pixels:
                (x, x_valid), (y, y_valid) = view.read(a), view.read(b)
                return Pixels(operate(x, y).astype(np.uint8), x_valid & y_valid)

            return Band(label, BOOLEAN, read, _common(a.footprint, b.footprint))

        return Image(tuple(of(*pair) for pair in matched(one, two, name)), geometry=one.geometry)


def _unary(
    name: str, operate: Callable[[_Values], _Values], result: Callable[[PixelType], PixelType]
) -> None:
    @function(name)
    def body(image: Image) -> Image:
        def of(band: Band) -> Band:
            held = result(band.type)

            def read(view: View) -> Pixels:
                values, valid = view.read(band)
                with np.errstate(all="ignore"):
                    found = operate(values.astype(np.float64)).astype(_storage(held), copy=False)
                # A logarithm or root that does not exist is masked.
                return Pixels(np.where(np.isfinite(found), found, 0), valid & np.isfinite(found))

            return Band(band.name, held, read, band.footprint)

        return Image(tuple(map(of, image.bands)), geometry=image.geometry)


def _storage(held: PixelType) -> npt.DTypeLike:
    return np.int64 if held.precision == "int" else held.dtype


def _common(one: shapely.Geometry | None, two: shapely.Geometry | None) -> shapely.Geometry | None:
    """Assumed: what two images give is where both are."""
    if one is None or two is None or one is two:
        return two if one is None else one
    return related(shapely.intersection, one, two)


def _ranged(operate: Callable[[float, float], float]) -> Callable[[PixelType, PixelType], PixelType]:
    """The union of the types; of integers the range that the operation can reach."""

    def result(a: PixelType, b: PixelType) -> PixelType:
        union = a.union(b)
        if union.precision != "int":
            return union
        ends = [operate(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return PixelType("int", max(min(ends), _INT64.low), min(max(ends), _INT64.high))

    return result


def _fractional(a: PixelType, b: PixelType) -> PixelType:
    """Of integers float: DN / 10000 is a float image."""
    union = a.union(b)
    return FLOAT if union.precision == "int" else union


def _real(a: PixelType) -> PixelType:
    """Assumed: float stays float, all else becomes double."""
    return FLOAT if a == FLOAT else DOUBLE


def _divided(x: _Values, y: _Values) -> _Values:
    return np.where(y == 0, 0, x / np.where(y == 0, 1, y))


_binary("Image.add", np.add, _ranged(lambda x, y: x + y))
_binary("Image.subtract", np.subtract, _ranged(lambda x, y: x - y))
_binary("Image.multiply", np.multiply, _ranged(lambda x, y: x * y))
_binary("Image.divide", _divided, _fractional)
_binary("Image.pow", np.power, _fractional)
_binary("Image.min", np.minimum, PixelType.union)
_binary("Image.max", np.maximum, PixelType.union)
_comparison("Image.eq", np.equal)
_comparison("Image.neq", np.not_equal)
_comparison("Image.gt", np.greater)
_comparison("Image.gte", np.greater_equal)
_comparison("Image.lt", np.less)
_comparison("Image.lte", np.less_equal)
_comparison("Image.and", lambda x, y: (x != 0) & (y != 0))
_comparison("Image.or", lambda x, y: (x != 0) | (y != 0))
_unary("Image.abs", np.abs, lambda a: a)
_unary("Image.exp", np.exp, _real)
_unary("Image.log", np.log, _real)
_unary("Image.log10", np.log10, _real)
_unary("Image.sqrt", np.sqrt, _real)
_unary("Image.not", lambda x: x == 0, lambda _: BOOLEAN)
# Halves are rounded up (documented for Number.round), unlike numpy's.
_unary("Image.round", lambda x: np.floor(x + 0.5), lambda a: a if a.precision == "int" else _INT64)


@function("Image.clamp")
def clamp(image: Image, low: float, high: float) -> Image:
    """Assumed: the type stays; of integers the range narrows."""

    def of(band: Band) -> Band:
        held = band.type
        if held.precision == "int":
            held = PixelType("int", *np.clip((held.low, held.high), low, high).tolist())

        def read(view: View) -> Pixels:
            values, valid = view.read(band)
            return Pixels(np.clip(values, low, high), valid)

        return Band(band.name, held, read, band.footprint)

    return Image(tuple(map(of, image.bands)), geometry=image.geometry)

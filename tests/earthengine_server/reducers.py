"""Reducers: over the images of a collection, and over the bands of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer

from tests.earthengine_server.functions import function
from tests.earthengine_server.values import (
    BOOLEAN,
    DOUBLE,
    FLOAT,
    Band,
    Collection,
    Image,
    Pixels,
    PixelType,
    ServiceError,
    View,
    int_type,
)


class Reducer(NamedTuple):
    """`reduce` takes values (N, H, W) and masks (N, H, W) and gives values (H, W) of the valid."""

    output: str
    reduce: Callable[[npt.NDArray[Any], npt.NDArray[np.bool_]], npt.NDArray[Any]]
    type: Callable[[PixelType], PixelType]
    empty: float | None = None  # the result where nothing is valid; None: masked there


def _average_type(held: PixelType) -> PixelType:
    """Median and mean of integers are double, of floats float."""
    return FLOAT if held == FLOAT else DOUBLE


def _median(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Of an even number the mean of the two in the middle."""
    ordered = np.sort(np.where(valid_nhw, values_nhw, np.inf), axis=0)
    count = valid_nhw.sum(axis=0)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(ordered) - 1)
    middle = [np.take_along_axis(ordered, at[None], axis=0)[0] for at in (low, high)]
    return np.where(count > 0, (middle[0] + middle[1]) / 2, 0)


def _sum(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.where(valid_nhw, values_nhw.astype(np.float64), 0).sum(axis=0)


def _mean(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return _sum(values_nhw, valid_nhw) / np.maximum(valid_nhw.sum(axis=0), 1)


def _least(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.where(valid_nhw, values_nhw, np.inf).min(axis=0)


def _most(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.where(valid_nhw, values_nhw, -np.inf).max(axis=0)


def _all(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return (~valid_nhw | (values_nhw != 0)).all(axis=0)


def _any(values_nhw: npt.NDArray[Any], valid_nhw: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return (valid_nhw & (values_nhw != 0)).any(axis=0)


_COUNT_TYPE = int_type(np.int32)
_REDUCERS = {
    "median": Reducer("median", _median, _average_type),
    "mean": Reducer("mean", _mean, _average_type),
    "sum": Reducer("sum", _sum, lambda _: DOUBLE),
    "min": Reducer("min", _least, lambda held: held),
    "max": Reducer("max", _most, lambda held: held),
    "count": Reducer("count", lambda _, valid_nhw: valid_nhw.sum(axis=0), lambda _: _COUNT_TYPE, 0),
    "allNonZero": Reducer("all", _all, lambda _: BOOLEAN),
    "anyNonZero": Reducer("any", _any, lambda _: BOOLEAN),
}


def reduced(name: str, bands: Sequence[Band], reducer: Reducer) -> Band:
    """One band of what a stack of bands holds at each pixel."""
    held = bands[0].type
    for band in bands[1:]:
        held = held.union(band.type)
    result = reducer.type(held)

    def read(view: View) -> Pixels:
        values_nhw, valid_nhw = (np.stack(parts) for parts in zip(*map(view.read, bands), strict=True))
        valid = valid_nhw.any(axis=0)
        values = reducer.reduce(values_nhw, valid_nhw)
        if reducer.empty is None:
            values = np.where(valid, values, 0)
        else:
            valid = view.filled(0).mask
        return Pixels(values.astype(result.dtype, copy=False), valid)

    return Band(name, result, read)  # a composite's footprint is unbounded


def _stacks(collection: Collection) -> dict[str, list[Band]]:
    """The bands of each name, first to last; an empty collection has none.

    Collections that are not homogeneous are refused. The service does so where "some bands might
    require explicit casts"; of which functions and how far is not documented, so here it is always.
    """
    stacks: dict[str, list[Band]] = {}
    for image in collection.elements:
        for band in image.bands:
            stacks.setdefault(band.name, []).append(band)
    for name, bands in stacks.items():
        if len(bands) < len(collection.elements) or len({band.type.precision for band in bands}) > 1:
            raise ServiceError(
                "Expected a homogeneous image collection, but an image with incompatible bands was "
                f"encountered (band '{name}'). Some bands might require explicit casts."
            )
    return stacks


def _over_images(collection: Collection, reducer: Reducer, suffix: str = "") -> Image:
    return Image(tuple(reduced(name + suffix, bands, reducer) for name, bands in _stacks(collection).items()))


def _register() -> None:
    def shortcut(reducer: Reducer) -> Callable[[Collection], Image]:
        return lambda collection: _over_images(collection, reducer)

    def maker(reducer: Reducer) -> Callable[[], Reducer]:
        return lambda: reducer

    for name, reducer in _REDUCERS.items():
        function(f"Reducer.{name}")(maker(reducer))
        if name not in ("allNonZero", "anyNonZero"):
            function(f"reduce.{name}")(shortcut(reducer))


_register()


@function("Reducer.unweighted")
def unweighted(reducer: Reducer) -> Reducer:
    """Weights of pixels at an edge are not evaluated here: `reduce_region` has none."""
    return reducer


@function("Image.reduceRegion")
def reduce_region(
    image: Image,
    reducer: Reducer,
    geometry: shapely.Geometry,
    scale: float | None,
    crs: str,
    transform: list[float],
) -> dict[str, float | None]:
    """Of the pixels of the grid whose centres lie inside. Only a grid by CRS and transform is evaluated."""
    if scale is not None or geometry is None:
        raise ServiceError("Image.reduceRegion: wanted a geometry, a CRS and a transform, and no scale.")
    a, b, c, d, e, f = transform
    if b or d:
        raise ServiceError("Image.reduceRegion: a rotated grid is not evaluated by this server.")
    to_crs = Transformer.from_crs("EPSG:3035", crs, always_xy=True)
    corners = shapely.transform(geometry, to_crs.transform, interleaved=False).bounds
    cols = sorted((x - c) / a for x in corners[::2])
    rows = sorted((y - f) / e for y in corners[1::2])
    # The smallest such grid around the geometry, with one pixel to spare for its edges that bend.
    left, top = math.floor(cols[0]) - 1, math.floor(rows[0]) - 1
    height, width = math.ceil(rows[1]) + 1 - top, math.ceil(cols[1]) + 1 - left
    view = View(crs, (a, b, c + left * a, d, e, f + top * e), height, width)
    inside = view.inside(geometry)
    results: dict[str, float | None] = {}
    for band in image.bands:
        values, valid = view.read(band)
        counted = (valid & inside).reshape(-1, 1, 1)
        found = reducer.reduce(values.reshape(-1, 1, 1), counted)[0, 0]
        results[band.name] = float(found) if counted.any() or reducer.empty is not None else None
    return results


@function("ImageCollection.reduce")
def reduce_collection(collection: Collection, reducer: Reducer) -> Image:
    return _over_images(collection, reducer, f"_{reducer.output}")


@function("Image.reduce")
def reduce_image(image: Image, reducer: Reducer) -> Image:
    if not image.bands:
        raise ServiceError("Image.reduce: the image has no bands.")
    return Image((reduced(reducer.output, image.bands, reducer),), geometry=image.geometry)


@function("ImageCollection.mosaic")
def mosaic(collection: Collection) -> Image:
    """The last image of the collection lies on top."""
    return Image(tuple(_laid(name, bands) for name, bands in _stacks(collection).items()))


def _laid(name: str, bottom_up: Sequence[Band]) -> Band:
    held = bottom_up[0].type
    for band in bottom_up[1:]:
        held = held.union(band.type)

    def read(view: View) -> Pixels:
        values, valid = view.read(bottom_up[-1])
        for band in bottom_up[-2::-1]:
            if valid.all():
                break
            below, there = view.read(band)
            values, valid = np.where(valid, values, below), valid | there
        return Pixels(values, valid)

    return Band(name, held, read)

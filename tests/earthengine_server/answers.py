"""What the service answers to a computation: pixels as NPY, values as JSON, within its limits."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from tests.earthengine_server.catalogue import Catalogue
from tests.earthengine_server.graph import Graph
from tests.earthengine_server.values import (
    Collection,
    Date,
    Image,
    PixelType,
    ServiceError,
    View,
    geometry_from_world,
)


@dataclass(frozen=True)
class Limits:
    """Published limits of a request, and `work` (pixels times bands) at which memory is said to end."""

    response_bytes: int = 50_331_648  # a byte a pixel and band more than the values: the mask
    side: int = 32_768
    bands: int = 1_024
    body_bytes: int = 10 << 20
    in_flight: int = 40
    per_second: int = 100
    work: float = float("inf")


def compute_pixels(body: Mapping[str, Any], catalogue: Catalogue, limits: Limits) -> bytes:
    """An NPY file of a structured array (H, W), a field a band; masked pixels are 0.

    Raises ServiceError.
    """
    if body.get("fileFormat") != "NPY":
        raise ServiceError(
            f"fileFormat {body.get('fileFormat')!r} is not written by this server; wanted NPY."
        )
    view = view_of(body.get("grid"))
    image = Graph(body["expression"], catalogue).value()
    if not isinstance(image, Image):
        raise ServiceError(f"The expression is of type {type(image).__name__}; wanted an Image.")
    bands = image.bands
    if "bandIds" in body:
        missing = [name for name in body["bandIds"] if image.band(name) is None]
        if missing:
            raise ServiceError(f"Band '{missing[0]}' not found. Available bands: {image.names}")
        bands = tuple(band for name in body["bandIds"] if (band := image.band(name)) is not None)
    if not bands:
        raise ServiceError("Image has no bands.")
    _check_size(view, [band.type for band in bands], limits)
    table = np.zeros(view.shape, [(band.name, band.type.dtype) for band in bands])
    for band in bands:
        values, valid = view.read(band)
        table[band.name] = np.where(valid, values, 0)
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def _check_size(view: View, types: list[PixelType], limits: Limits) -> None:
    height, width = view.shape
    if max(view.shape) > limits.side:
        raise ServiceError(
            f"Pixel grid dimensions ({width}x{height}) must be less than or equal to {limits.side}."
        )
    if len(types) > limits.bands:
        raise ServiceError(f"Number of bands ({len(types)}) must be less than or equal to {limits.bands}.")
    size = height * width * sum(held.dtype.itemsize + 1 for held in types)
    if size > limits.response_bytes:
        raise ServiceError(
            f"Total request size ({size} bytes) must be less than or equal to {limits.response_bytes} bytes."
        )
    if height * width * len(types) > limits.work:
        raise ServiceError("User memory limit exceeded.")


def view_of(grid: Mapping[str, Any] | None) -> View:
    """The view of a request's grid. Raises ServiceError."""
    if grid is None:
        raise ServiceError("Requests without a grid are not evaluated by this server.")
    try:
        affine, dimensions = grid["affineTransform"], grid["dimensions"]
        names = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
        coefficients = tuple(float(affine.get(name, 0.0)) for name in names)
        height, width = int(dimensions["height"]), int(dimensions["width"])
        crs = str(grid.get("crsCode") or grid["crsWkt"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"The grid of the request is not complete: {error!r}.") from error
    if height < 1 or width < 1:
        raise ServiceError(f"Pixel grid dimensions ({width}x{height}) must be positive.")
    return View(crs, coefficients, height, width)


def compute_value(body: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """The JSON of a computed value. Raises ServiceError."""
    return {"result": _described(Graph(body["expression"], catalogue).value())}


def _described(value: Any) -> Any:
    match value:
        case Date():
            return {"type": "Date", "value": value.millis}
        case shapely.Geometry():
            return geometry_from_world(value)
        case list():
            return [_described(item) for item in value]
        case dict():
            return {name: _described(item) for name, item in value.items()}
        case Collection():
            features = [_described(element) for element in value.elements]
            return {"type": "ImageCollection", "id": value.id, "features": features}
        case Image():
            return {
                "type": "Image",
                "id": value.id,
                "properties": _described(value.properties),
                "bands": [{"id": band.name, "data_type": _pixel_type(band.type)} for band in value.bands],
            }
        case None | bool() | int() | float() | str():
            return value
    raise ServiceError(f"A value of type {type(value).__name__} cannot be sent.")


def _pixel_type(held: PixelType) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "PixelType", "precision": held.precision}
    if held.precision == "int":
        described |= {"min": held.low, "max": held.high}
    return described

"""Functions of images: bands, masks, footprints.

Semantics are those of https://developers.google.com/earth-engine/apidocs (the descriptions that the
client ships in `ee/tests/algorithms.json` are the same). Where they are silent, the comment says what
is assumed. Arithmetic is in `arithmetic`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import shapely

from tests.earthengine_server.functions import function
from tests.earthengine_server.values import (
    DOUBLE,
    FLOAT,
    Band,
    Collection,
    Date,
    Image,
    Pixels,
    PixelType,
    ServiceError,
    View,
    int_type,
    related,
)

_INTEGERS = {f"{sign}int{bits}": int_type(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32)}
_INTEGERS |= {"byte": int_type(np.uint8), "short": int_type(np.int16), "int": int_type(np.int32)}
_INTEGERS |= {"int64": int_type(np.int64), "long": int_type(np.int64)}
_PIXEL_TYPES = _INTEGERS | {"float": FLOAT, "double": DOUBLE}


@function("Image.constant")
def constant(value: Any) -> Image:
    values = value if isinstance(value, list) else [value]
    names = ["constant"] if not isinstance(value, list) else [f"constant_{i}" for i in range(len(values))]
    return Image(tuple(_constant_band(n, v) for n, v in zip(names, values, strict=True)))


def _constant_band(name: str, value: float) -> Band:
    whole = isinstance(value, (int, np.integer))
    held = PixelType("int", value, value) if whole else DOUBLE
    return Band(name, held, lambda view: view.filled(value))


@function("Image.select")
def select(image: Image, selectors: Any, names: list[str] | None) -> Image:
    chosen: list[Band] = []
    for selector in selectors if isinstance(selectors, list) else [selectors]:
        if isinstance(selector, str):
            found = [image.band(selector)] if image.band(selector) else _matching(image, selector)
        else:
            found = list(image.bands[int(selector) : int(selector) + 1])
        if not found:
            raise ServiceError(
                f"Image.select: Band pattern '{selector}' did not match any bands. "
                f"Available bands: [{', '.join(image.names)}]"
            )
        chosen += [band for band in found if band is not None]
    if names is None:
        names = [band.name for band in chosen]
    return _renamed(image.with_bands(chosen), names, "Image.select")


def _matching(image: Image, pattern: str) -> list[Band | None]:
    return [band for band in image.bands if re.fullmatch(pattern, band.name)]


@function("Image.rename")
def rename(image: Image, names: list[str]) -> Image:
    return _renamed(image, names, "Image.rename")


def _renamed(image: Image, names: list[str], caller: str) -> Image:
    if len(names) != len(image.bands):
        raise ServiceError(
            f"{caller}: the input has {len(image.bands)} bands, but there are {len(names)} names."
        )
    if len(set(names)) != len(names):
        raise ServiceError(f"{caller}: duplicate band name among {names}.")
    return image.with_bands(band.named(name) for band, name in zip(image.bands, names, strict=True))


@function("Image.addBands")
def add_bands(image: Image, source: Image, names: list[str] | None, overwrite: bool) -> Image:
    """A name that is there already gets a suffix (_1, _2, …), unless it is to be overwritten."""
    added = source if names is None else select(source, names, None)
    bands = {band.name: band for band in image.bands}
    for band in added.bands:
        name, number = band.name, 0
        while name in bands and not overwrite:
            number += 1
            name = f"{band.name}_{number}"
        bands[name] = band.named(name)
    return image.with_bands(bands.values())


@function("Image.bandNames")
def band_names(image: Image) -> list[str]:
    return image.names


@function("Image.mask")
def mask(image: Image, new: Image | None) -> Image:
    if new is not None:
        raise ServiceError("Image.mask: argument 'mask' is not evaluated by this server; use updateMask.")

    def of(band: Band) -> Band:
        # Assumed: masks are float and the image of them is valid everywhere.
        def read(view: View) -> Pixels:
            return Pixels(view.read(band).mask.astype(np.float32), view.filled(0).mask)

        return Band(band.name, FLOAT, read)

    return image.with_bands(map(of, image.bands))


@function("Image.updateMask")
def update_mask(image: Image, new: Image) -> Image:
    def of(band: Band, by: Band) -> Band:
        def read(view: View) -> Pixels:
            values, valid = view.read(band)
            return Pixels(values, valid & _as_mask(view.read(by)))

        return replace(band, pixels=read)

    return image.with_bands(of(band, by) for band, by in _each_with(image, new, "Image.updateMask"))


@function("Image.selfMask")
def self_mask(image: Image) -> Image:
    return update_mask(image, image)


def _as_mask(pixels: Pixels) -> np.ndarray[Any, np.dtype[np.bool_]]:
    values, valid = pixels
    # Fractions would weight reducers; whoever sends one by mistake should hear of it.
    if (valid & (values > 0) & (values < 1)).any():
        raise ServiceError("Fractional masks are not evaluated by this server; compare with a threshold.")
    return valid & (values > 0)


@function("Image.unmask")
def unmask(image: Image, value: Any, same_footprint: bool) -> Image:
    fill = constant(0) if value is None else value if isinstance(value, Image) else constant(value)

    def of(band: Band, by: Band) -> Band:
        def read(view: View) -> Pixels:
            (values, valid), (filling, fills) = view.read(band), view.read(by)
            there = view.inside(band.footprint) if same_footprint else view.filled(0).mask
            return Pixels(np.where(valid, values, filling), valid | (fills & there))

        footprint = band.footprint if same_footprint else None
        return Band(band.name, band.type.union(by.type), read, footprint)

    return image.with_bands(of(band, by) for band, by in _each_with(image, fill, "Image.unmask"))


@function("Image.where")
def where(image: Image, test: Image, value: Image) -> Image:
    def of(band: Band, condition: Band, by: Band) -> Band:
        def read(view: View) -> Pixels:
            (values, valid), (tested, known), (other, there) = map(view.read, (band, condition, by))
            return Pixels(np.where((tested != 0) & known & there, other, values), valid)

        return Band(band.name, band.type.union(by.type), read, band.footprint)

    tests, values = (_each_with(image, other, "Image.where") for other in (test, value))
    return image.with_bands(of(band, t, v) for (band, t), (_, v) in zip(tests, values, strict=True))


@function("Image.clip")
def clip(image: Image, geometry: Any) -> Image:
    area: shapely.Geometry = geometry.geometry if isinstance(geometry, Image) else geometry

    def of(band: Band) -> Band:
        footprint = area if band.footprint is None else related(shapely.intersection, band.footprint, area)
        return replace(
            band,
            footprint=footprint,
            pixels=lambda view: Pixels(view.read(band).values, view.read(band).mask & view.inside(area)),
        )

    return image.with_bands(map(of, image.bands))


@function("Image.remap")
def remap(image: Image, src: list[float], dst: list[float], default: Any, name: str | None) -> Image:
    """The one band becomes `remapped`; assumed to be int where all that it can become is."""
    band = image.band(name) if name else image.bands[0]
    if band is None or len(src) != len(dst):
        raise ServiceError(f"Image.remap: no band {name!r}, or lists of {len(src)} and {len(dst)} values.")
    results = [*dst, *([] if default is None else [default])]
    whole = all(float(value).is_integer() for value in results)
    held = PixelType("int", min(results), max(results)) if whole else DOUBLE

    def read(view: View) -> Pixels:
        values, valid = view.read(band)
        mapped = np.full(values.shape, 0 if default is None else default, held.dtype)
        known = np.zeros(values.shape, np.bool_)
        for before, after in zip(src, dst, strict=True):
            here = values == before
            mapped[here], known[here] = after, True
        return Pixels(mapped, valid & known if default is None else valid)

    return Image((Band("remapped", held, read, band.footprint),), image.properties, image.geometry)


@function("Image.linkCollection")
def link_collection(image: Image, others: Collection, bands: Any, properties: Any, key: str | None) -> Image:
    """Bands that are there are overwritten; without a match the linked bands are all masked."""
    names = [bands] if isinstance(bands, str) else bands or []
    key = key or "system:index"
    wanted = image.properties.get(key)
    match = next((other for other in others.elements if other.properties.get(key) == wanted), None)
    if match is not None and wanted is not None:
        linked = select(match, names, None)
        extra = {name: match.properties.get(name) for name in properties or []}
    else:
        linked = Image(tuple(Band(n, FLOAT, lambda view: view.filled(0, valid=False)) for n in names))
        extra = dict.fromkeys(properties or [])
    joined = add_bands(image, linked, None, True)
    return joined.with_properties({**image.properties, **extra})


@function("Image.date")
def image_date(image: Image) -> Date:
    return Date(image.properties["system:time_start"])


@function("Image.geometry", "Element.geometry")
def geometry(image: Image) -> shapely.Geometry | None:
    return image.geometry


def _each_with(image: Image, other: Image, caller: str) -> list[tuple[Band, Band]]:
    """Each band of the image with the one band of the other, or with its own."""
    if len(other.bands) == 1:
        return [(band, other.bands[0]) for band in image.bands]
    if len(other.bands) != len(image.bands):
        raise ServiceError(f"{caller}: {len(image.bands)} bands and {len(other.bands)} bands.")
    return list(zip(image.bands, other.bands, strict=True))


def cast(values: np.ndarray[Any, Any], target: PixelType) -> np.ndarray[Any, Any]:
    """Integers are truncated and clamped, as documented for Number.toInt16 and its like."""
    if target.precision != "int":
        return values.astype(target.dtype)
    info = np.iinfo(target.dtype)
    if values.dtype.kind == "f":
        values = np.trunc(np.nan_to_num(values))
    return np.clip(values, info.min, info.max).astype(target.dtype)


def _register_casts() -> None:
    def caster(target: PixelType) -> Any:
        def body(image: Image) -> Image:
            def of(band: Band) -> Band:
                def read(view: View) -> Pixels:
                    values, valid = view.read(band)
                    return Pixels(cast(values, target), valid)

                return Band(band.name, target, read, band.footprint)

            return Image(tuple(map(of, image.bands)), geometry=image.geometry)

        return body

    for name, target in _PIXEL_TYPES.items():
        function(f"Image.{name}", f"Image.to{name.capitalize()}")(caster(target))


_register_casts()

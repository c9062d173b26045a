"""Metadata of STAC items: which asset holds a band, how its numbers become physical, which orbit.

Pure functions of `pystac.Item`. Metadata that are missing or ambiguous are an InputError that names the item;
nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import pystac
import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from cropray.bands import S1_NAMES
from cropray.config.imagery import StacSentinel1Config, StacSentinel2Config
from cropray.errors import InputError
from cropray.imagery.longitudes import within_180

# Sentinel-2 Products Specification Document: since processing baseline 04.00 (25 January 2022, and older
# scenes processed again) numbers carry BOA_ADD_OFFSET, -1000 over the quantification value of 10000.
_OFFSET_BASELINE, _BOA_OFFSET = 4.0, -0.1
_DEFAULT_SCALE = 1e-4
_MADE = ("processing:datetime", "s1:processing_datetime", "created", "updated")  # when a scene was processed
_BASELINES = ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline")
_PRODUCTS = ("s2:product_uri", "sentinel:product_id")
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")  # Earth Search v1 and v0
_QUANTITIES = ("gamma0", "sigma0")
_UNITS = {"db": "dB", "decibel": "dB", "power": "linear", "linear": "linear"}


class Scaling(NamedTuple):
    """`physical = number * scale + offset`."""

    scale: float
    offset: float


class Backscatter(NamedTuple):
    """What calibrated radar numbers mean."""

    quantity: str  # "gamma0" or "sigma0"
    unit: str  # "linear" or "dB"


def item_time(item: pystac.Item) -> datetime:
    """The time of acquisition in UTC: `datetime`, or `start_datetime` where that is null."""
    when = item.datetime or item.common_metadata.start_datetime
    if when is None:
        raise InputError(f"{_name(item)} has neither datetime nor start_datetime")
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def provenance(item: pystac.Item) -> dict[str, Any]:
    """`name`, `platform` and `revision` of a scene. What the item does not state is empty or 0."""
    number = re.search(r"\d+(\.\d+)?", _stated_baseline(item))
    baseline = float(number[0]) if number else 0.0
    made = next((str(item.properties[key]) for key in _MADE if item.properties.get(key)), "")
    # "sentinel-2a", "Sentinel-2A" and "S2A" are one platform. "sentinel-2" names none.
    platform = re.search(r"[12][a-d]$", str(item.properties.get("platform") or "").lower().strip())
    return {
        "name": item.id,
        "platform": platform[0] if platform else "",
        "revision": (baseline, made),
    }


def footprint(item: pystac.Item) -> BaseGeometry:
    """The geometry of the item (lon, lat), see `within_180`. Raises InputError where it has none."""
    if item.geometry is None:
        raise InputError(f"{_name(item)} has no geometry")
    try:
        with np.errstate(invalid="ignore"):  # of NaN, which the next line finds
            region = shape(item.geometry)
        if not np.isfinite(shapely.get_coordinates(region)).all():
            raise ValueError("its coordinates are not all numbers")
        return within_180(region)
    except (ShapelyError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise InputError(f"{_name(item)} has a geometry that is no GeoJSON: {error}") from error


def find_asset(item: pystac.Item, aliases: Sequence[str], key: str = "") -> pystac.Asset:
    """The asset of a band: the one of `key` if it is given, else by its key or its metadata.

    Keys are an alias, or one with a resolution (B02_10m; the finest is taken) or a quantity (gamma0_vv). Else
    the asset is taken whose only band has an alias as name or common name, and of several (one for each
    resolution) that with the smallest `gsd`. Raises InputError that lists the assets.
    """
    known = f"its assets are {', '.join(item.assets) or 'none'}"
    if key:
        if key in item.assets:
            return item.assets[key]
        raise InputError(f"{_name(item)} has no asset {key!r} for {aliases[0]}; {known}")
    for alias in aliases:
        for name in (alias, *(f"{alias}_{resolution}m" for resolution in (10, 20, 60))):
            if name in item.assets:
                return item.assets[name]
        by_quantity = [name for name in (f"{which}_{alias}" for which in _QUANTITIES) if name in item.assets]
        if len(by_quantity) == 1:
            return item.assets[by_quantity[0]]
    for alias in aliases:
        named = [asset for asset in item.assets.values() if alias in _band_names(asset)]
        if named:
            return min(named, key=lambda asset: _number(item, asset, "gsd") or math.inf)
    sensor = "s1" if aliases[0].upper() in S1_NAMES else "s2"
    raise InputError(
        f"{_name(item)} has no asset for {aliases[0]}: wanted a key, band name or eo:common_name of "
        f"{', '.join(aliases)}; {known}. Name the right one in source.stac.{sensor}.assets."
    )


def reflectance_scaling(item: pystac.Item, asset: pystac.Asset, config: StacSentinel2Config) -> Scaling:
    """Scale and offset of a Sentinel-2 L2A band.

    The offset is, in this order: `config.offset`; 0 for `earthsearch:boa_offset_applied: true` (of version 0,
    `sentinel:boa_offset_applied`; set where the pixels were shifted, while the band metadata keep the
    product's offset); the band's `raster:offset` or the processing baseline's (-0.1 from 04.00), where both
    are given only if they agree. A `raster:offset` of 0 under a later baseline means that the offset was
    applied, unless the flag is false.

    Raises InputError where nothing is stated, or statements contradict each other.
    """
    scale = _number(item, asset, "raster:scale", _DEFAULT_SCALE)
    if not scale > 0:
        raise InputError(f"{_name(item)} has the raster:scale {scale:g}; wanted is a positive number")
    if config.offset is not None:
        return Scaling(scale, config.offset)
    applied = _first(item, _APPLIED)
    if applied is True:
        return Scaling(scale, 0.0)
    stated, baseline = _number(item, asset, "raster:offset"), _baseline(item)
    expected = None if baseline is None else _BOA_OFFSET if baseline >= _OFFSET_BASELINE else 0.0
    hint = "set source.stac.s2.offset (-0.1: apply it; 0: there is none, or it is applied already)"
    if stated is None:
        if expected is None:
            raise InputError(
                f"{_name(item)} does not say whether its numbers carry the offset of -1000 of baseline "
                "04.00: it has no s2:processing_baseline (or processing:version), no raster:bands offset "
                f"and no earthsearch:boa_offset_applied; {hint}"
            )
        return Scaling(scale, expected)
    if expected is None:
        return Scaling(scale, stated)
    if abs(stated - expected) < 1e-9 or (stated == 0 and applied is None):
        return Scaling(scale, stated)
    flag = "" if applied is None else f", earthsearch:boa_offset_applied is {applied}"
    raise InputError(
        f"{_name(item)} contradicts itself: processing baseline {baseline:05.2f} means an offset of "
        f"{expected:g}, its band metadata say {stated:g}{flag}; {hint}"
    )


def backscatter(item: pystac.Item, asset: pystac.Asset, config: StacSentinel1Config) -> Backscatter:
    """What the numbers of a Sentinel-1 band mean, by the item or, where it says nothing, by the settings.

    Reads `card4l:measurement_type` or the asset's role, and the band's `raster:unit` or
    `card4l:measurement_convention`. Raises InputError for items that are known not to be calibrated or
    geocoded, and where settings contradict the item.
    """
    if not any(_stated(item, asset, f"proj:{key}") for key in ("code", "epsg", "wkt2", "projjson")):
        raise InputError(
            f"{_name(item)} is not geocoded (no proj:code, proj:epsg, proj:wkt2 or proj:projjson). Raw GRD "
            "in radar geometry cannot be used; wanted is terrain-corrected backscatter"
        )
    convention = _stated(item, asset, "raster:unit") or item.properties.get("card4l:measurement_convention")
    unit = _UNITS.get(str(convention).lower(), "") if convention else ""
    if convention and not unit:
        raise InputError(f"{_name(item)} holds {convention!r}; wanted is linear power or dB")
    roles = [role for role in asset.roles or () if role in _QUANTITIES]
    quantity = str(item.properties.get("card4l:measurement_type", "".join(roles)))
    if quantity not in ("", "gamma0", "sigma0"):
        raise InputError(f"{_name(item)} holds {quantity!r}; wanted is gamma0 or sigma0")
    found = Backscatter(
        _either(item, "quantity", quantity, config.quantity), _either(item, "unit", unit, config.unit)
    )
    data_type = str(_stated(item, asset, "raster:data_type", ""))
    if found.unit == "linear" and "int" in data_type and _stated(item, asset, "raster:scale") is None:
        raise InputError(
            f"{_name(item)} holds {data_type} without a scale, like the digital numbers of raw GRD, which "
            "are not calibrated; wanted is gamma0 or sigma0"
        )
    return found


def backscatter_scaling(item: pystac.Item, asset: pystac.Asset) -> Scaling:
    """Scale and offset of a Sentinel-1 band, 1 and 0 where none are stated."""
    return Scaling(_number(item, asset, "raster:scale", 1.0), _number(item, asset, "raster:offset", 0.0))


def orbit(item: pystac.Item) -> tuple[Literal["ascending", "descending"], int]:
    """Pass and relative orbit number, from the `sat` extension."""
    state, number = item.properties.get("sat:orbit_state"), item.properties.get("sat:relative_orbit")
    if state not in ("ascending", "descending") or number is None:
        raise InputError(
            f"{_name(item)} needs sat:orbit_state (ascending or descending) and sat:relative_orbit; it has "
            f"{state!r} and {number!r}"
        )
    return state, int(number)


def nodata(item: pystac.Item, asset: pystac.Asset) -> float | None:
    """The number that marks missing pixels, None where it is not stated."""
    if str(_stated(item, asset, "raster:nodata")).lower() == "nan":  # a string in the raster extension
        return math.nan
    return _number(item, asset, "raster:nodata")


def is_in_crs(item: pystac.Item, asset: pystac.Asset, crs: str) -> bool:
    """Whether the item says that the asset is in this CRS (an EPSG code)."""
    code = _stated(item, asset, "proj:code") or f"EPSG:{_stated(item, asset, 'proj:epsg')}"
    return str(code).upper() == crs.upper()


def _either(item: pystac.Item, what: str, stated: str, setting: str) -> str:
    """What the item states, else the setting. Raises InputError for neither, or two that differ."""
    if stated and setting and stated != setting:
        raise InputError(f"{_name(item)} has the {what} {stated}, but source.stac.s1.{what} is {setting}")
    if not stated and not setting:
        raise InputError(
            f"{_name(item)} does not state the {what} of its numbers. Digital numbers of raw GRD cannot be "
            "used; for calibrated and geocoded backscatter set source.stac.s1.quantity (gamma0 or sigma0) "
            "and source.stac.s1.unit (linear or dB)"
        )
    return stated or setting


def _baseline(item: pystac.Item) -> float | None:
    """The processing baseline, None where the item does not say it."""
    stated = _stated_baseline(item)
    try:
        return float(stated) if stated else None
    except ValueError as error:
        raise InputError(f"{_name(item)} has the processing baseline {stated!r}; wanted a number") from error


def _stated_baseline(item: pystac.Item) -> str:
    """The processing baseline as a field, else as in the name of the product (`_N0400_`), else empty."""
    stated = _first(item, _BASELINES)
    names = [str(item.properties.get(key, "")) for key in _PRODUCTS]
    found = [
        re.match(r"S2\w_MSIL2A_\d{8}T\d{6}_N(\d\d)(\d\d)_R\d{3}_", name) for name in (*names, str(item.id))
    ]
    return str(stated or next((f"{match[1]}.{match[2]}" for match in found if match), ""))


def _first(item: pystac.Item, keys: Sequence[str]) -> Any:
    """The first of several properties that the item has, else None."""
    return next((item.properties[key] for key in keys if item.properties.get(key) is not None), None)


def _band_names(asset: pystac.Asset) -> set[Any]:
    """The names of the only band of an asset; none for an asset of several bands, such as a colour image."""
    fields = asset.extra_fields
    bands = fields.get("eo:bands") or fields.get("bands") or fields.get("raster:bands") or [{}]
    names = {_field(asset, key) for key in ("name", "eo:common_name", "common_name")}
    return names if len(bands) == 1 else set()


def _field(asset: pystac.Asset, key: str) -> Any:
    """A field of the asset or its first band, with or without the prefix of its extension."""
    fields = asset.extra_fields
    bands = [fields[name][0] for name in ("raster:bands", "eo:bands", "bands") if fields.get(name)]
    for stated in (fields, *bands):
        for name in (key, key.rsplit(":", 1)[-1]):
            if name in stated:
                return stated[name]
    return None


def _stated(item: pystac.Item, asset: pystac.Asset, key: str, default: Any = None) -> Any:
    """A field of the band, else of the asset, else of the item."""
    value = _field(asset, key)
    if value is None:
        value = item.properties.get(key)
    return default if value is None else value


@overload
def _number(item: pystac.Item, asset: pystac.Asset, key: str, default: float) -> float: ...
@overload
def _number(item: pystac.Item, asset: pystac.Asset, key: str, default: None = None) -> float | None: ...
def _number(item: pystac.Item, asset: pystac.Asset, key: str, default: float | None = None) -> float | None:
    """A field as `_stated`. Raises InputError for what is no finite number."""
    stated = _stated(item, asset, key, default)
    try:
        number = None if stated is None else float(stated)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise InputError(f"{_name(item)} has the {key} {stated!r}; wanted is a number")
    return number


def _name(item: pystac.Item) -> str:
    collection = f" of {item.collection_id}" if item.collection_id else ""
    return f"the STAC item {item.id}{collection}"

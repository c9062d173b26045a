"""What a STAC item says: which asset is which band, how its numbers become physical, which orbit.

Pure functions of `pystac.Item`; what an item leaves open is an InputError that names it, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import pystac

from cropray.config.imagery import StacSentinel1Config, StacSentinel2Config
from cropray.errors import InputError

OFFSET_BASELINE = 4.0
"""Processing baseline since which L2A numbers carry an offset (25 January 2022; reprocessed older
scenes too, so that the date alone decides nothing). Sentinel-2 Products Specification Document."""

BOA_OFFSET = -0.1
"""BOA_ADD_OFFSET of -1000 over the quantification value of 10000."""

_DEFAULT_SCALE = 1e-4
_UNITS = {"db": "dB", "decibel": "dB", "power": "linear", "linear": "linear"}


class Scaling(NamedTuple):
    """`physical = number * scale + offset`."""

    scale: float
    offset: float


class Backscatter(NamedTuple):
    """What calibrated radar numbers are."""

    quantity: str  # "gamma0" or "sigma0"
    unit: str  # "linear" or "dB"


def item_time(item: pystac.Item) -> datetime:
    """The acquisition in UTC: `datetime`, or `start_datetime` where that is null."""
    when = item.datetime or item.common_metadata.start_datetime
    if when is None:
        raise InputError(f"{_name(item)} has neither datetime nor start_datetime")
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def find_asset(item: pystac.Item, aliases: Sequence[str]) -> pystac.Asset:
    """The asset of a band: by key, else by the name or common name that its band metadata give.

    Where several assets hold one band (one a resolution), the finest that says its `gsd` is taken.
    Raises InputError that lists what is there.
    """
    for alias in aliases:
        if alias in item.assets:
            return item.assets[alias]
    for alias in aliases:
        named = [a for a in item.assets.values() if alias in (_field(a, "name"), _common_name(a))]
        if named:
            return min(named, key=lambda asset: float(_stated(item, asset, "gsd") or "inf"))
    raise InputError(
        f"{_name(item)} has no asset for {aliases[0]}: wanted a key, band name or eo:common_name of "
        f"{', '.join(aliases)}; there is {', '.join(item.assets) or 'none'}"
    )


def reflectance_scaling(item: pystac.Item, asset: pystac.Asset, config: StacSentinel2Config) -> Scaling:
    """Scale and offset of a Sentinel-2 L2A band.

    In this order: `config.offset`; `earthsearch:boa_offset_applied: true` (0; the flag is set where
    the pixels were shifted, while the band metadata keep the product's offset); the band's
    `raster:offset`, the processing baseline (>= 04.00: -0.1), or both where they agree. A stated
    offset of 0 under a later baseline says that it was applied, unless the flag says it was not.

    Raises InputError where nothing is stated or two statements contradict each other.
    """
    scale = float(_stated(item, asset, "raster:scale", _DEFAULT_SCALE))
    if config.offset is not None:
        return Scaling(scale, config.offset)
    applied = item.properties.get("earthsearch:boa_offset_applied")
    if applied is True:
        return Scaling(scale, 0.0)
    stated = _stated(item, asset, "raster:offset")
    baseline = _baseline(item)
    hint = "source.stac.s2.offset can state it (-0.1: to be applied, 0: none or already applied)"
    if baseline is None:
        if stated is None:
            raise InputError(
                f"{_name(item)} leaves open whether its numbers carry the offset of -1000 of baseline "
                "04.00: it has no s2:processing_baseline (or processing:version), no raster:bands offset "
                f"and no earthsearch:boa_offset_applied; {hint}"
            )
        return Scaling(scale, float(stated))
    expected = BOA_OFFSET if baseline >= OFFSET_BASELINE else 0.0
    if stated is None:
        return Scaling(scale, expected)
    agree = abs(float(stated) - expected) < 1e-9
    if agree or (float(stated) == 0 and applied is None):
        return Scaling(scale, float(stated))
    raise InputError(
        f"{_name(item)} contradicts itself: processing baseline {baseline:05.2f} means an offset of "
        f"{expected:g}, its band metadata say {stated:g}"
        + ("" if applied is None else f", earthsearch:boa_offset_applied is {applied}")
        + f"; {hint}"
    )


def backscatter(item: pystac.Item, asset: pystac.Asset, config: StacSentinel1Config) -> Backscatter:
    """What the numbers of a Sentinel-1 band are, from the item or, where it is silent, the settings.

    Read are `card4l:measurement_type` and `card4l:measurement_convention`, and the band's
    `raster:unit`. Raises InputError for items that are not calibrated or not geocoded (as far as
    said), and for settings that contradict the item.
    """
    if not _has_projection(item, asset):
        raise InputError(
            f"{_name(item)} is not geocoded (no proj:code, proj:epsg, proj:wkt2 or proj:projjson): raw "
            "GRD in radar geometry cannot be used; wanted is terrain-corrected backscatter"
        )
    convention = _stated(item, asset, "raster:unit") or item.properties.get("card4l:measurement_convention")
    unit = _UNITS.get(str(convention).lower(), "") if convention else ""
    if convention and not unit:
        raise InputError(f"{_name(item)} holds {convention!r}; wanted is linear power or dB")
    quantity = str(item.properties.get("card4l:measurement_type", ""))
    if quantity not in ("", "gamma0", "sigma0"):
        raise InputError(f"{_name(item)} holds {quantity!r}; wanted is gamma0 or sigma0")
    found = Backscatter(
        _agreed(item, "quantity", quantity, config.quantity), _agreed(item, "unit", unit, config.unit)
    )
    data_type = str(_stated(item, asset, "raster:data_type", ""))
    if found.unit == "linear" and "int" in data_type and _stated(item, asset, "raster:scale") is None:
        raise InputError(
            f"{_name(item)} holds {data_type} without a scale, as raw GRD digital numbers do: these are "
            "not calibrated; wanted is gamma0 or sigma0"
        )
    return found


def backscatter_scaling(item: pystac.Item, asset: pystac.Asset) -> Scaling:
    """Scale and offset of a Sentinel-1 band, 1 and 0 where none are stated."""
    return Scaling(
        float(_stated(item, asset, "raster:scale", 1.0)), float(_stated(item, asset, "raster:offset", 0.0))
    )


def orbit(item: pystac.Item) -> tuple[Literal["ascending", "descending"], int]:
    """Pass and relative orbit number, from the `sat` extension."""
    state, number = item.properties.get("sat:orbit_state"), item.properties.get("sat:relative_orbit")
    if state not in ("ascending", "descending") or number is None:
        raise InputError(
            f"{_name(item)} must say sat:orbit_state (ascending or descending) and sat:relative_orbit, "
            f"got {state!r} and {number!r}"
        )
    return state, int(number)


def nodata(item: pystac.Item, asset: pystac.Asset) -> float | None:
    """The number that marks missing pixels, None where it is not stated."""
    stated = _stated(item, asset, "raster:nodata")
    return None if stated is None else float(stated)  # also the string "nan" of the raster extension


def is_in_crs(item: pystac.Item, asset: pystac.Asset, crs: str) -> bool:
    """Whether the item says that the asset is in this CRS (an EPSG code)."""
    code = _stated(item, asset, "proj:code") or f"EPSG:{_stated(item, asset, 'proj:epsg')}"
    return str(code).upper() == crs.upper()


def _has_projection(item: pystac.Item, asset: pystac.Asset) -> bool:
    return any(_stated(item, asset, f"proj:{key}") for key in ("code", "epsg", "wkt2", "projjson"))


def _agreed(item: pystac.Item, what: str, stated: str, setting: str) -> str:
    if stated and setting and stated != setting:
        raise InputError(f"{_name(item)} says {what} {stated}, source.stac.s1.{what} says {setting}")
    if not stated and not setting:
        raise InputError(
            f"{_name(item)} does not say the {what} of its numbers: raw GRD digital numbers cannot be "
            "used; if these are calibrated and geocoded, say what they are with source.stac.s1.quantity "
            "(gamma0 or sigma0) and source.stac.s1.unit (linear or dB)"
        )
    return stated or setting


def _baseline(item: pystac.Item) -> float | None:
    stated = item.properties.get("s2:processing_baseline", item.properties.get("processing:version"))
    try:
        return None if stated is None else float(stated)
    except ValueError as error:
        raise InputError(f"{_name(item)} has the processing baseline {stated!r}, no number") from error


def _field(asset: pystac.Asset, key: str) -> Any:
    """A field of the asset or its first band (STAC 1.0 `raster:bands`, `eo:bands`; since 1.1 `bands`)."""
    fields = asset.extra_fields
    if key in fields:
        return fields[key]
    short = key.rsplit(":", 1)[-1]
    for bands in (fields.get("raster:bands"), fields.get("eo:bands"), fields.get("bands")):
        for name in (key, short):
            if bands and name in bands[0]:
                return bands[0][name]
    return None


def _common_name(asset: pystac.Asset) -> Any:
    return _field(asset, "eo:common_name") or _field(asset, "common_name")


def _stated(item: pystac.Item, asset: pystac.Asset, key: str, default: Any = None) -> Any:
    """A field of the band, else the asset, else the item."""
    value = _field(asset, key)
    if value is None:
        value = item.properties.get(key)
    return default if value is None else value


def _name(item: pystac.Item) -> str:
    where = f" of {item.collection_id}" if item.collection_id else ""
    return f"the STAC item {item.id}{where}"

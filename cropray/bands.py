"""The bands: unit, storage scale, plausible range and names in other systems."""

from __future__ import annotations

from dataclasses import dataclass

NODATA = -32768
"""Stored integer (int16) of a pixel without a valid view."""


@dataclass(frozen=True)
class Band:
    """One band, stored as `round(physical / scale)`. `range` is in physical units."""

    name: str
    sensor: str  # "s2" or "s1"
    unit: str  # "reflectance" or "dB"
    scale: float
    range: tuple[float, float]
    resolution_m: int
    ee: str  # Earth Engine band name
    aliases: tuple[str, ...]  # STAC asset keys and eo:common_name values, most specific first


def _s2(name: str, ee: str, resolution_m: int, *aliases: str) -> Band:
    # The atmospheric correction leaves dark pixels up to some hundredths below 0.
    return Band(name, "s2", "reflectance", 1e-4, (-0.02, 1.6), resolution_m, ee, (name, *aliases))


# Resolutions: Sentinel-2 Products Specification Document. Common names: STAC extension eo.
S2_BANDS: tuple[Band, ...] = (
    _s2("B02", "B2", 10, "blue"),
    _s2("B03", "B3", 10, "green"),
    _s2("B04", "B4", 10, "red"),
    _s2("B05", "B5", 20, "rededge1", "rededge"),
    _s2("B06", "B6", 20, "rededge2"),
    _s2("B07", "B7", 20, "rededge3"),
    _s2("B08", "B8", 10, "nir"),
    _s2("B8A", "B8A", 20, "nir08"),
    _s2("B11", "B11", 20, "swir16"),
    _s2("B12", "B12", 20, "swir22"),
)
# Buildings are brighter than 10 dB (VV) or 0 dB (VH) only in single pixels. Digital numbers of GRD taken for
# power are all brighter: an amplitude of 40 is 16 dB. Power taken for dB is above 0 everywhere.
S1_BANDS: tuple[Band, ...] = (
    Band("VV", "s1", "dB", 1e-2, (-50.0, 10.0), 10, "VV", ("vv", "VV")),
    Band("VH", "s1", "dB", 1e-2, (-50.0, 0.0), 10, "VH", ("vh", "VH")),
)
S2_NAMES = tuple(band.name for band in S2_BANDS)
S1_NAMES = tuple(band.name for band in S1_BANDS)
SCL_ALIASES = ("SCL", "scl")

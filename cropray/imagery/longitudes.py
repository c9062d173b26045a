"""Regions at 180° longitude: footprints and areas in one form, and the boxes that a search needs.

GeoJSON wants a region that crosses 180° cut there (RFC 7946, 3.1.9). Real footprints are also rings that run
on beyond 180°, or that jump from 179° to -179°.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

Bounds = tuple[float, float, float, float]

# A scene is at most so wide in degrees: 250 km of Sentinel-1 at 75° of latitude.
_WIDEST = 10.0
_STRIP = 0.01  # degrees


def within_180(geometry: BaseGeometry) -> BaseGeometry:
    """The same region (lon, lat) between -180° and 180°, in several parts where it crosses 180°.

    Neighbouring vertices that are more than 180° apart cross 180°. A ring around a pole reaches it.
    """
    west, _, east, _ = geometry.bounds
    if west >= -180 and east <= 180 and east - west <= 180:
        return geometry
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    if not parts:
        return geometry
    return shapely.union_all([piece for part in parts for piece in _cut(_unwrapped(part))])


def search_boxes(area: BaseGeometry) -> Iterator[Bounds]:
    """Bounding boxes that together find every footprint that touches `area`, a region of `within_180`.

    A footprint that runs beyond 180° may be stored on the other side of it: a narrow box there finds it.
    """
    for part in shapely.get_parts(area):
        west, south, east, north = part.bounds
        yield west, south, east, north
        if west < -180 + _WIDEST:
            yield 180 - _STRIP, south, 180.0, north
        if east > 180 - _WIDEST:
            yield -180.0, south, -180 + _STRIP, north


def geojson_bbox(region: BaseGeometry) -> Bounds:
    """Bounds of a region of `within_180`: from west to east, so west > east across 180° (RFC 7946, 5.2)."""
    west, south, east, north = region.bounds
    if west > -180 or east < 180:
        return west, south, east, north
    edges = shapely.bounds(shapely.get_parts(region))
    # Parts at 180° are its west, parts at -180° its east.
    return edges[edges[:, 2] > 0, 0].min(), south, edges[edges[:, 0] < 0, 2].max(), north


def _unwrapped(polygon: shapely.Polygon) -> shapely.Polygon:
    """The polygon without jumps, beyond ±180° where it must be."""
    outer = np.asarray(polygon.exterior.coords)[:, :2]
    lon = np.unwrap(outer[:, 0], period=360)
    if not math.isclose(lon[0], lon[-1], abs_tol=1e-6):  # around a pole
        pole = math.copysign(90, outer[:, 1].mean())
        edge = float(outer[:, 1].min() if pole > 0 else outer[:, 1].max())
        return shapely.box(-180, min(edge, pole), 180, max(edge, pole))
    holes = []
    for ring in polygon.interiors:
        inner = np.asarray(ring.coords)[:, :2]
        inner_lon = np.unwrap(inner[:, 0], period=360)
        inner_lon += 360 * round((lon.mean() - inner_lon.mean()) / 360)
        holes.append(np.column_stack([inner_lon, inner[:, 1]]))
    found = shapely.Polygon(np.column_stack([lon, outer[:, 1]]), holes)
    return found if found.area > 0 else polygon  # else a box around the globe, whose sides are at ±180°


def _cut(polygon: shapely.Polygon) -> Iterator[BaseGeometry]:
    """The pieces of a polygon between the meridians of ±180°, ±540°, …, each moved to [-180°, 180°]."""
    valid = shapely.make_valid(polygon)
    west, south, east, north = valid.bounds
    for turn in range(math.floor((west + 180) / 360), math.ceil((east + 180) / 360)):
        piece = shapely.intersection(valid, shapely.box(360 * turn - 180, south, 360 * turn + 180, north))
        yield shapely.transform(piece, lambda xy, shift=360 * turn: xy - (shift, 0))

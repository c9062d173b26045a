"""Geometries of parcels: repaired, measured, reprojected, and in one piece across 180°."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from cropray.errors import InputError
from cropray.grid import utm_crs
from cropray.types import BoolArray, DoubleArray

LONLAT = "EPSG:4326"

Geometries = npt.NDArray[np.object_]

POINTS = (shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT)
POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_DEGREES_SLACK = 1e-6
_WIDEST_UTM_DEG = 30.0  # 15° from the central meridian lengths are 3.5 % too large, at the equator
_M_PER_DEGREE = 111_195.0  # of latitude on a sphere of the Earth's mean radius (IUGG); within 1 %
_CORNERS_OF_A_CIRCLE = 32
_SLICE = 50_000


def mend(geometries: Geometries) -> tuple[Geometries, BoolArray]:
    """Valid 2-D polygons and points, and True where a geometry was repaired.

    Parts of a broken or mixed geometry that have no area are dropped, so a result may be empty. None
    and empty geometries stay as they are.
    """
    mended = shapely.force_2d(geometries) if shapely.has_z(geometries).any() else np.array(geometries)
    mixed = shapely.get_type_id(mended) == shapely.GeometryType.GEOMETRYCOLLECTION
    for index in np.flatnonzero(mixed):
        parts = shapely.get_parts(mended[index])
        mended[index] = shapely.union_all(parts[np.isin(shapely.get_type_id(parts), POLYGONS)])
    broken = ~(shapely.is_valid(mended) | shapely.is_missing(mended))
    mended[broken] = shapely.make_valid(mended[broken], method="structure", keep_collapsed=False)
    return mended, broken | mixed


def areas_m2(geometries: Geometries) -> DoubleArray:
    """(N,) areas of geometries in degrees, in m² to within 1 %: NaN for points, 0 for what is empty."""
    _, south, _, north = shapely.bounds(geometries).T
    across = np.cos(np.radians((south + north) / 2))
    area: DoubleArray = np.nan_to_num(shapely.area(geometries) * across) * _M_PER_DEGREE**2
    area[np.isin(shapely.get_type_id(geometries), POINTS) & ~shapely.is_empty(geometries)] = np.nan
    return area


def circles(geometries: Geometries, radius_m: float) -> Geometries:
    """Geometries in degrees, points replaced by circles of `radius_m` around them, to within 1 %."""
    rows = np.flatnonzero(np.isin(shapely.get_type_id(geometries), POINTS) & ~shapely.is_empty(geometries))
    centres, owner = shapely.get_coordinates(geometries[rows], return_index=True)
    angle = np.linspace(0, 2 * np.pi, _CORNERS_OF_A_CIRCLE, endpoint=False)
    radius = (
        radius_m / _M_PER_DEGREE / np.stack([np.cos(np.radians(centres[:, 1])), np.ones(len(centres))], 1)
    )
    corners = centres[:, None] + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rounded = np.array(geometries)
    rounded[rows] = shapely.multipolygons(shapely.polygons(corners), indices=owner)
    return rounded


def reproject(frame: gpd.GeoDataFrame, crs: str, file: Path | str) -> gpd.GeoDataFrame:
    """The frame in another CRS, its longitudes as `unwrapped` gives them.

    Raises InputError if its coordinates do not fit its own CRS.
    """
    west, south, east, north = frame.total_bounds
    limits = (360 + _DEGREES_SLACK, 90 + _DEGREES_SLACK)
    if frame.crs.is_geographic and (max(-west, east) > limits[0] or max(-south, north) > limits[1]):
        raise InputError(
            f"{file}: its CRS {frame.crs.to_string()} is in degrees, but its coordinates reach from "
            f"({west:g}, {south:g}) to ({east:g}, {north:g}). Correct its CRS."
        )
    if frame.crs.is_geographic:
        frame = frame.set_geometry(unwrapped(frame.geometry.to_numpy()), crs=frame.crs)
    projected = frame.to_crs(crs)
    there = ~(frame.geometry.isna() | frame.geometry.is_empty).to_numpy()
    lost = frame.index[there & ~np.isfinite(projected.bounds.to_numpy()).all(axis=1)]
    if len(lost):
        remedy = "Correct its CRS." if len(lost) == there.sum() else "Correct or remove such features."
        raise InputError(
            f"{file}: the coordinates of {len(lost)} features (such as feature {lost[0]}) cannot be "
            f"converted from {frame.crs.to_string()} to {crs}. {remedy}"
        )
    if projected.crs.is_geographic:
        projected = projected.set_geometry(unwrapped(projected.geometry.to_numpy()), crs=projected.crs)
    return projected


def slices(count: int) -> Iterator[slice]:
    """Rows to reproject at a time: a million polygons take 500 MB, and two sets of them would twice that."""
    return (slice(start, start + _SLICE) for start in range(0, count, _SLICE))


def places_of(frame: gpd.GeoDataFrame, crs: str) -> tuple[DoubleArray, DoubleArray]:
    """Centroids (N, 2) and bounds (N, 4) of parcels in another CRS."""
    centroids, bounds = np.empty((len(frame), 2)), np.empty((len(frame), 4))
    for rows in slices(len(frame)):
        geometry = reproject(frame[["geometry"]].iloc[rows], crs, "the parcels").geometry.to_numpy()
        centroids[rows] = shapely.get_coordinates(shapely.centroid(geometry))
        bounds[rows] = shapely.bounds(geometry)
    return centroids, bounds


def unwrapped(geometries: Geometries) -> Geometries:
    """Geometries in degrees, each in one piece: one that crosses 180° runs past it.

    The middle of each lies within ±180°. No parcel is wider than half the globe, so one that seems to be
    has corners on both sides of 180°.
    """
    whole = np.array(geometries)
    west, _, east, _ = shapely.bounds(whole).T
    split = east - west > 180
    whole[split] = shapely.transform(whole[split], lambda xy: xy + (xy[:, :1] < 0) * [360, 0])
    west, _, east, _ = shapely.bounds(whole).T
    turns = np.nan_to_num(np.floor((west + east + 360) / 720))
    for turn in np.unique(turns[turns != 0]):
        far = turns == turn
        whole[far] = shapely.transform(whole[far], lambda xy, by=360 * turn: xy - [by, 0])
    return whole


def parcels_crs(frame: gpd.GeoDataFrame, name: str) -> str:
    """`rois.crs`, or for utm the zone of the middle of all parcels: neighbours in two zones stay together.

    Raises InputError for parcels that are too far apart for one zone.
    """
    if name != "utm":
        return metric_crs(name)
    bounds = frame.geometry.bounds.to_numpy(copy=True)
    if np.ptp(bounds[:, [0, 2]]) > 180:  # on both sides of 180°
        bounds[bounds[:, 0] < 0] += [360, 0, 360, 0]
    (west, south), (east, north) = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    if east - west > _WIDEST_UTM_DEG:
        raise InputError(
            f"the parcels span {east - west:.0f} degrees of longitude, too wide for one UTM zone. "
            "Set rois.crs to a projected CRS of the area (Europe: EPSG:3035)."
        )
    return utm_crs((west, south, east, north), LONLAT)


def metric_crs(name: str) -> str:
    """`name`, the value of rois.crs. Raises InputError unless it is a projected CRS in metres."""
    try:
        crs = CRS.from_user_input(name)
    except CRSError:
        crs = None
    if crs is None or not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise InputError(
            f"rois.crs {name!r} is not a projected CRS in metres. Set utm, or a code such as EPSG:3857."
        )
    return name

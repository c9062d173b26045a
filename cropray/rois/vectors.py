"""Polygons of vector files: read by pyogrio, mended, checked, brought to one CRS."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import pyogrio.errors
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from cropray.config.rois import ProvincesConfig
from cropray.errors import InputError, nearest
from cropray.types import BoolArray, DoubleArray, IndexArray

LONLAT = "EPSG:4326"

Geometries = npt.NDArray[np.object_]

_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_ACCEPTED = (*_POLYGONAL, shapely.GeometryType.GEOMETRYCOLLECTION, shapely.GeometryType.MISSING)
_DEGREES_SLACK = 1e-6


def matching(root: str, pattern: str) -> list[Path]:
    """Files of a path or glob, relative to `root`, sorted."""
    wanted = Path(root).expanduser() / pattern
    return [Path(name) for name in sorted(glob.glob(str(wanted), recursive=True))]


def find_files(root: str, pattern: str) -> list[Path]:
    """As `matching`. Raises InputError where there is none, and for a folder."""
    files = matching(root, pattern)
    if not files:
        wanted = Path(root).expanduser() / pattern
        raise InputError(f"there is no file {wanted}; check the path, and rois.data_root it is relative to")
    for file in files:
        if file.is_dir() and file.suffix != ".gdb":
            raise InputError(f"{file} is a folder; give a file, or a glob such as {file.name}/*.shp")
    return files


def read_polygons(file: Path, columns: Sequence[str]) -> gpd.GeoDataFrame:
    """All features of a file of one layer with these attribute columns, as they are stored.

    Raises InputError for a file that is no vector file, has several layers, no features, no CRS, not
    these columns, or other geometries than polygons.
    """
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(file)]
        if len(layers) != 1:
            raise InputError(f"{file} has {len(layers)} layers ({', '.join(layers)}); wanted a file of one")
        fields = [str(name) for name in pyogrio.read_info(file)["fields"]]
        for column in columns:
            if column not in fields:
                raise InputError(f"{file} has no attribute {column!r}.{nearest(column, fields)}")
        frame = pyogrio.read_dataframe(file, columns=list(columns), use_arrow=True)
    except pyogrio.errors.DataSourceError as error:
        raise InputError(f"cannot read {file} as a vector file: {error}") from error
    if "geometry" not in frame:
        raise InputError(f"{file} has no geometries; wanted polygons")
    if len(frame) == 0:
        raise InputError(f"{file} has no features; wanted polygons")
    if (frame.geometry.isna() | frame.geometry.is_empty).all():
        raise InputError(f"{file}: all of its {len(frame)} features are empty; wanted polygons")
    if frame.crs is None:
        raise InputError(f"{file} has no CRS; give it one (a shapefile needs its .prj beside it)")
    types = shapely.get_type_id(frame.geometry.to_numpy())
    wrong = np.flatnonzero(~np.isin(types, _ACCEPTED))
    if len(wrong):
        kind = frame.geometry.iloc[wrong[0]].geom_type
        raise InputError(
            f"{file} has {len(wrong)} features that are no polygons (feature {wrong[0]} is a {kind}); "
            "wanted Polygon or MultiPolygon: convert or remove them"
        )
    return frame


def mend(geometries: Geometries) -> tuple[Geometries, BoolArray]:
    """Valid plane polygons, and True where something had to be mended. Empty or None stays so.

    What of a broken or mixed geometry is no area is left out, so the result may be empty.
    """
    mended = shapely.force_2d(geometries)
    mixed = shapely.get_type_id(mended) == shapely.GeometryType.GEOMETRYCOLLECTION
    mended[mixed] = [_polygonal_part(geometry) for geometry in mended[mixed]]
    broken = ~(shapely.is_valid(mended) | shapely.is_missing(mended))
    mended[broken] = shapely.make_valid(mended[broken], method="structure", keep_collapsed=False)
    return mended, broken | mixed


def _polygonal_part(collection: Any) -> Any:
    parts = shapely.get_parts(collection)
    return shapely.union_all(parts[np.isin(shapely.get_type_id(parts), _POLYGONAL)])


def reproject(frame: gpd.GeoDataFrame, crs: str, file: Path | str) -> gpd.GeoDataFrame:
    """The frame in another CRS. Raises InputError where its coordinates cannot be of its own CRS."""
    west, south, east, north = frame.total_bounds
    limits = (180 + _DEGREES_SLACK, 90 + _DEGREES_SLACK)
    if frame.crs.is_geographic and (max(-west, east) > limits[0] or max(-south, north) > limits[1]):
        raise InputError(
            f"{file} says that its coordinates are degrees ({frame.crs.to_string()}), but they reach from "
            f"({west:g}, {south:g}) to ({east:g}, {north:g}); correct its CRS"
        )
    projected = frame.to_crs(crs)
    if not np.isfinite(projected.total_bounds).all():
        raise InputError(
            f"{file}: coordinates cannot be brought from {frame.crs.to_string()} to {crs}; correct its CRS"
        )
    return projected


def relative(file: Path, root: str) -> str:
    """The name of a file below `root`, for records that are the same on every machine."""
    folder = Path(root).expanduser()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def metric_crs(name: str) -> str:
    """`name`, of a CRS in which boxes can be measured. Raises InputError for any other."""
    try:
        crs = CRS.from_user_input(name)
    except CRSError as error:
        raise InputError(
            f"rois.crs {name!r} is no CRS ({error}); wanted utm or a code like EPSG:3857"
        ) from error
    if not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise InputError(f"rois.crs {name!r} ({crs.name}) does not measure in metres; wanted a projected CRS")
    return name


@dataclass(frozen=True)
class Provinces:
    """Names and areas; `geometry` are valid polygons in the CRS of the boxes to come."""

    names: tuple[str, ...]
    geometry: Geometries

    def of(self, boxes: DoubleArray) -> list[str]:
        """The province of each of (K, 4) bounds: the one that contains it, else the one with the
        largest overlap; the earlier in the file of equals, "" where no province overlaps.
        """
        found = np.full(len(boxes), -1, dtype=np.intp)
        areas = shapely.box(*boxes.T)
        tree = shapely.STRtree(areas)
        # Asked from the provinces' side, as GEOS then prepares each of their long borders once.
        province, box = tree.query(self.geometry, predicate="contains")
        found[box[::-1]] = province[::-1]
        border = np.flatnonzero(found < 0)
        found[border] = self._largest_overlap(areas[border])
        return [self.names[index] if index >= 0 else "" for index in found]

    def _largest_overlap(self, areas: npt.NDArray[np.object_]) -> IndexArray:
        province, box = shapely.STRtree(areas).query(self.geometry, predicate="intersects")
        overlap = np.zeros((len(areas), len(self.names)))
        overlap[box, province] = shapely.area(shapely.intersection(self.geometry[province], areas[box]))
        best: IndexArray = np.where(overlap.max(axis=1, initial=0) > 0, overlap.argmax(axis=1), -1)
        return best


def read_provinces(root: str, config: ProvincesConfig, crs: str) -> Provinces:
    """Raises InputError for a file or a `name_field` that cannot be used."""
    files = find_files(root, config.path)
    if len(files) > 1:
        raise InputError(f"provinces.path {config.path!r} fits {len(files)} files; wanted one")
    frame = reproject(read_polygons(files[0], [config.name_field]), crs, files[0])
    geometry, _ = mend(frame.geometry.to_numpy())
    return Provinces(tuple(frame[config.name_field].astype(str).str.strip()), geometry)

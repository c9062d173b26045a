"""Polygons of vector files: read by pyogrio, checked, repaired and reprojected; provinces of boxes."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """The files that match a path or glob relative to `root`, sorted."""
    return [Path(name) for name in sorted(glob.glob(str(Path(root).expanduser() / pattern), recursive=True))]


def find_files(root: str, pattern: str) -> list[Path]:
    """The files of `matching`. Raises InputError if there is none, and for a folder."""
    files = matching(root, pattern)
    if not files:
        wanted = Path(root).expanduser() / pattern
        raise InputError(f"there is no file {wanted}. Check the path, and rois.data_root if it is relative.")
    for file in files:
        if file.is_dir() and file.suffix != ".gdb":
            raise InputError(f"{file} is a folder. Give a file, or a glob such as {file.name}/*.shp.")
    return files


def read_polygons(file: Path, columns: Sequence[str]) -> gpd.GeoDataFrame:
    """All features of a file with one layer, as stored, with these attribute columns.

    Raises InputError for a file that is not a vector file, has several layers, no features, no CRS, an
    unknown column, or geometries other than polygons.
    """
    _check_shapefile(file, columns)
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(file)]
        if len(layers) != 1:
            raise InputError(
                f"{file} has {len(layers)} layers ({', '.join(layers)}). Save one layer in a file of its own."
            )
        fields = [str(name) for name in pyogrio.read_info(file)["fields"]]
        for column in columns:
            if column not in fields:
                raise InputError(f"{file} has no attribute {column!r}.{nearest(column, fields)}")
        frame = pyogrio.read_dataframe(file, columns=list(columns), use_arrow=True)
    except pyogrio.errors.DataSourceError as error:
        raise InputError(f"cannot read {file} as a vector file: {error}") from error
    if "geometry" not in frame or (frame.geometry.isna() | frame.geometry.is_empty).all():
        raise InputError(f"{file} has no features with a geometry. Give a file of polygons.")
    if frame.crs is None:
        prj = (
            f" {file.stem}.prj, which holds it, is missing or empty." if file.suffix.lower() == ".shp" else ""
        )
        raise InputError(f"{file} has no CRS.{prj} Save the file with its CRS.")
    types = shapely.get_type_id(frame.geometry.to_numpy())
    wrong = np.flatnonzero(~np.isin(types, _ACCEPTED))
    if len(wrong):
        kind = frame.geometry.iloc[wrong[0]].geom_type
        raise InputError(
            f"{file} has {len(wrong)} features that are not polygons (feature {wrong[0]} is a {kind}). "
            "Convert them to polygons, or remove them."
        )
    return frame


def _check_shapefile(file: Path, columns: Sequence[str]) -> None:
    """Raises InputError if a part of a shapefile is missing: GDAL's own errors do not say which."""
    if file.suffix.lower() != ".shp":
        return
    present = {path.suffix.lower() for path in file.parent.iterdir() if path.stem == file.stem}
    for suffix in (".shx", ".dbf") if columns else (".shx",):
        if suffix not in present:
            raise InputError(f"{file.with_suffix(suffix)} is missing beside {file.name}. Copy it too.")


def mend(geometries: Geometries) -> tuple[Geometries, BoolArray]:
    """Valid 2-D polygons, and True where a geometry was repaired.

    Parts of a broken or mixed geometry that have no area are dropped, so a result may be empty. None
    and empty geometries stay as they are.
    """
    mended = shapely.force_2d(geometries)
    mixed = shapely.get_type_id(mended) == shapely.GeometryType.GEOMETRYCOLLECTION
    for index in np.flatnonzero(mixed):
        parts = shapely.get_parts(mended[index])
        mended[index] = shapely.union_all(parts[np.isin(shapely.get_type_id(parts), _POLYGONAL)])
    broken = ~(shapely.is_valid(mended) | shapely.is_missing(mended))
    mended[broken] = shapely.make_valid(mended[broken], method="structure", keep_collapsed=False)
    return mended, broken | mixed


def reproject(frame: gpd.GeoDataFrame, crs: str, file: Path | str) -> gpd.GeoDataFrame:
    """The frame in another CRS. Raises InputError if its coordinates do not fit its own CRS."""
    west, south, east, north = frame.total_bounds
    limits = (180 + _DEGREES_SLACK, 90 + _DEGREES_SLACK)
    if frame.crs.is_geographic and (max(-west, east) > limits[0] or max(-south, north) > limits[1]):
        raise InputError(
            f"{file}: its CRS {frame.crs.to_string()} is in degrees, but its coordinates reach from "
            f"({west:g}, {south:g}) to ({east:g}, {north:g}). Correct its CRS."
        )
    projected = frame.to_crs(crs)
    if not np.isfinite(projected.total_bounds).all():
        raise InputError(
            f"{file}: its coordinates cannot be converted from {frame.crs.to_string()} to {crs}. "
            "Correct its CRS."
        )
    return projected


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


@dataclass(frozen=True)
class Provinces:
    """Names and valid polygons, in the CRS of the boxes that are looked up."""

    names: tuple[str, ...]
    geometry: Geometries

    def of(self, boxes: DoubleArray) -> list[str]:
        """The province of each of (K, 4) bounds.

        It is the province that contains the box, else the one with the largest overlap. The first in
        the file wins a tie. A box that overlaps no province has "".
        """
        found = np.full(len(boxes), -1, dtype=np.intp)
        areas = shapely.box(*boxes.T)
        tree = shapely.STRtree(areas)
        # GEOS prepares the geometries of the query: each long border of a province once.
        province, box = tree.query(self.geometry, predicate="contains")
        found[box[::-1]] = province[::-1]
        border = np.flatnonzero(found < 0)
        found[border] = self._largest_overlap(areas[border])
        return [self.names[index] if index >= 0 else "" for index in found]

    def _largest_overlap(self, areas: Geometries) -> IndexArray:
        province, box = shapely.STRtree(areas).query(self.geometry, predicate="intersects")
        overlap = np.zeros((len(areas), len(self.names)))
        overlap[box, province] = shapely.area(shapely.intersection(self.geometry[province], areas[box]))
        best: IndexArray = np.where(overlap.max(axis=1, initial=0) > 0, overlap.argmax(axis=1), -1)
        return best


def read_provinces(root: str, config: ProvincesConfig, crs: str) -> Provinces:
    """The provinces in another CRS. Raises InputError for an unusable file or `name_field`."""
    files = find_files(root, config.path)
    if len(files) > 1:
        raise InputError(f"rois.provinces.path {config.path!r} matches {len(files)} files. Name one file.")
    frame = reproject(read_polygons(files[0], [config.name_field]), crs, files[0])
    geometry, _ = mend(frame.geometry.to_numpy())
    return Provinces(tuple(frame[config.name_field].astype(str).str.strip()), geometry)

"""The province of each ROI, by which the calendar gives its dates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from cropray.config.rois import ProvincesConfig, RoisConfig
from cropray.errors import InputError
from cropray.rois.shapes import Geometries, mend, reproject
from cropray.rois.vectors import find_files, read_features
from cropray.types import DoubleArray, IndexArray


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


def provinces_of(boxes: DoubleArray, config: RoisConfig, crs: str) -> list[str]:
    """The province of each of (K, 4) bounds in `crs`, "" for all if `rois.provinces` is not set."""
    if not config.provinces.path:
        return [""] * len(boxes)
    return read_provinces(config.data_root, config.provinces, crs).of(boxes)


def read_provinces(root: str, config: ProvincesConfig, crs: str) -> Provinces:
    """The provinces in another CRS. Raises InputError for an unusable file or `name_field`."""
    files = find_files(root, config.path)
    if len(files) > 1:
        raise InputError(f"rois.provinces.path {config.path!r} matches {len(files)} files. Name one file.")
    stored = read_features(files[0], [config.name_field], layer=config.layer, encoding=config.encoding)
    geometry, _ = mend(reproject(stored, crs, files[0]).geometry.to_numpy())
    return Provinces(tuple(stored[config.name_field].astype(str).str.strip()), geometry)

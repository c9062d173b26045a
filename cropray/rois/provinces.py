"""In which province a box lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from cropray.config.regions import ProvincesConfig
from cropray.rois.vectors import Geometries, find_files, mend, read_polygons, reproject
from cropray.types import DoubleArray, IndexArray, InputError


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

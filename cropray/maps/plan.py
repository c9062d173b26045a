"""From what a user calls an area to the maps that are to be made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cropray.config import Config
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.rasters import burn
from cropray.types import BoolArray

if TYPE_CHECKING:
    from cropray.storage import Folder

_ROIS = "rois:"
_FORMS = '"min_lon,min_lat,max_lon,max_lat", a vector file, or rois:SPLIT'


@dataclass(frozen=True)
class MapPlan:
    """One map: its grid, and the polygons (CRS of the grid) outside of which it is nodata, if any.

    `name` is the folder below the prediction's own; empty where there is one map only.
    """

    name: str
    grid: Grid
    shapes: tuple[Any, ...] = ()

    def wanted(self, tile: Window) -> BoolArray:
        """(H, W) of a tile: where the pixel's centre lies in the area."""
        if not self.shapes:
            return np.ones((tile.height, tile.width), np.bool_)
        inside_hw: BoolArray = burn(((shape, 1) for shape in self.shapes), self.grid.window(tile), 0) == 1
        return inside_hw


def plan_maps(area: str, config: Config, folder: Folder) -> list[MapPlan]:
    """The maps of an area, ordered by name.

    A bounding box in degrees is mapped whole, as is the rectangle of the grid that covers it; of a
    vector file what lies outside its polygons is nodata. `rois:SPLIT` makes one map a ROI: ROIs lie
    far apart and in several UTM zones, where one mosaic would be empty almost everywhere. ROIs on
    the same grid (a field clustered in several seasons) make one map. Raises InputError.
    """
    if area.startswith(_ROIS):
        return _of_rois(area.removeprefix(_ROIS), config, folder)
    bounds = _as_bounds(area)
    if bounds is not None:
        return [MapPlan("", _grid(bounds, "EPSG:4326", config))]
    return [_of_vector_file(area, config)]


def _of_rois(split: str, config: Config, folder: Folder) -> list[MapPlan]:
    from cropray.rois.store import read_rois

    rois = read_rois(folder)
    chosen = [roi for roi in rois if roi.split == split]
    if not chosen:
        splits = ", ".join(sorted({roi.split for roi in rois})) or "none"
        raise InputError(f"predict.area is rois:{split}, but the splits of the ROIs are: {splits}")
    grids: dict[Grid, str] = {}
    for roi in sorted(chosen, key=lambda roi: roi.roi_id):
        grids.setdefault(_grid(roi.bounds, roi.crs, config), roi.roi_id)
    return [MapPlan(name, grid) for grid, name in grids.items()]


def _of_vector_file(area: str, config: Config) -> MapPlan:
    from cropray.rois.vectors import mend, read_polygons, reproject

    path = Path(area).expanduser()
    if not path.exists():
        raise InputError(f"predict.area {area!r} is no file that is there; wanted {_FORMS}")
    frame = read_polygons(path, ())
    frame["geometry"], _ = mend(frame.geometry.to_numpy())
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if frame.empty:
        raise InputError(f"{path} holds no polygon with an area")
    min_x, min_y, max_x, max_y = (float(bound) for bound in frame.total_bounds)
    grid = _grid((min_x, min_y, max_x, max_y), frame.crs.to_string(), config)
    return MapPlan("", grid, tuple(reproject(frame, grid.crs, path).geometry))


def _grid(bounds: tuple[float, float, float, float], crs: str, config: Config) -> Grid:
    """The grid that export makes of the same bounds."""
    grid = config.grid
    return Grid.covering(
        bounds, crs, crs=grid.crs, resolution=grid.resolution, snap=grid.snap, min_size=config.patch.size
    )


def _as_bounds(area: str) -> tuple[float, float, float, float] | None:
    try:
        west, south, east, north = (float(part) for part in area.split(","))
    except ValueError:
        return None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise InputError(f"predict.area {area!r} is no bounding box in degrees; wanted {_FORMS}")
    return west, south, east, north

"""What a run knows of the place of a map: its sites and units nearby, and when harvests begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import shapely

from cropray.config import Config
from cropray.grid import Bounds, Grid, transform_bounds
from cropray.rois.store import ROIS, read_rois
from cropray.run import Run
from cropray.types import Roi

_NEAR = 0.25  # of a side of the locator, around what it shows


@dataclass(frozen=True)
class Harvest:
    """When the harvest of a crop begins, by the calendar of the nearest sites."""

    crop: str
    begins: date


@dataclass(frozen=True)
class Site:
    """An ROI: bounds in degrees, and its split."""

    bounds: Bounds
    split: str


@dataclass(frozen=True)
class Unit:
    """An administrative unit near a map, in degrees: its outline, and a point inside."""

    name: str
    outline: Any
    point: tuple[float, float]


@dataclass(frozen=True)
class Place:
    sites: tuple[Site, ...]
    units: tuple[Unit, ...]
    harvests: tuple[Harvest, ...]  # of the mapped crops, the earliest first


def read_place(run: Run, grid: Grid, crops: Sequence[str], as_of: date) -> Place:
    """From the ROIs and provinces of a run, which may have none."""
    rois = read_rois(run.folder) if run.folder.exists(ROIS) else []
    box = transform_bounds(grid.bounds, grid.crs, "EPSG:4326")
    sites = tuple(Site(transform_bounds(roi.bounds, roi.crs, "EPSG:4326"), roi.split) for roi in rois)
    return Place(sites, _units(run, box, sites), _harvests(rois, sites, box, crops, as_of))


def _harvests(
    rois: Sequence[Roi], sites: Sequence[Site], box: Bounds, crops: Sequence[str], as_of: date
) -> tuple[Harvest, ...]:
    """The next harvest of each crop as of a date: as at its nearest site, in the year that is nearest."""
    middle = shapely.Point((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    found: dict[str, tuple[float, date]] = {}
    for roi, site in zip(rois, sites, strict=True):
        if roi.harvest_start is None or roi.crop not in crops:
            continue
        away = shapely.box(*site.bounds).distance(middle)
        if roi.crop not in found or away < found[roi.crop][0]:
            found[roi.crop] = away, _nearest_year(roi.harvest_start, as_of)
    harvests = [Harvest(crop, begins) for crop, (_, begins) in found.items()]
    return tuple(sorted(harvests, key=lambda harvest: (harvest.begins, harvest.crop)))


def _nearest_year(day: date, near: date) -> date:
    """The day of the year that is nearest to another date; 29 February is 1 March where there is none."""
    days = []
    for year in (near.year - 1, near.year, near.year + 1):
        leap = day.month == 2 and day.day == 29
        days.append(date(year, 3, 1) if leap else day.replace(year=year))
    return min(days, key=lambda each: abs(each - near))


def _units(run: Run, box: Bounds, sites: Sequence[Site]) -> tuple[Unit, ...]:
    """The provinces around the map and its sites. None if their file is gone."""
    config: Config = run.config
    provinces = config.rois.provinces
    root = config.rois.data_root
    if config.simulates_inputs and run.folder.is_local and run.folder.exists("world/provinces.geojson"):
        root = str(run.folder.local("world"))
        provinces = provinces.model_copy(update={"path": "provinces.geojson"})
    if not provinces.path:
        return ()
    from cropray.errors import InputError
    from cropray.rois.provinces import read_provinces

    try:
        read = read_provinces(root, provinces, "EPSG:4326")
    except (InputError, OSError):  # the run may have moved away from its inputs
        return ()
    frame = shapely.box(*frame_of(box, sites))
    found = []
    for name, shape in zip(read.names, read.geometry, strict=True):
        inside = shapely.intersection(shape, frame)
        if not inside.is_empty:
            outline = shapely.intersection(shape.boundary, frame)
            found.append(Unit(name, outline, inside.representative_point().coords[0]))
    return tuple(found)


def frame_of(box: Bounds, sites: Sequence[Site]) -> Bounds:
    """What a locator shows: a map and the sites, with a margin."""
    every = np.array([box, *(site.bounds for site in sites)])
    (west, south), (east, north) = every[:, :2].min(axis=0), every[:, 2:].max(axis=0)
    side = max(east - west, north - south, 3 * (box[2] - box[0]))
    x, y, half = (west + east) / 2, (south + north) / 2, side / 2 * (1 + _NEAR)
    return float(x - half), float(y - half), float(x + half), float(y + half)

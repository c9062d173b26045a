"""What a prediction asks for: the maps of an area, and settings that fit the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config import Config
from cropray.config.rois import WindowConfig
from cropray.errors import InputError
from cropray.grid import Bounds, Grid, Window
from cropray.maps.tiles import PredictionSettings
from cropray.models.checkpoint import Checkpoint, check_classes, check_inputs
from cropray.rasters import burn
from cropray.rois.calendar import periods_for, season_so_far
from cropray.run import flat
from cropray.storage import Folder
from cropray.types import BoolArray, Period

_ROIS = "rois:"
_FORMS = '"min_lon,min_lat,max_lon,max_lat", a vector file of polygons, or rois:SPLIT'
_FAR_DAYS = 31  # from the as-of date of the training: more than that is another season


@dataclass(frozen=True)
class MapPlan:
    """One map: its grid, and its polygons in the CRS of the grid. Pixels outside them are nodata.

    A map without polygons covers its whole grid. `name` is its folder below the folder of the
    prediction, empty if it is the only map.
    """

    name: str
    grid: Grid
    shapes: tuple[Any, ...] = ()

    def wanted(self, tile: Window) -> BoolArray:
        """(H, W) of a tile: True if the pixel's centre lies in the area."""
        if not self.shapes:
            return np.ones((tile.height, tile.width), np.bool_)
        grid = self.grid.window(tile)
        near = self._tree.query(shapely.box(*grid.bounds))
        inside_hw: BoolArray = burn(((self.shapes[number], 1) for number in near), grid, 0) == 1
        return inside_hw

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)


def plan_maps(area: str, config: Config, folder: Folder) -> list[MapPlan]:
    """The maps of an area, ordered by name.

    A bounding box in degrees gives one map of the rectangle of the grid that covers it, and a vector
    file one map of its polygons. `rois:SPLIT` gives one map per ROI, since ROIs lie far apart and in
    several UTM zones. ROIs on the same grid (a field in several seasons) share a map. Raises InputError
    for anything else.
    """
    if area.startswith(_ROIS):
        return _of_rois(area.removeprefix(_ROIS), config, folder)
    bounds = _as_bounds(area, config.grid.crs)
    if bounds is not None:
        return [MapPlan("", _grid(bounds, "EPSG:4326", config))]
    return [_of_vector_file(area, config)]


def _as_bounds(area: str, grid_crs: str) -> Bounds | None:
    """The bounding box of a text, None if it is another form of an area. Across 180°, east is above 180."""
    try:
        west, south, east, north = (float(part) for part in area.split(","))
    except ValueError:
        return None
    latitudes_fit = -90 <= south < north <= 90
    if latitudes_fit and -180 <= west < east <= 180:
        return west, south, east, north
    if not latitudes_fit or not -180 <= east < west - 180 <= 0:
        raise InputError(f"predict.area {area!r} is not a bounding box in degrees. Give {_FORMS}.")
    if grid_crs == "utm":
        return west, south, east + 360, north
    raise InputError(
        f"predict.area {area!r} crosses 180°, where {grid_crs} (grid.crs) ends. Map it in two parts: "
        f'"{west:g},{south:g},180,{north:g}" and "-180,{south:g},{east:g},{north:g}".'
    )


def _of_rois(split: str, config: Config, folder: Folder) -> list[MapPlan]:
    from cropray.rois.store import read_rois

    rois = read_rois(folder)
    names = sorted({roi.split for roi in rois})
    if split not in names:
        raise InputError(f"predict.area is rois:{split}, but the splits of the ROIs are {', '.join(names)}.")
    grids: dict[Grid, str] = {}
    for roi in rois:
        if roi.split == split:
            grids.setdefault(_grid(roi.bounds, roi.crs, config), roi.roi_id)
    return [MapPlan(name, grid) for grid, name in grids.items()]


def _of_vector_file(area: str, config: Config) -> MapPlan:
    from cropray.rois.shapes import mend, reproject, unwrapped
    from cropray.rois.vectors import read_features

    path = Path(area).expanduser()
    if not path.exists():
        raise InputError(f"predict.area {area!r} does not exist. Give {_FORMS}.")
    frame = read_features(path, (), layer=config.predict.layer, layer_setting="predict.layer")
    frame["geometry"], _ = mend(frame.geometry.to_numpy())
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if frame.empty:
        raise InputError(f"{path} has no polygon with an area. Give a file of polygons.")
    bounds = frame.bounds.to_numpy()
    if frame.crs.is_geographic:
        bounds = shapely.bounds(unwrapped(frame.geometry.to_numpy()))
        if np.ptp(bounds[:, [0, 2]]) > 180:  # on both sides of 180°
            bounds[bounds[:, 0] < 0] += [360, 0, 360, 0]
    (min_x, min_y), (max_x, max_y) = bounds[:, :2].min(axis=0).tolist(), bounds[:, 2:].max(axis=0).tolist()
    grid = _grid((min_x, min_y, max_x, max_y), frame.crs.to_string(), config)
    return MapPlan("", grid, tuple(reproject(frame, grid.crs, path).geometry))


def _grid(bounds: Bounds, crs: str, config: Config) -> Grid:
    """The grid of an export with the same bounds."""
    grid = config.grid
    return Grid.covering(
        bounds, crs, crs=grid.crs, resolution=grid.resolution, snap=grid.snap, min_size=config.patch.size
    )


def prediction_settings(checkpoint: Checkpoint, config: Config) -> PredictionSettings:
    """The settings of all tiles of a prediction.

    Raises InputError if the classes, the grid or the composites differ from those of the training, for
    an overlap of more than half a patch, and as `prediction_periods` says.
    """
    predict, size = config.predict, config.patch.size
    if predict.overlap > size // 2:  # a third patch would reach in
        raise InputError(
            f"predict.overlap is {predict.overlap}. Set at most {size // 2}, half of patch.size."
        )
    if config.classes:
        check_classes(checkpoint, config.classes, predict.model or "of this run")
    _check_imagery(checkpoint, config)
    as_of = given_as_of(config)
    periods = prediction_periods(checkpoint, as_of, predict.assume_harvest)
    if predict.sure and not checkpoint.decision(len(periods)).quantiles:
        raise InputError(
            "predict.sure is set, but the model does not know how sure it is: its training had no val split "
            "with labelled pixels, or an earlier version made it. Train it again, or leave predict.sure out."
        )
    return PredictionSettings(
        periods=periods,
        as_of=as_of,
        recipe=config.composite.recipe(config.source.max_lost),
        size=size,
        overlap=predict.overlap,
        batch_size=predict.batch_size,
        sure=predict.sure,
        precision=predict.precision,
    )


def given_as_of(config: Config) -> date:
    """The as-of date. Raises InputError if it is not set, since no default would be sensible."""
    if config.predict.as_of is None:
        raise InputError(
            "prediction needs an as-of date, the last day whose scenes may be used. "
            "Give --as-of YYYY-MM-DD, or set predict.as_of."
        )
    return config.predict.as_of


def prediction_periods(
    checkpoint: Checkpoint, as_of: date, assume_harvest: date | None
) -> tuple[Period, ...]:
    """The months that the network sees.

    A network trained on windows that end on an as-of date sees the months up to this one; an any-date network
    sees those of its window, in the season of this date, that are over. A network trained on windows before
    the harvest needs a harvest, which is unknown as long as the crop is.
    Raises InputError unless the user assumes one, and if it needs scenes after `as_of`.
    """
    window = checkpoint.window
    months, lead_months = checkpoint.months, int(window["lead_months"])
    if checkpoint.any_date:
        return season_so_far(WindowConfig.model_validate(window), as_of, checkpoint.recipe["min_months"])
    if window["anchor"] == "as_of":
        return periods_for(WindowConfig(anchor="as_of", months=months, as_of=as_of), None)
    if assume_harvest is None:
        raise InputError(
            "this model was trained on months before the harvest, which is unknown as long as the crop is. "
            "Give the start of the harvest to assume: --assume-harvest YYYY-MM-DD. "
            "Or train with window.anchor=as_of."
        )
    harvest = WindowConfig(anchor="harvest", months=months, lead_months=lead_months)
    periods = periods_for(harvest, assume_harvest)
    if periods[-1].end.toordinal() - 1 > as_of.toordinal():
        raise InputError(
            f"with a harvest on {assume_harvest} the model sees scenes before {periods[-1].end} "
            f"({lead_months} months earlier), so also scenes after the as-of date {as_of}. "
            "Give a later as-of date or an earlier harvest."
        )
    return periods


def season_warning(checkpoint: Checkpoint, as_of: date) -> str | None:
    """A warning if the as-of date lies in another season than that of the training."""
    trained = checkpoint.window.get("as_of")
    if checkpoint.any_date or checkpoint.window["anchor"] != "as_of" or trained is None:
        return None
    apart = abs(as_of.timetuple().tm_yday - date.fromisoformat(trained).timetuple().tm_yday)
    days = min(apart, 365 - apart)
    if days <= _FAR_DAYS:
        return None
    return (
        f"the model was trained as of {trained}, {days} days of the year away from {as_of}. "
        "Crops look different then, and the map may be wrong."
    )


def _check_imagery(checkpoint: Checkpoint, config: Config) -> None:
    now = flat(config.model_dump(mode="json", include=set(checkpoint.imagery)))
    differing = [
        f"{key}: {was!r} then, {now.get(key)!r} now"
        for key, was in flat(checkpoint.imagery).items()
        if now.get(key) != was
    ]
    if differing:
        raise InputError(
            f"the model was trained on other imagery ({'; '.join(differing)}). "
            "Set these as they were, or use a model trained with the present ones."
        )


def check_source(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raises InputError if an imagery source has other bands or backscatter than the training had.

    A network of some of the bands gets those alone.
    """
    check_inputs(
        checkpoint,
        s2_bands=[name for name in S2_NAMES if name in checkpoint.s2_bands],
        s1_bands=[name for name in S1_NAMES if name in checkpoint.s1_bands],
        s1_quantity=identity["s1_quantity"],
        where=f"the source {identity['kind']}",
    )

"""Hectares of a class map, on the ellipsoid, read block by block."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Geod, Transformer

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config import Config
from cropray.config.rois import WindowConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.maps.tiles import NODATA, PredictionSettings
from cropray.models.checkpoint import Checkpoint, check_classes, check_inputs
from cropray.rasters import read_grid, read_window
from cropray.rois.calendar import periods_for
from cropray.run import flat
from cropray.types import BACKGROUND, Period

_BLOCK = 512
_CELL = 32  # pixels a side within which pixels are taken to be equally large
_M2_A_HECTARE = 1e4


def pixel_hectares(grid: Grid) -> npt.NDArray[np.float64]:
    """(H, W): the area of each pixel on the WGS 84 ellipsoid.

    Geodesic polygons (Karney 2013, Algorithms for geodesics, doi:10.1007/s00190-012-0578-z) of cells
    of at most 32 x 32 pixels, shared evenly by their pixels: right for any CRS, and in sum to 1e-6
    of the area, since the scale of a projection changes little within a cell.
    """
    rows, cols = (_edges(length) for length in grid.shape)
    x, y = np.meshgrid(grid.x0 + cols * grid.resolution, grid.y0 - rows * grid.resolution)
    lon, lat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    geod = Geod(ellps="WGS84")
    hectares_hw = np.empty(grid.shape)
    for i in range(len(rows) - 1):
        for j in range(len(cols) - 1):
            corners = (i, i, i + 1, i + 1), (j, j + 1, j + 1, j)
            area_m2, _ = geod.polygon_area_perimeter(lon[corners], lat[corners])
            cell = hectares_hw[rows[i] : rows[i + 1], cols[j] : cols[j + 1]]
            cell[:] = abs(area_m2) / _M2_A_HECTARE / cell.size
    return hectares_hw


def class_areas(path: str, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Pixels and hectares of each class of a class map, and of none of them; nodata is not counted.

    These are counts of mapped pixels, not estimates of area: an estimate corrects them by the
    errors of the map (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015).
    """
    grid = read_grid(path)
    pixels = np.zeros(256, np.int64)
    hectares = np.zeros(256)
    for block in grid.blocks(_BLOCK):
        values = read_window(path, block)[0].ravel()
        if (values == NODATA).all():
            continue
        pixels += np.bincount(values, minlength=256)
        hectares += np.bincount(values, pixel_hectares(grid.window(block)).ravel(), minlength=256)
    names = dict(enumerate(classes)) | {BACKGROUND: "none of the classes"}
    return {
        name: {"pixels": int(pixels[value]), "hectares": round(float(hectares[value]), 4)}
        for value, name in names.items()
    }


def areas_csv(areas: dict[str, dict[str, float]]) -> str:
    """A table: class, pixels, hectares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pixels", "hectares"])
    writer.writerows([name, row["pixels"], row["hectares"]] for name, row in areas.items())
    return text.getvalue()


def _edges(length: int) -> npt.NDArray[np.int64]:
    return np.append(np.arange(0, length, _CELL), length)


_FAR_DAYS = 31


def prediction_settings(checkpoint: Checkpoint, config: Config) -> PredictionSettings:
    """What tiles are predicted with. Raises InputError, see `prediction_periods`.

    Raises InputError also for an overlap of more than half a patch (a third patch would reach in).
    """
    predict, size = config.predict, config.patch.size
    if predict.overlap > size // 2:
        raise InputError(f"predict.overlap is {predict.overlap}; wanted at most half of patch.size, {size}")
    if config.classes:
        check_classes(checkpoint, config.classes, predict.model or "of this run")
    check_imagery(checkpoint, config)
    as_of = given_as_of(config)
    return PredictionSettings(
        periods=prediction_periods(checkpoint, as_of, predict.assume_harvest),
        as_of=as_of,
        recipe=config.composite.recipe(),
        size=size,
        overlap=predict.overlap,
        batch_size=predict.batch_size,
    )


def given_as_of(config: Config) -> date:
    """Raises InputError where no as-of date is set: there is no sensible one to assume."""
    if config.predict.as_of is None:
        raise InputError(
            "prediction needs an as-of date, the last day whose scenes may be used: "
            "--as-of YYYY-MM-DD, or predict.as_of in the configuration"
        )
    return config.predict.as_of


def prediction_periods(
    checkpoint: Checkpoint, as_of: date, assume_harvest: date | None
) -> tuple[Period, ...]:
    """The months that the network is to see.

    A network trained on windows that end on an as-of date sees those that end on this one. One
    trained on windows before the harvest needs a harvest, which of a pixel of unknown crop nobody
    knows: refused, unless the user assumes one, and then nothing after `as_of` may be needed.
    """
    window = checkpoint.window
    months, lead_months = checkpoint.months, int(window["lead_months"])
    if window["anchor"] == "as_of":
        return periods_for(WindowConfig(anchor="as_of", months=months, as_of=as_of), None)
    if assume_harvest is None:
        raise InputError(
            "this model was trained on windows before the harvest of the crop, which is not known where "
            "the crop is to be found; train with window.anchor=as_of, or say which harvest start to assume: "
            "--assume-harvest YYYY-MM-DD"
        )
    harvest = WindowConfig(anchor="harvest", months=months, lead_months=lead_months)
    periods = periods_for(harvest, assume_harvest)
    if periods[-1].end.toordinal() - 1 > as_of.toordinal():
        raise InputError(
            f"with a harvest assumed on {assume_harvest} the model sees scenes up to {periods[-1].end} "
            f"(exclusive, {lead_months} months before), which is after the as-of date {as_of}; "
            "give a later as-of date or an earlier harvest"
        )
    return periods


def season_warning(checkpoint: Checkpoint, as_of: date) -> str | None:
    """What to say where the as-of date lies in another season than the training's."""
    trained = checkpoint.window.get("as_of")
    if checkpoint.window["anchor"] != "as_of" or trained is None:
        return None
    apart = abs(as_of.timetuple().tm_yday - date.fromisoformat(trained).timetuple().tm_yday)
    days = min(apart, 365 - apart)
    if days <= _FAR_DAYS:
        return None
    return (
        f"the model was trained as of {trained}, {days} days of the year away from {as_of}: "
        "crops look different then, and the map may be wrong"
    )


def check_imagery(checkpoint: Checkpoint, config: Config) -> None:
    """Raises InputError where grid or composites are set otherwise than what was trained on."""
    now = flat(config.model_dump(mode="json", include=set(checkpoint.imagery)))
    differing = [
        f"{key}: {was!r} then, {now.get(key)!r} now"
        for key, was in flat(checkpoint.imagery).items()
        if now.get(key) != was
    ]
    if differing:
        raise InputError(
            f"the model was trained on other imagery ({'; '.join(differing)}): set these as they were, or "
            "use a model trained with the present ones"
        )


def check_source(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raises InputError where a source of imagery offers other bands or backscatter than was trained on."""
    check_inputs(
        checkpoint,
        s2_bands=S2_NAMES,
        s1_bands=S1_NAMES,
        s1_quantity=identity["s1_quantity"],
        where=f"the source {identity['kind']}",
    )

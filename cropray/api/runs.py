"""Runs, models, composites and maps from Python, by the code that the stages use."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cropray.api.cubes import classes_raster, cube, import_xarray, physical, stored
from cropray.api.maps import Map
from cropray.bands import S1_NAMES, S2_NAMES
from cropray.cluster import check_run_folder
from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.config.rois import WindowConfig
from cropray.errors import InputError, nearest
from cropray.evaluation.mosaics import plan_tiles, read_tile
from cropray.figures.charts import EVALUATION
from cropray.grid import Grid, lonlat
from cropray.imagery import MeteredSource, open_source
from cropray.maps.catalogue import ITEM
from cropray.maps.request import plan_maps
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.models.inference import Predictor
from cropray.pipeline.predict import predict as predict_stage
from cropray.rois.calendar import periods_for
from cropray.rois.splits import SPLITS
from cropray.run import Run, Summary, config_of, flat
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.tracking.registry import resolve_model
from cropray.types import ImageRequest, Period

if TYPE_CHECKING:
    import xarray as xr

_TILE = 512  # pixels a side of what is asked of a source at a time
_MOST_PIXELS = 4096**2  # of a composite in memory: 1.2 GB a month with all bands

Settings = Mapping[str, Any]
"""Settings by dotted key, as in `{"source.kind": "earthengine"}`."""


@dataclass(frozen=True)
class OpenRun:
    """A run folder with its settings."""

    run: Run

    def __repr__(self) -> str:
        return f"OpenRun({self.run.folder.uri!r}, finished: {', '.join(self.stages) or 'nothing'})"

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def stages(self) -> dict[str, Summary]:
        """The summary of each finished stage, by name."""
        names = [name.removesuffix(".json") for name in self.run.folder.child("stages").names(".json")]
        # Those of a map and of a sweep lie beside them; the settings name them.
        found = {name: self.run.summary(name) for name in (*names, "tune", "predict")}
        return {name: summary for name, summary in found.items() if summary is not None}

    @property
    def evaluation(self) -> dict[str, Any]:
        """evaluation.json, whose keys docs/evaluation.md explains. Raises InputError before `evaluate`."""
        if not self.run.folder.exists(EVALUATION):
            raise InputError(f"{self.run.folder} has no evaluation yet. Run cropray evaluate.")
        result: dict[str, Any] = json.loads(self.run.folder.read_text(EVALUATION))
        return result

    def sample_ids(self, split: str) -> list[str]:
        """The samples of a split, in the order of the shards."""
        return list(self._reader(split).table["sample_id"].to_pylist())

    def sample(self, sample_id: str) -> xr.Dataset:
        """A sample of the shards: `s2`, `s1`, `label` (y, x), and `truth` if it is known."""
        for split in SPLITS:
            if not shard_uris(self.run.folder, split):
                continue
            reader = self._reader(split)
            ids = reader.table["sample_id"].to_pylist()
            if sample_id in ids:
                return _sample(reader, ids.index(sample_id))
        raise InputError(f"{self.run.folder} has no sample {sample_id!r}. sample_ids(split) lists them.")

    def roi(self, roi_id: str) -> xr.Dataset:
        """All of an ROI, put together from its samples, as `sample`."""
        for split in SPLITS:
            if not shard_uris(self.run.folder, split):
                continue
            reader = self._reader(split)
            ids = set(reader.table["roi_id"].to_pylist())
            if roi_id in ids:
                return _roi(reader, roi_id, self.config.predict.overlap)
        raise InputError(f"{self.run.folder} has no shards of an ROI {roi_id!r}. See rois/rois.parquet.")

    def map(self, name: str = "map") -> Map:
        """The map maps/`name`; that of an ROI is `name/ROI_ID`. Raises InputError if there is none."""
        folder = self.run.folder.child(f"maps/{name}")
        if not folder.exists(ITEM):
            items = self.run.folder.child("maps").names(f"/{ITEM}")
            known = [item.removesuffix(f"/{ITEM}") for item in items]
            raise InputError(f"{self.run.folder} has no map {name!r}.{nearest(name, known)}")
        return Map(folder)

    def _reader(self, split: str) -> ShardReader:
        uris = shard_uris(self.run.folder, split)
        if not uris:
            raise InputError(f"{self.run.folder} has no shards of {split!r}. Run cropray compact.")
        return ShardReader(uris, batch_size=1, shuffle=False)


@dataclass(frozen=True)
class Model:
    """A trained network in memory."""

    checkpoint: Checkpoint
    _predictor: Predictor

    def __repr__(self) -> str:
        what = f"{len(self.classes)} classes, {self.checkpoint.months} months"
        return f"Model({what}{', any date' if self.checkpoint.any_date else ''})"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.classes

    def scores(self, data: xr.Dataset) -> xr.DataArray:
        """Calibrated scores (class, y, x) of a data set as `composite` makes it, of the model's months.

        An any-date model takes fewer: the first ones of its window. Raises InputError for missing bands or
        another number of months. A whole area is for `cropray.predict`, which works tile by tile.
        """
        names = {"s2": self.checkpoint.s2_bands, "s1": self.checkpoint.s1_bands}
        cubes = {key: stored(data, key, names[key], self.checkpoint.months)[None] for key in names}
        if cubes["s1"].shape[2] < self.checkpoint.months and not self.checkpoint.any_date:
            raise InputError(
                f"the data set has {cubes['s1'].shape[2]} periods, the model needs {self.checkpoint.months}."
            )
        place_b2 = None
        if self._predictor.needs_places and "crs" in data.attrs:
            middle = ([float(data[axis].mean())] for axis in ("x", "y"))
            place_b2 = lonlat([data.attrs["crs"]], *map(np.array, middle))
        (values_khw,) = self._predictor.probabilities(cubes["s1"], cubes["s2"], place_b2)
        scores: xr.DataArray = import_xarray().DataArray(
            values_khw,
            dims=("class", "y", "x"),
            coords={"class": list(self.classes), "y": data["y"], "x": data["x"]},
            name="scores",
            attrs={key: data.attrs[key] for key in ("crs",) if key in data.attrs},
        )
        return scores


def open_run(folder: str | Path) -> OpenRun:
    """A run folder, by path or URI. Raises InputError if it holds no run."""
    place = Folder(check_run_folder(str(folder)))
    config = config_of(place)
    if config is None:
        inner = (
            sorted(path.parent.name for path in place.local().glob("*/config.yaml")) if place.is_local else []
        )
        hint = f" It holds the runs {', '.join(inner[:8])}." if inner else ""
        raise InputError(f"{folder} is no run folder: it has no config.yaml.{hint}")
    return OpenRun(Run(place, config))


def load_model(model: str, *, settings: Settings | None = None) -> Model:
    """A model of the registry (models:/NAME@ALIAS, models:/NAME/VERSION) or a checkpoint folder.

    `settings` may name the registry (`tracking.uri`). Raises InputError if there is no such model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Folder(scratch), updated(Config(), settings or {}, "settings"))
        checkpoint = load_checkpoint(resolve_model(model, run))
    return Model(checkpoint, Predictor(checkpoint))


def composite(
    area: str, as_of: date | str, source: str | Settings, *, months: int = 6, settings: Settings | None = None
) -> xr.Dataset:
    """Monthly composites of an area, the last of which ends on `as_of`.

    `area` is "min_lon,min_lat,max_lon,max_lat" or a vector file, `source` a kind (earthengine, stac,
    simulated) or its settings ({"kind": "stac", "stac": …}), and `settings` others (`grid.…`, `composite.…`).
    Raises InputError for what the source refuses, and for more than 4096 × 4096 pixels.
    """
    config = _configured(source, settings)
    (plan,) = plan_maps(area, config, Folder("."))
    grid, last = plan.grid, date.fromisoformat(str(as_of))
    if grid.height * grid.width > _MOST_PIXELS:
        raise InputError(
            f"the area has {grid.height} x {grid.width} pixels, too many for memory. Give a smaller one, or "
            "map it with cropray.predict, which works tile by tile."
        )
    periods = periods_for(WindowConfig(anchor="as_of", months=months, as_of=last), None)
    recipe = config.composite.recipe(config.source.max_lost)
    opened = open_source(config)
    shape = (months, *grid.shape)
    values = {"s2": np.full((len(S2_NAMES), *shape), np.nan, np.float32)}
    values["s1"] = np.full((len(S1_NAMES), *shape), np.nan, np.float32)
    for number, tile in enumerate(grid.blocks(_TILE)):
        request = ImageRequest(grid.window(tile), grid, periods, recipe, last, name=f"tile {number + 1}")
        if number == 0 and isinstance(opened, MeteredSource):
            opened.preflight(request)
        made = opened.composite(request)
        for sensor, tchw, valid in (
            ("s2", made.s2_tchw, made.s2_valid_thw),
            ("s1", made.s1_tchw, made.s1_valid_thw),
        ):
            seen = np.where(valid[:, None], tchw, np.float32(np.nan))
            values[sensor][:, :, *tile.slices] = seen.swapaxes(0, 1)
    return cube(values, grid, periods, {"s2": S2_NAMES, "s1": S1_NAMES})


def predict(
    area: str,
    as_of: date | str,
    model: str,
    source: str | Settings,
    *,
    folder: str | Path | None = None,
    settings: Settings | None = None,
) -> Map:
    """Map an area as of a date with a model, as `cropray predict` does, on the Ray in use or a local one.

    The map and what is needed to go on after an interruption lie in `folder`, a new run folder or one of the
    same settings; without it in a temporary one, which stays. `source` and `settings` as for `composite`;
    grid and composites are those of the model. Raises InputError as the stage does.
    """
    place = Folder(check_run_folder(str(folder or tempfile.mkdtemp(prefix="cropray-"))))
    first = _configured(source, settings)
    found = resolve_model(model, Run(place, first))
    trained = load_checkpoint(found).imagery
    imagery = flat(trained) if trained else {}
    wanted = {"predict.area": area, "predict.as_of": str(as_of), "predict.model": model}
    config = updated(first, {**imagery, **wanted}, "the model's imagery")
    predict_stage(Run(place, config))
    return OpenRun(Run(place, config)).map(config.predict.name)


def _configured(source: str | Settings, settings: Settings | None) -> Config:
    kind = {"source.kind": source} if isinstance(source, str) else {"source": dict(source)}
    return updated(load_config(None), {**kind, **(settings or {})}, "source and settings")


def _sample(reader: ShardReader, position: int) -> xr.Dataset:
    row = {name: column[0] for name, column in reader.table.slice(position, 1).to_pydict().items()}
    batch = reader.take([position])
    height, width = batch.label_bhw.shape[1:]
    step = row["resolution"]
    grid = Grid(row["crs"], row["x0"] + row["col"] * step, row["y0"] - row["row"] * step, step, height, width)
    cubes = {"s2": batch.s2_bcthw[0], "s1": batch.s1_bcthw[0]}
    truth = None if batch.truth_bhw is None else batch.truth_bhw[0]
    return _labelled(reader, row, grid, cubes, batch.label_bhw[0], truth)


def _roi(reader: ShardReader, roi_id: str, overlap: int) -> xr.Dataset:
    mine = np.flatnonzero(np.array(reader.table["roi_id"].to_pylist()) == roi_id)
    row = {name: column[0] for name, column in reader.table.slice(int(mine[0]), 1).to_pydict().items()}
    whole = max(row["roi_height"], row["roi_width"])
    (plan,) = (plan for plan in plan_tiles(reader, overlap, whole) if plan.roi_id == roi_id)
    tile = read_tile(reader, plan)
    grid = plan.grid.window(plan.inner)
    cubes = {"s2": tile.s2_cthw, "s1": tile.s1_cthw}
    return _labelled(reader, row, grid, cubes, tile.label_hw, tile.truth_hw)


def _labelled(
    reader: ShardReader, row: Mapping[str, Any], grid: Grid, cubes: Mapping[str, Any], label: Any, truth: Any
) -> xr.Dataset:
    """Stored arrays as a data set with labels, and what the shards say of the sample."""
    metadata = reader.metadata
    periods = [Period(*pair) for pair in zip(row["period_start"], row["period_end"], strict=True)]
    values = {sensor: physical(cubes[sensor], sensor) for sensor in cubes}
    data = cube(values, grid, periods, {"s2": metadata.s2_bands, "s1": metadata.s1_bands})
    data["label"] = classes_raster(label, grid, metadata.classes, "label")
    if truth is not None:
        data["truth"] = classes_raster(truth, grid, metadata.classes, "truth")
    about = {
        key: row[key] for key in ("roi_id", "split", "crop", "season", "province", "country") if row.get(key)
    }
    return data.assign_attrs(about, s1_quantity=metadata.s1_quantity)

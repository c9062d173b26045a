"""A model over an area of any size: tiles fanned out over Ray, then streamed into one map.

Every finished tile is published as a part, so a prediction that was stopped goes on where it was.
Layout of maps/<name>/: map.tif, probabilities.tif, areas.json, areas.csv, picture.png, item.json and
summary.json; with rois:SPLIT a folder of these for every ROI, and the summary above them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import shapely

from cropray import __version__
from cropray.cluster import for_workers, ray_session
from cropray.config import Config
from cropray.grid import Window
from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.maps.products import MapIdentity, publish_map
from cropray.maps.request import (
    MapPlan,
    check_source,
    given_as_of,
    plan_maps,
    prediction_settings,
    season_warning,
)
from cropray.maps.tiles import PredictionSettings, TileResult, decode_tile, encode_tile, predict_tile
from cropray.models.checkpoint import DESCRIPTION, load_checkpoint
from cropray.models.heads import with_head
from cropray.models.inference import Predictor
from cropray.pipeline.cluster_quota import ClusterQuota, cluster_quota
from cropray.pipeline.fan_out import fan_out
from cropray.pipeline.monitor import follow
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.storage import Folder
from cropray.tracking.registry import resolve_model
from cropray.types import ImageRequest


@dataclass(frozen=True)
class MapTile:
    """A window of one map, and the name of its part. The map is named: its polygons may be many."""

    map_name: str
    window: Window

    @property
    def part(self) -> str:
        return f"{self.map_name or 'map'}/{self.window.row:07d}-{self.window.col:07d}.npz"


class TilePredictor:
    """Publishes the parts of a map, with one network on the GPU that it was given, else on the CPU."""

    def __init__(
        self,
        config: Config,
        plans: Sequence[MapPlan],
        checkpoint: Folder,
        settings: PredictionSettings,
        parts: Folder,
        quota: ClusterQuota | None,
    ) -> None:
        import torch

        self._plans = {plan.name: plan for plan in plans}
        self._settings, self._parts = settings, parts
        self._source = open_source(config, quota)
        model = with_head(load_checkpoint(checkpoint), config.predict.head, str(checkpoint))
        self._predictor = Predictor(model, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, tile: MapTile) -> None:
        plan = self._plans[tile.map_name]
        wanted = plan.wanted(tile.window)
        result = predict_tile(tile.window, wanted, plan.grid, self._source, self._predictor, self._settings)
        self._parts.write_bytes(tile.part, encode_tile(result))


def predict(run: Run) -> Summary:
    """Map `predict.area` as of `predict.as_of` with `predict.model`; see the module for the files.

    A finished map of the same model and settings is reused, one of another model or area is drawn
    anew. Raises InputError where one of these is missing or does not fit the others, and where
    maps/<name> holds a map of other settings.
    """
    config = run.config
    given_as_of(config)
    run.begin("predict")
    checkpoint_folder = resolve_model(config.predict.model, run)
    checkpoint = with_head(load_checkpoint(checkpoint_folder), config.predict.head, str(checkpoint_folder))
    settings = prediction_settings(checkpoint, config)
    source = open_source(config)
    check_source(checkpoint, source.identity())
    plans = plan_maps(config.predict.area, config, run.folder)
    output = run.folder.child(f"maps/{config.predict.name}")
    inputs = _inputs(checkpoint_folder, config.predict.head, settings, source.identity(), plans)
    finished = run.finished("predict", inputs)
    if finished is not None:
        say(f"predict: reused {output}")
        return finished
    warning = season_warning(checkpoint, settings.as_of)
    if warning:
        say(f"predict: warning: {warning}")
    key = _hash([__version__, inputs, config.predict.tile_size, config.predict.probabilities])
    parts = output.child(f"parts/{key}")
    size = config.predict.tile_size
    tiles = [MapTile(plan.name, window) for plan in plans for window in plan.grid.blocks(size)]
    _predict_tiles(tiles, plans, run, checkpoint_folder, settings, source, parts)
    if run.changed("predict", inputs):
        _clear(output)
    identity = MapIdentity(
        title=f"crops of {config.predict.area}",
        model=config.predict.model or _relative(checkpoint_folder, run.folder),
        classes=checkpoint.classes,
        thresholds=tuple(Predictor(checkpoint).thresholds.tolist()),
        settings=settings,
        key=key,
    )
    summary = {
        "as_of": settings.as_of.isoformat(),
        "model": identity.model,
        "tiles": len(tiles),
        "warning": warning,
        "maps": _publish_maps(plans, tiles, parts, output, identity, config),
    }
    run.finish("predict", summary, inputs)
    output.delete_folder("parts")
    return summary


def _predict_tiles(
    tiles: Sequence[MapTile],
    plans: Sequence[MapPlan],
    run: Run,
    checkpoint: Folder,
    settings: PredictionSettings,
    source: ImagerySource,
    parts: Folder,
) -> None:
    """Predict the tiles that have no part yet. Raises InputError where some failed; others are kept."""
    config = run.config
    done = set(parts.names(".npz"))
    missing = [tile for tile in tiles if tile.part not in done]
    if done:
        say(f"predict: reused {len(tiles) - len(missing)} of {len(tiles)} tiles")
    if not missing:
        return
    if isinstance(source, MeteredSource):
        source.preflight(_request(missing[0], plans, settings))
    with ray_session(config.ray):
        processes = min(config.ray.concurrency, len(missing))
        quota = cluster_quota(config, processes)
        outcomes = fan_out(
            "predict",
            TilePredictor,
            (for_workers(config), plans, checkpoint, settings, parts, quota),
            missing,
            config=config.ray,
            processes=processes,
            threads=1,  # a tile uses a CPU, or a share of a GPU, up
            resources=resources_per_process(processes),
        )
        follow("predict", outcomes, len(missing), run, quota, name="part")


def resources_per_process(processes: int) -> dict[str, float]:
    """A CPU, and an equal share of the cluster's GPUs that lets all processes run at the same time."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return {"CPU": 1.0} | ({"GPU": 1 / math.ceil(processes / gpus)} if gpus else {})


def _request(tile: MapTile, plans: Sequence[MapPlan], settings: PredictionSettings) -> ImageRequest:
    """What a tile takes at least: `predict_tile` asks for whole patches."""
    (extent,) = (plan.grid for plan in plans if plan.name == tile.map_name)
    return ImageRequest(
        grid=extent.window(tile.window),
        extent=extent,
        periods=settings.periods,
        recipe=settings.recipe,
        not_after=settings.as_of,
        name=tile.part,
    )


def _publish_maps(
    plans: Sequence[MapPlan],
    tiles: Sequence[MapTile],
    parts: Folder,
    output: Folder,
    identity: MapIdentity,
    config: Config,
) -> list[dict[str, Any]]:
    made = []
    with progress("map", len(plans)) as bar:
        for plan in plans:
            part_of = {tile.window: tile.part for tile in tiles if tile.map_name == plan.name}

            def read(window: Window, part_of: Mapping[Window, str] = part_of) -> TileResult:
                return decode_tile(parts.read_bytes(part_of[window]))

            folder = output.child(plan.name) if plan.name else output
            areas = publish_map(
                folder, plan, part_of, read, identity, probabilities=config.predict.probabilities
            )
            hectares = {name: area["hectares"] for name, area in areas.items()}
            made.append({"name": plan.name, "folder": folder.uri, "hectares": hectares})
            bar.advance()
    return made


def _clear(output: Folder) -> None:
    """Take away the files of another map of the name: this one may have fewer."""
    for name in output.names():
        if not name.startswith("parts/"):
            output.delete(name)


def _inputs(
    checkpoint: Folder,
    head: str | None,
    settings: PredictionSettings,
    source: Mapping[str, Any],
    plans: Sequence[MapPlan],
) -> Inputs:
    chosen = asdict(settings)
    del chosen["batch_size"]
    return {
        # The description has the checksum of the weights.
        "model": _hash([checkpoint.read_text(DESCRIPTION), head]),
        "imagery": _hash([chosen, source]),
        "area": _hash([[p.name, asdict(p.grid), [shapely.to_wkb(s).hex() for s in p.shapes]] for p in plans]),
    }


def _hash(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _relative(folder: Folder, root: Folder) -> str:
    return folder.uri.removeprefix(root.uri.rstrip("/") + "/")

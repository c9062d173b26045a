"""A model over an area of any size: tiles fanned out on Ray Data, then streamed into one map.

Every finished tile is published as a part, so a prediction that was stopped goes on where it was.
Layout of maps/<name>/: map.tif, probabilities.tif, areas.json, areas.csv, picture.png, item.json and
summary.json; with rois:SPLIT a folder of these for every ROI, and the summary above them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import shapely

from cropray import __version__
from cropray.config import Config
from cropray.grid import Window
from cropray.imagery.open import open_source
from cropray.imagery.source import ImagerySource, MeteredSource
from cropray.maps.conditions import check_source, given_as_of, prediction_settings, season_warning
from cropray.maps.mosaic import decode_tile, encode_tile
from cropray.maps.plan import MapPlan, plan_maps
from cropray.maps.publish import MapIdentity, publish_map
from cropray.maps.tiles import PredictionSettings, TileResult, predict_tile
from cropray.models.checkpoint import DESCRIPTION, load_checkpoint
from cropray.models.heads import with_head
from cropray.models.predictor import Predictor
from cropray.pipeline.cluster import for_workers, quiet_ray_data, ray_session
from cropray.pipeline.events import event_log
from cropray.pipeline.failures import TILE_FAILURES, refuse_failures, told
from cropray.pipeline.quota import ClusterQuota, QuotaWatch, cluster_quota
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.storage import Folder
from cropray.tracking.registry import resolve_model
from cropray.types import ImageRequest


@dataclass(frozen=True)
class _Tile:
    """A window of one map, and the name of its part."""

    plan: MapPlan
    window: Window

    @property
    def part(self) -> str:
        return f"{self.plan.name or 'map'}/{self.window.row:07d}-{self.window.col:07d}.npz"

    def request(self, settings: PredictionSettings) -> ImageRequest:
        """What it takes at least: `predict_tile` asks for whole patches."""
        return ImageRequest(
            grid=self.plan.grid.window(self.window),
            extent=self.plan.grid,
            periods=settings.periods,
            recipe=settings.recipe,
            not_after=settings.as_of,
            name=self.part,
        )


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
    tiles = [_Tile(plan, window) for plan in plans for window in plan.grid.blocks(config.predict.tile_size)]
    _predict_tiles(tiles, run, checkpoint_folder, settings, source, parts)
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
    tiles: Sequence[_Tile],
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
        source.preflight(missing[0].request(settings))
    failures: dict[str, str] = {}
    with ray_session(config.ray), event_log(run.folder, "predict") as events:
        import ray

        quiet_ray_data()
        workers = min(config.ray.concurrency, len(missing))
        gpus = ray.cluster_resources().get("GPU", 0)
        watch = QuotaWatch(cluster_quota(config, workers), events, len(missing))
        # One tile a block: each outcome comes back as soon as its tile is done.
        outcomes = ray.data.range(len(missing), override_num_blocks=len(missing)).map(
            _TileWorker,
            fn_constructor_args=(missing, for_workers(config), checkpoint, settings, parts, watch.quota),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=min(1.0, gpus / workers),
        )
        with progress("predict", len(missing)) as bar:
            for tried, outcome in enumerate(outcomes.iter_rows(), start=1):
                events.record(**outcome)
                if outcome["error"]:
                    failures[outcome["part"]] = outcome["error"]
                bar.advance(note=watch.note(tried, [f"{len(failures)} failed"] if failures else []))
                if len(failures) >= config.ray.max_failures:
                    break
    refuse_failures("predict", failures, len(missing), len(missing) - tried)


class _TileWorker:
    """Predicts the tile of a row's number and publishes its part; an error becomes a row."""

    def __init__(
        self,
        tiles: Sequence[_Tile],
        config: Config,
        checkpoint: Folder,
        settings: PredictionSettings,
        parts: Folder,
        quota: ClusterQuota | None,
    ) -> None:
        import torch

        self._tiles, self._settings, self._parts = tiles, settings, parts
        self._source = open_source(config, quota)
        model = with_head(load_checkpoint(checkpoint), config.predict.head, str(checkpoint))
        self._predictor = Predictor(model, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        tile = self._tiles[row["id"]]
        try:
            result = predict_tile(
                tile.window,
                tile.plan.wanted(tile.window),
                tile.plan.grid,
                self._source,
                self._predictor,
                self._settings,
            )
            self._parts.write_bytes(tile.part, encode_tile(result))
        except TILE_FAILURES as failure:
            return {"part": tile.part, "error": told(failure)}
        return {"part": tile.part, "error": ""}


def _publish_maps(
    plans: Sequence[MapPlan],
    tiles: Sequence[_Tile],
    parts: Folder,
    output: Folder,
    identity: MapIdentity,
    config: Config,
) -> list[dict[str, Any]]:
    made = []
    with progress("map", len(plans)) as bar:
        for plan in plans:
            part_of = {tile.window: tile.part for tile in tiles if tile.plan is plan}

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

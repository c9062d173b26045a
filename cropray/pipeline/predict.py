"""Prediction: the tiles of an area fanned out over Ray, then streamed into one map or several.

Every finished tile is published as a part, so a prediction that was stopped resumes. A folder maps/<name>/
holds the files of docs/maps.md and summary.json. With rois:SPLIT it holds such a folder for each ROI, and
the summary.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import shapely

from cropray import __version__
from cropray.cluster import for_workers, ray_session
from cropray.config import Config
from cropray.errors import InputError, counted
from cropray.grid import Window, transform_bounds
from cropray.imagery import ImagerySource, MeteredSource, identity_of, open_source
from cropray.maps.catalogue import MapIdentity, publish_collection
from cropray.maps.mosaic import CONFIDENCE
from cropray.maps.products import publish_map
from cropray.maps.request import (
    MapPlan,
    check_source,
    given_as_of,
    plan_maps,
    prediction_settings,
    season_warning,
)
from cropray.maps.tiles import NODATA, PredictionSettings, TileResult, decode_tile, encode_tile, predict_tile
from cropray.models.checkpoint import DESCRIPTION, load_checkpoint
from cropray.models.heads import with_head
from cropray.models.inference import Predictor
from cropray.models.shift import shift_warning
from cropray.pipeline.cluster_quota import ClusterQuota, cluster_quota
from cropray.pipeline.fan_out import fan_out
from cropray.pipeline.fields import Fields, given_fields, publish_fields
from cropray.pipeline.monitor import follow
from cropray.progress import progress, say
from cropray.report.map_page import publish_pages
from cropray.run import Run, Summary
from cropray.storage import Folder
from cropray.tracking.lineage import checkpoint_id
from cropray.tracking.registry import resolve_model


@dataclass(frozen=True)
class MapTile:
    """A window of the map `map_name`; `part` is the name of its part."""

    map_name: str
    window: Window

    @property
    def part(self) -> str:
        return f"{self.map_name or 'map'}/{self.window.row:07d}-{self.window.col:07d}.npz"


@dataclass(frozen=True)
class Prediction:
    """What all processes of a prediction share: its maps by name, and the folders of model and parts."""

    config: Config
    plans: Mapping[str, MapPlan]
    settings: PredictionSettings
    checkpoint: Folder
    parts: Folder

    def windows(self, map_name: str) -> Iterator[Window]:
        return self.plans[map_name].grid.blocks(self.config.predict.tile_size)

    def result(self, tile: MapTile) -> TileResult:
        """A finished tile. Raises InputError if its part is damaged."""
        try:
            return decode_tile(self.parts.read_bytes(tile.part))
        except (zlib.error, zipfile.BadZipFile, ValueError, LookupError, EOFError) as error:
            if isinstance(error, InputError):  # it is missing
                raise
            raise InputError(
                f"{self.parts}/{tile.part} is damaged ({error}). Delete it and run the same command again."
            ) from error

    @property
    def tiles(self) -> list[MapTile]:
        return [MapTile(name, window) for name in self.plans for window in self.windows(name)]


class TilePredictor:
    """Publishes the parts of maps; its network runs on the GPU of its process if there is one."""

    def __init__(self, prediction: Prediction, quota: ClusterQuota | None) -> None:
        import torch

        config, checkpoint = prediction.config, prediction.checkpoint
        self._prediction, self._source = prediction, open_source(config, quota)
        model = with_head(load_checkpoint(checkpoint), config.predict.head, str(checkpoint))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._predictor = Predictor(model, device, prediction.settings.precision)

    def __call__(self, tile: MapTile) -> None:
        plan, settings = self._prediction.plans[tile.map_name], self._prediction.settings
        wanted = plan.wanted(tile.window)
        result = predict_tile(tile.window, wanted, plan.grid, self._source, self._predictor, settings)
        self._prediction.parts.write_bytes(tile.part, encode_tile(result))


def predict(run: Run, *, partial: bool = False) -> Summary:
    """Map `predict.area` as of `predict.as_of` with `predict.model`.

    A finished map of the same model and settings is reused. One of another model or area is replaced, and so
    is a provisional one of another day. Raises InputError if one of these is missing or does not fit the
    others, if maps/<name> has other settings, and for months that are not over, unless `partial`.
    """
    config = run.config
    given_as_of(config)
    run.begin("predict")
    checkpoint_folder = resolve_model(config.predict.model, run)
    checkpoint = with_head(load_checkpoint(checkpoint_folder), config.predict.head, str(checkpoint_folder))
    settings = prediction_settings(checkpoint, config)
    source = open_source(config)
    imagery = identity_of(source, config)
    check_source(checkpoint, imagery)
    plans = plan_maps(config.predict.area, config, run.folder)
    fields = given_fields(config.predict)
    output = run.folder.child(f"maps/{config.predict.name}")
    areas = [[p.name, asdict(p.grid), [shapely.to_wkb(s).hex() for s in p.shapes]] for p in plans]
    provisional = _provisional(settings, config, partial=partial)
    chosen = asdict(settings)
    del chosen["batch_size"], chosen["recipe"]["max_lost"]  # they decide only whether there is a result
    inputs = {
        "model": model_fingerprint(checkpoint_folder, config.predict.head),
        "imagery": _hash([chosen, imagery]),
        "area": _hash(areas),
    }
    finished = run.finished("predict", inputs, _files(run))
    if finished is not None and finished.get("provisional", "") in ("", provisional):
        say(f"predict: reused {output}")
        return finished | _publish_beside(run, fields, settings, output, plans)
    early = f"provisional: made on {provisional}, before its last month was over. Predict again later"
    warnings = [season_warning(checkpoint, settings.as_of), early if provisional else None]
    for warning in filter(None, warnings):
        say(f"predict: warning: {warning}")
    predict_config = config.predict
    key = _hash([__version__, inputs, predict_config.tile_size, predict_config.scores, provisional])
    prediction = Prediction(
        for_workers(config),
        {plan.name: plan for plan in plans},
        settings,
        checkpoint_folder,
        output.child(f"parts/{key}"),
    )
    _predict_tiles(prediction, source, run)
    if not any((prediction.result(tile).class_hw != NODATA).any() for tile in prediction.tiles):
        output.delete_folder("parts")  # or they would count as finished
        raise InputError(_nothing_seen(prediction))
    if run.changed("predict", inputs):  # the new map may have fewer files
        for name in output.names():
            if not name.startswith("parts/"):
                output.delete(name)
    decision = checkpoint.decision(len(settings.periods))
    identity = MapIdentity(
        title=f"crops of {config.predict.area}",
        model=config.predict.model or checkpoint_folder.uri.removeprefix(run.folder.uri.rstrip("/") + "/"),
        classes=checkpoint.classes,
        thresholds=tuple(decision.thresholds_k(len(checkpoint.classes)).tolist()),
        settings=settings,
        key=key,
        provisional=provisional,
        scene_roots=_scene_roots(config),
    )
    made, lost, (beyond, total) = _publish_maps(prediction, output, identity)
    late = [shift_warning(beyond, total, "the area")]
    if lost:
        late.append(
            f"{counted(len(lost), 'scene')} could not be used, such as {lost[0]}. item.json names each"
        )
    for warning in filter(None, late):
        say(f"predict: warning: {warning}")
    warnings += late
    summary = {
        "as_of": settings.as_of.isoformat(),
        "model": identity.model,
        "checkpoint": checkpoint_id(checkpoint_folder),
        "tiles": len(prediction.tiles),
        "warning": "; ".join(filter(None, warnings)) or None,
        "provisional": provisional,
        "scenes_lost": len(lost),
        "outside_training": round(beyond / total, 4) if total else None,
        "maps": made,
    }
    publish_collection(output, list(prediction.plans), identity, checkpoint, checkpoint_folder)
    run.finish("predict", summary, inputs)
    output.delete_folder("parts")
    return summary | _publish_beside(run, fields, settings, output, plans)


def _publish_beside(
    run: Run,
    fields: Fields | None,
    settings: PredictionSettings,
    output: Folder,
    plans: Sequence[MapPlan],
) -> Summary:
    """The fields of a finished prediction, and then its pages, which show them."""
    found = publish_fields(fields, run.config.predict, settings.as_of, output, plans)
    return found | {"reports": publish_pages(run)}


def _scene_roots(config: Config) -> dict[str, str]:
    """The addresses of the catalogues that the scenes come from, by sensor."""
    if config.source.kind != "stac":
        return {}
    return {
        sensor: f"{stac.api.rstrip('/')}/collections/{stac.collection}/items"
        for sensor, stac in (("s2", config.source.stac.s2), ("s1", config.source.stac.s1))
        if stac.api
    }


def _predict_tiles(prediction: Prediction, source: ImagerySource, run: Run) -> None:
    """Predict the tiles that have no part. Raises InputError if some failed; the others are kept."""
    config, tiles = run.config, prediction.tiles
    done = set(prediction.parts.names(".npz"))
    missing = [tile for tile in tiles if tile.part not in done]
    if done:
        say(f"predict: reused {len(tiles) - len(missing)} of {len(tiles)} tiles")
    if not missing:
        return
    if isinstance(source, MeteredSource):
        first = missing[0]
        extent = prediction.plans[first.map_name].grid
        source.preflight(prediction.settings.request(extent, first.window, first.part))
    with ray_session(config.ray):
        processes = min(config.ray.concurrency, len(missing))
        quota = cluster_quota(config, processes)
        outcomes = fan_out(
            "predict",
            TilePredictor,
            (prediction, quota),
            missing,
            config=config.ray,
            processes=processes,
            threads=1,  # a tile keeps a CPU, or a share of a GPU, busy
            resources=resources_per_process(processes),
        )
        follow("predict", outcomes, len(missing), run, quota, name="part")


def resources_per_process(processes: int) -> dict[str, float]:
    """A CPU, and an equal share of the cluster's GPUs that lets all processes run at the same time."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return {"CPU": 1.0} | ({"GPU": 1 / math.ceil(processes / gpus)} if gpus else {})


def _files(run: Run) -> list[str]:
    """The files of the maps of a finished prediction.

    Earlier versions recorded none, and wrote no confidence.tif: their maps miss it, and are made again.
    """
    maps = (run.summary("predict") or {}).get("maps", [])
    root = f"maps/{run.config.predict.name}"
    names = [(made["name"], file) for made in maps for file in made.get("files", [CONFIDENCE])]
    return [f"{root}/{name}/{file}".replace("//", "/") for name, file in names]


def _provisional(settings: PredictionSettings, config: Config, *, partial: bool) -> str:
    """Today's date if the last month is not over, else empty. Raises InputError for it unless `partial`."""
    now, last = datetime.now(UTC).date(), settings.periods[-1]
    whole_on = config.source.whole_on(last.end)
    if whole_on <= now:
        return ""
    if not partial:
        raise InputError(
            f"the last month of the map, {last.start} to {last.end - timedelta(days=1)}, is not over: its "
            f"scenes are expected by {whole_on} (source.ingestion_days). Predict then, give an earlier "
            "--as-of, or map what there is with --partial and again then."
        )
    return now.isoformat()


def _nothing_seen(prediction: Prediction) -> str:
    periods, grid = prediction.settings.periods, next(iter(prediction.plans.values())).grid
    west, south, east, north = transform_bounds(grid.bounds, grid.crs, "EPSG:4326")
    return (
        f"no scene covers the area {prediction.config.predict.area}: neither sensor has a valid pixel from "
        f"{periods[0].start} to {periods[-1].end}. Its middle is at longitude {(west + east) / 2:.3f}, "
        f"latitude {(south + north) / 2:.3f}. Check that it is lon,lat, and that the source (source.*) "
        "has scenes of that place and time."
    )


def _publish_maps(
    prediction: Prediction, output: Folder, identity: MapIdentity
) -> tuple[list[dict[str, Any]], list[str], tuple[int, int]]:
    """The records of the maps, the names of the scenes that could not be used, and how many values lie
    outside the training data, of how many.
    """
    shifts: dict[MapTile, tuple[int, int]] = {}

    def read(map_name: str, window: Window) -> TileResult:
        tile = MapTile(map_name, window)
        result = prediction.result(tile)
        shifts[tile] = result.outside
        return result

    made, lost, settings = [], set[str](), prediction.config.predict
    with progress("map", len(prediction.plans)) as bar:
        for name, plan in prediction.plans.items():
            folder, tiles = output.child(name) if name else output, partial(read, name)
            published = publish_map(
                folder, plan, prediction.windows(name), tiles, identity, scores=settings.scores
            )
            lost |= set(published.lost)
            hectares = {label: area["hectares"] for label, area in published.areas.items()}
            made.append({"name": name, "folder": folder.uri, "hectares": hectares, "files": published.files})
            bar.advance()
    beyond, total = (sum(column) for column in zip(*shifts.values(), strict=True))
    return made, sorted(lost), (beyond, total)


def model_fingerprint(checkpoint: Folder, head: str | None) -> str:
    """The hash of a checkpoint folder and the head that is used. The description has that of the weights."""
    return _hash([checkpoint.read_text(DESCRIPTION), head])


def _hash(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

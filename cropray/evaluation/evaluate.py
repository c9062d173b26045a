"""The evaluation stage: the network beside its baselines, on whole ROIs held out for the test.

Thresholds come from val, by one function for all methods; the test split is read once.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cropray.config import Config
from cropray.errors import InputError
from cropray.evaluation.baselines import (
    Method,
    Network,
    Thresholds,
    default_thresholds,
    fit_baselines,
    thresholds_on,
)
from cropray.evaluation.metrics import Counts, Scope, tables
from cropray.evaluation.mosaics import TilePlan, extents, plan_tiles
from cropray.evaluation.tile_scores import ScoredTile, check_fit, count_blocks, scope_of, scored_tiles
from cropray.figures.charts import EVALUATION, confusion_chart, scores_chart
from cropray.figures.pictures import comparison_picture
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.models.decision import Predictor
from cropray.models.heads import with_head
from cropray.progress import Progress, progress, say
from cropray.rois.splits import SPLITS
from cropray.run import Run, Summary
from cropray.shards.file import fingerprint, refuse_missing, shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.tracking.lineage import checkpoint_id
from cropray.tracking.registry import resolve_model
from cropray.tracking.versions import link_evaluation
from cropray.types import BoolArray

_BATCH = 32
_PICTURES = 12


@dataclass(frozen=True)
class Job:
    """What is evaluated, and how."""

    config: Config
    checkpoint: Checkpoint
    test: ShardReader
    val: ShardReader | None
    train: list[str]
    scope: Scope

    @property
    def unlabelled(self) -> str:
        """What pixels without a label were to the loss."""
        return str((self.checkpoint.recipe or {}).get("unlabelled", "ignore"))


def evaluate(run: Run) -> Summary:
    """Score a model on the test split; writes evaluation/evaluation.json and pictures beside it.

    Where the model is registered, its versions are given the figures. Raises InputError where there is
    no test split, or where the model does not fit the shards.
    """
    run.begin("evaluate")
    folder = resolve_model(run.config.evaluate.model, run)
    refuse_missing(run.folder, (run.summary("compact") or {}).get("shards", {}))
    uris = [uri for split in SPLITS for uri in shard_uris(run.folder, split)]
    inputs = {"model": checkpoint_id(folder), "shards": fingerprint(uris)}
    summary = run.finished("evaluate", inputs)
    if summary is None:
        summary = _evaluate(run, folder)
        run.finish("evaluate", summary, inputs)
    else:
        say(f"evaluate: reused {run.folder}/{EVALUATION}")
    # Last, so that a registry that fails costs no evaluation: the same command goes on from here.
    if run.config.evaluate.head is None:
        result = json.loads(run.folder.read_text(EVALUATION))
        summary = summary | {"versions": link_evaluation(run, folder, result, inputs["shards"])}
    return summary


def _evaluate(run: Run, folder: Folder) -> Summary:
    start = time.monotonic()
    job = _job(run, folder)
    methods: dict[str, Method] = {"network": Network(Predictor(job.checkpoint, _device()))}
    baselines: dict[str, Any] | None = None
    if job.config.evaluate.baselines:
        fitted, baselines = _baselines(job)
        methods |= fitted
    plans, val_plans = plan_tiles(job.test), [] if job.val is None else plan_tiles(job.val)
    with progress("evaluate", len(plans) + len(val_plans)) as bar:
        thresholds, chosen_on = _thresholds(job, methods, val_plans, bar)
        counts, pictures = _score(job, methods, thresholds, plans, bar)
    classes = job.checkpoint.classes
    draws, seed = job.config.evaluate.bootstrap, job.config.seed
    result: dict[str, Any] = {
        "model": folder.uri,
        "classes": list(classes),
        "regions": len(extents(job.test)),
        **tables(job.scope, classes, counts, draws=draws, seed=seed),
        "draws": draws,
        "thresholds": {name: [round(float(t), 4) for t in chosen] for name, chosen in thresholds.items()},
        "thresholds_chosen_on": chosen_on,
        "baselines": baselines,
        "pictures": list(pictures),
    }
    pictures |= {"confusion.png": confusion_chart(result), "scores.png": scores_chart(result)}
    for name, picture in pictures.items():
        run.folder.write_bytes(f"evaluation/{name}", picture)
    run.folder.write_text(EVALUATION, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return {
        "scope": result["scope"],
        "blocks": result["blocks"],
        "pixels": result["pixels"],
        **{f"{result['score']}/{name}": row["score"] for name, row in result["methods"].items()},
        "seconds": round(time.monotonic() - start, 1),
    }


def _job(run: Run, folder: Folder) -> Job:
    checkpoint = with_head(load_checkpoint(folder), run.config.evaluate.head, str(folder))
    test, val = shard_uris(run.folder, "test"), shard_uris(run.folder, "val")
    if not test:
        raise InputError(
            f"{run.folder} has no shards of the split test: give it a share of the ROIs "
            "(rois.split.test), or more ROIs to divide"
        )
    reader = ShardReader(test, batch_size=_BATCH, shuffle=False)
    check_fit(checkpoint, reader.metadata, str(folder), "the test split")
    return Job(
        run.config,
        checkpoint,
        test=reader,
        val=ShardReader(val, batch_size=_BATCH, shuffle=False) if val else None,
        train=shard_uris(run.folder, "train"),
        scope=scope_of(run.config, reader.metadata),
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _baselines(job: Job) -> tuple[dict[str, Method], dict[str, Any]]:
    def labelled(table: pa.Table) -> BoolArray:
        return np.asarray(table["labelled_fraction"].to_numpy() > 0, np.bool_)

    settings = job.config.evaluate
    return fit_baselines(
        ShardReader(job.train, batch_size=_BATCH, shuffle=False, keep=labelled),
        unlabelled=job.unlabelled,
        pixels=settings.forest_pixels,
        trees=settings.forest_trees,
        seed=job.config.seed,
    )


def _thresholds(
    job: Job, methods: dict[str, Method], plans: list[TilePlan], bar: Progress
) -> tuple[dict[str, Thresholds], str]:
    """Thresholds by method, and where they come from; the checkpoint's own are kept."""
    own = job.checkpoint.thresholds
    known: dict[str, Thresholds] = {} if own is None else {"network": np.array(own, np.float32)}
    if job.val is None:
        default = default_thresholds(len(job.checkpoint.classes))
        told = "nothing, for there is no val split: 0.5"
        if known:
            told += " (the network's are those of its checkpoint)"
        return dict.fromkeys(methods, default) | known, told
    missing = {name: method for name, method in methods.items() if name not in known}
    return thresholds_on(job.val, plans, missing, bar, job.config.seed) | known, "val"


def _score(
    job: Job,
    methods: dict[str, Method],
    thresholds: dict[str, Thresholds],
    plans: Sequence[TilePlan],
    bar: Progress,
) -> tuple[dict[str, Counts], dict[str, bytes]]:
    """Confusion matrices (R, M, M) of the test's blocks by method, and pictures of some ROIs by name."""
    shown, pictures = _to_show(plans), {}

    def pictured(tiles: Iterable[ScoredTile]) -> Iterator[ScoredTile]:
        for scored in tiles:
            plan = scored.plan
            if plan in shown:
                pictures[f"rois/{plan.roi_id}.png"] = comparison_picture(
                    scored.truth_hw,
                    scored.maps["network"],
                    job.checkpoint.classes,
                    scored.tile.s2_cthw,
                    title=f"{plan.roi_id} · {plan.crop}",
                )
            bar.advance()
            yield scored

    tiles = pictured(scored_tiles(job.test, plans, methods, thresholds, job.scope))
    return count_blocks(tiles, job.test, job.config.rois.split.buffer_m), pictures


def _to_show(plans: Sequence[TilePlan]) -> list[TilePlan]:
    """The first tile of some ROIs, crops in turn."""
    by_crop: dict[str, dict[str, TilePlan]] = defaultdict(dict)
    for plan in plans:
        by_crop[plan.crop].setdefault(plan.roi_id, plan)
    turns = zip_longest(*(rois.values() for rois in by_crop.values()))
    return [plan for turn in turns for plan in turn if plan is not None][:_PICTURES]

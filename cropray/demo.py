"""The whole path on the built-in world: pretraining in one run, fine-tuning and mapping in another."""

from __future__ import annotations

import time
from collections.abc import Callable

from cropray.cluster import ray_session
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.pipeline.predict import predict
from cropray.progress import say
from cropray.report.pages import report
from cropray.rois.build import build_rois
from cropray.run import Run, Summary
from cropray.training.driver import finetune, pretrain


def demo(run: Run) -> Summary:
    """Run all stages under the run folder; what is done already is reused.

    `pretraining/` holds the run with the overrides of `demo.pretraining`, `finetuning/` the one
    that starts from its network, is evaluated, draws the map and writes the report. Raises
    InputError for a configuration that is none of a demonstration.
    """
    if not run.config.demo.pretraining:
        raise InputError(
            "demo wants a configuration that says what its pretraining does (demo.pretraining): "
            "cropray demo --config configs/demo.yaml"
        )
    first = Run(
        run.folder.child("pretraining"), updated(run.config, run.config.demo.pretraining, "demo.pretraining")
    )
    init = {"finetune.init": "run:../pretraining/models/pretrain"}  # holds where the demo is moved
    second = Run(run.folder.child("finetuning"), updated(run.config, init))
    seconds: dict[str, float] = {}
    with ray_session(run.config.ray):
        for stage in (build_rois, export, compact, pretrain):
            _timed(stage, first, seconds)
        for stage in (build_rois, export, compact, finetune, evaluate, predict):
            _timed(stage, second, seconds)
    _timed(report, second, seconds)
    maps = second.folder.child(f"maps/{run.config.predict.name}")
    return {
        "map": maps.path("map.tif"),
        "picture": maps.path("thumbnail.png"),
        "report": second.folder.path("report.html"),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _timed(stage: Callable[[Run], Summary], run: Run, seconds: dict[str, float]) -> None:
    name = f"{run.folder.uri.rsplit('/', 1)[-1]}/{stage.__name__.removeprefix('build_')}"
    say(f"── {name}")
    start = time.monotonic()
    stage(run)
    seconds[name] = time.monotonic() - start

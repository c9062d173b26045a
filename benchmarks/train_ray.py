"""The part of `train.py` that goes through the driver of `cropray pretrain`, and so through Ray Train."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from accuracy import share_shards

from cropray.cluster import ray_session
from cropray.config.load import load_config, updated
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.progress import Progress
from cropray.rois.build import build_rois
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.driver import pretrain

ROOT = Path(__file__).parents[1]
# The pretraining of the demonstration on half of its regions, for a few epochs, a core a worker.
TINY = {
    "source.simulated.regions": 4,
    "pretrain.epochs": 5,
    "pretrain.store_every": 5,
    "pretrain.threads": 1,
}
BATCH = 4  # of a worker


class _Noted(Progress):
    """Notes when the driver first hears of a step; the workers report the first one at once."""

    first_step: float | None = None

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        if steps > 0 and self.first_step is None:
            self.first_step = time.monotonic()


def prepared(work: Path) -> dict[int, Run]:
    """Two runs on the same shards, by their number of workers."""
    config = load_config(str(ROOT / "configs/demo.yaml"), [])
    config = updated(config, {**config.demo.pretraining, **TINY})
    runs = {
        workers: Run(
            Folder(str(work / f"workers-{workers}")),
            updated(config, {"pretrain.workers": workers, "pretrain.batch_size": workers * BATCH}),
        )
        for workers in (1, 2)
    }
    with ray_session(config.ray):
        for stage in (build_rois, export, compact):
            stage(runs[1])
    share_shards(runs[1], runs[2])
    return runs


def through_ray(work: Path) -> dict[str, Any]:
    """Seconds to the first step, and the median over epochs of samples a second, by number of workers."""
    figures: dict[str, Any] = {}
    for workers, run in prepared(work).items():
        noted = _Noted("pretrain", 0)
        with (
            ray_session(run.config.ray),
            patch("cropray.training.monitor.progress", Mock(return_value=nullcontext(noted))),
        ):
            start = time.monotonic()
            pretrain(run)
        if noted.first_step is None:
            raise SystemExit("the driver told of no step")
        history = json.loads(run.folder.read_text("models/pretrain/history.json"))
        figures[f"first step s, {workers}"] = noted.first_step - start
        figures[f"samples/s, {workers}"] = statistics.median(row["samples_per_second"] for row in history[1:])
    figures["ratio"] = figures["samples/s, 2"] / figures["samples/s, 1"]
    return figures

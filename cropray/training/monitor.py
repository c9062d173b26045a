"""What the driver does while the workers train: it shows their progress, records it, and lets them leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cropray.progress import Progress, progress, say
from cropray.tracking.runs import SendMetrics, Tracker, metric_queue
from cropray.training.plan import TrainingPlan
from cropray.training.resources import ResourceRequest, placed, waiting
from cropray.training.validate import History

if TYPE_CHECKING:
    from ray.util.queue import Queue

_POLL_S = 0.2
_WAITING_EVERY_S = 15.0
_PATIENCE_S = 120.0  # for the workers to write their state and leave

_SYSTEM = ("cpus_busy", "memory_mib", "gpu_memory_mib")


@dataclass
class ProgressMonitor:
    """Follows one training, named `label` in messages, to its end.

    `reports` is the queue of its `SendReports`; `training` gives the history when the workers are done.
    """

    label: str
    plan: TrainingPlan
    request: ResourceRequest
    control: Any
    reports: Queue
    training: Future[History]
    tracker: Tracker
    tell: Callable[[History], None] | None = None
    history: History = field(default_factory=list)
    _steps: int = 0
    _begun: bool = False
    _recorded: set[int] = field(default_factory=set)

    def until_done(self) -> History:
        """The history of all epochs.

        Raises InputError that the workers raised, and KeyboardInterrupt if the training was told to
        leave: then its state is written, unless a second interrupt came before.
        """
        self._recorded = self.tracker.steps_of("train_loss")
        with metric_queue(self.tracker) as send, progress(self.label, self.plan.steps) as bar:
            try:
                self._follow(bar, send, None)
            except KeyboardInterrupt:
                self.control.leave.remote()
                if self._begun:
                    say(f"{self.label}: writing its state … press Ctrl-C again to quit immediately")
                    self._follow(bar, send, _PATIENCE_S)
                raise
            history = self.training.result()
            self._record(history, send)  # what was lost on its way
        if len(history) < self.plan.recipe.epochs:  # another process told the workers to leave
            raise KeyboardInterrupt
        return history

    def _follow(self, bar: Progress, send: SendMetrics, patience_s: float | None) -> None:
        start = said = time.monotonic()
        while True:
            last = self.training.done()  # read before the reports, so that none is missed
            for report in self._received():
                self._take(report, bar, send)
            if last:
                return
            now = time.monotonic()
            if patience_s is not None and now - start > patience_s:
                say(f"{self.label}: the workers did not answer within {patience_s:.0f} s")
                return
            if not self._begun and now - said > _WAITING_EVERY_S:
                said = now
                say(f"{self.label}: {_waits_for(self.request)}")
            time.sleep(_POLL_S)

    def _received(self) -> list[dict[str, Any]]:
        from ray.exceptions import RayActorError

        try:
            waiting_reports: list[dict[str, Any]] = self.reports.get_nowait_batch(self.reports.qsize())
        except RayActorError:
            return []  # the queue is lost; Ray starts another
        return waiting_reports

    def _take(self, report: dict[str, Any], bar: Progress, send: SendMetrics) -> None:
        self._begun = True
        for line in report.get("message", "").splitlines():
            say(f"{self.label}: {line}")
        bar.advance(report["steps"] - self._steps, _shown(report, self.plan.recipe.epochs))
        self._steps = report["steps"]
        entries = report["entries"]
        self._record(entries, send)
        if entries:
            first = entries[0]["epoch"]
            self.history = [e for e in self.history if e["epoch"] < first] + entries
            if self.tell is not None:
                self.tell(self.history)

    def _record(self, entries: History, send: SendMetrics) -> None:
        for entry in entries:
            if entry["epoch"] not in self._recorded:
                self._recorded.add(entry["epoch"])
                send(flat_entry(entry), entry["epoch"], entry["time"])


def flat_entry(entry: dict[str, Any]) -> dict[str, float]:
    """The figures of an epoch by the names under which they are recorded.

    `<figure>/<class>` belongs to a class, `<figure>_<head>` and `<figure>_<head>/<class>` to an auxiliary
    head.
    """
    flat = {
        f"system/{name}" if name in _SYSTEM else name: value
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in ("epoch", "time")
    }
    flat |= {f"train_loss/{name}": loss for name, loss in entry.get("train_class_loss", {}).items()}
    flat |= _of_classes(entry, "")
    for head, figures in entry.get("val_heads", {}).items():
        flat |= {f"{name}_{head}": value for name, value in figures.items() if isinstance(value, int | float)}
        flat |= _of_classes(figures, f"_{head}")
    return flat


def _of_classes(entry: dict[str, Any], head: str) -> dict[str, float]:
    flat = {f"val_loss{head}/{name}": loss for name, loss in entry.get("val_class_loss", {}).items()}
    for name, figures in entry.get("val_classes", {}).items():
        flat |= {f"val_{figure}{head}/{name}": value for figure, value in (figures or {}).items()}
    return flat


def _shown(report: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {report['epoch']}/{epochs}"]
    if "loss" in report:
        parts.append(f"loss {report['loss']:.4f}")
    if "waiting" in report:
        rate, waiting_share = report["samples_per_second"], report["waiting"]
        parts += [f"{rate:,.0f} samples/s", f"{waiting_share:.0%} waiting for data"]
    if report["skipped"]:
        parts.append(f"{report['skipped']} steps skipped (not finite)")
    return ", ".join(parts)


def _waits_for(request: ResourceRequest) -> str:
    """Why no worker has begun yet."""
    import ray
    from ray.util import placement_group_table

    if placed(placement_group_table().values(), request):
        return "its workers are starting"
    return waiting(request, ray.cluster_resources(), ray.available_resources())

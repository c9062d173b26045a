"""What the driver of a training shows: the resources its workers request and wait for, and their progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cropray.config.training import TrainConfig
from cropray.errors import InputError, counted
from cropray.progress import Progress, progress, say
from cropray.tracking.runs import SendMetrics, Tracker, metric_queue
from cropray.training.plan import TrainingPlan
from cropray.training.validate import History

SYSTEM = ("cpus_busy", "memory_mib", "gpu_memory_mib")

if TYPE_CHECKING:
    from ray.util.queue import Queue

Resources = Mapping[str, float]

_POLL_S = 0.2
_LOOK_EVERY_S, _ABSENT = 3.0, 2  # looks without workers: Ray removes them, too, when a training ends
_WAITING_EVERY_S = 15.0
_END_S = 10.0  # for the training's thread to learn that the controller is gone
_PATIENCE_S = 120.0  # for the workers to write their state and leave


@dataclass(frozen=True)
class ResourceRequest:
    """`workers` (fewest, most), with the resources `each`; `autoscaled` if Ray can add nodes for them.

    `trials` that run at a time request as much each.
    """

    workers: tuple[int, int]
    each: Resources
    autoscaled: bool = False
    trials: int = 1


def worker_resources(settings: TrainConfig, have: Resources, cpus: float = 1) -> dict[str, float]:
    """The resources of a worker, by Ray's names; Ray has `have` now.

    Without the setting `gpus`, a worker gets a GPU if there are enough for the fewest workers.
    """
    gpus = settings.gpus
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= settings.min_workers else 0.0
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def shortage(stage: str, request: ResourceRequest, most: Resources) -> tuple[str, str] | None:
    """The arithmetic and what to do, if Ray can never have room for the fewest workers.

    `most` is what Ray has, or can have after adding nodes.
    """
    trials = f"tune.concurrent = {request.trials} trials at a time × " if request.trials > 1 else ""
    for kind, amount in request.each.items():
        limit, wanted = most.get(kind, 0), request.trials * request.workers[0] * amount
        if wanted > limit:
            fewer = f"set {stage}.gpus to 0, or to fewer" if kind == "GPU" else f"set fewer {stage}.workers"
            give = "Ray more CPUs (ray.num_cpus)" if kind == "CPU" else f"the cluster nodes with {kind}s"
            return (
                f"{trials}{stage}.workers = {request.workers[0]} × {amount:g} {kind}s each are {wanted:g} "
                f"{kind}s, but Ray has {limit:g}",
                f"{'set fewer tune.concurrent, ' if trials else ''}{fewer}, or give {give}",
            )
    return None


def check_workers(stage: str, request: ResourceRequest, most: Resources | None) -> None:
    """Raise InputError if there is a `shortage`; `most` is None if unknown."""
    short = None if most is None else shortage(stage, request, most)
    if short is not None:
        raise InputError(": ".join(short))


def waiting(request: ResourceRequest, have: Resources, free: Resources) -> str:
    """What the workers request and wait for, and how much of it is free."""
    fewest, most = request.workers
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    plural = "" if most == 1 else "s"
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in request.each.items())
    there = ", ".join(f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}s" for kind in request.each)
    added = "; the cluster adds nodes if it may (see ray status)" if request.autoscaled else ""
    return f"waits for {number} worker{plural} with {each} each; the cluster has {there} free{added}"


def placed(groups: Iterable[Mapping[str, Any]], request: ResourceRequest) -> list[str]:
    """The nodes of the workers, by one of Ray's placement groups that holds what a training requests.

    Empty if there is none.
    """
    fewest, most = request.workers
    for group in groups:
        bundles = group["bundles"].values()
        fits = fewest <= len(bundles) <= most and all(bundle == request.each for bundle in bundles)
        if group["state"] == "CREATED" and fits:
            return list(group["bundles_to_node_id"].values())
    return []


def gone(nodes: Sequence[str], alive: Collection[str], since: datetime) -> str:
    """How many of the workers that ran on `nodes` went with them."""
    lost = sum(node not in alive for node in nodes)
    which = f"{lost} of {len(nodes)} workers lost with their nodes" if lost else "its workers have ended"
    return f"{which} (since {since:%H:%M:%S})"


@dataclass
class ProgressMonitor:
    """Follows one training, named `label` in messages, to its end.

    `reports` is the queue of its `SendReports`; `training` returns the history when the workers are done;
    `tell` is called with the history so far when epochs are added.
    """

    label: str
    plan: TrainingPlan
    request: ResourceRequest
    control: Any
    reports: Queue
    training: Future[History]
    tracker: Tracker
    tell: Callable[[History], None] | None = None
    _history: History = field(default_factory=list)
    _steps: int = 0
    _begun: bool = False
    _nodes: list[str] = field(default_factory=list)  # of the workers, when they were last seen
    _absent: int = 0
    _gone_since: datetime | None = None
    _recorded: set[int] = field(default_factory=set)
    _controller: Any = None

    def until_done(self) -> History:
        """The history of all epochs.

        Raises InputErrors of the workers, and KeyboardInterrupt if the training was told to leave: then its
        state is written, unless a second interrupt came first, and Ray Train has ended.
        """
        self._recorded = self.tracker.steps_of("train_loss")
        with metric_queue(self.tracker) as send, progress(self.label, self.plan.steps) as bar:
            try:
                self._follow(bar, send, None)
            except KeyboardInterrupt:
                self.control.leave.remote()
                try:
                    if self._begun:
                        say(f"{self.label}: writing its state … press Ctrl-C again to quit immediately")
                        self._follow(bar, send, _PATIENCE_S)
                finally:
                    self._abandon()
                raise
            history = self.training.result()
            self._record(history, send)  # what was lost on its way
        if len(history) < self.plan.recipe.epochs:  # another process told the workers to leave
            raise KeyboardInterrupt
        return history

    def _follow(self, bar: Progress, send: SendMetrics, patience_s: float | None) -> None:
        start = said = looked = time.monotonic()
        while True:
            if patience_s is not None:
                self.control.leave.remote()  # again: it may have died, and started anew
            last = self.training.done()  # read before the reports, so that none is missed
            for report in self._received():
                self._take(report, bar, send)
            if last:
                return
            now = time.monotonic()
            if patience_s is not None and now - start > patience_s:
                say(f"{self.label}: the workers did not answer within {patience_s:.0f} s")
                return
            if now - looked > _LOOK_EVERY_S and self._steps < self.plan.steps:
                looked = now
                news, text = self._look()
                if text and (news or now - said > _WAITING_EVERY_S):
                    said = now
                    say(f"{self.label}: {text}")
                if patience_s is not None and self._gone_since is not None:
                    say(f"{self.label}: no worker is left to write its state; the last one written is kept")
                    return
            time.sleep(_POLL_S)

    def _abandon(self) -> None:
        """End Ray Train's controller if it still waits: Ray cannot shut down while a thread waits for it."""
        import ray

        start = time.monotonic()
        while not self.training.done() and time.monotonic() - start < _END_S:
            for report in self._received():
                self._controller = report.get("controller", self._controller)
            if self._controller is not None:
                ray.kill(self._controller)
            time.sleep(_POLL_S)

    def _received(self) -> list[dict[str, Any]]:
        from ray.exceptions import RayActorError

        try:
            return list(self.reports.get_nowait_batch(self.reports.qsize()))
        except RayActorError:
            return []  # the queue died; Ray starts another

    def _look(self) -> tuple[bool, str]:
        """What Ray has of this training: whether workers are gone anew, and what to say, if anything."""
        import ray
        from ray.util import placement_group_table

        nodes = placed(placement_group_table().values(), self.request)
        if nodes:
            self._nodes, self._absent, self._gone_since = nodes, 0, None
            return False, "" if self._begun else "its workers are starting"
        text = waiting(self.request, ray.cluster_resources(), ray.available_resources())
        if not self._nodes:
            return False, text
        self._absent += 1
        if self._absent < _ABSENT:
            return False, ""
        news = self._gone_since is None
        self._gone_since = self._gone_since or datetime.now()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return news, f"{gone(self._nodes, alive, self._gone_since)}; {text}"

    def _take(self, report: dict[str, Any], bar: Progress, send: SendMetrics) -> None:
        if "controller" in report:
            self._controller = report["controller"]
            return
        self._begun = True
        for line in report.get("message", "").splitlines():
            say(f"{self.label}: {line}")
        bar.advance(report["steps"] - self._steps, _shown(report, self.plan.recipe.epochs))
        self._steps, entries = report["steps"], report["entries"]
        self._record(entries, send)
        if entries:
            first = entries[0]["epoch"]
            self._history = [e for e in self._history if e["epoch"] < first] + entries
            if self.tell is not None:
                self.tell(self._history)

    def _record(self, entries: History, send: SendMetrics) -> None:
        for entry in entries:
            if entry["epoch"] not in self._recorded:
                self._recorded.add(entry["epoch"])
                send(flat_entry(entry), entry["epoch"], entry["time"])


def flat_entry(entry: dict[str, Any]) -> dict[str, float]:
    """The figures of an epoch by the names under which they are recorded.

    `<figure>/<class>` belongs to a class, `<figure>_<head>` (and `/<class>`) to an auxiliary head.
    """
    flat = {f"train_loss/{name}": loss for name, loss in entry.get("train_class_loss", {}).items()}
    heads = {f"_{head}": figures for head, figures in entry.get("val_heads", {}).items()}
    for head, figures in {"": entry, **heads}.items():
        flat |= {
            f"system/{name}" if name in SYSTEM else f"{name}{head}": value
            for name, value in figures.items()
            if isinstance(value, int | float) and name not in ("epoch", "time")
        }
        flat |= {f"val_loss{head}/{name}": loss for name, loss in figures.get("val_class_loss", {}).items()}
        for name, values in figures.get("val_classes", {}).items():
            flat |= {f"val_{figure}{head}/{name}": value for figure, value in (values or {}).items()}
    return flat


def _shown(report: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {report['epoch']}/{epochs}"]
    loss = report.get("loss", report.get("train_loss"))  # of a step, or of an epoch
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if "waiting" in report:
        rate, waiting_share = report["samples_per_second"], report["waiting"]
        parts += [f"{rate:,.0f} samples/s", f"{waiting_share:.0%} waiting for data"]
    if report["skipped"]:
        parts.append(f"{counted(report['skipped'], 'step')} skipped (not finite)")
    return ", ".join(parts)

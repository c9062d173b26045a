"""What the driver does while the workers train: shows how far they are, keeps the record, passes on ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cropray.errors import InputError
from cropray.progress import Progress, progress, say
from cropray.tracking.runs import MetricQueue, Tracker
from cropray.training.control import Note
from cropray.training.plan import TrainingPlan
from cropray.training.resources import Asked, placed, waiting
from cropray.training.validate import History

if TYPE_CHECKING:
    from cropray.training.worker import Outcome

_POLL_S = 0.2
_WAITING_SAID_S = 15.0
_PATIENCE_S = 120.0  # for the workers to write their state, when the training is to be left

Tell = Callable[[History], None]


@dataclass
class Follower:
    """Follows one training of `label` until it is done."""

    label: str
    plan: TrainingPlan
    asked: Asked
    desk: Any
    training: Future[Outcome]
    tracker: Tracker
    tell: Tell | None = None
    history: History = field(default_factory=list)
    _steps: int = 0
    _begun: bool = False
    _recorded: set[int] = field(default_factory=set)

    def to_the_end(self) -> History:
        """The history of all epochs.

        Raises InputError that the workers met, and KeyboardInterrupt where the training is to be left:
        then its state has been kept, unless a second interrupt came before.
        """
        self._recorded = self.tracker.steps_of("train_loss")
        with MetricQueue(self.tracker) as queue, progress(self.label, self.plan.steps) as bar:
            try:
                self._until_done(bar, queue, None)
            except KeyboardInterrupt:
                self._leave(bar, queue)
                raise
        outcome = self.training.result()
        if not outcome.finished:  # asked to by another process than this one
            raise KeyboardInterrupt
        return outcome.history

    def _until_done(self, bar: Progress, queue: MetricQueue, patience_s: float | None) -> None:
        start = said = time.monotonic()
        while True:
            last = self.training.done()  # asked before the notes are read, so that none is missed
            for note in self._heard():
                self._take(note, bar, queue)
            if last:
                return
            now = time.monotonic()
            if patience_s is not None and now - start > patience_s:
                say(f"{self.label}: the workers did not answer within {patience_s:.0f} s")
                return
            if not self._begun and now - said > _WAITING_SAID_S:
                said = now
                say(f"{self.label}: {_waits_for(self.asked)}")
            time.sleep(_POLL_S)

    def _heard(self) -> list[Note]:
        import ray

        notes: list[Note] = ray.get(self.desk.heard.remote())
        return notes

    def _take(self, note: Note, bar: Progress, queue: MetricQueue) -> None:
        if note.problem:
            self.desk.ask_to_leave.remote()  # the next attempt would meet the same
            raise InputError(note.problem)
        self._begun = True
        for line in note.said.splitlines():
            say(f"{self.label}: {line}")
        bar.advance(note.steps - self._steps, _shown(note, self.plan.recipe.epochs))
        self._steps = note.steps
        for entry in note.entries:
            if entry["epoch"] not in self._recorded:
                self._recorded.add(entry["epoch"])
                queue.metrics(flat_entry(entry), entry["epoch"], entry["time"])
        if note.entries:
            first = note.entries[0]["epoch"]
            self.history = [e for e in self.history if e["epoch"] < first] + list(note.entries)
            if self.tell is not None:
                self.tell(self.history)

    def _leave(self, bar: Progress, queue: MetricQueue) -> None:
        self.desk.ask_to_leave.remote()
        if self._begun:
            say(f"{self.label}: keeps its state and leaves; a second interrupt leaves at once")
            self._until_done(bar, queue, _PATIENCE_S)


def flat_entry(entry: dict[str, Any]) -> dict[str, float]:
    """The figures of an epoch by name, as they are recorded.

    Those of a class are `<figure>/<class>`, those of a head beside the main one `<figure>_<head>` and
    `<figure>_<head>/<class>`.
    """
    system = ("cpus_busy", "memory_mib", "gpu_memory_mib")
    flat = {
        f"system/{name}" if name in system else name: value
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in ("epoch", "time")
    }
    for crop, loss in entry.get("train_class_loss", {}).items():
        flat[f"train_loss/{crop}"] = loss
    flat |= _of_classes(entry, "")
    for head, figures in entry.get("val_heads", {}).items():
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        flat |= {f"{name}_{head}": value for name, value in numbers.items()}
        flat |= _of_classes(figures, f"_{head}")
    return flat


def _of_classes(entry: dict[str, Any], head: str) -> dict[str, float]:
    """The validation's figures of classes by name."""
    flat = {f"val_loss{head}/{crop}": loss for crop, loss in entry.get("val_class_loss", {}).items()}
    for crop, figures in entry.get("val_classes", {}).items():
        flat |= {f"val_{name}{head}/{crop}": value for name, value in (figures or {}).items()}
    return flat


def _shown(note: Note, epochs: int) -> str:
    parts = [f"epoch {note.epoch}/{epochs}"]
    if note.loss:
        parts.append(f"loss {note.loss:.4f}")
    if note.samples_per_second:
        parts += [f"{note.samples_per_second:,.0f} samples/s", f"{note.waiting:.0%} waiting for data"]
    if note.skipped:
        parts.append(f"{note.skipped} steps skipped (not finite)")
    return ", ".join(parts)


def _waits_for(asked: Asked) -> str:
    """Why no worker has begun yet."""
    import ray
    from ray.util import placement_group_table

    if placed(placement_group_table().values(), asked):
        return "its workers are starting"
    return waiting(asked, ray.cluster_resources(), ray.available_resources())

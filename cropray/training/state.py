"""The state of a training: its parts, and its snapshots in a folder, written whole, read with checksums."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor
from torch.optim import Optimizer

from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import MAIN
from cropray.models.losses import LossTerms
from cropray.shards.order import EpochState
from cropray.storage import Folder

if TYPE_CHECKING:
    from cropray.training.step import StepResult
    from cropray.training.validate import History

STATE = "state.pt"
TRAIN_STATE = "standing.json"
_WHOLE = "whole.json"
_KEPT = 2  # the newest, beside that of the best epoch


@dataclass
class EpochMetrics:
    """Sums over an epoch so far, of all ranks; `seconds` and `waited` (for batches) are this rank's.

    `terms` and `steps` belong to the main head; `also` has the summed loss and the steps of each other head.
    """

    terms: LossTerms
    steps: int = 0
    samples: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    also: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        self.steps += result.head == MAIN
        self.samples += result.samples
        if not result.finite:
            self.skipped += 1
        elif result.head == MAIN:
            self.terms = self.terms + result.terms
        else:
            loss, steps = self.also.get(result.head, (0.0, 0))
            self.also[result.head] = (loss + result.loss, steps + 1)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "terms": {name: x.tolist() for name, x in vars(self.terms).items()}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EpochMetrics:
        terms = {name: torch.tensor(x, dtype=torch.float64) for name, x in data["terms"].items()}
        return cls(**{**data, "terms": LossTerms(**terms)})


@dataclass
class TrainState:
    """How far a training is: the rest of its state is the trainer's."""

    epoch: EpochState
    metrics: EpochMetrics
    history: History = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch.to_dict(), "tally": self.metrics.to_dict(), "history": self.history}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainState:
        metrics = EpochMetrics.from_dict(data["tally"])
        return cls(EpochState.from_dict(data["epoch"]), metrics, data["history"])


def copied(state: Any) -> Any:
    """A copy on the CPU of nested dicts, lists and tensors: later steps do not change it."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [copied(value) for value in state]
    return state


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, laid out in memory as its parameters are: a fused optimizer needs that."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, x in moments.items():
            if torch.is_tensor(x) and x.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(x).detach()


@dataclass(frozen=True)
class Snapshot:
    """A state at rest: a `TrainState` and its identity as JSON, and the tensors of the trainer."""

    name: str
    train_state: dict[str, Any]
    tensors: dict[str, Any]


def name_of(epoch: int, step: int = 0) -> str:
    """The folder of a state: after `epoch` (1-based), or after `step` steps in it."""
    return f"epoch-{epoch:04d}-step-{step:07d}" if step else f"epoch-{epoch:04d}"


def _progress(name: str) -> tuple[int, float]:
    """Sorts the names of states by how far the training is."""
    _, epoch, *step = name.split("-")
    return int(epoch), int(step[1]) if step else float("inf")


def read(folder: Folder, name: str) -> Snapshot | None:
    """The state of a name; None if it is incomplete or damaged."""
    place = folder.child(name)
    try:
        sums = json.loads(place.read_text(_WHOLE))
        data = {file: place.read_bytes(file) for file in (STATE, TRAIN_STATE)}
    except ValueError:  # no JSON, or a file is missing (InputError)
        return None
    if any(_checksum(data[file]) != sums.get(file) for file in data):
        return None
    if "-step-" not in name:  # after an epoch, with a checkpoint that has its own checksum
        try:
            load_checkpoint(place)
        except InputError:
            return None
    tensors = torch.load(io.BytesIO(data[STATE]), map_location="cpu", weights_only=True)
    return Snapshot(name, json.loads(data[TRAIN_STATE]), tensors)


def newest(folder: Folder) -> tuple[Snapshot | None, list[str]]:
    """The most advanced whole state, and the names of damaged ones that are more advanced."""
    damaged = list[str]()
    for name in sorted(_names(folder), key=_progress, reverse=True):
        snapshot = read(folder, name)
        if snapshot is not None:
            return snapshot, damaged
        damaged.append(name)
    return None, damaged


class StateWriter:
    """Writes states one after another, in a thread of its own; any method raises that thread's error.

    The folder `copies` gets each checkpoint too, by the same name. Before a state is begun and before it
    counts as whole, `check` may raise: the run lock is lost.
    """

    def __init__(
        self, folder: Folder, copies: Folder | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._copies, self._check = folder, copies, check
        self._pool = ThreadPoolExecutor(1, "state-writer")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a state is still being written."""
        return self._last is not None and not self._last.done()

    def put(self, snapshot: Snapshot, checkpoint: Checkpoint | None, best: str | None) -> None:
        """Write a state after the one before, with a checkpoint if given; keep `best` and the newest only."""
        self.wait()
        self._last = self._pool.submit(self._write, snapshot, checkpoint, best)

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Return when everything is written."""
        if self._last is not None:
            self._last.result()

    def _write(self, snapshot: Snapshot, checkpoint: Checkpoint | None, best: str | None) -> None:
        self._check()
        try:
            self._publish(snapshot, checkpoint)
            if checkpoint is not None and self._copies is not None:
                save_checkpoint(checkpoint, self._copies.child(snapshot.name))
        except OSError:
            with suppress(OSError):  # on a full disk this makes room
                self._folder.delete_folder(snapshot.name)
            raise
        names = sorted(_names(self._folder), key=_progress)
        until = [name for name in names if _progress(name) <= _progress(snapshot.name)]
        whole = [name for name in until if self._folder.exists(f"{name}/{_WHOLE}")]
        for name in until:
            if name not in {*whole[-_KEPT:], best}:
                self._folder.delete_folder(name)

    def _publish(self, snapshot: Snapshot, checkpoint: Checkpoint | None) -> None:
        target = self._folder.child(snapshot.name)
        if target.exists(_WHOLE):
            target.delete(_WHOLE)  # the same state before an interruption: incomplete for now
        buffer = io.BytesIO()
        torch.save(snapshot.tensors, buffer)
        files = {STATE: buffer.getvalue(), TRAIN_STATE: json.dumps(snapshot.train_state).encode()}
        for name, data in files.items():
            target.write_bytes(name, data)
        if checkpoint is not None:
            save_checkpoint(checkpoint, target)
        self._check()
        sums = {name: _checksum(data) for name, data in files.items()}
        target.write_text(_WHOLE, json.dumps(sums, indent=1) + "\n")


def _checksum(data: bytes) -> list[Any]:
    return [len(data), xxhash.xxh3_64_hexdigest(data)]


def _names(folder: Folder) -> set[str]:
    return {name.split("/")[0] for name in folder.names() if name.startswith("epoch-") and "/" in name}

"""What runs in each worker of Ray Train: reading, training, and a checkpoint after every epoch."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from torch import Tensor

from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.heads import starting_weights
from cropray.shards.reader import ShardReader
from cropray.storage import Folder, explained, is_lasting
from cropray.training.plan import Data, TrainingPlan
from cropray.training.step import Trainer, initial_network
from cropray.training.validate import SCORE, validate_epoch
from cropray.types import InputError

_STATE = "state.pt"
_HISTORY = "history.json"
_NOTE_EVERY_S = 0.5

History = list[dict[str, Any]]


@dataclass(frozen=True)
class Note:
    """How far the training is. `entry` is there after an epoch: its line of the history."""

    steps: int = 0
    epoch: int = 0
    loss: float = 0.0
    entry: dict[str, Any] | None = None
    problem: str = ""  # what the user must mend; the training cannot go on


def train_worker(config: dict[str, Any]) -> History:
    """Train to the last epoch, from the last checkpoint if there is one; the history of all epochs."""
    try:
        return _train(config["plan"], config["notes"])
    except InputError as error:
        config["notes"].put(Note(problem=str(error)))
        raise
    except OSError as error:
        if is_lasting(error):
            config["notes"].put(Note(problem=explained(error)))
        raise


def _train(plan: TrainingPlan, notes: Queue) -> History:
    torch.set_num_threads(plan.threads or _share_of_cpus())
    train, val = _reader(plan, plan.train, shuffle=True), None
    if plan.val.uris:
        val = _reader(plan, plan.val, shuffle=False)
    trainer = _trainer(plan, len(train))
    history = _resume(trainer, plan.checkpoint)
    for epoch in range(len(history), plan.recipe.epochs):
        tell = _Teller(notes, epoch, len(train), muted=trainer.rank > 0)
        figures: dict[str, Any] = trainer.train_epoch(train.epoch(epoch), epoch, tell.step)
        stored = (epoch + 1) % plan.store_every == 0 or epoch + 1 == plan.recipe.epochs
        thresholds = None
        if stored and val is not None and len(val):
            found, thresholds = validate_epoch(trainer, val, plan.checkpoint.classes)
            figures |= found
        thresholds = plan.checkpoint.thresholds or thresholds
        history.append({"epoch": epoch + 1, **figures})
        if stored:
            _report(trainer, replace(plan.checkpoint, thresholds=thresholds), history)
        tell.epoch_done(history[-1])
    return history


class _Teller:
    """Tells the driver of steps, not more often than a person can read."""

    def __init__(self, notes: Queue, epoch: int, steps_per_epoch: int, *, muted: bool) -> None:
        self._notes, self._epoch, self._per_epoch, self._muted = notes, epoch, steps_per_epoch, muted
        self._last = time.monotonic()

    def step(self, steps: int, loss: Tensor) -> None:
        due = steps < self._per_epoch and time.monotonic() - self._last >= _NOTE_EVERY_S
        if due and not self._muted:
            self._last = time.monotonic()
            self._notes.put(Note(self._epoch * self._per_epoch + steps, self._epoch + 1, loss.item()))

    def epoch_done(self, entry: dict[str, Any]) -> None:
        if not self._muted:
            steps = (self._epoch + 1) * self._per_epoch
            self._notes.put(Note(steps, self._epoch + 1, entry["train_loss"], entry))


def _trainer(plan: TrainingPlan, steps_per_epoch: int) -> Trainer:
    weights = None
    if plan.init is not None:
        weights = starting_weights(load_checkpoint(plan.init), plan.checkpoint)
    network = initial_network(plan.checkpoint.network, plan.recipe.seed, weights, keep_head=plan.keep_head)
    network.heads.requires_grad_(False)  # they are kept as they are
    device = ray.train.torch.get_device()
    return Trainer(network, plan.checkpoint.normalisation, plan.recipe, steps_per_epoch, device)


def _reader(plan: TrainingPlan, data: Data, *, shuffle: bool) -> ShardReader:
    context = ray.train.get_context()
    return data.reader(
        plan.batch_size,
        seed=plan.recipe.seed,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        shuffle=shuffle,
    )


def _share_of_cpus() -> int:
    context = ray.train.get_context()
    here = len(os.sched_getaffinity(0)) // int(context.get_local_world_size())
    everywhere = int(ray.cluster_resources().get("CPU", 1)) // int(context.get_world_size())
    return max(1, min(here, everywhere))


def _report(trainer: Trainer, checkpoint: Checkpoint, history: History) -> None:
    """Store the epoch; waits until all ranks have come so far."""
    entry = history[-1]
    unknown = {SCORE: -1.0}  # where the validation split says nothing: below every score
    metrics = unknown | {name: value for name, value in entry.items() if isinstance(value, int | float)}
    if trainer.rank > 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(scratch)
        save_checkpoint(replace(checkpoint, weights=trainer.network.state_dict()), folder)
        state = io.BytesIO()
        torch.save(trainer.state(), state)
        folder.write_bytes(_STATE, state.getvalue())
        folder.write_text(_HISTORY, json.dumps(history))
        stored = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report(metrics, stored, checkpoint_dir_name=f"epoch-{entry['epoch']:04d}")


def _resume(trainer: Trainer, wanted: Checkpoint) -> History:
    """Take up the last checkpoint that the controller recorded; its history, empty without one.

    Raises InputError where it is of other data or settings.
    """
    stored = ray.train.get_checkpoint()
    if stored is None:
        return []
    with stored.as_directory() as directory:
        folder = Folder(directory)
        found = load_checkpoint(folder)
        if (found.data_fingerprint, found.recipe) != (wanted.data_fingerprint, wanted.recipe):
            raise InputError(
                f"checkpoints/{wanted.recipe['stage']} of the run folder holds a training on other data or "
                "with other settings; delete that folder, or use another --run"
            )
        state = io.BytesIO(folder.read_bytes(_STATE))
        trainer.load_state(torch.load(state, map_location=trainer.device, weights_only=True))
        history: History = json.loads(folder.read_text(_HISTORY))
    return history

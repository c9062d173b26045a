"""The loop of a training on one of any number of ranks: steps, validation, states. It is free of Ray."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from math import floor
from typing import Any, Protocol, TypeVar

import torch

from cropray.models.checkpoint import Checkpoint
from cropray.models.losses import total
from cropray.shards.order import EpochSegment, EpochState
from cropray.shards.reader import ShardReader
from cropray.training.state import EpochMetrics, Snapshot, StateWriter, TrainState, copied, name_of
from cropray.training.step import StepResult, Trainer
from cropray.training.validate import best_entry, class_losses, validate_epoch
from cropray.types import Batch

T = TypeVar("T")


class Ask(IntFlag):
    """What rank 0 wants all ranks to do after a step."""

    STORE = 1
    LEAVE = 2
    CHECK_IN = 4


class Supervisor(Protocol):
    """What a loop asks and tells the outside, on every rank."""

    def asks(self) -> int:
        """What is wanted now (`Ask`); only rank 0's answer counts."""

    def check_in(self, state: TrainState, result: StepResult) -> bool:
        """Report progress; whether to write a state now. All ranks call it after the same step."""

    def stored(self) -> None:
        """A state is being written."""

    def epoch_done(self, state: TrainState) -> None:
        """An epoch is over, and validated if it was to be. All ranks call it."""


@dataclass
class AuxiliaryTask:
    """A label set learnt by a head of its own: `weight` steps for each step of the main head.

    `val` is this rank's part of its validation split, if it has one. The number of the main step alone
    decides which batch comes when, for all ranks and when a training resumes.
    """

    head: str
    weight: float
    reader: ShardReader
    val: ShardReader | None = None
    _next: int = field(default=0, init=False)
    _batches: Iterator[Batch] = field(default_factory=lambda: iter(()), init=False)

    def before(self, step: int) -> Iterator[Batch]:
        """The batches that come before a main step (0-based, over all epochs)."""
        for number in range(floor(step * self.weight), floor((step + 1) * self.weight)):
            epoch, place = divmod(number, len(self.reader))
            if place == 0 or number != self._next:
                self._batches = self.reader.epoch(epoch, place)
            self._next = number + 1
            yield next(self._batches)


@dataclass
class Loop:
    """One rank of a training, with its part of `val`. Only rank 0 has a `writer`.

    `checkpoint` is the one to publish, without weights. `about` is written with every state.
    """

    trainer: Trainer
    train: ShardReader
    val: ShardReader | None
    batch_size: int
    store_every: int
    checkpoint: Checkpoint
    state: TrainState
    supervisor: Supervisor
    writer: StateWriter | None
    about: dict[str, Any]
    auxiliary: Sequence[AuxiliaryTask] = ()

    def run(self) -> bool:
        """Train to the last epoch; False if told to leave earlier. Everything is written on return."""
        stays = True
        while stays and self.state.epoch.epoch < self.trainer.recipe.epochs:
            stays = self._epoch()
            if stays:
                self._close_epoch()
        if self.writer is not None:
            self.writer.wait()
        return stays

    def _epoch(self) -> bool:
        """The rest of the current epoch; False if told to leave."""
        trainer, state = self.trainer, self.state
        usage = self._usage = _Usage(trainer.device)
        before, start = continued(state.epoch, trainer.world_size, self.batch_size)
        epoch, first = state.epoch.epoch, state.metrics.steps
        trainer.train_mode()
        batches = self._timed(trainer.ahead(self.train.epoch(epoch, start, before.read)))
        for number, (batch, sent) in enumerate(batches):
            index = first + number
            results = [
                result
                for task in self.auxiliary
                for other in self._timed(task.before(epoch * trainer.steps_per_epoch + index))
                for result in trainer.step(other, epoch, index, head=task.head)
            ]
            results += trainer.step(batch, epoch, index, self.supervisor.asks(), sent=sent)
            state.epoch = before.after(trainer.world_size, self.batch_size, start + number + 1)
            if not self._take(results):
                return False
        stays = self._take(trainer.settle())
        state.metrics.seconds += usage.seconds
        return stays

    def _timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Adds up the time spent waiting for batches."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.state.metrics.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _take(self, results: list[StepResult]) -> bool:
        """Count results and do what was asked with them; False if told to leave."""
        asked = self._counted(results)
        if not asked:
            return True
        store = bool(asked & (Ask.STORE | Ask.LEAVE))
        if asked & Ask.CHECK_IN:
            store |= self.supervisor.check_in(self.state, results[-1])
        if store:
            asked |= self._counted(self.trainer.settle())
            self._store(None)
        return not asked & Ask.LEAVE

    def _counted(self, results: list[StepResult]) -> int:
        asked = 0
        for result in results:
            self.state.metrics.add(result)
            asked |= result.asked
        if self.writer is not None:
            self.writer.check()
        return asked

    def _close_epoch(self) -> None:
        self.trainer.agree()
        number = self.state.epoch.epoch + 1
        stored = number % self.store_every == 0 or number == self.trainer.recipe.epochs
        entry, checkpoint = self._entry(number), self.checkpoint
        if stored:
            figures, checkpoint = self._validated()
            entry |= figures
        history = [*self.state.history, entry]
        self.state = TrainState(EpochState(number), EpochMetrics(self.trainer.no_terms()), history)
        if stored:
            self._store(checkpoint)
        self.supervisor.epoch_done(self.state)

    def _validated(self) -> tuple[dict[str, Any], Checkpoint]:
        """Figures of all heads (auxiliary ones in `val_heads`), and the checkpoint with their thresholds."""
        figures: dict[str, Any] = {}
        thresholds, heads = self.checkpoint.thresholds, dict(self.checkpoint.heads)
        if self.val is not None and (
            found := validate_epoch(self.trainer, self.val, self.checkpoint.classes)
        ):
            figures, chosen = found
            thresholds = thresholds or chosen
        for task in self.auxiliary:
            name, head = task.head, heads[task.head]
            if task.val is not None and (found := validate_epoch(self.trainer, task.val, head.classes, name)):
                figures.setdefault("val_heads", {})[name], chosen = found
                heads[name] = replace(head, thresholds=chosen)
        return figures, replace(self.checkpoint, thresholds=thresholds, heads=heads)

    def _entry(self, number: int) -> dict[str, Any]:
        metrics, trainer = self.state.metrics, self.trainer
        lr, head_lr = trainer.rates
        return {
            "epoch": number,
            "time": time.time(),
            "train_loss": total(metrics.terms, trainer.recipe.loss).item(),
            **{f"train_loss_{head}": loss / steps for head, (loss, steps) in metrics.also.items()},
            "train_class_loss": class_losses(metrics.terms, self.checkpoint.classes),
            "lr": lr,
            "head_lr": head_lr,
            "train_seconds": metrics.seconds,
            "waiting_seconds": metrics.waited,
            "samples_per_second": metrics.samples / max(metrics.seconds, 1e-9),
            "skipped_steps": metrics.skipped,
            "workers": trainer.world_size,
            **self._usage.of_ranks(trainer.of_all_ranks),
        }

    def _store(self, checkpoint: Checkpoint | None) -> None:
        """Write the state, with a `checkpoint` after an epoch. Training goes on meanwhile."""
        trainer, state = self.trainer, self.state
        generators = [torch.get_rng_state()]
        if trainer.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(trainer.device))
        of_ranks = trainer.of_all_ranks(generators)
        if self.writer is not None:
            finished = checkpoint is not None
            name = name_of(state.epoch.epoch + (not finished), 0 if finished else state.metrics.steps)
            described = state.to_dict()
            if state.metrics.steps:  # the epoch is unfinished
                described["tally"]["seconds"] += self._usage.seconds
            tensors = {**trainer.state(), "generators": of_ranks}
            snapshot = Snapshot(name, {**self.about, **described}, tensors)
            if checkpoint is not None:
                checkpoint = replace(checkpoint, weights=copied(trainer.published.state_dict()))
            best = name_of(best_entry(state.history)["epoch"]) if state.history else None
            self.writer.put(snapshot, checkpoint, best)
        self.supervisor.stored()


def resume(snapshot: Snapshot, trainer: Trainer) -> TrainState:
    """Put a trainer into the state of a snapshot; how far the training was."""
    state = dict(snapshot.tensors)
    generators = state.pop("generators")
    trainer.load_state(state)
    if len(generators) == trainer.world_size:
        cpu, *cuda = generators[trainer.rank]
        torch.set_rng_state(cpu)
        if cuda and trainer.device.type == "cuda":
            torch.cuda.set_rng_state(cuda[0], trainer.device)
    return TrainState.from_dict(snapshot.train_state)


def continued(state: EpochState, world_size: int, batch_size: int) -> tuple[EpochState, int]:
    """The segments of an epoch that other ranks read, and how many batches each of these ranks read since.

    Ranks of the same number and batch size continue in their own order: an interruption changes nothing.
    """
    *earlier, last = state.read or (EpochSegment(0, 0, 0),)
    if (last.world_size, last.batch_size) == (world_size, batch_size):
        return EpochState(state.epoch, tuple(earlier)), last.steps
    return state, 0


class _Usage:
    """Time, processors and memory of this process, from its creation on."""

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._start, self._cpu = device.type == "cuda", time.perf_counter(), time.process_time()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def of_ranks(self, of_all: Callable[[dict[str, float]], list[dict[str, float]]]) -> dict[str, float]:
        """Processors that all ranks kept busy, and the memory (MiB) of the rank that took most."""
        mine = {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if self._cuda:
            mine["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        busy = (time.process_time() - self._cpu) / max(self.seconds, 1e-9)
        ranks = of_all(mine | {"cpus_busy": busy})
        highest = {name: max(rank[name] for rank in ranks) for name in mine}
        return {"cpus_busy": sum(rank["cpus_busy"] for rank in ranks), **highest}

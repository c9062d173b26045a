"""A training from where it stands to its end: steps, validation, states. Without Ray, for any ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import MAIN
from cropray.models.losses import LossTerms, total
from cropray.shards.order import EpochState, Stretch
from cropray.shards.reader import ShardReader
from cropray.training.companions import Companion
from cropray.training.state import Kept, StateWriter, name_of
from cropray.training.step import StepResult, Trainer
from cropray.training.usage import Resources
from cropray.training.validate import History, best_entry, class_losses, validate_epoch

T = TypeVar("T")


class Ask(IntFlag):
    """What rank 0 wants all ranks to do after a step."""

    STORE = 1
    LEAVE = 2
    LOOK = 4


class Watch(Protocol):
    """The world outside of a training, on every rank."""

    def asks(self) -> int:
        """What is wanted now; only rank 0's counts."""

    def look(self) -> bool:
        """Whether a state should be kept now. All ranks call this after a step in which it was asked."""

    def stored(self) -> None:
        """A state was kept."""

    def step_done(self, standing: Standing, result: StepResult) -> None: ...

    def epoch_done(self, standing: Standing) -> None: ...


@dataclass
class Tally:
    """What an epoch has come to so far, over all ranks.

    `terms` and `steps` are those of the main head; `also` has the summed loss and the steps of others.
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
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        terms = {name: torch.tensor(x, dtype=torch.float64) for name, x in data["terms"].items()}
        return cls(**{**data, "terms": LossTerms(**terms)})


@dataclass
class Standing:
    """Where a training stands, beside the state of its trainer."""

    epoch: EpochState
    tally: Tally
    history: History = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch.to_dict(), "tally": self.tally.to_dict(), "history": self.history}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Standing:
        return cls(EpochState.from_dict(data["epoch"]), Tally.from_dict(data["tally"]), data["history"])


@dataclass
class Loop:
    """One rank of a training. `val` has this rank's part of the validation split.

    `checkpoint` is the one to be made, without weights; `writer` is there on rank 0. `about` goes
    with every state, for whoever takes it up. `companions` are label sets that are learnt beside.
    """

    trainer: Trainer
    train: ShardReader
    val: ShardReader | None
    batch_size: int
    store_every: int
    checkpoint: Checkpoint
    standing: Standing
    watch: Watch
    writer: StateWriter | None
    about: dict[str, Any]
    companions: Sequence[Companion] = ()

    def run(self) -> bool:
        """Train to the last epoch; False where it was asked to leave before. All is written then."""
        finished = self._epochs()
        if self.writer is not None:
            self.writer.wait()
        return finished

    def _epochs(self) -> bool:
        while self.standing.epoch.epoch < self.trainer.recipe.epochs:
            if not self._epoch():
                return False
            self._close_epoch()
        return True

    def _epoch(self) -> bool:
        """The rest of the epoch under way; False where the training is to be left."""
        trainer, standing = self.trainer, self.standing
        resources = self._resources = Resources(trainer.device)
        before, start = _continued(standing.epoch, trainer.world_size, self.batch_size)
        epoch, first = standing.epoch.epoch, standing.tally.steps
        trainer.train_mode()
        batches = self._timed(trainer.ahead(self.train.epoch(epoch, start, before.read)))
        for number, (batch, sent) in enumerate(batches, 1):
            index = first + number - 1
            results = self._beside(epoch, index)
            results += trainer.step(batch, epoch, index, self.watch.asks(), sent=sent)
            standing.epoch = before.after(trainer.world_size, self.batch_size, start + number)
            if not self._take(results):
                return False
        stays = self._take(trainer.settle())
        standing.tally.seconds += resources.seconds
        return stays

    def _beside(self, epoch: int, index: int) -> list[StepResult]:
        """The steps of the companions that come before a step."""
        step = epoch * self.trainer.steps_per_epoch + index
        return [
            result
            for companion in self.companions
            for batch in self._timed(companion.before(step))
            for result in self.trainer.step(batch, epoch, index, head=companion.head)
        ]

    def _timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Counts the seconds that the training waits for its batches."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.standing.tally.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _take(self, results: list[StepResult]) -> bool:
        """Count results and do what was asked; False where the training is to be left."""
        asked = self._counted(results)
        if not asked:
            return True
        store = bool(asked & (Ask.STORE | Ask.LEAVE))
        if asked & Ask.LOOK:
            store |= self.watch.look()
        if store:
            asked |= self._counted(self.trainer.settle())
            self._store(None)
        return not asked & Ask.LEAVE

    def _counted(self, results: list[StepResult]) -> int:
        asked = 0
        for result in results:
            self.standing.tally.add(result)
            if result.head == MAIN:
                self.watch.step_done(self.standing, result)
            asked |= result.asked
        if self.writer is not None:
            self.writer.check()
        return asked

    def _close_epoch(self) -> None:
        self.trainer.agree()
        number = self.standing.epoch.epoch + 1
        stored = number % self.store_every == 0 or number == self.trainer.recipe.epochs
        entry, checkpoint = self._entry(number), self.checkpoint
        if stored:
            figures, checkpoint = self._validated()
            entry |= figures
        history = [*self.standing.history, entry]
        self.standing = Standing(EpochState(number), Tally(self.trainer.no_terms()), history)
        if stored:
            self._store(checkpoint)
        self.watch.epoch_done(self.standing)

    def _validated(self) -> tuple[dict[str, Any], Checkpoint]:
        """Figures of all heads that have a validation split, and the checkpoint with their thresholds.

        Those of heads beside the main one are in `val_heads`, by head.
        """
        figures: dict[str, Any] = {}
        thresholds, heads = self.checkpoint.thresholds, dict(self.checkpoint.heads)
        validated = partial(validate_epoch, self.trainer)
        if self.val is not None and (found := validated(self.val, self.checkpoint.classes)):
            figures, chosen = found
            thresholds = thresholds or chosen
        for companion in self.companions:
            name, head = companion.head, heads[companion.head]
            if companion.val is not None and (found := validated(companion.val, head.classes, name)):
                figures.setdefault("val_heads", {})[name], chosen = found
                heads[name] = replace(head, thresholds=chosen)
        return figures, replace(self.checkpoint, thresholds=thresholds, heads=heads)

    def _entry(self, number: int) -> dict[str, Any]:
        tally, trainer = self.standing.tally, self.trainer
        lr, head_lr = trainer.rates
        return {
            "epoch": number,
            "time": time.time(),
            "train_loss": total(tally.terms, trainer.recipe.loss).item(),
            **{f"train_loss_{head}": loss / steps for head, (loss, steps) in tally.also.items()},
            "train_class_loss": class_losses(tally.terms, self.checkpoint.classes),
            "lr": lr,
            "head_lr": head_lr,
            "train_seconds": tally.seconds,
            "waiting_seconds": tally.waited,
            "samples_per_second": tally.samples / max(tally.seconds, 1e-9),
            "skipped_steps": tally.skipped,
            "workers": trainer.world_size,
            **self._resources.of_ranks(trainer.of_all_ranks),
        }

    def _store(self, checkpoint: Checkpoint | None) -> None:
        """Keep the state; a checkpoint is given after an epoch. Writing goes on in the background."""
        trainer, standing = self.trainer, self.standing
        generators = trainer.of_all_ranks(_generators(trainer.device))
        if self.writer is not None:
            finished = checkpoint is not None
            name = name_of(standing.epoch.epoch + (not finished), 0 if finished else standing.tally.steps)
            kept = Kept(name, self._described(), {**trainer.state(), "generators": generators})
            if checkpoint is not None:
                weights = trainer.published.state_dict()
                checkpoint = replace(
                    checkpoint, weights={k: x.detach().cpu().clone() for k, x in weights.items()}
                )
            self.writer.put(kept, checkpoint, _best_name(standing.history))
        self.watch.stored()

    def _described(self) -> dict[str, Any]:
        """The standing as it is now, with the seconds of an epoch under way."""
        described = self.standing.to_dict()
        if self.standing.tally.steps:
            described["tally"]["seconds"] += self._resources.seconds
        return {**self.about, **described}


def resume(kept: Kept, trainer: Trainer) -> Standing:
    """Put a trainer into a kept state; where the training stands then."""
    state = dict(kept.state)
    generators = state.pop("generators")
    trainer.load_state(state)
    if len(generators) == trainer.world_size:
        cpu, *cuda = generators[trainer.rank]
        torch.set_rng_state(cpu)
        if cuda and trainer.device.type == "cuda":
            torch.cuda.set_rng_state(cuda[0], trainer.device)
    return Standing.from_dict(kept.standing)


def _best_name(history: History) -> str | None:
    return name_of(best_entry(history)["epoch"]) if history else None


def _continued(state: EpochState, world_size: int, batch_size: int) -> tuple[EpochState, int]:
    """What of an epoch was read by other ranks, and how many batches by these very ranks after them.

    These go on in their own order, so that an interruption changes nothing.
    """
    *earlier, last = state.read or (Stretch(0, 0, 0),)
    if (last.world_size, last.batch_size) == (world_size, batch_size):
        return EpochState(state.epoch, tuple(earlier)), last.steps
    return state, 0


def _generators(device: torch.device) -> list[torch.Tensor]:
    """States of the random generators that a rank has."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]

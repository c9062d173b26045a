"""What runs in each worker of Ray Train: one rank of the training, and word of it to the driver."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cropray.errors import InputError, format_os_error, is_lasting
from cropray.models.checkpoint import load_checkpoint
from cropray.models.heads import starting_weights
from cropray.shards.order import EpochState
from cropray.training.companions import Companion
from cropray.training.control import Note
from cropray.training.loop import Ask, Loop, Standing, Tally, resume
from cropray.training.plan import TrainingPlan
from cropray.training.recipe import Precision, chosen
from cropray.training.state import Kept, StateWriter, newest, read
from cropray.training.step import StepResult, Trainer, initial_network
from cropray.training.validate import SCORE, History

_NOTE_EVERY_S = 0.5
_LISTEN_EVERY_S = 0.5
_LOOK_EVERY_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What a worker comes home with; not `finished` where it was asked to leave before the last epoch."""

    history: History
    finished: bool


def train_worker(config: dict[str, Any]) -> Outcome:
    """Train to the last epoch, from the last whole state if there is one."""
    plan, desk = config["plan"], config["desk"]
    if ray.get(desk.leaving.remote()):  # of an attempt after a problem that only the user can mend
        return Outcome([], finished=False)
    try:
        return _train(plan, desk)
    except InputError as error:
        ray.get(desk.tell.remote(Note(problem=str(error))))
        if _ranks() > 1:  # that the others do not wait for this one
            raise
    except OSError as error:
        if is_lasting(error):
            ray.get(desk.tell.remote(Note(problem=format_os_error(error))))
        raise
    return Outcome([], finished=False)


def _train(plan: TrainingPlan, desk: Any) -> Outcome:
    context = ray.train.get_context()
    rank, world_size = int(context.get_world_rank()), int(context.get_world_size())
    torch.set_num_threads(plan.threads or _share_of_cpus())
    torch.manual_seed(plan.recipe.seed + rank)
    device = ray.train.torch.get_device()
    kept, damaged = _found(plan, rank)
    network = plan.checkpoint.network
    precision: Precision = (
        _agreed(chosen(plan.precision, network, device) if rank == 0 else "float32")
        if kept is None
        else kept.standing["precision"]
    )
    trainer = _trainer(plan, device, precision)
    standing = Standing(EpochState(0), Tally(trainer.no_terms())) if kept is None else resume(kept, trainer)
    writer = StateWriter(plan.states) if rank == 0 else None
    batch_size, seed = plan.batch_size // world_size, plan.recipe.seed
    watch = _Watch(plan, desk, trainer, writer)
    watch.begun(standing, _beginning(trainer, kept, damaged))
    loop = Loop(
        trainer=trainer,
        train=plan.train.reader(batch_size, seed=seed, rank=rank, world_size=world_size),
        val=plan.val.part(batch_size, rank, world_size),
        batch_size=batch_size,
        store_every=plan.store_every,
        checkpoint=plan.checkpoint,
        standing=standing,
        watch=watch,
        writer=writer,
        about={**plan.identity, "precision": precision},
        companions=[
            Companion(
                also.head,
                also.data.reader(batch_size, seed=seed, rank=rank, world_size=world_size),
                also.weight,
                also.val.part(batch_size, rank, world_size),
            )
            for also in plan.also
        ],
    )
    finished = loop.run()
    return Outcome(loop.standing.history, finished)


def _found(plan: TrainingPlan, rank: int) -> tuple[Kept | None, list[str]]:
    """The state to go on from, the same for all ranks, and what had to be passed over for it.

    Raises InputError where it is of other data or settings.
    """
    kept, damaged = newest(plan.states) if rank == 0 else (None, [])
    name = _agreed(kept.name if kept is not None else "")
    if rank > 0 and name:
        kept = read(plan.states, name)
    if kept is None:
        return None, damaged
    if any(kept.standing.get(key) != value for key, value in plan.identity.items()):
        raise InputError(
            f"{plan.states} holds a training on other data or with other settings; delete that folder, or "
            "use another --run"
        )
    return kept, damaged


def _agreed(value: T) -> T:
    """What rank 0 has."""
    values = [value]
    if _ranks() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _beginning(trainer: Trainer, kept: Kept | None, damaged: list[str]) -> str:
    lines = [f"{name} is cut short or damaged: passed over" for name in damaged]
    workers = "1 worker" if trainer.world_size == 1 else f"{trainer.world_size} workers"
    start = "from the start" if kept is None else f"goes on from {kept.name}"
    return "\n".join([*lines, f"{workers} on {trainer.device.type}, {trainer.precision}; {start}"])


class _Watch:
    """The world outside: the clock, the driver's word, and Ray's notice of nodes that are taken away."""

    def __init__(self, plan: TrainingPlan, desk: Any, trainer: Trainer, writer: StateWriter | None) -> None:
        self._plan, self._desk, self._trainer, self._writer = plan, desk, trainer, writer
        self._leaving = threading.Event()
        self._stored = self._looked = self._noted = time.monotonic()
        self._noted_at = (0, 0.0, time.perf_counter())
        self._lost = set[str]()
        if writer is not None:
            threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def _listen(self) -> None:
        while not ray.get(self._desk.leaving.remote()):
            time.sleep(_LISTEN_EVERY_S)
        self._leaving.set()

    def begun(self, standing: Standing, said: str) -> None:
        self._noted_at = (standing.tally.samples, standing.tally.waited, time.perf_counter())
        self._tell(self._note(standing, said=said, entries=tuple(standing.history)))

    def asks(self) -> int:
        if self._writer is None:
            return 0
        now, ask = time.monotonic(), Ask(0)
        if self._leaving.is_set():
            ask |= Ask.LEAVE
        if now - self._stored >= self._plan.store_every_s and not self._writer.busy:
            ask |= Ask.STORE
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            ask |= Ask.LOOK
        return int(ask)

    def look(self) -> bool:
        """Whether Ray has said, since the last time, that a node is about to be taken away."""
        info = ray.train.get_preemption_info()
        lost = set(info.preempted_node_ids) if info is not None else set[str]()
        new, self._lost = lost - self._lost, lost
        return bool(new)

    def stored(self) -> None:
        self._stored = time.monotonic()

    def step_done(self, standing: Standing, result: StepResult) -> None:
        now = time.monotonic()
        if self._writer is None or now - self._noted < _NOTE_EVERY_S:
            return
        self._noted = now
        self._tell(self._note(standing, loss=result.loss))

    def epoch_done(self, standing: Standing) -> None:
        entry = standing.history[-1]
        self._tell(self._note(standing, loss=entry["train_loss"], entries=(entry,)))
        unknown = {SCORE: -1.0}  # where the validation split says nothing: below every score
        numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
        ray.train.report(unknown | numbers)

    def _note(self, standing: Standing, **figures: Any) -> Note:
        """Speed and waiting since the last note of this epoch."""
        tally, now = standing.tally, time.perf_counter()
        samples, waited, then = self._noted_at
        self._noted_at = (tally.samples, tally.waited, now)
        if tally.samples > samples:
            figures["samples_per_second"] = (tally.samples - samples) / (now - then)
            figures["waiting"] = (tally.waited - waited) / (now - then)
        per_epoch = self._plan.steps // self._plan.recipe.epochs
        steps = standing.epoch.epoch * per_epoch + min(tally.steps, per_epoch)
        epoch = standing.epoch.epoch + (tally.steps > 0)
        return Note(steps, epoch, skipped=self._trainer.skipped, **figures)

    def _tell(self, note: Note) -> None:
        if self._writer is not None:
            self._desk.tell.remote(note)


def _trainer(plan: TrainingPlan, device: torch.device, precision: Precision) -> Trainer:
    weights = None
    if plan.init is not None:
        weights = starting_weights(load_checkpoint(plan.init), plan.checkpoint)
    network = initial_network(plan.checkpoint.network, plan.recipe.seed, weights, keep_head=plan.keep_head)
    return Trainer(
        network,
        plan.checkpoint.normalisation,
        plan.recipe,
        plan.steps // plan.recipe.epochs,
        device,
        precision=precision,
        new_head=not plan.keep_head,
        compiled=plan.compiled,
        also=[also.head for also in plan.also],
    )


def _share_of_cpus() -> int:
    context = ray.train.get_context()
    here = len(os.sched_getaffinity(0)) // int(context.get_local_world_size())
    everywhere = int(ray.cluster_resources().get("CPU", 1)) // int(context.get_world_size())
    return max(1, min(here, everywhere))

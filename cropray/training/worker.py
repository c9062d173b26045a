"""What Ray Train runs: one rank of a training in each worker, and the callbacks in its controller."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import Checkpoint, CheckpointUploadMode, UserCallback
from ray.util.queue import Queue

from cropray.errors import InputError, format_os_error, is_lasting
from cropray.models.checkpoint import load_checkpoint
from cropray.models.heads import starting_weights
from cropray.shards.order import EpochState
from cropray.shards.reader import ShardReader
from cropray.training.data import Data
from cropray.training.loop import Ask, AuxiliaryTask, Loop, resume
from cropray.training.plan import RAYS, TrainingPlan
from cropray.training.recipe import choose_precision, initial_network
from cropray.training.state import EpochMetrics, Snapshot, StateWriter, TrainState, name_of, newest, read
from cropray.training.step import StepResult, Trainer
from cropray.training.validate import SCORE, History, epoch_score

# A report makes all ranks meet, and may wait for the controller's next look at them: never by step.
CHECK_IN_EVERY_S = 3.0
_LISTEN_EVERY_S = 0.5

FAULTS = (TypeError, LookupError, AttributeError, AssertionError, ImportError)
"""What only a fault of the program raises; lost nodes and networks raise others."""


class SendReports(UserCallback):  # type: ignore[misc]  # Ray's classes have no types
    """Passes rank 0's reports to the driver. If that queue is lost, the training goes on.

    The first thing that it passes is Ray Train's controller, which `trainer.fit` waits for and gives nobody:
    a callback is sent to the controller's process, and unpickled there.
    """

    def __init__(self, reports: Queue) -> None:
        self._reports, self._made_in = reports, _actor()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if _actor() not in (None, self._made_in):
            self._reports.actor.put_nowait.remote({"controller": ray.get_runtime_context().current_actor})

    def after_report(self, metrics: list[dict[str, Any]], **_of_the_run: Any) -> None:
        self._reports.actor.put_nowait.remote(metrics[0])


def _actor() -> str | None:
    """The id of the actor whose process this is. Only asked of a running Ray: else one would start."""
    found: str | None = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    return found


class StopOnLastingError(UserCallback):  # type: ignore[misc]
    """Ends a training whose worker raised what another try would raise again: an InputError, or a fault.

    Ray Train never retries after a callback's error.
    """

    def after_exception(self, worker_exceptions: Mapping[int, Exception], **_of_the_run: Any) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, (InputError, *FAULTS)):
                raise error


def train_worker(config: dict[str, Any]) -> History:
    """Train to the last epoch, from the newest whole state if there is one; the history so far.

    The history ends early if the workers were told to leave. Raises InputError for what a person must
    correct: data, settings, or a full disk.
    """
    try:
        return _train(**config)
    except OSError as error:
        if is_lasting(error):
            raise InputError(format_os_error(error)) from error
        raise


def _train(plan: TrainingPlan, control: Any) -> History:
    context = ray.train.get_context()
    rank, world_size = int(context.get_world_rank()), int(context.get_world_size())
    here = len(os.sched_getaffinity(0)) // int(context.get_local_world_size())
    everywhere = int(ray.cluster_resources().get("CPU", 1)) // world_size
    torch.set_num_threads(plan.settings.threads or max(1, min(here, everywhere)))
    torch.manual_seed(plan.recipe.seed + rank)
    snapshot, damaged = resumable(plan, rank)
    trainer = _trainer(plan, snapshot)
    if snapshot is None:
        state = TrainState(EpochState(0), EpochMetrics(trainer.no_terms()))
    else:
        state = resume(snapshot, trainer)
    check = plan.lock.check if plan.lock is not None else lambda: None
    writer = StateWriter(plan.states, plan.states.child(RAYS), check) if rank == 0 else None
    supervisor = RaySupervisor(plan, control, trainer, writer)
    lines = [f"{name} is incomplete or damaged: skipped" for name in damaged]
    workers = "1 worker" if world_size == 1 else f"{world_size} workers"
    start = "from the start" if snapshot is None else f"resumes from {snapshot.name}"
    lines.append(f"{workers} on {trainer.device.type}, {trainer.precision}; {start}")
    supervisor.begun(state, "\n".join(lines))
    batch_size = plan.settings.batch_size // world_size

    def readers(train: Data, val: Data) -> tuple[ShardReader, ShardReader | None]:
        mine = {"rank": rank, "world_size": world_size}
        return train.reader(batch_size, seed=plan.recipe.seed, **mine), val.part(batch_size, **mine)

    train, val = readers(plan.train, plan.val)
    loop = Loop(
        trainer=trainer,
        train=train,
        val=val,
        batch_size=batch_size,
        store_every=plan.settings.store_every,
        checkpoint=plan.checkpoint,
        state=state,
        supervisor=supervisor,
        writer=writer,
        about={**plan.identity, "precision": trainer.precision},
        auxiliary=[AuxiliaryTask(x.head, x.weight, *readers(x.data, x.val)) for x in plan.also],
    )
    loop.run()
    return loop.state.history


def resumable(plan: TrainingPlan, rank: int) -> tuple[Snapshot | None, list[str]]:
    """The state to resume from, the same for all ranks, and the names of damaged ones that are newer.

    Raises InputError if it belongs to other data or settings.
    """
    snapshot, damaged = newest(plan.states) if rank == 0 else (None, [])
    names = [snapshot.name if snapshot else ""]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(names, 0)
    if rank > 0 and names[0]:
        snapshot = read(plan.states, names[0])
    if snapshot and any(snapshot.train_state.get(key) != value for key, value in plan.identity.items()):
        raise InputError(
            f"{plan.states} holds a training on other data or with other settings: delete that folder, or "
            "use another --run"
        )
    return snapshot, damaged


class RaySupervisor:
    """Connects a loop with the clock, the driver's `control`, and Ray Train. Only rank 0 has a `writer`."""

    def __init__(
        self,
        plan: TrainingPlan,
        control: Any,
        trainer: Trainer,
        writer: StateWriter | None,
        check_in_every_s: float = CHECK_IN_EVERY_S,
    ) -> None:
        self._plan, self._control, self._trainer, self._writer = plan, control, trainer, writer
        self._check_in_every_s = check_in_every_s
        self._leaving = threading.Event()
        self._stored, self._checked_in = time.monotonic(), float("-inf")  # the first step is reported
        self._counted = (0.0, 0.0, time.perf_counter())
        self._preempted, self._reported = set[str](), 0
        if writer is not None:
            threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def _listen(self) -> None:
        with suppress(RayActorError):  # without the control actor the training goes on
            while not ray.get(self._control.leaving.remote()):
                time.sleep(_LISTEN_EVERY_S)
            self._leaving.set()

    def begun(self, state: TrainState, message: str) -> None:
        self._counted = (*worked(state), time.perf_counter())
        self._report(state, {"message": message})

    def asks(self) -> int:
        if self._writer is None:
            return 0
        now, ask = time.monotonic(), Ask(0)
        if self._leaving.is_set():
            ask |= Ask.LEAVE
        if now - self._stored >= self._plan.settings.store_every_s and not self._writer.busy:
            ask |= Ask.STORE
        if now - self._checked_in >= self._check_in_every_s:
            self._checked_in = now
            ask |= Ask.CHECK_IN
        return int(ask)

    def check_in(self, state: TrainState, result: StepResult) -> bool:
        """Report progress; whether Ray says, for the first time, that it will take a node away."""
        self._report(state, {"loss": result.loss})
        info = ray.train.get_preemption_info()
        preempted = set(info.preempted_node_ids) if info is not None else set[str]()
        new, self._preempted = preempted - self._preempted, preempted
        return bool(new)

    def stored(self) -> None:
        self._stored = time.monotonic()

    def epoch_done(self, state: TrainState) -> None:
        entry = state.history[-1]
        if SCORE in entry:  # others go with the next report: an epoch may be short
            numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
            self._report(state, numbers | {SCORE: epoch_score(entry)}, name_of(entry["epoch"]))

    def _report(self, state: TrainState, figures: dict[str, Any], state_name: str | None = None) -> None:
        """Report progress and `figures`, and the checkpoint of a state that is being written.

        Speed (samples/s) and waiting (share of time) count from the last report. All ranks call it alike.
        """
        entries, self._reported = state.history[self._reported :], len(state.history)
        metrics, now, per_epoch = state.metrics, time.perf_counter(), self._trainer.steps_per_epoch
        (before, waited_before, then), (samples, waited) = self._counted, worked(state)
        self._counted = (samples, waited, now)
        shown: dict[str, Any] = {
            "steps": state.epoch.epoch * per_epoch + min(metrics.steps, per_epoch),
            "epoch": state.epoch.epoch + (metrics.steps > 0),
            "skipped": self._trainer.skipped,
        }
        if samples > before:
            shown["samples_per_second"] = (samples - before) / (now - then)
            shown["waiting"] = (waited - waited_before) / (now - then)
        report = {**shown, **figures, "entries": entries}
        writer = self._writer
        if state_name is None or writer is None:
            ray.train.report(report)
            return

        def written(checkpoint: Checkpoint, _name: str) -> Checkpoint:
            writer.wait()
            return checkpoint

        copies = self._plan.states.child(RAYS)
        ray.train.report(
            report,
            Checkpoint(copies.path(state_name), copies.filesystem),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,  # training goes on meanwhile
            checkpoint_upload_fn=written,
            delete_local_checkpoint_after_upload=False,
        )


def worked(state: TrainState) -> tuple[float, float]:
    """The samples seen so far, of all ranks, and the seconds that this one waited for them."""
    ended = state.history
    samples = sum(entry["samples_per_second"] * entry["train_seconds"] for entry in ended)
    waited = sum(entry["waiting_seconds"] for entry in ended)
    return samples + state.metrics.samples, waited + state.metrics.waited


def _trainer(plan: TrainingPlan, snapshot: Snapshot | None) -> Trainer:
    device = ray.train.torch.get_device()
    weights = starting_weights(load_checkpoint(plan.init), plan.checkpoint) if plan.init else None
    precision = choose_precision(plan.settings.precision, device)
    if snapshot is not None:
        precision = snapshot.train_state["precision"]
    return Trainer(
        initial_network(plan.checkpoint.network, plan.recipe.seed, weights, keep_head=plan.keep_head),
        plan.checkpoint.normalisation,
        plan.recipe,
        plan.steps // plan.recipe.epochs,
        device,
        precision=precision,
        new_head=not plan.keep_head,
        compiled=plan.settings.compile,
        also=[also.head for also in plan.also],
    )

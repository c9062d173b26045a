"""What a worker hears of the outside, what it reports, and what the driver makes of it."""

import errno
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.exceptions import RayActorError

from cropray.errors import InputError
from cropray.models.losses import LossTerms
from cropray.shards.order import EpochState
from cropray.storage import Folder
from cropray.training.control import Control
from cropray.training.loop import Ask
from cropray.training.monitor import ProgressMonitor, ResourceRequest, flat_entry
from cropray.training.plan import RAYS, TrainingPlan, make_plan
from cropray.training.state import EpochMetrics, TrainState
from cropray.training.validate import SCORE
from cropray.training.worker import RaySupervisor, SendReports, StopOnLastingError, train_worker
from tests.training_data import make_run, write_split

RUN: Any = {"run_context": None}


class Actor:
    """An object of this process, called as an actor is."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.inner, name))


class Lost:
    """An actor that is dead."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=RayActorError)


def get(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Actor]:
    monkeypatch.setattr(ray, "get", get)
    actor = Actor(Control())
    yield actor
    actor.inner.leave()
    for thread in threading.enumerate():
        if thread.name == "listener":
            thread.join(5)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the worker reports to Ray Train, with the checkpoint as `checkpoint`."""
    found: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], checkpoint: Any = None, **options: Any) -> None:
        kept = options["checkpoint_upload_fn"](checkpoint, "") if checkpoint is not None else None
        found.append({**metrics, "checkpoint": kept})

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 8)
    return folder


def planned(folder: Folder, **settings: Any) -> TrainingPlan:
    return make_plan(make_run(folder, **settings), "pretrain")


def supervised(plan: TrainingPlan, control: Any, *, busy: bool = False, every_s: float = 60) -> RaySupervisor:
    trainer: Any = SimpleNamespace(skipped=0, steps_per_epoch=2)
    writer: Any = SimpleNamespace(busy=busy, wait=lambda: None)
    return RaySupervisor(plan, control, trainer, writer, every_s)


def until(supervisor: RaySupervisor, wanted: Ask) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if supervisor.asks() & wanted:
            return True
        time.sleep(0.02)
    return False


def entry(epoch: int, **figures: Any) -> dict[str, Any]:
    speed = {"samples_per_second": 4.0, "train_seconds": 1.0, "waiting_seconds": 0.1}
    return {"epoch": epoch, "time": 1.0 * epoch, "train_loss": 1.0 / epoch, **speed, **figures}


def at(epoch: int, steps: int = 0, **metrics: Any) -> TrainState:
    """A training of which `epoch` epochs are over, and so many steps of the next one."""
    nothing: Any = LossTerms(*([None] * 4))  # type: ignore[arg-type]
    history = [entry(number + 1) for number in range(epoch)]
    return TrainState(EpochState(epoch), EpochMetrics(nothing, steps=steps, **metrics), history)


STEP: Any = SimpleNamespace(loss=0.5)


def test_a_state_is_asked_for_after_so_many_seconds_and_while_none_is_written(
    folder: Folder, control: Actor
) -> None:
    plan = planned(folder, store_every_s=0.2)
    supervisor = supervised(plan, control)
    assert not supervisor.asks() & Ask.STORE
    assert until(supervisor, Ask.STORE)
    supervisor.stored()
    assert not supervisor.asks() & Ask.STORE
    busy = supervised(plan, control, busy=True)
    time.sleep(0.3)
    assert not busy.asks() & Ask.STORE


def test_the_drivers_word_makes_the_workers_leave(folder: Folder, control: Actor) -> None:
    supervisor = supervised(planned(folder), control)
    assert not supervisor.asks() & Ask.LEAVE
    control.inner.leave()
    assert until(supervisor, Ask.LEAVE)


def test_the_loss_of_the_control_actor_does_not_end_the_training(folder: Folder, control: Actor) -> None:
    supervisor = supervised(planned(folder, store_every_s=0.2), Lost())
    assert until(supervisor, Ask.STORE)
    assert not supervisor.asks() & Ask.LEAVE


def test_the_ranks_check_in_after_the_first_step_and_once_in_a_while(
    folder: Folder, control: Actor, reports: list[dict[str, Any]]
) -> None:
    supervisor = supervised(planned(folder), control, every_s=0.2)
    for _ in range(2):
        assert until(supervisor, Ask.CHECK_IN)
        assert not supervisor.asks() & Ask.CHECK_IN


def test_each_notice_of_a_preemption_is_answered_by_one_state(
    folder: Folder, control: Actor, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    notices = iter([None, ["a"], ["a"], ["a", "b"], None])

    def info() -> Any:
        nodes = next(notices)
        return None if nodes is None else SimpleNamespace(preempted_node_ids=nodes)

    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    supervisor = supervised(planned(folder), control)
    assert [supervisor.check_in(at(0), STEP) for _ in range(5)] == [False, True, False, True, False]


def test_progress_is_reported_with_speed_and_the_share_of_waiting(
    folder: Folder, control: Actor, reports: list[dict[str, Any]]
) -> None:
    supervisor = supervised(planned(folder, store_every=3), control)
    supervisor.begun(at(1), "1 worker on cpu")
    time.sleep(0.2)
    supervisor.check_in(at(1, 1, samples=4, waited=0.1), STEP)
    supervisor.epoch_done(at(2))
    supervisor.check_in(at(2, 1, samples=4), STEP)
    first, second, third = reports
    assert (first["message"], first["steps"], first["epoch"]) == ("1 worker on cpu", 2, 1)
    assert (second["steps"], second["epoch"], second["loss"]) == (3, 2, 0.5)
    assert 0 < second["samples_per_second"] < 4 / 0.2
    assert 0 < second["waiting"] < 0.1 / 0.2
    assert third["samples_per_second"] > 0  # in all, though the new epoch has seen no more than the last one
    assert third["waiting"] >= 0
    # Lines of the history travel once; an epoch that is not validated is reported with the next progress.
    assert [[e["epoch"] for e in report["entries"]] for report in reports] == [[1], [], [2]]
    assert third["checkpoint"] is None


def test_a_validated_epoch_is_reported_with_its_score_and_its_checkpoint(
    folder: Folder, control: Actor, reports: list[dict[str, Any]]
) -> None:
    plan = planned(folder)
    supervisor, state = supervised(plan, control), at(1)
    for score in (0.25, None):
        state.history[-1] |= {SCORE: score, "val_classes": {"maize": None}}
        supervisor.epoch_done(state)
    known, unknown = reports
    assert (known["epoch"], known[SCORE], known["train_loss"], unknown[SCORE]) == (1, 0.25, 1.0, -1.0)
    assert known["entries"][0]["val_classes"] == {"maize": None}
    assert known["checkpoint"].path == plan.states.path(f"{RAYS}/epoch-0001")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/epoch-0001"), True),
        (InputError("the shard a.parquet is damaged"), True),
        (OSError(errno.EIO, "Input/output error", "/run/epoch-0001"), False),
        (RuntimeError("a rank is gone"), False),
    ],
)
def test_what_only_a_person_can_mend_ends_the_training_without_another_attempt(
    monkeypatch: pytest.MonkeyPatch, error: Exception, ends: bool
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(ray.train, "get_context", fails)
    with pytest.raises(InputError if ends else type(error)) as raised:
        train_worker({"plan": None, "control": None})
    assert str(error.args[-1]) in str(raised.value)
    callback = StopOnLastingError()
    failures = {0: RuntimeError("connection closed"), 1: raised.value}
    if ends:
        with pytest.raises(InputError, match=str(error.args[-1])):
            callback.after_exception(worker_exceptions=failures, **RUN)
    else:
        callback.after_exception(worker_exceptions=failures, **RUN)


def test_a_fault_of_the_program_is_not_tried_again_and_a_lost_connection_is() -> None:
    callback = StopOnLastingError()
    callback.after_exception(
        worker_exceptions={0: RuntimeError("closed"), 1: ConnectionError("reset")}, **RUN
    )
    with pytest.raises(KeyError):
        callback.after_exception(worker_exceptions={0: RuntimeError("closed"), 1: KeyError("x")}, **RUN)


class Reports:
    """A queue of this process, used as Ray's."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.actor = SimpleNamespace(put_nowait=SimpleNamespace(remote=self.items.append))
        self.lost = False

    def qsize(self) -> int:
        if self.lost:
            raise RayActorError
        return len(self.items)

    def get_nowait_batch(self, size: int) -> list[dict[str, Any]]:
        taken, self.items[:] = self.items[:size], self.items[size:]
        return taken


class Record:
    """A tracker that keeps what it gets."""

    def __init__(self, recorded: set[int]) -> None:
        self.recorded, self.got = recorded, SimpleQueue[int]()

    def steps_of(self, _metric: str) -> set[int]:
        return self.recorded

    def metrics(self, _metrics: object, step: int, **_when: float) -> None:
        self.got.put(step)

    def steps(self) -> list[int]:
        return [self.got.get_nowait() for _ in range(self.got.qsize())]


def monitor(
    folder: Folder, control: Any, queue: Reports, record: Record, history: list[dict[str, Any]]
) -> ProgressMonitor:
    training: Future[Any] = Future()
    training.set_result(history)
    reports, tracker, request = queue, record, ResourceRequest((1, 1), {"CPU": 1})
    return ProgressMonitor("pretrain", planned(folder), request, control, reports, training, tracker)  # type: ignore[arg-type]


def progressed(queue: Reports, steps: int, *entries: dict[str, Any], **more: Any) -> None:
    report = {"steps": steps, "epoch": 1, "skipped": 0, "entries": list(entries), **more}
    SendReports(queue).after_report(metrics=[report, {}], checkpoint=None, **RUN)  # type: ignore[arg-type]


HISTORY = [entry(1), entry(2), entry(3)]


def test_the_record_gets_each_epoch_once_also_when_a_training_is_resumed(
    folder: Folder, control: Actor, capsys: pytest.CaptureFixture[str]
) -> None:
    queue, record = Reports(), Record({1})
    progressed(queue, 4, *HISTORY[:2], message="1 worker on cpu; resumes from epoch-0002")
    progressed(queue, 6, HISTORY[2])
    assert monitor(folder, control, queue, record, HISTORY).until_done() == HISTORY
    assert record.steps() == [2, 3]
    assert "pretrain: 1 worker on cpu; resumes from epoch-0002" in capsys.readouterr().err


def test_what_was_lost_with_the_queue_is_recorded_in_the_end(folder: Folder, control: Actor) -> None:
    queue, record = Reports(), Record(set())
    queue.lost = True
    assert monitor(folder, control, queue, record, HISTORY).until_done() == HISTORY
    assert record.steps() == [1, 2, 3]


def test_a_training_that_left_early_is_interrupted(folder: Folder, control: Actor) -> None:
    with pytest.raises(KeyboardInterrupt):
        monitor(folder, control, Reports(), Record(set()), HISTORY[:2]).until_done()


def test_an_interrupt_lets_the_workers_leave(
    folder: Folder, control: Actor, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = Reports()
    interrupted = monitor(folder, control, queue, Record(set()), HISTORY[:1])
    progressed(queue, 1, message="1 worker on cpu")
    interrupted.training = Future()

    class Interrupted(Reports):
        def qsize(self) -> int:
            if not control.inner.leaving():
                if not queue.items:
                    raise KeyboardInterrupt
                return 1
            interrupted.training.set_result(HISTORY[:1])
            self.qsize = lambda: 0  # type: ignore[method-assign]
            return 0

    interrupted.reports = Interrupted()  # type: ignore[assignment]
    interrupted.reports.items = queue.items  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        interrupted.until_done()
    assert control.inner.leaving()
    assert "pretrain: writing its state" in capsys.readouterr().err


def test_the_figures_of_an_epoch_have_names_for_the_record() -> None:
    figures = {
        "epoch": 2,
        "time": 2.0,
        "train_loss": 0.5,
        "train_class_loss": {"maize": 0.5},
        "val_class_loss": {"maize": 0.6},
        "val_classes": {"maize": {"f1": 0.7}, "pea": None},
        "val_mean_f1": None,
        "memory_mib": 100.0,
    }
    assert flat_entry(figures) == {
        "train_loss": 0.5,
        "train_loss/maize": 0.5,
        "val_loss/maize": 0.6,
        "val_f1/maize": 0.7,
        "system/memory_mib": 100.0,
    }

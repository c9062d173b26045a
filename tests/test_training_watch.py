"""What a worker hears of the world, what it tells the driver, and what the driver makes of it."""

import errno
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train

from cropray.errors import InputError
from cropray.storage import Folder
from cropray.training import worker as driver_worker
from cropray.training.control import Desk, Note
from cropray.training.loop import Ask
from cropray.training.monitor import Follower, flat_entry
from cropray.training.plan import TrainingPlan, make_plan
from cropray.training.resources import Asked
from cropray.training.worker import Outcome, _Watch
from tests.training_data import make_run, write_split


class Remote:
    """A desk in this process, called as an actor is."""

    def __init__(self) -> None:
        self.desk = Desk()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.desk, name))


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(driver_worker, "_LISTEN_EVERY_S", 0.05)
    remote = Remote()
    yield remote
    remote.desk.ask_to_leave()
    for thread in threading.enumerate():
        if thread.name == "listener":
            thread.join(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 8)
    return folder


def planned(folder: Folder, **settings: Any) -> TrainingPlan:
    return make_plan(make_run(folder, **settings), "pretrain")


def make_watch(plan: TrainingPlan, desk: Remote, *, busy: bool = False) -> _Watch:
    trainer: Any = SimpleNamespace(skipped=0)
    writer: Any = SimpleNamespace(busy=busy)
    return _Watch(plan, desk, trainer, writer)


def until(watch: _Watch, wanted: Ask) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if watch.asks() & wanted:
            return True
        time.sleep(0.02)
    return False


def test_a_state_is_asked_for_after_so_many_seconds_and_while_none_is_written(
    folder: Folder, desk: Remote
) -> None:
    plan = planned(folder, store_every_s=0.2)
    watch = make_watch(plan, desk)
    assert not watch.asks() & Ask.STORE
    assert until(watch, Ask.STORE)
    watch.stored()
    assert not watch.asks() & Ask.STORE
    busy = make_watch(plan, desk, busy=True)
    time.sleep(0.3)
    assert not busy.asks() & Ask.STORE


def test_the_drivers_word_makes_the_workers_leave(folder: Folder, desk: Remote) -> None:
    watch = make_watch(planned(folder), desk)
    assert not watch.asks() & Ask.LEAVE
    desk.desk.ask_to_leave()
    assert until(watch, Ask.LEAVE)


def test_each_notice_of_a_node_that_is_taken_away_is_answered_by_one_state(
    folder: Folder, desk: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_worker, "_LOOK_EVERY_S", 0.1)
    notices = iter([None, ["a"], ["a"], ["a", "b"], None])

    def info() -> Any:
        nodes = next(notices)
        return None if nodes is None else SimpleNamespace(preempted_node_ids=nodes)

    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    watch = make_watch(planned(folder), desk)
    assert until(watch, Ask.LOOK)
    assert not watch.asks() & Ask.LOOK  # once in a while, for it costs all ranks a meeting
    assert [watch.look() for _ in range(5)] == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/run/epoch-0001"),
            "/run/epoch-0001: No space left",
        ),
        (InputError("the shard a.parquet is damaged"), "the shard a.parquet is damaged"),
    ],
)
def test_what_only_the_user_can_mend_is_told(
    desk: Remote, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(_plan: object, _desk: object) -> None:
        raise error

    monkeypatch.setattr(driver_worker, "_train", fails)
    with pytest.raises(OSError, match="space") if isinstance(error, OSError) else nullcontext():
        assert not driver_worker.train_worker({"plan": None, "desk": desk}).finished
    (note,) = desk.desk.heard()
    assert note.problem.startswith(said)


def test_workers_that_are_started_again_after_that_go_home_at_once(desk: Remote) -> None:
    desk.desk.ask_to_leave()
    assert driver_worker.train_worker({"plan": None, "desk": desk}) == Outcome([], finished=False)


class Record:
    """A tracker that keeps what it gets."""

    def __init__(self, recorded: set[int]) -> None:
        self.recorded, self.got = recorded, queue.Queue[int]()

    def steps_of(self, _metric: str) -> set[int]:
        return self.recorded

    def metrics(self, _metrics: object, step: int, **_when: float) -> None:
        self.got.put(step)


def entry(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "time": 1.0 * epoch, "train_loss": 1.0 / epoch}


def follower(folder: Folder, desk: Remote, record: Record, outcome: Outcome) -> Follower:
    training: Future[Outcome] = Future()
    training.set_result(outcome)
    tracker: Any = record
    asked = Asked((1, 1), {"CPU": 1}, grows=False)
    return Follower("pretrain", planned(folder), asked, desk, training, tracker)


def test_what_the_record_lacks_of_earlier_epochs_is_sent_when_a_training_is_taken_up(
    folder: Folder, desk: Remote
) -> None:
    history, record = [entry(1), entry(2), entry(3)], Record({1})
    desk.desk.tell(Note(steps=4, epoch=3, entries=(history[0], history[1]), said="goes on from epoch-0002"))
    desk.desk.tell(Note(steps=6, epoch=3, entries=(history[2],)))
    told: list[int] = []
    following = follower(folder, desk, record, Outcome(history, finished=True))
    following.tell = lambda so_far: told.append(len(so_far))
    assert following.to_the_end() == history
    assert list(record.got.queue) == [2, 3]
    assert told == [2, 3]
    assert following.history == history


def test_a_problem_ends_the_training_and_keeps_workers_from_trying_again(
    folder: Folder, desk: Remote
) -> None:
    desk.desk.tell(Note(problem="a.parquet is damaged"))
    with pytest.raises(InputError, match=r"a\.parquet is damaged"):
        follower(folder, desk, Record(set()), Outcome([], finished=False)).to_the_end()
    assert desk.desk.leaving()


def test_the_figures_of_an_epoch_have_names_for_the_record() -> None:
    figures = {
        **entry(2),
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

"""A training is what it would have been, whatever interrupts it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cropray.models.checkpoint import load_checkpoint
from cropray.shards.file import shard_uris
from cropray.shards.order import EpochSegment, EpochState
from cropray.storage import Folder
from cropray.training.data import Data
from cropray.training.loop import continued
from cropray.training.state import newest
from cropray.training.validate import best_entry
from tests.training_data import CLASSES, write_split
from tests.training_loop import BATCH, LEFT_AT, Script, make_loop, trainer_for_halves, whole_batches

ROOT = Path(__file__).parents[1]
STEPS = 6  # an epoch of 24 samples
TIMED = (
    "time",
    "train_seconds",
    "waiting_seconds",
    "val_seconds",
    "samples_per_second",
    "cpus_busy",
    "memory_mib",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("shards")))
    write_split(folder, "train", 24)
    write_split(folder, "val", 9)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)


def finished(shards: Folder, states: Path, script: Script | None = None) -> Any:
    loop = make_loop(shards, Folder(str(states)), script or Script())
    assert loop.run() == (script is None or not script.leave_at)
    return loop


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in TIMED} for entry in history]


def same(one: Any, two: Any) -> bool:
    """Whether nested states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.fixture(scope="module")
def undisturbed(shards: Folder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finished(shards, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("leave_at", [1, STEPS + 2, 2 * STEPS])
def test_a_training_left_at_any_step_ends_as_if_undisturbed(
    shards: Folder, undisturbed: Any, tmp_path: Path, leave_at: int
) -> None:
    finished(shards, tmp_path, Script(leave_at=leave_at))
    snapshot, damaged = newest(Folder(str(tmp_path)))
    epoch, step = divmod(leave_at, STEPS)
    assert snapshot is not None
    assert damaged == []
    # Left at an epoch's last step, it has still to be validated.
    assert snapshot.name == f"epoch-{epoch + (step > 0):04d}-step-{step or STEPS:07d}"
    loop = finished(shards, tmp_path)
    assert same(loop.trainer.state(), undisturbed.trainer.state())
    assert untimed(loop.state.history) == untimed(undisturbed.state.history)


def test_keeping_states_on_the_way_changes_nothing(shards: Folder, undisturbed: Any, tmp_path: Path) -> None:
    loop = finished(shards, tmp_path, Script(store_at=(2, 3, 8)))
    assert same(loop.trainer.state(), undisturbed.trainer.state())
    assert untimed(loop.state.history) == untimed(undisturbed.state.history)


def test_of_old_states_the_newest_and_the_best_stay(shards: Folder, tmp_path: Path) -> None:
    loop = finished(shards, tmp_path, Script(store_at=(8, 14)))
    best = f"epoch-{best_entry(loop.state.history)['epoch']:04d}"
    assert {path.name for path in tmp_path.iterdir()} == {best, "epoch-0003", "epoch-0003-step-0000002"}


def test_the_average_of_the_weights_is_what_is_published(
    undisturbed: Any, tmp_path: Path, shards: Folder
) -> None:
    loop = finished(shards, tmp_path)
    weights = load_checkpoint(Folder(str(tmp_path / "epoch-0003"))).weights
    state = loop.trainer.state()
    assert same(weights, state["average"])
    assert not same(weights, state["network"])


def test_the_loss_of_an_epoch_is_that_of_all_its_pixels(shards: Folder, undisturbed: Any) -> None:
    entry = undisturbed.state.history[-1]
    assert entry["train_loss"] < undisturbed.state.history[0]["train_loss"]
    assert set(entry["train_class_loss"]) == set(CLASSES)
    assert entry["skipped_steps"] == 0
    assert entry["workers"] == 1


def test_states_that_are_cut_short_are_passed_over(shards: Folder, undisturbed: Any, tmp_path: Path) -> None:
    finished(shards, tmp_path, Script(store_at=(2, STEPS + 2), leave_at=STEPS + 4))
    states = Folder(str(tmp_path))
    state = tmp_path / "epoch-0002-step-0000004" / "state.pt"
    whole = state.read_bytes()
    for damage in (whole[:-100], whole[:50] + b"\0" + whole[51:]):
        state.write_bytes(damage)
        snapshot, damaged = newest(states)
        assert snapshot is not None
        assert (snapshot.name, damaged) == ("epoch-0002-step-0000002", [state.parent.name])
    state.unlink()
    assert newest(states)[1] == [state.parent.name]
    loop = finished(shards, tmp_path)
    assert same(loop.trainer.state(), undisturbed.trainer.state())
    assert newest(states)[1] == []  # what was damaged is gone


def test_an_epoch_goes_on_in_its_order_or_is_shared_out_anew() -> None:
    state = EpochState(2).after(2, 8, 5)
    assert continued(state, 2, 8) == (EpochState(2), 5)
    assert continued(state, 1, 16) == (state, 0)
    twice = state.after(1, 16, 3)
    assert continued(twice, 1, 16) == (state, 3)
    assert continued(twice, 2, 8) == (twice, 0)
    assert continued(EpochState(0), 1, 8) == (EpochState(0), 0)
    assert twice.read == (EpochSegment(2, 8, 5), EpochSegment(1, 16, 3))


@pytest.fixture(scope="module")
def two_ranks(shards: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that run `tests.training_loop`."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.training_loop", shards.uri]
    processes = [subprocess.Popen([*command, str(rank), "2", str(out)], cwd=ROOT) for rank in range(2)]
    for process in processes:
        assert process.wait(200) == 0
    return out


def test_two_ranks_left_and_taken_up_end_as_if_undisturbed(two_ranks: Path) -> None:
    for rank in range(2):
        whole, taken_up = (
            torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True)
            for name in ("whole", "interrupted")
        )
        for name in ("network", "optimizer", "average", "random"):
            assert same(whole[name], taken_up[name]), name
        assert untimed(whole["history"]) == untimed(taken_up["history"])
        assert not same(whole["random"], torch.zeros(3))


def test_one_rank_goes_on_for_two(shards: Folder, two_ranks: Path, tmp_path: Path) -> None:
    """The rest of the epoch in another order, then epochs of as many steps at the same rates."""
    shutil.copytree(two_ranks / "left", tmp_path / "states")
    loop = make_loop(shards, Folder(str(tmp_path / "states")), script := Script())
    assert loop.run()
    assert script.samples == [BATCH] * (3 * STEPS - LEFT_AT)
    alone = untimed(loop.state.history)
    together = untimed(torch.load(two_ranks / "whole-0.pt", weights_only=True)["history"])
    assert alone[0] == together[0]
    for entry, other in zip(alone[1:], together[1:], strict=True):
        assert entry["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)
        assert (entry["lr"], entry["val_known_pixels"]) == (other["lr"], other["val_known_pixels"])


def test_two_ranks_step_as_one_on_the_same_samples(shards: Folder, two_ranks: Path) -> None:
    """But for the order of sums, and for batch norm, which sees a rank's own samples."""
    trainer = trainer_for_halves()
    steps = [trainer.step(batch, 0, index)[0] for index, batch in enumerate(whole_batches(shards))]
    two = torch.load(two_ranks / "halves.pt", weights_only=True)
    assert [step.samples for step in steps] == [samples for samples, _, _ in two]
    for step, (_, loss, norm) in zip(steps, two, strict=True):
        assert step.loss == pytest.approx(loss, rel=1e-4)
        assert step.gradient_norm == pytest.approx(norm, rel=1e-3)


def test_ranks_that_change_in_the_middle_read_every_sample_once(shards: Folder) -> None:
    data = Data(shard_uris(shards, "train"), 0.0)

    def read(world_size: int, state: EpochState, steps: int | None) -> list[str]:
        before, start = continued(state, world_size, BATCH // world_size)
        names = []
        for rank in range(world_size):
            reader = data.reader(BATCH // world_size, seed=3, rank=rank, world_size=world_size)
            batches = list(reader.epoch(1, start, before.read))[:steps]
            names += [name for batch in batches for name in batch.rows["sample_id"]]
        return names

    state = EpochState(1)
    names = read(2, state, 2)
    state = state.after(2, BATCH // 2, 2)
    names += read(2, state, 1)  # the same ranks, taken up
    state = EpochState(1).after(2, BATCH // 2, 3)
    names += read(1, state, 1)
    names += read(2, state.after(1, BATCH, 1), None)
    assert sorted(names) == sorted(f"train-{i}" for i in range(24))


def test_a_kill_while_a_state_is_written_leaves_the_one_before(
    shards: Folder, undisturbed: Any, tmp_path: Path
) -> None:
    code = """
import sys, time
from cropray.storage import Folder
from tests.training_loop import Script, make_loop
write = Folder.write_bytes
def slow(self, name, data):
    if "step-0000004" in self.uri and name == "standing.json":
        open(sys.argv[3], "w").close()
        time.sleep(60)
    write(self, name, data)
Folder.write_bytes = slow
make_loop(Folder(sys.argv[1]), Folder(sys.argv[2]), Script(store_at=(2, 4))).run()
"""
    states, mark = tmp_path / "states", tmp_path / "writing"
    process = subprocess.Popen([sys.executable, "-c", code, shards.uri, str(states), str(mark)], cwd=ROOT)
    deadline = time.monotonic() + 100
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (states / "epoch-0001-step-0000004" / "state.pt").exists()
    snapshot, damaged = newest(Folder(str(states)))
    assert snapshot is not None
    assert (snapshot.name, damaged) == ("epoch-0001-step-0000002", ["epoch-0001-step-0000004"])
    assert same(finished(shards, states).trainer.state(), undisturbed.trainer.state())

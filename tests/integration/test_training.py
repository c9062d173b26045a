"""Training on a real, local Ray: interrupted by the death of a worker, and with several workers."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import safetensors.numpy

from cropray.errors import InputError
from cropray.run import Run, Summary
from cropray.storage import Folder
from cropray.training.driver import finetune, pretrain, train
from tests.test_training_loop import TIMED
from tests.training_data import make_run, write_split

pytestmark = pytest.mark.usefixtures("ray_local")


def prepared(path: Path, **settings: object) -> Run:
    folder = Folder(str(path))
    write_split(folder, "train", 16)
    write_split(folder, "val", 6)
    return make_run(folder, **settings)


def training_workers() -> list[int]:
    """Ids of the processes of Ray Train's workers among this process's own descendants."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid, title in titles.items() if "RayTrainWorker" in title and is_ours(pid)]


def kill_a_worker_after(state: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for worker in training_workers():
        killed.append(worker)
        os.kill(worker, signal.SIGKILL)


def weights(run: Run, stage: str) -> dict[str, bytes]:
    tensors = safetensors.numpy.load(run.folder.read_bytes(f"models/{stage}/weights.safetensors"))
    return {name: x.tobytes() for name, x in tensors.items()}


def history(run: Run, stage: str) -> list[dict[str, float]]:
    entries = json.loads(run.folder.read_text(f"models/{stage}/history.json"))
    return [{name: value for name, value in entry.items() if name not in TIMED} for entry in entries]


def test_a_training_whose_worker_is_killed_ends_as_if_undisturbed(tmp_path: Path) -> None:
    undisturbed = prepared(tmp_path / "a", epochs=12)
    summary = pretrain(undisturbed)
    assert summary["epochs"] == 12
    assert summary == pretrain(undisturbed)  # the record, not another training

    disturbed, killed = prepared(tmp_path / "b", epochs=12), list[int]()
    first_epoch = tmp_path / "b" / "checkpoints" / "pretrain" / "epoch-0001" / "whole.json"
    killer = threading.Thread(target=kill_a_worker_after, args=(first_epoch, killed))
    killer.start()
    pretrain(disturbed)
    killer.join()
    assert killed
    assert weights(disturbed, "pretrain") == weights(undisturbed, "pretrain")
    assert history(disturbed, "pretrain") == history(undisturbed, "pretrain")


def test_gpus_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    run = prepared(tmp_path, gpus=1)
    with pytest.raises(InputError, match=r"pretrain.workers = 1 × 1 GPUs each are 1 GPUs, but Ray has 0"):
        pretrain(run)
    assert not run.folder.exists("checkpoints")


def test_two_workers_fine_tune_from_a_body(tmp_path: Path) -> None:
    first = prepared(tmp_path / "a", epochs=1)
    pretrain(first)
    run = prepared(tmp_path / "b", epochs=2, workers=2, init=first.folder.child("models/pretrain").uri)
    summary: Summary = finetune(run)
    assert summary["epochs"] == 2
    assert [entry["epoch"] for entry in history(run, "finetune")] == [1, 2]
    assert run.summary("finetune") == summary


def test_a_training_on_shards_that_changed_runs_again_from_its_first_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(tmp_path, epochs=1)
    before = pretrain(run)
    assert pretrain(run) == before
    write_split(run.folder, "train", 16, seed=1)
    after = pretrain(run)
    assert "pretrain: runs again: shards changed" in capsys.readouterr().err
    assert after["mlflow_run"] != before["mlflow_run"]
    assert after["train_loss"] != before["train_loss"]
    assert len(history(run, "pretrain")) == 1


def test_a_damaged_shard_ends_the_training_with_its_name(tmp_path: Path) -> None:
    run = prepared(tmp_path / "a")
    shard = tmp_path / "a" / "shards" / "train" / "00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1  # in a tensor
    shard.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"train/00000\.parquet"):
        train(run, "pretrain")
    assert run.summary("pretrain") is None


def test_a_shard_that_vanishes_ends_the_training_with_its_name(tmp_path: Path) -> None:
    run = prepared(tmp_path / "a", epochs=400, store_every=400, store_every_s=0.2)
    shard = tmp_path / "a" / "shards" / "train" / "00001.parquet"
    states = tmp_path / "a" / "checkpoints" / "pretrain"

    def lose_it() -> None:
        deadline = time.monotonic() + 120
        while not list(states.glob("*/whole.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        shard.unlink()
        for worker in training_workers():  # which holds the file open: the next one cannot
            os.kill(worker, signal.SIGKILL)

    loser = threading.Thread(target=lose_it)
    loser.start()
    with pytest.raises(InputError, match=r"train/00001\.parquet"):
        pretrain(run)
    loser.join()
    assert list(states.glob("*/whole.json"))

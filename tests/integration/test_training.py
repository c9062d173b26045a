"""Training on a real, local Ray: interrupted by the death of a worker, and with several workers."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import safetensors.numpy
from ray.train import Result
from ray.util.queue import Queue

from cropray.errors import InputError
from cropray.models.checkpoint import load_checkpoint
from cropray.run import Run, Summary
from cropray.storage import Folder
from cropray.training.control import open_control
from cropray.training.driver import (
    finetune,
    fit,
    pretrain,
    publish_best,
    resource_request,
    train,
)
from cropray.training.plan import RAYS, make_plan
from cropray.training.validate import SCORE, best_entry
from cropray.training.worker import SendReports
from tests.test_training_loop import TIMED
from tests.training_data import CLASSES, make_run, write_split

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


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray Train, reading its own list
def test_the_death_of_the_control_actor_ends_nothing_and_rays_checkpoints_are_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, controls = prepared(tmp_path, epochs=5), list[Any]()

    def opened() -> Any:
        controls.append(open_control())
        ray.kill(controls[0], no_restart=True)
        return controls[0]

    monkeypatch.setattr("cropray.training.driver.open_control", opened)
    assert pretrain(run)["epochs"] == 5
    assert len(controls) == 1
    entries = json.loads(run.folder.read_text("models/pretrain/history.json"))

    result = Result.from_path(run.folder.local(f"checkpoints/pretrain/{RAYS}"))
    assert (result.metrics["epoch"], result.metrics[SCORE]) == (5, entries[-1][SCORE])
    best = best_entry(entries)
    kept = {metrics["epoch"]: checkpoint for checkpoint, metrics in result.best_checkpoints}
    assert kept.keys() == {5, best["epoch"]}
    assert load_checkpoint(Folder(result.checkpoint.path)).classes == CLASSES
    published = weights(run, "pretrain")
    model = load_checkpoint(Folder(kept[best["epoch"]].path))
    assert {name: x.numpy().tobytes() for name, x in model.weights.items()} == published


def test_each_validated_epoch_is_reported_with_its_score(tmp_path: Path) -> None:
    """As to `TuneReportCallback`, without a monitor and in a folder of its own."""
    run, queue = prepared(tmp_path, epochs=3, store_every=2), Queue()
    plan = replace(make_plan(run, "finetune"), states=run.folder.child("trials/0001"))
    request = resource_request(run, "finetune", cpus=0.5)
    entries = fit(run, "finetune", plan, request, open_control(), [SendReports(queue)])
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    reports = [report for report in queue.get_nowait_batch(queue.qsize()) if SCORE in report]
    queue.shutdown(force=True)
    assert [(report["epoch"], report[SCORE]) for report in reports] == [
        (entry["epoch"], entry[SCORE]) for entry in entries[1:]
    ]
    publish_best(run, plan.states, 3, run.folder.child("chosen"))
    assert len(json.loads(run.folder.read_text("chosen/history.json"))) == 3


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
    weights = run.folder.read_bytes("models/pretrain/weights.safetensors")
    run.folder.delete_folder("models/pretrain")
    published = pretrain(run)  # from its last state
    assert (published["registered"], published["mlflow_run"]) == (before["registered"], before["mlflow_run"])
    assert run.folder.read_bytes("models/pretrain/weights.safetensors") == weights
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

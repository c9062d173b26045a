"""Trainings that are killed, told to leave, or deprived of what they need; as commands of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cropray.run import Run
from cropray.storage import Folder
from cropray.training.driver import pretrain
from cropray.training.state import newest
from tests.braked_training import BRAKE
from tests.full_disk import run_on_small_disk
from tests.integration.test_training import history, prepared, weights

ROOT = Path(__file__).parents[2]
SETTINGS = {"epochs": 40, "store_every": 40, "store_every_s": 0.2, "precision": "float32"}


def command(run: Run) -> subprocess.Popen[str]:
    """`cropray pretrain` of a run, in a process group of its own; slow while `brake` is there."""
    config = run.folder.local("given.yaml")
    config.write_text(run.config.to_yaml())
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.braked_training", "pretrain"),
            *("--config", str(config), "--run", run.folder.uri),
        ],
        cwd=ROOT,
        env={**os.environ, BRAKE: str(run.folder.local("brake"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state_beyond(run: Run, before: str) -> Callable[[], bool]:
    folder = run.folder.child("checkpoints/pretrain")
    return lambda: any(
        name.endswith("/whole.json") and name.split("/")[0] > before for name in folder.names()
    )


@pytest.mark.timeout(900)  # four drivers start one after the other, each with a Ray of its own
def test_a_driver_that_is_told_to_leave_and_then_killed_goes_on_where_it_was(
    tmp_path: Path, ray_local: None
) -> None:
    run = prepared(tmp_path / "a", **SETTINGS)
    brake = tmp_path / "a" / "brake"
    brake.touch()
    first = command(run)
    wait_for(state_beyond(run, ""), first)

    second = command(run)  # on the same run
    _, said = second.communicate(timeout=150)
    assert second.returncode == 2
    assert f"pretrain of {run.folder} is running already: process {first.pid} on " in said

    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=150)
    assert first.returncode == 130
    assert "pretrain: writing its state" in said
    assert "same command" in said
    left, damaged = newest(run.folder.child("checkpoints/pretrain"))
    assert left is not None
    assert damaged == []

    third = command(run)
    wait_for(state_beyond(run, left.name), third)
    os.killpg(third.pid, signal.SIGKILL)  # the driver, its Ray and the workers, at once
    _, said = third.communicate()
    assert f"resumes from {left.name}" in said

    brake.unlink()
    last = command(run)
    shown, said = last.communicate(timeout=280)
    assert last.returncode == 0, said
    assert json.loads(shown)["epochs"] == 40
    assert "resumes from epoch-" in said

    whole = prepared(tmp_path / "b", **SETTINGS)
    pretrain(whole)
    assert weights(run, "pretrain") == weights(whole, "pretrain")
    assert history(run, "pretrain") == history(whole, "pretrain")


_FULL = """
import json, subprocess, sys
from pathlib import Path
from cropray.config.load import updated
from cropray.training.state import newest
from tests.integration.test_training import prepared

# A state is 1 MB: two of them fit beside the shards, a third does not.
folder, elsewhere = Path(sys.argv[1]), Path(sys.argv[1]).parent
run = prepared(folder / "run", epochs=4000, store_every=4000, store_every_s=0.1, precision="float32", ema=0.9)
config = elsewhere / "given.yaml"
config.write_text(updated(run.config, {"model.width": 2}).to_yaml())
command = [sys.executable, "-m", "cropray", "pretrain", "--config", str(config), "--run", run.folder.uri]
command += ["--set", f"tracking.uri=sqlite:///{elsewhere}/mlflow.db"]
done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
kept, damaged = newest(run.folder.child("checkpoints/pretrain"))
print(json.dumps({"code": done.returncode, "said": done.stderr, "kept": kept.name if kept else ""}))
"""


def test_a_disk_that_fills_up_ends_the_training_with_a_message_and_keeps_the_state_before(
    tmp_path: Path,
) -> None:
    found = json.loads(run_on_small_disk(tmp_path / "small", _FULL).splitlines()[-1])
    assert found["code"] == 2, found["said"]
    assert "No space left on device" in found["said"]
    assert "Free some space and run the same command again" in found["said"]
    assert found["kept"].startswith("epoch-")


_NODES = """
import io, json, os, signal, sys, threading, time
from pathlib import Path
folder = Path(sys.argv[1])
brake = folder / "brake"
signal.signal(signal.SIGINT, signal.default_int_handler)

class Kept(io.StringIO):
    def write(self, text):
        sys.__stderr__.write(text)
        return super().write(text)

sys.stderr = Kept()
os.environ |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20", "CROPRAY_TEST_BRAKE": str(brake)}
import ray
from ray.cluster_utils import Cluster
from cropray.training.driver import pretrain
from tests.braked_training import brake_plans
from tests.integration.test_training import prepared

noticed = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}  # else after 15 s
head = {"num_cpus": 1, "include_dashboard": False, "_system_config": noticed}
cluster = Cluster(initialize_head=True, head_node_args=head)
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
settings = {"epochs": 40, "store_every": 40, "store_every_s": 0.2, "precision": "float32"}
brake_plans()

def lose(node, folder, then):
    while not list((folder / "checkpoints" / "pretrain").glob("*/whole.json")):
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    then()

# With [1, 2] workers it goes on with the one that is left.
run = prepared(folder / "a", workers=[1, 2], **settings)
brake.touch()
threading.Thread(target=lose, args=(other, folder / "a", brake.unlink), daemon=True).start()
summary = pretrain(run)
assert summary["epochs"] == 40, summary

# With 2 workers it waits, says so, and can be told to leave.
times = {}

def told_to_leave():
    start, before = time.monotonic(), len(sys.stderr.getvalue())
    while "1 of 2 workers lost" not in sys.stderr.getvalue()[before:]:
        time.sleep(0.1)
    times["told"] = time.monotonic() - start
    times["left"] = -time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

brake.touch()
other = cluster.add_node(num_cpus=1)
run = prepared(folder / "b", workers=2, **settings)
threading.Thread(target=lose, args=(other, folder / "b", told_to_leave), daemon=True).start()
try:
    pretrain(run)
except KeyboardInterrupt:
    times["left"] += time.monotonic()
(folder / "times.json").write_text(json.dumps(times))
ray.shutdown()  # no thread of the training is left that waits in native code
cluster.shutdown()
"""


@pytest.mark.timeout(400)
def test_a_training_that_loses_a_node_goes_on_with_fewer_workers_or_says_that_it_waits(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _NODES, str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pretrain: 2 workers on cpu" in done.stderr
    assert "pretrain: 1 worker on cpu, float32; resumes from epoch-" in done.stderr
    times = json.loads((tmp_path / "run" / "times.json").read_text())
    assert times["told"] < 20  # 7 s where nothing else runs
    assert times["left"] < 15
    assert "pretrain: 1 of 2 workers lost" in done.stderr
    assert "waits for 2 workers with 1 CPU each; the cluster has" in done.stderr
    assert newest(Folder(str(tmp_path / "run" / "b" / "checkpoints" / "pretrain")))[0] is not None

"""A sweep as users start it: killed in the middle, taken up, its trials nested in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cropray.overrides import updated
from cropray.run import Run
from cropray.storage import Folder
from tests.training_data import make_run, write_split

TRIALS, EPOCHS = 2, 2
SPACE = {"finetune.lr": {"loguniform": [1e-3, 1e-1]}, "finetune.weight_decay": {"choice": [0.0, 0.1]}}


def prepared(path: Path) -> tuple[Run, list[str]]:
    """A run with shards, and the command that searches in it."""
    folder = Folder(str(path / "run"))
    for split, samples in (("train", 12), ("val", 6)):
        write_split(folder, split, samples)
    sweep = {"space": SPACE, "trials": TRIALS, "scheduler": "none", "evaluate": False}
    run = make_run(folder, epochs=EPOCHS)
    config = updated(run.config, {"tune": sweep, "ray.num_cpus": 1})  # room that a trial loses ends it
    (path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "cropray", "tune", "--config", str(path / "config.yaml")]
    return Run(folder, config), [*command, "--run", str(path / "run")]


def records(run: Run) -> dict[str, dict[str, Any]]:
    folder = run.folder.child("tune/sweep/trials")
    return {name.split("/")[0]: json.loads(folder.read_text(name)) for name in folder.names("trial.json")}


def wait_for_a_finished_trial(run: Run, driver: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and driver.poll() is None:
        finished = {name: trial for name, trial in records(run).items() if not trial["stopped"]}
        if finished:
            return finished
        time.sleep(0.2)
    raise AssertionError(f"no trial came to its end; the driver's exit code is {driver.poll()}")


@pytest.mark.timeout(600)  # a trial starts processes of its own: up to a minute on a busy machine
def test_a_sweep_that_was_killed_goes_on_without_repeating_what_is_finished(tmp_path: Path) -> None:
    run, command = prepared(tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "first.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            finished = wait_for_a_finished_trial(run, driver)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    states = {name: run.folder.child(f"tune/sweep/trials/{name}").names() for name in finished}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)

    trials = records(run)
    assert len(trials) == TRIALS
    assert {name: trials[name] for name in finished} == finished
    assert all(not trial["stopped"] and trial["epochs"] == EPOCHS for trial in trials.values())
    kept = {name: run.folder.child(f"tune/sweep/trials/{name}").names() for name in finished}
    assert kept == states

    sweep = json.loads(run.folder.read_text("tune/sweep/sweep.json"))["trials"]
    assert [trial["score"] for trial in sweep] == sorted((t["score"] for t in sweep), reverse=True)
    assert summary["best_trial"] == sweep[0]["id"]
    assert summary["registered"] == "models:/cropray/1"
    recipe = json.loads(run.folder.read_text("tune/sweep/model/checkpoint.json"))["recipe"]
    assert {f"finetune.{key}": recipe[key] for key in ("lr", "weight_decay")} == sweep[0]["values"]

    client = MlflowClient(f"sqlite:///{tmp_path}/run/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("cropray")
    runs = client.search_runs([experiment.experiment_id])
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == summary["mlflow_run"]]
    assert len(nested) == TRIALS
    assert {r.info.status for r in nested} <= {"FINISHED", "KILLED"}
    assert {r.info.status for r in runs if r not in nested} == {"FINISHED"}

    again = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "reused" in again.stderr
    assert json.loads(again.stdout) == summary


def test_a_trial_that_is_ended_gives_back_its_room(ray_local: None, tmp_path: Path) -> None:
    import ray
    from ray.tune import with_parameters

    from cropray.training.driver_trial import TrialTraining

    run, _ = prepared(tmp_path)
    endless = updated(run.config, {"finetune.epochs": 10_000, "finetune.schedule": "constant"})
    given = with_parameters(TrialTraining, folder=run.folder.uri, config=endless, parent="")
    trial = ray.remote(num_cpus=0)(given).remote({"finetune.lr": 1e-3})
    told = ray.get(trial.step.remote())
    assert told["epoch"] == 1
    assert not told["done"]
    assert ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]
    ray.get(trial.stop.remote())  # as Tune ends one that falls behind
    # While the process is there: nothing is left to what would tidy up after it.
    deadline = time.monotonic() + 10  # Ray counts a little behind
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert next(iter(records(run).values()))["stopped"]

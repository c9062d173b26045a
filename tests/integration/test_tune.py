"""Sweeps: killed in the middle, taken up, with trials that fail, or are ended; nested in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cropray.config.load import updated
from cropray.models.checkpoint import save_checkpoint
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.versions import find
from cropray.training.driver import open_control
from cropray.training.plan import make_plan
from cropray.training.state import newest
from cropray.tuning.sweep import tune
from tests.training_data import CLASSES, make_run, write_split

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


def mlflow_runs(run: Run) -> list[Any]:
    client = MlflowClient(f"sqlite:///{run.folder.local('mlflow/mlflow.db')}")
    return list(client.search_runs([client.get_experiment_by_name("cropray").experiment_id]))


def wait_for_a_finished_trial(run: Run, driver: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and driver.poll() is None:
        finished = {name: trial for name, trial in records(run).items() if trial["end"] == "finished"}
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
    write_split(run.folder, "test", 6)
    command += ["--set", "tune.evaluate=true"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)

    trials = records(run)
    assert len(trials) == TRIALS
    assert {name: trials[name] for name in finished} == finished
    assert all(trial["end"] == "finished" and trial["epochs"] == EPOCHS for trial in trials.values())
    kept = {name: run.folder.child(f"tune/sweep/trials/{name}").names() for name in finished}
    assert kept == states

    sweep = json.loads(run.folder.read_text("tune/sweep/sweep.json"))["trials"]
    assert [trial["score"] for trial in sweep] == sorted((t["score"] for t in sweep), reverse=True)
    assert summary["best_trial"] == sweep[0]["id"]
    assert summary["registered"] == "models:/cropray/1"
    version = find(run, summary["registered"])
    assert version.evaluation is not None
    assert summary["evaluation"]["versions"] == ["models:/cropray/1"]
    recipe = json.loads(run.folder.read_text("tune/sweep/model/checkpoint.json"))["recipe"]
    assert {f"finetune.{key}": recipe[key] for key in ("lr", "weight_decay")} == sweep[0]["values"]
    lineage = {f"cropray.{tag}" for tag in ("run", "config_xxh3", "shards.train", "shards.val")}
    assert lineage <= version.tags.keys()

    runs = mlflow_runs(run)
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == summary["mlflow_run"]]
    assert len(nested) == TRIALS
    assert {r.info.status for r in nested} <= {"FINISHED", "KILLED"}
    assert {r.info.status for r in runs if r not in nested} == {"FINISHED"}

    again = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "reused" in again.stderr
    assert json.loads(again.stdout) == summary


def test_trials_that_fail_are_told_counted_and_tried_again_alone(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = prepared(tmp_path)
    plain = make_plan(run, "finetune").checkpoint
    whole = replace(plain, weights=plain.network.build().state_dict(), thresholds=(0.5,) * len(CLASSES))
    save_checkpoint(whole, run.folder.child("given"))
    space = {"finetune.init": {"choice": ["run:later", "", "run:given"]}}
    grid = Run(
        run.folder, updated(run.config, {"tune.space": space, "tune.search": "grid", "finetune.epochs": 1})
    )

    summary = tune(grid)
    assert (summary["trials"], summary["finished"], summary["failed"]) == (3, 2, 1)
    problem = records(run)["0001"]["problem"]
    assert "later is no checkpoint folder" in problem
    told = capsys.readouterr().err
    assert f"tune: trial 0001 failed: {problem}; the same command tries it again" in told
    assert "Traceback" not in told
    kept = {name: trial for name, trial in records(run).items() if trial["end"] == "finished"}

    save_checkpoint(whole, run.folder.child("later"))
    mended = tune(grid)
    assert (mended["trials"], mended["finished"], mended["failed"]) == (3, 3, 0)
    assert records(run).items() > kept.items()
    assert tune(grid) == mended

    spans = sorted((r.info.start_time, r.info.end_time) for r in mlflow_runs(run) if "/00" in r.info.run_name)
    assert len(spans) == 3
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))  # though there was room for two


@pytest.mark.parametrize("by", ["Tune", "the sweep"])
def test_a_trial_that_is_ended_keeps_its_state_and_gives_back_its_room(
    ray_local: None, tmp_path: Path, by: str
) -> None:
    import ray
    from ray.tune import with_parameters

    from cropray.tuning.trial import TrialTraining

    run, _ = prepared(tmp_path)
    endless = updated(run.config, {"finetune.epochs": 10_000, "finetune.schedule": "constant"})
    sweep = open_control()
    given = with_parameters(TrialTraining, folder=run.folder.uri, config=endless, parent="", sweep=sweep)
    trial = ray.remote(num_cpus=0)(given).remote({"id": "0001", "values": {"finetune.lr": 1e-3}})
    told = ray.get(trial.step.remote())
    assert told["epoch"] == 1
    assert not told["done"]
    assert ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]
    if by == "the sweep":
        ray.get(sweep.leave.remote())
        while not told["done"]:  # epochs that it had told before it was asked
            told = ray.get(trial.step.remote())
    ray.get(trial.stop.remote())  # as Tune ends one that falls behind, and any in the end
    # While the process is there: nothing is left to what would tidy up after it.
    deadline = time.monotonic() + 10  # Ray counts a little behind
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    record = records(run)["0001"]
    assert record["end"] == ("behind" if by == "Tune" else "open")
    state, damaged = newest(run.folder.child("tune/sweep/trials/0001"))
    assert state is not None
    assert len(state.train_state["history"]) >= record["epochs"] >= 1
    assert not damaged

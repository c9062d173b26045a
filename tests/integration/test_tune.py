"""Sweeps: killed and resumed, with trials that fail or are pruned; nested in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from ray.tune import with_parameters

from cropray.config.load import updated
from cropray.models.checkpoint import save_checkpoint
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.versions import find
from cropray.training.control import open_control
from cropray.training.plan import make_plan
from cropray.training.state import newest
from cropray.training.validate import SCORE
from cropray.tuning.sweep import TrialTraining, tune
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
    config = updated(run.config, {"tune": sweep, "ray.num_cpus": 1})  # a trial that kept its CPU would end it
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
def test_a_killed_sweep_resumes_without_repeating_finished_trials(tmp_path: Path) -> None:
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


def test_failed_trials_are_named_counted_and_tried_again_alone(
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
    assert "later" in problem
    assert "checkpoint.json" in problem
    messages = capsys.readouterr().err
    assert f"tune: trial 0001 failed: {problem}" in messages
    assert "Traceback" not in messages
    kept = {name: trial for name, trial in records(run).items() if trial["end"] == "finished"}

    save_checkpoint(whole, run.folder.child("later"))
    mended = tune(grid)
    assert (mended["trials"], mended["finished"], mended["failed"]) == (3, 3, 0)
    assert records(run).items() > kept.items()
    assert tune(grid) == mended

    spans = sorted((r.info.start_time, r.info.end_time) for r in mlflow_runs(run) if "/00" in r.info.run_name)
    assert len(spans) == 3
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))  # though there was space for two


@pytest.mark.parametrize("by", ["Tune", "the sweep"])
def test_a_stopped_trial_keeps_its_state_and_frees_its_resources(
    ray_local: None, tmp_path: Path, by: str
) -> None:
    run, _ = prepared(tmp_path)
    endless = updated(run.config, {"finetune.epochs": 10_000, "finetune.schedule": "constant"})
    sweep = open_control()
    trainable = with_parameters(TrialTraining, run=Run(run.folder, endless), parent="", sweep=sweep)
    trial = ray.remote(num_cpus=0)(trainable).remote({"id": "0001", "values": {"finetune.lr": 1e-3}})
    assert ray.get(trial.step.remote())["epoch"] == 1
    assert ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]
    if by == "the sweep":
        ray.get(sweep.leave.remote())
        while not ray.get(trial.step.remote()).get("done"):  # epochs that were trained before
            pass
    ray.get(trial.stop.remote())  # as Tune stops a pruned trial, and any in the end
    # While the process of the trial lives: nothing is left for others to tidy up.
    deadline = time.monotonic() + 10  # Ray counts a little late
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    record = records(run)["0001"]
    assert record["end"] == ("pruned" if by == "Tune" else "open")
    state, damaged = newest(run.folder.child("tune/sweep/trials/0001"))
    assert state is not None
    assert len(state.train_state["history"]) >= record["epochs"] >= 1
    assert not damaged
    (tracked,) = mlflow_runs(run)
    assert tracked.info.status == ("FINISHED" if by == "Tune" else "KILLED")
    assert ("cropray.pruned" in tracked.data.tags) == (by == "Tune")


def test_a_sweep_prunes_bad_trials_ends_diverged_ones_and_goes_on(ray_local: None, tmp_path: Path) -> None:
    run, _ = prepared(tmp_path)
    # The good value comes first: ASHA prunes what is worse at the first epoch.
    settings = {
        "tune.space": {"finetune.lr": {"choice": [3e-2, 1e-9, 1e30, 1e-10]}},
        "tune.search": "grid",
        "tune.scheduler": "asha",
        "tune.reduction": 2,
        "finetune.epochs": 10,  # a training is not over before Tune has looked at its first epoch
    }
    sweep = Run(run.folder, updated(run.config, settings))
    summary = tune(sweep)
    trials = records(run)
    ends = {name: trial["end"] for name, trial in trials.items()}
    assert (ends["0001"], ends["0003"]) == ("finished", "diverged")
    assert "pruned" in (ends["0002"], ends["0004"])
    assert {end: summary[end] for end in set(ends.values())} == Counter(ends.values())
    assert "Lower the learning rate" in trials["0003"]["problem"]
    pruned = {name for name, end in ends.items() if end == "pruned"}
    assert all(trials[name]["epochs"] < 10 for name in pruned)

    nested = {r.data.tags["cropray.stage"].split("/")[-1]: r for r in mlflow_runs(run)}
    assert {name for name in ends if nested[name].info.status != "FINISHED"} == {"0003"}
    assert {name for name in ends if "cropray.pruned" in nested[name].data.tags} == pruned
    parent = nested["sweep"].data
    assert parent.tags["best.trial"] == summary["best_trial"]
    assert float(parent.tags["best.finetune.lr"]) == summary["best_values"]["finetune.lr"]
    assert parent.metrics[SCORE] == summary[SCORE]
    assert tune(sweep) == summary  # nothing is tried again
    run.folder.delete("tune/sweep/model/weights.safetensors")
    again = tune(sweep)  # only what was deleted is made again, from the state of the best trial
    assert run.folder.exists("tune/sweep/model/weights.safetensors")
    assert again["best_trial"] == summary["best_trial"]
    assert records(run) == trials

"""The tune stage: a sweep on Ray Tune, in which every trial is a training in a folder of its own."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import asdict, replace
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler

from cropray.cluster import for_workers, ray_session, reach
from cropray.config.load import updated
from cropray.config.training import TuneConfig
from cropray.errors import DivergedError, InputError
from cropray.evaluation.evaluate import evaluate
from cropray.figures.charts import PICTURE, SWEEP, Axis, sweep_chart
from cropray.models.checkpoint import DESCRIPTION, WEIGHTS
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.storage import in_thread
from cropray.tracking.registry import register, registered_name
from cropray.tracking.runs import Tracker, tracked
from cropray.training.control import open_control
from cropray.training.driver import publish_best, train_in
from cropray.training.lock import run_lock
from cropray.training.plan import make_plan, training_inputs
from cropray.training.state import name_of
from cropray.training.validate import SCORE, History
from cropray.tuning.space import (
    BEST,
    UNKNOWN,
    Search,
    Trial,
    check_space,
    check_trials,
    count_trials,
    sweep_folder,
)

_POLL_S = 0.2
_PATIENCE_S = 60.0  # for the workers of a trial to write their state and leave


def tune(run: Run) -> Summary:
    """Search settings of a training stage for the best score on val; publish and register the best model.

    Writes `tune/<name>/`: sweep.json, sweep.png, a folder for each trial, and model/, the best epoch of the
    best trial, which is then evaluated on the test split (`tune.evaluate`). An interrupted sweep resumes; a
    finished one continues if trials failed, or if more trials or time are given. Raises InputError for a
    space that does not fit the settings or the cluster, and if no trial has a score.
    """
    settings = run.config.tune
    check_space(run.config)
    run.begin("tune")
    inputs = training_inputs(run, settings.stage)
    files = (SWEEP, PICTURE, *(f"model/{name}" for name in (DESCRIPTION, WEIGHTS)))
    summary = run.finished("tune", inputs, [f"tune/{settings.name}/{name}" for name in files])
    lacks_trials = summary is not None and len(Trial.read_all(run)) < summary["trials"]
    if summary is None or lacks_trials or is_incomplete(summary, settings):
        make_plan(run, settings.stage)  # raises what would fail every trial
        what = f"the sweep {settings.name} of {run.folder}"
        with run_lock(run.folder.child("tune"), f"{settings.name}.lock", what):
            summary = _sweep(run, inputs)
        run.finish("tune", summary, inputs)
    else:
        say(f"tune: reused {sweep_folder(run)}")
    if settings.evaluate:
        best = updated(run.config, {"evaluate.model": f"run:tune/{settings.name}/model"})
        summary = summary | {"evaluation": evaluate(Run(run.folder, best))}
    return summary


def is_incomplete(summary: Summary, settings: TuneConfig) -> bool:
    """Whether these settings leave something to try in a finished sweep."""
    spent: float | None = summary["out_of_time_s"]
    if spent is None:
        return bool(summary["failed"] or summary["trials"] < count_trials(settings))
    return bool(summary["failed"] or settings.budget_s is None or settings.budget_s > spent)


def _sweep(run: Run, inputs: Inputs) -> Summary:
    settings, start = run.config.tune, time.monotonic()
    # With its dashboard, Ray frees the resources of a trial whose process died.
    with ray_session(run.config.ray, dashboard=True):
        check_trials(run.config, ray.cluster_resources(), reach(run.config.ray))
        if run.changed("tune", inputs):  # the models of a sweep on other inputs stay registered
            run.folder.delete_folder(f"tune/{settings.name}")
            run.folder.delete_folder(f"mlflow/tune/{settings.name}")
            if run.folder.exists(f"mlflow/tune/{settings.name}.json"):
                run.folder.delete(f"mlflow/tune/{settings.name}.json")
        with tracked(run, f"tune/{settings.name}") as tracker:
            run.claim("tune", inputs)  # not before MLflow has answered
            _search(run, tracker.run_id)
            for _, child in tracker.running_children():  # of trials whose process died
                child.end("KILLED")
            trials = Trial.read_all(run)
            version = _publish(run, trials, tracker)
    best, ends = trials[0], Counter(trial.end for trial in trials)
    out_of_time = ends["open"] > 0 or len(trials) < count_trials(settings)
    return {
        "model": sweep_folder(run).child("model").uri,
        "registered": f"models:/{registered_name(run, settings.stage)}/{version}",
        "mlflow_run": tracker.run_id,
        "trials": len(trials),
        **{end: ends[end] for end in ("finished", "pruned", "diverged", "failed")},
        "out_of_time_s": settings.budget_s if out_of_time else None,
        "best_trial": best.id,
        "best_values": best.values,
        "best_epoch": best.best_epoch,
        SCORE: best.score,
        "seconds": round(time.monotonic() - start, 1),
    }


def _search(run: Run, parent: str) -> None:
    """Run all trials that are not over, until `tune.budget_s` has passed.

    After an interrupt, waits for the trials to write their states, then raises KeyboardInterrupt.
    """
    search, control, start = Search(run.config, Trial.read_all(run)), open_control(), time.monotonic()
    if not search.numbers:
        return
    budget_s, total, done = run.config.tune.budget_s or math.inf, count_trials(run.config.tune), 0
    # Nobody reads what Ray Tune writes: trials have their own records.
    with TemporaryDirectory(prefix="cropray-tune-", ignore_cleanup_errors=True) as scratch:
        searching = in_thread(_tuner(run, parent, search, control, scratch).fit)
        try:
            with progress("tune", total) as bar:
                while not searching.done() or done < search.done:
                    note = f"best {SCORE} {search.best:.4f}" if search.best > UNKNOWN else ""
                    bar.advance(search.done - done, note)
                    done = search.done
                    if not search.closed and time.monotonic() - start > budget_s:
                        say(f"tune: trials write their states and leave after {budget_s:g} s (tune.budget_s)")
                        search.closed = True
                        control.leave.remote()
                    wait([searching], timeout=_POLL_S)
        except KeyboardInterrupt:
            say("tune: trials write their states … press Ctrl-C again to quit immediately")
            search.closed = True
            control.leave.remote()
            wait([searching], timeout=2 * _PATIENCE_S)
            raise
    records = {trial.id: trial for trial in Trial.read_all(run)}
    for started, result in zip(search.started, searching.result(), strict=True):  # in the same order
        if result.error is not None:
            lines = str(getattr(result.error, "cause", None) or result.error).strip().splitlines()
            record = records.get(started.id, started)
            failed = replace(record, end="failed", problem=lines[-1] if lines else "").write(run)
            say(f"tune: trial {failed.id} failed: {failed.problem}; run the same command to try it again")


def _tuner(run: Run, parent: str, search: Search, control: Any, scratch: str) -> ray_tune.Tuner:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are reported here
    settings, epochs = run.config.tune, getattr(run.config, run.config.tune.stage).epochs
    there = Run(run.folder, for_workers(run.config))
    trainable = ray_tune.with_parameters(TrialTraining, run=there, parent=parent, sweep=control)
    # On the driver's node, which reaches MLflow and may have no CPUs. A placement group must request
    # something: a byte. The workers of a trial request their own resources, on any node.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    place = ray_tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[here])
    asha = ASHAScheduler(
        time_attr="epoch",
        metric=SCORE,
        mode="max",
        max_t=epochs + 1,  # Ray Tune stops a trial that reaches max_t as if it were pruned
        grace_period=min(settings.grace_epochs, epochs),
        reduction_factor=settings.reduction,
    )
    return ray_tune.Tuner(
        ray_tune.with_resources(trainable, place),
        tune_config=ray_tune.TuneConfig(
            num_samples=len(search.numbers),
            max_concurrent_trials=settings.concurrent,
            search_alg=search,
            scheduler=asha if settings.scheduler == "asha" else None,
        ),
        run_config=ray_tune.RunConfig(
            storage_path=scratch,
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _publish(run: Run, trials: Sequence[Trial], tracker: Tracker) -> str:
    """Publish the table, the picture and the model of the best trial; its version in the registry."""
    settings, folder = run.config.tune, sweep_folder(run)
    score = trials[0].score if trials else None
    if score is None:
        remedy = "let trials train longer (tune.budget_s), or give val more parcels"
        if problems := [f"{trial.id}: {trial.problem}" for trial in trials if trial.problem]:
            remedy = f"correct this first: {problems[0]}; then run the same command again"
        raise InputError(f"no trial of {folder} has a score on the validation split: {remedy}")
    best = trials[0]
    axes = [
        Axis(key, dimension.kind == "loguniform", tuple(str(value) for value in dimension.choice or ()))
        for key, dimension in sorted(settings.space.items())
    ]
    lines = [{**trial.values, "score": trial.score, "stopped": trial.end != "finished"} for trial in trials]
    table = {"stage": settings.stage, "trials": [asdict(trial) for trial in trials]}
    files = {SWEEP: json.dumps(table, indent=1).encode() + b"\n", PICTURE: sweep_chart(axes, lines, SCORE)}
    for name, data in files.items():
        folder.write_bytes(name, data)
        tracker.artifact_bytes(name, data)
    # Tags: a sweep that continues may find a better trial, and MLflow never changes a parameter.
    tracker.tags({"best.trial": best.id, **{f"best.{key}": value for key, value in best.values.items()}})
    tracker.metrics({SCORE: score}, step=len(trials))
    model, states = folder.child("model"), best.folder(run)
    if not states.exists(f"{name_of(best.best_epoch)}/{WEIGHTS}"):
        raise InputError(
            f"{states}/{name_of(best.best_epoch)}, the state of the best trial, is gone. Delete {states} and "
            "run the same command again: it is trained once more, and the others are kept"
        )
    publish_best(run, states, best.best_epoch, model)
    return register(run, settings.stage, model, tracker)


class TrialTraining(ray_tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """Trains in a thread and reports each validated epoch. Resumes from the last state of the trial.

    When Ray Tune stops a trial, its workers are told to leave, as after an interrupt; all trials leave when
    the control `sweep` says so. A function with `TuneReportCallback` cannot do that: Ray Tune kills it, and
    its workers hold their resources until Ray's dashboard, if there is one, notices
    (test_a_stopped_trial_keeps_its_state_and_frees_its_resources). It also hangs if the function returns
    before Ray Tune has read its last report.
    """

    def setup(self, suggestion: dict[str, Any], *, run: Run, parent: str, sweep: Any) -> None:
        self._run, self._trial = run, Trial(**suggestion)
        if self._trial.id not in {trial.id for trial in Trial.read_all(run)}:
            self._trial.write(run)  # whatever ends the trial, these values are tried again
        self._parent, self._sweep, self._control = parent, sweep, open_control()
        self._results = queue.SimpleQueue[dict[str, Any]]()
        self._last: dict[str, Any] = {"epoch": 0, SCORE: UNKNOWN, BEST: UNKNOWN}
        self._reported, self._pruned = 0, False
        self._training = in_thread(self._train)

    def step(self) -> dict[str, Any]:
        """The next validated epoch. Raises the error that ended the training."""
        while self._results.empty() and not self._training.done():
            if ray.get(self._sweep.leaving.remote()):
                self._leave()
                return {**self._last, "done": True}
            wait([self._training], timeout=_POLL_S)
        if self._results.empty():
            try:
                self._training.result()
            except DivergedError as error:
                self._trial = replace(self._trial, end="diverged", problem=str(error)).write(self._run)
            return {**self._last, "done": True}
        self._last = self._results.get()
        return self._last

    def cleanup(self) -> None:
        """Let the workers leave. A trial that still trains was pruned, unless the whole sweep leaves."""
        self._pruned = not self._training.done() and not ray.get(self._sweep.leaving.remote())
        self._leave()
        if self._pruned and not self._trial.over:
            self._trial = replace(self._trial, end="pruned").write(self._run)

    def _leave(self) -> None:
        self._control.leave.remote()
        wait([self._training], timeout=_PATIENCE_S)

    def _train(self) -> None:
        run = Run(self._run.folder, updated(self._run.config, self._trial.values))
        tune, place = run.config.tune, self._trial.folder(run)
        plan = make_plan(run, tune.stage)

        def report(history: History) -> None:
            # First the record: the result may end the trial.
            self._trial = self._trial.after(history, plan.recipe.epochs).write(run)
            best = UNKNOWN if self._trial.score is None else self._trial.score
            for entry in history:
                if SCORE in entry and entry["epoch"] > self._reported:
                    self._reported = entry["epoch"]
                    score = UNKNOWN if entry[SCORE] is None else entry[SCORE]
                    self._results.put({"epoch": entry["epoch"], SCORE: score, BEST: best})

        with tracked(run, f"tune/{tune.name}/{self._trial.id}", parent=self._parent) as tracker:
            try:
                report(train_in(run, tune.stage, plan, place, tracker, report, self._control, tune.cpus))
            except KeyboardInterrupt:
                if self._pruned:
                    tracker.end("FINISHED", {"cropray.pruned": "true"})
                raise

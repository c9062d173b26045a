"""Sweeps on Ray Tune: every trial is a training as a single one is, in a folder of its own."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cropray.cluster import for_workers, ray_session, reach
from cropray.config.load import updated
from cropray.config.training import Dimension, TuneConfig
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.figures.charts import PICTURE, SWEEP, Axis, sweep_chart
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.storage import Folder, in_thread
from cropray.tracking.registry import register, registered_name
from cropray.tracking.runs import Tracker, tracked
from cropray.training.driver import open_control, publish_best
from cropray.training.lock import run_lock
from cropray.training.monitor import check_trials
from cropray.training.plan import make_plan, training_inputs
from cropray.training.validate import SCORE
from cropray.tuning.space import TRIAL, Trial, check_space, trials_of

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner
    from ray.tune.schedulers import TrialScheduler

    from cropray.tuning.search import Search

_POLL_S = 0.5
_PATIENCE_S = 120.0  # for the trials to keep their states and leave, when the sweep is to be left


def tune(run: Run) -> Summary:
    """Search settings of one training stage by the score on val; publish and register the best model.

    Writes `tune/<name>/`: sweep.json, sweep.png, a folder a trial, and model/, the best trial's best epoch,
    which is then evaluated on the test split (`tune.evaluate`). A sweep that was interrupted goes on, as one
    does that was finished and has trials that failed, or is asked for more of them or for more time: what
    is over is not made again. Raises InputError for a space that does not fit the settings or the cluster,
    where every trial failed, and where none has a score.
    """
    settings = run.config.tune
    check_space(run.config)
    run.begin("tune")
    inputs = training_inputs(run, settings.stage)
    summary = run.finished("tune", inputs)
    if summary is None or wanting(summary, settings):
        make_plan(run, settings.stage)  # what no trial could do is told before any is begun
        what = f"the sweep {settings.name} of {run.folder}"
        with run_lock(run.folder.child("tune"), f"{settings.name}.lock", what):
            summary = _swept(run, inputs)
        run.finish("tune", summary, inputs)
    else:
        say(f"tune: reused {_folder(run)}")
    if settings.evaluate:
        chosen = updated(run.config, {"evaluate.model": f"run:tune/{settings.name}/model"})
        summary = summary | {"evaluation": evaluate(Run(run.folder, chosen))}
    return summary


def wanting(summary: Summary, settings: TuneConfig) -> bool:
    """Whether a sweep that was finished has something left to try by these settings."""
    if summary["failed"]:
        return True
    had: float | None = summary["out_of_time_s"]
    if had is not None:
        return settings.budget_s is None or settings.budget_s > had
    made: int = summary["trials"]
    return made < trials_of(settings)


def _swept(run: Run, inputs: Inputs) -> Summary:
    import ray

    settings, start = run.config.tune, time.monotonic()
    with ray_session(run.config.ray, dashboard=True):  # Tune cannot take back what a trial held without it
        check_trials(run.config, ray.cluster_resources(), reach(run.config.ray))
        if run.changed("tune", inputs):
            _forget(run)
        with tracked(run, f"tune/{settings.name}") as tracker:
            run.claim("tune", inputs)  # not before MLflow has answered
            try:
                _search(run, tracker.run_id)
            finally:  # Tune ends a trial without a word to MLflow
                for _, child in tracker.running_children():
                    child.end("KILLED")
            trials = _trials(run)
            version = _publish(run, trials, tracker)
    best, ends = trials[0], Counter(trial.end for trial in trials)
    short = ends["open"] > 0 or len(trials) < trials_of(settings)
    return {
        "model": _folder(run).child("model").uri,
        "registered": f"models:/{registered_name(run, settings.stage)}/{version}",
        "mlflow_run": tracker.run_id,
        "trials": len(trials),
        **{end: ends[end] for end in ("finished", "behind", "failed")},
        "out_of_time_s": settings.budget_s if short else None,
        "best_trial": best.id,
        "best_values": best.values,
        "best_epoch": best.best_epoch,
        SCORE: best.score,
        "seconds": round(time.monotonic() - start, 1),
    }


def _forget(run: Run) -> None:
    """Take away a sweep on other inputs; its model stays registered."""
    name = run.config.tune.name
    run.folder.delete_folder(f"tune/{name}")
    if run.folder.exists(f"mlflow/tune/{name}.json"):
        run.folder.delete(f"mlflow/tune/{name}.json")


def _folder(run: Run) -> Folder:
    return run.folder.child(f"tune/{run.config.tune.name}")


def _search(run: Run, parent: str) -> None:
    """Try all that is not over; each trial leaves its record in its folder.

    Raises KeyboardInterrupt where the sweep is to be left: the trials under way have kept their states
    then, unless a second interrupt came before.
    """
    from cropray.tuning.search import Search

    search, desk = Search(run.config, _trials(run)), open_control()
    if not search.left:
        return

    def leave() -> None:
        search.end()
        desk.leave.remote()

    with TemporaryDirectory(prefix="cropray-tune-", ignore_cleanup_errors=True) as scratch:
        searching = in_thread(_tuner(run, parent, search, desk, scratch).fit)
        try:
            _followed(searching, search, run.config.tune, leave)
        except KeyboardInterrupt:
            say("tune: the trials keep their states and leave; a second interrupt leaves at once")
            leave()
            wait([searching], timeout=_PATIENCE_S)
            raise
        _note_failures(run, search.begun.values(), searching.result())


def _followed(
    searching: Future[ResultGrid], search: Search, settings: TuneConfig, leave: Callable[[], None]
) -> None:
    """Until all trials have ended, which they are asked to when their time is up."""
    start, done, asked = time.monotonic(), 0, False
    with progress("tune", trials_of(settings)) as bar:
        while True:
            last = searching.done()
            bar.advance(search.done - done, "" if search.best is None else f"best {SCORE} {search.best:.4f}")
            done = search.done
            if last:
                return
            if settings.budget_s is not None and not asked and time.monotonic() - start > settings.budget_s:
                asked = True
                say(f"tune: {settings.budget_s:g} s are over (tune.budget_s): the trials leave")
                leave()
            time.sleep(_POLL_S)


def _note_failures(run: Run, begun: Iterable[Trial], results: ResultGrid) -> None:
    """Record what failed, and say so; results come in the order in which the trials began."""
    folder = _folder(run).child("trials")
    for trial, result in zip(begun, results, strict=True):
        if result.error is None:
            continue
        problem = str(getattr(result.error, "cause", None) or result.error).strip()
        name = f"{trial.id}/{TRIAL}"
        record = Trial(**json.loads(folder.read_text(name))) if folder.exists(name) else trial
        record = replace(record, end="failed", problem=problem.splitlines()[-1] if problem else "")
        folder.write_text(name, json.dumps(asdict(record)) + "\n")
        say(f"tune: trial {trial.id} failed: {record.problem}; the same command tries it again")


def _tuner(run: Run, parent: str, search: Search, desk: Any, scratch: str) -> Tuner:
    """A search by Tune, which keeps what it writes, and nobody reads, in the folder `scratch`."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # trials keep their own records
    import ray
    from ray import tune as ray_tune

    from cropray.tuning.trial import TrialTraining

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of failures this module tells
    settings = run.config.tune
    given = ray_tune.with_parameters(
        TrialTraining, folder=run.folder.uri, config=for_workers(run.config), parent=parent, sweep=desk
    )
    # On the driver's node, which reaches MLflow, has CPUs for others or none, and stays. A group of Ray's
    # must ask for something: a byte. The workers of the trial ask for room of their own, anywhere.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    place = ray_tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[here])
    return ray_tune.Tuner(
        ray_tune.with_resources(given, place),
        tune_config=ray_tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=search.left,
            max_concurrent_trials=settings.concurrent,
            search_alg=search,
            scheduler=_scheduler(settings, getattr(run.config, settings.stage).epochs),
        ),
        run_config=ray_tune.RunConfig(
            storage_path=scratch,
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their states
            verbose=0,
        ),
    )


def _trials(run: Run) -> list[Trial]:
    """What all trials have left so far, the best first."""
    folder = _folder(run).child("trials")
    records = [json.loads(folder.read_text(name)) for name in folder.names(TRIAL)]
    return sorted(
        (Trial(**record) for record in records), key=lambda t: (t.score is None, -(t.score or 0), t.id)
    )


def _scheduler(settings: TuneConfig, epochs: int) -> TrialScheduler:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if settings.scheduler == "none":
        return FIFOScheduler()
    # One epoch beyond the last, for Tune ends a trial that reaches it as it ends one that falls behind.
    return ASHAScheduler(
        time_attr="epoch",
        max_t=epochs + 1,
        grace_period=min(settings.grace_epochs, epochs),
        reduction_factor=settings.reduction,
    )


def _publish(run: Run, trials: Sequence[Trial], tracker: Tracker) -> str:
    """The sweep's table and picture, and the best trial's model as a new version, which is returned."""
    settings, folder = run.config.tune, _folder(run)
    score = trials[0].score if trials else None
    if score is None:
        failed = next((trial for trial in trials if trial.end == "failed"), None)
        what_to_do = (
            "look into their records there, give the split more regions (rois.split.val), or let the trials "
            "train longer (tune.budget_s)"
            if failed is None
            else f"mend what {failed.id} failed by ({failed.problem}) and run the same command again"
        )
        raise InputError(f"no trial of {folder} has a score on the validation split: {what_to_do}")
    best = trials[0]
    rows = [asdict(trial) for trial in trials]
    axes = [_axis(key, dimension) for key, dimension in sorted(settings.space.items())]
    flat = [{**trial.values, "score": trial.score, "stopped": trial.end != "finished"} for trial in trials]
    folder.write_text(SWEEP, json.dumps({"stage": settings.stage, "trials": rows}, indent=1) + "\n")
    folder.write_bytes(PICTURE, sweep_chart(axes, flat, SCORE))
    for name in (SWEEP, PICTURE):
        tracker.artifact_bytes(name, folder.read_bytes(name))
    tracker.metrics({SCORE: score}, step=best.best_epoch)
    model = folder.child("model")
    publish_best(folder.child(f"trials/{best.id}"), best.best_epoch, model)
    return register(run, settings.stage, model, tracker)


def _axis(key: str, dimension: Dimension) -> Axis:
    choices = tuple(str(value) for value in dimension.choice or ())
    return Axis(key, dimension.kind == "loguniform", choices)

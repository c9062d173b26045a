"""Sweeps on Ray Tune: every trial is a training as a single one is, in a folder of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cropray.config.tune import Dimension, TuneConfig
from cropray.figures.sweep import PICTURE, SWEEP, Axis, sweep_picture
from cropray.overrides import updated
from cropray.pipeline.cluster import for_workers, ray_session, reach
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.storage import Folder
from cropray.threads import in_thread
from cropray.tracking.registry import register, registered_name
from cropray.tracking.runs import Tracker, end_children, tracked
from cropray.training.driver import publish_best
from cropray.training.evaluate import evaluate
from cropray.training.lock import held
from cropray.training.plan import make_plan, training_inputs
from cropray.training.room import TRIAL_CPUS, check_trials
from cropray.training.space import check_space, trials_of
from cropray.training.trial import TRIAL, Trial
from cropray.training.validate import SCORE
from cropray.types import InputError

if TYPE_CHECKING:
    from ray.tune import Tuner
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher


_EXPERIMENT = "ray"  # where Ray Tune keeps what it needs to go on
_POLL_S = 0.5


def tune(run: Run) -> Summary:
    """Search settings of one training stage by the score on val; publish and register the best model.

    Writes `tune/<name>/`: sweep.json, sweep.png, a folder a trial, and model/, the best trial's best epoch,
    which is then evaluated on the test split (`tune.evaluate`). A sweep that was interrupted goes on:
    finished trials are not made again. Raises InputError for a space that does not fit the settings or
    the cluster, and where no trial has a score.
    """
    settings = run.config.tune
    check_space(run.config)
    run.begin("tune")
    inputs = training_inputs(run, settings.stage)
    summary = run.finished("tune", inputs)
    if summary is None:
        make_plan(run, settings.stage)  # what no trial could do is told before any is begun
        what = f"the sweep {settings.name} of {run.folder}"
        with held(run.folder.child("tune"), f"{settings.name}.lock", what):
            summary = _swept(run, inputs)
        run.finish("tune", summary, inputs)
    else:
        say(f"tune: reused {_folder(run)}")
    if settings.evaluate:
        chosen = updated(run.config, {"evaluate.model": f"run:tune/{settings.name}/model"})
        summary = summary | {"evaluation": evaluate(Run(run.folder, chosen))}
    return summary


def _swept(run: Run, inputs: Inputs) -> Summary:
    import ray

    settings, start = run.config.tune, time.monotonic()
    with ray_session(run.config.ray, dashboard=True):  # Tune cannot take back what a trial held without it
        check_trials(run.config, ray.cluster_resources(), reach(run.config.ray))
        if run.changed("tune", inputs):
            _forget(run)
        run.claim("tune", inputs)
        with tracked(run, f"tune/{settings.name}") as tracker:
            try:
                _search(run, tracker.run_id)
            finally:  # Tune ends a trial without a word to MLflow
                end_children(tracker)
            trials = _trials(run)
            version = _publish(run, trials, tracker)
    best = trials[0]
    return {
        "model": _folder(run).child("model").uri,
        "registered": f"models:/{registered_name(run, settings.stage)}/{version}",
        "mlflow_run": tracker.run_id,
        "trials": len(trials),
        "ended_early": sum(trial.stopped for trial in trials),
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
    """Run all trials that are not finished; each leaves its record in its folder."""
    settings = run.config.tune
    tuner = _tuner(run, parent)
    searching = in_thread(tuner.fit)
    with progress("tune", trials_of(settings)) as bar:
        done = 0
        while True:
            last = searching.done()
            trials = _trials(run)
            # Of the trials with a record at most `concurrent` are still under way.
            over = len(trials) if last else max(done, len(trials) - settings.concurrent)
            best = max((trial.score for trial in trials if trial.score is not None), default=None)
            bar.advance(over - done, "" if best is None else f"best {SCORE} {best:.4f}")
            done = over
            if last:
                break
            time.sleep(_POLL_S)
    for result in searching.result():
        if result.error is not None:  # the same command tries it again
            say(f"tune: a trial failed, {result.path}: {str(result.error).strip().splitlines()[-1]}")


def _tuner(run: Run, parent: str) -> Tuner:
    """A new search, or the one that the folder holds, taken up."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # trials keep their own records
    from ray import tune as ray_tune

    from cropray.training.driver_trial import TrialTraining

    settings, folder = run.config.tune, _folder(run)
    given = ray_tune.with_parameters(
        TrialTraining, folder=run.folder.uri, config=for_workers(run.config), parent=parent
    )
    trainable = ray_tune.with_resources(given, {"cpu": TRIAL_CPUS})
    place = {"path": f"{folder.path()}/{_EXPERIMENT}", "storage_filesystem": folder.filesystem}
    if ray_tune.Tuner.can_restore(**place):
        return ray_tune.Tuner.restore(
            trainable=trainable, resume_unfinished=True, restart_errored=True, **place
        )
    return ray_tune.Tuner(
        trainable,
        param_space=domains(settings),
        tune_config=ray_tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=1 if settings.search == "grid" else settings.trials,
            max_concurrent_trials=settings.concurrent,
            search_alg=_searcher(settings, run.config.seed),
            scheduler=_scheduler(settings, getattr(run.config, settings.stage).epochs),
            time_budget_s=settings.budget_s,
        ),
        run_config=ray_tune.RunConfig(
            name=_EXPERIMENT,
            storage_path=folder.path(),
            storage_filesystem=folder.filesystem,
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


def domains(settings: TuneConfig) -> dict[str, Any]:
    """The space in the terms of Ray Tune, sorted: the same trials, however it was written."""
    return {key: _domain(dimension, settings.search) for key, dimension in sorted(settings.space.items())}


def _domain(dimension: Dimension, search: str) -> Any:
    from ray import tune as ray_tune

    if dimension.choice is not None:
        values = list(dimension.choice)
        return ray_tune.grid_search(values) if search == "grid" else ray_tune.choice(values)
    low, high = dimension.extremes
    if dimension.integers is not None:
        return ray_tune.randint(low, high + 1)
    return ray_tune.loguniform(low, high) if dimension.loguniform else ray_tune.uniform(low, high)


def _searcher(settings: TuneConfig, seed: int) -> Searcher:
    if settings.search == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return OptunaSearch(metric=SCORE, mode="max", seed=seed)
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(random_state=seed)


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
        raise InputError(
            f"no trial of {folder} has a score on the validation split: look into their records there, give "
            "the split more regions (rois.split.val), or let the trials train longer (tune.budget_s)"
        )
    best = trials[0]
    rows = [asdict(trial) for trial in trials]
    axes = [_axis(key, dimension) for key, dimension in sorted(settings.space.items())]
    flat = [{**trial.values, "score": trial.score, "stopped": trial.stopped} for trial in trials]
    folder.write_text(SWEEP, json.dumps({"stage": settings.stage, "trials": rows}, indent=1) + "\n")
    folder.write_bytes(PICTURE, sweep_picture(axes, flat, SCORE))
    for name in (SWEEP, PICTURE):
        tracker.artifact_bytes(name, folder.read_bytes(name))
    tracker.metrics({SCORE: score}, step=best.best_epoch)
    model = folder.child("model")
    publish_best(folder.child(f"trials/{best.id}"), best.best_epoch, model)
    return register(run, settings.stage, model, tracker)


def _axis(key: str, dimension: Dimension) -> Axis:
    choices = tuple(str(value) for value in dimension.choice or ())
    return Axis(key, dimension.kind == "loguniform", choices)

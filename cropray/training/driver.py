"""Pretraining and fine-tuning on Ray Train: settings in, a checkpoint in the run folder out."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.pipeline.cluster import ray_session
from cropray.progress import progress, say
from cropray.run import Run, Summary
from cropray.tracking.registry import register, registered_name
from cropray.tracking.runs import Tracker, tracked
from cropray.training.plan import TrainingPlan, make_plan, training_inputs
from cropray.training.validate import SCORE
from cropray.types import InputError

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from cropray.training.driver_worker import History, Note

Stage = Literal["pretrain", "finetune"]

_POLL_S = 0.2
# How often Ray's controller looks at the workers. Its own 2 s would cost up to as much at the start
# and after every epoch.
_CONTROLLER_POLL_S = "0.2"


def pretrain(run: Run) -> Summary:
    """Train a network with the settings `pretrain`."""
    return train(run, "pretrain")


def finetune(run: Run) -> Summary:
    """Train a network with the settings `finetune`, usually from the body of a pretrained one."""
    return train(run, "finetune")


def train(run: Run, stage: Stage) -> Summary:
    """Train on the split `train`, choose epoch and thresholds on `val`, publish and register.

    The epoch with the highest mean average precision over classes is kept, the last one where the
    validation split has no known pixel. Writes `models/<stage>/` (checkpoint.json,
    weights.safetensors, history.json: one object an epoch). A training that was interrupted goes on
    from its last epoch; one whose shards or starting checkpoint have changed, from its first. Raises
    InputError for shards or a starting checkpoint that do not fit.
    """
    run.begin(stage)
    inputs = training_inputs(run, stage)
    summary = run.finished(stage, inputs)
    if summary is not None:
        say(f"{stage}: reused {run.folder}/models/{stage}")
        return summary
    start = time.monotonic()
    plan = make_plan(run, stage)
    with ray_session(run.config.ray):
        _check_workers(run, stage)
        if run.changed(stage, inputs):
            _forget(run, stage)
        run.claim(stage, inputs)
        history, tracker_id, version = _train_and_register(run, stage, plan)
    best = best_entry(history)
    summary = {
        "model": run.folder.child(f"models/{stage}").uri,
        "registered": f"models:/{registered_name(run, stage)}/{version}",
        "mlflow_run": tracker_id,
        "samples": plan.samples,
        "parameters": plan.parameters,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "train_loss": best["train_loss"],
        SCORE: best.get(SCORE),
        "seconds": round(time.monotonic() - start, 1),
    }
    run.finish(stage, summary, inputs)
    return summary


def _forget(run: Run, stage: Stage) -> None:
    """Take away what a training on other inputs would be taken up from; its model stays registered."""
    run.folder.delete_folder(f"checkpoints/{stage}")
    if run.folder.exists(f"mlflow/{stage}.json"):
        run.folder.delete(f"mlflow/{stage}.json")


def best_entry(history: History) -> dict[str, Any]:
    """The entry of the epoch to keep: of equal or unknown scores the last."""
    return max(history, key=lambda entry: (_score(entry), entry["epoch"]))


def _score(entry: dict[str, Any]) -> float:
    value = entry.get(SCORE)
    return -1.0 if value is None else float(value)


def _train_and_register(run: Run, stage: Stage, plan: TrainingPlan) -> tuple[History, str, str]:
    from ray.util.queue import Queue

    notes = Queue(actor_options={"num_cpus": 0})
    training = _in_thread(lambda: _fit(run, stage, plan, notes))
    # The workers start while MLflow is imported.
    with tracked(run, stage) as tracker:
        tracker.params({"train_samples": plan.samples, "parameters": plan.parameters})
        history = _follow(training, notes, tracker, stage, plan)
        notes.shutdown()
        folder = run.folder.child(f"models/{stage}")
        epoch = best_entry(history)["epoch"]
        checkpoint = load_checkpoint(run.folder.child(f"checkpoints/{stage}/epoch-{epoch:04d}"))
        folder.write_text("history.json", json.dumps(history, indent=1) + "\n")
        save_checkpoint(checkpoint, folder)
        version = register(run, stage, folder, tracker)
    return history, tracker.run_id, version


def _check_workers(run: Run, stage: Stage) -> None:
    import ray

    workers, cpus = getattr(run.config, stage).workers, ray.cluster_resources().get("CPU", 0)
    if cpus < workers:
        raise InputError(
            f"{stage}.workers is {workers}, but Ray has {cpus:g} CPUs: "
            "set fewer workers, or give Ray more CPUs (ray.num_cpus)"
        )


def _fit(run: Run, stage: Stage, plan: TrainingPlan, notes: Queue) -> History:
    """Run Ray Train to its end; it takes up what lies under `checkpoints/<stage>`."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CONTROLLER_POLL_S)
    import ray
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cropray.training.driver_worker import train_worker

    settings = getattr(run.config, stage)
    folder = run.folder.child("checkpoints")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "notes": notes},
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=ray.cluster_resources().get("GPU", 0) >= settings.workers
        ),
        run_config=RunConfig(
            name=stage,
            storage_path=folder.path(),
            storage_filesystem=folder.filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            # The best epoch and the last are kept.
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    history: History = trainer.fit().return_value
    return history


def _follow(
    training: Future[History], notes: Queue, tracker: Tracker, stage: Stage, plan: TrainingPlan
) -> History:
    """Show and record what the workers say until they are done. Raises InputError that they met."""
    done = 0
    with progress(stage, plan.steps) as bar:
        while True:
            last = training.done()  # asked before the notes are read, so that none is missed
            for note in _read(notes):
                if note.problem:
                    raise InputError(note.problem)
                bar.advance(
                    note.steps - done, f"epoch {note.epoch}/{plan.recipe.epochs} loss {note.loss:.4f}"
                )
                done = note.steps
                if note.entry is not None:
                    tracker.metrics(_flat(note.entry), step=note.epoch)
            if last:
                return training.result()
            time.sleep(_POLL_S)


def _read(notes: Queue) -> list[Note]:
    found: list[Note] = notes.get_nowait_batch(notes.qsize())
    return found


def _flat(entry: dict[str, Any]) -> dict[str, float]:
    """The figures of an epoch by name, those of a class as `<figure>/<class>`."""
    flat = {name: value for name, value in entry.items() if isinstance(value, int | float)}
    for crop, figures in entry.get("val_classes", {}).items():
        flat |= {f"val_{name}/{crop}": value for name, value in (figures or {}).items()}
    return flat


def _in_thread(work: Callable[[], History]) -> Future[History]:
    """Run `work` beside the main thread, which stays free for the user's interrupt.

    Ray Train would else take over the handling of SIGINT, and keep it. The thread does not keep
    the process alive.
    """
    future: Future[History] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=target, name="ray-train", daemon=True).start()
    return future

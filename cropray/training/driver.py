"""Pretraining and fine-tuning on Ray Train: settings in, a checkpoint in the run folder out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cropray.cluster import ray_session, reach
from cropray.errors import InputError
from cropray.figures.charts import curves_chart
from cropray.figures.pictures import comparison_picture
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.decision import Predictor, decide
from cropray.progress import say
from cropray.run import Run, Summary
from cropray.shards.reader import ShardReader
from cropray.storage import Folder, in_thread
from cropray.tracking.registry import register, registered_name
from cropray.tracking.runs import Tracker, tracked
from cropray.training.control import open_desk
from cropray.training.lock import held
from cropray.training.monitor import Follower, Tell
from cropray.training.plan import TrainingPlan, make_plan, training_inputs
from cropray.training.resources import Asked, check_workers, each_worker
from cropray.training.state import STANDING, name_of
from cropray.training.validate import SCORE, History, best_entry

if TYPE_CHECKING:
    from cropray.training.worker import Outcome

_SAMPLES = 4


def training_pictures(
    checkpoint: Checkpoint, history: History, val: ShardReader | None, title: str
) -> dict[str, bytes]:
    """PNGs by name: `curves.png`, and a few of the samples in `val`, each of another crop where it can be."""
    pictures = {"curves.png": curves_chart(history, title)}
    if val is None or not len(val.table):
        return pictures
    batch = val.take(_most_labelled(val))
    predictor = Predictor(checkpoint)
    probabilities = predictor.probabilities(batch.s1_bcthw, batch.s2_bcthw)
    truth = batch.label_bhw if batch.truth_bhw is None else batch.truth_bhw
    for i, name in enumerate(batch.rows["sample_id"]):
        seen = decide(probabilities[i], predictor.thresholds)
        pictures[f"predictions/{i + 1}.png"] = comparison_picture(
            truth[i], seen, checkpoint.classes, batch.s2_bcthw[i], str(name)
        )
    return pictures


def _most_labelled(val: ShardReader) -> list[int]:
    """Rows with the most labels, first of each crop, then again."""
    labelled = val.table["labelled_fraction"].to_numpy()
    crops = val.table["crop"].to_pylist()
    turns: dict[str, int] = {}
    keys = []
    for row in np.argsort(-labelled, kind="stable").tolist():
        turn = turns.get(crops[row], 0)
        turns[crops[row]] = turn + 1
        keys.append((turn, -labelled[row], row))
    return [row for _, _, row in sorted(keys)[:_SAMPLES]]


Stage = Literal["pretrain", "finetune"]

# How often Ray's controller looks at the workers. Its own 2 s would cost up to as much at the start
# and after every epoch.
_CONTROLLER_POLL_S = "0.2"
_RAYS_OWN = "ray"  # in the folder of states


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
    from its last state; one whose shards or starting checkpoint have changed, from its start. Raises
    InputError for shards or a starting checkpoint that do not fit, and where another process is at it.
    """
    run.begin(stage)
    inputs = training_inputs(run, stage)
    summary = run.finished(stage, inputs)
    if summary is not None:
        say(f"{stage}: reused {run.folder}/models/{stage}")
        return summary
    start = time.monotonic()
    plan = make_plan(run, stage)
    lock = held(run.folder.child("stages"), f"{stage}.lock", f"{stage} of {run.folder}")
    with lock, ray_session(run.config.ray):
        asked = _asked(run, stage)
        check_workers(stage, asked, reach(run.config.ray))
        if run.changed(stage, inputs):
            _forget(run, stage)
        run.claim(stage, inputs)
        history, tracker_id, version = _train_and_register(run, stage, plan, asked)
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


def train_in(
    run: Run,
    stage: Stage,
    plan: TrainingPlan,
    place: Folder,
    tracker: Tracker,
    tell: Tell,
    desk: Any,
    cpus: float,
) -> History:
    """Train with the states in the folder `place` and `cpus` a worker; the history of all epochs.

    `desk` is where the workers can be asked to leave. After every epoch `tell` is called with the
    history so far. Raises what `Follower.to_the_end` does.
    """
    plan = replace(plan, states=place)
    return _begun(run, stage, plan, _asked(run, stage, cpus), desk)(tracker, tell)


def publish_best(place: Folder, epoch: int, target: Folder) -> None:
    """Make the checkpoint of an epoch, among the states in `place`, a model of its own.

    Its `history.json` goes as far as that epoch.
    """
    state = place.child(name_of(epoch))
    checkpoint, standing = load_checkpoint(state), json.loads(state.read_text(STANDING))
    target.write_text("history.json", json.dumps(standing["history"], indent=1) + "\n")
    save_checkpoint(checkpoint, target)


def _forget(run: Run, stage: Stage) -> None:
    """Take away what a training on other inputs would be taken up from; its model stays registered."""
    run.folder.delete_folder(f"checkpoints/{stage}")
    if run.folder.exists(f"mlflow/{stage}.json"):
        run.folder.delete(f"mlflow/{stage}.json")


def _asked(run: Run, stage: Stage, cpus: float = 1) -> Asked:
    """What a training asks of the Ray that is there."""
    import ray

    settings, have = getattr(run.config, stage), ray.cluster_resources()
    each = each_worker(settings, have, cpus)
    return Asked((settings.min_workers, settings.max_workers), each, grows=reach(run.config.ray) != have)


def _train_and_register(run: Run, stage: Stage, plan: TrainingPlan, asked: Asked) -> tuple[History, str, str]:
    training = _begun(run, stage, plan, asked, open_desk())
    # The workers start while MLflow is imported.
    with tracked(run, stage) as tracker:
        about = {"train_samples": plan.samples, "parameters": plan.parameters}
        tracker.params(about | {"data_fingerprint": plan.checkpoint.data_fingerprint})
        history = training(tracker, None)
        model = run.folder.child(f"models/{stage}")
        publish_best(plan.states, best_entry(history)["epoch"], model)
        model.write_text("history.json", json.dumps(history, indent=1) + "\n")
        _picture(run, stage, plan, history, tracker)
        version = register(run, stage, model, tracker)
    return history, tracker.run_id, version


def _begun(
    run: Run, stage: Stage, plan: TrainingPlan, asked: Asked, desk: Any
) -> Callable[[Tracker, Tell | None], History]:
    """Begin a training; what follows it to its end."""
    training = in_thread(lambda: _fit(run, stage, plan, asked, desk))
    return lambda tracker, tell: Follower(stage, plan, asked, desk, training, tracker, tell).to_the_end()


def _fit(run: Run, stage: Stage, plan: TrainingPlan, asked: Asked, desk: Any) -> Outcome:
    """Run Ray Train to its end. It starts workers anew when they die; what they know, they have kept.

    Raises InputError where workers have GPUs that PyTorch cannot use.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CONTROLLER_POLL_S)
    from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cropray.training.worker import train_worker

    fewest, most = asked.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "desk": desk},
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu="GPU" in asked.each,
            resources_per_worker=dict(asked.each),
        ),
        run_config=RunConfig(
            name=_RAYS_OWN,
            storage_path=plan.states.path(),
            storage_filesystem=plan.states.filesystem,
            failure_config=FailureConfig(max_failures=getattr(run.config, stage).max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        outcome: Outcome = trainer.fit().return_value
    except ControllerError as error:
        if "NCCL" not in str(error):
            raise
        raise InputError(
            f"{stage}: its workers have GPUs by Ray, but PyTorch there cannot use them "
            f"({str(error).strip().splitlines()[-1]}): look with nvidia-smi and `cropray doctor` on these "
            f"nodes, install PyTorch for CUDA there, or set {stage}.gpus to 0"
        ) from error
    return outcome


def _picture(run: Run, stage: Stage, plan: TrainingPlan, history: History, tracker: Tracker) -> None:

    checkpoint = load_checkpoint(run.folder.child(f"models/{stage}"))
    val = plan.val.part(1, 0, 1)
    for name, picture in training_pictures(checkpoint, history, val, f"{stage} of {run.folder}").items():
        tracker.artifact_bytes(name, picture)

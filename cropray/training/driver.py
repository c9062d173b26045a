"""Pretraining and fine-tuning on Ray Train: from settings to a published and registered checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cropray.cluster import ray_session, reach
from cropray.config.training import Stage
from cropray.errors import InputError
from cropray.evaluation.decisions import settled
from cropray.figures.charts import curves_chart
from cropray.figures.pictures import comparison_picture
from cropray.models.checkpoint import DESCRIPTION, WEIGHTS, Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.inference import Predictor
from cropray.progress import say
from cropray.run import Run, Summary
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder, in_thread
from cropray.tracking.registry import register, registered_name
from cropray.tracking.runs import Tracker, tracked
from cropray.training.control import beside_driver, open_control
from cropray.training.lock import run_lock
from cropray.training.monitor import ProgressMonitor, ResourceRequest, check_workers, worker_resources
from cropray.training.plan import RAYS, TrainingPlan, make_plan, training_inputs
from cropray.training.state import TRAIN_STATE, name_of
from cropray.training.validate import SCORE, History, best_entry

if TYPE_CHECKING:
    from ray.train import UserCallback

_PICTURES = 4
_CONTROLLER_POLL_S = "0.2"  # Ray's own 2 s would be lost at the start and the end
# NCCL and Gloo: torch.compile on one rank, or an upload to slow storage, may take minutes.
_COLLECTIVE_TIMEOUT_S = 900


def pretrain(run: Run) -> Summary:
    """Train a network with the settings `pretrain`."""
    return train(run, "pretrain")


def finetune(run: Run) -> Summary:
    """Train a network with the settings `finetune`, usually from the body of a pretrained one."""
    return train(run, "finetune")


def train(run: Run, stage: Stage) -> Summary:
    """Train on the split `train`, choose epoch and thresholds on `val`, publish and register.

    Publishes the epoch with the highest mean average precision over classes, or the last one if val has no
    known pixel, in `models/<stage>/` (checkpoint.json, weights.safetensors, history.json: one object an
    epoch). An interrupted training resumes from its last state, or restarts if its shards or its starting
    checkpoint have changed. Raises InputError if these do not fit, or another process runs this training.
    """
    run.begin(stage)
    inputs = training_inputs(run, stage)
    files = [f"models/{stage}/{name}" for name in (DESCRIPTION, WEIGHTS)]
    summary = run.finished(stage, inputs, files)
    if summary is not None:
        say(f"{stage}: reused {run.folder}/models/{stage}")
        return summary
    start = time.monotonic()
    plan = make_plan(run, stage)
    with run_lock(run.folder.child("stages"), f"{stage}.lock", f"{stage} of {run.folder}") as lock:
        with ray_session(run.config.ray):
            request = resource_request(run, stage)
            check_workers(stage, request, reach(run.config.ray))
            if run.changed(stage, inputs):
                run.folder.delete_folder(f"checkpoints/{stage}")  # its model stays registered
                if run.folder.exists(f"mlflow/{stage}.json"):
                    run.folder.delete(f"mlflow/{stage}.json")
            run.claim(stage, inputs)
            history, run_id, version = _train_and_register(run, stage, replace(plan, lock=lock), request)
        best = best_entry(history)
        summary = {
            "model": run.folder.child(f"models/{stage}").uri,
            "registered": f"models:/{registered_name(run, stage)}/{version}",
            "mlflow_run": run_id,
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


def resource_request(run: Run, stage: Stage, cpus: float = 1) -> ResourceRequest:
    """What a training with `cpus` a worker requests of the Ray in use."""
    import ray

    settings, have = getattr(run.config, stage), ray.cluster_resources()
    each, workers = worker_resources(settings, have, cpus), (settings.min_workers, settings.max_workers)
    return ResourceRequest(workers, each, autoscaled=reach(run.config.ray) != have)


def fit(
    run: Run,
    stage: Stage,
    plan: TrainingPlan,
    request: ResourceRequest,
    control: Any,
    callbacks: Sequence[UserCallback],
) -> History:
    """Run Ray Train until the workers are done; the history of all epochs, fewer if `control` said leave.

    `callbacks` get a report at the start, every few seconds, and for each validated epoch: its numbers, with
    `epoch` and `SCORE` (-1 if unknown), `entries` (the new lines of the history), and its checkpoint; Ray
    keeps those of the best and the last. Ray Train restarts workers that die, `max_failures` times. Raises
    InputError at once for what only a person can correct.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CONTROLLER_POLL_S)
    from ray import train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cropray.training.worker import StopOnLastingError, train_worker

    # Another version of Ray could not read what is there; a training resumes from its own states.
    plan.states.delete_folder(RAYS)
    fewest, most = request.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "control": control},
        torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ray_train.ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu="GPU" in request.each,
            resources_per_worker=dict(request.each),
        ),
        run_config=ray_train.RunConfig(
            name=RAYS,
            storage_path=plan.states.path(),
            storage_filesystem=plan.states.filesystem,
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
            failure_config=ray_train.FailureConfig(max_failures=getattr(run.config, stage).max_failures),
            callbacks=[StopOnLastingError(), *callbacks],
            logging_config=ray_train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        history: History = trainer.fit().return_value
    except ray_train.ControllerError as error:
        if isinstance(error.controller_failure, InputError):
            raise error.controller_failure from None
        if "NCCL" not in str(error):
            raise
        raise InputError(
            f"{stage}: Ray gives its workers GPUs, but PyTorch there cannot use them "
            f"({str(error).strip().splitlines()[-1]}): look with nvidia-smi and `cropray doctor` on these "
            f"nodes, install PyTorch for CUDA there, or set {stage}.gpus to 0"
        ) from error
    return history


def train_in(
    run: Run,
    stage: Stage,
    plan: TrainingPlan,
    place: Folder,
    tracker: Tracker,
    tell: Callable[[History], None],
    control: Any,
    cpus: float,
) -> History:
    """Train with states in `place` and `cpus` a worker; `tell` and result as of `ProgressMonitor`."""
    plan, request = replace(plan, states=place), resource_request(run, stage, cpus)
    return _begin(run, stage, plan, request, control)(tracker, tell).until_done()


def publish_best(run: Run, place: Folder, epoch: int, target: Folder) -> None:
    """Publish the checkpoint of an epoch from the states in `place`, with the history up to it.

    Its calibration and thresholds are chosen on val, where that knows a pixel of a class.
    """
    state = place.child(name_of(epoch))
    checkpoint, train_state = load_checkpoint(state), json.loads(state.read_text(TRAIN_STATE))
    checkpoint, val = replace(checkpoint, epoch=epoch), shard_uris(run.folder, "val")
    if val:
        reader = ShardReader(val, batch_size=1, shuffle=False)
        buffer_m, overlap = run.config.rois.split.buffer_m, run.config.predict.overlap
        checkpoint = settled(checkpoint, reader, buffer_m=buffer_m, overlap=overlap)
    target.write_text("history.json", json.dumps(train_state["history"], indent=1) + "\n")
    save_checkpoint(checkpoint, target)


def _train_and_register(
    run: Run, stage: Stage, plan: TrainingPlan, request: ResourceRequest
) -> tuple[History, str, str]:
    """The history, the id of the run in MLflow, and the version of the registered model."""
    monitor = _begin(run, stage, plan, request, open_control())
    with tracked(run, stage) as tracker:  # the workers start while MLflow is imported
        about = {"train_samples": plan.samples, "parameters": plan.parameters}
        tracker.params(about | {"data_fingerprint": plan.checkpoint.data_fingerprint})
        history = monitor(tracker).until_done()
        if plan.lock is not None:
            plan.lock.check()
        model = run.folder.child(f"models/{stage}")
        publish_best(run, plan.states, best_entry(history)["epoch"], model)
        model.write_text("history.json", json.dumps(history, indent=1) + "\n")
        title, val = f"{stage} of {run.folder}", plan.val.part(1, 0, 1)
        for name, picture in training_pictures(load_checkpoint(model), history, val, title).items():
            tracker.artifact_bytes(name, picture)
        version = register(run, stage, model, tracker)
    return history, tracker.run_id, version


def _begin(
    run: Run, stage: Stage, plan: TrainingPlan, request: ResourceRequest, control: Any
) -> Callable[..., ProgressMonitor]:
    """Begin a training in a thread; makes its monitor, given the tracker and perhaps what to `tell`."""
    from ray.util.queue import Queue

    from cropray.training.worker import SendReports

    reports = Queue(actor_options=beside_driver())
    training = in_thread(lambda: fit(run, stage, plan, request, control, [SendReports(reports)]))
    return partial(ProgressMonitor, stage, plan, request, control, reports, training)


def training_pictures(
    checkpoint: Checkpoint, history: History, val: ShardReader | None, title: str
) -> dict[str, bytes]:
    """PNGs by name: `curves.png`, and predictions of a few samples of `val`, each of another crop."""
    pictures = {"curves.png": curves_chart(history, title)}
    if val is None or not len(val.table):
        return pictures
    batch = val.take(_most_labelled(val))
    predictor = Predictor(checkpoint)
    places = batch.place_b2 if predictor.needs_places else None
    probabilities = predictor.probabilities(batch.s1_bcthw, batch.s2_bcthw, places)
    truth = batch.label_bhw if batch.truth_bhw is None else batch.truth_bhw
    for i, name in enumerate(batch.rows["sample_id"]):
        seen = predictor.decision().decide(probabilities[i])
        pictures[f"predictions/{i + 1}.png"] = comparison_picture(
            truth[i], seen, checkpoint.classes, batch.s2_bcthw[i], str(name)
        )
    return pictures


def _most_labelled(val: ShardReader) -> list[int]:
    """Rows with the most labels: first the best one of each crop, then the second best of each, and so on."""
    rows = val.table.select(["crop", "labelled_fraction"]).to_pandas()
    rows = rows.sort_values("labelled_fraction", ascending=False, kind="stable")
    order = rows.groupby("crop").cumcount().sort_values(kind="stable")
    return [int(row) for row in order.index[:_PICTURES]]

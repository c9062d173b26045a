"""One MLflow run per stage: parameters, metrics and artifacts. A stage that resumes continues its run.

Every call goes through a client with an explicit URI, so MLflow's global state stays untouched.
"""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_fixed

from cropray.errors import InputError
from cropray.progress import say
from cropray.run import Run, flat
from cropray.storage import Folder, in_thread
from cropray.tracking.connection import (
    ARTIFACTS,
    open_client,
    quoted,
    server_errors,
    sqlite_file,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Limits of MLflow's REST API for one log-batch request and for one value.
_BATCH = 100
_MAX_VALUE = 6000
_PARENT = "mlflow.parentRunId"  # MLflow's interface nests runs by this tag
_RUN, _STAGE, _PROCESS = "cropray.run", "cropray.stage", "cropray.process"
# Users choose the names of classes and regions, which are in names of metrics and parameters.
_NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")
# Errors of a server that is overloaded or starting, not of one that refuses.
_TEMPORARY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
_HASTE_S = 5.0  # for metrics that are still queued when an error ends the stage

SendMetrics = Callable[[Mapping[str, float], int, float], None]
"""Takes the metrics of a step, the step, and a time (seconds since 1970)."""


@dataclass
class Tracker:
    """Writes to one MLflow run."""

    client: MlflowClient
    run_id: str
    ended: bool = False
    _known: set[str] = field(default_factory=set)

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters. MLflow never changes one, so a known parameter keeps its value."""
        from mlflow.entities import Param

        values = {_NOT_IN_NAMES.sub("_", key): str(value)[:_MAX_VALUE] for key, value in params.items()}
        new = [Param(name, value) for name, value in values.items() if name not in self._known]
        for start in range(0, len(new), _BATCH):
            self.client.log_batch(self.run_id, params=new[start : start + _BATCH])
        self._known.update(param.key for param in new)

    def metrics(
        self, metrics: Mapping[str, float], step: int, *, when_s: float | None = None, model_id: str = ""
    ) -> None:
        """Record metrics of a step, at a time (seconds since 1970) or now, of a logged model if given."""
        from mlflow.entities import Metric

        when_ms = int(1000 * (time.time() if when_s is None else when_s))
        values = [
            Metric(_NOT_IN_NAMES.sub("_", key), float(value), when_ms, step, model_id=model_id or None)
            for key, value in metrics.items()
        ]
        for start in range(0, len(values), _BATCH):
            self.client.log_batch(self.run_id, metrics=values[start : start + _BATCH])

    def steps_of(self, metric: str) -> set[int]:
        """The steps for which a metric is recorded."""
        return {entry.step for entry in self.client.get_metric_history(self.run_id, metric)}

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags. Unlike parameters, they can change."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, str(value))

    def artifact_bytes(self, name: str, data: bytes) -> None:
        """Add a file to the run. Its name may contain folders."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.client.log_artifacts(self.run_id, folder)

    def end(self, status: str, tags: Mapping[str, Any] | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED; how the `tracked` block ends no longer matters."""
        self.tags(tags or {})
        self.client.set_terminated(self.run_id, status)
        self.ended = True

    def running_children(self) -> list[tuple[str, Tracker]]:
        """The runs nested in this one that have not ended, each with the name of its stage."""
        nested = f"tags.`{_PARENT}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        found = self.client.search_runs([experiment_id], nested, max_results=10_000)
        return [(run.data.tags[_STAGE], Tracker(self.client, run.info.run_id)) for run in found]


@contextmanager
def metric_queue(
    tracker: Tracker, *, retry_s: float = 3.0, patience_s: float = 120.0
) -> Iterator[SendMetrics]:
    """Send metrics from a thread, in order, each again and again until the server has taken it.

    A server that is away neither stops nor delays a training. MLflow's asynchronous logging drops what a
    server does not take, and its threads keep an interrupted process alive: for minutes if the server
    accepts connections and does not answer. Leaving the block waits for the rest. Raises InputError if it
    does not arrive within `patience_s` seconds, and MlflowException if the server refuses a record.
    """
    records = queue.SimpleQueue[tuple[Mapping[str, float], int, float] | None]()

    def say_away(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            say("the MLflow server does not answer; the training continues, its metrics are sent later")

    def send_all() -> None:
        again, wait_s = retry_if_exception(_is_temporary), wait_fixed(retry_s)
        while (record := records.get()) is not None:
            metrics, step, when_s = record
            retrying = Retrying(retry=again, wait=wait_s, before_sleep=say_away)
            retrying(tracker.metrics, metrics, step, when_s=when_s)

    def put(metrics: Mapping[str, float], step: int, when_s: float) -> None:
        if sender.done():
            sender.result()
        records.put((metrics, step, when_s))

    sender, wait_s = in_thread(send_all), _HASTE_S
    try:
        yield put
        wait_s = patience_s
        if left := records.qsize():
            say(f"waiting for the MLflow server: {left} records are left to send")
    finally:
        records.put(None)
        wait([sender], timeout=wait_s)
    if not sender.done():
        raise InputError(
            f"the MLflow server did not answer for {patience_s:g} s, and {records.qsize()} records are left "
            "to send. When it is back, run the same command again: it sends them"
        )
    sender.result()


def _is_temporary(error: BaseException) -> bool:
    """Whether a server was away, rather than that it refused."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return error.error_code in _TEMPORARY
    return isinstance(error, MlflowException)


@contextmanager
def tracked(run: Run, stage: str, *, parent: str = "") -> Iterator[Tracker]:
    """The MLflow run of a stage, with the resolved configuration as parameters and as a file.

    Its id is in the run folder (`mlflow/<stage>.json`): a stage that resumes continues the same run. The
    run ends as FINISHED, as FAILED after an exception, or as KILLED after an interrupt, unless
    `Tracker.end` has ended it. `parent` is the id of the run in which it is nested. Runs that a killed
    process of this run folder left open end as KILLED. Raises InputError if the tracking server cannot be
    used or fails on the way (on a full disk, for example).
    """
    uri = tracking_uri(run)
    client = open_client(uri)
    with server_errors(uri):
        experiment_id = _experiment(run, client)
        run_id = _resumed(run, stage, client) or _created(run, stage, parent, client, experiment_id)
        if not parent:
            _end_orphans(run, client, experiment_id)
        tracker = Tracker(client, run_id, _known=set(client.get_run(run_id).data.params))
        tracker.params(flat(run.config.model_dump(mode="json")))
        client.log_text(run_id, run.config.to_yaml(), "config.yaml")
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if not tracker.ended:
                tracker.end(status)


def _experiment(run: Run, client: MlflowClient) -> str:
    """The id of the experiment for new runs.

    MLflow keeps absolute locations and cannot change them. In a run folder that was moved or copied, new
    runs get an experiment of their own, so that they leave the original alone.
    """
    name, database = run.config.tracking.experiment, sqlite_file(tracking_uri(run))
    found = client.get_experiment_by_name(name)
    if found is not None and not _is_here(run, found.artifact_location):
        name = f"{name} in {run.folder}"
        found = client.get_experiment_by_name(name)
        if found is None:
            say(f"mlflow: the run folder was moved or copied. New runs are in the experiment {name!r}")
    if found is not None:
        return str(found.experiment_id)
    # A server chooses the location of files itself.
    location = None if database is None else (database.parent / "artifacts").absolute().as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _is_here(run: Run, location: str) -> bool:
    """False for files of the run folder's own database that are somewhere else."""
    if run.config.tracking.uri or not (files := Folder(location)).is_local:
        return True
    return files.local().resolve() == run.folder.local(ARTIFACTS).resolve()


def _resumed(run: Run, stage: str, client: MlflowClient) -> str | None:
    """The id of the stage's earlier run, which is running again. None if there is none to continue."""
    from mlflow.exceptions import MlflowException

    record = _record(run, stage)
    if record.get("uri") != run.config.tracking.uri:
        return None
    try:
        experiment_id = client.get_run(record["run_id"]).info.experiment_id
        if not _is_here(run, client.get_experiment(experiment_id).artifact_location):
            return None
        client.set_tag(record["run_id"], _PROCESS, _this_process())
        client.update_run(record["run_id"], status="RUNNING")
    except MlflowException:
        return None  # somebody deleted it on the server
    return record["run_id"]


def _created(run: Run, stage: str, parent: str, client: MlflowClient, experiment_id: str) -> str:
    label = run.folder.uri.rstrip("/").rsplit("/", 1)[-1]
    tags = {_STAGE: stage, _RUN: run.folder.uri, _PROCESS: _this_process()}
    tags |= {_PARENT: parent} if parent else {}
    info = client.create_run(experiment_id, tags=tags, run_name=f"{label}/{stage}").info
    record = {"uri": run.config.tracking.uri, "run_id": info.run_id}
    run.folder.write_text(_record_name(stage), json.dumps(record, indent=1) + "\n")
    return str(info.run_id)


def _record_name(stage: str) -> str:
    return f"mlflow/{stage}.json"


def _record(run: Run, stage: str) -> dict[str, str]:
    name = _record_name(stage)
    return dict(json.loads(run.folder.read_text(name))) if run.folder.exists(name) else {}


def _end_orphans(run: Run, client: MlflowClient, experiment_id: str) -> None:
    """End the runs of this run folder whose process is gone, or whose stage has begun another run."""
    own = not run.config.tracking.uri  # then all runs of the database are this run folder's
    searched = [found.experiment_id for found in client.search_experiments()] if own else [experiment_id]
    of_folder = "" if own else f"tags.`{_RUN}` = {quoted(run.folder.uri)} and "
    for found in client.search_runs(searched, f"{of_folder}attributes.status = 'RUNNING'"):
        tags, run_id = found.data.tags, found.info.run_id
        replaced = _STAGE in tags and _record(run, tags[_STAGE]).get("run_id") != run_id
        if replaced or _has_died(tags.get(_PROCESS, "")):
            client.set_terminated(run_id, "KILLED")


def _this_process() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"


def _has_died(process: str) -> bool:
    """Whether a process of this machine has ended. Nobody here can tell of another machine's."""
    identity, _, host = process.partition("@")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(identity), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    return False

"""One MLflow run a stage: parameters, metrics and artifacts, taken up again when the stage resumes.

Everything goes through a client of an explicit URI, so no global state of MLflow is touched.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropray.errors import InputError
from cropray.run import Run, flat
from cropray.storage import within
from cropray.tracking.connection import (
    REACH,
    address_errors,
    files_beside,
    follow,
    make_whole,
    server_errors,
    shown,
    sqlite_file,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Limits of MLflow's REST API for one log-batch request and one value.
_BATCH = 100
_MAX_VALUE = 6000
_ANSWER_S = 30.0  # by itself MLflow's client waits two minutes, four times
_PARENT = "mlflow.parentRunId"  # by which MLflow shows runs below another
_NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")


@dataclass
class Tracker:
    """Writes to one MLflow run. Not shared between processes: the driver holds it."""

    client: MlflowClient
    run_id: str
    _known: set[str] = field(default_factory=set)

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters. One that is already there keeps its value: MLflow never changes it."""
        from mlflow.entities import Param

        values = {metric_name(key): str(value)[:_MAX_VALUE] for key, value in params.items()}
        new = [Param(name, value) for name, value in values.items() if name not in self._known]
        for start in range(0, len(new), _BATCH):
            self.client.log_batch(self.run_id, params=new[start : start + _BATCH])
        self._known.update(param.key for param in new)

    def metrics(self, metrics: Mapping[str, float], step: int, *, when_s: float | None = None) -> None:
        """Record metrics of a step, at a time (seconds since 1970) or now."""
        from mlflow.entities import Metric

        now_ms = int(1000 * (time.time() if when_s is None else when_s))
        values = [Metric(metric_name(key), float(value), now_ms, step) for key, value in metrics.items()]
        for start in range(0, len(values), _BATCH):
            self.client.log_batch(self.run_id, metrics=values[start : start + _BATCH])

    def steps_of(self, metric: str) -> set[int]:
        """The steps of which a metric is recorded."""
        history = self.client.get_metric_history(self.run_id, metric)
        return {entry.step for entry in history}

    def artifact_bytes(self, name: str, data: bytes) -> None:
        """Put a file beside the run; its name may have folders."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.client.log_artifacts(self.run_id, folder)

    def artifact(self, path: Path | str) -> None:
        """Copy a local file beside the run."""
        self.client.log_artifact(self.run_id, str(path))


@contextmanager
def tracked(run: Run, stage: str, *, parent: str = "") -> Iterator[Tracker]:
    """The MLflow run of a stage, with the resolved configuration as parameters and as a file.

    Its id is kept in the run folder (`mlflow/<stage>.json`): a stage that resumes goes on in the
    same run. The run ends as FINISHED, FAILED where an exception left the block, or KILLED where
    it was interrupted. With the id of a `parent` it is nested in that run. Raises InputError where no
    tracking server can be used, and where it fails on the way (of its database on a full disk, for one).
    """
    uri, client = tracking_uri(run), client_of(run)
    with server_errors(uri), _recorded(run, stage, parent, client) as tracker:
        yield tracker


def end_children(tracker: Tracker) -> None:
    """End the runs nested in this one that are still said to be running: whatever they were of is gone."""
    client, run_id = tracker.client, tracker.run_id
    experiment = client.get_run(run_id).info.experiment_id
    of_this = f"tags.`{_PARENT}` = '{run_id}' and attributes.status = 'RUNNING'"
    while found := client.search_runs([experiment], of_this):
        for child in found:
            client.set_terminated(child.info.run_id, "KILLED")


@contextmanager
def _recorded(run: Run, stage: str, parent: str, client: MlflowClient) -> Iterator[Tracker]:
    run_id = _resumed(run, stage, client) or _created(run, stage, parent, client)
    tracker = Tracker(client, run_id, set(client.get_run(run_id).data.params))
    tracker.params(flat(run.config.model_dump(mode="json")))
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / "config.yaml"
        resolved.write_text(run.config.to_yaml())
        tracker.artifact(resolved)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def tracking_uri(run: Run) -> str:
    """`tracking.uri`, or SQLite under the run folder. Raises InputError on object storage."""
    if run.config.tracking.uri:
        return run.config.tracking.uri
    if not run.folder.is_local:
        raise InputError(
            f"the run folder {run.folder} is not on a local file system, where MLflow's database could "
            "lie: set tracking.uri to an MLflow server (http://… or a database URL)"
        )
    return f"sqlite:///{run.folder.local('mlflow/mlflow.db')}"


def open_client(uri: str) -> MlflowClient:
    """A client of a tracking server and its registry; a SQLite file that is not there is made.

    Raises InputError where the server does not answer in time.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Standard output belongs to the results of the stages.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server that is not there is told to the user in seconds, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what it logs as errors it raises too
    database = sqlite_file(uri)
    with address_errors(uri):
        if database is not None:
            make_whole(database)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        try:
            within(_ANSWER_S, lambda: client.search_experiments(max_results=1))
        except TimeoutError as error:
            raise InputError(f"MLflow at {shown(uri)} (tracking.uri) gives {error}: {REACH}") from error
    return client


def try_writing(uri: str) -> bool:
    """Change nothing in the database of a URI, as by a write; whether that could be tried.

    No server can be asked so. Raises InputError where the database may not be written.
    """
    from sqlalchemy import NullPool, create_engine, text

    if uri.startswith("http"):
        return False
    with address_errors(uri), create_engine(uri, poolclass=NullPool).connect() as connection:
        connection.execute(text("UPDATE experiments SET name = name WHERE 1 = 0"))
        connection.rollback()
    return True


def client_of(run: Run) -> MlflowClient:
    """As `open_client`, of the server of a run; its own database follows a run folder that was moved."""
    uri = tracking_uri(run)
    database = None if run.config.tracking.uri else sqlite_file(uri)
    if database is not None:
        follow(database)
    return open_client(uri)


def open_existing(run: Run) -> MlflowClient | None:
    """As `client_of`; None where the run has no tracking server and no database of its own yet."""
    database = sqlite_file(tracking_uri(run))
    return None if database is not None and not database.exists() else client_of(run)


def _resumed(run: Run, stage: str, client: MlflowClient) -> str | None:
    """The id of the stage's earlier run on this server, set to running again."""
    from mlflow.exceptions import MlflowException

    name = f"mlflow/{stage}.json"
    if not run.folder.exists(name):
        return None
    record: dict[str, str] = json.loads(run.folder.read_text(name))
    if record["uri"] != run.config.tracking.uri:
        return None
    try:
        client.update_run(record["run_id"], status="RUNNING")
    except MlflowException:
        return None  # deleted on the server by somebody: a new one
    return record["run_id"]


def _created(run: Run, stage: str, parent: str, client: MlflowClient) -> str:
    experiment_id = _experiment(run, client)
    label = run.folder.uri.rstrip("/").rsplit("/", 1)[-1]
    tags = {"cropray.stage": stage, "cropray.run": run.folder.uri}
    if parent:
        tags[_PARENT] = parent
    info = client.create_run(experiment_id, tags=tags, run_name=f"{label}/{stage}").info
    record = {"uri": run.config.tracking.uri, "run_id": info.run_id}
    run.folder.write_text(f"mlflow/{stage}.json", json.dumps(record, indent=1) + "\n")
    return str(info.run_id)


def _experiment(run: Run, client: MlflowClient) -> str:
    """The id of the configured experiment, made where it is not there."""
    name = run.config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = sqlite_file(tracking_uri(run))
    beside = None if database is None else files_beside(database)
    return str(client.create_experiment(name, artifact_location=beside))


def metric_name(key: str) -> str:
    """As MLflow accepts it: classes and regions have names that a user chose, commas and all."""
    return _NOT_IN_NAMES.sub("_", key)

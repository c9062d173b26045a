"""The one place where a process joins or starts Ray, and what its workers need to find their inputs."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from cropray.config import Config, RayConfig
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.progress import is_verbose
from cropray.run import flat

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # native code writes to the terminal past all logging
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_WORKERS_READ = (
    "labels.class_map.path",
    "labels.land_cover.path",
    "labels.truth.path",
    "source.earthengine.service_account_key",
    "source.stac.s1.items",
    "source.stac.s2.items",
)
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves cluster.yaml on the head
_GROUP = "ray.io/node-group"  # Ray's label of nodes that `ray up` or KubeRay made; others have none
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")  # s3://, source:, and GDAL's NETCDF:; but no drive letter
_OF_URIS = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "memory", "run", "models")
_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job


@contextmanager
def ray_session(config: RayConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Use the running Ray (of a job, or at `ray.address`), else a local one that ends with the block.

    Nested use joins the outer session. A local Ray is a new one, so that no other user's Ray on this host is
    joined by chance. `dashboard` starts Ray's dashboard with it. Raises InputError if there is no Ray to use.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    _begin(config, dashboard=dashboard)
    # Until its end Ray prints pages about lost nodes and processes; stages report what matters.
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stderr if is_verbose() else nowhere):
        try:
            with sigterm_interrupts():
                yield
        finally:
            ray.shutdown()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt in the main thread.

    Enter it once Ray has started: Ray's own handler prints native stacks and aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _begin(config: RayConfig, *, dashboard: bool) -> None:
    import ray

    logs = {"log_to_driver": is_verbose(), "logging_level": "INFO" if is_verbose() else "ERROR"}
    address, options = address_of(config), dict[str, Any]()
    if not address:
        options = {
            "num_cpus": config.num_cpus,
            "resources": {name: n * config.concurrency for name, n in config.export_resources.items()},
            "include_dashboard": dashboard,
        }
    if dashboard and not address:
        options["runtime_env"] = {"worker_process_setup_hook": f"{__name__}.{keep_address.__name__}"}
    try:
        if address:
            _knock(address)
        with _native_messages_silenced():
            ray.init(address=address or "local", **options, **logs)
    except Exception as error:  # of many kinds, plain Exception among them
        ray.shutdown()
        raise no_ray(address, error) from error


def keep_address() -> None:
    """In a process of Ray, name its own Ray to code that would look for one and find several."""
    import ray

    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def no_ray(address: str, error: Exception) -> InputError:
    """What to tell a person when Ray raised `error`; `address` is empty if it was to start here."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not address:
        return InputError(
            f"Ray does not start on this machine ({reason}). Check memory and disk with cropray doctor, end "
            "other processes, or set ray.address to a Ray that runs."
        )
    remedy = "Check that the cluster is up (ray status on its head), and ray.address or RAY_ADDRESS."
    if "token" in str(error).lower() or type(error).__name__ == "AuthenticationError":
        remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file of the cluster's token."
    return InputError(f"cannot join the Ray at {address} ({reason}). {remedy}")


def _knock(address: str) -> None:
    """Raise ConnectionError at once if nothing listens; Ray itself would try for half a minute."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers there: {error}") from error


@contextmanager
def _native_messages_silenced() -> Iterator[None]:
    """Hide what Ray's native code writes about its own log level; errors still raise."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def address_of(config: RayConfig) -> str:
    """The address of the Ray that stages join; empty if they start their own."""
    return config.address or os.environ.get("RAY_ADDRESS", "")


def growth(config: Mapping[str, Any]) -> dict[str, float]:
    """The resources of a cluster configuration with its head and all workers that it allows."""
    limit = config.get("max_workers", 0)
    total: dict[str, float] = {}
    for name, node in config.get("available_node_types", {}).items():
        count = 1 if name == config["head_node_type"] else min(node.get("max_workers", limit), limit)
        for resource, amount in node.get("resources", {}).items():
            total[resource] = total.get(resource, 0.0) + count * amount
    return total


def growth_here() -> dict[str, float]:
    """`growth` of the cluster whose head this machine is; empty if there is none."""
    file = _BOOTSTRAP.expanduser()
    return growth(yaml.safe_load(file.read_text())) if file.is_file() else {}


def reach(config: RayConfig) -> dict[str, float] | None:
    """Current or autoscaled maximum resources; None if unknown."""
    import ray

    have: dict[str, float] = ray.cluster_resources()
    if not address_of(config):
        return have
    if most := growth_here():
        return {name: max(have.get(name, 0), most.get(name, 0)) for name in {*have, *most}}
    return None if any(_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"]) else have


def missing_resources(wanted: Mapping[str, float], config: RayConfig) -> str:
    """Which resources of a process no node has, and what to do; empty if a node has all of them."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= n for name, n in wanted.items()) for node in nodes):
        return ""
    scarce = [name for name, n in wanted.items() if all(node.get(name, 0) < n for node in nodes)]
    asked = ", ".join(f"{name} {wanted[name]:g}" for name in scarce or wanted)
    has = ", ".join(f"{name} {sum(node.get(name, 0) for node in nodes):g}" for name in wanted)
    most = reach(config)
    remedy = "add a node that has it (ray start --resources), or change ray.export_resources"
    if most is None or all(most.get(name, 0) >= n for name, n in wanted.items()):
        remedy = "the autoscaler may add one"
    return f"no node has {asked}, which each process needs (all nodes together have {has}); {remedy}"


def for_workers(config: Config) -> Config:
    """A copy with absolute paths of the files that workers read, for they run in another directory.

    Records and recipes keep the paths as written, so that they do not depend on where a checkout lies.
    """
    written = flat(config.model_dump(mode="json"))
    paths = {key: written[key] for key in _WORKERS_READ if written.get(key)}
    return updated(config, {key: _absolute(path) for key, path in paths.items()})


def _absolute(path: str) -> str:
    return path if _SCHEME.match(path) else str(Path(path).expanduser().absolute())


def check_run_folder(reference: str) -> str:
    """The run folder as given. Raises InputError if it is a web address or no URI that it looks like.

    Also if it lies in a job's working directory, where relative paths lie: Ray deletes that after the job.
    """
    scheme, rest = reference.split(":", 1) if ":" in reference else ("", reference)
    if scheme in ("http", "https", "ftp"):
        raise InputError(
            f"--run {reference}: nothing can be written to {scheme}://. Give a path, or the URI of a bucket "
            "such as s3://bucket/run."
        )
    if scheme in _OF_URIS and not rest.startswith("//"):
        raise InputError(
            f"--run {reference} is neither a path nor a URI. Write {scheme}://…, or ./{reference} for a "
            "folder of that name."
        )
    path = os.path.expanduser(reference)
    if _OF_A_JOB in os.environ and "://" not in path and not os.path.isabs(path):
        raise InputError(
            f"--run {reference} is relative to the job's working directory, which Ray deletes after the job: "
            "give an absolute path that every node sees, or a URI (s3://…, gs://…)"
        )
    return reference

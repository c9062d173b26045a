"""One place where a process joins or starts Ray, and what its workers need to find their inputs."""

from __future__ import annotations

import os
import re
import signal
import socket
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


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt in the main thread.

    To be entered after Ray has started, whose own handler prints native stacks and aborts the
    process, so that nothing is tidied up.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets no other set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray's native code writes to the terminal past all logging, as of actors' arguments that it keeps.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
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
# Where `ray up` leaves cluster.yaml on the head: the bounds within which the cluster grows.
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
_GROUP = "ray.io/node-group"  # Ray's label of nodes that `ray up` or KubeRay made; others have none
_TELLS = "cropray.cluster.keep_address"
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")  # s3://, source:, and GDAL's NETCDF:; but no drive letter


class NoRayError(InputError):
    """The Ray that stages would use cannot be joined or started: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}: {remedy}")
        self.found, self.remedy = found, remedy


@contextmanager
def ray_session(config: RayConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Use the Ray that is there (a job's, or `ray.address`), else a local one ended with the block.

    Nested use joins the outer session. Never attaches to another user's Ray on the same host by
    chance: without an address a new local one is started, with Ray's `dashboard` where a stage needs it,
    which its processes then find beside other Rays of this machine. Raises NoRayError.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    _begin(config, dashboard=dashboard)
    # Ray prints pages about lost nodes and processes, until its end; stages say themselves what matters.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            with sigterm_interrupts():
                yield
        finally:
            ray.shutdown()


def _begin(config: RayConfig, *, dashboard: bool) -> None:
    import ray

    logs: dict[str, Any] = {
        "log_to_driver": is_verbose(),
        "logging_level": "INFO" if is_verbose() else "ERROR",
    }
    address = address_of(config)
    try:
        if address:
            _knock(address)
        with _native_messages_silenced():
            if address:
                ray.init(address=address, **logs)
            else:
                ray.init(
                    address="local",
                    num_cpus=config.num_cpus,
                    resources={name: n * config.concurrency for name, n in config.export_resources.items()},
                    include_dashboard=dashboard,
                    runtime_env={"worker_process_setup_hook": _TELLS} if dashboard else None,
                    **logs,
                )
    except Exception as error:  # of many kinds, plain Exception among them; all say why there is no Ray
        ray.shutdown()
        raise no_ray(address, error) from error


def no_ray(address: str, error: Exception) -> NoRayError:
    """What is told where Ray said `error`; without an address it was to be started here."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not address:
        return NoRayError(
            f"Ray does not start on this machine ({said})",
            "cropray doctor checks memory and disk; end other processes, or give the address of a Ray that "
            "runs (ray.address)",
        )
    remedy = "is the cluster up (ray status on its head), and ray.address or RAY_ADDRESS right?"
    if "token" in str(error).lower() or type(error).__name__ == "AuthenticationError":
        remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file of the cluster's token"
    return NoRayError(f"cannot join the Ray at {address} ({said})", remedy)


def _knock(address: str) -> None:
    """Raise OSError at once where nothing listens: Ray itself would try for half a minute."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers there: {error}") from error


def address_of(config: RayConfig) -> str:
    """Where stages would find Ray; empty where they would start their own."""
    return config.address or os.environ.get("RAY_ADDRESS", "")


def growth(config: Mapping[str, Any]) -> dict[str, float]:
    """What a cluster configuration has when all its nodes are there, the head among them, at most."""
    limit = config.get("max_workers", 0)
    total: dict[str, float] = {}
    for name, node in config.get("available_node_types", {}).items():
        count = 1 if name == config["head_node_type"] else min(node.get("max_workers", limit), limit)
        for resource, amount in node.get("resources", {}).items():
            total[resource] = total.get(resource, 0.0) + count * amount
    return total


def growth_here() -> dict[str, float]:
    """`growth` of the cluster whose head this machine is; empty where it is of none."""
    file = _BOOTSTRAP.expanduser()
    return growth(yaml.safe_load(file.read_text())) if file.is_file() else {}


def reach(config: RayConfig) -> dict[str, float] | None:
    """What Ray has, or can come to have where nodes are added by need; None where nobody can tell how much.

    A Ray of one's own, and one made by `ray start` on each node, has what it has.
    """
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
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        return ""
    scarce = {name: n for name, n in wanted.items() if all(node.get(name, 0) < n for node in nodes)}
    asked, has = (
        ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
        for resources in (
            scarce or wanted,
            {name: sum(node.get(name, 0) for node in nodes) for name in wanted},
        )
    )
    most = reach(config)
    if most is None or all(most.get(name, 0) >= amount for name, amount in wanted.items()):
        remedy = "the autoscaler may add one"
    else:
        remedy = "add a node that has it (ray start --resources), or change ray.export_resources"
    return f"no node has {asked}, which each process needs (all nodes together have {has}); {remedy}"


def keep_address() -> None:
    """In a process of Ray's: name its own Ray to what would else look for one, and fail to find several."""
    import ray

    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def for_workers(config: Config) -> Config:
    """A copy in which the files that workers read have absolute paths: they run in another directory.

    Relative paths are taken from this process's own directory. For workers only: the records of a
    run and the hash of its recipe keep the paths as written, so that neither depends on where a
    checkout lies.
    """
    written = flat(config.model_dump(mode="json"))
    paths = {key: written[key] for key in _WORKERS_READ if written.get(key)}
    return updated(config, {key: _absolute(path) for key, path in paths.items()})


def _absolute(path: str) -> str:
    return path if _SCHEME.match(path) else str(Path(path).expanduser().absolute())


@contextmanager
def _native_messages_silenced() -> Iterator[None]:
    """Ray's native code says, whatever the level is, that a level was set; errors still raise."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job


def kept(reference: str) -> str:
    """The run folder as given. Raises InputError for one that would go with the job.

    A job runs in a copy of its working directory, which Ray deletes: a relative path lies in it.
    """
    if (
        _OF_A_JOB in os.environ
        and "://" not in reference
        and not os.path.isabs(os.path.expanduser(reference))
    ):
        raise InputError(
            f"--run {reference} is relative to the job's working directory, which Ray deletes after the job: "
            "give an absolute path that every node sees, or a URI (s3://…, gs://…)"
        )
    return reference

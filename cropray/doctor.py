"""`cropray doctor`: whether the stages can run here and on the nodes of Ray, and how to fix what is wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from cropray import __version__
from cropray.cluster import address_of, ray_session, reach
from cropray.config import Config
from cropray.config.imagery import EarthEngineConfig
from cropray.config.training import TrainConfig
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder, mounted_as, within
from cropray.training.lock import LOCKS_OF_ONE_MACHINE
from cropray.training.monitor import ResourceRequest, shortage, worker_resources

Verdict = Literal["ok", "warning", "bad"]

_ANSWER_S = 30.0  # a store's own client goes on trying for a quarter of an hour


@dataclass(frozen=True)
class Finding:
    """One check. `remedy` says what to do; it is empty where nothing is wrong or `found` says it too."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def format_findings(findings: Sequence[Finding]) -> str:
    """A line per finding with its remedy below, and a line that sums up."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<7}  {finding.check:<12}  {finding.found}")
        lines += [f"{'':<23}-> {finding.remedy}"] * bool(finding.remedy)
    counts = [sum(finding.verdict == verdict for finding in findings) for verdict in ("bad", "warning")]
    return "\n".join([*lines, "", "{} checks: {} bad, {} warnings".format(len(findings), *counts)]) + "\n"


def examine(config: Config, run: str, *, online: bool = False) -> Iterator[Finding]:
    """Check what the stages of `config` need in the run folder `run` (empty: none yet). Leaves nothing."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    folder = Folder(run) if run else None
    yield judge_torch(torch.__version__, torch.version.cuda, gpus, Path("/dev/nvidia0").exists())
    yield judge_memory(_available_memory())
    for place in {Path(tempfile.gettempdir()), *([_existing(folder)] if folder and folder.is_local else [])}:
        yield judge_disk(shutil.disk_usage(place).free, shutil.disk_usage(place).total, place)
    with storage_probe(folder) as (storage, is_readable):
        yield storage
        if address_of(config.ray):
            yield from examine_cluster(config, is_readable)
        else:  # each stage starts a Ray of its own, which offers any custom resource
            own = {"CPU": config.ray.num_cpus or os.cpu_count() or 1, "GPU": gpus}
            yield judge_resources(own, own | config.ray.export_resources, config)
    yield examine_tracking(config, folder)
    yield examine_earth_engine(config, online=online)


def judge_torch(version: str, cuda: str | None, gpus: int, has_device: bool) -> Finding:
    """`cuda` is the release of the build, `gpus` what torch can use, `has_device` what the driver shows."""
    found = f"torch {version} for {f'CUDA {cuda}' if cuda else 'CPUs'}, {gpus} GPUs"
    if gpus or not has_device:
        return Finding("torch", "ok", found)
    old = "The driver may be too old (see nvidia-smi), or CUDA_VISIBLE_DEVICES hides the GPU."
    remedy = old if cuda else "Install its CUDA build: https://pytorch.org/get-started/locally"
    return Finding("torch", "bad", f"{found}, but this machine has one", remedy)


def judge_memory(available: float) -> Finding:
    """Bytes that processes may still take; with 2 GB the demonstration does not finish."""
    verdict: Verdict = "bad" if available < 2e9 else "warning" if available < 6e9 else "ok"
    remedy = "" if verdict == "ok" else "Close other programs, or use a machine with 8 GB or more."
    return Finding("memory", verdict, f"{available / 1e9:.1f} GB available", remedy)


def judge_disk(free: float, total: float, place: Path) -> Finding:
    """Bytes. Ray stores nothing on a disk that is over 95 % full."""
    verdict: Verdict = "bad" if free < max(1e9, 0.05 * total) else "warning" if free < 10e9 else "ok"
    remedy = "" if verdict == "ok" else "Free some space: the demonstration takes 1 GB, an export 50 GB."
    return Finding("disk", verdict, f"{free / 1e9:.1f} of {total / 1e9:.0f} GB free at {place}", remedy)


def judge_nodes(here: str, nodes: Mapping[str, str]) -> Finding:
    """Versions here; and of each node, or what is wrong there."""
    other = [f"{name}: {versions}" for name, versions in nodes.items() if versions != here]
    if not other:
        return Finding("nodes", "ok", f"{len(nodes)} with {here}")
    remedy = "Give all nodes the same Python, requirements and run folder (a URI or a network mount)."
    return Finding("nodes", "bad", f"{'; '.join(other)}; here: {here}", remedy)


def judge_resources(have: Mapping[str, float], most: Mapping[str, float] | None, config: Config) -> Finding:
    """What Ray has now and when all nodes are added (None: unknown), against what the stages request."""
    found = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    if most is None:
        return Finding("resources", "ok", f"{found}; more nodes may be added")
    if most != have:
        found += f"; at most {most.get('CPU', 0):g} CPUs, {most.get('GPU', 0):g} GPUs"
    for name, amount in config.ray.export_resources.items():
        if most.get(name, 0) < amount:
            found += f"; no node offers ray.export_resources.{name} = {amount:g}"
            return Finding("resources", "bad", found, f"Start nodes with --resources '{{\"{name}\": 4}}'.")
    verdict = Finding("resources", "ok", found)
    for stage in ("finetune", "pretrain"):
        settings: TrainConfig = getattr(config, stage)
        workers = (settings.min_workers, settings.max_workers)
        if short := shortage(stage, ResourceRequest(workers, worker_resources(settings, have)), most):
            return Finding("resources", "bad", f"{found}; {short[0]}", short[1])
        count, later = settings.min_workers, most.get("GPU", 0)
        if settings.gpus is None and later and have.get("GPU", 0) < count:
            cpus = f"{found}; started now, the {count} workers of {stage} run on CPUs"
            if later < count:
                return Finding("resources", "bad", cpus, f"Set {stage}.workers to {later:g}, or add GPUs.")
            verdict = Finding("resources", "warning", cpus, f"Set {stage}.gpus to 1 to wait for GPUs.")
    return verdict


@contextmanager
def storage_probe(folder: Folder | None) -> Iterator[tuple[Finding, Callable[[], bool]]]:
    """Write a small file to a run folder for the block. The function says on any node if it is there."""
    if folder is None:
        yield Finding("storage", "ok", "not tried: no --run folder was given"), lambda: True
        return
    name, data = f".cropray-doctor-{uuid.uuid4().hex}", os.urandom(1024)
    place = Folder(str(_existing(folder))) if folder.is_local else folder
    try:
        within(_ANSWER_S, lambda: place.write_bytes(name, data))
    except (OSError, InputError) as error:
        yield Finding("storage", "bad", f"cannot write {folder}: {_line(error)}"), lambda: True
        return
    try:
        kind = mounted_as(place.local()) if place.is_local else ""
        found = Finding("storage", "ok", f"{folder} can be written{f' ({kind})' if kind else ''}")
        if kind.startswith(("nfs", *LOCKS_OF_ONE_MACHINE)):
            advice = "It is no local disk: set tracking.uri to a server, since SQLite needs one."
            found = Finding("storage", "warning", found.found, advice)
        yield found, lambda: place.exists(name) and place.read_bytes(name) == data
    finally:
        place.delete(name)


def examine_cluster(config: Config, is_readable: Callable[[], bool]) -> Iterator[Finding]:
    """The Ray that stages would join: its nodes, and whether it has what the settings ask for."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look() -> str:
        return versions() if is_readable() else "cannot read the run folder"

    def ask(node: Mapping[str, Any]) -> str:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(look).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        try:
            return str(ray.get(task.remote(), timeout=2 * _ANSWER_S))
        except ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]

    try:
        with ray_session(config.ray):
            nodes = {node["NodeManagerAddress"]: ask(node) for node in ray.nodes() if node["Alive"]}
            yield Finding("ray", "ok", f"joined {address_of(config.ray)}")
            yield judge_nodes(versions(), nodes)
            yield judge_resources(ray.cluster_resources(), reach(config.ray), config)
    except (OSError, RuntimeError, InputError, ray.exceptions.RayError) as error:
        yield Finding("ray", "bad", _line(error))


def versions() -> str:
    import ray

    return f"Python {platform.python_version()}, ray {ray.__version__}, cropray {__version__}"


def examine_tracking(config: Config, folder: Folder | None) -> Finding:
    """MLflow is read, and a database is tried for writing without a change. None is created."""
    from cropray.tracking.connection import open_client, sqlite_file, tracking_uri, try_writing

    if not config.tracking.uri and folder is None:
        return Finding("tracking", "ok", "SQLite in the run folder (tracking.uri is not set)")
    try:
        uri = config.tracking.uri or tracking_uri(Run(folder or Folder("."), config))
        database = sqlite_file(uri)
        if database is not None and not database.exists():
            return Finding("tracking", "ok", f"SQLite will be created at {database}")
        open_client(uri)
        access = "can be read and written" if try_writing(uri) else "can be read; writing was not tried"
    except InputError as error:
        return Finding("tracking", "bad", _line(error))
    return Finding("tracking", "ok", f"{uri} {access}")


def examine_earth_engine(config: Config, *, online: bool) -> Finding:
    """The account, if Earth Engine is the source; with `online` the service computes a pixel."""
    from cropray.grid import Grid
    from cropray.imagery.earthengine.source import EarthEngineSource
    from cropray.types import ImageRequest, Period

    settings = config.source.earthengine
    if config.source.kind != "earthengine" and not online:
        return Finding("earth engine", "ok", f"not needed: source.kind is {config.source.kind}")
    try:
        found = earth_engine_account(settings)
        if online:
            grid = Grid("EPSG:32631", 600_000.0, 5_600_000.0, 10.0, height=1, width=1)
            request = ImageRequest(grid, grid, (Period(date(2022, 6, 1), date(2022, 7, 1)),), name="doctor")
            EarthEngineSource(settings.model_copy(update={"attempts": 1, "deadline_s": 60.0})).preflight(
                request
            )
            found += "; computed a pixel"
    except InputError as error:
        return Finding("earth engine", "bad", _line(error))
    return Finding("earth engine", "ok", found)


def earth_engine_account(config: EarthEngineConfig) -> str:
    """Credentials and project of this machine; nothing is sent. Raises InputError if one is missing."""
    from cropray.imagery.earthengine.session import NO_CREDENTIALS, NO_PROJECT, credentials_of, project_of

    credentials = credentials_of(config)
    project = project_of(config, credentials)
    if isinstance(credentials, str):  # what `earthengine authenticate` or gcloud stored, else the machine's
        gcloud = os.environ.get("CLOUDSDK_CONFIG", "~/.config/gcloud")
        places = ("~/.config/earthengine/credentials", f"{gcloud}/application_default_credentials.json")
        who = next((place for place in places if "refresh_token" in _text(place)), "")
        if who:
            known = json.loads(_text(who))
            project = project or known.get("project") or known.get("quota_project_id") or ""
        elif "Google" in _text("/sys/class/dmi/id/product_name"):
            who = "the service account of this machine"
    else:
        who = getattr(credentials, "service_account_email", type(credentials).__name__)
    if not who:
        raise InputError(NO_CREDENTIALS)
    if not project:
        raise InputError(f"{NO_PROJECT} (credentials: {who})")
    return f"credentials: {who}; project: {project}"


def _available_memory() -> float:
    """Bytes that are available, by the kernel or by the container's limit, whichever is less."""
    rows = (line.split() for line in _text("/proc/meminfo").splitlines())
    available = next((float(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"), 0.0)
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return min(available, float(limit) - float(used)) if limit.isdigit() else available


def _text(path: str) -> str:
    file = Path(path).expanduser()
    return file.read_text() if file.exists() else ""


def _existing(folder: Folder) -> Path:
    """A local folder, or where it is missing the nearest one above it."""
    return next(place for place in (folder.local(), *folder.local().parents) if place.is_dir())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

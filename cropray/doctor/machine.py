"""The machine: interpreter, packages, torch and CUDA, memory, disk, and what a job would send."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from cropray.doctor.finding import Finding, bad, ok, warning

OLDEST_PYTHON = (3, 11)
# Below these the demonstration did not finish, or would not leave room for a second process.
MEMORY_BAD, MEMORY_LOW = 2e9, 6e9
DISK_BAD, DISK_LOW = 1e9, 10e9
SHARED_MEMORY_LOW = 1e9  # a container's usual 64 MB; Ray then keeps its objects on the disk
WORKING_DIR_LOW = 50e6

_SHARED = Path("/dev", "shm")


def judge_python(version: tuple[int, int]) -> Finding:
    found = f"Python {version[0]}.{version[1]}"
    if version < OLDEST_PYTHON:
        wanted = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}"
        return bad("python", found, f"install Python {wanted} or newer and make the environment anew with it")
    return ok("python", found)


def judge_packages(required: Mapping[str, str], installed: Mapping[str, str]) -> Finding:
    """`required` are ranges by name (">=2.60"), `installed` versions of those that are there."""
    from packaging.specifiers import SpecifierSet

    missing = sorted(name for name in required if name not in installed)
    outside = sorted(
        f"{name} {installed[name]} (wanted {wanted})"
        for name, wanted in required.items()
        if name in installed and not SpecifierSet(wanted).contains(installed[name], prereleases=True)
    )
    wrong = [f"missing: {', '.join(missing)}"] if missing else []
    wrong += [f"of another version: {', '.join(outside)}"] if outside else []
    if wrong:
        return bad("packages", "; ".join(wrong), "pip install -c constraints.txt -e . in the checkout")
    shown = ", ".join(f"{name} {installed[name]}" for name in ("ray", "torch", "mlflow") if name in installed)
    return ok("packages", f"{len(required)} requirements are met ({shown})")


def judge_torch(version: str, built_for: str | None, gpus: int, has_device: bool) -> Finding:
    """`built_for` is the CUDA release of the build, `gpus` what torch can use; a driver shows devices."""
    build = f"torch {version} " + (f"for CUDA {built_for}" if built_for else "for CPUs")
    if gpus:
        return ok("torch", f"{build}, {gpus} GPU{'s' if gpus > 1 else ''}")
    if has_device and built_for is None:
        return bad(
            "torch",
            f"{build}, but this machine has an NVIDIA GPU",
            "install the CUDA build of the same version: https://pytorch.org/get-started/locally",
        )
    if has_device:
        return bad(
            "torch",
            f"{build}, but it cannot use the GPU of this machine",
            "the driver may be too old for that CUDA (nvidia-smi shows which it supports), or "
            "CUDA_VISIBLE_DEVICES hides the GPU",
        )
    return ok("torch", f"{build}, no GPU here: training runs on CPUs")


def judge_memory(available: float, shared: float) -> Finding:
    """Bytes that processes may still take, and the size of /dev/shm, where Ray keeps objects."""
    found = f"{available / 1e9:.1f} GB available, {shared / 1e9:.1f} GB of shared memory"
    if available < MEMORY_BAD:
        return bad("memory", found, "end other processes, or take a machine with 8 GB or more")
    if available < MEMORY_LOW:
        return warning("memory", found, "the demonstration wants 8 GB; end other processes")
    if shared < SHARED_MEMORY_LOW:
        return warning(
            "memory",
            found,
            "give the container more: --shm-size=4g, or a medium: Memory volume at /dev/shm",
        )
    return ok("memory", found)


def judge_disk(free: float, total: float, place: str) -> Finding:
    found = f"{free / 1e9:.1f} of {total / 1e9:.0f} GB free at {place}"
    if free < DISK_BAD:
        return bad("disk", found, "make room there, or give another --run folder")
    if free < 0.05 * total:
        return bad("disk", found, "Ray stores nothing on a disk that is over 95 % full: make room there")
    if free < DISK_LOW:
        return warning("disk", found, "a European export takes about 50 GB, the demonstration about 1 GB")
    return ok("disk", found)


def judge_working_dir(files: Mapping[str, int], limit: int) -> Finding:
    """`files` are bytes by path of what a job would send; `limit` is that of `ray job submit`, zipped."""
    total = sum(files.values())
    found = f"a job from here sends {len(files)} files, {total / 1e6:.1f} MB"
    largest = ", ".join(
        f"{path} ({size / 1e6:.0f} MB)"
        for path, size in sorted(files.items(), key=lambda item: -item[1])[:3]
        if size > 1e6
    )
    remedy = (
        f"name data and results in .rayignore, or keep them elsewhere; the largest: {largest or 'small ones'}"
    )
    if not files:
        return bad("working directory", found, ".rayignore excludes everything; a line .* excludes . itself")
    if total >= limit:
        return bad("working directory", f"{found}; `ray job submit` takes {limit / 2**20:.0f} MiB", remedy)
    if total >= WORKING_DIR_LOW:
        return warning("working directory", found, remedy)
    return ok("working directory", found)


def examine_machine(run_folder: Path | None) -> Iterator[Finding]:
    """All of the above for this process; `run_folder` where it is a local one."""
    yield judge_python(sys.version_info[:2])
    yield _packages()
    yield _torch()
    yield judge_memory(_memory(), shutil.disk_usage(_SHARED).total if _SHARED.is_dir() else 0.0)
    yield _disk(run_folder)


def working_dir(folder: Path) -> Finding:
    """Read as Ray reads it: by .gitignore, .rayignore and what it leaves out by itself."""
    if not (folder / "jobs").is_dir():
        return ok("working directory", f"{folder} is no checkout: jobs are submitted from one")
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    files: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(folder))] = path.stat().st_size

    quiet = logging.getLogger(__name__)
    excluded = packaging._get_excludes(folder, get_runtime_env_default_excludes())
    packaging._dir_travel(folder, [excluded], note, include_gitignore=True, logger=quiet)
    return judge_working_dir(files, DASHBOARD_CLIENT_MAX_SIZE)


def _packages() -> Finding:
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("cropray") or []
    except metadata.PackageNotFoundError:
        return ok("packages", "cropray comes with the working directory: its requirements are not compared")
    wanted = [Requirement(line) for line in lines]
    required = {one.name: str(one.specifier) for one in wanted if one.marker is None or one.marker.evaluate()}
    installed = {}
    for name in required:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return judge_packages(required, installed)


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:  # judged as a package too; here for the reason, such as a missing library
        return bad("torch", f"torch cannot be imported: {error}", "install it anew")
    return judge_torch(torch.__version__, torch.version.cuda, gpus_here(), Path("/dev/nvidia0").exists())


def gpus_here() -> int:
    """GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _memory() -> float:
    """Bytes that are available, by the kernel or by the container's limit, whichever is less."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next((float(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"), 0.0)
    group = Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
    if limit == "max":
        return available
    return min(available, float(limit) - float((group / "memory.current").read_text()))


def _disk(run_folder: Path | None) -> Finding:
    """The fuller of the disks of the run folder and of temporary files, where Ray spills objects."""
    places = [Path(tempfile.gettempdir())]
    if run_folder is not None:
        places.append(existing(run_folder))
    usages = [(shutil.disk_usage(place), place) for place in places]
    usage, place = min(usages, key=lambda pair: pair[0].free)
    return judge_disk(usage.free, usage.total, os.fspath(place))


def existing(folder: Path) -> Path:
    """The folder, or where it is not there the nearest one above it."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())

"""`cropray doctor`: every check in turn, each with what mends it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from cropray.cluster import address_of
from cropray.config import Config
from cropray.doctor.account import account_of, ask_earth_engine, judge_earth_engine
from cropray.doctor.cluster import (
    Cluster,
    judge_alone,
    judge_nodes,
    judge_resources,
    look,
    trainings_of,
    versions_here,
)
from cropray.doctor.finding import Finding, ok
from cropray.doctor.machine import examine_machine, gpus_here, working_dir
from cropray.doctor.services import (
    Probe,
    judge_clock,
    judge_storage,
    storage_failed,
    storage_probe,
    tracking,
)
from cropray.errors import InputError
from cropray.storage import Folder


def examine(config: Config, run: str, *, online: bool = False) -> Iterator[Finding]:
    """Check what the stages of `config` will need, on this machine and on the nodes of its Ray.

    `run` is the run folder by path or URI, empty where none is known yet: then storage is not tried.
    Earth Engine is asked for a pixel only if `online`. Nothing is left behind.
    """
    folder, failed = _opened(run)
    yield from examine_machine(folder.local() if folder is not None and folder.is_local else None)
    yield working_dir(Path.cwd())
    yield from _cluster_and_storage(config, folder)
    if failed is not None:
        yield failed
    yield tracking(config, folder)
    wanted = config.source.kind == "earthengine"
    account = judge_earth_engine(account_of(config.source.earthengine), wanted=wanted)
    yield account
    if online and account.verdict == "ok":
        yield ask_earth_engine(config)


def _opened(run: str) -> tuple[Folder | None, Finding | None]:
    """The run folder where it can be opened: some stores are asked for their region at once."""
    if not run:
        return None, None
    folder = Folder(run)
    try:
        _ = folder.filesystem
    except (OSError, InputError) as error:
        return None, storage_failed(folder, error)
    return folder, None


def _cluster_and_storage(config: Config, folder: Folder | None) -> Iterator[Finding]:
    """Together: the nodes are asked for the file that is written here."""
    clocks: dict[str, float] = {}
    with ExitStack() as stack:
        probe: Probe | None = None
        failed: Finding | None = None
        if folder is not None:
            try:
                probe = stack.enter_context(storage_probe(folder))
            except (OSError, InputError) as error:
                failed = storage_failed(folder, error)
        cluster = look(config.ray, probe) if address_of(config.ray) else None
        if cluster is None:
            yield judge_alone(os.cpu_count() or 1, gpus_here(), trainings_of(config))
        elif isinstance(cluster, Finding):
            yield cluster
        else:
            yield ok("ray", f"joined {cluster.address}")
            yield judge_nodes(cluster.nodes, versions_here())
            yield judge_resources(
                cluster.resources, cluster.reach, trainings_of(config), config.ray.export_resources
            )
            clocks |= {node.name: node.clock_ahead_s for node in cluster.nodes if not node.problem}
        if failed is not None:
            yield failed
        elif probe is not None:
            nodes = cluster.nodes if isinstance(cluster, Cluster) else ()
            without = [node.name for node in nodes if not node.problem and not node.reads_probe]
            yield judge_storage(probe, probe.folder.read_bytes(probe.name), without)
            clocks["the storage"] = probe.clock_ahead_s
    yield judge_clock(clocks)

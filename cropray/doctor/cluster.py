"""The Ray that stages would use: its nodes, and whether it has what the settings ask for."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cropray import __version__
from cropray.cluster import NoRayError, address_of, no_ray, ray_session, reach
from cropray.config import Config, RayConfig
from cropray.config.training import TrainConfig
from cropray.doctor.finding import Finding, bad, ok, warning
from cropray.doctor.services import Probe, clock_ahead
from cropray.training.resources import Asked, each_worker, shortage

Resources = Mapping[str, float]

TRAININGS = ("pretrain", "finetune")
_ANSWER_S = 60.0


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself; `problem` where a task of ours cannot run there."""

    name: str
    versions: Mapping[str, str]
    clock_ahead_s: float = 0.0
    reads_probe: bool = True
    problem: str = ""


@dataclass(frozen=True)
class Cluster:
    """A Ray that answers: what it has now, what it can come to have (None: nobody can tell), its nodes."""

    address: str
    resources: Resources
    reach: Resources | None
    nodes: Sequence[NodeFacts]


def judge_nodes(nodes: Sequence[NodeFacts], versions: Mapping[str, str]) -> Finding:
    """Python, Ray and cropray must be the same on all nodes as here."""
    broken = [f"{node.name}: {node.problem}" for node in nodes if node.problem]
    if broken:
        return bad(
            "nodes",
            "; ".join(broken),
            "install the same requirements on every node (setup_commands of cluster.yaml, or the image), and "
            "submit with --working-dir .",
        )
    other = [
        f"{node.name} has {name} {node.versions.get(name, 'none')}, here is {version}"
        for node in nodes
        for name, version in versions.items()
        if node.versions.get(name) != version
    ]
    if other:
        return bad("nodes", "; ".join(other), "install by constraints.txt everywhere, with the same Python")
    return ok("nodes", f"{len(nodes)} of one kind: {', '.join(f'{k} {v}' for k, v in versions.items())}")


def judge_resources(
    have: Resources, most: Resources | None, trainings: Mapping[str, TrainConfig], export: Resources
) -> Finding:
    """Against what trainings ask for, and against the custom resources of a process of an export.

    `most` is what the cluster can come to have; None where nobody can tell.
    """
    found = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    if most is None:
        return ok("resources", f"{found}; nodes are added, and only the cluster knows how many")
    if any(most[name] > have.get(name, 0) for name in most):
        found += f"; up to {most.get('CPU', 0):g} CPUs, {most.get('GPU', 0):g} GPUs when asked for"
    for name, each in export.items():
        if most.get(name, 0) < each:
            return bad(
                "resources",
                f"{found}; ray.export_resources asks for {name} {each:g}, and no node offers it",
                f"ray start --resources '{{\"{name}\": 4}}' on the nodes that shall export",
            )
    for stage, settings in trainings.items():
        asked = Asked((settings.min_workers, settings.max_workers), each_worker(settings, have), grows=False)
        if short := shortage(stage, asked, most):
            return bad("resources", f"{found}; {short[0]}", short[1])
    unsaid = [
        finding
        for stage, settings in trainings.items()
        if settings.gpus is None and (finding := _gpus_unsaid(stage, settings, found, have, most))
    ]
    fine = ok("resources", f"{found}; the settings ask for {_asked(trainings)}")
    return next((one for one in unsaid if one.verdict == "bad"), unsaid[0] if unsaid else fine)


def _gpus_unsaid(
    stage: str, settings: TrainConfig, found: str, have: Resources, most: Resources
) -> Finding | None:
    """Of a training that takes a GPU a worker where there are enough, else none."""
    count, now, later = settings.min_workers, have.get("GPU", 0), most.get("GPU", 0)
    found = f"{found}; {stage}.workers is {count}"
    if 0 < later < count:
        return bad(
            "resources",
            f"{found}, so that not every worker gets a GPU, and with {stage}.gpus unset none does",
            f"set {stage}.workers to {later:g}, or give the cluster {count} GPUs",
        )
    if now < count <= later:
        return warning(
            "resources",
            f"{found}, and their GPUs are not there yet",
            f"set {stage}.gpus to 1, which asks for them; unset, it takes GPUs that are there, else CPUs",
        )
    return None


def trainings_of(config: Config) -> dict[str, TrainConfig]:
    return {stage: getattr(config, stage) for stage in TRAININGS}


def versions_here() -> dict[str, str]:
    import ray

    # Ray asks for the same Python up to the third number.
    return {"Python": platform.python_version(), "ray": ray.__version__, "cropray": __version__}


def look(config: RayConfig, probe: Probe | None) -> Cluster | Finding:
    """Join Ray and ask every node. A finding where it cannot be joined."""
    import ray
    from ray.exceptions import RayError

    address = address_of(config)
    try:
        with ray_session(config):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            facts = [_ask(node, probe) for node in nodes]
            return Cluster(address, ray.cluster_resources(), reach(config), facts)
    except NoRayError as error:
        return bad("ray", error.found, error.remedy)
    except (OSError, RuntimeError, RayError) as error:  # it was lost meanwhile
        lost = no_ray(address, error)
        return bad("ray", lost.found, lost.remedy)


def _ask(node: Mapping[str, Any], probe: Probe | None) -> NodeFacts:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = str(node["NodeManagerAddress"])
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(_facts).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    before = time.time()
    try:
        versions, now, read = ray.get(task.remote(probe), timeout=_ANSWER_S)
    except RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return NodeFacts(name, {}, problem=lines[-1].strip() if lines else type(error).__name__)
    return NodeFacts(name, versions, clock_ahead(now, before, time.time()), read)


def _facts(probe: Probe | None) -> tuple[dict[str, str], float, bool]:
    """Runs on the node: versions, its clock, and whether it reads the file that was written here."""
    read = True
    if probe is not None:
        path = probe.folder.path(probe.name)
        there = probe.folder.filesystem.get_file_info(path)
        read = there.is_file and probe.folder.read_bytes(probe.name) == probe.data
    return versions_here(), time.time(), read


def judge_alone(cpus: int, gpus: int, trainings: Mapping[str, TrainConfig]) -> Finding:
    """Without an address a stage starts a Ray of its own, with what this machine has."""
    have = {"CPU": cpus, "GPU": gpus}
    # A Ray of one's own offers whatever custom resources are asked.
    finding = judge_resources(have, have, trainings, {})
    if finding.verdict == "bad":
        return finding
    return ok(finding.check, f"{finding.found}; no ray.address: each stage starts its own Ray here")


def _asked(trainings: Mapping[str, TrainConfig]) -> str:
    return ", ".join(f"{stage}.workers {settings.min_workers}" for stage, settings in trainings.items())

"""What a training requests of Ray for its workers, whether Ray can have it, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cropray.config import Config
from cropray.config.load import updated
from cropray.config.training import TrainConfig
from cropray.errors import InputError

Resources = Mapping[str, float]


@dataclass(frozen=True)
class ResourceRequest:
    """`workers` (fewest, most), with the resources `each`; `autoscaled` if Ray can add nodes for them."""

    workers: tuple[int, int]
    each: Resources
    autoscaled: bool = False


def worker_resources(settings: TrainConfig, have: Resources, cpus: float = 1) -> dict[str, float]:
    """The resources of a worker, by Ray's names; Ray has `have` now.

    Without the setting `gpus`, a worker gets a GPU if there are enough for the fewest workers.
    """
    gpus = settings.gpus
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= settings.min_workers else 0.0
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def shortage(stage: str, request: ResourceRequest, most: Resources) -> tuple[str, str] | None:
    """The arithmetic and what to do, if Ray can never have room for the fewest workers.

    `most` is what Ray has, or can have after adding nodes.
    """
    for kind, amount in request.each.items():
        limit, wanted = most.get(kind, 0), request.workers[0] * amount
        if wanted > limit:
            fewer = f"set {stage}.gpus to 0, or to fewer" if kind == "GPU" else f"set fewer {stage}.workers"
            return (
                f"{stage}.workers = {request.workers[0]} × {amount:g} {kind}s each are {wanted:g} {kind}s, "
                f"but Ray has {limit:g}",
                f"{fewer}, or {_give(kind)}",
            )
    return None


def check_workers(stage: str, request: ResourceRequest, most: Resources | None) -> None:
    """Raise InputError if there is a `shortage`; `most` is None if unknown."""
    short = None if most is None else shortage(stage, request, most)
    if short is not None:
        raise InputError(": ".join(short))


def check_trials(config: Config, have: Resources, most: Resources | None) -> None:
    """Raise InputError, with the arithmetic, if a sweep's concurrent trials never have room together.

    `have` and `most` are as above. If the sweep searches the number of workers, its extremes count.
    """
    if most is None:
        return
    tune = config.tune
    for settings in (getattr(variant, tune.stage) for variant in _variants(config)):
        for kind, amount in worker_resources(settings, have, tune.cpus).items():
            limit, wanted = most.get(kind, 0), tune.concurrent * settings.min_workers * amount
            if wanted > limit:
                setting = "tune.cpus" if kind == "CPU" else f"{tune.stage}.gpus"
                raise InputError(
                    f"tune.concurrent = {tune.concurrent} trials at a time × {tune.stage}.workers = "
                    f"{settings.min_workers} × {setting} = {amount:g} are {wanted:g} {kind}s, but Ray has "
                    f"{limit:g}: make one of them smaller, or {_give(kind)}"
                )


def waiting(request: ResourceRequest, have: Resources, free: Resources) -> str:
    """What the workers wait for: what they request, and how much of it is free."""
    fewest, most = request.workers
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    plural = "" if most == 1 else "s"
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in request.each.items())
    there = ", ".join(f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}s" for kind in request.each)
    added = "; the cluster adds nodes if it may (see ray status)" if request.autoscaled else ""
    return f"waits for {number} worker{plural} with {each} each; the cluster has {there} free{added}"


def placed(groups: Iterable[Mapping[str, Any]], request: ResourceRequest) -> bool:
    """Whether one of Ray's placement groups holds what such a training requests."""
    fewest, most = request.workers
    return any(
        group["state"] == "CREATED"
        and fewest <= len(group["bundles"]) <= most
        and all(bundle == request.each for bundle in group["bundles"].values())
        for group in groups
    )


def _variants(config: Config) -> list[Config]:
    """The configuration, and one for each extreme of the workers and GPUs that the sweep searches."""
    stage, space = config.tune.stage, config.tune.space
    keys = [key for key in (f"{stage}.workers", f"{stage}.gpus") if key in space]
    return [config, *(updated(config, {key: value}) for key in keys for value in space[key].extremes)]


def _give(kind: str) -> str:
    return "give Ray more CPUs (ray.num_cpus)" if kind == "CPU" else f"give the cluster nodes with {kind}s"

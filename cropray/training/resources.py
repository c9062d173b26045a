"""What a training asks of Ray for its workers, whether it can ever have it, and what it waits for."""

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
class Asked:
    """So many workers (fewest, most), and what each asks for; `grows`: Ray is given nodes by need."""

    workers: tuple[int, int]
    each: Resources
    grows: bool


def each_worker(settings: TrainConfig, have: Resources, cpus: float = 1) -> dict[str, float]:
    """What a worker asks for, by Ray's names, where Ray has `have` now.

    Without a setting (`gpus`) it is a GPU each where there are enough for the fewest workers, else none.
    """
    gpus = settings.gpus
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= settings.min_workers else 0.0
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def shortage(stage: str, asked: Asked, most: Resources) -> tuple[str, str] | None:
    """The arithmetic and what to do, where Ray never has room for the fewest workers.

    `most` is what Ray has, or can come to have.
    """
    for kind, amount in asked.each.items():
        there, wanted = most.get(kind, 0), asked.workers[0] * amount
        if wanted > there:
            return (
                f"{stage}.workers = {asked.workers[0]} × {amount:g} {kind}s each are {wanted:g} {kind}s, but "
                f"Ray has {there:g}",
                _remedy(stage, kind),
            )
    return None


def check_workers(stage: str, asked: Asked, most: Resources | None) -> None:
    """Raises InputError where there is a `shortage`; `most` is None where nobody can tell."""
    short = None if most is None else shortage(stage, asked, most)
    if short is not None:
        raise InputError(": ".join(short))


def check_trials(config: Config, have: Resources, most: Resources | None) -> None:
    """Raises InputError, with the arithmetic, where a sweep's trials at a time never find room together.

    `have` and `most` are as above. Where the number of workers is searched, the greatest counts.
    """
    if most is None:
        return
    tune = config.tune
    for settings in (getattr(variant, tune.stage) for variant in _variants(config)):
        for kind, amount in each_worker(settings, have, tune.cpus).items():
            there, wanted = most.get(kind, 0), tune.concurrent * settings.min_workers * amount
            if wanted > there:
                setting = "tune.cpus" if kind == "CPU" else f"{tune.stage}.gpus"
                raise InputError(
                    f"tune.concurrent = {tune.concurrent} trials at a time × {tune.stage}.workers = "
                    f"{settings.min_workers} × {setting} = {amount:g} are {wanted:g} {kind}s, but Ray has "
                    f"{there:g}: make one of them smaller, or {_give(kind)}"
                )


def waiting(asked: Asked, have: Resources, free: Resources) -> str:
    """Why no worker has begun: what they ask for, and what of it is free."""
    fewest, most = asked.workers
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in asked.each.items())
    there = ", ".join(f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}s" for kind in asked.each)
    added = "; nodes are added where the cluster may have more (ray status)" if asked.grows else ""
    return f"waits for room for its workers ({number}, each with {wanted}); free in Ray: {there}{added}"


def placed(groups: Iterable[Mapping[str, Any]], asked: Asked) -> bool:
    """Whether one of Ray's placement groups has what such a training asked for."""
    fewest, most = asked.workers
    return any(
        group["state"] == "CREATED"
        and fewest <= len(group["bundles"]) <= most
        and all(bundle == asked.each for bundle in group["bundles"].values())
        for group in groups
    )


def _variants(config: Config) -> list[Config]:
    """The configuration, and with each extreme of what the sweep searches of workers and GPUs."""
    stage, space = config.tune.stage, config.tune.space
    keys = [key for key in (f"{stage}.workers", f"{stage}.gpus") if key in space]
    return [config, *(updated(config, {key: value}) for key in keys for value in space[key].extremes)]


def _remedy(stage: str, kind: str) -> str:
    fewer = f"set {stage}.gpus to 0, or to fewer" if kind == "GPU" else f"set fewer {stage}.workers"
    return f"{fewer}, or {_give(kind)}"


def _give(kind: str) -> str:
    return "give Ray more CPUs (ray.num_cpus)" if kind == "CPU" else f"give the cluster nodes with {kind}s"

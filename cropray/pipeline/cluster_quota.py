"""The quota of a service for all processes of a stage, and how many of these make use of it."""

from __future__ import annotations

import math
from typing import Any, cast

from cropray.config import Config
from cropray.imagery.earthengine.quota import Attempt, LocalQuota, QuotaStatus

_TILES_A_REQUEST = 1.25  # beside those that wait, some tiles are being cut and written
_TILES_A_PROCESS = 32  # or fewer: another process takes 2 s of CPU to start, a tile less than 0.1 s
_SPARE_CALLS = 8  # of the actor: permits that are returned, and questions


class ClusterQuota:
    """A RequestQuota in an actor of Ray; it pickles to a handle."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).remote(*arguments))

    def acquire(self) -> int:
        return int(self._ask("acquire"))

    def release(self, ticket: int, attempt: Attempt) -> None:
        self._ask("release", ticket, attempt)

    def status(self) -> QuotaStatus:
        return cast(QuotaStatus, self._ask("status"))

    def take_unanswered(self) -> list[Attempt]:
        return cast(list[Attempt], self._ask("take_unanswered"))


def cluster_quota(config: Config, callers: int) -> ClusterQuota | None:
    """The quota that `callers` threads share; None for a source without one. Ray must be running.

    It ends with its last handle. It runs on the driver's node, so it is not lost before the driver.
    """
    if config.source.kind != "earthengine":
        return None
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    chosen = config.source.earthengine
    actor = ray.remote(LocalQuota).options(
        num_cpus=0, max_concurrency=callers + _SPARE_CALLS, scheduling_strategy=here
    )
    return ClusterQuota(actor.remote(chosen.in_flight, chosen.per_second, chosen.lease_s))


def process_count(config: Config, tiles: int) -> int:
    """Processes for an export of so many tiles."""
    worth = _TILES_A_PROCESS if config.source.kind == "earthengine" else 1
    return min(config.ray.concurrency, math.ceil(tiles / worth))


def thread_count(config: Config, processes: int, tiles: int) -> int:
    """Tiles at once in each process: one, or as many as use a quota up by waiting for answers."""
    if config.source.kind != "earthengine":
        return 1
    waiting = math.ceil(_TILES_A_REQUEST * config.source.earthengine.in_flight / processes)
    return min(waiting, math.ceil(tiles / processes))


def quota_notes(status: QuotaStatus) -> list[str]:
    """The state of the requests in a few words."""
    restricted = " (the project is in restricted mode)" if status.restricted else ""
    paused = [f"pausing {status.paused_s:.0f} s as the service asks"] if status.paused_s >= 1 else []
    return [
        f"{status.bytes_per_s / 1e6:.1f} MB/s",
        f"{status.in_flight} of {status.allowed} in flight{restricted}",
        f"{status.rate_limited} x 429",
        *paused,
    ]

"""One quota for all workers of a cluster: the rule of `imagery.earthengine.quota`, in an actor of Ray."""

from __future__ import annotations

import math
from typing import Any

from cropray.config import Config
from cropray.imagery.earthengine.quota import Attempt, LocalQuota, QuotaStatus

_TILES_A_REQUEST = 1.25
_TILES_WORTH_A_WORKER = 8  # its start takes seconds, of which a tile takes a few tenths
_SPARE_CALLS = 8  # of the actor, beside those that wait for leave: permits given back, questions


class ClusterQuota:
    """A RequestQuota that any worker can be given; it pickles to a handle of the one actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def acquire(self) -> int:
        import ray

        permit: int = ray.get(self._actor.acquire.remote())
        return permit

    def release(self, permit: int, attempt: Attempt) -> None:
        import ray

        ray.get(self._actor.release.remote(permit, attempt))

    def status(self) -> QuotaStatus:
        import ray

        status: QuotaStatus = ray.get(self._actor.status.remote())
        return status

    def take_unanswered(self) -> list[Attempt]:
        import ray

        attempts: list[Attempt] = ray.get(self._actor.take_unanswered.remote())
        return attempts


def cluster_quota(config: Config, callers: int) -> ClusterQuota | None:
    """The quota that `callers` threads of all workers share; None for a source that needs none.

    Ray must be there. The quota ends with its last handle, and is no sooner lost than the driver:
    it runs on the same node.
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


def workers_of(config: Config, tiles: int) -> int:
    """Processes for so many tiles: a process that only waits for answers is worth several of them."""
    worth = 1 if config.source.kind != "earthengine" else _TILES_WORTH_A_WORKER
    return min(config.ray.concurrency, math.ceil(tiles / worth))


def threads_of(config: Config, workers: int, tiles: int) -> int:
    """Tiles at once in each of `workers` processes: one, or enough to use a quota up by waiting.

    A few more than may be in flight, for a tile also has its patches to cut and its part to write; and no
    more than are left for each of them.
    """
    if config.source.kind != "earthengine":
        return 1
    waiting = math.ceil(_TILES_A_REQUEST * config.source.earthengine.in_flight / workers)
    return min(waiting, math.ceil(tiles / workers))


def requests_note(status: QuotaStatus) -> list[str]:
    """The state of the requests in a few words."""
    restricted = " (the project is in restricted mode)" if status.restricted else ""
    paused = [f"waiting {status.paused_s:.0f} s as the service asks"] if status.paused_s >= 1 else []
    return [
        f"{status.bytes_per_s / 1e6:.1f} MB/s",
        f"{status.in_flight} of {status.allowed} in flight{restricted}",
        f"{status.rate_limited} x 429",
        *paused,
    ]

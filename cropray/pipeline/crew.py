"""A crew: processes on Ray, anywhere in the cluster, that are handed jobs as they have room for them.

Actors and nothing else: they start while the caller does other things, and their only imports are
those of the work. (Ray Data, which takes whole tables of rows, starts more processes than these and
imports itself in each: for a small export that took longer than the work.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cropray.progress import say
from cropray.types import InputError

RETRIES = 3
"""Of a job whose process died: nodes are lost, but a job may also be what kills its process."""

_PATIENCE_S = 30.0

Job = TypeVar("Job")
Result = TypeVar("Result")


class Worker(Protocol):
    """What runs in each process; with several threads it is called by all of them."""

    def do(self, job: Any) -> Any: ...


@dataclass(frozen=True)
class Died:
    """In place of a result: the process died each time that the job was tried."""

    reason: str


@dataclass(frozen=True)
class Crew(Generic[Job, Result]):
    """Processes that run or will; `threads` jobs at once in each, `asks` are the resources of each."""

    stage: str
    actors: Sequence[Any]
    threads: int
    asks: Mapping[str, float]

    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Died]]:
        """Every job with its result, as soon as it is done; what a worker raises is raised here.

        Raises InputError where a process cannot start.
        """
        import ray

        left, undone = deque(jobs), len(jobs)
        room = min(self.threads, math.ceil(undone / len(self.actors)))
        # A process gets its first jobs when it is there: one for which there is no room takes none.
        at_work: dict[Any, tuple[Any, Job | None]]
        at_work = {actor.__ray_ready__.remote(): (actor, None) for actor in self.actors}
        while undone:
            done, _ = ray.wait(list(at_work), timeout=_PATIENCE_S)
            if not done:
                if all(job is None for _, job in at_work.values()):
                    self._say_that_it_waits()
                continue
            actor, job = at_work.pop(done[0])
            result = self._result(done[0], started=job is not None)
            for _ in range(min(room if job is None else 1, len(left))):
                following = left.popleft()
                at_work[actor.do.remote(following)] = actor, following
            if job is not None:
                undone -= 1
                yield job, result

    def _result(self, done: Any, *, started: bool) -> Any:
        import ray

        try:
            return ray.get(done)
        except ray.exceptions.RayActorError as error:
            last_line = str(error).strip().splitlines()[-1]
            if started:
                return Died(last_line)
            raise InputError(
                f"{self.stage}: a process cannot start: {last_line}; every node must have cropray and its "
                "packages and must see the run folder: give --run a folder that all nodes share, or a URI"
            ) from error

    def _say_that_it_waits(self) -> None:
        import ray

        there = ray.cluster_resources()
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in self.asks.items())
        offered = ", ".join(f"{name} {there.get(name, 0):g}" for name in self.asks)
        say(f"{self.stage}: waits for a node with room for a process of {wanted}; all nodes have {offered}")


@contextmanager
def crew(
    stage: str,
    worker: type[Worker],
    arguments: Sequence[Any],
    *,
    size: int,
    threads: int,
    asks: Mapping[str, float],
) -> Iterator[Crew[Any, Any]]:
    """`size` processes that each make a worker of `arguments`, started in the background and ended
    with the block.

    `asks`: what each asks of its node, CPU and custom resources; they are spread over the nodes. One
    that dies starts anew where there is room, and its jobs with it. Ray must be there.
    """
    import ray

    custom = {name: amount for name, amount in asks.items() if name != "CPU"}
    remote = ray.remote(worker).options(
        num_cpus=asks["CPU"],
        resources=custom,
        scheduling_strategy="SPREAD",
        max_concurrency=threads,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    actors = [remote.remote(*arguments) for _ in range(size)]
    try:
        yield Crew(stage, actors, threads, asks)
    finally:
        for actor in actors:
            ray.kill(actor)

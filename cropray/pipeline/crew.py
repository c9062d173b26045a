"""A crew: processes on Ray, anywhere in the cluster, that are handed jobs as they have room for them.

Actors and nothing else: they start while the caller does other things, and their only imports are
those of the work. (Ray Data, which takes whole tables of rows, starts more processes than these and
imports itself in each: for a small export that took longer than the work.) A process that is lost, as
with its node, is replaced where there is room, and its jobs go to whichever has room first: what is
left of a cluster finishes the work, even if no other node comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cropray.errors import InputError
from cropray.progress import say

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

    @property
    def error(self) -> str:
        return f"its process died, {1 + RETRIES} times: {self.reason}"


@dataclass
class _Attempts(Generic[Job]):
    """A job, and how many processes died while they had it."""

    job: Job
    deaths: int = 0


class Crew(Generic[Job, Result]):
    """`size` processes that `start` makes: `threads` jobs at once in each, which asks for `asks`."""

    def __init__(
        self, stage: str, start: Callable[[], Any], size: int, threads: int, asks: Mapping[str, float]
    ) -> None:
        self._stage, self._start, self._threads, self._asks = stage, start, threads, asks
        self._actors: list[Any] = []
        self._starting: dict[Any, tuple[Any, int]] = {}  # and how many before it were lost at their start
        self._at_work: dict[Any, tuple[Any, _Attempts[Job]]] = {}
        self._room: deque[Any] = deque()  # processes, each as often as it can take one more job
        for _ in range(size):
            self._add(0)

    def results(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Died]]:
        """Every job with its result, as soon as it is done; what a worker raises is raised here.

        A job is taken from `jobs` when a process has room for it, and kept no longer than it is worked
        at. Raises InputError where a process cannot start.
        """
        import ray

        left, again = (_Attempts(job) for job in jobs), deque[_Attempts[Job]]()
        while True:
            while self._room and (following := again.popleft() if again else next(left, None)):
                actor = self._room.popleft()
                self._at_work[actor.do.remote(following.job)] = actor, following
            if self._room and not self._at_work:
                return
            done, _ = ray.wait([*self._starting, *self._at_work], timeout=_PATIENCE_S)
            if not done and not self._at_work:
                self._say_that_it_waits()
            for reference in done:
                if reference in self._starting:
                    self._welcome(reference)
                    continue
                actor, attempts = self._at_work.pop(reference)
                result = self._result(reference)
                if isinstance(result, Died):
                    self._replace(actor)
                    attempts.deaths += 1
                    if attempts.deaths <= RETRIES:
                        again.append(attempts)
                        continue
                elif actor in self._actors:  # else it was lost after this job
                    self._room.append(actor)
                yield attempts.job, result

    def end(self) -> None:
        """Kill the processes, whatever they are at."""
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def _add(self, lost_before: int) -> None:
        actor = self._start()
        self._actors.append(actor)
        # It gets its first jobs when it is there: one for which there is no room takes none.
        self._starting[actor.__ray_ready__.remote()] = actor, lost_before

    def _replace(self, actor: Any, lost_before: int = 0) -> None:
        """Once, however many jobs are lost with it."""
        import ray

        if actor in self._actors:
            self._actors.remove(actor)
            self._room = deque(other for other in self._room if other != actor)
            ray.kill(actor)  # it may only be out of reach
            self._add(lost_before)

    def _welcome(self, reference: Any) -> None:
        import ray

        actor, lost_before = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayActorError as error:
            if not error.actor_init_failed and lost_before < RETRIES:
                self._replace(actor, lost_before + 1)
                return
            raise InputError(
                f"{self._stage}: a process cannot start: {_last_line(error)}; every node must have cropray "
                "and its packages and must see the run folder: give --run a folder that all nodes share, or "
                "a URI"
            ) from error
        self._room.extend([actor] * self._threads)

    def _result(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            return Died(_last_line(error))

    def _say_that_it_waits(self) -> None:
        import ray

        there = ray.cluster_resources()
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in self._asks.items())
        offered = ", ".join(f"{name} {there.get(name, 0):g}" for name in self._asks)
        say(f"{self._stage}: waits for a node with room for a process of {wanted}; all nodes have {offered}")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


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

    `asks`: what each asks of its node, CPU, GPU and custom resources; they are spread over the nodes.
    Ray must be there.
    """
    import ray

    remote = ray.remote(worker).options(
        num_cpus=asks["CPU"],
        num_gpus=asks.get("GPU", 0),
        resources={name: amount for name, amount in asks.items() if name not in ("CPU", "GPU")},
        scheduling_strategy="SPREAD",
        max_concurrency=threads,
    )
    members: Crew[Any, Any] = Crew(stage, lambda: remote.remote(*arguments), size, threads, asks)
    try:
        yield members
    finally:
        members.end()

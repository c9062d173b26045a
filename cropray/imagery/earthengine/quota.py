"""Requests to a service with a quota: how many may be on their way, and how many may start a second.

The number in flight adapts as congestion control does (additive increase, multiplicative decrease:
Chiu and Jain 1989, doi:10.1016/0169-7552(89)90019-6): an answer adds a fraction of one, so that a
whole round adds one; a "too many requests" halves it, once for all requests that were on their way
by then. Where an answer says how long to wait (Retry-After), nothing starts before that.
`Limiter` is the rule without clock or threads, `LocalQuota` applies it in one process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

RequestOutcome = Literal["done", "rate_limited", "unavailable", "too_large", "refused"]

_RESTRICTED_IN_FLIGHT = 2  # of a project in restricted mode: the service queues what is more
_SPEED_OVER_S = 30.0


@dataclass(frozen=True)
class Attempt:
    """What became of one request. `name` says what was asked for, `error` why it was not answered."""

    name: str
    outcome: RequestOutcome
    seconds: float
    nbytes: int = 0
    error: str = ""
    restricted: bool = False  # the answer said that the project is in restricted mode
    retry_after_s: float = 0.0  # it said that nothing should be asked for so long


@dataclass(frozen=True)
class QuotaStatus:
    """Counts since the start; `bytes_per_s` over the last half minute. `paused_s`: still to wait
    because the service asked for it.
    """

    in_flight: int
    allowed: int
    requests: int
    rate_limited: int
    nbytes: int
    bytes_per_s: float
    restricted: bool
    paused_s: float


class RequestQuota(Protocol):
    """Leave to send requests. Every permit is given back with what became of the request."""

    def acquire(self) -> int:
        """Wait until a request may start; its permit."""
        ...

    def release(self, permit: int, attempt: Attempt) -> None: ...


class _Answer(NamedTuple):
    at: float
    nbytes: int


@dataclass
class Limiter:
    """The rule alone. Times are seconds of one monotonic clock and are passed in.

    `lease_s`: a permit that was not given back for so long is taken for lost, as of a worker that
    was killed, and no longer counts as in flight.
    """

    in_flight: int
    per_second: float
    lease_s: float
    requests: int = field(default=0, init=False)
    rate_limited: int = field(default=0, init=False)
    nbytes: int = field(default=0, init=False)
    restricted: bool = field(default=False, init=False)
    _allowed: float = field(init=False)
    _started: dict[int, float] = field(default_factory=dict, init=False)  # by permit
    _next_start: float = field(default=float("-inf"), init=False)
    _paused_until: float = field(default=float("-inf"), init=False)
    _reduced: float = field(default=float("-inf"), init=False)
    _answers: deque[_Answer] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self._allowed = float(self.in_flight)

    @property
    def allowed(self) -> int:
        most = _RESTRICTED_IN_FLIGHT if self.restricted else self.in_flight
        return max(1, min(most, int(self._allowed)))

    def try_start(self, now: float) -> int | None:
        """The permit of a request that starts now, or None where it has to wait."""
        for permit in [t for t, start in self._started.items() if now - start > self.lease_s]:
            del self._started[permit]
        if len(self._started) >= self.allowed or now < self._next_start:
            return None
        self._next_start = max(now, self._next_start) + 1 / self.per_second
        self.requests += 1
        self._started[self.requests] = now
        return self.requests

    def wait_s(self, now: float) -> float:
        """For how long nothing can start unless a permit is given back."""
        if len(self._started) < self.allowed:
            return max(0.0, self._next_start - now)
        return max(0.0, min(self._started.values()) + self.lease_s - now)

    def finish(self, permit: int, attempt: Attempt, now: float) -> None:
        """Take a permit back and learn from what became of its request."""
        started = self._started.pop(permit, now)
        self.nbytes += attempt.nbytes
        self._answers.append(_Answer(now, attempt.nbytes))
        self._paused_until = max(self._paused_until, now + attempt.retry_after_s)
        self._next_start = max(self._next_start, self._paused_until)
        if attempt.outcome == "rate_limited":
            self.rate_limited += 1
            if started > self._reduced:
                self._allowed, self._reduced = max(1.0, self._allowed / 2), now
        elif attempt.outcome == "done":
            self.restricted = attempt.restricted
            self._allowed = min(float(self.in_flight), self._allowed + 1 / self._allowed)

    def status(self, now: float) -> QuotaStatus:
        while self._answers and self._answers[0].at < now - _SPEED_OVER_S:
            self._answers.popleft()
        return QuotaStatus(
            in_flight=len(self._started),
            allowed=self.allowed,
            requests=self.requests,
            rate_limited=self.rate_limited,
            nbytes=self.nbytes,
            bytes_per_s=sum(answer.nbytes for answer in self._answers) / _SPEED_OVER_S,
            restricted=self.restricted,
            paused_s=max(0.0, self._paused_until - now),
        )


class LocalQuota:
    """The quota of one process, for any number of threads."""

    def __init__(
        self,
        in_flight: int,
        per_second: float,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limiter = Limiter(in_flight, per_second, lease_s)
        self._clock = clock
        self._changed = threading.Condition()
        self._unanswered: list[Attempt] = []

    def acquire(self) -> int:
        with self._changed:
            while (permit := self._limiter.try_start(self._clock())) is None:
                self._changed.wait(self._limiter.wait_s(self._clock()))
            return permit

    def release(self, permit: int, attempt: Attempt) -> None:
        with self._changed:
            self._limiter.finish(permit, attempt, self._clock())
            if attempt.outcome != "done":
                self._unanswered.append(attempt)
            self._changed.notify_all()

    def status(self) -> QuotaStatus:
        with self._changed:
            return self._limiter.status(self._clock())

    def take_unanswered(self) -> list[Attempt]:
        """The requests without an answer since the last call, for the event log."""
        with self._changed:
            taken, self._unanswered = self._unanswered, []
            return taken


class ComputeSlots:
    """How many threads of a process compute at a time; a thread that waits for an answer gives its slot up.

    Many requests can then be in flight, while memory holds the pixels of few tiles.
    """

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for a slot and hold it."""
        with self._free:
            yield

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within `held`: give the slot up, and wait for one again at the end."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()

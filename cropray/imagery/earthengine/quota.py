"""Limits on the requests to a metered service: how many are in flight, and how many start a second.

The number in flight adapts by additive increase and multiplicative decrease, as congestion control does
(Chiu and Jain 1989, doi:10.1016/0169-7552(89)90019-6). An answer adds a fraction of one, so that a whole
round adds one. "Too many requests" halves the number, once for all requests that were then in flight.
Where an answer says how long to wait (Retry-After), nothing starts before.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

RequestOutcome = Literal["done", "rate_limited", "unavailable", "too_large", "refused"]

_RESTRICTED_IN_FLIGHT = 2  # for a project in restricted mode, of which the service queues more
_RATE_WINDOW_S = 30.0


@dataclass(frozen=True)
class Attempt:
    """The result of one request. `name` says what was requested, `error` why there is no answer."""

    name: str
    outcome: RequestOutcome
    seconds: float
    nbytes: int = 0
    error: str = ""
    restricted: bool = False  # the answer said that the project is in restricted mode
    retry_after_s: float = 0.0  # the answer asked to send nothing for so long


@dataclass(frozen=True)
class QuotaStatus:
    """Counts since the start. `bytes_per_s` is over the last half minute; `paused_s` is how long the
    service still asks to wait.
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
    """Permits to send requests. Each permit is released with the result of its request."""

    def acquire(self) -> int:
        """Wait until a request may start, and return its permit."""
        ...

    def release(self, permit: int, attempt: Attempt) -> None: ...


class Limiter:
    """The rule, without clock or threads: times are seconds of one monotonic clock.

    A permit that is not released within `lease_s` counts as lost with its worker, and is no longer in flight.
    """

    def __init__(self, in_flight: int, per_second: float, lease_s: float) -> None:
        self._in_flight, self._per_second, self._lease_s = in_flight, per_second, lease_s
        self.requests = self.rate_limited = self.nbytes = 0
        self.restricted = False
        self._allowed = float(in_flight)
        self._started: dict[int, float] = {}  # by permit
        self._next_start = self._paused_until = self._reduced = -math.inf
        self._answers: deque[tuple[float, int]] = deque()  # time, bytes

    @property
    def allowed(self) -> int:
        most = _RESTRICTED_IN_FLIGHT if self.restricted else self._in_flight
        return max(1, min(most, int(self._allowed)))

    def try_start(self, now: float) -> int | None:
        """The permit of a request that starts now, or None where it has to wait."""
        self._started = {p: start for p, start in self._started.items() if now - start <= self._lease_s}
        if len(self._started) >= self.allowed or now < self._next_start:
            return None
        self._next_start = max(now, self._next_start) + 1 / self._per_second
        self.requests += 1
        self._started[self.requests] = now
        return self.requests

    def wait_s(self, now: float) -> float:
        """How long nothing can start unless a permit is released."""
        if len(self._started) < self.allowed:
            return max(0.0, self._next_start - now)
        return max(0.0, min(self._started.values()) + self._lease_s - now)

    def finish(self, permit: int, attempt: Attempt, now: float) -> None:
        """Release a permit and adapt to the result of its request."""
        started = self._started.pop(permit, now)
        self.nbytes += attempt.nbytes
        self._answers.append((now, attempt.nbytes))
        self._paused_until = max(self._paused_until, now + attempt.retry_after_s)
        self._next_start = max(self._next_start, self._paused_until)
        if attempt.outcome == "rate_limited":
            self.rate_limited += 1
            if started > self._reduced:
                self._allowed, self._reduced = max(1.0, self._allowed / 2), now
        elif attempt.outcome == "done":
            self.restricted = attempt.restricted
            self._allowed = min(float(self._in_flight), self._allowed + 1 / self._allowed)

    def status(self, now: float) -> QuotaStatus:
        while self._answers and self._answers[0][0] < now - _RATE_WINDOW_S:
            self._answers.popleft()
        return QuotaStatus(
            in_flight=len(self._started),
            allowed=self.allowed,
            requests=self.requests,
            rate_limited=self.rate_limited,
            nbytes=self.nbytes,
            bytes_per_s=sum(nbytes for _, nbytes in self._answers) / _RATE_WINDOW_S,
            restricted=self.restricted,
            paused_s=max(0.0, self._paused_until - now),
        )


class LocalQuota:
    """The quota of one process, for any number of threads."""

    def __init__(self, in_flight: int, per_second: float, lease_s: float) -> None:
        self._limiter = Limiter(in_flight, per_second, lease_s)
        self._changed = threading.Condition()
        self._unanswered: list[Attempt] = []

    def acquire(self) -> int:
        with self._changed:
            while (permit := self._limiter.try_start(time.monotonic())) is None:
                self._changed.wait(self._limiter.wait_s(time.monotonic()))
            return permit

    def release(self, permit: int, attempt: Attempt) -> None:
        with self._changed:
            self._limiter.finish(permit, attempt, time.monotonic())
            if attempt.outcome != "done":
                self._unanswered.append(attempt)
            self._changed.notify_all()

    def status(self) -> QuotaStatus:
        with self._changed:
            return self._limiter.status(time.monotonic())

    def take_unanswered(self) -> list[Attempt]:
        """The requests without an answer since the last call, for the event log."""
        with self._changed:
            taken, self._unanswered = self._unanswered, []
            return taken


@contextmanager
def released(slots: threading.Semaphore | None) -> Iterator[None]:
    """Give up the slot that this thread holds while it waits for an answer, and take one again at the end.

    Slots bound how many threads of a process hold pixels at a time, where many more may be waiting. With
    None there is nothing to give up.
    """
    if slots is None:
        yield
        return
    slots.release()
    try:
        yield
    finally:
        slots.acquire()

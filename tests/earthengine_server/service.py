"""The service without its HTTP: a request in, an answer out, and the book of both."""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
import xxhash

from tests.earthengine_server.answers import Limits, compute_pixels, compute_value
from tests.earthengine_server.catalogue import Catalogue
from tests.earthengine_server.faults import ERRORS, HTML, Fault, FaultPlan
from tests.earthengine_server.values import ServiceError

PIXELS, VALUE = "image:computePixels", "value:compute"
RESTRICTED = {"x-earth-engine-quota-status": "parallelism_restricted=true"}

_PROJECTS = {
    "missing": ServiceError("Project 'projects/missing' not found or deleted.", 404, "NOT_FOUND"),
    "disabled": ServiceError(
        "Google Earth Engine API has not been used in project disabled before or it is disabled. Enable it "
        "by visiting https://console.developers.google.com/apis/api/earthengine.googleapis.com/overview"
        "?project=disabled then retry.",
        403,
        "PERMISSION_DENIED",
    ),
    "forbidden": ServiceError(
        "Caller does not have required permission to use project forbidden. Grant the caller the "
        "roles/serviceusage.serviceUsageConsumer role, or a custom role with the "
        "serviceusage.services.use permission.",
        403,
        "PERMISSION_DENIED",
    ),
    "unregistered": ServiceError(
        "Project 'projects/unregistered' is not registered to use Earth Engine. Visit "
        "https://console.cloud.google.com/earth-engine/configuration?project=unregistered to register.",
        403,
        "PERMISSION_DENIED",
    ),
}


@dataclass
class Answer:
    status: int
    content: bytes
    content_type: str = "application/json; charset=UTF-8"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False  # hang up without a word
    truncate: bool = False  # hang up in the middle


@dataclass
class Entry:
    """A computation in the book. `grid` names what was asked for, so that tiles can be told apart."""

    kind: str
    status: int
    started: float
    seconds: float
    cpu_seconds: float
    bytes_out: int
    grid: str = ""
    fault: str = ""
    tag: str = ""
    message: str = ""


class Service:
    """Answers computations. `latency` seconds are added to each; `replay` remembers good answers.

    Its clock is that of the machine, but for `clock_ahead_s`.
    """

    def __init__(
        self,
        catalogue: Catalogue | None = None,
        *,
        limits: Limits | None = None,
        latency: float = 0.0,
        replay: bool = False,
    ) -> None:
        self.catalogue, self.limits = catalogue or Catalogue(), limits or Limits()
        self.latency, self.plan = latency, FaultPlan()
        self.clock_ahead_s = 0.0
        self._replay: dict[int, bytes] | None = {} if replay else None
        self._slots = BoundedSemaphore(os.cpu_count() or 1)  # threads that compute at a time
        self._lock = Lock()
        self._arrivals: deque[float] = deque()
        self._in_flight = self._in_flight_max = 0
        self._bytes_in = 0
        self.book: list[Entry] = []

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.clock_ahead_s

    def compute(self, kind: str, body: bytes) -> Answer:
        """The answer to a computation: pixels or a value."""
        started, cpu = time.monotonic(), time.thread_time()
        request: dict[str, Any] = {}
        fault: Fault | None = None
        with self._counted(len(body)):
            try:
                request = json.loads(body) if len(body) <= self.limits.body_bytes else {}
                fault = self.plan.draw(kind, body)
                answer = self._answer(kind, request, body, fault)
            except ServiceError as error:
                answer = refused(error)
                if fault is not None and fault.retry_after:
                    answer.headers["Retry-After"] = fault.retry_after
            cpu = time.thread_time() - cpu
            time.sleep(self.latency + (fault.seconds if fault else 0.0))
        good = answer.status == 200
        entry = Entry(
            kind=kind,
            status=answer.status,
            started=started,
            seconds=time.monotonic() - started,
            cpu_seconds=cpu,
            bytes_out=len(answer.content),
            grid=_named(request.get("grid")),
            fault=fault.kind if fault else "",
            tag=request.get("workloadTag", ""),
            message="" if good else answer.content[:300].decode(errors="replace"),
        )
        with self._lock:
            self.book.append(entry)
        return answer

    def _answer(self, kind: str, request: dict[str, Any], body: bytes, fault: Fault | None) -> Answer:
        if len(body) > self.limits.body_bytes:
            raise ServiceError(f"Request payload size exceeds the limit: {self.limits.body_bytes} bytes.")
        self._check_quota()
        if fault is not None and fault.kind in ERRORS:
            raise ERRORS[fault.kind]
        if fault is not None and fault.kind == "html":
            return Answer(502, HTML, "text/html; charset=UTF-8")
        if fault is not None and fault.kind == "drop":
            return Answer(0, b"", drop=True)
        content = self._content(kind, request, body)
        answer = Answer(200, content)
        if kind == PIXELS:
            answer.content_type = "application/octet-stream"
        if fault is not None:
            _spoil(answer, fault)
        return answer

    def _content(self, kind: str, request: dict[str, Any], body: bytes) -> bytes:
        key = xxhash.xxh3_64_intdigest(kind.encode() + body)
        if self._replay is not None and key in self._replay:
            return self._replay[key]
        with self._slots:
            if kind == PIXELS:
                content = compute_pixels(request, self.catalogue, self.limits)
            else:
                content = json.dumps(compute_value(request, self.catalogue)).encode()
        if self._replay is not None:
            self._replay[key] = content
        return content

    def _check_quota(self) -> None:
        now = time.monotonic()
        with self._lock:
            while self._arrivals and self._arrivals[0] <= now - 1:
                self._arrivals.popleft()
            self._arrivals.append(now)
            if self._in_flight > self.limits.in_flight or len(self._arrivals) > self.limits.per_second:
                raise ERRORS["429"]

    @contextmanager
    def _counted(self, size: int) -> Iterator[None]:
        with self._lock:
            self._in_flight += 1
            self._in_flight_max = max(self._in_flight_max, self._in_flight)
            self._bytes_in += size
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def counters(self) -> dict[str, Any]:
        """Sums over the book, and what is in flight."""
        with self._lock:
            book = list(self.book)
            counted = {
                "in_flight": self._in_flight,
                "in_flight_max": self._in_flight_max,
                "bytes_in": self._bytes_in,
            }
        served = [entry for entry in book if entry.kind == PIXELS and entry.status == 200]
        return {
            "requests": dict(Counter(entry.kind for entry in book)),
            "statuses": dict(Counter(str(entry.status) for entry in book)),
            "faults": dict(Counter(entry.fault for entry in book if entry.fault)),
            "grids_served": dict(Counter(entry.grid for entry in served)),
            "bytes_out": sum(entry.bytes_out for entry in book),
            "cpu_seconds": sum(entry.cpu_seconds for entry in book),
            "process_cpu_seconds": time.process_time(),
            **counted,
        }

    def entries(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(entry) for entry in self.book]

    def forget(self) -> None:
        """Begin the book anew; scenes and answers that were made are kept."""
        with self._lock:
            self.book.clear()
            self._in_flight_max, self._bytes_in = self._in_flight, 0


def check_project(project: str) -> None:
    """Raises ServiceError for the projects that stand for what users get wrong."""
    if project in _PROJECTS:
        raise _PROJECTS[project]


def refused(error: ServiceError) -> Answer:
    body = {"error": {"code": error.code, "message": error.message, "status": error.status}}
    return Answer(error.code, json.dumps(body).encode())


def _spoil(answer: Answer, fault: Fault) -> None:
    match fault.kind:
        case "truncate":
            answer.truncate = True
        case "garbage":
            answer.content = b"no array " * 100
        case "restricted":
            answer.headers |= RESTRICTED
        case "shape":
            file = io.BytesIO()
            np.save(file, np.load(io.BytesIO(answer.content))[:-1])
            answer.content = file.getvalue()


def _named(grid: dict[str, Any] | None) -> str:
    if grid is None:
        return ""
    affine, size = grid.get("affineTransform", {}), grid.get("dimensions", {})
    x, y = affine.get("translateX"), affine.get("translateY")
    return f"{grid.get('crsCode')} {x} {y} {size.get('width')}x{size.get('height')}"

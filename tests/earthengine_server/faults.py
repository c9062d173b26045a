"""Faults that the server is told to have: which request meets which is drawn from its body.

The same request sent for the n-th time meets the same fault in every run, whatever else is in flight.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, get_args

import xxhash

from tests.earthengine_server.values import ServiceError

Kind = Literal[
    "429", "403_rate", "500", "503", "html", "drop", "truncate", "delay",
    "memory", "timeout", "size", "shape", "garbage", "restricted", "unknown", "capacity",
]  # fmt: skip

HTML = b"<!DOCTYPE html><html><title>Error 502 (Server Error)!!1</title><p>That's an error.</html>"

ERRORS = {
    "429": ServiceError("Too many concurrent aggregations.", 429, "RESOURCE_EXHAUSTED"),
    "403_rate": ServiceError("User Rate Limit Exceeded", 403, "RESOURCE_EXHAUSTED"),
    "500": ServiceError("An internal error has occurred.", 500, "INTERNAL"),
    "503": ServiceError("The service is currently unavailable.", 503, "UNAVAILABLE"),
    "memory": ServiceError("User memory limit exceeded."),
    "timeout": ServiceError("Computation timed out."),
    "unknown": ServiceError("The flux is out of phase."),
    "capacity": ServiceError("Memory capacity exceeded."),
    "size": ServiceError("Total request size (60000000 bytes) must be less than or equal to 50331648 bytes."),
}


@dataclass(frozen=True)
class Fault:
    """`share` of the requests of the endpoint `where` meet it, at most `times` of them.

    `retry_after` is the header of that name of an error, seconds or a date.

    delay: the answer comes after `seconds` more. shape: the array lacks its last row. garbage: the
    body is no NPY. restricted: a good answer with the header of a restricted quota.
    """

    kind: Kind
    share: float = 1.0
    times: int | None = None
    where: str = "image:computePixels"
    seconds: float = 0.0
    retry_after: str = ""


@dataclass
class FaultPlan:
    """Shares add up: a request meets at most one fault."""

    faults: tuple[Fault, ...] = ()
    seed: int = 0
    _seen: Counter[int] = field(default_factory=Counter)
    _met: Counter[int] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def draw(self, where: str, body: bytes) -> Fault | None:
        """The fault that this request meets, if any."""
        digest = xxhash.xxh3_64_intdigest(body)
        with self._lock:
            self._seen[digest] += 1
            key = f"{self.seed} {digest} {self._seen[digest]}"
            chance = xxhash.xxh3_64_intdigest(key.encode()) / 2**64
            for number, fault in enumerate(self.faults):
                if fault.where != where or (fault.times is not None and self._met[number] >= fault.times):
                    continue
                if chance < fault.share:
                    self._met[number] += 1
                    return fault
                chance -= fault.share
        return None


def plan_of(faults: Any, seed: int = 0) -> FaultPlan:
    """The plan of a list of faults out of JSON. Raises ValueError for anything else."""
    try:
        plan = FaultPlan(tuple(Fault(**fault) for fault in faults), seed)
    except TypeError as error:
        raise ValueError(f"wanted a list of faults with the keys of Fault: {error}") from error
    kinds = get_args(Kind)
    for fault in plan.faults:
        if fault.kind not in kinds:
            raise ValueError(f"there is no fault of kind {fault.kind!r}; wanted one of {', '.join(kinds)}")
    return plan

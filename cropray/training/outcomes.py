"""What the steps of a training came to, read without holding up the device that computes the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_BEHIND = 2  # steps that a GPU is given in advance: one to work at, one to go on with

T = TypeVar("T")


class Outcomes(Generic[T]):
    """Small tensors on their way to the host, in order, each with what is known of it there.

    They are handed out a fixed number of steps later (at once on a CPU), so that all ranks learn of
    the same step at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None, T]] = deque()

    def put(self, outcome: Tensor, known: T) -> None:
        if not self._cuda:
            self._waiting.append((outcome, None, known))
            return
        copy = torch.empty_like(outcome, device="cpu", pin_memory=True)
        copy.copy_(outcome, non_blocking=True)
        stream: Any = torch.cuda.current_stream()
        arrived = stream.record_event()
        self._waiting.append((copy, arrived, known))

    def due(self) -> Iterator[tuple[Tensor, T]]:
        """Those whose time has come."""
        return self._taken(_BEHIND if self._cuda else 0)

    def rest(self) -> Iterator[tuple[Tensor, T]]:
        """All that are left."""
        return self._taken(0)

    def _taken(self, left: int) -> Iterator[tuple[Tensor, T]]:
        while len(self._waiting) > left:
            outcome, arrived, known = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            yield outcome, known

"""Further label sets that a training goes through beside its own, each into a head of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor

from cropray.shards.reader import ShardReader
from cropray.types import Batch


@dataclass
class Companion:
    """The batches of one of them, `weight` of them for each step of the training's own.

    `val` has this rank's part of its validation split, None where there is none. Which batch comes when
    follows from the number of the step alone, so all ranks take a step for the same head, and a training
    that is taken up goes on where it was.
    """

    head: str
    reader: ShardReader
    weight: float
    val: ShardReader | None = None
    _next: int = field(default=0, init=False)
    _batches: Iterator[Batch] = field(default_factory=lambda: iter(()), init=False)

    def before(self, step: int) -> Iterator[Batch]:
        """The batches that come before a step (0-based, over all epochs)."""
        for number in range(floor(step * self.weight), floor((step + 1) * self.weight)):
            yield self._take(number)

    def _take(self, number: int) -> Batch:
        epoch, place = divmod(number, len(self.reader))
        if place == 0 or number != self._next:
            self._batches = self.reader.epoch(epoch, place)
        self._next = number + 1
        return next(self._batches)

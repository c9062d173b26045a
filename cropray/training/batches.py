"""Flips and quarter turns of whole samples: all months, bands and the label alike, nothing resampled.

Shape suffixes: B samples, H rows, W columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

SYMMETRIES = 8
"""Of a square: four quarter turns, each with and without a mirror image."""


def draw_symmetries(sample_ids: Sequence[str], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The symmetry (0..7) of each sample in an epoch, of seed, epoch and the sample's own id alone.

    So it is the same in whatever batch, on whatever rank and after whatever interruption a sample comes;
    one that an epoch has several times is the same each time.
    """
    hashes = (xxhash.xxh3_64_intdigest(f"{seed} {epoch} {sample_id}".encode()) for sample_id in sample_ids)
    return np.fromiter((value % SYMMETRIES for value in hashes), np.int64, len(sample_ids))


def apply_symmetries(tensors: tuple[Tensor, ...], symmetry_b: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Copies of tensors (B, …, H, W), sample b under its symmetry: a mirror image if >= 4, then turns.

    Raises ValueError for patches that are not square.
    """
    for x in tensors:
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"quarter turns need square patches, got {tuple(x.shape)}")
    moved = tuple(torch.empty_like(x) for x in tensors)
    for symmetry in np.unique(symmetry_b).tolist():
        chosen = torch.from_numpy(np.flatnonzero(symmetry_b == symmetry))
        for x, y in zip(tensors, moved, strict=True):
            index = chosen.to(x.device)
            part = x[index].flip(-1) if symmetry >= 4 else x[index]
            y[index] = part.rot90(symmetry % 4, (-2, -1))
    return moved


T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Sent:
    """Tensors on a device, which are whole there once `arrived` has been passed (None: at once)."""

    tensors: Sequence[Tensor]
    arrived: torch.cuda.Event | None


class Transfer:
    """Takes arrays to a device; on a GPU by a stream of its own, so that no step waits for a copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Any = torch.cuda.Stream  # which has no types
        self._beside = stream(device) if device.type == "cuda" else None

    def send(self, arrays: Sequence[Any]) -> Sent:
        """Begin to copy. To be called from any thread; the arrays may be given up afterwards."""
        tensors = [torch.as_tensor(x) for x in arrays]
        if self._beside is None:
            return Sent(tensors, None)
        with torch.cuda.stream(self._beside):
            # Only from pinned memory does a copy go on by itself; its allocator keeps it until then.
            there = [x if x.is_cuda else x.pin_memory().to(self._device, non_blocking=True) for x in tensors]
            return Sent(there, self._beside.record_event())

    def receive(self, sent: Sent) -> Sequence[Tensor]:
        """The tensors, for the stream of the calling thread, which waits for them by itself."""
        if sent.arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.arrived)
            for x in sent.tensors:
                x.record_stream(stream)  # else their memory could be given away while it is read
        return sent.tensors

    def ahead(self, batches: Iterable[T], arrays: Callable[[T], Sequence[Any]]) -> Iterator[tuple[T, Sent]]:
        """Batches with their arrays sent; on a GPU the next is fetched and sent while one is computed."""

        def sent(batch: T) -> tuple[T, Sent]:
            return batch, self.send(arrays(batch))

        return map(sent, batches) if self._beside is None else one_ahead(batches, sent)


def one_ahead(items: Iterable[T], prepared: Callable[[T], U]) -> Iterator[U]:
    """Items as they are prepared, in order: in a thread, one further than the one that was asked for."""
    source = map(prepared, items)
    with ThreadPoolExecutor(1, "transfer") as pool:
        coming = pool.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item


_BEHIND = 2  # steps that a GPU is given in advance: one to work at, one to go on with


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

"""Batches on their way to the device: on a GPU one ahead of the step, copied beside what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

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

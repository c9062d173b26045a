"""Batches on their way into a step, and its figures on their way out.

Shape suffixes: B samples, H rows, W columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from cropray.bands import NODATA

T = TypeVar("T")
Tensors = tuple[Tensor, ...]

SYMMETRIES = 8
"""Of a square: four quarter turns, each with and without a mirror image."""


def draw_symmetries(sample_ids: Sequence[str], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The symmetry (0..7) of each sample in an epoch, in any batch: a hash of seed, epoch and its id."""
    hashes = (xxhash.xxh3_64_intdigest(f"{seed} {epoch} {sample_id}".encode()) for sample_id in sample_ids)
    return np.fromiter((value % SYMMETRIES for value in hashes), np.int64, len(sample_ids))


def apply_symmetries(tensors: Tensors, symmetry_b: npt.NDArray[np.int64]) -> Tensors:
    """Copies of tensors (B, …, H, W), sample b under its symmetry: mirrored if >= 4, then turned.

    Nothing is resampled. Raises ValueError for patches that are not square.
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


def draw_seen(
    sample_ids: Sequence[str],
    seed: int,
    epoch: int,
    months: int,
    min_months: int,
    whole_windows: float,
    drop_months: float,
    drop_sensors: float,
) -> npt.NDArray[np.bool_]:
    """What each sample shows in an epoch: (B, 2, T), sensors s2 and s1, as of a random date.

    The last month is that of the window with the probability `whole_windows`, else uniform from `min_months`
    on; each month of each sensor is dropped with the probability `drop_months`, and a whole sensor, but not
    both, with `drop_sensors`. As for symmetries, a hash decides.
    """
    hashes = [
        xxhash.xxh3_64_intdigest(f"{seed} {epoch} seen {sample_id}".encode()) for sample_id in sample_ids
    ]
    draw = _uniform(np.array(hashes, np.uint64), 2 * months + 4)
    fewest = min(min_months, months)
    end_b = fewest + np.floor(draw[:, 0] * (months + 1 - fewest)).astype(np.int64)
    end_b[draw[:, -1] < whole_windows] = months
    seen = np.repeat((np.arange(months) < end_b[:, None])[:, None], 2, axis=1)
    seen &= draw[:, 3:-1].reshape(-1, 2, months) >= drop_months
    sensor = (draw[:, 1] * 2).astype(np.int64)
    seen[np.arange(len(seen)), sensor] &= (draw[:, 2] >= 2 * drop_sensors)[:, None]
    return seen


def _uniform(seed_b: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.float64]:
    """Numbers (B, n) in [0, 1): those that SplitMix64 (Steele et al. 2014) gives for each seed.

    A generator of numpy's for each sample would take longer than the step of a small network.
    """
    x = seed_b[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: npt.NDArray[np.float64] = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return numbers


def without(s1_bcthw: Tensor, s2_bcthw: Tensor, seen_b2t: npt.NDArray[np.bool_]) -> Tensors:
    """Copies in which months that are not seen have no data."""
    seen = torch.from_numpy(seen_b2t).to(s1_bcthw.device)[:, :, None, :, None, None]
    return tuple(x.where(seen[:, k], x.new_tensor(NODATA)) for x, k in ((s1_bcthw, 1), (s2_bcthw, 0)))


def to_device(arrays: Sequence[Any], device: torch.device) -> Tensors:
    """Arrays or tensors as tensors on a device; those that are there are not copied."""
    return tuple(torch.as_tensor(x).to(device) for x in arrays)


def prefetched(
    batches: Iterable[T], arrays: Callable[[T], Sequence[Any]], device: torch.device
) -> Iterator[tuple[T, Tensors]]:
    """Batches with their arrays on a device; on a GPU the next one is read and copied during a step.

    PyTorch's loader pins memory, but leaves the copy to the stream of the steps. Here a thread copies on a
    stream of its own, for which a step waits on the GPU.
    """
    if device.type != "cuda":
        yield from ((batch, to_device(arrays(batch), device)) for batch in batches)
        return
    new_stream: Any = torch.cuda.Stream  # which has no types
    stream = new_stream(device)

    def sent(batch: T) -> tuple[T, Tensors, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            # Only from pinned memory does a copy run by itself; the allocator keeps that memory until then.
            there = tuple(
                x if x.is_cuda else x.pin_memory().to(device, non_blocking=True)
                for x in map(torch.as_tensor, arrays(batch))
            )
            return batch, there, stream.record_event()

    for batch, tensors, arrived in one_ahead(map(sent, batches)):
        steps = torch.cuda.current_stream(device)
        steps.wait_event(arrived)
        for x in tensors:
            x.record_stream(steps)  # else its memory could be given away while it is read
        yield batch, tensors


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Items in order, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


_BEHIND = 2  # steps that a GPU is given in advance: one to work at, one to continue with


class AsyncMetrics(Generic[T]):
    """Small tensors on their way to the host, in order, each with what belongs to it there.

    A GPU gets its next steps before their figures are read, or it would idle while the host prepares a step.
    The delay is fixed, so all ranks learn of the same step at the same time; a CPU has none.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, T]] = deque()

    def put(self, metrics: Tensor, about: T) -> None:
        if not self._cuda:
            self._pending.append((metrics, None, about))
            return
        copy = torch.empty_like(metrics, device="cpu", pin_memory=True)
        copy.copy_(metrics, non_blocking=True)
        stream: Any = torch.cuda.current_stream()
        self._pending.append((copy, stream.record_event(), about))

    def due(self, *, all_of_them: bool = False) -> Iterator[tuple[Tensor, T]]:
        """Those that are old enough, or all."""
        while len(self._pending) > (_BEHIND if self._cuda and not all_of_them else 0):
            metrics, arrived, about = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()
            yield metrics, about

"""Which samples an epoch has, in what order, and who reads them: pure functions of seed, epoch and ranks.

Row groups are shuffled. Each rank takes a contiguous part of their samples and shuffles these within
buffers of a few row groups, so it reads little more than its own share of the files. An interrupted epoch
continues with any number of ranks: the samples that are left are shared out by the same rule.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Positions = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

_LEAST_LABELLED = 0.1
_BUFFER_GROUPS = 4  # row groups that are shuffled together: about 80 MB of 64 × 64 patches


@dataclass(frozen=True)
class EpochSegment:
    """A number of steps of an epoch, read by a fixed number of ranks in batches of one size."""

    world_size: int
    batch_size: int
    steps: int


@dataclass(frozen=True)
class EpochState:
    """How far an epoch was read. Its dict is small and plain JSON, for a checkpoint."""

    epoch: int
    read: tuple[EpochSegment, ...] = ()

    def after(self, world_size: int, batch_size: int, steps: int) -> EpochState:
        """The state after all ranks have taken `steps` more."""
        return EpochState(self.epoch, (*self.read, EpochSegment(world_size, batch_size, steps)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EpochState:
        return cls(data["epoch"], tuple(EpochSegment(**segment) for segment in data["read"]))


@dataclass(frozen=True)
class EpochOrder:
    """The samples of an epoch that are left to read."""

    left: Positions  # ordered by place
    place: Positions  # of each sample: the position of its row group in the epoch
    key: tuple[int, ...] | None  # seeds the shuffling within buffers; None: no shuffling

    @classmethod
    def make(
        cls,
        group_of: Positions,
        n_groups: int,
        seed: int,
        epoch: int,
        *,
        shuffle: bool,
        counts: Positions | None,
    ) -> EpochOrder:
        """All samples, or each as often as `counts` says. `group_of` is the row group of every sample."""
        rng = np.random.default_rng([seed, epoch])
        groups = rng.permutation(n_groups) if shuffle else np.arange(n_groups)
        turn = np.empty(n_groups, np.int64)
        turn[groups] = np.arange(n_groups)
        place = turn[group_of]
        left = np.argsort(place, kind="stable")
        if counts is not None:
            left = np.repeat(left, counts[left])
        return cls(left, place, (seed, epoch) if shuffle else None)

    def steps(self, world_size: int, batch_size: int) -> int:
        """Batches per rank."""
        return math.ceil(math.ceil(len(self.left) / world_size) / batch_size)

    def share(self, rank: int, world_size: int) -> Positions:
        """The samples that one rank reads, in its order."""
        bounds = np.linspace(0, len(self.left), world_size + 1).astype(np.int64)
        mine = self.left[bounds[rank] : bounds[rank + 1]]
        if self.key is None or not len(mine):
            return mine
        # Shuffle within buffers of consecutive groups: a random key below the buffer's number.
        rng = np.random.default_rng([*self.key[:2], rank, *self.key[2:]])
        buffer = (self.place[mine] - self.place[mine[0]]) // _BUFFER_GROUPS
        return mine[np.lexsort((rng.random(len(mine)), buffer))]

    def batches(self, rank: int, world_size: int, batch_size: int) -> list[Positions]:
        """The batches of one rank. All ranks have equally many; all but the last one or two are full.

        A rank that is one sample short repeats one, but only if batches are of one sample or fewer samples
        are left than there are ranks.
        """
        order, steps = self.share(rank, world_size), self.steps(world_size, batch_size)
        if len(order) < steps:
            order = np.append(order, order[-1] if len(order) else self.left[-1])
        # A rank that is one sample short may lack a last batch: the batch before gives it a sample.
        ends = np.minimum(np.arange(1, steps + 1) * batch_size, len(order) - np.arange(steps)[::-1]).tolist()
        return [order[a:b] for a, b in zip([0, *ends][:steps], ends, strict=True)]

    def after(self, segment: EpochSegment) -> EpochOrder:
        """The order of what is left after a segment."""
        read = [
            batch
            for rank in range(segment.world_size)
            for batch in self.batches(rank, segment.world_size, segment.batch_size)[: segment.steps]
        ]
        # Counted by sample, since one that a rank repeated was read twice and wanted once.
        numbers, wanted = np.unique(self.left, return_counts=True)
        taken = np.bincount(
            np.searchsorted(numbers, np.concatenate(read or [self.left[:0]])), minlength=len(numbers)
        )
        left = np.repeat(numbers, np.maximum(wanted - taken, 0))
        left = left[np.argsort(self.place[left], kind="stable")]
        key = None if self.key is None else (*self.key, segment.world_size, segment.steps)
        return EpochOrder(left, self.place, key)


def balanced_weights(table: pa.Table, *, crop_power: float = 1.0) -> Weights:
    """Weights (N,) of samples by their scalar columns, for a reader's `weigh`.

    Within a crop, a sample weighs as much as its labelled fraction, but at least a tenth. A crop
    weighs as much as its number of samples to the power 1 - `crop_power`: 0 keeps the frequencies of crops, 1
    makes them equal.
    """
    crops, crop = np.unique(table["crop"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    labelled = np.maximum(table["labelled_fraction"].to_numpy().astype(np.float64), _LEAST_LABELLED)
    total = np.bincount(crop, labelled, len(crops))
    frequency = np.bincount(crop, minlength=len(crops)) ** (1 - crop_power)
    weights: Weights = labelled * (frequency / total)[crop]
    return weights


def draw_counts(weights: Weights, seed: int, epoch: int) -> Positions:
    """How often each of N samples occurs in an epoch: in proportion to its weight, N times in all.

    Systematic resampling (Kitagawa 1996): a count is the expected one, rounded down or up. Independent draws
    would miss samples of some weight for many epochs.
    """
    rng = np.random.default_rng([seed, epoch, len(weights)])
    order = rng.permutation(len(weights))
    edges = np.concatenate([[0.0], np.cumsum(weights[order])])
    edges *= len(weights) / edges[-1]
    edges[-1] = len(weights)
    counts = np.empty(len(weights), np.int64)
    counts[order] = np.diff(np.floor(edges - rng.random())).astype(np.int64)
    return counts

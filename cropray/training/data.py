"""Which samples of a split a training reads, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cropray.shards.order import Weights, balanced_weights
from cropray.shards.reader import ShardReader
from cropray.types import BoolArray


@dataclass(frozen=True)
class Data:
    """Shards of one split: the samples with more labels than this, with crops balanced if so set.

    Samples without any label come too if they are to have a share of an epoch.
    """

    uris: Sequence[str]
    min_labelled_fraction: float
    balance: float | None = None
    unlabelled_share: float = 0.0

    def reader(self, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> ShardReader:
        """For training: shuffled, with the same number of batches for every rank."""
        return ShardReader(
            self.uris,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            keep=self._wanted,
            weigh=self._weights,
        )

    def part(self, batch_size: int, rank: int, world_size: int) -> ShardReader | None:
        """For validation: each sample once, on one rank, in the order of the files; None without shards."""
        if not self.uris:
            return None

        def mine(table: pa.Table) -> BoolArray:
            rows: BoolArray = np.arange(len(table)) % world_size == rank
            return self._labelled(table) & rows

        return ShardReader(self.uris, batch_size=batch_size, shuffle=False, keep=mine)

    def _labelled(self, table: pa.Table) -> BoolArray:
        return np.asarray(table["labelled_fraction"].to_numpy() > self.min_labelled_fraction, np.bool_)

    def _wanted(self, table: pa.Table) -> BoolArray:
        if not self.unlabelled_share:
            return self._labelled(table)
        without_label: BoolArray = np.asarray(table["labelled_fraction"].to_numpy() == 0, np.bool_)
        return self._labelled(table) | without_label

    def _weights(self, table: pa.Table) -> Weights | None:
        """As set; None if all samples weigh the same."""
        labelled, share = self._labelled(table), self.unlabelled_share
        if not labelled.any():
            return None
        weights = np.ones(len(table))
        if self.balance is not None:
            weights[labelled] = balanced_weights(table.filter(pa.array(labelled)), crop_power=self.balance)
        elif labelled.all():
            return None
        weights[labelled] *= (1 - share) / weights[labelled].sum()
        weights[~labelled] = share / max(1, int((~labelled).sum()))
        return weights

"""Shards to batches: samples are decoded one by one, verified, shuffled, and shared out between ranks.

`order` says who reads which samples of an epoch. Memory is bounded by the row groups shuffled together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from cropray.errors import InputError
from cropray.shards.columns import empty_array
from cropray.shards.file import RowGroup, mismatches, open_shards
from cropray.shards.order import EpochOrder, EpochSegment, Positions, Weights, draw_counts
from cropray.types import Batch, BoolArray

_OPEN_AHEAD = 8  # batches: the row groups of remote shards arrive in time


class LazyColumns(Mapping[str, list[Any]]):
    """Columns of some rows of a table as lists. Few are used, so each is converted on first use."""

    def __init__(self, table: pa.Table, positions: Positions) -> None:
        self._table, self._positions = table, positions
        self._converted: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._converted:
            self._converted[name] = self._table[name].take(pa.array(self._positions)).to_pylist()
        return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class ShardReader:
    """Batches of the samples of shards of one data set, made ahead of time by `threads`.

    `keep` chooses rows by their scalar columns: a mask over the given table. `weigh` gives each kept row a
    weight (`order.balanced_weights`): it then occurs in an epoch of the same length as often as its weight
    says, rounded down or up at random; weights of None are all the same. `metadata` is common to all shards;
    `table` holds the scalar columns of all kept rows, for every rank, in the order of the files.

    Raises InputError for shards that are missing, damaged, of another format or of different data sets, and
    for fewer samples than ranks (no samples at all give empty epochs).
    """

    def __init__(
        self,
        uris: Sequence[str],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        keep: Callable[[pa.Table], BoolArray] | None = None,
        weigh: Callable[[pa.Table], Weights | None] | None = None,
        threads: int = 2,
    ) -> None:
        if not uris:
            raise InputError("no shards were given; run export and compact first, or name another split")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise InputError(f"cannot read batches of {batch_size} as rank {rank} of {world_size}")
        files = list(open_shards(uris))
        for mismatch in mismatches(files):
            raise InputError(f"{mismatch}; give shards of one run only")
        self.metadata = files[0].metadata
        self._batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._rank, self._world_size, self._threads = rank, world_size, threads

        # Row groups are numbered through all files. A kept row is known by its group and its row within it.
        self._groups = [(file, group) for file in files for group in range(len(file.group_sizes))]
        sizes = [size for file in files for size in file.group_sizes]
        table = pa.concat_tables([file.scalars for file in files]).combine_chunks()
        kept = np.ones(len(table), np.bool_) if keep is None else np.asarray(keep(table), np.bool_)
        self.table: pa.Table = table.filter(pa.array(kept))
        self._group_of = np.repeat(np.arange(len(sizes)), sizes)[kept]
        self._row_of = np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)])[kept]
        number = {crop: index for index, crop in enumerate(self.metadata.classes)}
        self._crop_of = np.array([number.get(crop, -1) for crop in self.table["crop"].to_pylist()], np.int64)
        self._weights = None if weigh is None else weigh(self.table)
        if 0 < len(self.table) < world_size:
            raise InputError(f"{len(self.table)} samples are too few for {world_size} ranks; use fewer")

    def __len__(self) -> int:
        """Batches per epoch, the same for every rank."""
        return self.order(0).steps(self._world_size, self._batch_size)

    def epoch(self, epoch: int, start: int = 0, after: Sequence[EpochSegment] = ()) -> Iterator[Batch]:
        """The batches of this rank in an epoch, from batch `start` on.

        Every kept sample occurs exactly once, on one rank (unless `weigh` is given). All ranks have
        `len(self)` batches of `batch_size` samples; only the last one or two may be smaller. (With batches of
        one sample, a rank that is one short repeats its last sample.) `after` are the segments of this epoch
        that any number of ranks have read before (`order.EpochState.read`); the batches are of what is left.
        """
        batches = self.order(epoch, after).batches(self._rank, self._world_size, self._batch_size)
        return self._read_ahead(batches[start:])

    def take(self, indices: Sequence[int] | Positions) -> Batch:
        """The rows of `table` at these positions, in this order."""
        return next(self._read_ahead([np.asarray(indices, np.int64)]))

    def order(self, epoch: int, after: Sequence[EpochSegment] = ()) -> EpochOrder:
        """The samples of an epoch, by their positions in `table`, that all ranks have still to read."""
        counts = None if self._weights is None else draw_counts(self._weights, self._seed, epoch)
        order = EpochOrder.make(
            self._group_of, len(self._groups), self._seed, epoch, shuffle=self._shuffle, counts=counts
        )
        for segment in after:
            order = order.after(segment)
        return order

    def _read_ahead(self, batches: Sequence[Positions]) -> Iterator[Batch]:
        """The batches of these rows, in order.

        A row group is opened ahead of its first use and dropped after its last. Threads take up tasks in the
        order of their submission, so a batch waits at most for row groups that are being opened.
        """
        needed = [np.unique(self._group_of[rows]).tolist() for rows in batches]
        last_use = {group: step for step, groups in enumerate(needed) for group in groups}
        opened, ahead = dict[int, Future[RowGroup]](), deque[Future[Batch]]()
        pool = ThreadPoolExecutor(self._threads, "shard-reader")
        try:
            for step, rows in enumerate(batches):
                first = step + _OPEN_AHEAD if step else 0
                for group in chain.from_iterable(needed[first : step + _OPEN_AHEAD + 1]):
                    if group not in opened:
                        file, index = self._groups[group]
                        opened[group] = pool.submit(file.row_group, index)
                ahead.append(pool.submit(self._batch, rows, {group: opened[group] for group in needed[step]}))
                for group in needed[step]:
                    if last_use[group] == step:
                        del opened[group]
                if len(ahead) > self._threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, rows: Positions, groups: Mapping[int, Future[RowGroup]]) -> Batch:
        arrays = {
            name: empty_array((len(rows), *spec.shape), spec.dtype)
            for name, spec in self.metadata.tensors.items()
        }
        places = zip(self._group_of[rows].tolist(), self._row_of[rows].tolist(), strict=True)
        for i, (group, row) in enumerate(places):
            for name, values in groups[group].result().read(row).items():
                arrays[name][i] = values
        return Batch(
            s1_bcthw=arrays["s1"],
            s2_bcthw=arrays["s2"],
            label_bhw=arrays["label"],
            truth_bhw=arrays.get("truth"),
            crop_b=self._crop_of[rows],
            rows=LazyColumns(self.table, rows),
        )

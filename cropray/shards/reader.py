"""Shards to batches: row groups read directly, checked, shuffled, and shared out between ranks.

The order of an epoch is a pure function of (seed, epoch, world size), which `order` tells. A rank reads
its own share of the files and little more, and memory stays bounded by the buffer that it shuffles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cropray.errors import InputError
from cropray.shards.columns import Buffers
from cropray.shards.file import RowGroup, ShardFile
from cropray.shards.order import EpochOrder, Positions, Stretch, Weights, draw_counts
from cropray.types import Batch, BoolArray


class Rows(Mapping[str, list[Any]]):
    """Rows of a table by column, one value a row, in their order.

    All columns of a batch take longer to convert than a tenth of its tensors to read, and few are wanted.
    """

    def __init__(self, table: pa.Table, positions: npt.NDArray[np.int64]) -> None:
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

    def __reduce__(self) -> tuple[Any, ...]:  # without the other rows of the table
        return dict, (list(self.items()),)


_OPEN_AHEAD = 8  # batches: row groups of object storage are fetched in time
_OPENERS = 8  # files whose footers are read at the same time: object storage answers slowly


class ShardReader:
    """Batches of the samples of shards of one data set.

    `keep` chooses rows by their scalar columns (a mask over the given table). Raises InputError
    for shards that are missing, damaged, of another format, or of different data sets, and where
    fewer samples are left than there are ranks (none at all gives an epoch of no batches).

    With `weigh` (weights of the kept rows by their columns, such as `order.balanced_weights`), a sample
    occurs in an epoch as often as its weight says, rounded down or up by chance; an epoch has as many
    samples as without.

    `metadata` is what all shards share; `table` holds the scalar columns of all kept rows, of every
    rank, in the order of the files.
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
        weigh: Callable[[pa.Table], Weights] | None = None,
        threads: int = 2,
    ) -> None:
        if not uris:
            raise InputError("no shards were given; run export and compact first, or name another split")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise InputError(f"cannot read batches of {batch_size} as rank {rank} of {world_size}")
        with ThreadPoolExecutor(_OPENERS) as pool:
            self._files = list(pool.map(ShardFile.open, uris))
        self.metadata = self._files[0].metadata
        for file in self._files[1:]:
            _same_data_set(self._files[0], file)
        self._batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._threads, self._buffers = threads, Buffers()

        # Row groups are numbered through all files; a kept row is (its group, its row within it).
        self._groups = [
            (i, group) for i, file in enumerate(self._files) for group in range(len(file.group_sizes))
        ]
        sizes = [size for file in self._files for size in file.group_sizes]
        table = pa.concat_tables([file.scalars for file in self._files]).combine_chunks()
        kept = np.ones(len(table), np.bool_) if keep is None else np.asarray(keep(table), np.bool_)
        self.table: pa.Table = table.filter(pa.array(kept))
        self._group_of = np.repeat(np.arange(len(sizes)), sizes)[kept]
        self._row_of = np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)])[kept]
        number = {crop: index for index, crop in enumerate(self.metadata.classes)}
        self._crop_of = np.array([number.get(crop, -1) for crop in self.table["crop"].to_pylist()], np.int64)
        self._weights = None if weigh is None else np.asarray(weigh(self.table), np.float64)
        if 0 < len(self.table) < world_size:
            raise InputError(f"{len(self.table)} samples cannot be shared out between {world_size} ranks")

    def __len__(self) -> int:
        """Batches of an epoch, the same for every rank."""
        return self._order(0).steps(self._world_size, self._batch_size)

    def epoch(self, epoch: int, start: int = 0, after: Sequence[Stretch] = ()) -> Iterator[Batch]:
        """The batches of one epoch of this rank, from batch `start` on, read ahead in a thread.

        Every kept sample occurs exactly once, on one rank (without `weigh`). All ranks have `len(self)`
        batches, of `batch_size` samples but for the last one or two, which may be smaller. (Only where
        batches are of one sample must a rank that is one short repeat its last one.)

        `after` are the stretches of this epoch that were read before (`order.EpochState.read`), by
        whatever number of ranks: then the batches are those of what they left.
        """
        batches = self._order(epoch, after).batches(self._rank, self._world_size, self._batch_size)
        return self._read_ahead(batches[start:])

    def take(self, indices: Sequence[int] | Positions) -> Batch:
        """The rows of `table` at these positions, in this order."""
        return next(self._read_ahead([np.asarray(indices, np.int64)]))

    def order(self, epoch: int, after: Sequence[Stretch] = ()) -> Positions:
        """Positions in `table` that this rank reads in an epoch, in their order."""
        return self._order(epoch, after).share(self._rank, self._world_size)

    def _order(self, epoch: int, after: Sequence[Stretch] = ()) -> EpochOrder:
        counts = None if self._weights is None else draw_counts(self._weights, self._seed, epoch)
        order = EpochOrder.make(
            self._group_of, len(self._groups), self._seed, epoch, shuffle=self._shuffle, counts=counts
        )
        for stretch in after:
            order = order.after(stretch)
        return order

    def _read_ahead(self, batches: Sequence[Positions]) -> Iterator[Batch]:
        """Batches of these rows, made ahead of time, in order.

        A row group is opened ahead of its first use and dropped after its last. Tasks are taken up in
        the order in which they are given, so a batch waits for row groups that are being opened, at
        most, and never for one behind it.
        """
        first_use: dict[int, int] = {}
        last_use: dict[int, int] = {}
        for step, rows in enumerate(batches):
            for group in np.unique(self._group_of[rows]).tolist():
                first_use.setdefault(group, step)
                last_use[group] = step
        unopened, groups = deque(first_use), dict[int, Future[RowGroup]]()
        making = deque[Future[Batch]]()
        pool = ThreadPoolExecutor(self._threads, "shard-reader")
        try:
            for step, rows in enumerate(batches):
                while unopened and first_use[unopened[0]] <= step + _OPEN_AHEAD:
                    group = unopened.popleft()
                    file, index = self._groups[group]
                    groups[group] = pool.submit(self._files[file].row_group, index)
                making.append(pool.submit(self._batch, rows, groups))
                groups = {group: opened for group, opened in groups.items() if last_use[group] > step}
                if len(making) > self._threads:
                    yield making.popleft().result()
            while making:
                yield making.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, rows: Positions, groups: Mapping[int, Future[RowGroup]]) -> Batch:
        arrays = {
            name: self._buffers.empty((len(rows), *spec.shape), spec.dtype)
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
            rows=Rows(self.table, rows),
        )


def _same_data_set(first: ShardFile, other: ShardFile) -> None:
    differences = first.metadata.differences(other.metadata)
    if differences:
        told = "; ".join(f"{name}: {one!r} and {two!r}" for name, (one, two) in differences.items())
        raise InputError(
            f"{first.uri} and {other.uri} are of different data sets ({told}); give shards of one run only"
        )

"""Shards as the data sets of `torch.utils.data`, for training loops that are built on its DataLoader.

    loader = DataLoader(ShardBatches(uris, batch_size=16), batch_size=None, num_workers=4)
    loader = DataLoader(ShardSamples(uris), batch_size=16, shuffle=True)

The first reads whole row groups in an order of its own, each worker its share; the second any sample at
any time.
Samples are dicts of tensors as they are stored, with their `sample_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import from_numpy
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from cropray.shards.reader import ShardReader
from cropray.types import Batch

Sample = dict[str, Any]


class ShardSamples(Dataset[Sample]):
    """Single samples by their number, decoded when they are asked for."""

    def __init__(self, uris: Sequence[str], **options: Any) -> None:
        self._uris, self._options = list(uris), options
        self._length = len(self._reader.table)

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self._uris, batch_size=1, **self._options)

    def __getstate__(self) -> dict[str, Any]:  # every worker opens the files for itself
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several at once, as a DataLoader asks for them."""
        batch = tensors(self._reader.take(indices))
        return [{name: values[i] for name, values in batch.items()} for i in range(len(indices))]


class ShardBatches(IterableDataset[Sample]):
    """Batches of an epoch, shared out between ranks and the workers of their DataLoaders.

    The arguments are those of `ShardReader`. `set_epoch` chooses the next order; the workers of a DataLoader
    with `persistent_workers` do not hear of it.
    """

    def __init__(
        self, uris: Sequence[str], *, batch_size: int, rank: int = 0, world_size: int = 1, **options: Any
    ) -> None:
        self._uris, self._options = list(uris), {"batch_size": batch_size, **options}
        self._rank, self._world_size, self._epoch = rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader = ShardReader(
            self._uris,
            rank=self._rank * workers + number,
            world_size=self._world_size * workers,
            **self._options,
        )
        return map(tensors, reader.epoch(self._epoch))


def tensors(batch: Batch) -> Sample:
    """A batch as torch tensors over its own memory: s1, s2, label, crop, sample_id; valid, truth if any."""
    arrays = {"s1": batch.s1_bcthw, "s2": batch.s2_bcthw, "label": batch.label_bhw, "crop": batch.crop_b}
    optional = {"valid": batch.valid_b2thw, "truth": batch.truth_bhw}
    arrays |= {name: values for name, values in optional.items() if values is not None}
    return {name: from_numpy(values) for name, values in arrays.items()} | {
        "sample_id": batch.rows["sample_id"]
    }

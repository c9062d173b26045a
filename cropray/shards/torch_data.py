"""Shards as datasets of `torch.utils.data`, for training loops that use its DataLoader.

    loader = DataLoader(ShardBatches(uris, batch_size=16), batch_size=None, num_workers=4)
    loader = DataLoader(ShardSamples(uris), batch_size=16, shuffle=True)

`ShardBatches` has an order of its own, by row groups, shared out between the workers; `ShardSamples` reads
any sample at any time. Both take the options of `ShardReader` and give dicts of tensors as they are stored.
Workers that read object storage must be spawned (`multiprocessing_context="spawn"`): Arrow's clients do not
survive a fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from cropray.shards.reader import ShardReader
from cropray.types import Batch

Sample = dict[str, Any]


class ShardSamples(Dataset[Sample]):
    """Single samples by number."""

    def __init__(self, uris: Sequence[str], **options: Any) -> None:
        self._reader = ShardReader(uris, batch_size=1, **options)
        self._arguments = list(uris), options

    def __reduce__(self) -> tuple[Any, ...]:  # every worker opens the files itself
        uris, options = self._arguments
        return partial(ShardSamples, **options), (uris,)

    def __len__(self) -> int:
        return len(self._reader.table)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples at once, for DataLoader."""
        batch = tensors(self._reader.take(indices))
        return [{name: values[i] for name, values in batch.items()} for i in range(len(indices))]


class ShardBatches(IterableDataset[Sample]):
    """Batches of an epoch, shared out between ranks and the workers of their DataLoaders."""

    def __init__(
        self, uris: Sequence[str], *, batch_size: int, rank: int = 0, world_size: int = 1, **options: Any
    ) -> None:
        self._uris, self._options = list(uris), {"batch_size": batch_size, **options}
        self._rank, self._world_size = rank, world_size
        epoch: Any = torch.zeros((), dtype=torch.int64)  # `share_memory_` has no types
        self._epoch: Tensor = epoch.share_memory_()  # so that persistent workers see a new epoch too

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader = ShardReader(
            self._uris,
            rank=self._rank * workers + number,
            world_size=self._world_size * workers,
            **self._options,
        )
        return map(tensors, reader.epoch(int(self._epoch)))


def tensors(batch: Batch) -> Sample:
    """A batch as torch tensors over its own memory, and the list of its `sample_id`."""
    arrays = {"s1": batch.s1_bcthw, "s2": batch.s2_bcthw, "label": batch.label_bhw, "crop": batch.crop_b}
    if batch.truth_bhw is not None:
        arrays["truth"] = batch.truth_bhw
    converted = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return converted | {"sample_id": batch.rows["sample_id"]}

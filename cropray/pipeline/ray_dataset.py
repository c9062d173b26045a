"""Shards as a data set of Ray Data: decoded and checked batches, for pipelines that are built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cropray.shards.file import ShardFile, open_shards

if TYPE_CHECKING:
    from ray.data import Dataset


def to_ray_dataset(uris: Sequence[str]) -> Dataset:
    """Rows of tensors (s1, s2, label, truth if any) and of all scalar columns, one row group a task.

    Tensors are as they are stored; every checksum is verified. Raises InputError for shards that
    cannot be opened; damage within them fails the task that meets it.
    """
    import ray

    groups = [
        {"uri": file.uri, "group": group}
        for file in open_shards(uris)
        for group in range(len(file.group_sizes))
    ]
    places = ray.data.from_items(groups, override_num_blocks=max(1, len(groups)))
    return places.map_batches(_read_groups, batch_size=1, batch_format="numpy")


def _read_groups(places: dict[str, npt.NDArray[Any]]) -> pa.Table:
    """One row group, tensors as Ray's tensor columns."""
    from ray.data.extensions import ArrowTensorArray

    (uri,), (group,) = places["uri"], places["group"]
    file = ShardFile.open(str(uri))
    rows, size = file.row_group(int(group)), file.group_sizes[int(group)]
    samples = [rows.read(row) for row in range(size)]
    table = file.scalars.slice(rows.first_row, size)
    for name in file.metadata.tensors:
        values = np.stack([sample[name] for sample in samples])
        table = table.append_column(name, ArrowTensorArray.from_numpy(values))
    return table

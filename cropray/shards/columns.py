"""Tables of a shard and the arrays of their tensor columns, and the checksum of the other columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from cropray.shards import residuals
from cropray.shards.schema import PLAIN, RESIDUALS, SCALARS, ShardMetadata

NewArray = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
"""Gives an array of a shape and dtype, such as `np.empty`."""


def assemble(
    scalars: pa.Table,
    samples: Iterable[Mapping[str, npt.NDArray[Any]]],
    metadata: ShardMetadata,
    new: NewArray = np.empty,
) -> pa.Table:
    """A table of plain tensors from the scalar columns of its rows and their tensors, taken one by one."""
    specs = metadata.tensors.items()
    tensors = {name: new((len(scalars), *spec.shape), spec.dtype) for name, spec in specs}
    for row, sample in enumerate(samples):
        for name, values in sample.items():
            tensors[name][row] = values
    columns = [*scalars.select(list(SCALARS)).columns]
    columns += [_column(tensors[name], spec.nbytes) for name, spec in specs]
    return pa.Table.from_arrays(columns, schema=metadata.schema)


def arrays(table: pa.Table, metadata: ShardMetadata) -> dict[str, npt.NDArray[Any]]:
    """The plain tensors of a table as arrays (rows, *shape): read-only, over its own buffers."""
    found = {}
    for name, spec in metadata.tensors.items():
        column = table.column(name)
        # combine_chunks would copy a single chunk too.
        chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        data = np.frombuffer(
            chunk.buffers()[1], np.uint8, len(chunk) * spec.nbytes, chunk.offset * spec.nbytes
        )
        found[name] = data.view(spec.dtype).reshape(len(chunk), *spec.shape)
    return found


def encode(table: pa.Table, metadata: ShardMetadata, new: NewArray = np.empty) -> pa.Table:
    """A table of plain tensors as one of the encoding of `metadata`."""
    if metadata.encoding == PLAIN:
        return table
    plain = arrays(table, metadata)
    for name, spec in metadata.tensors.items():
        if spec.encoding == RESIDUALS:
            values = new((len(table), spec.nbytes), np.uint8)
            for row, tensor in enumerate(plain[name]):
                values[row] = np.frombuffer(residuals.encode(tensor), np.uint8)
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(name), _column(values, spec.nbytes))
    return table


def _column(values: npt.NDArray[Any], nbytes: int) -> pa.Array:
    """Rows of an array as binary values over its own memory."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(nbytes), len(values), [None, pa.py_buffer(values)])


def rows_checksum(table: pa.Table, metadata_json: bytes) -> str:
    """xxh3 of the metadata and the scalar columns of a whole shard, as hexadecimal."""
    digest = xxhash.xxh3_64(metadata_json)
    for name in SCALARS:
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(np.ascontiguousarray(column.value_lengths()).tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update("\n".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()

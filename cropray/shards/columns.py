"""Tables of a shard and the arrays of their tensor columns, and the checksum of the other columns."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cropray.shards import residuals
from cropray.shards.schema import PLAIN, RESIDUALS, SCALARS, ShardMetadata


class Buffers:
    """Hands out arrays and takes their memory back once nobody refers to them or to a view of them."""

    def __init__(self) -> None:
        self._idle: list[npt.NDArray[np.uint8]] = []

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A writable C-ordered array of undefined values."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        fitting = (i for i, memory in enumerate(self._idle) if memory.nbytes >= nbytes)
        at = next(fitting, None)
        memory = np.empty(nbytes, np.uint8) if at is None else self._idle.pop(at)
        # Every view's base is `lent`, whose own base is no array, so it lives as long as they do.
        lent = np.frombuffer(memory.data, np.uint8, nbytes)
        weakref.finalize(lent, self._idle.append, memory).atexit = False
        return lent.view(dtype).reshape(shape)


_CODECS = {"UNCOMPRESSED": None, "LZ4": "lz4_raw", "ZSTD": "zstd"}
_STOP, _TRUE, _FALSE, _BYTE, _INTEGERS, _BINARY, _STRUCT = 0, 1, 2, 3, (4, 5, 6), 8, 12


@dataclass(frozen=True)
class Column:
    """A column of fixed-size binaries: its name, the bytes of a value, its codec as Parquet names it."""

    name: str
    nbytes: int
    compression: str


def find_chunks(
    file: pq.FileMetaData, nbytes: Mapping[str, int]
) -> tuple[tuple[Column, ...], npt.NDArray[np.int64]]:
    """Columns of values of so many bytes, and where they lie in a file.

    The first byte and the number of bytes of each chunk: (row groups, columns, 2). Raises ValueError where
    a column is absent, or of several codecs, or of one that is not read.
    """
    place = {file.schema.column(i).name: i for i in range(file.num_columns)}
    ranges = np.empty((file.num_row_groups, len(nbytes), 2), np.int64)
    compression: dict[str, set[str]] = {name: set() for name in nbytes}
    for group in range(file.num_row_groups):
        row_group = file.row_group(group)
        for i, name in enumerate(nbytes):
            chunk = row_group.column(place[name])
            ranges[group, i] = chunk.data_page_offset, chunk.total_compressed_size
            compression[name].add(chunk.compression)
    for name, codecs in compression.items():
        if len(codecs) > 1 or codecs - _CODECS.keys():
            raise ValueError(f"codec {', '.join(sorted(codecs))} of column {name} is not read")
    columns = (Column(name, size, min(compression[name], default="")) for name, size in nbytes.items())
    return tuple(columns), ranges


class ColumnPages:
    """The `rows` values of one column chunk, whose bytes are `chunk`: required and plain.

    Raises ValueError where they are not such pages, or of another number of rows.
    """

    def __init__(self, chunk: pa.Buffer, column: Column, rows: int) -> None:
        codec, nbytes = _CODECS[column.compression], column.nbytes
        self._codec = pa.Codec(codec) if codec else None
        self._nbytes = nbytes
        self._first_rows: list[int] = []
        self._pages: list[tuple[pa.Buffer, int]] = []  # stored bytes, values
        found, at, view = 0, 0, memoryview(chunk).cast("B")
        while found < rows:
            header, start = _struct(view, at)
            match header:
                # A data page, version 1; its uncompressed and stored size; its values, encoded plainly.
                case {1: 0, 2: int(raw), 3: int(stored), 5: {1: int(values), 2: 0}} if (
                    raw == values * nbytes and stored > 0 and start + stored <= len(view)
                ):
                    at = start + stored
                case _:
                    raise ValueError(f"a page of column {column.name} is not as wanted")
            self._first_rows.append(found)
            self._pages.append((chunk.slice(start, stored), values))
            found += values
        if found != rows or at != len(view):
            raise ValueError(f"column {column.name} has {found} rows, wanted {rows}")

    def value(self, row: int) -> memoryview:
        """The bytes of one value; read-only. Raises ValueError or OSError where they are damaged."""
        page = bisect_right(self._first_rows, row) - 1
        data, values = self._pages[page]
        if self._codec is not None:
            data = self._codec.decompress(data, values * self._nbytes)
        start = (row - self._first_rows[page]) * self._nbytes
        return memoryview(data)[start : start + self._nbytes]


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of the compact protocol at a byte: its fields by number, and the byte after it.

    Lists, which no header of a data page holds, and everything else that is not one are a ValueError.
    """
    fields: dict[int, Any] = {}
    number = 0
    while True:
        kind, delta, at = data[at] & 15, data[at] >> 4, at + 1
        if kind == _STOP:
            return fields, at
        if delta:
            number += delta
        else:
            number, at = _integer(data, at)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        elif kind == _BYTE:
            fields[number], at = data[at], at + 1
        elif kind in _INTEGERS:
            fields[number], at = _integer(data, at)
        elif kind == _BINARY:
            length, at = _varint(data, at)
            fields[number], at = bytes(data[at : at + length]), at + length
        elif kind == _STRUCT:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"byte {at} belongs to no page header")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    """A zigzag varint: 0, -1, 1, -2 … are 0, 1, 2, 3 …."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


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

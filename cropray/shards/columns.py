"""Tensor columns of a shard, decoded value by value. pyarrow itself decodes whole row groups only.

The page headers are Thrift structs in the compact protocol (https://parquet.apache.org/docs/file-format/).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_CODECS = {"UNCOMPRESSED": None, "LZ4": "lz4_raw", "ZSTD": "zstd"}  # Parquet's names to Arrow's
_STOP, _INTEGERS, _STRUCT = 0, (4, 5, 6), 12  # types of Thrift fields

Fetch = Callable[[int, int], pa.Buffer]
"""Gives the bytes of a file: from which one on, and how many."""


@dataclass(frozen=True)
class Column:
    """A column of fixed-size binaries: its name, the bytes of a value, and its codec by Parquet's name."""

    name: str
    nbytes: int
    compression: str


def find_chunks(
    file: pq.FileMetaData, nbytes: Mapping[str, int]
) -> tuple[tuple[Column, ...], npt.NDArray[np.int64]]:
    """The columns named in `nbytes` (bytes of a value), and where their chunks lie in the file.

    The array (row groups, columns, 2) has the first byte and the number of bytes of each chunk. Raises
    ValueError if a column is missing, has several codecs, or one that cropray does not read.
    """
    place = [file.schema.names.index(name) for name in nbytes]
    groups = [file.row_group(group) for group in range(file.num_row_groups)]
    chunks = [[group.column(i) for i in place] for group in groups]
    columns = []
    for name, *codecs in zip(nbytes, *([chunk.compression for chunk in row] for row in chunks), strict=True):
        if len(set(codecs)) > 1 or set(codecs) - _CODECS.keys():
            raise ValueError(f"codec {', '.join(sorted(set(codecs)))} of column {name} is not supported")
        columns.append(Column(name, nbytes[name], codecs[0] if codecs else ""))
    ranges = [[(chunk.data_page_offset, chunk.total_compressed_size) for chunk in row] for row in chunks]
    return tuple(columns), np.array(ranges, np.int64).reshape(-1, len(place), 2)


def find_pages(
    fetch: Fetch, columns: Sequence[Column], ranges_c2: npt.NDArray[np.int64], rows: int
) -> dict[str, ColumnPages]:
    """The pages of a row group by column, all fetched at once. Raises ValueError if they are damaged."""
    ranges = ranges_c2.tolist()
    first = min(start for start, _ in ranges)
    chunks = fetch(first, max(start + size for start, size in ranges) - first)
    return {
        column.name: ColumnPages(chunks.slice(start - first, size), column, rows)
        for column, (start, size) in zip(columns, ranges, strict=True)
    }


class ColumnPages:
    """The values of one column chunk, whose bytes are `chunk`.

    Raises ValueError unless it has `rows` values, without nulls, in plainly encoded pages of version 1.
    """

    def __init__(self, chunk: pa.Buffer, column: Column, rows: int) -> None:
        codec, nbytes = _CODECS[column.compression], column.nbytes
        self._codec = pa.Codec(codec) if codec else None
        self._nbytes = nbytes
        self._first_rows: list[int] = []
        self._pages: list[tuple[pa.Buffer, int]] = []  # stored bytes, number of values
        found, at, view = 0, 0, memoryview(chunk).cast("B")
        while found < rows:
            header, start = _struct(view, at)
            match header:
                # A data page of version 1: its plain and stored sizes, its number of values, plain encoding.
                case {1: 0, 2: int(raw), 3: int(stored), 5: {1: int(values), 2: 0}} if (
                    raw == values * nbytes and stored > 0 and start + stored <= len(view)
                ):
                    at = start + stored
                case _:
                    raise ValueError(f"a page of column {column.name} is not a plain data page")
            self._first_rows.append(found)
            self._pages.append((chunk.slice(start, stored), values))
            found += values
        if found != rows or at != len(view):
            raise ValueError(f"column {column.name} has {found} rows, expected {rows}")

    def value(self, row: int) -> memoryview:
        """The bytes of one value, read-only. Raises ValueError or OSError if they are damaged."""
        page = bisect_right(self._first_rows, row) - 1
        data, values = self._pages[page]
        if self._codec is not None:
            data = self._codec.decompress(data, values * self._nbytes)
        start = (row - self._first_rows[page]) * self._nbytes
        return memoryview(data)[start : start + self._nbytes]


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """The struct that begins at byte `at`: its fields by number, and the byte after it.

    Raises ValueError for fields of other types than integers and structs, which page headers without
    statistics do not have.
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
        if kind in _INTEGERS:
            fields[number], at = _integer(data, at)
        elif kind == _STRUCT:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"byte {at} is not part of a page header")


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    """A varint of a zigzag number (0, -1, 1, -2 … are stored as 0, 1, 2, 3 …), and the byte after it."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def empty_array(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A writable array of undefined values, in memory of Arrow's.

    Its allocator reuses freed memory. numpy returns memory of this size to the system, and filling new
    memory makes reading a sample a fifth slower.
    """
    return np.frombuffer(pa.allocate_buffer(prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)

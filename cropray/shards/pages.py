"""Single values of a Parquet column of fixed-size binaries, without reading their row group.

Parquet readers decode a column chunk into new memory: a copy of every value, and of whole row groups
where a batch wants single samples of many. Here a chunk stays as it lies in the file, and a value is
decompressed where and when it is wanted; one that is not compressed is a view of the file. The layout
is that of the Parquet format, https://parquet.apache.org/docs/file-format/: a chunk is a row of
pages, each a header (a struct in Thrift's compact protocol) and the data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

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

"""One open shard: its metadata, its scalar columns, and checked tensors sample by sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cropray.shards.cache import RangeCache
from cropray.shards.pages import ColumnPages, chunk_range
from cropray.shards.schema import ROWS_KEY, SCALARS, ShardMetadata, checksum, decode, rows_checksum
from cropray.storage import resolve
from cropray.types import InputError

Tensors = dict[str, npt.NDArray[Any]]

# In the messages of Arrow's clients of object storage, and in none about a file's content.
_STORE = re.compile(r"AWS Error|HTTP status|curlCode|google::cloud")


@dataclass(frozen=True)
class ShardFile:
    """A shard whose footer and scalar columns were read and found sound.

    A local file stays mapped (not open) from the first row group on: mapping costs half of a read.
    Row groups of a remote one are kept in `cache`, if there is one.
    """

    uri: str
    metadata: ShardMetadata
    scalars: pa.Table  # all rows, the columns of `schema.SCALARS`
    footer: dict[bytes, bytes]
    group_sizes: tuple[int, ...]  # rows of each row group
    _parquet: pq.FileMetaData
    cache: RangeCache | None = None

    @classmethod
    def open(cls, uri: str, cache: RangeCache | None = None) -> ShardFile:
        """Raises InputError where the file is missing, cut, damaged, or of another format."""
        with _opened(uri) as file:
            metadata = ShardMetadata.from_schema(file.schema_arrow, uri)
            scalars = file.read(columns=list(SCALARS), use_threads=False)
            scalars.validate(full=True)
            footer = dict(file.metadata.metadata)
            if rows_checksum(scalars, metadata.to_json().encode()) != footer[ROWS_KEY].decode():
                raise _damaged(uri, "the checksum of its columns does not match")
            parquet = file.metadata
        sizes = tuple(parquet.row_group(i).num_rows for i in range(parquet.num_row_groups))
        return cls(uri, metadata, scalars.replace_schema_metadata(None), footer, sizes, parquet, cache)

    def __reduce__(self) -> tuple[Any, ...]:  # the mapping stays here
        return ShardFile, tuple(getattr(self, field.name) for field in fields(self))

    def row_group(self, group: int) -> RowGroup:
        """One row group: its bytes are read (remote) or found (local), and not yet decoded.

        Raises InputError as `open`.
        """
        parquet, tensors = self._parquet.row_group(group), self.metadata.tensors
        columns = {self._parquet.schema.column(i).name: parquet.column(i) for i in range(parquet.num_columns)}
        ranges = {name: chunk_range(columns[name]) for name in tensors}
        first = min(start for start, _ in ranges.values())
        with _explained(self.uri):
            bytes_ = self._fetch(first, max(start + size for start, size in ranges.values()) - first)
            pages = {
                name: ColumnPages(bytes_.slice(start - first, size), columns[name], tensors[name].nbytes)
                for name, (start, size) in ranges.items()
            }
        return RowGroup(self, sum(self.group_sizes[:group]), pages)

    @property
    def codec(self) -> str:
        """Of the tensor columns, as Parquet names it."""
        return "+".join(sorted({column.compression for column in self._tensor_columns()}))

    @property
    def tensor_bytes(self) -> int:
        """Of the tensor columns as they are stored."""
        return sum(column.total_compressed_size for column in self._tensor_columns())

    def _tensor_columns(self) -> Iterator[pq.ColumnChunkMetaData]:
        for group in range(self._parquet.num_row_groups):
            columns = self._parquet.row_group(group)
            for i in range(columns.num_columns):
                if self._parquet.schema.column(i).name in self.metadata.tensors:
                    yield columns.column(i)

    @cached_property
    def checksums(self) -> npt.NDArray[np.uint64]:
        """xxh3 of the tensors of every row."""
        values: npt.NDArray[np.uint64] = self.scalars["xxh3"].to_numpy()
        return values

    @cached_property
    def _fetch(self) -> Callable[[int, int], pa.Buffer]:
        """Bytes (first, how many) of the file."""
        filesystem, path = resolve(self.uri)
        if isinstance(filesystem, pafs.LocalFileSystem):
            with pa.memory_map(path) as file:
                whole = file.read_buffer()  # keeps the mapping
                return cast(Callable[[int, int], pa.Buffer], whole.slice)
        remote = filesystem.open_input_file(path)

        def fetch(start: int, size: int) -> pa.Buffer:
            return pa.py_buffer(remote.read_at(size, start))

        if self.cache is None:
            return fetch
        # The checksum of the columns tells one content of a URI from a later one.
        cache, name = self.cache, f"{self.uri} {self.footer[ROWS_KEY].decode()}"
        return lambda start, size: cache.read(f"{name} {start} {size}", lambda: fetch(start, size))


@dataclass(frozen=True)
class RowGroup:
    """The tensors of the rows of a file from `first_row` on, decoded sample by sample."""

    file: ShardFile
    first_row: int
    pages: dict[str, ColumnPages]

    def read(self, row: int) -> Tensors:
        """The tensors of one sample by name, not to be written to: they may be views of the file.

        Their checksum is verified. Raises InputError that names the file, the row and the sample.
        """
        file, row_of_file = self.file, self.first_row + row
        with _explained(f"{file.uri}, row {row_of_file}"):
            tensors = {
                name: spec.decode(self.pages[name].value(row)) for name, spec in file.metadata.tensors.items()
            }
        if checksum(tensors.values()) != file.checksums[row_of_file]:
            raise _damaged_sample(file.uri, row_of_file, file.scalars["sample_id"][row_of_file].as_py())
        return tensors


def read_footer(uri: str) -> dict[bytes, bytes]:
    """The keys of a shard's Parquet metadata. Raises InputError as `ShardFile.open`."""
    with _opened(uri) as file:
        ShardMetadata.from_schema(file.schema_arrow, uri)
        return dict(file.metadata.metadata)


def read_group_table(uri: str, metadata: ShardMetadata, group: int) -> pa.Table:
    """All columns of one row group as they are stored, its tensors verified.

    Raises InputError as `ShardFile.open` and `RowGroup.read`.
    """
    with _opened(uri) as file:
        table = file.read_row_group(group, use_threads=False)
        first_row = sum(file.metadata.row_group(i).num_rows for i in range(group))
    arrays = decode(table, metadata)
    for row, wanted in enumerate(table["xxh3"].to_pylist()):
        if checksum(values[row] for values in arrays.values()) != wanted:
            raise _damaged_sample(uri, first_row + row, table["sample_id"][row].as_py())
    return table


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = resolve(uri)
    with (
        _explained(uri),
        filesystem.open_input_file(path) as source,
        pq.ParquetFile(source, pre_buffer=True) as file,
    ):
        yield file


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """What is found wrong with a file becomes an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"there is no shard {where}; run the stage that makes it (export, compact)"
        ) from error
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if _STORE.search(str(error)):
            raise InputError(
                f"{where} cannot be read now ({str(error).splitlines()[0]}): the object storage was asked "
                "again and again; check network and permission, and run the same command again"
            ) from error
        raise _damaged(where, str(error).splitlines()[0]) from error


def _damaged_sample(uri: str, row: int, sample_id: str) -> InputError:
    return InputError(
        f"{uri}, row {row}: sample {sample_id} is damaged (its checksum does not match); "
        "delete the file and run the stage that made it again"
    )


def _damaged(where: str, why: str) -> InputError:
    return InputError(f"{where} is cut or damaged ({why}); delete it and run the stage that made it again")

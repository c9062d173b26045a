"""One open shard: its metadata, its scalar columns, and row groups of checked tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cropray.shards.schema import ROWS_KEY, SCALARS, ShardMetadata, decode, rows_checksum, verify
from cropray.storage import resolve
from cropray.types import InputError

Tensors = dict[str, npt.NDArray[Any]]
_CHECKED = ["sample_id", "xxh3"]


@dataclass(frozen=True)
class ShardFile:
    """A shard whose footer and scalar columns were read and found sound; holds no open file."""

    uri: str
    metadata: ShardMetadata
    scalars: pa.Table  # all rows, the columns of `schema.SCALARS`
    footer: dict[bytes, bytes]
    group_sizes: tuple[int, ...]  # rows of each row group
    _parquet: pq.FileMetaData

    @classmethod
    def open(cls, uri: str) -> ShardFile:
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
        return cls(uri, metadata, scalars.replace_schema_metadata(None), footer, sizes, parquet)

    def read_group(self, group: int) -> Tensors:
        """Tensors (rows, *shape) of one row group by name, read-only views of Arrow's buffers.

        Every sample's checksum is verified. Raises InputError that names the file and the sample.
        """
        columns = [*_CHECKED, *self.metadata.tensors]
        with _opened(self.uri, self._parquet) as file:
            table = file.read_row_group(group, columns=columns, use_threads=False)
        arrays = decode(table, self.metadata)
        verify(arrays, table, self.uri)
        return arrays


def read_footer(uri: str) -> dict[bytes, bytes]:
    """The keys of a shard's Parquet metadata. Raises InputError as `ShardFile.open`."""
    with _opened(uri) as file:
        ShardMetadata.from_schema(file.schema_arrow, uri)
        return dict(file.metadata.metadata)


def read_group_table(uri: str, metadata: ShardMetadata, group: int) -> pa.Table:
    """All columns of one row group, its tensors verified. Raises InputError as `ShardFile.open`."""
    with _opened(uri) as file:
        table = file.read_row_group(group, use_threads=False)
    verify(decode(table, metadata), table, uri)
    return table


@contextmanager
def _opened(uri: str, parquet: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    with _readable(uri) as source, pq.ParquetFile(source, metadata=parquet, pre_buffer=True) as file:
        yield file


@contextmanager
def _readable(uri: str) -> Iterator[pa.NativeFile]:
    """The open file; what Arrow finds wrong with it becomes an InputError."""
    filesystem, path = resolve(uri)
    # Mapping a local file saves a copy of every page, half of the time of a read.
    local = isinstance(filesystem, pafs.LocalFileSystem)
    try:
        with pa.memory_map(path) if local else filesystem.open_input_file(path) as source:
            yield source
    except FileNotFoundError as error:
        raise InputError(f"there is no shard {uri}; run the stage that makes it (export, compact)") from error
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise _damaged(uri, str(error).splitlines()[0]) from error


def _damaged(uri: str, why: str) -> InputError:
    return InputError(f"{uri} is cut or damaged ({why}); delete it and run the stage that made it again")

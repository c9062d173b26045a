"""One open shard: its metadata, its scalar columns, and checked tensors sample by sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import xxhash

from cropray.errors import InputError
from cropray.shards.columns import Column, ColumnPages, find_chunks, rows_checksum
from cropray.shards.schema import ROWS_KEY, SCALARS, ShardMetadata, checksum
from cropray.storage import Folder, resolve

Tensors = dict[str, npt.NDArray[Any]]

# In the messages of Arrow's clients of object storage, and in none about a file's content.
_STORE = re.compile(r"AWS Error|HTTP status|curlCode|google::cloud")


@dataclass(frozen=True, eq=False)
class ShardFile:
    """A shard whose footer and scalar columns were read and found sound, or some rows of one.

    A local file stays mapped (not open) from the first row group on: mapping costs half of a read.
    """

    uri: str
    metadata: ShardMetadata
    scalars: pa.Table  # all rows, the columns of `schema.SCALARS`
    footer: dict[bytes, bytes]
    group_sizes: tuple[int, ...]  # rows of each row group
    columns: tuple[Column, ...]  # of the tensors
    ranges_gc2: npt.NDArray[np.int64]  # first byte and number of bytes, by row group and column
    first_row: int = 0  # of these in the file

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
            sizes = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            nbytes = {name: spec.nbytes for name, spec in metadata.tensors.items()}
            columns, ranges = find_chunks(file.metadata, nbytes)
        return cls(uri, metadata, scalars.replace_schema_metadata(None), footer, sizes, columns, ranges)

    def row_group(self, group: int) -> RowGroup:
        """One row group: its bytes are read (remote) or found (local), and not yet decoded.

        Raises InputError as `open`.
        """
        with _explained(self.uri):
            return self._row_group(group, self._fetch)

    def load_row_group(self, group: int, filesystem: pafs.FileSystem, path: str) -> RowGroup:
        """As `row_group`, for one that is wanted once: nothing of the file stays mapped or open.

        Its file system and path are given, for one that is opened anew connects anew.
        """
        with _explained(self.uri), filesystem.open_input_file(path) as source:

            def fetch(start: int, size: int) -> pa.Buffer:
                source.seek(start)
                return source.read_buffer(size)

            return self._row_group(group, fetch)

    def _row_group(self, group: int, fetch: Callable[[int, int], pa.Buffer]) -> RowGroup:
        ranges_c2 = self.ranges_gc2[group].tolist()
        first = min(start for start, _ in ranges_c2)
        bytes_ = fetch(first, max(start + size for start, size in ranges_c2) - first)
        pages = {
            column.name: ColumnPages(bytes_.slice(start - first, size), column, self.group_sizes[group])
            for column, (start, size) in zip(self.columns, ranges_c2, strict=True)
        }
        return RowGroup(self, sum(self.group_sizes[:group]), pages)

    @property
    def codec(self) -> str:
        """Of the tensor columns, as Parquet names it."""
        return "+".join(sorted({column.compression for column in self.columns}))

    @property
    def tensor_bytes(self) -> int:
        """Of the tensor columns as they are stored."""
        return int(self.ranges_gc2[..., 1].sum())

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

        return fetch


@dataclass(frozen=True)
class RowGroup:
    """The tensors of the rows of `file` from `first_row` on, decoded sample by sample."""

    file: ShardFile
    first_row: int
    pages: dict[str, ColumnPages]

    def read(self, row: int) -> Tensors:
        """The tensors of one sample by name, not to be written to: they may be views of the file.

        Their checksum is verified. Raises InputError that names the file, the row and the sample.
        """
        file, at = self.file, self.first_row + row
        row_of_file = file.first_row + at
        with _explained(f"{file.uri}, row {row_of_file}"):
            tensors = {
                name: spec.decode(self.pages[name].value(row)) for name, spec in file.metadata.tensors.items()
            }
        if checksum(tensors.values()) != file.checksums[at]:
            raise _damaged_sample(file.uri, row_of_file, file.scalars["sample_id"][at].as_py())
        return tensors


def read_footer(uri: str) -> dict[bytes, bytes]:
    """The keys of a shard's Parquet metadata. Raises InputError as `ShardFile.open`."""
    with _opened(uri) as file:
        ShardMetadata.from_schema(file.schema_arrow, uri)
        return dict(file.metadata.metadata)


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


_READERS = 8  # footers read at the same time: object storage answers slowly


def shard_name(split: str, index: int) -> str:
    return f"shards/{split}/{index:05d}.parquet"


def shard_uris(folder: Folder, split: str) -> list[str]:
    """The shards of one split of a run folder, in order; none where there are none."""
    shards = folder.child(f"shards/{split}")
    return [f"{shards.uri}/{name}" for name in shards.names(".parquet")]


def refuse_missing(folder: Folder, recorded: Mapping[str, int]) -> None:
    """Raises InputError where a split has another number of shards than compaction recorded."""
    for split, count in recorded.items():
        there = len(shard_uris(folder, split))
        if there != count:
            raise InputError(
                f"{folder}/shards/{split} has {there} shards, but compact wrote {count}; run compact again"
            )


def fingerprint(uris: Sequence[str]) -> str:
    """Names the samples of shards by their footers. Raises InputError for a shard that is damaged."""
    with ThreadPoolExecutor(_READERS) as pool:
        checksums = pool.map(lambda uri: read_footer(uri).get(ROWS_KEY, b""), uris)
        rows = [(uri.split("/")[-2:], checksum) for uri, checksum in zip(uris, checksums, strict=True)]
    return xxhash.xxh3_64_hexdigest(repr(rows).encode())

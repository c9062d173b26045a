"""An open shard: its metadata, its scalar columns, and verified tensors sample by sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import xxhash

from cropray.errors import InputError
from cropray.shards.columns import Column, ColumnPages, Fetch, find_chunks, find_pages
from cropray.shards.schema import (
    ROWS_KEY,
    SCALARS,
    WRITE_AGAIN,
    ShardMetadata,
    TensorSpec,
    checksum,
    rows_checksum,
)
from cropray.storage import Folder, resolve

T = TypeVar("T")
Tensors = dict[str, npt.NDArray[Any]]

# Found in the messages of Arrow's object storage clients, and in none about a file's content.
_STORE = re.compile(r"AWS Error|HTTP status|curlCode|google::cloud")


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Consecutive rows of a shard, whose tensors are decoded and verified one sample at a time."""

    uri: str
    first_row: int  # of these in the file
    sample_ids: pa.ChunkedArray
    checksums: npt.NDArray[np.uint64]
    specs: dict[str, TensorSpec]
    pages: dict[str, ColumnPages]

    def read(self, row: int) -> Tensors:
        """The tensors of one sample by name, read-only: they may be views of the file.

        Raises InputError that names file, row and sample if the checksum does not match.
        """
        where = f"{self.uri}, row {self.first_row + row}"
        with reading(where):
            tensors = {name: spec.decode(self.pages[name].value(row)) for name, spec in self.specs.items()}
        if checksum(tensors.values()) != self.checksums[row]:
            sample_id = self.sample_ids[row].as_py()
            raise InputError(f"{where}: sample {sample_id} is damaged (wrong checksum); {WRITE_AGAIN}")
        return tensors


@dataclass(frozen=True, eq=False)
class ShardFile:
    """A shard with a sound footer and sound scalar columns.

    A local file is mapped, though not open, once a row group was used: mapping costs half of a read.
    """

    uri: str
    metadata: ShardMetadata
    scalars: pa.Table  # all rows of the columns `schema.SCALARS`
    group_sizes: tuple[int, ...]  # rows of each row group
    columns: tuple[Column, ...]  # of the tensors
    ranges_gc2: npt.NDArray[np.int64]  # first byte and number of bytes, by row group and column

    @classmethod
    def open(cls, uri: str) -> ShardFile:
        """Raises InputError if the file is missing, truncated, damaged, or of another format."""
        with _opened(uri) as file:
            metadata = ShardMetadata.from_schema(file.schema_arrow, uri)
            scalars = file.read(columns=list(SCALARS), use_threads=False)
            scalars.validate(full=True)
            expected = file.metadata.metadata[ROWS_KEY].decode()
            if rows_checksum(scalars, metadata.to_json().encode()) != expected:
                raise ValueError("the checksum of its columns does not match")
            sizes = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            nbytes = {name: spec.nbytes for name, spec in metadata.tensors.items()}
            columns, ranges = find_chunks(file.metadata, nbytes)
        return cls(uri, metadata, scalars.replace_schema_metadata(None), sizes, columns, ranges)

    def row_group(self, group: int) -> RowGroup:
        """One row group, fetched if the file is remote, and not yet decoded. Raises InputError as `open`."""
        first, size = sum(self.group_sizes[:group]), self.group_sizes[group]
        with reading(self.uri):
            pages = find_pages(self._fetch, self.columns, self.ranges_gc2[group], size)
        names, checksums = self.scalars["sample_id"][first:], self.checksums[first:]
        return RowGroup(self.uri, first, names, checksums, self.metadata.tensors, pages)

    @cached_property
    def checksums(self) -> npt.NDArray[np.uint64]:
        """xxh3 of the tensors of every row."""
        values: npt.NDArray[np.uint64] = self.scalars["xxh3"].to_numpy()
        return values

    @cached_property
    def _fetch(self) -> Fetch:
        filesystem, path = resolve(self.uri)
        if isinstance(filesystem, pafs.LocalFileSystem):
            with pa.memory_map(path) as file:
                whole = file.read_buffer()  # keeps the mapping
                return cast(Fetch, whole.slice)
        return ranged(filesystem.open_input_file(path))


def ranged(source: pa.NativeFile) -> Fetch:
    """Bytes of an open file. Several threads may fetch at once."""
    return lambda start, size: pa.py_buffer(source.read_at(size, start))


def open_shards(uris: Sequence[str]) -> Iterator[ShardFile]:
    """The shards, in order, opened several at a time. Raises InputError as `ShardFile.open`."""
    return map_footers(ShardFile.open, uris)


def mismatches(files: Sequence[ShardFile]) -> Iterator[str]:
    """Says which shards are not of the data set of the first, and why."""
    for file in files[1:]:
        differences = files[0].metadata.differences(file.metadata)
        if differences:
            values = "; ".join(f"{name}: {one!r} and {two!r}" for name, (one, two) in differences.items())
            yield f"{files[0].uri} and {file.uri} are of different data sets ({values})"


def read_footer(uri: str) -> dict[bytes, bytes]:
    """The keys of a shard's Parquet metadata. Raises InputError as `ShardFile.open`."""
    with _opened(uri) as file:
        ShardMetadata.from_schema(file.schema_arrow, uri)
        return dict(file.metadata.metadata)


def map_footers(read: Callable[[str], T], uris: Iterable[str]) -> Iterator[T]:
    """`read` of each URI, in order, eight at a time: object storage takes long to answer."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(read, uris)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = resolve(uri)
    with (
        reading(uri),
        filesystem.open_input_file(path) as source,
        pq.ParquetFile(source, pre_buffer=True) as file,
    ):
        yield file


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns every error of reading a shard into an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"there is no shard {where}; run the stage that makes it (export, compact)"
        ) from error
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0]
        if _STORE.search(str(error)):
            raise InputError(
                f"{where} cannot be read: the object storage failed repeatedly ({reason}). Check the network "
                "and your permissions, and run the same command again"
            ) from error
        raise InputError(f"{where} is truncated or damaged ({reason}); {WRITE_AGAIN}") from error


def shard_name(split: str, index: int) -> str:
    return f"shards/{split}/{index:05d}.parquet"


def shard_uris(folder: Folder, split: str) -> list[str]:
    """The shards of one split of a run folder, in order; an empty list if there are none."""
    shards = folder.child(f"shards/{split}")
    return [f"{shards.uri}/{name}" for name in shards.names(".parquet")]


def check_shards(folder: Folder, recorded: Mapping[str, int]) -> None:
    """Raises InputError if a split has another number of shards than compaction recorded."""
    for split, count in recorded.items():
        found = len(shard_uris(folder, split))
        if found != count:
            raise InputError(
                f"{folder}/shards/{split} has {found} shards, but compact wrote {count}; run compact again"
            )


def fingerprint(uris: Sequence[str]) -> str:
    """Identifies the samples of shards by their footers. Raises InputError for a damaged shard."""
    checksums = map_footers(lambda uri: read_footer(uri).get(ROWS_KEY, b""), uris)
    rows = [(uri.split("/")[-2:], checksum) for uri, checksum in zip(uris, checksums, strict=True)]
    return xxhash.xxh3_64_hexdigest(repr(rows).encode())

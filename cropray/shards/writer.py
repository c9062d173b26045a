"""Writing shards: the same rows give the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cropray.errors import InputError, free_space, is_full
from cropray.shards import residuals
from cropray.shards.columns import Column, empty_array, find_pages
from cropray.shards.file import RowGroup, ShardFile, Tensors, ranged, reading
from cropray.shards.schema import PLAIN, RESIDUALS, ROWS_KEY, SCALARS, ShardMetadata, rows_checksum
from cropray.storage import Folder

CODECS: dict[str, tuple[str, int | None, str]] = {
    "none": ("NONE", None, PLAIN),
    "lz4": ("LZ4", None, PLAIN),
    "compact": ("ZSTD", 1, RESIDUALS),
}
"""Parquet's codec, its level, and the encoding of 16-bit tensors. Higher levels of zstd gain 1 % on real
composites and take two to four times as long (benchmarks/shards.py)."""


def write_shard(
    folder: Folder,
    name: str,
    metadata: ShardMetadata,
    groups: Iterable[pa.Table],
    *,
    codec: str,
    footer: Mapping[bytes, str] | None = None,
) -> None:
    """Write tables of plain tensors, each one row group, as a shard and publish it whole.

    Memory is bounded by one row group (two under `compact`). `codec` is a key of `CODECS`; `footer` holds
    further keys of the Parquet metadata. Nothing in the file depends on when or where it was written. Raises
    InputError if a disk is full.
    """
    compression, level, encoding = CODECS[codec]
    metadata = replace(metadata, encoding=encoding)
    schema = metadata.schema
    scalars = [schema.empty_table().select(list(SCALARS))]
    try:
        with (
            folder.making(name) as path,
            pq.ParquetWriter(
                path,
                schema,
                compression=compression,
                compression_level=level,
                use_dictionary=[name for name, kind in SCALARS.items() if pa.types.is_string(kind)],
                write_statistics=list(SCALARS),
                # Every tensor is a page of its own, so that a reader can decode single samples.
                write_batch_size=1,
                data_page_size=min(spec.nbytes for spec in metadata.tensors.values()),
            ) as writer,
        ):
            for table in groups:
                writer.write_table(_encoded(table, metadata), row_group_size=max(1, len(table)))
                scalars.append(table.select(list(SCALARS)))
                del table  # or it would stay while the next one is made
            check = rows_checksum(pa.concat_tables(scalars), metadata.to_json().encode())
            writer.add_key_value_metadata({ROWS_KEY: check} | dict(footer or {}))
    except OSError as error:
        if not is_full(error):
            raise
        # Arrow, which writes the temporary file of an upload, does not name it.
        where = error.filename or f"{tempfile.gettempdir()}/shard.parquet"
        raise InputError(
            f"no space is left for {folder}/{name} ({free_space(where)}). Free some there (or set TMPDIR to "
            "another folder for temporary files) and run the stage again; finished files are kept"
        ) from error


def _encoded(table: pa.Table, metadata: ShardMetadata) -> pa.Table:
    """A table of plain tensors in the encoding of `metadata`."""
    for name, spec in metadata.tensors.items():
        if spec.encoding == RESIDUALS:
            place, plain = table.column_names.index(name), replace(spec, encoding=PLAIN)
            values = empty_array((len(table), spec.nbytes), np.uint8)
            for row, value in enumerate(value for chunk in table[name].chunks for value in chunk):
                values[row] = np.frombuffer(residuals.encode(plain.decode(value.as_buffer())), np.uint8)
            table = table.set_column(place, table.schema.field(name), _column(values, spec.nbytes))
    return table


def _column(values: npt.NDArray[Any], nbytes: int) -> pa.Array:
    """Rows of an array as binary values over its own memory."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(nbytes), len(values), [None, pa.py_buffer(values)])


@dataclass(frozen=True, eq=False)
class SampleRefs:
    """N samples of parts, in order: all that another process needs to read them, 1 or 2 KB per sample.

    Every sample is a row group of its own.
    """

    metadata: ShardMetadata  # of all files
    scalars: pa.Table  # N rows of the columns `schema.SCALARS`
    folder: Folder
    files: tuple[tuple[str, tuple[Column, ...]], ...]  # name in the folder, columns of the tensors
    places_n2: npt.NDArray[np.int64]  # number of the file, row in it
    ranges_nc2: npt.NDArray[np.int64]  # first byte and number of bytes, by sample and column

    @classmethod
    def of(cls, chosen: Sequence[tuple[ShardFile, int]]) -> SampleRefs:
        """References to at least one sample of parts in one folder, each by its open part and its row."""
        files = {file.uri: file for file, _ in chosen}
        numbers = {uri: number for number, uri in enumerate(files)}
        (folder,) = {uri.rpartition("/")[0] for uri in files}
        return cls(
            chosen[0][0].metadata,
            # Copied into one piece: slices would be pickled with all rows of their tables.
            pa.concat_tables([file.scalars.slice(row, 1) for file, row in chosen]).combine_chunks(),
            Folder(folder),
            tuple((uri.rpartition("/")[2], file.columns) for uri, file in files.items()),
            np.array([(numbers[file.uri], row) for file, row in chosen]),
            np.stack([file.ranges_gc2[row] for file, row in chosen]),
        )

    def __len__(self) -> int:
        return len(self.places_n2)

    def read(self, number: int) -> Tensors:
        """The tensors of one sample, verified. Raises InputError as `ShardFile.open` and `RowGroup.read`."""
        file, row = self.places_n2[number].tolist()
        name, columns = self.files[file]
        uri, scalars = f"{self.folder}/{name}", self.scalars.slice(number, 1)
        with reading(uri), self.folder.filesystem.open_input_file(self.folder.path(name)) as source:
            pages = find_pages(ranged(source), columns, self.ranges_nc2[number], rows=1)
        ids, checksums = scalars["sample_id"], scalars["xxh3"].to_numpy()
        return RowGroup(uri, row, ids, checksums, self.metadata.tensors, pages).read(0)

    def row_groups(self, size: int) -> Iterator[pa.Table]:
        """Tables of `size` samples, of plain tensors. Only the one that was yielded last stays in memory."""
        return (self._table(first, size) for first in range(0, len(self), size))

    def _table(self, first: int, size: int) -> pa.Table:
        scalars, specs = self.scalars.slice(first, size), self.metadata.tensors
        arrays = {name: empty_array((len(scalars), *spec.shape), spec.dtype) for name, spec in specs.items()}
        for row in range(len(scalars)):
            for name, values in self.read(first + row).items():
                arrays[name][row] = values
        tensors = [_column(arrays[name], spec.nbytes) for name, spec in specs.items()]
        return pa.Table.from_arrays([*scalars.columns, *tensors], schema=self.metadata.schema)

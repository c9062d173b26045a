"""Writing shards: the same rows give the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cropray.errors import InputError, free_space, is_full
from cropray.shards.columns import Buffers, encode, rows_checksum
from cropray.shards.schema import PLAIN, RESIDUALS, ROWS_KEY, SCALARS, ShardMetadata
from cropray.storage import Folder

# Codec of the columns, its level, and how 16-bit tensors stand in them. Higher levels of zstd gain a
# hundredth on real composites and take two to four times as long (benchmarks/shards.py).
_CODECS: dict[str, tuple[str, int | None, str]] = {
    "none": ("NONE", None, PLAIN),
    "lz4": ("LZ4", None, PLAIN),
    "compact": ("ZSTD", 1, RESIDUALS),
}


def write_shard(
    folder: Folder,
    name: str,
    metadata: ShardMetadata,
    groups: Iterable[pa.Table],
    *,
    codec: str,
    footer: Mapping[bytes, str] | None = None,
) -> None:
    """Write tables (see `schema.to_table`), each one row group, as a shard and publish it whole.

    Memory is bounded by one row group: the shard grows in a file that is not yet seen. `codec` is "none",
    "lz4" or "compact" (`residuals` under zstd); `footer` holds further keys of the Parquet metadata.
    Nothing in the file tells when or where it was written. Raises InputError where a disk is full.
    """
    try:
        with folder.making(name) as path:
            _write_file(path, metadata, groups, codec, footer or {})
    except OSError as error:
        if not is_full(error):
            raise
        # A file on a disk is named; Arrow, which writes the temporary one of object storage, names none.
        where = error.filename or f"{tempfile.gettempdir()}/shard.parquet"
        raise InputError(
            f"no space is left for {folder}/{name} ({free_space(where)}): free some space there, or set "
            "TMPDIR where that is the temporary folder, and run the stage again; finished files are kept"
        ) from error


def _write_file(
    path: Path,
    metadata: ShardMetadata,
    groups: Iterable[pa.Table],
    codec: str,
    footer: Mapping[bytes, str],
) -> None:
    """Every tensor is a page of its own, so that a reader may decode single samples."""
    compression, level, encoding = _CODECS[codec]
    metadata = replace(metadata, encoding=encoding)
    schema = metadata.schema
    buffers = Buffers()
    scalars = [schema.empty_table().select(list(SCALARS))]
    with pq.ParquetWriter(
        path,
        schema,
        compression=compression,
        compression_level=level,
        use_dictionary=[name for name, kind in SCALARS.items() if pa.types.is_string(kind)],
        write_statistics=list(SCALARS),
        write_batch_size=1,
        data_page_size=min(spec.nbytes for spec in metadata.tensors.values()),
    ) as writer:
        for table in groups:
            writer.write_table(encode(table, metadata, buffers.empty), row_group_size=max(1, len(table)))
            scalars.append(table.select(list(SCALARS)))
            del table  # or it would stay while the next one is made
        check = rows_checksum(pa.concat_tables(scalars), metadata.to_json().encode())
        writer.add_key_value_metadata({ROWS_KEY: check, **footer})

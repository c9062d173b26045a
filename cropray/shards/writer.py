"""Writing shards: the same rows give the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cropray.shards.schema import ROWS_KEY, SCALARS, ShardMetadata, rows_checksum
from cropray.storage import Folder
from cropray.types import InputError

Row = Mapping[str, Any]


def write_shard(
    folder: Folder,
    name: str,
    metadata: ShardMetadata,
    rows: Iterable[Row],
    *,
    codec: str,
    row_group_samples: int,
    footer: Mapping[bytes, str] | None = None,
) -> None:
    """Write `rows` (see `schema.encode_patch`) as the shard `name` of a folder and publish it whole.

    Memory is bounded by one row group: the shard grows in a temporary local file. `codec` is "none"
    or "lz4"; `footer` holds further keys of the Parquet metadata. Nothing in the file tells when or
    where it was written. Raises InputError where a disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="cropray-") as directory:
            path = Path(directory) / "shard.parquet"
            _write_file(path, metadata, rows, codec, row_group_samples, footer or {})
            folder.publish(path, name)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"no space is left for {name} in {folder} (it is written under {tempfile.gettempdir()} first): "
            "free some space, or set TMPDIR, and run the stage again; finished files are kept"
        ) from error


def _write_file(
    path: Path,
    metadata: ShardMetadata,
    rows: Iterable[Row],
    codec: str,
    row_group_samples: int,
    footer: Mapping[bytes, str],
) -> None:
    schema = metadata.schema
    strings = [name for name, kind in SCALARS.items() if pa.types.is_string(kind)]
    scalars = [schema.empty_table().select(list(SCALARS))]
    with pq.ParquetWriter(
        path,
        schema,
        compression=codec.upper(),
        use_dictionary=strings,
        write_statistics=list(SCALARS),
        version="2.6",
    ) as writer:
        for chunk in _chunks(rows, row_group_samples):
            table = pa.Table.from_pylist(chunk, schema=schema)
            writer.write_table(table, row_group_size=row_group_samples)
            scalars.append(table.select(list(SCALARS)))
        check = rows_checksum(pa.concat_tables(scalars), metadata.to_json().encode())
        writer.add_key_value_metadata({ROWS_KEY: check, **footer})


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk

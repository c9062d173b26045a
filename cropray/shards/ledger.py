"""The ledger: one row a tile, kept in the footer of its part; the table is rebuilt from these.

A tile is finished exactly when its part is published, so no kill can part the two.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cropray.errors import InputError
from cropray.shards.file import read_footer
from cropray.storage import Folder

TILE_KEY = b"cropray.tile"
LEDGER = "ledger.parquet"

_READERS = 8  # footers read at the same time: object storage answers slowly


@dataclass(frozen=True)
class LedgerRow:
    """What is known of one finished tile; lists are by month, oldest first."""

    tile_id: str
    roi_id: str
    crop: str
    season: str
    split: str
    recipe: str  # hash of all settings that the part rests on
    inputs: str  # hash of its ROI and of the parcels near it
    patches: int
    reason: str  # why there are no patches, else empty
    nbytes: int  # of tensors
    checksum: str  # xxh3 of the samples' checksums
    row: int  # place and size in the ROI's grid, pixels
    col: int
    height: int
    width: int
    valid_s2: list[float]  # share of pixels with a clear view
    valid_s1: list[float]
    scenes_s2: list[int]  # scenes that went in; empty where the source does not count them
    scenes_s1: list[int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


_EXPORT_AGAIN = "delete {folder}/stages/export.json and run export again: parts that are there are kept"

_TEXT, _COUNT = pa.string(), pa.int64()
_SCHEMA = pa.schema(
    [(name, _TEXT) for name in ("tile_id", "roi_id", "crop", "season", "split", "recipe", "inputs")]
    + [("patches", _COUNT), ("reason", _TEXT), ("nbytes", _COUNT), ("checksum", _TEXT)]
    + [(name, _COUNT) for name in ("row", "col", "height", "width")]
    + [(name, pa.list_(pa.float64())) for name in ("valid_s2", "valid_s1")]
    + [(name, pa.list_(_COUNT)) for name in ("scenes_s2", "scenes_s1")]
)


def part_name(tile_id: str) -> str:
    return f"parts/{tile_id}.parquet"


def read_rows(folder: Folder, tile_ids: Sequence[str], recipe: str) -> list[LedgerRow]:
    """The rows of those tiles whose parts are published, in the order given.

    Raises InputError for a damaged part and for one made by another recipe.
    """
    published = set(folder.child("parts").names(".parquet"))
    names = [part_name(tile_id) for tile_id in tile_ids if f"{tile_id}.parquet" in published]
    with ThreadPoolExecutor(_READERS) as pool:
        rows = list(pool.map(lambda name: _read_row(folder, name), names))
    for name, row in zip(names, rows, strict=True):
        if row.recipe != recipe:
            raise InputError(
                f"{folder}/{name} was exported by other settings or from another source (recipe "
                f"{row.recipe}, now {recipe}); use another --run folder, or delete {folder}/parts"
            )
    return rows


def _read_row(folder: Folder, name: str) -> LedgerRow:
    uri = f"{folder.uri}/{name}"
    text = read_footer(uri).get(TILE_KEY)
    if text is None:
        raise InputError(f"{uri} is no part of an export (no {TILE_KEY.decode()!r} in its metadata)")
    try:
        return LedgerRow(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{uri}: its ledger row is damaged; delete it and run export again") from error


def write_ledger(folder: Folder, rows: Sequence[LedgerRow]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], _SCHEMA), buffer)
    folder.write_bytes(LEDGER, buffer.getvalue())


def fingerprint(rows: Sequence[LedgerRow]) -> str:
    """Names the tiles and samples of a ledger, whatever wrote the table."""
    names = [(row.tile_id, row.split, row.recipe, row.checksum) for row in rows]
    return xxhash.xxh3_64_hexdigest(repr(names).encode())


def refuse_missing_parts(folder: Folder, rows: Sequence[LedgerRow]) -> None:
    """Raises InputError where parts of the ledger are gone."""
    there = set(folder.child("parts").names(".parquet"))
    gone = [row.tile_id for row in rows if f"{row.tile_id}.parquet" not in there]
    if gone:
        raise InputError(
            f"{len(gone)} of {len(rows)} parts of the ledger are gone, as {folder}/{part_name(gone[0])}; "
            + _EXPORT_AGAIN.format(folder=folder)
        )


def read_ledger(folder: Folder) -> list[LedgerRow]:
    """The ledger of a finished export. Raises InputError where it is gone or damaged."""
    if not folder.exists(LEDGER):
        raise InputError(f"there is no {LEDGER} in {folder}; {_EXPORT_AGAIN.format(folder=folder)}")
    data = io.BytesIO(folder.read_bytes(LEDGER))
    try:
        # Not by pq.read_table, whose threads may hold a Python buffer when the process ends, and abort it.
        table = pq.ParquetFile(data).read(use_threads=False)
        return [LedgerRow(**row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        raise InputError(f"{folder}/{LEDGER} is damaged; {_EXPORT_AGAIN.format(folder=folder)}") from error

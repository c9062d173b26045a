"""The ledger: one row per tile, kept in the footer of its part. The table is rebuilt from the footers.

A tile is finished exactly when its part is published, so a kill cannot separate the two.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cropray.errors import InputError
from cropray.shards.file import map_footers, read_footer
from cropray.storage import Folder

TILE_KEY = b"cropray.tile"  # in the footer of a part: its ledger row, as JSON
LEDGER = "ledger.parquet"


@dataclass(frozen=True)
class LedgerRow:
    """One finished tile. Lists are by month, oldest first."""

    tile_id: str
    roi_id: str
    crop: str
    season: str
    split: str
    recipe: str  # hash of all settings on which the part depends
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
    scenes_s2: list[int]  # acquisitions used; empty if the source does not count them
    scenes_s1: list[int]
    provisional: str = ""  # the day of an export before its months were over, as ISO date, else empty
    impossible_s2: list[float] = field(default_factory=list)  # share of values outside their band's range
    impossible_s1: list[float] = field(default_factory=list)
    orbits_s1: list[str] = field(default_factory=list)  # of the season, topmost first
    lost: list[str] = field(default_factory=list)  # scenes that could not be used, with the reason

    def to_json(self) -> str:
        values = asdict(self)
        if not self.provisional:  # as in parts of earlier versions
            del values["provisional"]
        return json.dumps(values, sort_keys=True, ensure_ascii=False)


_EXPORT_AGAIN = "run export again; finished parts are kept"

_TYPES: dict[str, pa.DataType] = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_TYPES |= {f"list[{name}]": pa.list_(kind) for name, kind in _TYPES.items()}
_SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(LedgerRow)])


def part_name(tile_id: str) -> str:
    return f"parts/{tile_id}.parquet"


def read_rows(folder: Folder, tile_ids: Sequence[str], recipe: str) -> list[LedgerRow]:
    """The rows of those tiles whose parts are published, in the given order.

    Raises InputError for a damaged part and for one made with another recipe.
    """
    published = _parts(folder)
    uris = [f"{folder.uri}/{part_name(tile_id)}" for tile_id in tile_ids if part_name(tile_id) in published]
    rows = list(map_footers(_read_row, uris))
    for uri, row in zip(uris, rows, strict=True):
        if row.recipe != recipe:
            raise InputError(
                f"{uri} was exported with other settings or from another source (recipe {row.recipe}, now "
                f"{recipe}); use another --run folder, or delete {folder}/parts"
            )
    return rows


def _parts(folder: Folder) -> set[str]:
    return {f"parts/{name}" for name in folder.child("parts").names(".parquet")}


def _read_row(uri: str) -> LedgerRow:
    text = read_footer(uri).get(TILE_KEY)
    if text is None:
        raise InputError(f"{uri} is not a part of an export: its metadata has no key {TILE_KEY.decode()!r}")
    try:
        return LedgerRow(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{uri}: its ledger row is damaged; delete it and run export again") from error


def write_ledger(folder: Folder, rows: Sequence[LedgerRow]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], _SCHEMA), buffer)
    folder.write_bytes(LEDGER, buffer.getvalue())


def ledger_fingerprint(rows: Sequence[LedgerRow]) -> str:
    """Identifies the tiles and samples of a ledger, whichever pyarrow wrote the table."""
    names = [(row.tile_id, row.split, row.recipe, row.checksum) for row in rows]
    return xxhash.xxh3_64_hexdigest(repr(names).encode())


def check_parts(folder: Folder, rows: Sequence[LedgerRow]) -> None:
    """Raises InputError if parts that the ledger lists are missing."""
    published = _parts(folder)
    missing = [name for name in (part_name(row.tile_id) for row in rows) if name not in published]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(rows)} parts that the ledger lists are missing, such as "
            f"{folder}/{missing[0]}; {_EXPORT_AGAIN}"
        )


def delete_parts(folder: Folder, rows: Sequence[LedgerRow]) -> None:
    for row in rows:
        folder.delete(part_name(row.tile_id))


def read_ledger(folder: Folder) -> list[LedgerRow]:
    """The ledger of a finished export. Raises InputError if it is missing or damaged."""
    if not folder.exists(LEDGER):
        raise InputError(f"there is no {LEDGER} in {folder}; {_EXPORT_AGAIN}")
    data = io.BytesIO(folder.read_bytes(LEDGER))
    try:
        # pq.read_table uses threads. One that holds a Python buffer when the process ends aborts it.
        table = pq.ParquetFile(data).read(use_threads=False)
        return [LedgerRow(**row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        raise InputError(f"{folder}/{LEDGER} is damaged; {_EXPORT_AGAIN}") from error

"""Where shards lie in a run folder, and what tells one set of them from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from cropray.shards.file import read_footer
from cropray.shards.schema import ROWS_KEY
from cropray.storage import Folder
from cropray.types import InputError

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

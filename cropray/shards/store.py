"""Where shards lie in a run folder."""

from __future__ import annotations

from cropray.storage import Folder


def shard_name(split: str, index: int) -> str:
    return f"shards/{split}/{index:05d}.parquet"


def shard_uris(folder: Folder, split: str) -> list[str]:
    """The shards of one split of a run folder, in order; none where there are none."""
    shards = folder.child(f"shards/{split}")
    return [f"{shards.uri}/{name}" for name in shards.names(".parquet")]

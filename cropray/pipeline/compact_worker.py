"""What a process of a compaction does: shard by shard, what a user can mend becomes an outcome."""

from __future__ import annotations

from dataclasses import dataclass

from cropray.config.imagery import ShardsConfig
from cropray.shards.picked import Picked
from cropray.shards.writer import write_shard
from cropray.storage import Folder, explained
from cropray.types import InputError


@dataclass(frozen=True)
class Shard:
    """One to be written: its name in the run folder, and its samples in their order."""

    name: str
    samples: Picked


@dataclass(frozen=True)
class Outcome:
    """What became of a shard; `error` is empty where it is published."""

    error: str


class ShardWriter:
    """Several threads may share one: each holds a row group (two where samples are encoded anew).

    They move bytes and compute checksums, which releases the interpreter's lock.
    """

    def __init__(self, folder: Folder, config: ShardsConfig) -> None:
        self._folder, self._config = folder, config

    def do(self, shard: Shard) -> Outcome:
        groups = shard.samples.row_groups(self._config.row_group_samples)
        try:
            write_shard(self._folder, shard.name, shard.samples.metadata, groups, codec=self._config.codec)
        except InputError as failure:
            return Outcome(str(failure))
        except OSError as failure:
            return Outcome(explained(failure))
        return Outcome("")

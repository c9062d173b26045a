"""Compaction: the samples of all parts in a random but reproducible order, in even shards.

Each shard is put together on its own from single samples of many parts, so memory is bounded by a
row group a thread and a stopped run goes on with the shards that are missing. It moves bytes and
computes checksums, which release the interpreter's lock: threads of one process keep a disk or a
network busy, and starting Ray would take longer than most compactions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import xxhash

from cropray.config.imagery import ShardsConfig
from cropray.pipeline.ledger import LedgerRow, fingerprint, part_name, read_ledger, refuse_missing_parts
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.shards.file import ShardFile, read_group_table
from cropray.shards.schema import ShardMetadata
from cropray.shards.store import shard_name
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import InputError

_THREADS = 4


@dataclass(frozen=True)
class Sample:
    """Where one sample lies: row group `group` of the part `uri`."""

    sample_id: str
    split: str
    xxh3: int
    uri: str
    group: int


def compact(run: Run) -> Summary:
    """Write `shards/<split>/*.parquet` from the parts of an export; a shard that was deleted, anew.

    Raises InputError where parts do not agree with the ledger, a sample occurs twice, or a shard
    is there that holds other samples; and where the disk is full.
    """
    run.begin("compact")
    ledger = read_ledger(run.folder)
    inputs = {"the ledger of the export": fingerprint(ledger)}
    finished, there = run.finished("compact", inputs), _shards_in(run.folder)
    if finished is not None and finished["shards"] == _by_split(there):
        say(f"compact: reused {sum(finished['samples'].values())} samples")
        return finished
    folder, shards = run.folder, run.config.shards
    full = [row for row in ledger if row.patches]
    if not full:
        raise InputError(f"{folder} has no samples to compact: every tile is empty (see ledger.parquet)")
    refuse_missing_parts(folder, full)
    metadata = ShardFile.open(f"{folder.uri}/{part_name(full[0].tile_id)}").metadata
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda row: _samples(folder, row, metadata), full))
        samples = [sample for part in found for sample in part]
        _refuse_twins(samples)
        plan = plan_shards(samples, run.config.seed, shards.shard_samples)
        _clear(run, plan, inputs)
        run.claim("compact", inputs)
        with progress("compact", len(plan)) as bar:
            for _ in pool.map(lambda name: _write(folder, name, plan[name], metadata, shards), plan):
                bar.advance()
    summary = {
        "samples": dict(sorted(Counter(sample.split for sample in samples).items())),
        "shards": _by_split(plan),
    }
    run.finish("compact", summary, inputs)
    return summary


def _by_split(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(name.split("/")[1] for name in names).items()))


def plan_shards(samples: Sequence[Sample], seed: int, shard_samples: int) -> dict[str, list[Sample]]:
    """The samples of each shard by its name, in order of xxh3(seed, sample_id).

    A split has as few shards of at most `shard_samples` as there can be, equal but for one sample.
    The order does not depend on that of `samples`.
    """

    def place(sample: Sample) -> tuple[int, str]:
        return xxhash.xxh3_64_intdigest(f"{seed}\n{sample.sample_id}".encode()), sample.sample_id

    ordered = sorted(samples, key=place)
    plan: dict[str, list[Sample]] = {}
    for split in sorted({sample.split for sample in samples}):
        own = [sample for sample in ordered if sample.split == split]
        count = math.ceil(len(own) / shard_samples)
        bounds = np.linspace(0, len(own), count + 1).astype(int).tolist()
        for index, (first, end) in enumerate(pairwise(bounds)):
            plan[shard_name(split, index)] = own[first:end]
    return plan


def _samples(folder: Folder, row: LedgerRow, metadata: ShardMetadata) -> list[Sample]:
    """The samples of one part, which must be those that the ledger says."""
    uri = f"{folder.uri}/{part_name(row.tile_id)}"
    part = ShardFile.open(uri)
    if part.metadata != metadata:
        raise InputError(
            f"{uri} differs from the other parts in its metadata; export into a new --run folder"
        )
    table = part.scalars
    check = xxhash.xxh3_64_hexdigest(table["xxh3"].to_numpy().tobytes())
    if len(table) != row.patches or check != row.checksum:
        raise InputError(
            f"{uri} has {len(table)} samples with checksum {check}, the ledger says {row.patches} with "
            f"{row.checksum}; delete the part and stages/export.json, and run export again"
        )
    rows = table.select(["sample_id", "split", "xxh3"]).to_pylist()
    return [Sample(**values, uri=uri, group=group) for group, values in enumerate(rows)]


def _refuse_twins(samples: Sequence[Sample]) -> None:
    counts = Counter(sample.sample_id for sample in samples)
    twins = [sample_id for sample_id, count in counts.items() if count > 1]
    if twins:
        uris = sorted({sample.uri for sample in samples if sample.sample_id == twins[0]})
        raise InputError(
            f"{len(twins)} samples occur more than once, as {twins[0]} in {', '.join(uris)}; "
            "remove the ROI that is there twice, and run rois and export into a new --run folder"
        )


def _shards_in(folder: Folder) -> list[str]:
    return [f"shards/{name}" for name in folder.child("shards").names(".parquet")]


def _clear(run: Run, plan: dict[str, list[Sample]], inputs: Inputs) -> None:
    """Take away the shards of an earlier export. Raises InputError for shards of unknown origin."""
    folder = run.folder
    if run.changed("compact", inputs):
        for name in _shards_in(folder):
            folder.delete(name)
    strangers = sorted(set(_shards_in(folder)) - plan.keys())
    if strangers:
        raise InputError(
            f"{folder}/{strangers[0]} and {len(strangers) - 1} more shards are none of this compaction; "
            f"delete {folder}/shards and run compact again"
        )


def _write(
    folder: Folder, name: str, samples: Sequence[Sample], metadata: ShardMetadata, shards: ShardsConfig
) -> None:
    if folder.exists(name):
        there = ShardFile.open(f"{folder.uri}/{name}").scalars
        wanted = [(sample.sample_id, sample.xxh3) for sample in samples]
        if list(zip(there["sample_id"].to_pylist(), there["xxh3"].to_pylist(), strict=True)) == wanted:
            return
        raise InputError(f"{folder}/{name} holds other samples; delete {folder}/shards and run compact again")
    write_shard(folder, name, metadata, _groups(samples, metadata, shards), codec=shards.codec)


def _groups(samples: Sequence[Sample], metadata: ShardMetadata, shards: ShardsConfig) -> Iterator[pa.Table]:
    size = shards.row_group_samples
    for first in range(0, len(samples), size):
        chosen = samples[first : first + size]
        yield pa.concat_tables([read_group_table(sample.uri, metadata, sample.group) for sample in chosen])

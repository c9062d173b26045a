"""Compaction: the samples of all parts in a random but reproducible order, in even shards.

Each shard is put together on its own from single samples of many parts, so memory is bounded by a row
group a thread (two where they are encoded anew) and a KB or two of what is known of each sample, and a
stopped run goes on with the shards that are missing. It moves bytes and computes checksums, which release
the interpreter's lock: threads of one process keep a disk or a network busy, and starting Ray would take
longer than most compactions.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from cropray.shards.buffers import Buffers
from cropray.shards.columns import assemble
from cropray.shards.file import ShardFile
from cropray.shards.store import shard_name
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import InputError

_THREADS = 4


@dataclass(frozen=True, slots=True)
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
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = list(pool.map(lambda row: _open_part(folder, row), full))
        _refuse_different(opened)
        samples = [sample for part in opened for sample in _samples(part)]
        _refuse_twins(samples)
        plan = plan_shards(samples, run.config.seed, shards.shard_samples)
        _clear(run, plan, inputs)
        run.claim("compact", inputs)
        parts = {part.uri: part for part in opened}
        with progress("compact", len(plan)) as bar:
            for _ in pool.map(lambda name: _write(folder, name, plan[name], parts, shards), plan):
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


def _open_part(folder: Folder, row: LedgerRow) -> ShardFile:
    """A part, whose samples must be those that the ledger says."""
    part = ShardFile.open(f"{folder.uri}/{part_name(row.tile_id)}")
    check = xxhash.xxh3_64_hexdigest(part.checksums.tobytes())
    if len(part.checksums) != row.patches or check != row.checksum:
        raise InputError(
            f"{part.uri} has {len(part.checksums)} samples with checksum {check}, the ledger says "
            f"{row.patches} with {row.checksum}; delete the part and stages/export.json, and run export again"
        )
    return part


def _refuse_different(parts: Sequence[ShardFile]) -> None:
    for part in parts:
        if part.metadata != parts[0].metadata:
            raise InputError(
                f"{part.uri} differs from the other parts in its metadata; export into a new --run folder"
            )


def _samples(part: ShardFile) -> Iterator[Sample]:
    columns = (part.scalars[name].to_pylist() for name in ("sample_id", "split", "xxh3"))
    for group, (sample_id, split, xxh3) in enumerate(zip(*columns, strict=True)):
        yield Sample(sample_id, sys.intern(split), xxh3, part.uri, group)


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
    folder: Folder,
    name: str,
    samples: Sequence[Sample],
    parts: Mapping[str, ShardFile],
    shards: ShardsConfig,
) -> None:
    if folder.exists(name):
        there = ShardFile.open(f"{folder.uri}/{name}").scalars
        wanted = [(sample.sample_id, sample.xxh3) for sample in samples]
        if list(zip(there["sample_id"].to_pylist(), there["xxh3"].to_pylist(), strict=True)) == wanted:
            return
        raise InputError(f"{folder}/{name} holds other samples; delete {folder}/shards and run compact again")
    chosen = [(parts[sample.uri], sample.group) for sample in samples]
    metadata = chosen[0][0].metadata
    write_shard(folder, name, metadata, _groups(chosen, shards.row_group_samples), codec=shards.codec)


def _groups(chosen: Sequence[tuple[ShardFile, int]], size: int) -> Iterator[pa.Table]:
    """Row groups of `size` samples, each the one sample of a row group of its part, verified."""
    buffers = Buffers()
    for first in range(0, len(chosen), size):
        rows = chosen[first : first + size]
        scalars = pa.concat_tables([part.scalars.slice(group, 1) for part, group in rows])
        tensors = (part.load_row_group(group).read(0) for part, group in rows)
        yield assemble(scalars, tensors, rows[0][0].metadata, buffers.empty)

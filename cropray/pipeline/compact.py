"""Compaction: the samples of all parts in a random but reproducible order, in even shards.

Each shard is assembled from single samples of many parts. So memory is bounded by a row group per thread (two
if samples are encoded anew), and a stopped run resumes with the missing shards. This process reads the
footers of the parts and plans. Processes on Ray write the shards.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xxhash

from cropray.cluster import ray_session
from cropray.config.imagery import ShardsConfig
from cropray.errors import InputError
from cropray.pipeline.fan_out import fan_out
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.shards.file import ShardFile, map_footers, shard_name
from cropray.shards.ledger import LedgerRow, check_parts, ledger_fingerprint, part_name, read_ledger
from cropray.shards.writer import SampleRefs, write_shard
from cropray.storage import Folder

_WRITERS = 2  # shards at once in a process: one computes while the other waits for bytes
_SHARDS_A_WRITER = 16  # in a dataset, which holds a KB or two for each sample


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample and its place: row group `group` of `part`."""

    sample_id: str
    split: str
    xxh3: int
    part: ShardFile
    group: int


def compact(run: Run) -> Summary:
    """Write `shards/<split>/*.parquet` from the parts of an export, if they are missing.

    Raises InputError if parts do not agree with the ledger, if a sample occurs twice, if existing shards hold
    other samples, and if a disk is full.
    """
    run.begin("compact")
    folder, config = run.folder, run.config
    ledger = read_ledger(folder)
    inputs = {"the ledger of the export": ledger_fingerprint(ledger)}
    finished = run.finished("compact", inputs)
    if finished is not None and finished["shards"] == _by_split(_shards_in(folder)):
        say(f"compact: reused {sum(finished['samples'].values())} samples")
        return finished
    full = [row for row in ledger if row.patches]
    if not full:
        raise InputError(f"{folder} has no samples to compact: every tile is empty (see ledger.parquet)")
    check_parts(folder, full)
    parts = list(map_footers(ShardFile.open, [f"{folder.uri}/{part_name(row.tile_id)}" for row in full]))
    for part, row in zip(parts, full, strict=True):
        _check_part(part, row, parts[0])
    samples = [sample for part in parts for sample in _samples(part)]
    _check_duplicates(samples)
    plan = plan_shards(samples, config.seed, config.shards.shard_samples)
    _clear(run, plan, inputs)
    run.claim("compact", inputs)
    done = _shards_in(folder)
    list(map_footers(lambda name: _check_shard(folder, name, plan[name]), done))
    if done:
        say(f"compact: {len(done)} of {len(plan)} shards were finished before")
    if missing := {name: samples for name, samples in plan.items() if name not in done}:
        _write(missing, run)
    by_split = Counter(sample.split for sample in samples)
    summary = {"samples": dict(sorted(by_split.items())), "shards": _by_split(plan)}
    run.finish("compact", summary, inputs)
    return summary


def plan_order(seed: int, sample_id: str) -> tuple[int, str]:
    """Sorts samples at random, but reproducibly."""
    return xxhash.xxh3_64_intdigest(f"{seed}\n{sample_id}".encode()), sample_id


def plan_shards(samples: Sequence[Sample], seed: int, shard_samples: int) -> dict[str, list[Sample]]:
    """The samples of each shard by its name, in the order of xxh3(seed, sample_id).

    A split has as few shards of at most `shard_samples` as possible; their sizes differ by one at most. The
    plan does not depend on the order of `samples`.
    """
    ordered = sorted(samples, key=lambda sample: plan_order(seed, sample.sample_id))
    plan: dict[str, list[Sample]] = {}
    for split in sorted({sample.split for sample in samples}):
        own = [sample for sample in ordered if sample.split == split]
        count = math.ceil(len(own) / shard_samples)
        bounds = np.linspace(0, len(own), count + 1).astype(int).tolist()
        for index, (first, end) in enumerate(pairwise(bounds)):
            plan[shard_name(split, index)] = own[first:end]
    return plan


def _check_part(part: ShardFile, row: LedgerRow, first: ShardFile) -> None:
    check = xxhash.xxh3_64_hexdigest(part.checksums.tobytes())
    if len(part.checksums) != row.patches or check != row.checksum:
        raise InputError(
            f"{part.uri} has {len(part.checksums)} samples with checksum {check}, the ledger says "
            f"{row.patches} with {row.checksum}; delete the part and run export again"
        )
    if part.metadata != first.metadata:
        raise InputError(f"{part.uri} has other metadata than {first.uri}; export into a new --run folder")


def _samples(part: ShardFile) -> Iterator[Sample]:
    columns = (part.scalars[name].to_pylist() for name in ("sample_id", "split", "xxh3"))
    for group, (sample_id, split, xxh3) in enumerate(zip(*columns, strict=True)):
        yield Sample(sample_id, sys.intern(split), xxh3, part, group)


def _check_duplicates(samples: Sequence[Sample]) -> None:
    counts = Counter(sample.sample_id for sample in samples)
    duplicates = [sample_id for sample_id, count in counts.items() if count > 1]
    if duplicates:
        uris = sorted({sample.part.uri for sample in samples if sample.sample_id == duplicates[0]})
        raise InputError(
            f"{len(duplicates)} samples occur more than once, such as {duplicates[0]} in {', '.join(uris)}; "
            "remove the duplicate ROI, and run rois and export into a new --run folder"
        )


def _shards_in(folder: Folder) -> list[str]:
    return [f"shards/{name}" for name in folder.child("shards").names(".parquet")]


def _by_split(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(name.split("/")[1] for name in names).items()))


def _clear(run: Run, plan: dict[str, list[Sample]], inputs: Inputs) -> None:
    """Delete the shards of an earlier export. Raises InputError for shards of unknown origin."""
    folder = run.folder
    if run.changed("compact", inputs):
        for name in _shards_in(folder):
            folder.delete(name)
    unknown = sorted(set(_shards_in(folder)) - plan.keys())
    if unknown:
        raise InputError(
            f"{folder}/{unknown[0]} and {len(unknown) - 1} other shards are not from this compaction; "
            f"delete {folder}/shards and run compact again"
        )


def _check_shard(folder: Folder, name: str, samples: Sequence[Sample]) -> None:
    found = ShardFile.open(f"{folder.uri}/{name}").scalars
    wanted = [(sample.sample_id, sample.xxh3) for sample in samples]
    if list(zip(found["sample_id"].to_pylist(), found["xxh3"].to_pylist(), strict=True)) != wanted:
        raise InputError(f"{folder}/{name} holds other samples; delete {folder}/shards and run compact again")


class ShardWriter:
    """Writes shards. Threads may share one: they move bytes and compute checksums without the GIL."""

    def __init__(self, folder: Folder, config: ShardsConfig) -> None:
        self._folder, self._config = folder, config

    def __call__(self, shard: tuple[str, SampleRefs]) -> None:
        name, samples = shard
        groups = samples.row_groups(self._config.row_group_samples)
        write_shard(self._folder, name, samples.metadata, groups, codec=self._config.codec)


def _write(plan: dict[str, list[Sample]], run: Run) -> None:
    """Write shards on Ray. Raises InputError if some cannot be written; the others are kept."""
    config, names = run.config, list(plan)
    processes = min(config.ray.concurrency, len(names))
    threads = min(_WRITERS, math.ceil(len(names) / processes))
    size = processes * threads * _SHARDS_A_WRITER
    with ray_session(config.ray), progress("compact", len(names)) as bar:
        for first in range(0, len(names), size):
            shards = [
                (name, SampleRefs.of([(sample.part, sample.group) for sample in plan[name]]))
                for name in names[first : first + size]
            ]
            outcomes = fan_out(
                "compact",
                ShardWriter,
                (run.folder, config.shards),
                shards,
                config=config.ray,
                processes=processes,
                threads=threads,
                resources={"CPU": 1.0},
                failures=(InputError, OSError),
            )
            failed = {}
            for outcome in outcomes:  # wait for all: one that is cancelled leaves half a file on a full disk
                bar.advance()
                if outcome.error:
                    failed[outcome.job[0]] = outcome.error
            if failed:
                name, error = next(iter(failed.items()))
                raise InputError(
                    f"compact: {len(failed)} shards cannot be written. The others are kept. "
                    f"{run.folder}/{name}: {error}"
                )

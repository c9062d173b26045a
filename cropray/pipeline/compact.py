"""Compaction: the samples of all parts in a random but reproducible order, in even shards.

Each shard is put together on its own from single samples of many parts, so memory is bounded by a row
group a thread (two where they are encoded anew) and a KB or two of what is known of each sample, and a
stopped run goes on with the shards that are missing. This process reads the parts' footers and plans;
processes on Ray write the shards, each sent what it takes and no more.
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
import xxhash

from cropray.cluster import ray_session
from cropray.config.imagery import ShardsConfig
from cropray.errors import InputError
from cropray.pipeline.fan_out import fan_out
from cropray.progress import progress, say
from cropray.run import Inputs, Run, Summary
from cropray.shards.file import ShardFile, shard_name
from cropray.shards.ledger import LedgerRow, check_parts, ledger_fingerprint, part_name, read_ledger
from cropray.shards.writer import SampleRefs, write_shard
from cropray.storage import Folder


@dataclass(frozen=True)
class Shard:
    """One to be written: its name in the run folder, and its samples in their order."""

    name: str
    samples: SampleRefs


class ShardWriter:
    """Threads may share one: each holds a row group (two where samples are encoded anew).

    They move bytes and compute checksums, which releases the interpreter's lock.
    """

    def __init__(self, folder: Folder, config: ShardsConfig) -> None:
        self._folder, self._config = folder, config

    def __call__(self, shard: Shard) -> None:
        groups = shard.samples.row_groups(self._config.row_group_samples)
        write_shard(self._folder, shard.name, shard.samples.metadata, groups, codec=self._config.codec)


_READERS = 8  # footers read at the same time: object storage answers slowly
_WRITERS = 2  # shards at once in a process: one computes while the other waits for bytes
_SHARDS_A_WRITER = 16  # in a dataset


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
    inputs = {"the ledger of the export": ledger_fingerprint(ledger)}
    finished, there = run.finished("compact", inputs), _shards_in(run.folder)
    if finished is not None and finished["shards"] == _by_split(there):
        say(f"compact: reused {sum(finished['samples'].values())} samples")
        return finished
    folder = run.folder
    full = [row for row in ledger if row.patches]
    if not full:
        raise InputError(f"{folder} has no samples to compact: every tile is empty (see ledger.parquet)")
    check_parts(folder, full)
    with ThreadPoolExecutor(_READERS) as pool:
        opened = list(pool.map(lambda row: _open_part(folder, row), full))
        _refuse_different(opened)
        samples = [sample for part in opened for sample in _samples(part)]
        _refuse_twins(samples)
        plan = plan_shards(samples, run.config.seed, run.config.shards.shard_samples)
        _clear(run, plan, inputs)
        run.claim("compact", inputs)
        done = set(_shards_in(folder))
        list(pool.map(lambda name: _refuse_other(folder, name, plan[name]), done))
    if done:
        say(f"compact: {len(done)} of {len(plan)} shards were finished before")
    missing = {name: plan[name] for name in plan if name not in done}
    if missing:
        _write(missing, {part.uri: part for part in opened}, run)
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


def _refuse_other(folder: Folder, name: str, samples: Sequence[Sample]) -> None:
    there = ShardFile.open(f"{folder.uri}/{name}").scalars
    wanted = [(sample.sample_id, sample.xxh3) for sample in samples]
    if list(zip(there["sample_id"].to_pylist(), there["xxh3"].to_pylist(), strict=True)) != wanted:
        raise InputError(f"{folder}/{name} holds other samples; delete {folder}/shards and run compact again")


def _write(plan: Mapping[str, Sequence[Sample]], parts: Mapping[str, ShardFile], run: Run) -> None:
    """Write shards on Ray. Raises InputError if some cannot be written; others are kept."""
    config, names = run.config, list(plan)
    processes = min(config.ray.concurrency, len(names))
    threads = min(_WRITERS, math.ceil(len(names) / processes))
    with ray_session(config.ray), progress("compact", len(names)) as bar:
        # A dataset holds all its jobs, with a KB or two for each sample: several bound the memory.
        for chosen in _chunks(names, processes * threads * _SHARDS_A_WRITER):
            outcomes = fan_out(
                "compact",
                ShardWriter,
                (run.folder, config.shards),
                [
                    Shard(name, SampleRefs.of([(parts[s.uri], s.group) for s in plan[name]]))
                    for name in chosen
                ],
                config=config.ray,
                processes=processes,
                threads=threads,
                resources={"CPU": 1.0},
                failures=(InputError, OSError),
            )
            failed = []
            for outcome in outcomes:  # all are waited for: a cancelled one leaves half a file on a full disk
                bar.advance()
                if outcome.error:
                    failed.append(outcome)
            if failed:
                raise InputError(
                    f"compact: {len(failed)} shards cannot be written; the others are kept. "
                    f"{run.folder}/{failed[0].job.name}: {failed[0].error}"
                )


def _shard(name: str, samples: Sequence[Sample], parts: Mapping[str, ShardFile]) -> Shard:
    return Shard(name, SampleRefs.of([(parts[sample.uri], sample.group) for sample in samples]))


def _chunks(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[first : first + size] for first in range(0, len(names), size))

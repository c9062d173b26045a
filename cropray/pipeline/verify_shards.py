"""Whether shards are what they should be: every tensor read, every count and every place compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cropray.config import Config
from cropray.grid import Grid
from cropray.pipeline.inspect_shards import find_shards, strangers
from cropray.pipeline.ledger import LEDGER, read_ledger
from cropray.progress import progress
from cropray.rois.splits import audit_grids
from cropray.run import Run, Summary
from cropray.shards.file import ShardFile
from cropray.shards.store import refuse_missing
from cropray.storage import Folder
from cropray.types import InputError, Roi

_THREADS = 4
_MOST = 20  # problems that are told


def verify(target: str) -> Summary:
    """Read every tensor of a run, of a folder of shards, or of one shard, and compare all that is known.

    Checked are: format, schema and columns of every file; the checksum of every sample; that all files
    are of one data set; that no sample occurs twice; that a run has the shards that compaction recorded,
    of the split that their folder says, with the patches of the ledger; and that no pixel lies in two
    splits. Raises InputError that tells all that is wrong (at most 20 lines), by file and row.
    """
    uris = find_shards(target)
    with progress("verify", len(uris)) as bar, ThreadPoolExecutor(_THREADS) as pool:
        found = []
        for file, problems in pool.map(_read, uris):
            found.append((file, problems))
            bar.advance()
    files = [file for file, _ in found if file is not None]
    problems = [problem for _, some in found for problem in some]
    problems += strangers(files)
    if files:
        table = pa.concat_tables([file.scalars for file in files])
        problems += [*_twins(table), *_leaks(table, files[0].metadata.size)]
        if not target.endswith(".parquet"):
            problems += _against_run(Folder(target), files, table)
    if problems:
        more = [f"  … and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        lines = [f"  {problem}" for problem in problems[:_MOST]]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{target}: {count}\n" + "\n".join([*lines, *more]))
    placed = sum(bool(crs) for crs in table["crs"].to_pylist())
    return {
        "shards": len(files),
        "samples": dict(sorted(Counter(table["split"].to_pylist()).items())),
        "checksums": "all match",
        "splits": f"no pixel in two of them ({placed} of {len(table)} samples have a place)",
        "ledger": "agrees" if Folder(target).exists(LEDGER) else "there is none",
    }


def _read(uri: str) -> tuple[ShardFile | None, list[str]]:
    """A shard and what is wrong with it; None where it cannot be opened."""
    try:
        file = ShardFile.open(uri)
    except InputError as error:
        return None, [str(error)]
    problems = []
    for group, size in enumerate(file.group_sizes):
        try:
            rows = file.row_group(group)
        except InputError as error:
            problems.append(str(error))
            continue
        for row in range(size):
            try:
                rows.read(row)
            except InputError as error:
                problems.append(str(error))
    return file, problems


def _twins(table: pa.Table) -> Iterator[str]:
    for sample, times in Counter(table["sample_id"].to_pylist()).items():
        if times > 1:
            yield f"sample {sample} occurs {times} times"


def _leaks(table: pa.Table, size: int) -> Iterator[str]:
    """Samples without a CRS (imported from rasters that state none) have no place to compare."""
    columns = ("sample_id", "split", "crs", "x0", "y0", "resolution", "row", "col")
    rows = [row for row in table.select(columns).to_pylist() if row["crs"]]
    if len({row["split"] for row in rows}) < 2:
        return
    grids = [
        Grid(
            row["crs"],
            row["x0"] + row["col"] * row["resolution"],
            row["y0"] - row["row"] * row["resolution"],
            row["resolution"],
            size,
            size,
        )
        for row in rows
    ]
    patches = [
        Roi(row["sample_id"], "", "", "", "", row["split"], grid.bounds, grid.crs)
        for row, grid in zip(rows, grids, strict=True)
    ]
    try:
        audit_grids(patches, grids)
    except InputError as error:
        yield "samples of different splits overlap: " + str(error)


def _against_run(folder: Folder, files: Iterable[ShardFile], table: pa.Table) -> Iterator[str]:
    """What the run's records say of its shards; a folder without them has nothing to compare."""
    compacted = Run(folder, Config()).summary("compact")
    if compacted is not None:
        try:
            refuse_missing(folder, compacted["shards"])
        except InputError as error:
            yield str(error)
        for file in files:
            split = file.uri.rsplit("/", 2)[-2]
            strays = set(file.scalars["split"].to_pylist()) - {split}
            if strays:
                yield f"{file.uri} holds samples of {', '.join(sorted(strays))}"
    if compacted is None and not folder.exists(LEDGER):
        return
    try:
        ledger = read_ledger(folder)
    except InputError as error:
        yield str(error)
        return
    wanted = Counter[tuple[str, str]]()
    for row in ledger:
        wanted[row.roi_id, row.split] += row.patches
    there = Counter(zip(table["roi_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    for roi_id, split in sorted(wanted.keys() | there.keys()):
        if wanted[roi_id, split] != there[roi_id, split]:
            yield (
                f"{there[roi_id, split]} samples of ROI {roi_id} in {split}, "
                f"the ledger says {wanted[roi_id, split]}"
            )

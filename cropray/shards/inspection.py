"""Looking at shards: what a set holds, and what one sample looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from cropray.config import Config
from cropray.errors import InputError
from cropray.figures.pictures import sample_picture
from cropray.grid import Grid
from cropray.progress import progress
from cropray.rois.splits import audit_grids
from cropray.run import Run, Summary
from cropray.shards.file import ShardFile, refuse_missing
from cropray.shards.ledger import LEDGER, read_ledger
from cropray.storage import Folder
from cropray.types import Roi

_OPENERS = 8  # files whose footers are read at the same time: object storage answers slowly


def find_shards(target: str) -> list[str]:
    """The shards of a run folder, of any other folder, or the one file that is named, by URI.

    Raises InputError where there are none, and for a run that has none yet.
    """
    if target.endswith(".parquet"):
        return [target]
    folder = Folder(target)
    if folder.filesystem.get_file_info(folder.path()).is_file:
        raise InputError(f"{target} is no .parquet file; name a run, a folder of shards, or one shard")
    if folder.exists("stages") and not folder.exists("shards"):
        raise InputError(
            f"the run {folder} has no shards yet: run compact; {folder}/parts is what export has made, if any"
        )
    shards = folder.child("shards") if folder.exists("shards") else folder
    uris = [f"{shards.uri}/{name}" for name in shards.names(".parquet")]
    if not uris:
        raise InputError(
            f"there are no shards in {folder}; run compact, or name a run, a folder or a .parquet"
        )
    return uris


def open_shards(uris: Sequence[str]) -> Iterator[ShardFile]:
    """The shards, open, in their order. Raises InputError as `ShardFile.open`."""
    with ThreadPoolExecutor(_OPENERS) as pool:
        yield from pool.map(ShardFile.open, uris)


def strangers(files: Sequence[ShardFile]) -> Iterator[str]:
    """Which shards are not of the data set of the first, in words."""
    for file in files[1:]:
        if names := files[0].metadata.differences(file.metadata):
            yield f"{file.uri} differs from {files[0].uri} in {', '.join(names)}: not of one data set"


def info(target: str) -> Summary:
    """What a set of shards holds, from footers and scalar columns alone.

    Raises InputError where they are not of one data set.
    """
    files = list(open_shards(find_shards(target)))
    for stranger in strangers(files):
        raise InputError(f"{stranger}; name one of them, or a folder of its own")
    metadata = files[0].metadata
    table = pa.concat_tables([file.scalars for file in files])
    samples = len(table)
    tensor_bytes = sum(spec.nbytes for spec in metadata.tensors.values())
    stored = sum(file.tensor_bytes for file in files)
    periods = [
        period for name in ("period_start", "period_end") for row in table[name].to_pylist() for period in row
    ]
    return {
        "shards": len(files),
        "samples": _counts(table["split"]),
        "crops": _counts(table["crop"]),
        "countries": _counts(table["country"]),
        "rois": len(table["roi_id"].unique()),
        "classes": list(metadata.classes),
        "tensors": {name: [*spec.shape, spec.dtype] for name, spec in metadata.tensors.items()},
        "encoding": metadata.encoding,
        "codec": sorted({file.codec for file in files}),
        "bytes": stored,
        "bytes_a_sample": round(stored / max(samples, 1)),
        "share_of_plain": round(stored / max(samples * tensor_bytes, 1), 3),
        "months": [min(periods).isoformat(), max(periods).isoformat()] if periods else [],
        "labelled_fraction": _mean(table["labelled_fraction"]),
        "valid_s2": _mean(table["valid_s2"].combine_chunks().flatten()),
        "valid_s1": _mean(table["valid_s1"].combine_chunks().flatten()),
        "s1_quantity": metadata.s1_quantity,
        "source": metadata.source,
        "recipe": metadata.recipe,
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(column.to_pylist()).items()))


def _mean(column: pa.Array) -> float | None:
    return round(float(np.mean(column.to_numpy(zero_copy_only=False))), 4) if len(column) else None


def show(target: str, sample_id: str) -> bytes:
    """A picture (PNG) of one sample, its tensors verified. Raises InputError where it is not there."""
    uris = find_shards(target)
    for file in open_shards(uris):
        rows = np.flatnonzero(file.scalars["sample_id"].to_numpy(zero_copy_only=False) == sample_id)
        if len(rows):
            return _picture(file, int(rows[0]))
    raise InputError(
        f"no sample {sample_id!r} in the {len(uris)} shards of {target}; the column sample_id names them, "
        f"the first is {next(open_shards(uris)).scalars['sample_id'][0].as_py()!r}"
    )


def _picture(file: ShardFile, row: int) -> bytes:
    ends = np.cumsum(file.group_sizes)
    group = int(np.searchsorted(ends, row, side="right"))
    tensors = file.row_group(group).read(row - int(ends[group]) + file.group_sizes[group])
    about = file.scalars.slice(row, 1).to_pylist()[0]
    place = ", ".join(
        about[name] for name in ("split", "crop", "season", "province", "country") if about[name]
    )
    return sample_picture(
        tensors["s2"],
        tensors["s1"],
        tensors["label"],
        file.metadata.classes,
        [f"{start:%Y-%m-%d}" for start in about["period_start"]],
        title=f"{about['sample_id']}: {place}",
        truth_hw=tensors.get("truth"),
    )


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

"""`cropray shards info`, `show` and `verify`: what shards hold, a picture of a sample, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from cropray.config import Config
from cropray.errors import InputError, listed
from cropray.figures.pictures import sample_picture
from cropray.grid import Grid
from cropray.progress import progress, say
from cropray.rois.splits import audit_grids
from cropray.run import Run, Summary
from cropray.shards.file import ShardFile, check_shards, map_footers, mismatches, open_shards
from cropray.shards.ledger import LEDGER, read_ledger
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import Roi

_THREADS = 4  # of verify: decoding and checksums release Python's lock
_MAX_PROBLEMS = 20  # that a message lists


def find_shards(target: str) -> list[str]:
    """URIs of the shards of a run, of any other folder, or of one file. Raises InputError without any."""
    if target.endswith(".parquet"):
        return [target]
    folder = Folder(target)
    if folder.filesystem.get_file_info(folder.path()).is_file:
        raise InputError(f"{target} is not a .parquet file; give a run, a folder of shards, or one shard")
    if folder.exists("stages") and not folder.exists("shards"):
        raise InputError(
            f"the run {folder} has no shards yet: run compact. To look at what export has made, give "
            f"{folder}/parts"
        )
    shards = folder.child("shards") if folder.exists("shards") else folder
    uris = [f"{shards.uri}/{name}" for name in shards.names(".parquet")]
    if not uris:
        raise InputError(
            f"there are no shards in {folder}; run compact, or give a run, a folder of shards, or one shard"
        )
    return uris


def info(target: str) -> Summary:
    """What shards of one data set hold, from footers and scalar columns. Raises InputError for others."""
    files = list(open_shards(find_shards(target)))
    for mismatch in mismatches(files):
        raise InputError(f"{mismatch}; give one of them, or a folder of its own")
    metadata, table = files[0].metadata, pa.concat_tables([file.scalars for file in files])
    samples = len(table)
    plain = samples * sum(spec.nbytes for spec in metadata.tensors.values())
    stored = sum(int(file.ranges_gc2[..., 1].sum()) for file in files)
    first, last = pc.list_flatten(table["period_start"]), pc.list_flatten(table["period_end"])
    return {
        "shards": len(files),
        "samples": _counts(table["split"]),
        "crops": _counts(table["crop"]),
        "countries": _counts(table["country"]),
        "rois": len(table["roi_id"].unique()),
        "classes": list(metadata.classes),
        "tensors": {name: [*spec.shape, spec.dtype] for name, spec in metadata.tensors.items()},
        "encoding": metadata.encoding,
        "codec": sorted({column.compression for file in files for column in file.columns}),
        "bytes": stored,
        "bytes_a_sample": round(stored / max(samples, 1)),
        "share_of_plain": round(stored / max(plain, 1), 3),
        "months": [pc.min(first).as_py().isoformat(), pc.max(last).as_py().isoformat()] if samples else [],
        "labelled_fraction": _mean(table["labelled_fraction"]),
        "valid_s2": _mean(pc.list_flatten(table["valid_s2"])),
        "valid_s1": _mean(pc.list_flatten(table["valid_s1"])),
        "s1_quantity": metadata.s1_quantity,
        "source": metadata.source,
        "recipe": metadata.recipe,
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(column.to_pylist()).items()))


def _mean(column: pa.ChunkedArray) -> float | None:
    mean: float | None = pc.mean(column).as_py()
    return None if mean is None else round(mean, 4)


def show(target: str, sample_id: str) -> bytes:
    """A picture (PNG) of one sample, whose tensors are verified. Raises InputError if it does not exist.

    Damaged shards are named and passed over.
    """
    damaged, places, first = list[str](), list[tuple[str, int]](), ""
    for file, problems in map_footers(_opened, find_shards(target)):
        damaged += problems
        if file is not None and len(file.scalars):
            first = first or file.scalars["sample_id"][0].as_py()
            position = file.scalars["sample_id"].index(sample_id).as_py()
            places += [(file.uri, position)] if position >= 0 else []
    if not places:
        sound = f"; their column sample_id names all, the first is {first!r}" if first else ""
        unread = f". Some shards cannot be read:\n{listed(damaged)}" if damaged else ""
        raise InputError(f"there is no sample {sample_id!r} in {target}{sound}{unread}")
    for problem in damaged:
        say(f"warning: {problem}")
    (uri, position), *_ = places
    reader = ShardReader([uri], batch_size=1)
    batch = reader.take([position])
    about = {name: value for name, (value,) in batch.rows.items()}
    place = (about[name] for name in ("split", "crop", "season", "province", "country"))
    return sample_picture(
        batch.s2_bcthw[0],
        batch.s1_bcthw[0],
        batch.label_bhw[0],
        reader.metadata.classes,
        [f"{start:%Y-%m-%d}" for start in about["period_start"]],
        title=f"{sample_id}: {', '.join(filter(None, place))}",
        truth_hw=None if batch.truth_bhw is None else batch.truth_bhw[0],
    )


def verify(target: str) -> Summary:
    """Read every tensor of a run, a folder of shards or one shard, and compare all that is known of them.

    Checks the format and columns of every file and the checksum of every sample; that all files are of one
    data set; that no sample occurs twice; that no pixel lies in two splits; that a run has the shards that
    compaction recorded, of the split that their folder names, with the patches of the ledger. Raises one
    InputError with all problems (at most 20 lines), by file and row.
    """
    uris, files, problems = find_shards(target), list[ShardFile](), list[str]()
    with progress("verify", len(uris)) as bar, ThreadPoolExecutor(_THREADS) as pool:
        for file, damage in pool.map(_read, uris):
            files += [] if file is None else [file]
            problems += damage
            bar.advance()
    problems += mismatches(files)
    if files:
        table = pa.concat_tables([file.scalars for file in files])
        times = _counts(table["sample_id"])
        problems += [f"sample {name} occurs {count} times" for name, count in times.items() if count > 1]
        problems += _overlaps(table, files[0].metadata.size)
        if not target.endswith(".parquet"):
            problems += _contradictions(Folder(target), files, table)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{target}: {count}\n{listed(problems, _MAX_PROBLEMS)}")
    placed = sum(bool(crs) for crs in table["crs"].to_pylist())
    return {
        "shards": len(files),
        "samples": _counts(table["split"]),
        "checksums": "all match",
        "splits": f"no pixel in two of them ({placed} of {len(table)} samples have a place)",
        "ledger": "agrees" if Folder(target).exists(LEDGER) else "there is none",
    }


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def _opened(uri: str) -> tuple[ShardFile | None, list[str]]:
    """A shard and no problem, or none and what is wrong with it."""
    try:
        return ShardFile.open(uri), []
    except InputError as error:
        return None, [str(error)]


def _read(uri: str) -> tuple[ShardFile | None, list[str]]:
    """A shard, None if it cannot be opened, and all that is damaged in it."""
    file, problems = _opened(uri)
    if file is None:
        return None, problems
    for group, size in enumerate(file.group_sizes):
        with _collected(problems):
            rows = file.row_group(group)
            for row in range(size):
                with _collected(problems):
                    rows.read(row)
    return file, problems


def _overlaps(table: pa.Table, size: int) -> list[str]:
    """Samples of different splits that share ground. Those without a CRS have no place to compare."""
    columns = ("sample_id", "split", "crs", "x0", "y0", "resolution", "row", "col")
    patches, grids, problems = list[Roi](), list[Grid](), list[str]()
    for name, split, crs, x0, y0, step, row, col in zip(
        *(table[column].to_pylist() for column in columns), strict=True
    ):
        if crs:
            grids.append(Grid(crs, x0 + col * step, y0 - row * step, step, size, size))
            patches.append(Roi(name, "", "", "", "", split, grids[-1].bounds, crs))
    if len({patch.split for patch in patches}) > 1:
        with _collected(problems):
            audit_grids(patches, grids)
    return [f"samples of different splits overlap: {problem}" for problem in problems]


def _contradictions(folder: Folder, files: Iterable[ShardFile], table: pa.Table) -> list[str]:
    """How shards contradict the records of their run. Other folders have no records."""
    problems = list[str]()
    compacted = Run(folder, Config()).summary("compact")
    if compacted is not None:
        with _collected(problems):
            check_shards(folder, compacted["shards"])
        for file in files:
            others = set(file.scalars["split"].to_pylist()) - {file.uri.rsplit("/", 2)[-2]}
            if others:
                problems.append(f"{file.uri} holds samples of {', '.join(sorted(others))}")
    if not folder.exists(LEDGER) and (compacted is None or "imported" in compacted):
        return problems
    with _collected(problems):
        expected = Counter[tuple[str, str]]()
        for row in read_ledger(folder):
            expected[row.roi_id, row.split] += row.patches
        found = Counter(zip(table["roi_id"].to_pylist(), table["split"].to_pylist(), strict=True))
        for place in sorted(expected.keys() | found.keys()):
            if expected[place] != found[place]:
                samples = "{} samples of ROI {} in {}".format(found[place], *place)
                problems.append(f"{samples}, the ledger says {expected[place]}")
    return problems

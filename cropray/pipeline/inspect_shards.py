"""Looking at shards: what a set holds, and what one sample looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from cropray.figures.pictures import sample_picture
from cropray.run import Summary
from cropray.shards.file import ShardFile
from cropray.storage import Folder
from cropray.types import InputError

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

"""Patch folders of GeoTIFFs to parts: data of the published system is kept, and compacted as any other."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from cropray.bands import NODATA
from cropray.config import Config
from cropray.errors import InputError
from cropray.pipeline.patch_folder import Origin, PlacedPatch, common_names, label_rule, place_of, read_patch
from cropray.progress import progress
from cropray.rois.calendar import periods_for
from cropray.run import Run, Summary
from cropray.shards.ledger import TILE_KEY, LedgerRow, part_name, read_rows, write_ledger
from cropray.shards.schema import FORMAT_VERSION, ShardMetadata, encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.types import IntArray, Period

_PART_PATCHES = 128  # an import that is stopped loses no more than these
_THREADS = 4
_STAGE = {"imported": "patch folders"}
_SECTIONS = {"classes", "window", "labels", "patch"}


def import_tiff(directory: str, run: Run, origin: Origin) -> Summary:
    """Write a patch folder as parts of a run, and the ledger of all its parts; `compact` goes on from there.

    Codes are those of `labels.class_map.codes`, sizes and months those of the configuration. A part that
    is there is kept. Raises InputError for folders or files that are missing, of another size, of other
    bands or not readable, for a configuration that cannot say what the labels mean, and for parts of the
    same name that hold other patches.
    """
    source, config = Path(directory), run.config
    label = label_rule(config, origin)
    names = common_names(source, config.window.months)
    periods = periods_for(config.window, origin.harvest)
    metadata = _metadata(config)
    parts = _parts(source.resolve().name, names)
    if run.summary("rois") not in (None, _STAGE):
        raise InputError(f"{run.folder} has regions of its own; import into a new --run folder")
    there = {row.tile_id: row for row in read_rows(run.folder, _parts_in(run), metadata.recipe)}
    inputs = {tile_id: _inputs(source, chosen, origin) for tile_id, chosen in parts.items()}
    _refuse_others(run, source, [there[tile_id] for tile_id in parts if tile_id in there], inputs)
    missing = {tile_id: chosen for tile_id, chosen in parts.items() if tile_id not in there}
    run.finish("rois", _STAGE)

    def write(tile_id: str) -> int:
        patches = [read_patch(source, name, config, label, origin) for name in missing[tile_id]]
        _write(run, tile_id, patches, metadata, periods, inputs[tile_id])
        return len(patches)

    with (
        warnings.catch_warnings(),
        progress("import", len(names)) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        # Filters are one for all threads, so those that `rasters` sets in each would undo one another.
        warnings.simplefilter("ignore", UserWarning)
        bar.advance(len(names) - sum(map(len, missing.values())))
        for count in pool.map(write, missing):
            bar.advance(count)
    rows = read_rows(run.folder, _parts_in(run), metadata.recipe)
    write_ledger(run.folder, rows)
    summary = {"patches": len(names), "parts": len(parts), "patches_of_the_run": sum(r.patches for r in rows)}
    run.finish("export", summary)
    return summary


def _parts_in(run: Run) -> list[str]:
    return [name.removesuffix(".parquet") for name in run.folder.child("parts").names(".parquet")]


def _parts(prefix: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The patches of each part: those of one region, at most `_PART_PATCHES`."""
    regions = defaultdict(list)
    for name in names:
        regions[place_of(name)[0]].append(name)
    return {
        f"{prefix}-{region}-{first // _PART_PATCHES:03d}": chosen[first : first + _PART_PATCHES]
        for region, chosen in regions.items()
        for first in range(0, len(chosen), _PART_PATCHES)
    }


def _inputs(source: Path, names: Sequence[str], origin: Origin) -> str:
    """Hash of what a part is made of, without reading all of it: its patches' names, the files of the
    first one, and what is said of them.
    """
    digest = xxhash.xxh3_64(repr((origin, names)).encode())
    for path in sorted(source.glob(f"s[12]/*/{names[0]}")):
        digest.update(path.read_bytes())
    digest.update((source / "crop_map" / names[0]).read_bytes())
    return digest.hexdigest()


def _refuse_others(run: Run, source: Path, there: Iterable[LedgerRow], inputs: Mapping[str, str]) -> None:
    """Raises InputError where a part that is there is not what this import would make."""
    others = [row for row in there if row.inputs != inputs[row.tile_id]]
    if others:
        raise InputError(
            f"{run.folder}/{part_name(others[0].tile_id)} and {len(others) - 1} others hold other patches of "
            f"these names (split {others[0].split}): an import of another folder {source.resolve().name!r}, "
            "with other options, or before files changed. Rename the folder, whose name is part of the "
            "samples' names, or delete these parts to import them anew"
        )


def _metadata(config: Config) -> ShardMetadata:
    """As of an export, but that the source is these files; the same for all folders of a run."""
    source = {"kind": "patch folders", "s1_quantity": "sigma0"}  # what Earth Engine's S1_GRD holds
    settings = config.model_dump(mode="json", include=_SECTIONS)
    recipe = json.dumps([FORMAT_VERSION, settings, source], sort_keys=True)
    return ShardMetadata(
        classes=config.classes,
        size=config.patch.size,
        window=config.window.model_dump(mode="json"),
        s1_quantity=source["s1_quantity"],
        recipe=xxhash.xxh3_128_hexdigest(recipe.encode()),
        source=source,
    )


def _write(
    run: Run,
    tile_id: str,
    patches: Sequence[PlacedPatch],
    metadata: ShardMetadata,
    periods: Sequence[Period],
    inputs: str,
) -> None:
    """One part, with its row of the ledger; a sample a row group, as compaction wants them."""
    groups = [to_table([encode_patch(p.patch, p.roi, p.extent, periods)], metadata) for p in patches]
    checksums = xxhash.xxh3_64(b"".join(group["xxh3"].to_numpy().tobytes() for group in groups))
    first = patches[0]
    row = LedgerRow(
        tile_id=tile_id,
        roi_id=first.roi.roi_id,
        crop=first.roi.crop,
        season=first.roi.season,
        split=first.roi.split,
        recipe=metadata.recipe,
        inputs=inputs,
        patches=len(patches),
        reason="",
        nbytes=len(patches) * sum(spec.nbytes for spec in metadata.tensors.values()),
        checksum=checksums.hexdigest(),
        row=first.patch.row,
        col=first.patch.col,
        height=metadata.size,
        width=metadata.size,
        valid_s2=_valid([p.patch.s2_cthw for p in patches]),
        valid_s1=_valid([p.patch.s1_cthw for p in patches]),
        scenes_s2=[],
        scenes_s1=[],
    )
    write_shard(
        run.folder, part_name(tile_id), metadata, groups, codec="lz4", footer={TILE_KEY: row.to_json()}
    )


def _valid(images_cthw: Sequence[IntArray]) -> list[float]:
    """Share of pixels with a view, by month."""
    seen_nthw = np.stack([image[0] != NODATA for image in images_cthw])
    return [float(share) for share in seen_nthw.mean(axis=(0, 2, 3))]

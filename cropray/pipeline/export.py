"""Export: the ROIs' tiles fanned out over Ray Data, each to one part of the run folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cropray.config import Config
from cropray.imagery.open import open_source
from cropray.pipeline.cluster import for_workers, quiet_ray_data, ray_session
from cropray.pipeline.events import event_log
from cropray.pipeline.failures import TILE_FAILURES, refuse_failures, told
from cropray.pipeline.ledger import LedgerRow, read_rows, write_ledger
from cropray.pipeline.plan import extent_of, plan_tiles
from cropray.pipeline.tile import export_tile, inputs_of, shard_metadata
from cropray.progress import progress, say
from cropray.rois.splits import audit_grids
from cropray.rois.store import fingerprint, read_parcels, read_rois
from cropray.run import Run, Summary
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder

_CPUS_PER_WORKER = 0.25  # a worker mostly waits for imagery: `ray.concurrency` says how many there are


def export(run: Run) -> Summary:
    """Export all tiles that have no part yet; the summary counts tiles, patches and gaps.

    A tile that fails is recorded and the others go on. Raises InputError where tiles failed (run it
    again: finished ones are kept) and where parts were made by another recipe.
    """
    run.begin("export")
    inputs = {"ROIs or parcels": fingerprint(run.folder)}
    finished = run.finished("export", inputs)
    if finished is not None:
        say(f"export: reused {finished['patches']} patches of {finished['tiles']} tiles")
        return finished
    config, folder = run.config, run.folder
    metadata = shard_metadata(config, open_source(config))
    rois, parcels = read_rois(folder), read_parcels(folder)
    audit_grids(rois, [extent_of(roi, config.grid, config.patch) for roi in rois])
    tiles = {
        tile.tile_id: (number, tile)
        for roi in rois
        for number, tile in enumerate(plan_tiles(roi, config.grid, config.patch))
    }
    # A part of an ROI or of parcels that have changed since is made again.
    done = {
        row.tile_id
        for row in read_rows(folder, list(tiles), metadata.recipe)
        if row.inputs == inputs_of(tiles[row.tile_id][1], parcels)
    }
    if done:
        say(f"export: {len(done)} of {len(tiles)} tiles were finished before")
    left = [
        {"roi_id": tile.roi.roi_id, "number": number}
        for number, tile in tiles.values()
        if tile.tile_id not in done
    ]
    failures = _export_all(left, config, metadata, folder)
    refuse_failures("export", failures, len(tiles))
    rows = read_rows(folder, list(tiles), metadata.recipe)
    write_ledger(folder, rows)
    summary = summarise(rows)
    run.finish("export", summary, inputs)
    return summary


def _export_all(
    places: Sequence[dict[str, Any]], config: Config, metadata: ShardMetadata, folder: Folder
) -> dict[str, str]:
    """Export tiles, each a number in the plan of an ROI, on Ray; the errors by tile."""
    failures: dict[str, str] = {}
    if not places:
        return failures
    with ray_session(config.ray), event_log(folder, "export") as events:
        import ray

        quiet_ray_data()
        # One tile a block: each outcome comes back as soon as its tile is done.
        outcomes = ray.data.from_items(list(places), override_num_blocks=len(places)).map(
            _TileWorker,
            fn_constructor_args=(for_workers(config), metadata, folder),
            compute=ray.data.ActorPoolStrategy(size=min(config.ray.concurrency, len(places))),
            num_cpus=_CPUS_PER_WORKER,
        )
        with progress("export", len(places)) as bar:
            for outcome in outcomes.iter_rows():
                events.record(**outcome)
                if outcome["error"]:
                    failures[outcome["tile_id"]] = outcome["error"]
                bar.advance(note=f"{len(failures)} failed" if failures else "")
    return failures


class _TileWorker:
    """Exports the tile of a row; an error becomes a row, never a lost block."""

    def __init__(self, config: Config, metadata: ShardMetadata, folder: Folder) -> None:
        self._config, self._metadata, self._folder = config, metadata, folder
        self._source = open_source(config)
        self._parcels = read_parcels(folder)
        self._rois = {roi.roi_id: roi for roi in read_rois(folder)}

    def __call__(self, place: dict[str, Any]) -> dict[str, Any]:
        config = self._config
        tile = plan_tiles(self._rois[place["roi_id"]], config.grid, config.patch)[place["number"]]
        started, error, patches = time.monotonic(), "", 0
        try:
            row = export_tile(tile, config, self._metadata, self._parcels, self._source, self._folder)
            patches = row.patches
        except TILE_FAILURES as failure:
            error = told(failure)
        seconds = round(time.monotonic() - started, 3)
        return {"tile_id": tile.tile_id, "patches": patches, "seconds": seconds, "error": error}


def summarise(rows: Sequence[LedgerRow]) -> Summary:
    """Counts over the ledger; months are counted by tile."""
    patches_by_split: Counter[str] = Counter()
    for row in rows:
        patches_by_split[row.split] += row.patches
    return {
        "tiles": len(rows),
        "patches": sum(row.patches for row in rows),
        "patches_by_split": dict(sorted(patches_by_split.items())),
        "nbytes": sum(row.nbytes for row in rows),
        "empty_tiles": dict(Counter(row.reason for row in rows if row.reason)),
        "months_without_scene": {
            "s2": sum(row.scenes_s2.count(0) for row in rows),
            "s1": sum(row.scenes_s1.count(0) for row in rows),
        },
        "months_without_view": {
            "s2": sum(row.valid_s2.count(0.0) for row in rows),
            "s1": sum(row.valid_s1.count(0.0) for row in rows),
        },
    }

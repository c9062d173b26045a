"""Export: the ROIs' tiles fanned out over Ray, each to one part of the run folder."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cropray.cluster import for_workers, ray_session
from cropray.config import Config
from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.pipeline.cluster_quota import ClusterQuota, cluster_quota, threads_of, workers_of
from cropray.pipeline.export_plan import plan_export, summarise
from cropray.pipeline.fan_out import Outcome, fan_out
from cropray.pipeline.monitor import follow
from cropray.pipeline.tiles import Tile, export_tile, request_of
from cropray.progress import say
from cropray.rois.store import fingerprint, read_parcels
from cropray.run import Run, Summary
from cropray.shards.ledger import read_rows, write_ledger
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder

_AT_WORK = 2  # tiles: more would share one interpreter, and each takes some 200 MB at 480 px a side


_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # the first of malloc.h


def return_large_arrays() -> None:
    """Have glibc return freed blocks of more than 4 MB to the system.

    By itself it raises this limit to the size of the blocks that are freed, up to 32 MB (mallopt(3)), and
    keeps what each of many threads freed: half the memory of an export of tiles of 480 px.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class TileExporter:
    """Publishes the part of a tile and returns its number of patches; threads may share one."""

    def __init__(
        self, config: Config, metadata: ShardMetadata, folder: Folder, quota: ClusterQuota | None
    ) -> None:
        self._config, self._metadata, self._folder = config, metadata, folder
        return_large_arrays()
        self._slots = threading.Semaphore(_AT_WORK)
        self._source = open_source(config, quota, self._slots)
        self._parcels = read_parcels(folder)

    def __call__(self, tile: Tile) -> int:
        with self._slots:
            row = export_tile(tile, self._config, self._metadata, self._parcels, self._source, self._folder)
        return row.patches


_CPUS_PER_WORKER = 0.25  # a worker mostly waits for imagery: `ray.concurrency` says how many there are


def export(run: Run) -> Summary:
    """Export all tiles that have no part yet; the summary counts tiles, patches and gaps.

    A tile that fails is recorded and the others go on, until `ray.max_failures` have failed. Raises
    InputError where tiles failed (run it again: finished ones are kept), where parts were made by
    another recipe, and where a source with a quota refuses a first small request.
    """
    run.begin("export")
    inputs = {"ROIs or parcels": fingerprint(run.folder)}
    finished = run.finished("export", inputs)
    if finished is not None:
        say(f"export: reused {finished['patches']} patches of {finished['tiles']} tiles")
        return finished
    source = open_source(run.config)
    plan = plan_export(run, source)
    if plan.done:
        say(f"export: {len(plan.done)} of {len(plan.tiles)} tiles were finished before")
    if plan.left:
        _export_left(plan.left, plan.metadata, source, run)
    rows = read_rows(run.folder, [tile.tile_id for tile in plan.tiles], plan.metadata.recipe)
    write_ledger(run.folder, rows)
    periods_by_roi = {tile.roi.roi_id: request_of(tile, run.config).periods for tile in plan.tiles}
    summary = summarise(rows, periods_by_roi)
    for warning in summary["warnings"]:
        say(f"export: warning: {warning}")
    run.finish("export", summary, inputs)
    return summary


def _export_left(tiles: Sequence[Tile], metadata: ShardMetadata, source: ImagerySource, run: Run) -> None:
    config = run.config
    if isinstance(source, MeteredSource):
        source.preflight(request_of(tiles[0], config))
    left_by_roi = Counter(tile.roi.roi_id for tile in tiles)

    def note(outcome: Outcome[Tile, int]) -> list[str]:
        left_by_roi[outcome.job.roi.roi_id] -= not outcome.error
        return [f"{list(left_by_roi.values()).count(0)} of {len(left_by_roi)} ROIs"]

    with ray_session(config.ray):
        processes = workers_of(config, len(tiles))
        threads = threads_of(config, processes, len(tiles))
        quota = cluster_quota(config, processes * threads)
        outcomes = fan_out(
            "export",
            TileExporter,
            (for_workers(config), metadata, run.folder, quota),
            tiles,
            config=config.ray,
            processes=processes,
            threads=threads,
            resources={"CPU": _CPUS_PER_WORKER, **config.ray.export_resources},
        )
        follow("export", outcomes, len(tiles), run, quota, name="tile_id", details=_details, note=note)


def _details(outcome: Outcome[Tile, int]) -> dict[str, Any]:
    return {"patches": outcome.result or 0, "seconds": round(outcome.seconds, 3)}

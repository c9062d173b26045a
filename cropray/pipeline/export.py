"""Export: the ROIs' tiles fanned out over Ray, each to one part of the run folder."""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cropray.cluster import for_workers, ray_session
from cropray.config import Config
from cropray.errors import format_error
from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.pipeline.cluster_quota import ClusterQuota, QuotaWatch, cluster_quota, threads_of, workers_of
from cropray.pipeline.crew import Crew, Died, crew
from cropray.pipeline.events import TILE_FAILURES, EventLog, event_log, refuse_failures
from cropray.pipeline.export_plan import ExportPlan, plan_export, summarise
from cropray.pipeline.tiles import Tile, export_tile, request_of
from cropray.progress import progress, say
from cropray.rois.store import fingerprint, read_parcels
from cropray.run import Run, Summary
from cropray.shards.ledger import read_rows, write_ledger
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder

_AT_WORK = 2  # tiles: more would share one interpreter, and each takes some 200 MB at 480 px a side


@dataclass(frozen=True)
class Outcome:
    """What became of a tile, for the event log; `error` is empty where its part is published."""

    tile_id: str
    patches: int
    seconds: float
    error: str


_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # the first of malloc.h


def return_large_arrays() -> None:
    """Have glibc return freed blocks of more than 4 MB to the system.

    By itself it raises this limit to the size of the blocks that are freed, up to 32 MB (mallopt(3)), and
    keeps what each of many threads freed: half the memory of an export of tiles of 480 px.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class TileExporter:
    """Publishes parts; several threads may share one, as where the source makes them wait."""

    def __init__(
        self, config: Config, metadata: ShardMetadata, folder: Folder, quota: ClusterQuota | None
    ) -> None:
        self._config, self._metadata, self._folder = config, metadata, folder
        return_large_arrays()
        self._slots = threading.Semaphore(_AT_WORK)
        self._source = open_source(config, quota, self._slots)
        self._parcels = read_parcels(folder)

    def do(self, tile: Tile) -> Outcome:
        started, error, patches = time.monotonic(), "", 0
        try:
            with self._slots:
                row = export_tile(
                    tile, self._config, self._metadata, self._parcels, self._source, self._folder
                )
            patches = row.patches
        except TILE_FAILURES as failure:
            error = format_error(failure)
        return Outcome(tile.tile_id, patches, round(time.monotonic() - started, 3), error)


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
        failures, untried = _export_left(plan, source, run)
        refuse_failures("export", failures, len(plan.tiles), untried)
    rows = read_rows(run.folder, [tile.tile_id for tile in plan.tiles], plan.metadata.recipe)
    write_ledger(run.folder, rows)
    periods_by_roi = {tile.roi.roi_id: request_of(tile, run.config).periods for tile in plan.tiles}
    summary = summarise(rows, periods_by_roi)
    for warning in summary["warnings"]:
        say(f"export: warning: {warning}")
    run.finish("export", summary, inputs)
    return summary


def _export_left(plan: ExportPlan, source: ImagerySource, run: Run) -> tuple[dict[str, str], int]:
    """Export the tiles that are left on Ray: the errors by tile, and how many were not tried."""
    config, tiles = run.config, plan.left
    with ray_session(config.ray):
        workers = workers_of(config, len(tiles))
        threads = threads_of(config, workers, len(tiles))
        quota = cluster_quota(config, workers * threads)
        arguments = (for_workers(config), plan.metadata, run.folder, quota)
        asks = {"CPU": _CPUS_PER_WORKER, **config.ray.export_resources}
        with crew("export", TileExporter, arguments, size=workers, threads=threads, asks=asks) as exporters:
            if isinstance(source, MeteredSource):  # while the processes start
                source.preflight(request_of(tiles[0], config))
            with event_log(run.folder, "export") as events:
                watch = QuotaWatch(quota, events, len(tiles))
                return _followed(exporters, tiles, watch, events, config.ray.max_failures)


def _followed(
    exporters: Crew[Tile, Outcome], tiles: Sequence[Tile], watch: QuotaWatch, events: EventLog, most: int
) -> tuple[dict[str, str], int]:
    """Show and log what becomes of tiles until `most` have failed; returns as `_export_left`."""
    failures: dict[str, str] = {}
    left_by_roi = Counter(tile.roi.roi_id for tile in tiles)
    with progress("export", len(tiles)) as bar:
        for done, (tile, result) in enumerate(exporters.results(tiles), start=1):
            outcome = Outcome(tile.tile_id, 0, 0.0, result.error) if isinstance(result, Died) else result
            events.record(**asdict(outcome))
            if outcome.error:
                failures[tile.tile_id] = outcome.error
            left_by_roi[tile.roi.roi_id] -= not outcome.error
            counts = [f"{list(left_by_roi.values()).count(0)} of {len(left_by_roi)} ROIs"]
            counts += [f"{len(failures)} failed"] if failures else []
            bar.advance(note=watch.note(done, counts))
            if len(failures) >= most:
                return failures, len(tiles) - done
    return failures, 0

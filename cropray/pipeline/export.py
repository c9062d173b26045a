"""Export: the ROIs' tiles fanned out over Ray Data, each to one part of the run folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cropray.config import Config
from cropray.imagery.open import open_source
from cropray.imagery.source import MeteredSource
from cropray.pipeline.cluster import for_workers, quiet_ray_data, ray_session
from cropray.pipeline.events import event_log
from cropray.pipeline.export_plan import ExportPlan, plan_export
from cropray.pipeline.export_summary import summarise
from cropray.pipeline.failures import TILE_FAILURES, refuse_failures, told
from cropray.pipeline.ledger import read_rows, write_ledger
from cropray.pipeline.plan import plan_tiles
from cropray.pipeline.quota import ClusterQuota, QuotaWatch, cluster_quota, threads_of, workers_of
from cropray.pipeline.tile import export_tile, request_of
from cropray.progress import progress, say
from cropray.rois.store import fingerprint, read_parcels, read_rois
from cropray.run import Run, Summary
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder

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
    if plan.left and isinstance(source, MeteredSource):
        source.preflight(request_of(plan.left[0][1], run.config))
    failures, untried = _export_all(plan, run.config, run.folder)
    refuse_failures("export", failures, len(plan.tiles), untried)
    rows = read_rows(run.folder, [tile.tile_id for _, tile in plan.tiles], plan.metadata.recipe)
    write_ledger(run.folder, rows)
    periods_by_roi = {tile.roi.roi_id: request_of(tile, run.config).periods for _, tile in plan.tiles}
    summary = summarise(rows, periods_by_roi)
    for warning in summary["warnings"]:
        say(f"export: warning: {warning}")
    run.finish("export", summary, inputs)
    return summary


def _export_all(plan: ExportPlan, config: Config, folder: Folder) -> tuple[dict[str, str], int]:
    """Export the tiles that are left on Ray: the errors by tile, and how many were not tried."""
    failures: dict[str, str] = {}
    roi_of = {tile.tile_id: tile.roi.roi_id for _, tile in plan.left}
    left_by_roi = Counter(roi_of.values())
    if not roi_of:
        return failures, 0
    with ray_session(config.ray), event_log(folder, "export") as events:
        quiet_ray_data()
        workers = workers_of(config, len(roi_of))
        threads = threads_of(config, workers)
        watch = QuotaWatch(cluster_quota(config, workers * threads), events, len(roi_of))
        outcomes = _outcomes(plan, config, folder, workers, threads, watch.quota)
        with progress("export", len(roi_of)) as bar:
            for done, outcome in enumerate(outcomes, start=1):
                events.record(**outcome)
                if outcome["error"]:
                    failures[outcome["tile_id"]] = outcome["error"]
                left_by_roi[roi_of[outcome["tile_id"]]] -= not outcome["error"]
                counts = [f"{list(left_by_roi.values()).count(0)} of {len(left_by_roi)} ROIs"]
                counts += [f"{len(failures)} failed"] if failures else []
                bar.advance(note=watch.note(done, counts))
                if len(failures) >= config.ray.max_failures:
                    return failures, len(roi_of) - done
    return failures, 0


def _outcomes(
    plan: ExportPlan,
    config: Config,
    folder: Folder,
    workers: int,
    threads: int,
    quota: ClusterQuota | None,
) -> Iterator[dict[str, Any]]:
    """A row for every tile that is left, as soon as it is done or has failed."""
    import ray

    places = [{"roi_id": tile.roi.roi_id, "number": number} for number, tile in plan.left]
    # One tile a block: each outcome comes back at once.
    outcomes = ray.data.from_items(places, override_num_blocks=len(places)).map(
        _TileWorker,
        fn_constructor_args=(for_workers(config), plan.metadata, folder, quota),
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=threads,
            max_concurrent_calls_per_actor=threads,
            enable_true_multi_threading=True,
        ),
        num_cpus=_CPUS_PER_WORKER,
    )
    rows: Iterator[dict[str, Any]] = outcomes.iter_rows()
    return rows


class _TileWorker:
    """Exports the tile of a row, in several threads at once where the source makes them wait; an
    error becomes a row, never a lost block.
    """

    def __init__(
        self, config: Config, metadata: ShardMetadata, folder: Folder, quota: ClusterQuota | None
    ) -> None:
        self._config, self._metadata, self._folder = config, metadata, folder
        self._source = open_source(config, quota)
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

"""Export: the tiles of all ROIs fanned out over Ray, each to one part of the run folder."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cropray.cluster import for_workers, ray_session
from cropray.config import Config
from cropray.errors import InputError
from cropray.grid import transform_bounds
from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.pipeline.cluster_quota import ClusterQuota, cluster_quota, process_count, thread_count
from cropray.pipeline.export_summary import saw_anything, summarise
from cropray.pipeline.fan_out import Outcome, fan_out
from cropray.pipeline.monitor import follow
from cropray.pipeline.tiles import (
    Tile,
    export_tile,
    extent_of,
    inputs_of,
    plan_tiles,
    request_of,
    shard_metadata,
)
from cropray.progress import say
from cropray.rois.calendar import periods_for
from cropray.rois.splits import audit_grids
from cropray.rois.store import fingerprint, read_parcels, read_rois
from cropray.run import Run, Summary
from cropray.shards.ledger import (
    check_parts,
    delete_parts,
    read_ledger,
    read_rows,
    write_ledger,
)
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder
from cropray.types import Period

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_AT_WORK = 2  # tiles: more would share one interpreter, and each takes some 200 MB at 480 px a side
_CPUS = 0.25  # of a process, which mostly waits for imagery
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # the first of malloc.h


@dataclass(frozen=True)
class ExportPlan:
    """All tiles of a run, and those that have a part.

    `periods` are the months of each ROI. ROIs whose months are not over are `provisional`: they have today's
    date there.
    """

    metadata: ShardMetadata
    parcels: GeoDataFrame
    tiles: tuple[Tile, ...]
    done: frozenset[str]
    periods: Mapping[str, Sequence[Period]]
    provisional: Mapping[str, str]

    @property
    def left(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.tile_id not in self.done]


def plan_export(run: Run, source: ImagerySource, *, partial: bool = False) -> ExportPlan:
    """The tiles of the run's ROIs. Raises InputError for parts of another recipe.

    A part is not done if its ROI or the parcels near it have changed since, or if it was made before its
    months were over, on another day. Raises InputError for months that are not over, unless `partial`.
    """
    config, folder = run.config, run.folder
    metadata = shard_metadata(config, source)
    rois, parcels = read_rois(folder), read_parcels(folder)
    audit_grids(rois, [extent_of(roi, config.grid, config.patch) for roi in rois])
    tiles = tuple(tile for roi in rois for tile in plan_tiles(roi, config.grid, config.patch))
    if undated := [r.roi_id for r in rois if r.harvest_start is None and config.window.anchor == "harvest"]:
        raise InputError(
            f"window.anchor is harvest, but the harvest of {len(undated)} of {len(rois)} ROIs is unknown, "
            f"such as {undated[0]}. Give their dates, or set window.anchor=as_of and window.as_of."
        )
    periods = {roi.roi_id: periods_for(config.window, roi.harvest_start) for roi in rois}
    provisional = _provisional(periods, config, partial=partial)
    by_id = {tile.tile_id: tile for tile in tiles}
    rows = read_rows(folder, list(by_id), metadata.recipe)
    done = frozenset(
        row.tile_id
        for row in rows
        if row.inputs == inputs_of(by_id[row.tile_id], parcels)
        and row.provisional in ("", provisional.get(row.roi_id, ""))
    )
    return ExportPlan(metadata, parcels, tiles, done, periods, provisional)


def _provisional(periods: Mapping[str, Sequence[Period]], config: Config, *, partial: bool) -> dict[str, str]:
    """Today's date by ROI whose months are not over. Raises InputError for such an ROI unless `partial`."""
    now = datetime.now(UTC).date()
    whole_on = {roi_id: config.source.whole_on(months[-1].end) for roi_id, months in periods.items()}
    early = [roi_id for roi_id, day in whole_on.items() if day > now]
    if early and not partial:
        last = periods[early[0]][-1]
        raise InputError(
            f"{len(early)} of {len(periods)} ROIs need months that are not over: the last of {early[0]} is "
            f"{last.start} to {last.end - timedelta(days=1)}, whose scenes are expected by "
            f"{whole_on[early[0]]} (source.ingestion_days). Export then, choose earlier months "
            "(window.as_of, window.lead_months), or export what there is with --partial and again then."
        )
    return dict.fromkeys(early, now.isoformat())


def dry_run(run: Run, *, partial: bool = False) -> Summary:
    """What `export` would do and cost. Requests no pixels and writes no file.

    Patches and bytes of tensors are upper bounds: patches in which nothing is known are left out.
    """
    run.begin("export")
    source = open_source(run.config)
    plan = plan_export(run, source, partial=partial)
    left = plan.left
    patches = sum(len(tile.patches) for tile in left)
    summary: Summary = {
        "rois": len({tile.roi.roi_id for tile in plan.tiles}),
        "tiles": len(plan.tiles),
        "tiles_done": len(plan.done),
        "tiles_left": len(left),
        "patches_left_at_most": patches,
        "bytes_left_at_most": patches * sum(spec.nbytes for spec in plan.metadata.tensors.values()),
    }
    if isinstance(source, MeteredSource):
        summary["requests_left"] = source.estimate(request_of(tile, run.config) for tile in left)
    return summary


def export(run: Run, *, partial: bool = False) -> Summary:
    """Export all tiles that have no part; the summary counts tiles, patches and gaps.

    With `partial`, months that are not over are exported too; a later export does their tiles again. A tile
    that fails does not stop the others, until `ray.max_failures` have failed. Raises InputError if tiles
    failed, if nothing was seen in any tile, if months are not over, if parts are of another recipe, and if a
    source with a quota refuses a small first request.
    """
    run.begin("export")
    inputs = {"ROIs or parcels": fingerprint(run.folder)}
    finished = run.finished("export", inputs)
    if finished is not None and _is_whole(run.folder):
        say(f"export: reused {finished['patches']} patches of {finished['tiles']} tiles")
        return finished
    source = open_source(run.config)
    plan = plan_export(run, source, partial=partial)
    if plan.done:
        say(f"export: {len(plan.done)} of {len(plan.tiles)} tiles were finished before")
    if plan.left:
        _export_tiles(plan, source, run, *inputs.values())
    rows = read_rows(run.folder, [tile.tile_id for tile in plan.tiles], plan.metadata.recipe)
    if not any(saw_anything(row) for row in rows):
        delete_parts(run.folder, rows)  # or they would count as finished
        raise InputError(_nothing_seen(plan))
    write_ledger(run.folder, rows)
    summary = summarise(rows, plan.periods, run.config.composite.sensors)
    for warning in summary["warnings"]:
        say(f"export: warning: {warning}")
    run.finish("export", summary, inputs)
    return summary


def _is_whole(folder: Folder) -> bool:
    """Whether the ledger and all its parts are there, and none is provisional."""
    try:
        rows = read_ledger(folder)
        check_parts(folder, rows)
    except InputError:
        return False
    return not any(row.provisional for row in rows)


def _nothing_seen(plan: ExportPlan) -> str:
    roi = plan.tiles[0].roi
    west, south, east, north = transform_bounds(roi.bounds, roi.crs, "EPSG:4326")
    periods = plan.periods[roi.roi_id]
    return (
        f"no scene covers any of the {len(plan.tiles)} tiles: neither sensor has a valid pixel in any month. "
        f"ROI {roi.roi_id} is at longitude {(west + east) / 2:.3f}, latitude {(south + north) / 2:.3f}, its "
        f"months are {periods[0].start} to {periods[-1].end}. Check that x is longitude and y is latitude, "
        "and that the source (source.*) has scenes of that place and time."
    )


class TileExporter:
    """Publishes the part of a tile and returns its number of patches; threads may share one.

    `planned` is the fingerprint of the ROIs and parcels that the export was planned with. A process keeps its
    exporter until it differs. Raises InputError if they have changed since.
    """

    def __init__(
        self,
        config: Config,
        metadata: ShardMetadata,
        provisional: Mapping[str, str],
        folder: Folder,
        planned: str,
        quota: ClusterQuota | None,
    ) -> None:
        self._config, self._metadata, self._folder = config, metadata, folder
        self._provisional = provisional
        return_large_arrays()
        self._slots = threading.Semaphore(_AT_WORK)
        self._source = open_source(config, quota, self._slots)
        self._parcels = read_parcels(folder)
        if fingerprint(folder) != planned:
            raise InputError(f"{folder}/rois changed after the export had begun. Run it again.")

    def __call__(self, tile: Tile) -> int:
        provisional = self._provisional.get(tile.roi.roi_id, "")
        with self._slots:
            row = export_tile(
                tile, self._config, self._metadata, self._parcels, self._source, self._folder, provisional
            )
        return row.patches


def return_large_arrays() -> None:
    """Have glibc return freed blocks of more than 4 MB to the system.

    By default it raises this limit up to 32 MB (mallopt(3)) and keeps what each of many threads freed: half
    the memory of an export of tiles of 480 px.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _export_tiles(plan: ExportPlan, source: ImagerySource, run: Run, planned: str) -> None:
    config, tiles = run.config, plan.left
    if isinstance(source, MeteredSource):
        source.preflight(request_of(tiles[0], config))
    left_by_roi, finished = Counter(tile.roi.roi_id for tile in tiles), set[str]()

    def details(outcome: Outcome[Tile, int]) -> dict[str, Any]:
        return {"patches": outcome.result or 0, "seconds": round(outcome.seconds, 3)}

    def note(outcome: Outcome[Tile, int]) -> str:
        roi_id = outcome.job.roi.roi_id
        left_by_roi[roi_id] -= not outcome.error
        if not left_by_roi[roi_id]:
            finished.add(roi_id)
        return f"{len(finished)} of {len(left_by_roi)} ROIs"

    with ray_session(config.ray):
        processes = process_count(config, len(tiles))
        threads = thread_count(config, processes, len(tiles))
        quota = cluster_quota(config, processes * threads)
        outcomes = fan_out(
            "export",
            TileExporter,
            (for_workers(config), plan.metadata, plan.provisional, run.folder, planned, quota),
            tiles,
            config=config.ray,
            processes=processes,
            threads=threads,
            resources={"CPU": _CPUS, **config.ray.export_resources},
        )
        follow("export", outcomes, len(tiles), run, quota, name="tile_id", details=details, note=note)

"""Export: the tiles of all ROIs fanned out over Ray, each to one part of the run folder."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cropray.cluster import for_workers, ray_session
from cropray.config import Config
from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.pipeline.cluster_quota import ClusterQuota, cluster_quota, process_count, thread_count
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
from cropray.rois.splits import audit_grids
from cropray.rois.store import fingerprint, read_parcels, read_rois
from cropray.run import Run, Summary
from cropray.shards.ledger import LedgerRow, read_rows, write_ledger
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder
from cropray.types import Period

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_AT_WORK = 2  # tiles: more would share one interpreter, and each takes some 200 MB at 480 px a side
_CPUS = 0.25  # of a process, which mostly waits for imagery
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # the first of malloc.h
_PARTLY = 0.9  # of what Sentinel-1 sees of an ROI in its best month


@dataclass(frozen=True)
class ExportPlan:
    """All tiles of a run, and those that have a part."""

    metadata: ShardMetadata
    parcels: GeoDataFrame
    tiles: tuple[Tile, ...]
    done: frozenset[str]

    @property
    def left(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.tile_id not in self.done]


def plan_export(run: Run, source: ImagerySource) -> ExportPlan:
    """The tiles of the run's ROIs. Raises InputError for parts of another recipe.

    A part is not done if its ROI or the parcels near it have changed since.
    """
    config, folder = run.config, run.folder
    metadata = shard_metadata(config, source)
    rois, parcels = read_rois(folder), read_parcels(folder)
    audit_grids(rois, [extent_of(roi, config.grid, config.patch) for roi in rois])
    tiles = tuple(tile for roi in rois for tile in plan_tiles(roi, config.grid, config.patch))
    by_id = {tile.tile_id: tile for tile in tiles}
    rows = read_rows(folder, list(by_id), metadata.recipe)
    done = frozenset(row.tile_id for row in rows if row.inputs == inputs_of(by_id[row.tile_id], parcels))
    return ExportPlan(metadata, parcels, tiles, done)


def dry_run(run: Run) -> Summary:
    """What `export` would do and cost. Requests no pixels and writes no file.

    Patches and bytes of tensors are upper bounds: patches in which nothing is known are left out.
    """
    run.begin("export")
    source = open_source(run.config)
    plan = plan_export(run, source)
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


def export(run: Run) -> Summary:
    """Export all tiles that have no part; the summary counts tiles, patches and gaps.

    A tile that fails does not stop the others, until `ray.max_failures` have failed. Raises InputError if
    tiles failed, if parts are of another recipe, and if a source with a quota refuses a small first request.
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
        _export_tiles(plan.left, plan.metadata, source, run)
    rows = read_rows(run.folder, [tile.tile_id for tile in plan.tiles], plan.metadata.recipe)
    write_ledger(run.folder, rows)
    periods_by_roi = {tile.roi.roi_id: request_of(tile, run.config).periods for tile in plan.tiles}
    summary = summarise(rows, periods_by_roi)
    for warning in summary["warnings"]:
        say(f"export: warning: {warning}")
    run.finish("export", summary, inputs)
    return summary


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


def return_large_arrays() -> None:
    """Have glibc return freed blocks of more than 4 MB to the system.

    By default it raises this limit up to 32 MB (mallopt(3)) and keeps what each of many threads freed: half
    the memory of an export of tiles of 480 px.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _export_tiles(tiles: Sequence[Tile], metadata: ShardMetadata, source: ImagerySource, run: Run) -> None:
    config = run.config
    if isinstance(source, MeteredSource):
        source.preflight(request_of(tiles[0], config))
    left_by_roi = Counter(tile.roi.roi_id for tile in tiles)

    def details(outcome: Outcome[Tile, int]) -> dict[str, Any]:
        return {"patches": outcome.result or 0, "seconds": round(outcome.seconds, 3)}

    def note(outcome: Outcome[Tile, int]) -> str:
        left_by_roi[outcome.job.roi.roi_id] -= not outcome.error
        return f"{list(left_by_roi.values()).count(0)} of {len(left_by_roi)} ROIs"

    with ray_session(config.ray):
        processes = process_count(config, len(tiles))
        threads = thread_count(config, processes, len(tiles))
        quota = cluster_quota(config, processes * threads)
        outcomes = fan_out(
            "export",
            TileExporter,
            (for_workers(config), metadata, run.folder, quota),
            tiles,
            config=config.ray,
            processes=processes,
            threads=threads,
            resources={"CPU": _CPUS, **config.ray.export_resources},
        )
        follow("export", outcomes, len(tiles), run, quota, name="tile_id", details=details, note=note)


def summarise(rows: Sequence[LedgerRow], periods_by_roi: Mapping[str, Sequence[Period]]) -> Summary:
    """Counts over the ledger.

    Tiles without a scene or a valid pixel are counted by the month, such as "2022-04", in which the period
    begins. Scenes are None if the source does not count them.
    """
    months = {roi_id: [f"{p.start:%Y-%m}" for p in periods] for roi_id, periods in periods_by_roi.items()}
    patches_by_split: Counter[str] = Counter()
    for row in rows:
        patches_by_split[row.split] += row.patches
    return {
        "tiles": len(rows),
        "patches": sum(row.patches for row in rows),
        "patches_by_split": dict(sorted(patches_by_split.items())),
        "nbytes": sum(row.nbytes for row in rows),
        "empty_tiles": dict(Counter(row.reason for row in rows if row.reason)),
        "months_without_scene": {sensor: _gaps(rows, months, f"scenes_{sensor}") for sensor in ("s2", "s1")},
        "months_without_view": {sensor: _gaps(rows, months, f"valid_{sensor}") for sensor in ("s2", "s1")},
        "warnings": list(_warnings(rows, months)),
    }


def _gaps(rows: Sequence[LedgerRow], months: Mapping[str, list[str]], column: str) -> dict[str, int] | None:
    """In how many tiles `column` is 0, by month; None if some tile does not know."""
    if not all(getattr(row, column) for row in rows):
        return None
    gaps = Counter(
        month
        for row in rows
        for month, amount in zip(months[row.roi_id], getattr(row, column), strict=True)
        if amount == 0
    )
    return dict(sorted(gaps.items()))


def _warnings(rows: Sequence[LedgerRow], months: Mapping[str, list[str]]) -> Iterator[str]:
    """Tiles in which nothing was seen, and months in which Sentinel-1 saw less of an ROI than in others.

    Clouds hide nothing from Sentinel-1. Such a month is a gap of the archive or of the search, for instance
    because one of the orbits that an ROI needs is missing.
    """
    blind = sum(not any((*row.valid_s2, *row.valid_s1)) for row in rows)
    if blind:
        yield (
            f"{blind} of {len(rows)} tiles have no valid pixel in any month of either sensor; does the "
            "source cover their place and time?"
        )
    pixels, seen = Counter[str](), dict[str, Any]()
    for row in rows:
        area = row.height * row.width
        pixels[row.roi_id] += area
        seen[row.roi_id] = seen.get(row.roi_id, 0) + area * np.array(row.valid_s1)
    nothing, less = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for roi_id, areas in seen.items():
        shares = (areas / pixels[roi_id]).tolist()
        for month, share in zip(months[roi_id], shares, strict=True):
            if share == 0:
                nothing[month].append(roi_id)
            elif share < _PARTLY * max(shares):
                less[month].append(f"{roi_id}: {share:.0%} of it, at best {max(shares):.0%}")
    for what, rois_by_month in (("no valid Sentinel-1", nothing), ("less Sentinel-1 than others", less)):
        counts = [
            f"{month} in {len(rois)} of {len(seen)} ROIs (such as {rois[0]})"
            for month, rois in sorted(rois_by_month.items())
        ]
        if counts:
            yield (
                f"months with {what}: {', '.join(counts)}. Clouds do not hide land from it: are scenes or an "
                "orbit missing? The ledger has each tile"
            )

"""What an export has to do, and what it would cost: everything before the first pixel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cropray.imagery.open import open_source
from cropray.imagery.source import ImagerySource, MeteredSource
from cropray.pipeline.ledger import read_rows
from cropray.pipeline.plan import Tile, extent_of, plan_tiles
from cropray.pipeline.tile import inputs_of, request_of, shard_metadata
from cropray.rois.splits import audit_grids
from cropray.rois.store import read_parcels, read_rois
from cropray.run import Run, Summary
from cropray.shards.schema import ShardMetadata
from cropray.types import ImageRequest

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


@dataclass(frozen=True)
class ExportPlan:
    """All tiles of a run, and which have a part already."""

    metadata: ShardMetadata
    parcels: GeoDataFrame
    tiles: tuple[Tile, ...]
    done: frozenset[str]

    @property
    def left(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.tile_id not in self.done]


def plan_export(run: Run, source: ImagerySource) -> ExportPlan:
    """The tiles of the run's ROIs. Raises InputError where parts were made by another recipe.

    A part of an ROI or of parcels that have changed since counts as not done.
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
    """What `export` would do, without asking for a pixel or writing a file.

    Counts tiles that are done and, for those that are left, patches and bytes of their tensors at
    most (patches without anything known are left out); of a source with a quota also what it takes.
    """
    run.begin("export")
    source = open_source(run.config)
    plan = plan_export(run, source)
    left = plan.left
    sample_bytes = sum(spec.nbytes for spec in plan.metadata.tensors.values())
    patches = sum(len(tile.patches) for tile in left)
    summary: Summary = {
        "rois": len({tile.roi.roi_id for tile in plan.tiles}),
        "tiles": len(plan.tiles),
        "tiles_done": len(plan.done),
        "tiles_left": len(left),
        "patches_left_at_most": patches,
        "bytes_left_at_most": patches * sample_bytes,
    }
    if isinstance(source, MeteredSource):
        summary["requests_left"] = source.estimate(_requests(left, run))
    return summary


def _requests(tiles: Iterable[Tile], run: Run) -> Iterable[ImageRequest]:
    return (request_of(tile, run.config) for tile in tiles)

"""What an export has to do, and what it would cost: everything before the first pixel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cropray.imagery import ImagerySource, MeteredSource, open_source
from cropray.pipeline.tiles import Tile, extent_of, inputs_of, plan_tiles, request_of, shard_metadata
from cropray.rois.splits import audit_grids
from cropray.rois.store import read_parcels, read_rois
from cropray.run import Run, Summary
from cropray.shards.ledger import LedgerRow, read_rows
from cropray.shards.schema import ShardMetadata
from cropray.types import ImageRequest, Period

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


_PARTLY = 0.9  # of what Sentinel-1 sees of an ROI in its best month

PeriodsByRoi = Mapping[str, Sequence[Period]]


def summarise(rows: Sequence[LedgerRow], periods_by_roi: PeriodsByRoi) -> Summary:
    """Counts over the ledger of ROIs whose months are `periods_by_roi`.

    Months without a scene (None where the source does not count its scenes) and without a valid
    pixel are counted by tile, under the name "2022-04" of the calendar month in which they begin.
    """
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
            "s2": _without(rows, periods_by_roi, lambda row: row.scenes_s2),
            "s1": _without(rows, periods_by_roi, lambda row: row.scenes_s1),
        },
        "months_without_view": {
            "s2": _without(rows, periods_by_roi, lambda row: row.valid_s2),
            "s1": _without(rows, periods_by_roi, lambda row: row.valid_s1),
        },
        "warnings": list(_warnings(rows, periods_by_roi)),
    }


def _without(
    rows: Sequence[LedgerRow],
    periods_by_roi: PeriodsByRoi,
    by_month: Callable[[LedgerRow], Sequence[float]],
) -> dict[str, int] | None:
    """In how many tiles `by_month` is 0, by month; None where it is not known of all."""
    if not all(by_month(row) for row in rows):
        return None
    tiles = Counter(
        _month(period)
        for row in rows
        for period, amount in zip(periods_by_roi[row.roi_id], by_month(row), strict=True)
        if amount == 0
    )
    return dict(sorted(tiles.items()))


def _warnings(rows: Sequence[LedgerRow], periods_by_roi: PeriodsByRoi) -> Iterator[str]:
    """Where nothing was seen, and months in which Sentinel-1 saw nothing of an ROI or less than else.

    No cloud hides land from Sentinel-1: such a month is a gap of the archive or of the search, as
    when one of the orbits that an ROI needs is missing.
    """
    blind = sum(not any((*row.valid_s2, *row.valid_s1)) for row in rows)
    if blind:
        yield (
            f"{blind} of {len(rows)} tiles have no valid pixel in any month of either sensor; do their dates "
            "and places lie within what the source covers?"
        )
    nothing, less = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    shares = _seen_by_s1(rows)
    for roi_id, seen in shares.items():
        for period, share in zip(periods_by_roi[roi_id], seen, strict=True):
            if share == 0:
                nothing[_month(period)].append(roi_id)
            elif share < _PARTLY * max(seen):
                less[_month(period)].append(f"{roi_id}: {share:.0%} of it, at best {max(seen):.0%}")
    for what, rois_by_month in (("no valid Sentinel-1", nothing), ("less Sentinel-1 than in others", less)):
        months = [
            f"{month} in {len(rois)} of {len(shares)} ROIs (as {rois[0]})"
            for month, rois in sorted(rois_by_month.items())
        ]
        if months:
            yield (
                f"months with {what}: {', '.join(months)}; clouds do not hide land from it: are scenes or an "
                "orbit missing? The ledger has each tile"
            )


def _seen_by_s1(rows: Sequence[LedgerRow]) -> dict[str, list[float]]:
    """Share of each ROI's pixels with a valid view, by month."""
    pixels: Counter[str] = Counter()
    seen: dict[str, list[float]] = {}
    for row in rows:
        area = row.height * row.width
        pixels[row.roi_id] += area
        before = seen.get(row.roi_id, [0.0] * len(row.valid_s1))
        seen[row.roi_id] = [sum_ + area * share for sum_, share in zip(before, row.valid_s1, strict=True)]
    return {roi_id: [area / pixels[roi_id] for area in areas] for roi_id, areas in seen.items()}


def _month(period: Period) -> str:
    return f"{period.start:%Y-%m}"

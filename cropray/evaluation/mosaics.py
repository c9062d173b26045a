"""Whole ROIs put together again from the patches of their shards, every pixel once.

Neighbouring ROIs are one block: what is drawn again for an interval must be independent. Large ROIs
come in tiles, so memory is bounded by the tile and not by the ROI. Shape suffixes: N patches of a tile,
C bands, T months, H rows, W columns, K layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.bands import NODATA
from cropray.grid import Grid, Window, mosaic
from cropray.rois.splits import components
from cropray.shards.reader import ShardReader
from cropray.types import UNLABELLED, BoolArray, ByteArray, FloatArray, IntArray, Roi

_TILE = 1024  # pixels a side: about 200 MB of patches and 100 MB of probabilities of 21 classes
_ROWS_AT_ONCE = 16  # rows lie scattered over the shards, and each brings its row group into memory


@dataclass(frozen=True)
class TilePlan:
    """A part of an ROI's grid and the patches that reach into it.

    `rows` are positions in the reader's table. The hull is the rectangle around the tile and all its
    patches: `patches` and `inner`, the tile itself, are windows of it.
    """

    roi_id: str
    crop: str
    rows: tuple[int, ...]
    hull: tuple[int, int]
    inner: Window
    patches: tuple[Window, ...]


@dataclass(frozen=True)
class Tile:
    """The pixels of a plan: rasters of the whole tile, and patches for a network to see."""

    plan: TilePlan
    s1_ncthw: IntArray
    s2_ncthw: IntArray
    label_hw: ByteArray  # UNLABELLED where there is no patch
    truth_hw: ByteArray | None

    @property
    def s1_cthw(self) -> IntArray:
        return _laid(self.s1_ncthw, self.plan, NODATA)

    @property
    def s2_cthw(self) -> IntArray:
        return _laid(self.s2_ncthw, self.plan, NODATA)

    @property
    def seen_hw(self) -> BoolArray:
        """Where a sensor had a clear view in a month at least: elsewhere a map holds nodata."""
        seen_s1, seen_s2 = ((cube[0] != NODATA).any(axis=0) for cube in (self.s1_cthw, self.s2_cthw))
        seen: BoolArray = seen_s1 | seen_s2
        return seen

    def mosaicked(self, values_nkhw: FloatArray) -> FloatArray:
        """Values of the patches as one raster (K, H, W): means over overlaps, NaN under no patch."""
        return mosaic(values_nkhw, self.plan.patches, self.plan.hull)[:, *self.plan.inner.slices]


def extents(reader: ShardReader) -> dict[str, Grid]:
    """The grid of each ROI of a reader, by roi_id."""
    columns = ("roi_id", "crs", "x0", "y0", "resolution", "roi_height", "roi_width")
    rows = zip(*(reader.table[name].to_pylist() for name in columns), strict=True)
    return {roi_id: Grid(*grid) for roi_id, *grid in rows}


def block_numbers(grids: Mapping[str, Grid], buffer_m: float) -> dict[str, int]:
    """The block of each ROI: those nearer than `buffer_m`, directly or through others, are in one.

    They are those that no split may part: a field seen in several seasons makes several ROIs, and
    fields side by side look alike.
    """
    rois = [Roi(roi_id, "", "", "", "", "", grid.bounds, grid.crs) for roi_id, grid in grids.items()]
    return dict(zip(grids, components(rois, buffer_m).tolist(), strict=True))


def plan_tiles(reader: ShardReader, size: int = _TILE) -> list[TilePlan]:
    """Tiles of at most `size` pixels a side over all ROIs of a reader, ROI by ROI."""
    table = reader.table.select(("roi_id", "crop", "row", "col")).to_pydict()
    of_roi: dict[str, list[int]] = defaultdict(list)
    for position, roi_id in enumerate(table["roi_id"]):
        of_roi[roi_id].append(position)
    patch = reader.metadata.size
    grids = extents(reader)
    plans = []
    for roi_id in sorted(of_roi):
        rows = of_roi[roi_id]
        windows = {i: Window(table["row"][i], table["col"][i], patch, patch) for i in rows}
        for tile in grids[roi_id].blocks(size):
            inside = {i: window for i, window in windows.items() if window.overlaps(tile)}
            if inside:
                plans.append(_plan(roi_id, table["crop"][rows[0]], tile, inside))
    return plans


def read_tile(reader: ShardReader, plan: TilePlan) -> Tile:
    """The tile of a plan. Raises InputError for a damaged shard."""
    steps = range(0, len(plan.rows), _ROWS_AT_ONCE)
    batches = [reader.take(plan.rows[start : start + _ROWS_AT_ONCE]) for start in steps]

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(batch, name) for batch in batches])

    has_truth = batches[0].truth_bhw is not None
    return Tile(
        plan,
        s1_ncthw=joined("s1_bcthw"),
        s2_ncthw=joined("s2_bcthw"),
        label_hw=_laid(joined("label_bhw"), plan, UNLABELLED),
        truth_hw=_laid(joined("truth_bhw"), plan, UNLABELLED) if has_truth else None,
    )


def _plan(roi_id: str, crop: str, tile: Window, inside: dict[int, Window]) -> TilePlan:
    hull = Window.around([tile, *inside.values()])
    return TilePlan(
        roi_id,
        crop,
        rows=tuple(inside),
        hull=(hull.height, hull.width),
        inner=tile.within(hull),
        patches=tuple(window.within(hull) for window in inside.values()),
    )


def _laid(values_nxhw: npt.NDArray[Any], plan: TilePlan, fill: int) -> npt.NDArray[Any]:
    """Patches (N, ..., h, w) side by side (..., H, W) on the tile; overlaps hold the same values."""
    laid = np.full((*values_nxhw.shape[1:-2], *plan.hull), fill, values_nxhw.dtype)
    for values, patch in zip(values_nxhw, plan.patches, strict=True):
        laid[..., *patch.slices] = values
    return laid[..., *plan.inner.slices]

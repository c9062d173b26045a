"""Mosaics of whole ROIs, assembled tile by tile from the patches of their shards, each pixel once.

Tiles bound memory for large ROIs. Neighbouring ROIs form one block, since a bootstrap needs independent
units. Shape suffixes: N stored patches of a tile, C bands, T months, H rows, W columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.bands import NODATA
from cropray.grid import Grid, Window
from cropray.models.blending import patches_over
from cropray.rois.near import components
from cropray.shards.reader import ShardReader
from cropray.types import UNLABELLED, BoolArray, ByteArray, IndexArray, IntArray, Roi

_TILE = 1024  # pixels a side: about 200 MB of patches and 100 MB of probabilities of 21 classes
_ROWS_AT_ONCE = 16  # rows are scattered over the shards, and each loads its whole row group


@dataclass(frozen=True)
class TilePlan:
    """A part of an ROI's grid, and the patches that a network predicts for it.

    `rows` are positions in the reader's table, of the stored patches that hold the pixels of those patches.
    The hull is the rectangle around all of these, and has the `grid`. `inner` (the tile itself), `stored` and
    `patches` are windows of it. Patches share `overlap` pixels or more.
    """

    roi_id: str
    crop: str
    rows: tuple[int, ...]
    hull: tuple[int, int]
    inner: Window
    stored: tuple[Window, ...]
    patches: tuple[Window, ...]
    overlap: int
    grid: Grid


@dataclass(frozen=True)
class MosaicTile:
    """The pixels of a planned tile: imagery of its hull, for a network, and rasters of the tile itself."""

    plan: TilePlan
    s1_hull_cthw: IntArray
    s2_hull_cthw: IntArray
    label_hw: ByteArray  # UNLABELLED outside the stored patches
    truth_hw: ByteArray | None

    @property
    def s1_cthw(self) -> IntArray:
        return self.s1_hull_cthw[:, :, *self.plan.inner.slices]

    @property
    def s2_cthw(self) -> IntArray:
        return self.s2_hull_cthw[:, :, *self.plan.inner.slices]

    @property
    def seen_hw(self) -> BoolArray:
        """Pixels with a valid observation of any sensor in any month; a map holds nodata elsewhere."""
        seen_s1, seen_s2 = ((cube[0] != NODATA).any(axis=0) for cube in (self.s1_cthw, self.s2_cthw))
        seen: BoolArray = seen_s1 | seen_s2
        return seen


def roi_grids(reader: ShardReader) -> dict[str, Grid]:
    """The grid of each ROI of a reader, by roi_id."""
    columns = ("roi_id", "crs", "x0", "y0", "resolution", "roi_height", "roi_width")
    rows = zip(*(reader.table[name].to_pylist() for name in columns), strict=True)
    return {roi_id: Grid(*grid) for roi_id, *grid in rows}


def block_numbers(grids: Mapping[str, Grid], buffer_m: float) -> dict[str, int]:
    """The block of each ROI. ROIs closer than `buffer_m`, directly or through others, share a block.

    Blocks are the units that splitting keeps together: fields that several seasons share, and neighbouring
    fields, are not independent.
    """
    rois = [Roi(roi_id, "", "", "", "", "", grid.bounds, grid.crs) for roi_id, grid in grids.items()]
    return dict(zip(grids, components(rois, buffer_m).tolist(), strict=True))


def plan_tiles(reader: ShardReader, overlap: int, size: int = _TILE) -> list[TilePlan]:
    """Tiles of at most `size` pixels a side over all ROIs of a reader, ordered by ROI.

    The network's patches are those of a map of the ROI, which share `overlap` pixels or more. Where edges of
    the ROI are not in the shards, they are those of a map of the rest.
    """
    table = reader.table.select(("roi_id", "crop")).to_pydict()
    row_of, col_of = (reader.table[name].to_numpy().astype(np.int64) for name in ("row", "col"))
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, roi_id in enumerate(table["roi_id"]):
        rows_of[roi_id].append(row)
    patch, grids, plans = reader.metadata.size, roi_grids(reader), []
    overlap = min(overlap, patch // 2)
    for roi_id, rows in sorted(rows_of.items()):
        order = np.argsort(row_of[rows])
        numbers = np.array(rows)[order]
        row_n, col_n = row_of[numbers], col_of[numbers]
        top, left = int(row_n[0]), int(col_n.min())
        # The ROI, but for edges of which nothing was kept.
        stored = Window(top, left, int(row_n[-1]) + patch - top, int(col_n.max()) + patch - left)

        def touching(
            area: Window,
            numbers: IndexArray = numbers,
            row_n: IndexArray = row_n,
            col_n: IndexArray = col_n,
        ) -> list[int]:
            first, end = np.searchsorted(row_n, (area.row - patch + 1, area.bottom))
            col_m = col_n[first:end]
            touched: list[int] = sorted(
                numbers[first:end][(col_m < area.right) & (col_m > area.col - patch)].tolist()
            )
            return touched

        for tile in grids[roi_id].blocks(size):
            if not touching(tile):
                continue
            part, shape = tile.shared(stored).within(stored), (stored.height, stored.width)
            patches = [each.beyond(stored) for each in patches_over(part, shape, patch, overlap)]
            reach = Window.around(patches)
            places = ((i, int(row_of[i]), int(col_of[i])) for i in touching(reach))
            inside = {i: Window(row, col, patch, patch) for i, row, col in places}
            hull = Window.around([reach, *inside.values()])
            plans.append(
                TilePlan(
                    roi_id,
                    table["crop"][rows[0]],
                    rows=tuple(inside),
                    hull=(hull.height, hull.width),
                    inner=tile.within(hull),
                    stored=tuple(window.within(hull) for window in inside.values()),
                    patches=tuple(window.within(hull) for window in patches),
                    overlap=overlap,
                    grid=grids[roi_id].window(hull),
                )
            )
    return plans


def read_tile(reader: ShardReader, plan: TilePlan) -> MosaicTile:
    """Read the patches of a planned tile. Raises InputError for a damaged shard."""
    steps = range(0, len(plan.rows), _ROWS_AT_ONCE)
    batches = [reader.take(plan.rows[start : start + _ROWS_AT_ONCE]) for start in steps]

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(batch, name) for batch in batches])

    has_truth = batches[0].truth_bhw is not None
    return MosaicTile(
        plan,
        s1_hull_cthw=_assembled(joined("s1_bcthw"), plan, NODATA),
        s2_hull_cthw=_assembled(joined("s2_bcthw"), plan, NODATA),
        label_hw=_assembled(joined("label_bhw"), plan, UNLABELLED)[plan.inner.slices],
        truth_hw=_assembled(joined("truth_bhw"), plan, UNLABELLED)[plan.inner.slices] if has_truth else None,
    )


def _assembled(values_nxhw: npt.NDArray[Any], plan: TilePlan, fill: int) -> npt.NDArray[Any]:
    """Stored patches (N, ..., h, w) as one raster (..., H, W) of the hull; they agree where they overlap."""
    raster = np.full((*values_nxhw.shape[1:-2], *plan.hull), fill, values_nxhw.dtype)
    for values, patch in zip(values_nxhw, plan.stored, strict=True):
        raster[..., *patch.slices] = values
    return raster

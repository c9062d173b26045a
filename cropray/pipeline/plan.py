"""Which tiles an ROI is exported in: pure planning, before any pixel is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from cropray.config.imagery import PatchConfig
from cropray.config.regions import GridConfig
from cropray.grid import Grid, Window
from cropray.shards.patching import plan_starts, regular_end
from cropray.types import Roi


@dataclass(frozen=True)
class Tile:
    """Neighbouring patches of one ROI that are exported together, as one part.

    `rows` and `cols` are the first pixels of its patches in `extent`, the grid of the whole ROI:
    every pair of them is a patch of `size` pixels a side. The patches beyond the first `regular`
    (rows, columns) of `extent` lie flush with its edge and are there for the remainder only.
    """

    tile_id: str
    roi: Roi
    extent: Grid
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    size: int
    regular: tuple[int, int]

    @property
    def window(self) -> Window:
        """The part of `extent` that the patches cover."""
        height = self.rows[-1] - self.rows[0] + self.size
        width = self.cols[-1] - self.cols[0] + self.size
        return Window(self.rows[0], self.cols[0], height, width)

    @property
    def grid(self) -> Grid:
        return self.extent.window(self.window)

    @property
    def patches(self) -> list[Window]:
        """The windows of the patches in `extent`, row by row."""
        return [Window(row, col, self.size, self.size) for row, col in product(self.rows, self.cols)]


def extent_of(roi: Roi, grid: GridConfig, patch: PatchConfig) -> Grid:
    """The grid of an ROI: its bounds snapped outwards, one patch a side at least."""
    return Grid.covering(
        roi.bounds, roi.crs, crs=grid.crs, resolution=grid.resolution, snap=grid.snap, min_size=patch.size
    )


def plan_tiles(roi: Roi, grid: GridConfig, patch: PatchConfig) -> list[Tile]:
    """The tiles of an ROI, at most `patch.tile_patches` patches a side.

    Patches are planned for the ROI as a whole and then shared out, so the tile size changes which
    part a patch lies in and nothing else.
    """
    extent = extent_of(roi, grid, patch)
    rows = _groups(plan_starts(extent.height, patch.size, patch.max_overlap), patch.tile_patches)
    cols = _groups(plan_starts(extent.width, patch.size, patch.max_overlap), patch.tile_patches)
    height, width = (regular_end(length, patch.size, patch.max_overlap) for length in extent.shape)
    return [
        Tile(f"{roi.roi_id}-{i:03d}-{j:03d}", roi, extent, row_group, col_group, patch.size, (height, width))
        for i, row_group in enumerate(rows)
        for j, col_group in enumerate(cols)
    ]


def _groups(starts: list[int], most: int) -> list[tuple[int, ...]]:
    return [tuple(starts[i : i + most]) for i in range(0, len(starts), most)]

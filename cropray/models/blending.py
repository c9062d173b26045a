"""A raster larger than a patch: patches on a lattice over it are predicted and blended.

Maps and evaluations use the same lattice, so an evaluation scores what a map would show. Shape suffixes: N
patches, K classes, H rows, W columns, and those of `types`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cropray.grid import Grid, Window, lonlat, mosaic
from cropray.models.inference import Predictor
from cropray.types import DoubleArray, FloatArray, IntArray


@lru_cache(maxsize=64)
def axis_starts(length: int, size: int, overlap: int) -> tuple[int, ...]:
    """First pixels, ascending, of the fewest patches along an axis that share `overlap` pixels or more.

    They are spread evenly from the first pixel to the last. A patch that is longer than the axis extends
    evenly beyond both ends.
    """
    count = max(0, -(-(length - size) // (size - overlap))) + 1
    if count == 1:
        return ((length - size) // 2,)
    return tuple(round(index * (length - size) / (count - 1)) for index in range(count))


def patches_over(core: Window, shape: tuple[int, int], size: int, overlap: int) -> list[Window]:
    """The patches of a raster of `shape` (H, W) that touch `core`, row by row."""
    rows, cols = (
        starts[bisect_right(starts, first - size) : bisect_left(starts, end)]
        for starts, first, end in zip(
            (axis_starts(length, size, overlap) for length in shape),
            (core.row, core.col),
            (core.bottom, core.right),
            strict=True,
        )
    )
    return [Window(row, col, size, size) for row in rows for col in cols]


def patch_weights(size: int, overlap: int) -> FloatArray:
    """(size, size): 1 inside, falling linearly across the overlap towards each edge.

    Pixels near the edge of a patch, where the network sees the least context, count least.
    """
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    ramp = np.minimum(1.0, distance / max(overlap, 0.5)).astype(np.float32)
    return ramp[:, None] * ramp


class Patched(NamedTuple):
    """Stored integers of a raster, and the patches of it to predict, all of one size.

    `grid` is that of the raster, for networks that are told the places of patches.
    """

    s1_cthw: IntArray
    s2_cthw: IntArray
    patches: Sequence[Window]
    grid: Grid | None = None


def blended(
    predictor: Predictor,
    s1_cthw: IntArray,
    s2_cthw: IntArray,
    patches: Sequence[Window],
    overlap: int,
    batch_size: int = 16,
    grid: Grid | None = None,
) -> FloatArray:
    """Probabilities (K, H, W) of a raster (`Patched`): the weighted mean of its patches, NaN outside them."""
    return blended_each(predictor, [Patched(s1_cthw, s2_cthw, patches, grid)], overlap, batch_size)[0]


def blended_each(
    predictor: Predictor, rasters: Sequence[Patched], overlap: int, batch_size: int = 16
) -> list[FloatArray]:
    """`blended` of several rasters with patches of one size, whose patches share batches."""
    pairs = [(raster, patch) for raster in rasters for patch in raster.patches]
    place_n2 = None
    if predictor.needs_places and all(raster.grid is not None for raster in rasters):
        place_n2 = np.concatenate(
            [_centres(raster.grid, raster.patches) for raster in rasters if raster.grid]
        )
    values = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        s1_bcthw = np.stack([raster.s1_cthw[:, :, *patch.slices] for raster, patch in batch])
        s2_bcthw = np.stack([raster.s2_cthw[:, :, *patch.slices] for raster, patch in batch])
        place_b2 = None if place_n2 is None else place_n2[start : start + batch_size]
        values.append(predictor.probabilities(s1_bcthw, s2_bcthw, place_b2))
    values_nkhw, ends = np.concatenate(values), np.cumsum([len(raster.patches) for raster in rasters])
    weights_hw = patch_weights(pairs[0][1].height, overlap)
    return [
        mosaic(part, raster.patches, raster.s1_cthw.shape[2:], weights_hw)
        for raster, part in zip(rasters, np.split(values_nkhw, ends[:-1]), strict=True)
    ]


def _centres(grid: Grid, patches: Sequence[Window]) -> DoubleArray:
    """Longitudes and latitudes (N, 2) of the centres of patches."""
    row, col = np.array([(patch.row + patch.height / 2, patch.col + patch.width / 2) for patch in patches]).T
    x, y = grid.x0 + col * grid.resolution, grid.y0 - row * grid.resolution
    return lonlat([grid.crs] * len(patches), x, y)

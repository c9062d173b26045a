"""One tile of a map: patches on a lattice of the whole map, predicted and blended. No Ray, no files.

The lattice belongs to the map and not to the tile: a patch that crosses the border of two tiles is
predicted for both from the same pixels, so borders cannot show and the size of a tile changes
nothing. Shape suffixes: N patches, K classes, H rows, W columns; see `types` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.grid import Grid, Window
from cropray.imagery import ImagerySource
from cropray.models.decision import decide
from cropray.shards.schema import quantise
from cropray.types import (
    UNLABELLED,
    BoolArray,
    ByteArray,
    Composite,
    CompositeRecipe,
    FloatArray,
    ImageRequest,
    IntArray,
    Period,
)

if TYPE_CHECKING:
    from cropray.models.decision import Predictor

NODATA = UNLABELLED
"""In a map, class and per cent alike: outside the area, or no valid view in any month."""


@dataclass(frozen=True)
class PredictionSettings:
    """What every tile of a map is predicted with. `size` and `overlap` are of patches, in pixels."""

    periods: tuple[Period, ...]
    as_of: date
    recipe: CompositeRecipe
    size: int = 64
    overlap: int = 16
    batch_size: int = 16


class TileResult(NamedTuple):
    class_hw: ByteArray  # 0..K-1, BACKGROUND where no class reaches its threshold, NODATA
    percent_khw: ByteArray  # probability of each class, 0..100, NODATA


def predict_tile(
    core: Window,
    wanted_hw: BoolArray,
    grid: Grid,
    source: ImagerySource,
    predictor: Predictor,
    settings: PredictionSettings,
) -> TileResult:
    """Class and probabilities of the pixels of `core`, a window of the map's `grid`.

    `wanted_hw` (the shape of `core`) says which pixels lie in the area. Imagery is asked for once,
    for all patches that touch a wanted pixel; patches may reach beyond the map, where imagery is
    context like any other. Memory is that of one tile.
    """
    n_classes = len(predictor.checkpoint.classes)
    patches = [
        patch
        for patch in patches_over(core, grid.shape, settings.size, settings.overlap)
        if wanted_hw[patch.shared(core).within(core).slices].any()
    ]
    if not patches:
        return _result(np.zeros((n_classes, *wanted_hw.shape), np.float32), wanted_hw, predictor)
    hull = Window.around(patches)
    composite = source.composite(
        ImageRequest(
            grid=grid.window(hull),
            extent=grid,
            periods=settings.periods,
            recipe=settings.recipe,
            not_after=settings.as_of,
            name=f"{core.row:07d}-{core.col:07d}",
        )
    )
    s1_cthw, s2_cthw = stored(composite)
    seen_hw: BoolArray = np.any(composite.s2_valid_thw | composite.s1_valid_thw, axis=0)
    del composite
    blend = _Blend(core, n_classes, patch_weights(settings.size, settings.overlap))
    for batch in _batches(patches, settings.batch_size):
        slices = [patch.within(hull).slices for patch in batch]
        s1_bcthw = np.stack([s1_cthw[:, :, rows, cols] for rows, cols in slices])
        s2_bcthw = np.stack([s2_cthw[:, :, rows, cols] for rows, cols in slices])
        for patch, values_khw in zip(batch, predictor.probabilities(s1_bcthw, s2_bcthw), strict=True):
            blend.add(patch, values_khw)
    return _result(blend.mean(), wanted_hw & _seen_of_core(seen_hw, hull, core), predictor)


def stored(composite: Composite) -> tuple[IntArray, IntArray]:
    """s1 and s2 (C, T, H, W) as stored integers, in the units on which networks are trained."""
    s1 = quantise(composite.s1_tchw, composite.s1_valid_thw[:, None], S1_BANDS[0].scale)
    s2 = quantise(composite.s2_tchw, composite.s2_valid_thw[:, None], S2_BANDS[0].scale)
    return s1.swapaxes(0, 1), s2.swapaxes(0, 1)


def axis_starts(length: int, size: int, overlap: int) -> range:
    """First pixels of the patches along one axis: a stride of `size - overlap`, every pixel covered.

    What they cover beyond the axis hangs over both ends alike, so starts may be negative.
    """
    stride = size - overlap
    count = max(0, -(-(length - size) // stride)) + 1
    excess = (count - 1) * stride + size - length
    first = -(excess // 2)
    return range(first, first + count * stride, stride)


def patches_over(core: Window, shape: tuple[int, int], size: int, overlap: int) -> list[Window]:
    """The patches of the lattice of a map of `shape` (H, W) that touch `core`, row by row."""
    rows, cols = (axis_starts(length, size, overlap) for length in shape)
    patches = (Window(row, col, size, size) for row in rows for col in cols)
    return [patch for patch in patches if patch.overlaps(core)]


def patch_weights(size: int, overlap: int) -> FloatArray:
    """(size, size): 1 inside, falling linearly over the overlap towards each edge.

    The weights of neighbours add up to 1, and what a network sees least of, the surroundings of
    pixels at the edge of its patch, counts least.
    """
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    ramp = np.minimum(1.0, distance / max(overlap, 0.5)).astype(np.float32)
    return ramp[:, None] * ramp


class _Blend:
    """The weighted mean of patches over one core window."""

    def __init__(self, core: Window, n_classes: int, weights_hw: FloatArray) -> None:
        self._core = core
        self._weights_hw = weights_hw
        self._sum_khw = np.zeros((n_classes, core.height, core.width), np.float32)
        self._weight_hw = np.zeros((core.height, core.width), np.float32)

    def add(self, patch: Window, values_khw: FloatArray) -> None:
        shared = patch.shared(self._core)
        rows, cols = shared.within(self._core).slices
        src_rows, src_cols = shared.within(patch).slices
        weights_hw = self._weights_hw[src_rows, src_cols]
        self._sum_khw[:, rows, cols] += values_khw[:, src_rows, src_cols] * weights_hw
        self._weight_hw[rows, cols] += weights_hw

    def mean(self) -> FloatArray:
        """(K, H, W); 0 where no patch lies."""
        weight_hw: FloatArray = np.maximum(self._weight_hw, np.float32(1e-12))
        return self._sum_khw / weight_hw


def _result(probabilities_khw: FloatArray, shown_hw: BoolArray, predictor: Predictor) -> TileResult:
    class_hw = decide(probabilities_khw, predictor.thresholds)
    percent_khw = np.rint(probabilities_khw * 100).astype(np.uint8)
    return TileResult(
        np.where(shown_hw, class_hw, np.uint8(NODATA)), np.where(shown_hw, percent_khw, np.uint8(NODATA))
    )


def _seen_of_core(seen_hw: BoolArray, hull: Window, core: Window) -> BoolArray:
    """Of a mask of `hull` the part of `core`; False where the hull does not reach."""
    shared = hull.shared(core)
    seen_core_hw = np.zeros((core.height, core.width), np.bool_)
    seen_core_hw[shared.within(core).slices] = seen_hw[shared.within(hull).slices]
    return seen_core_hw


def _batches(patches: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    return (patches[start : start + size] for start in range(0, len(patches), size))

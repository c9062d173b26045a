"""One tile of a map: patches on a lattice of the whole map are predicted and blended.

All tiles share the lattice. A patch that crosses the border of two tiles is predicted for both from the
same pixels, so borders never show and the size of the tiles does not matter. Shape suffixes: N patches,
K classes, H rows, W columns, and those of `types`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.grid import Grid, Window
from cropray.imagery import ImagerySource
from cropray.models.decision import Predictor, decide
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

NODATA = UNLABELLED
"""Value of a class or percentage in a map outside the area, or without a valid view in any month."""


@dataclass(frozen=True)
class PredictionSettings:
    """The settings that all tiles of a map share. `size` and `overlap` are of patches, in pixels."""

    periods: tuple[Period, ...]
    as_of: date
    recipe: CompositeRecipe
    size: int = 64
    overlap: int = 16
    batch_size: int = 16


class TileResult(NamedTuple):
    class_hw: ByteArray  # 0..K-1, BACKGROUND if no class reaches its threshold, or NODATA
    percent_khw: ByteArray  # probability of each class, 0..100, or NODATA


def encode_tile(result: TileResult) -> bytes:
    """A part of a map: the arrays of a tile as a compressed npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, class_hw=result.class_hw, percent_khw=result.percent_khw)
    return buffer.getvalue()


def decode_tile(data: bytes) -> TileResult:
    """The tile of `encode_tile`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return TileResult(arrays["class_hw"], arrays["percent_khw"])


def predict_tile(
    core: Window,
    wanted_hw: BoolArray,
    grid: Grid,
    source: ImagerySource,
    predictor: Predictor,
    settings: PredictionSettings,
) -> TileResult:
    """Classes and probabilities of the pixels of `core`, a window of the map's `grid`.

    `wanted_hw` (H, W of `core`) is True in the area. One request fetches the imagery of all patches
    that touch a wanted pixel. Patches may extend beyond the map, where imagery is context.
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
    for start in range(0, len(patches), settings.batch_size):
        batch = patches[start : start + settings.batch_size]
        slices = [patch.within(hull).slices for patch in batch]
        s1_bcthw = np.stack([s1_cthw[:, :, rows, cols] for rows, cols in slices])
        s2_bcthw = np.stack([s2_cthw[:, :, rows, cols] for rows, cols in slices])
        for patch, values_khw in zip(batch, predictor.probabilities(s1_bcthw, s2_bcthw), strict=True):
            blend.add(patch, values_khw)
    shared = hull.shared(core)
    seen_core_hw = np.zeros_like(wanted_hw)
    seen_core_hw[shared.within(core).slices] = seen_hw[shared.within(hull).slices]
    return _result(blend.mean(), wanted_hw & seen_core_hw, predictor)


def stored(composite: Composite) -> tuple[IntArray, IntArray]:
    """s1 and s2 (C, T, H, W) as stored integers, as in the training data."""
    s1 = quantise(composite.s1_tchw, composite.s1_valid_thw[:, None], S1_BANDS[0].scale)
    s2 = quantise(composite.s2_tchw, composite.s2_valid_thw[:, None], S2_BANDS[0].scale)
    return s1.swapaxes(0, 1), s2.swapaxes(0, 1)


def axis_starts(length: int, size: int, overlap: int) -> range:
    """First pixels of the patches along one axis, at a stride of `size - overlap`.

    The patches cover every pixel. They extend evenly beyond both ends, so starts may be negative.
    """
    stride = size - overlap
    count = max(0, -(-(length - size) // stride)) + 1
    excess = (count - 1) * stride + size - length
    first = -(excess // 2)
    return range(first, first + count * stride, stride)


def patches_over(core: Window, shape: tuple[int, int], size: int, overlap: int) -> list[Window]:
    """The patches of a map of `shape` (H, W) that touch `core`, row by row."""
    rows, cols = (axis_starts(length, size, overlap) for length in shape)
    patches = (Window(row, col, size, size) for row in rows for col in cols)
    return [patch for patch in patches if patch.overlaps(core)]


def patch_weights(size: int, overlap: int) -> FloatArray:
    """(size, size): 1 inside, falling linearly across the overlap towards each edge.

    The weights of neighbours add up to 1. Pixels near the edge of a patch, where the network sees the
    least context, count least.
    """
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    ramp = np.minimum(1.0, distance / max(overlap, 0.5)).astype(np.float32)
    return ramp[:, None] * ramp


class _Blend:
    """The weighted mean of patches in one core window."""

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
        """(K, H, W), 0 outside all patches."""
        weight_hw: FloatArray = np.maximum(self._weight_hw, np.float32(1e-12))
        return self._sum_khw / weight_hw


def _result(probabilities_khw: FloatArray, shown_hw: BoolArray, predictor: Predictor) -> TileResult:
    class_hw = decide(probabilities_khw, predictor.thresholds)
    percent_khw = np.rint(probabilities_khw * 100).astype(np.uint8)
    return TileResult(
        np.where(shown_hw, class_hw, np.uint8(NODATA)), np.where(shown_hw, percent_khw, np.uint8(NODATA))
    )

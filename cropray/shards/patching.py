"""Cutting a raster into square patches and putting overlapping patches together again.

Shape suffixes: N patches, K layers, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cropray.grid import Window
from cropray.types import FloatArray, InputError


def choose_overlap(length: int, size: int, max_overlap: int) -> int:
    """The overlap of 0..max_overlap pixels that leaves the fewest pixels over, the first such.

    Windows of `size` are laid along `length` pixels at a stride of `size - overlap`.
    """
    return min(range(max_overlap + 1), key=lambda overlap: (length - size) % (size - overlap))


def regular_end(length: int, size: int, max_overlap: int) -> int:
    """How many of `length` pixels the windows of `choose_overlap` cover; the rest is the remainder."""
    return length - (length - size) % (size - choose_overlap(length, size, max_overlap))


def plan_starts(length: int, size: int, max_overlap: int) -> list[int]:
    """First pixels of the windows along one axis, ascending; together they cover every pixel.

    The windows are those of `choose_overlap`; where these leave pixels over, one more window lies
    flush with the far edge (it may overlap its neighbour by more than `max_overlap`). Leaving the
    remainder out instead would lose its labels: up to half a patch a side, which of an ROI of one
    and a half patches is a third of the area. Raises InputError for a length below `size`.
    """
    if length < size:
        raise InputError(f"{length} pixels are too few for a patch of {size}; widen the ROI's grid")
    if not 0 <= max_overlap < size:
        raise InputError(f"patches of {size} can overlap by 0 to {size - 1} pixels, got {max_overlap}")
    stride = size - choose_overlap(length, size, max_overlap)
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] + size == length else [*starts, length - size]


def mosaic(
    values_nkhw: npt.NDArray[np.floating], windows: Sequence[Window], shape: tuple[int, int]
) -> FloatArray:
    """Patches laid at their windows on a raster (K, *shape): the mean where they overlap.

    Pixels under no window are NaN; a NaN in one patch makes the pixel NaN.
    """
    if len(values_nkhw) != len(windows):
        raise ValueError(f"{len(values_nkhw)} patches for {len(windows)} windows")
    total = np.zeros((values_nkhw.shape[1], *shape), np.float32)
    count = np.zeros(shape, np.float32)
    for values_khw, window in zip(values_nkhw, windows, strict=True):
        rows, cols = window.slices
        total[:, rows, cols] += values_khw
        count[rows, cols] += 1
    count[count == 0] = np.nan
    return total / count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.grid import Window, choose_overlap, mosaic, plan_starts
from tests.samples import plan_windows

lengths = st.integers(64, 700)


def seed_overlap(length: int, size: int = 64) -> int:
    """The published rule, written as its loop: keep an overlap that leaves strictly less over."""
    best, least = 0, length
    for overlap in range(33):
        position = 0
        while position + size <= length:
            position += size - overlap
        left = length - (position - (size - overlap) + size)
        if left < least:
            best, least = overlap, left
    return best


@given(lengths)
def test_the_overlap_is_the_published_rule(length: int) -> None:
    assert choose_overlap(length, 64, 32) == seed_overlap(length)


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (64, [0]),
        (128, [0, 64]),
        (100, [0, 36]),  # overlap 28 leaves nothing
        (96, [0, 32]),
        (95, [0, 31]),  # no overlap up to 32 fits: flush with the edge
        (129, [0, 64, 65]),  # 1 pixel over at overlap 0, and no overlap leaves less
    ],
)
def test_starts_of_known_lengths(length: int, starts: list[int]) -> None:
    assert plan_starts(length, 64, 32) == starts


@given(lengths, st.integers(0, 32))
def test_one_more_window_covers_the_remainder_of_the_published_rule(length: int, max_overlap: int) -> None:
    starts = plan_starts(length, 64, max_overlap)
    stride = 64 - choose_overlap(length, 64, max_overlap)
    regular = list(range(0, length - 63, stride))
    assert starts[: len(regular)] == regular
    assert starts[len(regular) :] == ([] if regular[-1] + 64 == length else [length - 64])


@given(lengths, lengths, st.integers(0, 32))
def test_windows_cover_every_pixel_and_stay_inside(height: int, width: int, max_overlap: int) -> None:
    covered = np.zeros((height, width), bool)
    for window in plan_windows(height, width, 64, max_overlap):
        assert window.row >= 0
        assert window.col >= 0
        assert window.row + window.height <= height
        assert window.col + window.width <= width
        covered[window.slices] = True
    assert covered.all()


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_cutting_and_mosaicking_gives_the_raster_back(
    height: int, width: int, overlap: int, seed: int
) -> None:
    raster = np.random.default_rng(seed).normal(size=(3, height, width)).astype(np.float32)
    windows = plan_windows(height, width, 8, overlap)
    patches = np.stack([raster[:, w.slices[0], w.slices[1]] for w in windows])
    np.testing.assert_allclose(mosaic(patches, windows, (height, width)), raster, rtol=1e-6)


def test_overlaps_are_averaged_and_gaps_are_nan() -> None:
    windows = [Window(0, 0, 2, 2), Window(0, 1, 2, 2)]
    patches = np.stack([np.full((1, 2, 2), 1.0), np.full((1, 2, 2), 4.0)])
    expected = [[1.0, 2.5, 4.0, np.nan], [1.0, 2.5, 4.0, np.nan]]
    np.testing.assert_array_equal(mosaic(patches, windows, (2, 4))[0], expected)


def test_a_patch_without_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="2 patches for 1 windows"):
        mosaic(np.zeros((2, 1, 2, 2)), [Window(0, 0, 2, 2)], (2, 2))

"""Tiles of a map: patches, blending, nodata. Maps do not depend on the size of the tiles."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from cropray.grid import Window
from cropray.maps.request import MapPlan
from cropray.maps.tiles import NODATA, predict_tile
from cropray.models.blending import axis_starts, patch_weights, patches_over
from cropray.shards.schema import quantise_composite
from cropray.types import ImageRequest
from tests.map_inputs import AS_OF, GRID, PERIODS, FakeNetwork, FakeSource, settings, whole_map


@given(st.integers(64, 900), st.sampled_from([(64, 0), (64, 16), (64, 32), (32, 5)]))
def test_the_fewest_patches_cover_an_axis_and_stay_inside_it(length: int, shape: tuple[int, int]) -> None:
    size, overlap = shape
    starts = axis_starts(length, size, overlap)
    assert (starts[0], starts[-1] + size) == (0, length)
    shared = [size - (after - before) for before, after in pairwise(starts)]
    assert all(overlap <= pixels <= max(shared[0] + 1, overlap) for pixels in shared)
    assert len(starts) == 1 or length > size + (len(starts) - 2) * (size - overlap)  # one less would not do


@given(st.integers(64, 400), st.integers(0, 32))
def test_no_patch_begins_or_ends_with_a_jump(length: int, overlap: int) -> None:
    """The share of a patch in a blend changes by no more than twice its ramp, but near the ends."""
    starts, weights = axis_starts(length, 64, overlap), np.sqrt(np.diag(patch_weights(64, overlap)))
    shares = np.zeros((len(starts), length))
    for share, start in zip(shares, starts, strict=True):
        share[start : start + 64] = weights
    shares /= shares.sum(axis=0)
    inside = shares[:, overlap : length - overlap]
    assert np.abs(np.diff(inside)).max(initial=0) <= 2 / max(overlap, 2)


def test_a_tile_gets_every_patch_that_touches_it_and_no_other() -> None:
    core = Window(96, 128, 64, 100)
    over = patches_over(core, (400, 500), 64, 16)
    for patch in patches_over(Window(0, 0, 400, 500), (400, 500), 64, 16):
        apart = shapely.box(patch.col, patch.row, patch.col + 64, patch.row + 64).intersection(
            shapely.box(128, 96, 228, 160)
        )
        assert (patch in over) == (apart.area > 0)


@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_maps_of_different_tile_sizes_are_the_same_map(overlap: int) -> None:
    """Equal everywhere, tile borders included, although patches differ at their edges."""
    small, large = (whole_map(size, settings(overlap=overlap)) for size in (64, 512))
    assert np.array_equal(small.class_hw, large.class_hw)
    assert np.array_equal(small.percent_khw, large.percent_khw)
    assert len(np.unique(large.class_hw)) > 3


def test_overlap_hides_the_edges_of_patches() -> None:
    """Against the same network on one patch without any edge inside the map."""
    composite = FakeSource().composite(ImageRequest(GRID, GRID, PERIODS))
    s1, s2 = quantise_composite(composite)
    signal = s2[0].mean(axis=0) / 4000 + s1[1].mean(axis=0) / 20000
    wanted = sum(np.roll(signal, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    inner = np.s_[70:-70, 70:-70]
    worst = {}
    for overlap in (0, 16):
        got = whole_map(128, settings(overlap=overlap)).percent_khw[0] / 100
        worst[overlap] = np.abs(got - np.abs(wanted) % 1)[inner].max()
    assert worst[0] > 0.1
    assert worst[16] < 0.02 + worst[0] / 30


def test_pixels_without_any_view_are_nodata_and_one_sensor_is_enough() -> None:
    made = whole_map(128, settings())
    assert (made.class_hw[:, :30] == NODATA).all()
    assert (made.percent_khw[:, :, :30] == NODATA).all()
    assert (made.class_hw[:, 30:] != NODATA).all()
    assert made.percent_khw[:, :, 30:].max() <= 100


def test_pixels_outside_the_polygons_are_nodata_and_need_no_imagery() -> None:
    triangle = shapely.Polygon([(601_000, 5_599_000), (602_500, 5_599_900), (602_900, 5_598_200)])
    plan = MapPlan("", GRID, (triangle,))
    made = whole_map(64, settings(), plan=plan)
    x, y = np.meshgrid(*GRID.centres())
    assert np.array_equal(made.class_hw != NODATA, shapely.contains_xy(triangle, x, y))
    full = whole_map(64, settings())
    inside = made.class_hw != NODATA
    assert np.array_equal(made.class_hw[inside], full.class_hw[inside])

    source = FakeSource()
    predict_tile(Window(0, 0, 64, 64), np.zeros((64, 64), bool), GRID, source, FakeNetwork(), settings())
    assert source.requests == []
    predict_tile(Window(64, 64, 64, 64), np.ones((64, 64), bool), GRID, source, FakeNetwork(), settings())
    (request,) = source.requests
    assert request.extent == GRID
    assert request.not_after == AS_OF
    assert request.grid.height <= 64 + 2 * 64

"""Grids: snapping, windows, blocks, zones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.errors import InputError
from cropray.grid import Grid, Window, transform_bounds, utm_crs

UTM31 = "EPSG:32631"
coordinate = st.floats(-5e6, 5e6)
side = st.floats(0.5, 20_000)


@given(coordinate, coordinate, side, side, st.sampled_from([1, 64]))
def test_a_covering_grid_is_the_smallest_snapped_one(
    x: float, y: float, width: float, height: float, size: int
) -> None:
    bounds = (x, y, x + width, y + height)
    grid = Grid.covering(bounds, UTM31, crs=UTM31, min_size=size)
    min_x, min_y, max_x, max_y = grid.bounds
    slack = 1e-4  # a hundred-thousandth of a pixel
    assert min_x <= x + slack
    assert min_y <= y + slack
    assert max_x >= x + width - slack
    assert max_y >= y + height - slack
    assert min_x % 20 == max_y % 20 == max_x % 20 == min_y % 20 == 0
    assert grid.width <= max(width / 10, size) + 4
    assert grid.height <= max(height / 10, size) + 4
    assert grid.width >= size
    assert grid.height >= size


def test_bounds_that_are_snapped_already_stay_as_they_are() -> None:
    grid = Grid.covering((500_000, 5_600_000, 500_640, 5_600_640), UTM31, crs=UTM31)
    assert grid == Grid(UTM31, 500_000, 5_600_640, 10, 64, 64)
    assert grid.transform == (10, 0, 500_000, 0, -10, 5_600_640)


def test_a_degree_box_over_flanders_lands_in_its_zone_at_true_scale() -> None:
    grid = Grid.covering((3.0, 51.0, 3.1, 51.05), "EPSG:4326")
    assert grid.crs == UTM31
    # 0.1 degree of longitude at 51 N is 7.02 km, 0.05 degree of latitude 5.56 km.
    assert grid.width * 10 == pytest.approx(7_020, abs=60)
    assert grid.height * 10 == pytest.approx(5_563, abs=60)


@pytest.mark.parametrize(
    ("lon", "lat", "zone"), [(3, 51, 32631), (51.4, 35.7, 32639), (-71, -33, 32719), (179.9, 1, 32660)]
)
def test_utm_zones(lon: float, lat: float, zone: int) -> None:
    assert utm_crs((lon, lat, lon, lat), "EPSG:4326") == f"EPSG:{zone}"


windows = st.builds(Window, st.integers(-8, 8), st.integers(-8, 8), st.integers(1, 9), st.integers(1, 9))


def pixels(window: Window) -> set[tuple[int, int]]:
    return {(row, col) for row in range(window.row, window.bottom) for col in range(window.col, window.right)}


@given(windows, windows)
def test_windows_are_the_sets_of_their_pixels(one: Window, other: Window) -> None:
    both = pixels(one) & pixels(other)
    assert one.overlaps(other) == bool(both)
    if both:
        assert pixels(one.shared(other)) == both
    around = Window.around([one, other])
    assert pixels(around) >= pixels(one) | pixels(other)
    rows, cols = zip(*(pixels(one) | pixels(other)), strict=True)
    assert (around.row, around.col) == (min(rows), min(cols))
    assert (around.bottom, around.right) == (max(rows) + 1, max(cols) + 1)
    inside = one.within(around)
    assert Window(inside.row + around.row, inside.col + around.col, inside.height, inside.width) == one


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_blocks_cover_every_pixel_once(height: int, width: int, size: int) -> None:
    seen = np.zeros((height, width), int)
    for block in Grid(UTM31, 0, 0, 10, height, width).blocks(size):
        seen[block.slices] += 1
    assert (seen == 1).all()


def test_a_window_keeps_the_pixel_centres() -> None:
    grid = Grid(UTM31, 1000, 9000, 10, 100, 80)
    x, y = grid.centres()
    part_x, part_y = grid.window(Window(7, 11, 20, 30)).centres()
    np.testing.assert_array_equal(part_x, x[11:41])
    np.testing.assert_array_equal(part_y, y[7:27])
    assert x[0] == 1005
    assert y[0] == 8995


def test_reprojected_bounds_hold_the_edges_between_the_corners() -> None:
    west, south, east, north = transform_bounds((400_000, 5_500_000, 600_000, 5_700_000), UTM31, "EPSG:4326")
    # The northern edge bulges: its middle (the central meridian) is north of its corners.
    assert north > transform_bounds((400_000, 5_700_000, 400_001, 5_700_001), UTM31, "EPSG:4326")[3]
    assert west < east
    assert south < north


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(InputError, match="positive size"):
        Grid(UTM31, 0, 0, 10, 0, 5)


def test_a_region_across_180_degrees_is_one_grid_in_its_zone() -> None:
    bounds = (179.99, -17.01, 180.02, -17.0)
    grid = Grid.covering(bounds, "EPSG:4326")
    assert grid.crs == "EPSG:32701"
    assert grid.width == pytest.approx(0.03 * 106_500 / 10, rel=0.02)
    assert transform_bounds(grid.bounds, grid.crs, "EPSG:4326") == pytest.approx(bounds, abs=3e-3)
    again = Grid.covering(grid.bounds, grid.crs)
    assert (again.crs, again.bounds) == (grid.crs, grid.bounds)


def test_metres_in_a_grid_of_degrees_are_refused() -> None:
    with pytest.raises(InputError, match=r"resolution is 10: degrees.*grid\.crs=utm"):
        Grid.covering((4.3, 50.4, 4.4, 50.5), "EPSG:4326", crs="EPSG:4326")
    grid = Grid.covering((4.3, 50.4, 4.4, 50.5), "EPSG:4326", crs="EPSG:4326", resolution=1e-4, snap=2e-4)
    assert grid.shape == (1000, 1000)

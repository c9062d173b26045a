"""Burning, reading onto a grid, writing by windows, COGs, full disks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from pyproj import Transformer

from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.rasters import (
    burn,
    create_tiled,
    read_grid,
    read_nearest,
    read_reduced,
    read_window,
    write_cog,
)

GRID = Grid("EPSG:32631", 500_000, 5_650_000, 10, 40, 60)


def from_origin(west: float, north: float, width: float, height: float) -> rasterio.Affine:
    return rasterio.Affine(width, 0, west, 0, -height, north)


def write_raster(path: Path, values: np.ndarray, transform, crs="EPSG:32631", nodata=None) -> str:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=values.shape[0],
        width=values.shape[1],
        count=1,
        dtype=values.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
    ) as dataset:
        dataset.write(values, 1)
    return str(path)


@given(st.lists(st.tuples(st.floats(0.01, 599.99), st.floats(0.01, 399.99)), min_size=3, max_size=8))
def test_a_pixel_is_burnt_where_its_centre_lies_inside(points: list[tuple[float, float]]) -> None:
    polygon = shapely.convex_hull(shapely.MultiPoint([(500_000 + x, 5_650_000 - y) for x, y in points]))
    assume(polygon.geom_type == "Polygon")
    x, y = np.meshgrid(*GRID.centres())
    burnt = burn([(polygon, 3)], GRID, 255)
    centres = shapely.points(x, y)
    # Centres on the outline (to a millimetre) may fall to either side.
    clear = shapely.distance(shapely.boundary(polygon), centres) > 1e-3
    assert ((burnt == 3) == shapely.contains(polygon, centres))[clear].all()
    assert set(np.unique(burnt)) <= {3, 255}


def test_burning_nothing_gives_the_fill_value() -> None:
    assert (burn([], GRID, 7) == 7).all()
    assert (burn([(shapely.Polygon(), 1)], GRID, 7) == 7).all()


def test_reading_takes_the_pixel_that_holds_the_centre_in_another_crs(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (200, 300)).astype(np.int16)
    lon, lat = 3.0, 51.0
    path = write_raster(tmp_path / "a.tif", values, from_origin(lon, lat, 1e-4, 1e-4), crs="EPSG:4326")
    grid = Grid.covering((lon + 1e-3, lat - 0.015, lon + 0.02, lat - 1e-3), "EPSG:4326")
    x, y = np.meshgrid(*grid.centres())
    east, north = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    cols, rows = (east - lon) / 1e-4, (lat - north) / 1e-4
    wanted = values[rows.astype(int), cols.astype(int)]
    near_edge = (np.abs(cols - np.rint(cols)) < 1e-4) | (np.abs(rows - np.rint(rows)) < 1e-4)
    read = read_nearest(path, grid, nodata=0)
    assert read.dtype == np.int16
    assert ((read == wanted) | near_edge).all()
    assert near_edge.mean() < 0.01


@pytest.mark.parametrize(("own", "missing"), [(None, 0), (None, 9), (7, 7), (7, 0)])
def test_uncovered_and_nodata_pixels_are_marked(tmp_path: Path, own: int | None, missing: int) -> None:
    values = np.full((4, 4), 5, np.int16)
    values[1, 1] = 7
    path = write_raster(tmp_path / "a.tif", values, from_origin(500_000, 5_650_000, 10, 10), nodata=own)
    read = read_nearest(path, GRID.window(Window(-1, -1, 6, 6)), nodata=missing)
    wanted = np.full((6, 6), missing)
    wanted[1:5, 1:5] = 5
    wanted[2, 2] = 7 if own is None else missing
    assert np.array_equal(read, wanted)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the raster .*none\.tif"):
        read_nearest(str(tmp_path / "none.tif"), GRID, 0)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of writing the test's file
@pytest.mark.parametrize(
    ("crs", "transform"), [(None, from_origin(0, 0, 10, 10)), ("EPSG:32631", rasterio.Affine.identity())]
)
def test_a_raster_without_georeference_is_refused(tmp_path: Path, crs, transform) -> None:
    path = write_raster(tmp_path / "bare.tif", np.ones((4, 4), np.uint8), transform, crs=crs)
    with pytest.raises(InputError, match=r"bare\.tif has no georeference"):
        read_nearest(path, GRID, 0)


def test_a_damaged_raster_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8)
    path = tmp_path / "cut.tif"
    write_raster(path, values, from_origin(500_000, 5_650_000, 10, 10))
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(InputError, match=r"cannot read the raster .*cut\.tif"):
        read_window(str(path), Window(300, 0, 100, 400))


def filled(path: Path, grid: Grid, values_bhw: np.ndarray, **options) -> None:
    with create_tiled(path, grid, count=len(values_bhw), dtype="uint8", nodata=255, **options) as write:
        for window in grid.blocks(500):  # across the file's own blocks
            rows, cols = window.slices
            write(values_bhw[:, rows, cols], window)


def test_written_windows_make_up_the_raster_and_the_others_are_nodata(tmp_path: Path) -> None:
    grid = Grid("EPSG:32631", 500_000, 5_650_000, 10, 1100, 1300)
    values = np.random.default_rng(1).integers(0, 200, (2, *grid.shape), dtype=np.uint8)
    filled(tmp_path / "a.tif", grid, values)
    assert read_grid(str(tmp_path / "a.tif")) == grid
    window = Window(700, 640, 300, 400)
    assert np.array_equal(read_window(str(tmp_path / "a.tif"), window), values[:, 700:1000, 640:1040])
    with create_tiled(tmp_path / "b.tif", grid, count=1, dtype="uint8", nodata=255) as write:
        write(values[:1, :512, :512], Window(0, 0, 512, 512))
    whole = read_window(str(tmp_path / "b.tif"), Window(0, 0, *grid.shape))[0]
    assert np.array_equal(whole[:512, :512], values[0, :512, :512])
    assert (whole[512:] == 255).all()


def test_a_cog_has_its_layout_overviews_and_table(tmp_path: Path) -> None:
    """Tiles, overviews, and every block's data behind all headers, smallest overview first."""
    grid = Grid("EPSG:32631", 500_000, 5_650_000, 10, 1100, 1300)
    values = np.random.default_rng(1).integers(0, 4, (1, *grid.shape), dtype=np.uint8)
    filled(tmp_path / "a.tif", grid, values, tags={"AS_OF": "2022-06-01"}, colours={2: (1, 2, 3)})
    write_cog(tmp_path / "a.tif", tmp_path / "cog.tif", overviews="nearest")
    with rasterio.open(tmp_path / "cog.tif") as cog:
        assert cog.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert cog.block_shapes == [(512, 512)]
        assert cog.overviews(1) == [2, 4]
        assert cog.nodata == 255
        assert cog.crs.to_epsg() == 32631
        assert cog.tags()["AS_OF"] == "2022-06-01"
        assert cog.colormap(1)[2] == (1, 2, 3, 255)
        assert np.array_equal(cog.read(), values)
        first = [
            int(cog.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1, **level))
            for level in ({}, {"ovr": 0}, {"ovr": 1})
        ]
        assert first == sorted(first, reverse=True)
        assert max(int(cog.get_tag_item("IFD_OFFSET", "TIFF", bidx=1, ovr=o)) for o in (0, 1)) < min(first)
    with rasterio.open(tmp_path / "cog.tif", overview_level=0) as overview:
        assert np.isin(overview.read(1), values).all()


def test_overviews_of_quantities_are_means_without_nodata(tmp_path: Path) -> None:
    grid = Grid("EPSG:32631", 500_000, 5_650_000, 10, 1024, 1024)
    values = np.zeros((1, *grid.shape), np.uint8)
    values[:, ::2, ::2], values[:, 1::2, ::2], values[:, :, 1::2] = 20, 40, 255
    filled(tmp_path / "a.tif", grid, values)
    write_cog(tmp_path / "a.tif", tmp_path / "cog.tif", overviews="average")
    with rasterio.open(tmp_path / "cog.tif", overview_level=0) as overview:
        assert (overview.read(1) == 30).all()


def test_a_large_raster_is_read_with_fewer_pixels(tmp_path: Path) -> None:
    grid = Grid("EPSG:32631", 500_000, 5_650_000, 10, 1000, 2000)
    filled(tmp_path / "a.tif", grid, np.full((1, *grid.shape), 6, np.uint8))
    values, read = read_reduced(str(tmp_path / "a.tif"), 100)
    assert values.shape == (1, 50, 100)
    assert read == grid
    assert (values == 6).all()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from cropray.grid import Grid
from cropray.rasters import create_tiled, write_cog
from cropray.errors import InputError

folder = Path(sys.argv[1])
grid = Grid("EPSG:32631", 500_000, 5_650_000, 10, 2048, 2048)
noise = np.random.default_rng(0).integers(0, 200, (1, 512, 512), dtype=np.uint8)

def fill(path):
    with create_tiled(path, grid, count=1, dtype="uint8", nodata=255) as write:
        for window in grid.blocks(512):
            write(noise, window)

fill(folder / "whole.tif")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
for work in (lambda: fill(folder / "new.tif"),
             lambda: write_cog(folder / "whole.tif", folder / "cog.tif", overviews="nearest")):
    try:
        work()
    except InputError as error:
        assert "MB free in" in str(error), error
    else:
        raise SystemExit("no error")
assert [path.name for path in sorted(folder.iterdir())] == ["whole.tif"], list(folder.iterdir())
"""


@pytest.mark.parametrize("limit", [1_000_000, 3_000_000])
def test_a_full_disk_is_an_input_error_and_leaves_no_file(tmp_path: Path, limit: int) -> None:
    """A limit of the file size stands in for a full disk: writes fail in the same place, with EFBIG."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_place_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot write"),
        create_tiled(tmp_path / "file" / "a.tif", GRID, count=1, dtype="uint8", nodata=255),
    ):
        pass


def test_a_raster_whose_writing_fails_is_removed(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        create_tiled(tmp_path / "a.tif", GRID, count=1, dtype="uint8", nodata=255),
    ):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []

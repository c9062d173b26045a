"""Hectares on the ellipsoid against an equal-area projection."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from cropray.grid import Grid, Window
from cropray.maps.mosaic import class_areas, pixel_hectares
from cropray.maps.tiles import (
    NODATA,
)
from cropray.rasters import create_tiled
from cropray.types import BACKGROUND
from tests.map_inputs import CLASSES


@pytest.mark.parametrize(
    ("crs", "bounds"),
    [
        ("utm", (8.0, 55.0, 8.3, 55.2)),
        ("utm", (2.9, 36.1, 3.1, 36.2)),
        ("EPSG:3857", (51.0, 35.0, 51.2, 35.1)),
    ],
)
def test_pixel_areas_agree_with_an_equal_area_projection(crs: str, bounds: tuple[float, ...]) -> None:
    """Lambert's azimuthal projection about the place: true areas, by another way."""
    west, south, east, north = bounds
    grid = Grid.covering((west, south, east, north), "EPSG:4326", crs=crs, resolution=10)
    part = grid.window(Window(100, 200, 333, 277))
    laea = f"+proj=laea +lat_0={(south + north) / 2} +lon_0={(west + east) / 2} +ellps=WGS84"
    outline = shapely.segmentize(shapely.box(*part.bounds), 50)
    projected = shapely.transform(
        outline, Transformer.from_crs(part.crs, laea, always_xy=True).transform, interleaved=False
    )
    assert pixel_hectares(part).sum() == pytest.approx(projected.area / 1e4, rel=1e-6)
    one = grid.window(Window(310, 290, 1, 1))
    pixel = shapely.transform(
        shapely.box(*one.bounds),
        Transformer.from_crs(part.crs, laea, always_xy=True).transform,
        interleaved=False,
    )
    assert pixel_hectares(part)[210, 90] == pytest.approx(pixel.area / 1e4, rel=2e-4)


def test_web_mercator_pixels_are_not_taken_for_a_tenth_of_a_tenth_of_a_hectare() -> None:
    """10 m of EPSG:3857 at 52°N are 6.2 m of ground."""
    grid = Grid.covering((5.0, 52.0, 5.01, 52.01), "EPSG:4326", crs="EPSG:3857")
    side_m = np.sqrt(pixel_hectares(grid).mean() * 1e4)
    assert side_m == pytest.approx(10 * np.cos(np.radians(52.005)), rel=0.005)


def test_class_areas_count_every_pixel_once(tmp_path: Path) -> None:
    grid = Grid("EPSG:32631", 600_000, 5_600_000, 10, 700, 900)
    values = np.random.default_rng(0).choice([0, 2, BACKGROUND, NODATA], grid.shape).astype(np.uint8)
    with create_tiled(tmp_path / "a.tif", grid, count=1, dtype="uint8", nodata=NODATA) as write_window:
        write_window(values[None], Window(0, 0, *grid.shape))
    areas = class_areas(str(tmp_path / "a.tif"), CLASSES)
    assert {name: row["pixels"] for name, row in areas.items()} == {
        "wheat": (values == 0).sum(),
        "maize": 0,
        "sugar beet": (values == 2).sum(),
        "none of the classes": (values == BACKGROUND).sum(),
    }
    hectares = pixel_hectares(grid)
    assert areas["sugar beet"]["hectares"] == pytest.approx(hectares[values == 2].sum(), rel=1e-6)

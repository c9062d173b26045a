"""Hectares of a class map, on the ellipsoid, read block by block."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pyproj import Geod, Transformer

from cropray.grid import Grid
from cropray.maps.tiles import NODATA
from cropray.rasters import read_grid, read_window
from cropray.types import BACKGROUND

_BLOCK = 512
_CELL = 32  # pixels a side within which pixels are taken to be equally large
_M2_A_HECTARE = 1e4


def pixel_hectares(grid: Grid) -> npt.NDArray[np.float64]:
    """(H, W): the area of each pixel on the WGS 84 ellipsoid.

    Geodesic polygons (Karney 2013, Algorithms for geodesics, doi:10.1007/s00190-012-0578-z) of cells
    of at most 32 x 32 pixels, shared evenly by their pixels: right for any CRS, and in sum to 1e-6
    of the area, since the scale of a projection changes little within a cell.
    """
    rows, cols = (_edges(length) for length in grid.shape)
    x, y = np.meshgrid(grid.x0 + cols * grid.resolution, grid.y0 - rows * grid.resolution)
    lon, lat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    geod = Geod(ellps="WGS84")
    hectares_hw = np.empty(grid.shape)
    for i in range(len(rows) - 1):
        for j in range(len(cols) - 1):
            corners = (i, i, i + 1, i + 1), (j, j + 1, j + 1, j)
            area_m2, _ = geod.polygon_area_perimeter(lon[corners], lat[corners])
            cell = hectares_hw[rows[i] : rows[i + 1], cols[j] : cols[j + 1]]
            cell[:] = abs(area_m2) / _M2_A_HECTARE / cell.size
    return hectares_hw


def class_areas(path: str, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Pixels and hectares of each class of a class map, and of none of them; nodata is not counted.

    These are counts of mapped pixels, not estimates of area: an estimate corrects them by the
    errors of the map (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015).
    """
    grid = read_grid(path)
    pixels = np.zeros(256, np.int64)
    hectares = np.zeros(256)
    for block in grid.blocks(_BLOCK):
        values = read_window(path, block)[0].ravel()
        if (values == NODATA).all():
            continue
        pixels += np.bincount(values, minlength=256)
        hectares += np.bincount(values, pixel_hectares(grid.window(block)).ravel(), minlength=256)
    names = dict(enumerate(classes)) | {BACKGROUND: "none of the classes"}
    return {
        name: {"pixels": int(pixels[value]), "hectares": round(float(hectares[value]), 4)}
        for value, name in names.items()
    }


def areas_csv(areas: dict[str, dict[str, float]]) -> str:
    """A table: class, pixels, hectares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pixels", "hectares"])
    writer.writerows([name, row["pixels"], row["hectares"]] for name, row in areas.items())
    return text.getvalue()


def _edges(length: int) -> npt.NDArray[np.int64]:
    return np.append(np.arange(0, length, _CELL), length)

"""The tiles of a map as Cloud-Optimized GeoTIFFs, and the hectares in them. Memory is that of one tile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Geod

from cropray.figures.crops import class_names, colour_table
from cropray.grid import Grid, Window, transformer
from cropray.maps.tiles import NODATA, TileResult
from cropray.rasters import create_tiled, read_grid, read_window, write_cog

MAP = "map.tif"
PROBABILITIES = "probabilities.tif"

_BLOCK = 512  # pixels a side of what is read at once
_CELL = 32  # pixels a side of a cell whose pixels count as equally large
_M2_PER_HECTARE = 1e4


def assemble(
    grid: Grid,
    tiles: Iterable[Window],
    read_tile: Callable[[Window], TileResult],
    directory: Path,
    *,
    classes: Sequence[str],
    tags: Mapping[str, str],
    probabilities: bool,
) -> list[Path]:
    """Write map.tif, and probabilities.tif if wanted, into a local directory.

    map.tif is uint8: 0..n-1, 254 for none of the classes, 255 for nodata. It has a colour table, and the
    names by value as JSON in the tag CLASSES. probabilities.tif has one uint8 band per class, in per cent.
    Raises InputError if the disk is full.
    """
    tags = {**tags, "CLASSES": json.dumps(class_names(classes), ensure_ascii=False)}
    bands: dict[str, dict[str, Any]] = {
        MAP: {"count": 1, "descriptions": ["class"], "tags": tags, "colours": colour_table(classes)}
    }
    if probabilities:
        unit = tags | {"UNIT": "per cent"}
        bands[PROBABILITIES] = {"count": len(classes), "descriptions": classes, "tags": unit}
    with ExitStack() as stack:
        writers = []
        for name, options in bands.items():
            flat = create_tiled(directory / f"flat-{name}", grid, dtype="uint8", nodata=NODATA, **options)
            writers.append(stack.enter_context(flat))
        for tile in tiles:
            result = read_tile(tile)
            if (result.class_hw == NODATA).all():
                continue  # the file is sparse: blocks that are never written are nodata
            for write, values_xhw in zip(writers, (result.class_hw[None], result.percent_khw), strict=False):
                write(values_xhw, tile)
    for name in bands:
        source = directory / f"flat-{name}"
        write_cog(source, directory / name, overviews="nearest" if name == MAP else "average")
        source.unlink()  # now: the flat file of a large map is as large as the map
    return [directory / name for name in bands]


def class_areas(path: str, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Pixels and hectares of each class of a class map, and of none of the classes, without nodata.

    These are counts of mapped pixels. An estimate of the area would correct them for the errors of the
    map (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015).
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
    return {
        name: {"pixels": int(pixels[value]), "hectares": round(float(hectares[value]), 4)}
        for value, name in class_names(classes).items()
    }


def pixel_hectares(grid: Grid) -> npt.NDArray[np.float64]:
    """(H, W): the area of each pixel on the WGS 84 ellipsoid, in hectares, for any CRS.

    Geodesic polygons (Karney 2013, Algorithms for geodesics, doi:10.1007/s00190-012-0578-z) give the area
    of cells of at most 32 x 32 pixels, whose pixels get equal shares. The scale of a projection changes
    little within a cell, so sums are right to 1e-6.
    """
    rows, cols = (np.append(np.arange(0, length, _CELL), length) for length in grid.shape)
    x, y = np.meshgrid(grid.x0 + cols * grid.resolution, grid.y0 - rows * grid.resolution)
    lon, lat = transformer(grid.crs, "EPSG:4326").transform(x, y)
    geod = Geod(ellps="WGS84")
    hectares_hw = np.empty(grid.shape)
    for i in range(len(rows) - 1):
        for j in range(len(cols) - 1):
            corners = (i, i, i + 1, i + 1), (j, j + 1, j + 1, j)
            area_m2, _ = geod.polygon_area_perimeter(lon[corners], lat[corners])
            cell = hectares_hw[rows[i] : rows[i + 1], cols[j] : cols[j + 1]]
            cell[:] = abs(area_m2) / _M2_PER_HECTARE / cell.size
    return hectares_hw

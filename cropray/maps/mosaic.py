"""The tiles of a map as Cloud-Optimized GeoTIFFs, and the hectares in them. Memory is that of one tile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pyproj import Geod

from cropray.figures.crops import UNSURE_COLOUR, class_names, colour_table, shown
from cropray.grid import Grid, Window, transformer
from cropray.maps.observed import colour_grid, colour_step
from cropray.maps.tiles import NODATA, TileResult
from cropray.rasters import create_tiled, read_grid, read_window, write_cog
from cropray.types import BACKGROUND, UNSURE, ByteArray

MAP = "map.tif"
SCORES = "scores.tif"
CONFIDENCE = "confidence.tif"
SURE = "sure.tif"
OBSERVATIONS = "observations.tif"
MONTHS = "months.tif"

_OVERVIEWS: dict[str, Literal["mode", "nearest"]] = {MAP: "mode", SURE: "mode", OBSERVATIONS: "nearest"}
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
    scores: bool,
    sure: bool = False,
    months: Sequence[str] = (),
) -> list[Path]:
    """Write the rasters of a map into a local directory, all uint8 with 255 for nodata but months.tif.

    map.tif holds 0..n-1, 254 for none of the classes. It has a colour table, and the names by value as JSON
    in the tag CLASSES. scores.tif (if `scores`) has the score of each class, confidence.tif that of the class
    that is mapped, both in per cent. sure.tif (if `sure`) has the values of map.tif, and 253 where another
    class may be. With `months`, the names of the months that were seen, observations.tif
    counts the clear ones of each sensor, and months.tif shows them in true colour (0: unseen) at a lower
    resolution. Raises InputError if the disk is full.
    """
    named = {**tags, "CLASSES": json.dumps(class_names(classes), ensure_ascii=False)}
    labels = [shown(name) for name in classes]
    options: dict[str, dict[str, Any]] = {
        MAP: {"count": 1, "descriptions": ["class"], "tags": named, "colours": colour_table(classes)},
        CONFIDENCE: {"count": 1, "descriptions": ["score of the mapped class"], "scale": 0.01, "tags": tags},
    }
    if scores:
        options[SCORES] = {"count": len(classes), "descriptions": labels, "scale": 0.01, "tags": named}
    if sure:
        names = json.dumps(class_names(classes) | {UNSURE: "unsure"}, ensure_ascii=False)
        options[SURE] = {
            "count": 1,
            "descriptions": ["class that is sure"],
            "tags": {**tags, "CLASSES": names},
        }
        options[SURE]["colours"] = colour_table(classes) | {UNSURE: UNSURE_COLOUR}
    if months:
        seen = ["clear months of Sentinel-2", "months of Sentinel-1"]
        options[OBSERVATIONS] = {"count": 2, "descriptions": seen, "tags": tags}
        bands = [f"{month} {colour}" for month in months for colour in ("red", "green", "blue")]
        options[MONTHS] = {"count": len(bands), "descriptions": bands, "tags": tags}
    coarse, step = colour_grid(grid), colour_step(grid)
    with ExitStack() as stack:
        write = {}
        for name, chosen in options.items():
            place, nodata = (coarse, 0) if name == MONTHS else (grid, NODATA)
            flat = create_tiled(directory / f"flat-{name}", place, dtype="uint8", nodata=nodata, **chosen)
            write[name] = stack.enter_context(flat)
        for tile in tiles:
            result = read_tile(tile)
            if (result.class_hw == NODATA).all():
                continue  # the file is sparse: blocks that are never written are nodata
            write[MAP](result.class_hw[None], tile)
            write[CONFIDENCE](mapped_score(result.class_hw, result.percent_khw)[None], tile)
            if sure and result.sure_hw is not None:
                write[SURE](result.sure_hw[None], tile)
            if scores:
                write[SCORES](result.percent_khw, tile)
            if months and result.observed is not None:
                write[OBSERVATIONS](result.observed.months_shw, tile)
                colour_xhw = result.observed.colour_tchw.reshape(-1, *result.observed.colour_tchw.shape[2:])
                write[MONTHS](colour_xhw, Window(tile.row // step, tile.col // step, *colour_xhw.shape[1:]))
    for name in options:
        source = directory / f"flat-{name}"
        write_cog(source, directory / name, overviews=_OVERVIEWS.get(name, "average"))
        source.unlink()  # now: the flat file of a large map is as large as the map
    return [directory / name for name in options]


def mapped_score(class_hw: ByteArray, percent_khw: ByteArray) -> ByteArray:
    """(H, W), in per cent: the score of the class that is mapped, or NODATA.

    Of none of the classes it is what all scores together lack to 100.
    """
    own_hw = np.where(class_hw < len(percent_khw), class_hw, 0).astype(np.intp)[None]
    own = np.take_along_axis(percent_khw, own_hw, axis=0)[0]
    rest_hw = 100 - np.minimum(percent_khw.sum(axis=0, dtype=np.int64), 100)
    score_hw = np.where(class_hw == BACKGROUND, rest_hw, own)
    return np.where(class_hw == NODATA, NODATA, score_hw).astype(np.uint8)


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

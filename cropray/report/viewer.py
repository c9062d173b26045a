"""What the viewer of a page draws: the rasters of a map as pictures of bytes, and outlines in its pixels.

Large maps are shown by their overviews, so that a page stays below 5 MB. Positions are in pixels of the map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image

from cropray.figures.crops import class_names, colour_table, hexadecimal, shown
from cropray.grid import Grid, Window, transformer
from cropray.maps.field_files import PARQUET
from cropray.maps.finished import FinishedMap
from cropray.maps.mosaic import CONFIDENCE, MAP, MONTHS, SCORES, pixel_hectares
from cropray.maps.strata import class_index
from cropray.rasters import read_grid, read_reduced
from cropray.report.place import Place
from cropray.storage import Folder
from cropray.types import ByteArray, DoubleArray

MOST_FIELDS = 2000
"""Fields that a page holds, the largest ones; the files hold all."""

_CLASS_PIXELS, _CONFIDENCE_PIXELS, _COLOUR_PIXELS = 2048, 1024, 512  # a side, at most
_SCORE_VALUES = 2_500_000  # of all classes together
_STEP = 5  # per cent between the confidences and the scores of a large map
_LARGE = 512  # pixels a side: larger maps have coarser values
_JPEG_QUALITY = 72
_CORNERS = 9  # points a side of the lattice from which the viewer interpolates degrees


def viewer_data(source: FinishedMap, place: Place, thresholds: Sequence[float]) -> dict[str, Any]:
    """JSON for viewer.js. Layers that a map lacks are left out."""
    directory, grid, classes = source.directory, read_grid(source.path), source.classes
    index_v = class_index(classes)
    colours = colour_table(classes)
    data: dict[str, Any] = {
        "width": grid.width,
        "height": grid.height,
        "metres": _metres(grid),
        "degrees": _degrees(grid),
        "colours": [hexadecimal(colours[value]) for value in class_names(classes)],
        "thresholds": [round(100 * value) for value in thresholds],
        "crop": _layer(index_v[_reduced(directory / MAP, _CLASS_PIXELS, grid)[0]].astype(np.uint8)),
        "sites": [_pixels(shapely.box(*s.bounds), grid) for s in place.sites if s.split == "test"],
        "units": [line for unit in place.units for line in _lines(unit.outline, grid)],
        "fields": _fields(source.folder, grid, classes),
        "confidence": None,
        "scores": None,
        "months": [],
    }
    if (directory / CONFIDENCE).exists():
        percent_hw = _reduced(directory / CONFIDENCE, _CONFIDENCE_PIXELS, grid)[0]
        data["confidence"] = _layer(_coarse(percent_hw, grid))
    if (directory / SCORES).exists():
        side = int((_SCORE_VALUES / len(classes)) ** 0.5)
        scores_khw = _coarse(_reduced(directory / SCORES, side, grid), grid)
        data["scores"] = _layer(scores_khw.reshape(-1, scores_khw.shape[-1]))
    if (directory / MONTHS).exists():
        colour_xhw, _ = read_reduced(str(directory / MONTHS), _COLOUR_PIXELS)
        data["months"] = [_picture(month) for month in colour_xhw.reshape(-1, 3, *colour_xhw.shape[1:])]
    return data


def _reduced(path: Path, side: int, grid: Grid) -> ByteArray:
    """(B, H, W): the overview of a raster with at most `side` pixels a side."""
    factor = 1
    while max(grid.shape) > side * factor:
        factor *= 2
    values: ByteArray = read_reduced(str(path), -(-max(grid.shape) // factor))[0]
    return values


def _coarse(percent: ByteArray, grid: Grid) -> ByteArray:
    """Per cent in steps, if the map is large: they take half of the bytes. Nodata stays."""
    if max(grid.shape) <= _LARGE:
        return percent
    rounded = (np.rint(percent / _STEP) * _STEP).astype(np.uint8)
    return np.where(percent == 255, np.uint8(255), rounded)


def _layer(values_hw: ByteArray) -> dict[str, Any]:
    """A raster of bytes as a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values_hw)).save(buffer, "png", optimize=True)
    height, width = values_hw.shape
    return {"width": width, "height": height, "png": base64.b64encode(buffer.getvalue()).decode()}


def _picture(rgb_chw: npt.NDArray[Any]) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(rgb_chw, 0, -1)))
    image.save(buffer, "jpeg", quality=_JPEG_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _metres(grid: Grid) -> float:
    """Metres on the ground of a pixel in the middle of a map."""
    middle = grid.window(Window(grid.height // 2, grid.width // 2, 1, 1))
    return round(float(np.sqrt(pixel_hectares(middle)[0, 0] * 1e4)), 3)


def _degrees(grid: Grid) -> list[list[list[float]]]:
    """Longitudes and latitudes of a lattice of positions, from corner to corner."""
    x, y = np.meshgrid(
        grid.x0 + np.linspace(0, grid.width, _CORNERS) * grid.resolution,
        grid.y0 - np.linspace(0, grid.height, _CORNERS) * grid.resolution,
    )
    lon, lat = transformer(grid.crs, "EPSG:4326").transform(x, y)
    lon_hw: DoubleArray = np.unwrap(np.asarray(lon), period=360, axis=1)
    return [np.round(values, 6).tolist() for values in (lon_hw, np.asarray(lat))]


def _to_pixels(lonlat: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    x, y = transformer("EPSG:4326", grid.crs).transform(lonlat[:, 0], lonlat[:, 1])
    return np.stack([(x - grid.x0) / grid.resolution, (grid.y0 - y) / grid.resolution], axis=1)


def _pixels(shape: Any, grid: Grid, simple: float = 0.5) -> list[list[float]]:
    """The outer ring of a polygon in degrees as pixels of a map, simplified by a fraction of a pixel."""
    moved = shapely.transform(shape, lambda lonlat: _to_pixels(lonlat, grid))
    moved = shapely.simplify(moved, simple)
    return [[round(x, 1), round(y, 1)] for x, y in shapely.get_exterior_ring(moved).coords]


def _lines(outline: Any, grid: Grid) -> Iterator[list[list[float]]]:
    """The outlines of units inside a map, as pixels."""
    dense = shapely.segmentize(outline, 0.05)
    moved = shapely.transform(dense, lambda lonlat: _to_pixels(lonlat, grid))
    inside = shapely.intersection(moved, shapely.box(0, 0, grid.width, grid.height))
    inside = shapely.simplify(inside, max(grid.shape) / 1000)
    for part in shapely.get_parts(inside):
        if part.geom_type in ("LineString", "LinearRing"):
            yield [[round(x, 1), round(y, 1)] for x, y in part.coords]


def _fields(folder: Folder, grid: Grid, classes: Sequence[str]) -> list[list[Any]]:
    """The largest fields of a map: name, class (its place, −1 for none), figures, flags and outline."""
    if not folder.exists(PARQUET):
        return []
    frame = gpd.read_parquet(io.BytesIO(folder.read_bytes(PARQUET)))
    frame = frame.sort_values("area", ascending=False).head(MOST_FIELDS)
    place = {name: index for index, name in enumerate(class_names(classes).values())}
    rows = []
    for row in frame.rename(columns={"class": "crop"}).itertuples():
        polygon = max(shapely.get_parts(row.geometry), key=lambda part: part.area)
        rows.append(
            [
                str(row.field),
                place.get(str(row.crop), -1),
                round(float(row.area), 2),
                _share(row.score),
                place.get(str(row.runner_up), -1),
                _share(row.runner_up_score),
                _share(row.agreement),
                shown(str(row.declared or "")),
                [flag for flag in str(row.flags or "").split(", ") if flag],
                _pixels(polygon, grid),
            ]
        )
    return rows


def _share(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 2)

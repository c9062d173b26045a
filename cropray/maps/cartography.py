"""The picture of a finished map: legend, scale bar, and a frame in degrees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pyproj import Geod, Transformer

from cropray.figures.pictures import class_legend, colourised, png
from cropray.grid import Grid
from cropray.rasters import read_reduced

_MAX_PIXELS = 1200


def map_picture(path: str, classes: Sequence[str], title: str) -> bytes:
    """PNG of a class map on disk, thinned to at most 1200 pixels a side."""
    values, grid = read_reduced(path, _MAX_PIXELS)
    left, bottom, right, top = grid.bounds
    aspect = grid.width / grid.height
    width, height = (6.5, 6.5 / aspect) if aspect >= 1 else (6.5 * aspect, 6.5)
    figure = Figure(figsize=(max(width, 3) + 2.2, max(height, 2) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(
        colourised(values[0], len(classes)), extent=(left, right, bottom, top), interpolation="nearest"
    )
    axes.set_title(title, fontsize="medium", loc="left")
    _degree_frame(axes, grid)
    _scale_bar(axes, grid)
    class_legend(figure, classes, np.unique(values[0]))
    return png(figure)


def _degree_frame(axes: Axes, grid: Grid) -> None:
    """Ticks at round degrees: longitudes along the lower edge, latitudes along the left one."""
    left, bottom, right, top = grid.bounds
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    x, y = np.linspace(left, right, 101), np.linspace(bottom, top, 101)
    lon, _ = to_degrees.transform(x, np.full_like(x, bottom))
    _, lat = to_degrees.transform(np.full_like(y, left), y)
    lon_ticks, lat_ticks = _round_steps(lon[0], lon[-1]), _round_steps(lat[0], lat[-1])
    axes.set_xticks(np.interp(lon_ticks, lon, x), [_degrees(v, "E", "W") for v in lon_ticks])
    axes.set_yticks(
        np.interp(lat_ticks, lat, y),
        [_degrees(v, "N", "S") for v in lat_ticks],
        rotation=90,
        verticalalignment="center",
    )
    axes.tick_params(labelsize="small")


def _scale_bar(axes: Axes, grid: Grid) -> None:
    """A bar of a round length, about a fifth of the width, true on the ground at mid-latitude."""
    left, bottom, right, top = grid.bounds
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    middle = (bottom + top) / 2
    lon, lat = to_degrees.transform([left, right], [middle, middle])
    width_m = Geod(ellps="WGS84").line_length(lon, lat)
    length_m = _round_below(width_m / 4)
    length = length_m / width_m * (right - left)
    x, y = left + 0.04 * (right - left), bottom + 0.04 * (top - bottom)
    thickness = 0.012 * (top - bottom)
    backing = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none"}
    axes.add_patch(Rectangle((x, y), length, thickness, facecolor="black", edgecolor="white"))
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    axes.text(
        x + length / 2, y + 2 * thickness, text, ha="center", va="bottom", fontsize="small", bbox=backing
    )


def _round_steps(low: float, high: float) -> npt.NDArray[np.float64]:
    """Two to five multiples of a round step within [low, high]."""
    step = _round_below((high - low) / 2)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def _round_below(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `value`."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(factor for factor in (1, 2, 5) if factor * power <= value * (1 + 1e-9)) * power)


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):.6g}°{positive if value >= 0 else negative}"

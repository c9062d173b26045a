"""Pictures of patches, classes and maps, as PNG. Matplotlib without a display or global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from pyproj import Geod, Transformer

from cropray.bands import NODATA, S2_NAMES
from cropray.figures.crops import UNKNOWN, UNSEEN, Rgb, by_area, class_names, colour_table, shown
from cropray.grid import Grid
from cropray.types import UNLABELLED, ByteArray, FloatArray, IntArray

_DPI = 110
_FRAME = "0.5"  # grey, so that white images have an edge too
_RGB = [S2_NAMES.index(name) for name in ("B04", "B03", "B02")]


def colourised(class_hw: ByteArray, classes: Sequence[str]) -> ByteArray:
    """(H, W, 3) of a class map."""
    table = np.zeros((256, 3), np.uint8)
    for value, rgb in colour_table(classes).items():
        table[value] = rgb
    coloured: ByteArray = table[class_hw]
    return coloured


def true_colour(s2_cthw: IntArray) -> FloatArray:
    """(H, W, 3) in 0..1 of stored Sentinel-2 integers, from the month with the most valid pixels.

    Each band is stretched from its 2nd to its 98th percentile. Invalid pixels are white.
    """
    valid_thw = (s2_cthw != NODATA).all(axis=0)
    month = int(np.argmax(valid_thw.sum(axis=(1, 2))))
    return _stretched(np.moveaxis(s2_cthw[_RGB, month], 0, -1), valid_thw[month])


def comparison_picture(
    truth_hw: ByteArray, prediction_hw: ByteArray, classes: Sequence[str], s2_cthw: IntArray, title: str
) -> bytes:
    """True colour, truth and prediction side by side, with a legend."""
    panels: dict[str, npt.NDArray[Any]] = {
        "true colour": true_colour(s2_cthw),
        "truth": colourised(truth_hw, classes),
        "prediction": colourised(prediction_hw, classes),
    }
    figure = Figure(figsize=(6.4 * len(panels) + 2, 7), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _image(axes, image, name)
    figure.suptitle(title)
    _class_legend(figure, classes, [truth_hw, prediction_hw])
    return png(figure)


def sample_picture(
    s2_cthw: IntArray,
    s1_cthw: IntArray,
    label_hw: ByteArray,
    classes: Sequence[str],
    months: Sequence[str],
    *,
    title: str = "",
    truth_hw: ByteArray | None = None,
) -> bytes:
    """One sample: true colour above VV by month, then its label above its truth, if given.

    All months share one stretch, from the 2nd to the 98th percentile of the valid pixels. Invalid pixels are
    pink, since clouds and snow are white.
    """
    figure = Figure(figsize=(1.6 * (len(months) + 1) + 1.6, 3.9), layout="constrained")
    grid = figure.subplots(2, len(months) + 1)
    unseen = _month_rows(grid[:, :-1], s2_cthw, s1_cthw, months)
    _image(grid[0, -1], colourised(label_hw, classes), "label")
    grid[1, -1].set_axis_off()
    if truth_hw is not None:
        _image(grid[1, -1], colourised(truth_hw, classes), "truth")
    figure.suptitle(title, fontsize="medium")
    labels = [label_hw] if truth_hw is None else [label_hw, truth_hw]
    others = {"unlabelled": UNKNOWN} if any((each == UNLABELLED).any() for each in labels) else {}
    _class_legend(figure, classes, labels, others | ({"no clear view": UNSEEN} if unseen else {}))
    return png(figure)


def point_picture(
    s2_cthw: IntArray, s1_cthw: IntArray, months: Sequence[str], resolution: float, title: str
) -> bytes:
    """The surroundings of a pixel, which is in the middle and framed: true colour above VV by month.

    It does not show what the map says there. `resolution` is in metres.
    """
    figure = Figure(figsize=(2.1 * len(months), 4.9), layout="constrained")
    grid = figure.subplots(2, len(months), squeeze=False)
    unseen = _month_rows(grid, s2_cthw, s1_cthw, months)
    height, width = s2_cthw.shape[-2:]
    for axes in grid.ravel():
        corner = (width // 2 - 0.5, height // 2 - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2.5))
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1))
    note = ", pink: no clear view" if unseen else ""
    figure.suptitle(f"{title} ({width * resolution:g} m wide{note})", fontsize="medium")
    return png(figure)


def _month_rows(grid: npt.NDArray[Any], s2_cthw: IntArray, s1_cthw: IntArray, months: Sequence[str]) -> bool:
    """Draw true colour and VV by month into axes (2, T); whether a pixel was not seen (it is pink)."""
    rgb_thwc, vv_thwc = np.moveaxis(s2_cthw[_RGB], 0, -1), s1_cthw[0, ..., None].repeat(3, axis=-1)
    unseen = False
    for row, values_thwc, names in ((grid[0], rgb_thwc, months), (grid[1], vv_thwc, ["VV"] * len(months))):
        valid_thw = (values_thwc != NODATA).all(axis=-1)
        images_thwc = _stretched(values_thwc, valid_thw)
        images_thwc[~valid_thw] = np.array(UNSEEN) / 255
        unseen |= not valid_thw.all()
        for axes, image, name in zip(row, images_thwc, names, strict=True):
            _image(axes, image, name)
    return unseen


def map_picture(class_hw: ByteArray, grid: Grid, classes: Sequence[str], title: str) -> bytes:
    """A class map with a legend, a scale bar and a frame in degrees.

    `grid` is the grid of the map. `class_hw` may have fewer pixels over the same bounds.
    """
    left, bottom, right, top = grid.bounds
    aspect = grid.width / grid.height
    width, height = (6.5, 6.5 / aspect) if aspect >= 1 else (6.5 * aspect, 6.5)
    figure = Figure(figsize=(max(width, 3) + 2.2, max(height, 2) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(colourised(class_hw, classes), extent=(left, right, bottom, top), interpolation="nearest")
    axes.set_title(title, fontsize="medium", loc="left")
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    _degree_frame(axes, grid, to_degrees)
    _scale_bar(axes, grid, to_degrees)
    _class_legend(figure, classes, [class_hw])
    return png(figure)


def _degree_frame(axes: Axes, grid: Grid, to_degrees: Transformer) -> None:
    """Ticks at round degrees: longitudes along the lower edge, latitudes along the left edge."""
    left, bottom, right, top = grid.bounds
    x, y = np.linspace(left, right, 101), np.linspace(bottom, top, 101)
    lon, _ = to_degrees.transform(x, np.full_like(x, bottom))
    _, lat = to_degrees.transform(np.full_like(y, left), y)
    lon_ticks, lat_ticks = _round_steps(lon[0], lon[-1]), _round_steps(lat[0], lat[-1])
    axes.set_xticks(np.interp(lon_ticks, lon, x), [_degrees(v, "E", "W") for v in lon_ticks])
    axes.set_yticks(
        np.interp(lat_ticks, lat, y), [_degrees(v, "N", "S") for v in lat_ticks], rotation=90, va="center"
    )
    axes.tick_params(labelsize="small")


def _scale_bar(axes: Axes, grid: Grid, to_degrees: Transformer) -> None:
    """A bar of a round length on the ground at mid-latitude, at most a quarter of the width."""
    left, bottom, right, top = grid.bounds
    middle = (bottom + top) / 2
    lon, lat = to_degrees.transform([left, right], [middle, middle])
    width_m = Geod(ellps="WGS84").line_length(lon, lat)
    length_m = _round_below(width_m / 4)
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    length, thickness = length_m / width_m * (right - left), 0.012 * (top - bottom)
    bar = AnchoredSizeBar(axes.transData, length, text, "lower left", size_vertical=thickness, fill_bar=True)
    bar.patch.set(alpha=0.8, edgecolor="none")
    axes.add_artist(bar)


def _round_steps(low: float, high: float) -> npt.NDArray[np.float64]:
    """Two to five multiples of a round step within [low, high]."""
    step = _round_below((high - low) / 2)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def _round_below(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above `value`."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(factor for factor in (1, 2, 5) if factor * power <= value * (1 + 1e-9)) * power)


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):.6g}°{positive if value >= 0 else negative}"


def _stretched(values: npt.NDArray[np.integer[Any]], valid: npt.NDArray[np.bool_]) -> FloatArray:
    """(…, C) in 0..1 by the 2nd and 98th percentile of each channel, 1 where `valid` (…) is false."""
    out = np.ones(values.shape, np.float32)
    if valid.any():
        known = values[valid].astype(np.float32)
        low, high = np.percentile(known, (2, 98), axis=0)
        out[valid] = np.clip((known - low) / np.maximum(high - low, 1), 0, 1)
    return out


def _class_legend(
    figure: Figure,
    classes: Sequence[str],
    values: Sequence[npt.NDArray[Any]],
    others: Mapping[str, Rgb] | None = None,
) -> None:
    """A legend on the right of the classes in some class maps, the most frequent first, then `others`."""
    table, names = colour_table(classes), class_names(classes)
    counts = np.bincount(np.concatenate([each.ravel() for each in values]), minlength=256)
    pixels = {name: float(counts[value]) for value, name in names.items() if counts[value]}
    rgb_of = {name: table[value] for value, name in names.items()}
    colours = {shown(name): rgb_of[name] for name in by_area([*pixels], pixels)}
    swatches = [
        Swatch(facecolor=np.array(rgb) / 255, edgecolor=_FRAME, linewidth=0.5, label=name)
        for name, rgb in (colours | dict(others or {})).items()
    ]
    if swatches:
        figure.legend(handles=swatches, loc="outside right upper", frameon=False, fontsize="small")


def _image(axes: Axes, image: npt.NDArray[Any], title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(edgecolor=_FRAME, linewidth=0.5)
    axes.set_title(title, fontsize="medium")


def png(figure: Figure) -> bytes:
    """The PNG of a figure. The same figure gives the same bytes: no date or version in the metadata."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()

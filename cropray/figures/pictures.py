"""Pictures of patches, classes and training, as PNG. Matplotlib without a display or global state."""

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
from matplotlib.ticker import MaxNLocator

from cropray.bands import NODATA, S2_NAMES
from cropray.types import BACKGROUND, UNLABELLED, ByteArray, IntArray

# One fixed colour per class in rasters, pictures and legends, safe for colour-blind eyes. Colours by
# Paul Tol (2021), Colour Schemes, SRON technical note SRON/EPS/TN/09-002: "muted" for up to nine
# classes, "discrete rainbow" beyond.
Rgb = tuple[int, int, int]
_MUTED = "CC6677 332288 DDCC77 117733 88CCEE 882255 44AA99 999933 AA4499"
_RAINBOW = (
    "D1BBD7 AE76A3 882E72 1965B0 5289C7 7BAFDE 4EB265 90C987 CAE0AB F7F056 F6C141 F1932D "
    "E8601C DC050C 72190E D9CCE3 BA8DB4 994F88 437DBF 6195CF F7CB45 F4A736 E65518 A5170E 42150A"
)
_BACKGROUND: Rgb = (221, 221, 221)  # Tol's pale grey
UNKNOWN: Rgb = (255, 255, 255)  # without a label, or in a map nodata
UNSEEN: Rgb = (255, 170, 187)  # Tol's light pink: no land, cloud or snow has this colour


def _rgb(name: str) -> Rgb:
    red, green, blue = bytes.fromhex(name)
    return red, green, blue


def class_colours(n_classes: int) -> list[Rgb]:
    """Colours of classes 0..n-1; beyond 25 classes they repeat."""
    names = (_MUTED if n_classes <= 9 else _RAINBOW).split()
    return [_rgb(names[index % len(names)]) for index in range(n_classes)]


def colour_table(n_classes: int) -> dict[int, Rgb]:
    """Colours of all values of a class map."""
    return dict(enumerate(class_colours(n_classes))) | {BACKGROUND: _BACKGROUND, UNLABELLED: UNKNOWN}


def colourised(class_hw: ByteArray, n_classes: int) -> ByteArray:
    """(H, W, 3) of a class map."""
    table = np.zeros((256, 3), np.uint8)
    for value, rgb in colour_table(n_classes).items():
        table[value] = rgb
    coloured: ByteArray = table[class_hw]
    return coloured


_DPI = 110
_FRAME = "0.5"  # grey: white images have an edge too
_RGB = [S2_NAMES.index(name) for name in ("B04", "B03", "B02")]


def true_colour(s2_cthw: IntArray) -> npt.NDArray[np.float32]:
    """(H, W, 3) in 0..1 of stored Sentinel-2 integers, of the month with most valid pixels.

    Each band is stretched from its 2nd to its 98th percentile; pixels without a view are white.
    """
    valid_thw = (s2_cthw != NODATA).all(axis=0)
    month = int(np.argmax(valid_thw.sum(axis=(1, 2))))
    rgb_hwc = np.moveaxis(s2_cthw[_RGB, month], 0, -1)
    (stretched_hwc,) = _stretched(rgb_hwc[None], valid_thw[month][None])
    return np.asarray(stretched_hwc)


def comparison_picture(
    truth_hw: ByteArray,
    prediction_hw: ByteArray,
    classes: Sequence[str],
    s2_cthw: IntArray | None = None,
    title: str = "",
) -> bytes:
    """Truth and prediction side by side with one legend, after the true colour where it is given."""
    panels: list[tuple[npt.NDArray[Any], str]] = []
    if s2_cthw is not None:
        panels.append((true_colour(s2_cthw), "true colour"))
    panels += [(colourised(truth_hw, len(classes)), "truth")]
    panels += [(colourised(prediction_hw, len(classes)), "prediction")]
    figure = Figure(figsize=(3.2 * len(panels) + 1.6, 3.6), layout="constrained")
    for axes, (image, name) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _image(axes, image, name)
    if title:
        figure.suptitle(title)
    class_legend(figure, classes, np.union1d(truth_hw, prediction_hw))
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
    """One sample: true colour above and VV below by month, then its label, and its truth if given.

    All months share one stretch, from the 2nd to the 98th percentile of the valid pixels, so that
    they can be compared; pixels without a view are pink, for white may be a cloud or snow.
    """
    rgb_thwc, vv_thwc = np.moveaxis(s2_cthw[_RGB], 0, -1), s1_cthw[0, ..., None].repeat(3, axis=-1)
    figure = Figure(figsize=(1.6 * (len(months) + 1) + 1.6, 3.9), layout="constrained")
    grid = figure.subplots(2, len(months) + 1)
    unseen = False
    for row, values_thwc, names in ((grid[0], rgb_thwc, months), (grid[1], vv_thwc, ["VV"] * len(months))):
        valid_thw = (values_thwc != NODATA).all(axis=-1)
        images_thwc = _stretched(values_thwc, valid_thw)
        images_thwc[~valid_thw] = np.array(UNSEEN) / 255
        unseen |= not valid_thw.all()
        for axes, image, name in zip(row[:-1], images_thwc, names, strict=True):
            _image(axes, image, name)
    _image(grid[0, -1], colourised(label_hw, len(classes)), "label")
    grid[1, -1].set_axis_off()
    if truth_hw is not None:
        _image(grid[1, -1], colourised(truth_hw, len(classes)), "truth")
    figure.suptitle(title, fontsize="medium")
    present = np.union1d(label_hw, label_hw if truth_hw is None else truth_hw)
    others = {"unlabelled": UNKNOWN} if UNLABELLED in present else {}
    class_legend(figure, classes, present, others | ({"no clear view": UNSEEN} if unseen else {}))
    return png(figure)


def _stretched(
    values_thwc: npt.NDArray[np.integer[Any]], valid_thw: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """(T, H, W, C) in 0..1 by the 2nd and 98th percentile of each channel; 1 where not valid."""
    out = np.ones(values_thwc.shape, np.float32)
    if valid_thw.any():
        known = values_thwc[valid_thw].astype(np.float32)
        low, high = np.percentile(known, (2, 98), axis=0)
        out[valid_thw] = np.clip((known - low) / np.maximum(high - low, 1), 0, 1)
    return out


def curves_picture(history: Sequence[Mapping[str, Any]], title: str = "") -> bytes:
    """Training curves by epoch: losses on the left, measures on the validation split on the right.

    `history` has one dict an epoch, as `history.json`; a measure may be None in some epochs.
    """
    epochs = [int(row["epoch"]) for row in history]
    numbers = [(name, value) for row in history for name, value in row.items()]
    names = list(dict.fromkeys(name for name, value in numbers if isinstance(value, int | float)))
    losses = [name for name in names if "loss" in name]
    measures = [name for name in names if name.startswith("val_") and name not in losses]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, group in zip(figure.subplots(1, 2), (losses, measures), strict=True):
        for name, colour in zip(group, class_colours(len(group)), strict=True):
            values = [row.get(name) for row in history]
            known = [(e, v) for e, v in zip(epochs, values, strict=True) if isinstance(v, int | float)]
            axes.plot(*zip(*known, strict=True), marker="o", ms=3, label=name, color=np.array(colour) / 255)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    if title:
        figure.suptitle(title)
    return png(figure)


def class_legend(
    figure: Figure, classes: Sequence[str], present: npt.NDArray[Any], others: Mapping[str, Rgb] | None = None
) -> None:
    """A legend to the right: the values in the picture, in the order of the classes, then `others`."""
    table = colour_table(len(classes))
    names = dict(enumerate(classes)) | {BACKGROUND: "none of the classes"}
    colours = {name: table[value] for value, name in names.items() if value in present} | dict(others or {})
    swatches = [
        Swatch(facecolor=np.array(rgb) / 255, edgecolor=_FRAME, linewidth=0.5, label=name)
        for name, rgb in colours.items()
    ]
    if swatches:
        figure.legend(handles=swatches, loc="outside right upper", frameon=False, fontsize="small")


def png(figure: Figure) -> bytes:
    """The same figure gives the same bytes: no date, no version in the metadata."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _image(axes: Axes, image: npt.NDArray[Any], title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(edgecolor=_FRAME, linewidth=0.5)
    axes.set_title(title, fontsize="medium")

"""Pictures of a sweep, as PNG: which values made good trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cropray.figures.pictures import png

SWEEP = "sweep.json"
"""In the folder of a sweep, `tune/<name>`: its stage and its trials, the best first."""

PICTURE = "sweep.png"

_COLOURS = "viridis"
_FEW = 4  # values of an axis that are all written
_WRITTEN: dict[str, Any] = {
    "fontsize": "small",
    "va": "center",
    "bbox": {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
}


@dataclass(frozen=True)
class Axis:
    """One setting of a sweep: its values as numbers, and what is written at them."""

    name: str
    logarithmic: bool
    choices: tuple[str, ...]  # empty for numbers

    def positions(self, values: Sequence[Any]) -> list[float]:
        """Numbers (N,): those of a choice are the indices of its values."""
        if self.choices:
            return [float(self.choices.index(str(value))) for value in values]
        return [float(value) for value in values]


def sweep_picture(axes: Sequence[Axis], trials: Sequence[Mapping[str, Any]], score: str) -> bytes:
    """Every trial as a line through its values to its score, and the score over each setting.

    `trials` have the key "score" (None: never judged, left out) and the names of the axes; trials that
    did not come to their last epoch are dotted and hollow ("stopped").
    """
    shown = [trial for trial in trials if trial["score"] is not None]
    figure = Figure(figsize=(max(6.4, 2.2 * (len(axes) + 1)), 6.4), layout="constrained")
    grid = figure.add_gridspec(2, len(axes), height_ratios=(1.1, 1))
    scores = np.array([trial["score"] for trial in shown], dtype=np.float64)
    scale = ScalarMappable(Normalize(scores.min(), scores.max()) if len(scores) else None, _COLOURS)
    _parallel(figure.add_subplot(grid[0, :]), axes, shown, scores, scale, score)
    for column, axis in enumerate(axes):
        panel = figure.add_subplot(grid[1, column])
        _scatter(panel, axis, shown, scores, scale)
        panel.set_ylabel("" if column else score)
        panel.tick_params(labelleft=not column)
    return png(figure)


def _parallel(
    panel: Axes,
    axes: Sequence[Axis],
    trials: Sequence[Mapping[str, Any]],
    scores: np.ndarray[Any, np.dtype[np.float64]],
    scale: ScalarMappable,
    score: str,
) -> None:
    columns = [_share(axis, axis.positions([trial[axis.name] for trial in trials])) for axis in axes]
    score_axis = Axis(score, logarithmic=False, choices=())
    columns.append(_share(score_axis, scores.tolist()))
    for index in np.argsort(scores, kind="stable"):  # the best lie on top
        heights = [column[index] for column in columns]
        style = ":" if trials[index]["stopped"] else "-"
        panel.plot(heights, style, color=scale.to_rgba(scores[index]), alpha=0.85)
    for place, (axis, column) in enumerate(zip([*axes, score_axis], columns, strict=True)):
        panel.axvline(place, color="0.8", zorder=0)
        values = scores.tolist() if axis is score_axis else [trial[axis.name] for trial in trials]
        for height, text in _marks(axis, values, column):
            panel.annotate(text, (place, height), (4, 0), textcoords="offset points", **_WRITTEN)
    panel.set_xticks(range(len(axes) + 1), [*(axis.name for axis in axes), score])
    panel.set_yticks([])
    panel.set_xlim(-0.1, len(axes) + 0.4)
    panel.spines[:].set_visible(False)
    panel.set_title("each line a trial (dotted: not to its last epoch)", fontsize="medium")


def _scatter(
    panel: Axes,
    axis: Axis,
    trials: Sequence[Mapping[str, Any]],
    scores: np.ndarray[Any, np.dtype[np.float64]],
    scale: ScalarMappable,
) -> None:
    values = axis.positions([trial[axis.name] for trial in trials])
    for value, score, trial in zip(values, scores, trials, strict=True):
        colour = scale.to_rgba(score)
        panel.plot(value, score, "o", color=colour, fillstyle="none" if trial["stopped"] else "full")
    if axis.logarithmic:
        _logarithmic(panel, values)
    if axis.choices:
        panel.set_xticks(range(len(axis.choices)), axis.choices, rotation=30, ha="right")
    panel.set_xlabel(axis.name)
    panel.grid(color="0.92")


def _logarithmic(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with few labels, and aslant: the panels are narrow."""
    panel.set_xscale("log")
    decades = math.log10(max(values) / min(values)) if values else 0.0
    if decades < 1:
        panel.xaxis.set_major_locator(MaxNLocator(3))
    else:
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.tick_params(axis="x", labelrotation=30)


def _share(axis: Axis, values: Sequence[float]) -> list[float]:
    """Heights from 0 to 1 (0.5 where all are the same)."""
    numbers = [math.log(value) for value in values] if axis.logarithmic else list(values)
    if axis.choices:
        return [number / max(1, len(axis.choices) - 1) for number in numbers]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _marks(axis: Axis, values: Sequence[Any], heights: Sequence[float]) -> list[tuple[float, str]]:
    """What is written at an axis: all its values where they are few, else the lowest and the highest."""
    found = {
        round(height, 3): str(value) if axis.choices else f"{value:.3g}"
        for value, height in zip(values, heights, strict=True)
    }
    if axis.choices or len(found) <= _FEW:
        return sorted(found.items())
    ordered = sorted(found.items())
    return [ordered[0], ordered[-1]]

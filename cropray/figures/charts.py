"""Charts of an export, a training, a sweep and an evaluation, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cropray.figures.crops import NONE_OF_THEM, class_colours, hexadecimal, shown
from cropray.figures.pictures import png
from cropray.types import DoubleArray

EVALUATION = "evaluation/evaluation.json"
"""The result of an evaluation in a run folder."""

SWEEP = "sweep.json"
"""The stage and the trials, best first, in the folder of a sweep."""

PICTURE = "sweep.png"

# Lines of a chart. Tol's muted scheme: Paul Tol (2021), Colour Schemes, SRON/EPS/TN/09-002.
_LINES = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
_COLOURS = {
    "network": "#117733",
    "forest": "#DDCC77",
    "logistic": "#88CCEE",
    "boosting": "#CC6677",
    "majority": "#BBBBBB",
}  # Tol's muted scheme
_FEW = 4  # values of an axis of a sweep that are all written


def _bars(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def validity_chart(months: Sequence[str], s2: DoubleArray, s1: DoubleArray) -> bytes:
    """Share of pixels with a valid view, by month and sensor."""
    figure, axes = _bars(1.2 + 0.85 * len(months), 2.4)
    places = np.arange(len(months))
    for shift, name, values, colour in (
        (-0.2, "Sentinel-2", s2, "#117733"),
        (0.2, "Sentinel-1", s1, "#332288"),
    ):
        bars = axes.bar(places + shift, values, 0.38, label=name, color=colour)
        axes.bar_label(bars, [f"{100 * value:.0f}" for value in values], fontsize="x-small")
    axes.set_xticks(places, months, fontsize="small")
    axes.set_ylabel("valid pixels")
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    return png(figure)


def curves_chart(history: Sequence[Mapping[str, Any]], title: str = "") -> bytes:
    """Training curves by epoch: losses on the left, scores on the validation split on the right.

    `history` has one row per epoch, as in `history.json`. A score may be None in some epochs.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name, value in row.items():
            if isinstance(value, int | float):
                curves.setdefault(name, []).append((row["epoch"], value))
    losses = [name for name in curves if "loss" in name]
    scores = [name for name in curves if name.startswith("val_") and name not in losses]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, group in zip(figure.subplots(1, 2), (losses, scores), strict=True):
        for name, colour in zip(group, cycle(_LINES), strict=False):
            style = {"marker": "o", "ms": 3, "label": name, "color": colour}
            axes.plot(*zip(*curves[name], strict=True), **style)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    if title:
        figure.suptitle(title)
    return png(figure)


def confusion_chart(result: dict[str, Any]) -> bytes:
    """The confusion matrix of the network as shares of the true pixels of each class, with their numbers.

    The largest class comes first. One that occurs neither in the truth nor in the map is left out.
    """
    counts = np.array(result["methods"]["network"]["confusion"])
    names = [*map(shown, result["classes"]), NONE_OF_THEM]
    truth_k = np.pad(counts.sum(axis=1), (0, counts.shape[1] - len(counts)))
    occurs = np.flatnonzero((counts.sum(axis=0) > 0) | (truth_k > 0))
    order = sorted(occurs, key=lambda k: (k == len(names) - 1, -truth_k[k]))
    rows_k = [k for k in order if k < len(counts)]
    counts = counts[rows_k][:, order]
    rows, columns = [names[k] for k in rows_k], [names[k] for k in order]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = Figure(figsize=(2.2 + 0.55 * len(columns), 1.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [f"{n} ({int(t):,})" for n, t in zip(rows, totals[:, 0], strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth (pixels)")
    if len(columns) <= 12:  # numbers of more classes do not fit their cells
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.55 else "black"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize="small", color=colour)
    return png(figure)


def scores_chart(result: dict[str, Any]) -> bytes:
    """F1 of each class that has truth, by method; recall if only parcels are annotated."""
    measure = "recall" if result["scope"] == "annotated" else "f1"
    methods, first = result["methods"], next(iter(result["methods"].values()))["per_class"]
    support = {entry["class"]: entry["support"] for entry in first}
    classes = sorted(result["over"], key=lambda name: -support[name])
    figure, axes = _bars(max(4.8, 1.6 + 0.95 * len(classes)), 3.4)
    width = 0.8 / len(methods)
    for index, (name, row) in enumerate(methods.items()):
        reached = {entry["class"]: entry[measure] for entry in row["per_class"]}
        values = [reached[name] for name in classes]
        places = np.arange(len(classes)) + (index - (len(methods) - 1) / 2) * width
        axes.bar(places, values, width, label=name, color=_COLOURS[name])
    axes.set_xticks(range(len(classes)), map(shown, classes), rotation=30, ha="right")
    axes.set_ylabel("F1" if measure == "f1" else measure)
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    return png(figure)


def calibration_chart(result: dict[str, Any]) -> bytes:
    """Observed share over predicted probability: of the shown class, and of each class, before and after."""
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    whole, by_class = figure.subplots(1, 2, sharex=True, sharey=True)
    calibration = result["calibration"]
    curves = calibration["curve"]
    for name, style, colour in (("before", "--", "0.6"), ("after", "o-", "#117733")):
        error = calibration["ece"][name]
        label = name if error is None else f"{name}: ECE {error:.3f}"
        whole.plot(curves[name]["predicted"], curves[name]["observed"], style, color=colour, label=label)
    classes = result["classes"]
    colours = {name: hexadecimal(rgb) for name, rgb in zip(classes, class_colours(classes), strict=True)}
    for row in calibration["per_class"]:
        if row["class"] not in result["over"]:
            continue
        for name, style, alpha in (("before", "--", 0.45), ("after", "-", 1.0)):
            line = row["curve"][name]["predicted"], row["curve"][name]["observed"]
            legend = shown(row["class"]) if name == "after" else None
            by_class.plot(*line, style, color=colours[row["class"]], alpha=alpha, label=legend)
    whole.set_title("class that is shown", fontsize="medium")
    by_class.set_title("each class against the rest (dashed: before)", fontsize="medium")
    for axes in (whole, by_class):
        axes.plot((0, 1), (0, 1), color="0.8", zorder=0)
        axes.set_xlabel("probability")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    whole.set_ylabel("share of pixels for which it is true")
    return png(figure)


def dates_chart(result: dict[str, Any]) -> bytes:
    """The score by date, of the network with its interval and of the baselines; and the decided land."""
    rows, score = result["by_as_of"], result["score"]
    dates = [date.fromisoformat(row["date"]) for row in rows]
    days = [float(day.toordinal()) for day in dates]
    figure, axes = _bars(6.6, 3.6)
    for name in rows[0]["baselines"]:
        values = [row["baselines"][name][score] for row in rows]
        axes.plot(days, [np.nan if v is None else v for v in values], "o-", color=_COLOURS[name], label=name)
    values = [np.nan if row[score] is None else row[score] for row in rows]
    if all(row["interval"] for row in rows):
        low, high = zip(*(row["interval"] for row in rows), strict=True)
        axes.fill_between(days, low, high, color=_COLOURS["network"], alpha=0.15, linewidth=0)
    axes.plot(days, values, "o-", color=_COLOURS["network"], linewidth=2.2, label="network")
    if result["decided"] is not None:
        shares = [row["share"] for row in result["decided"]["dates"]]
        text = f"land decided (probability {result['decided']['confidence']:g} or more, to the end)"
        axes.plot(days, shares, ":", color="0.4", label=text)
    axes.set_xticks(days, [f"{day:%-d %b}" for day in dates])
    axes.set_ylabel("macro-F1" if score == "macro_f1" else "mean recall")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    return png(figure)


@dataclass(frozen=True)
class Axis:
    """One setting of a sweep. `choices` are its values as text, empty for numbers."""

    name: str
    logarithmic: bool
    choices: tuple[str, ...]

    def positions(self, values: Sequence[Any]) -> list[float]:
        """(N,) numbers: indices of choices, or the values themselves."""
        if self.choices:
            return [float(self.choices.index(str(value))) for value in values]
        return [float(value) for value in values]

    def heights(self, values: Sequence[Any]) -> list[float]:
        """(N,) positions between 0 and 1, all 0.5 if they are equal."""
        numbers = self.positions(values)
        if self.choices:
            return [number / max(1, len(self.choices) - 1) for number in numbers]
        if self.logarithmic:
            numbers = [math.log(number) for number in numbers]
        low, high = min(numbers, default=0.0), max(numbers, default=0.0)
        return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]

    def marks(self, values: Sequence[Any]) -> list[tuple[float, str]]:
        """Heights with their text: all choices and a few values, else the lowest and the highest."""
        texts = [str(value) if self.choices else f"{value:.3g}" for value in values]
        heights = [round(height, 3) for height in self.heights(values)]
        marks = sorted(dict(zip(heights, texts, strict=True)).items())
        return marks if self.choices or len(marks) <= _FEW else [marks[0], marks[-1]]


def sweep_chart(axes: Sequence[Axis], trials: Sequence[Mapping[str, Any]], score: str) -> bytes:
    """Each trial as a line through its values to its score, and below the score over each setting.

    A trial has the names of the axes as keys, and "score" (left out if None) and "stopped". A stopped trial,
    which missed its last epoch, is dotted above and hollow below.
    """
    shown = sorted(
        (trial for trial in trials if trial["score"] is not None), key=lambda trial: trial["score"]
    )
    scores = [float(trial["score"]) for trial in shown]
    norm = Normalize(scores[0], scores[-1]) if scores else None
    colours = ScalarMappable(norm, "viridis").to_rgba(np.array(scores))
    figure = Figure(figsize=(max(6.4, 2.2 * (len(axes) + 1)), 6.4), layout="constrained")
    grid = figure.add_gridspec(2, len(axes), height_ratios=(1.1, 1))
    columns = {axis: [trial[axis.name] for trial in shown] for axis in axes}
    stopped = [bool(trial["stopped"]) for trial in shown]
    score_axis = Axis(score, logarithmic=False, choices=())
    _parallel(figure.add_subplot(grid[0, :]), columns | {score_axis: scores}, stopped, colours)
    for number, (axis, values) in enumerate(columns.items()):
        panel = figure.add_subplot(grid[1, number])
        _scatter(panel, axis, axis.positions(values), scores, stopped, colours)
        panel.set_ylabel("" if number else score)
        panel.tick_params(labelleft=not number)
    return png(figure)


def _parallel(
    panel: Axes,
    columns: Mapping[Axis, Sequence[Any]],
    stopped: Sequence[bool],
    colours: DoubleArray,
) -> None:
    """Parallel coordinates. Trials come in the order of their scores: the best lie on top."""
    heights = [axis.heights(values) for axis, values in columns.items()]
    for line, ended, colour in zip(zip(*heights, strict=True), stopped, colours, strict=True):
        panel.plot(line, ":" if ended else "-", color=colour, alpha=0.85)
    backing = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    style: dict[str, Any] = {"fontsize": "small", "va": "center", "bbox": backing}
    for place, (axis, values) in enumerate(columns.items()):
        panel.axvline(place, color="0.8", zorder=0)
        for height, text in axis.marks(values):
            panel.annotate(text, (place, height), (4, 0), textcoords="offset points", **style)
    panel.set_xticks(range(len(columns)), [axis.name for axis in columns])
    panel.set_yticks([])
    panel.set_xlim(-0.1, len(columns) - 0.6)
    panel.spines[:].set_visible(False)
    panel.set_title("each line is a trial (dotted: stopped before its last epoch)", fontsize="medium")


def _scatter(
    panel: Axes,
    axis: Axis,
    positions: Sequence[float],
    scores: Sequence[float],
    stopped: Sequence[bool],
    colours: DoubleArray,
) -> None:
    for position, score, ended, colour in zip(positions, scores, stopped, colours, strict=True):
        panel.plot(position, score, "o", color=colour, fillstyle="none" if ended else "full")
    if axis.logarithmic:  # few labels, and slanted: the panels are narrow
        panel.set_xscale("log")
        decades = math.log10(max(positions) / min(positions)) if positions else 0.0
        locator = LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0)) if decades >= 1 else MaxNLocator(3)
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.tick_params(axis="x", labelrotation=30)
    if axis.choices:
        panel.set_xticks(range(len(axis.choices)), axis.choices, rotation=30, ha="right")
    panel.set_xlabel(axis.name)
    panel.grid(color="0.92")

"""Charts of an evaluation and of an export, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from cropray.figures.pictures import png

EVALUATION = "evaluation/evaluation.json"
"""Where a run folder keeps the result of which the charts are."""

Shares = npt.NDArray[np.floating]

_COLOURS = {"network": "#117733", "forest": "#DDCC77", "majority": "#BBBBBB"}  # Tol's muted scheme


def confusion_chart(result: dict[str, Any], method: str = "network") -> bytes:
    """The confusion matrix as shares of the truth of each class, with the classes' pixels beside it."""
    counts = np.array(result["methods"][method]["confusion"])
    columns = [*result["classes"], "none"]
    rows = columns[: len(counts)]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = Figure(figsize=(2.2 + 0.55 * len(columns), 1.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [f"{n} ({int(t):,})" for n, t in zip(rows, totals[:, 0], strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth (pixels)")
    if len(columns) <= 12:  # beyond that the numbers no longer fit their cells
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    column,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize="small",
                    color="white" if share > 0.55 else "black",
                )
    return png(figure)


def scores_chart(result: dict[str, Any]) -> bytes:
    """F1 (recall, where only parcels are annotated) of each class, one bar a method."""
    measure = "recall" if result["scope"] == "annotated" else "f1"
    methods = result["methods"]
    classes = result["classes"]
    figure = Figure(figsize=(1.6 + 0.75 * len(classes), 3.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(methods)
    for index, (name, row) in enumerate(methods.items()):
        values = [entry[measure] for entry in row["per_class"]]
        places = np.arange(len(classes)) + (index - (len(methods) - 1) / 2) * width
        axes.bar(places, values, width, label=name, color=_COLOURS[name])
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_ylabel("F1" if measure == "f1" else measure)
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(methods), loc="lower left", bbox_to_anchor=(0, 1))
    return png(figure)


def validity_chart(months: Sequence[str], s2: Shares, s1: Shares) -> bytes:
    """Share of pixels with a clear view, by month and sensor."""
    figure = Figure(figsize=(1.2 + 0.85 * len(months), 2.4), layout="constrained")
    axes = figure.add_subplot()
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    return png(figure)

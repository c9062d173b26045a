"""Charts of an evaluation: the confusion matrix and the scores by class and method."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cropray.maps.pictures import png

COLOURS = {"model": "#117733", "forest": "#DDCC77", "majority": "#BBBBBB"}  # Tol's muted scheme


def confusion_chart(result: dict[str, Any], method: str = "model") -> bytes:
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
        axes.bar(places, values, width, label=name, color=COLOURS[name])
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_ylabel("F1" if measure == "f1" else measure)
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(methods), loc="lower left", bbox_to_anchor=(0, 1))
    return png(figure)

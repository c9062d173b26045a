"""How far to trust a map, from the evaluation of its model on held-out sites: figures for plain sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropray.figures.charts import EVALUATION
from cropray.figures.crops import NONE_OF_THEM
from cropray.run import Run

GOOD, FAIR = 0.8, 0.6
"""Least shares, of what is mapped as a crop and of what grows, that are right for a verdict."""

_HALF = 0.5
_FEW = 50  # pixels of truth: fewer say nothing of a crop


@dataclass(frozen=True)
class CropTrust:
    """How a crop did on the test sites. Shares are None where nobody can say."""

    name: str
    right: float | None  # of what is mapped as the crop (user's accuracy, precision)
    found: float | None  # of where the crop grows (producer's accuracy, recall)
    missed_as: str  # what it is mapped as most often, if not as itself; empty if never
    missed: float
    pixels: int
    f1: float | None
    iou: float | None
    threshold: float
    others: tuple[float | None, ...]  # the score of the other methods

    @property
    def verdict(self) -> str:
        """good, fair, weak, or empty where too little was tested."""
        shares = [share for share in (self.right, self.found) if share is not None]
        if not shares or self.pixels < _FEW:
            return ""
        least = min(shares)
        return "good" if least >= GOOD else "fair" if least >= FAIR else "weak"


@dataclass(frozen=True)
class Trust:
    """The evaluation of a map's model. `whole`: the truth of all land of the test sites is known."""

    regions: int
    pixels: int
    whole: bool
    accuracy: float
    on_crops: float | None  # share of the pixels of crops that are right
    score: float
    interval: tuple[float, float] | None
    methods: tuple[str, ...]
    scores: Mapping[str, tuple[float | None, tuple[float, float] | None]]  # with intervals, by method
    crops: Mapping[str, CropTrust]
    labels: tuple[str, ...]  # rows and columns of the confusion: the largest first, none of them last
    confusion: tuple[tuple[float | None, ...], ...]  # shares of each row of truth
    reliability: tuple[tuple[float, float], ...]  # mean confidence, and the share that was right, by bins
    surest_half: float | None  # accuracy of the half of the land with the highest confidence
    by_date: tuple[tuple[str, float | None, tuple[float, float] | None], ...]
    by_lead: tuple[tuple[int, float, Mapping[str, float | None]], ...]  # months before harvest, mean, by crop
    thresholds_chosen_on: str


def read_trust(run: Run, model: str) -> Trust | None:
    """The evaluation of a run, None if there is none or if it is of another model.

    `model` is the identity of the map's checkpoint, as the evaluation records it.
    """
    if not run.folder.exists(EVALUATION) or not model or run.inputs("evaluate").get("model") != model:
        return None
    result: dict[str, Any] = json.loads(run.folder.read_text(EVALUATION))
    name, *others = result["methods"]
    network = result["methods"][name]
    if network["score"] is None:
        return None
    counts = np.array(network["confusion"])
    labels = [*result["classes"], NONE_OF_THEM][: counts.shape[1]]
    truth_k, whole = counts.sum(axis=1), result["scope"] != "annotated"
    measure = "f1" if whole else "recall"
    crops = {}
    for k, entry in enumerate(network["per_class"][: len(result["classes"])]):
        wrong = counts[k].copy() if k < len(counts) else np.zeros(counts.shape[1], int)
        wrong[k] = 0
        most, total = int(wrong.argmax()), int(entry["support"])
        crops[entry["class"]] = CropTrust(
            name=entry["class"],
            right=entry.get("precision") if whole else None,
            found=entry["recall"],
            missed_as=labels[most] if wrong[most] else "",
            missed=float(wrong[most] / total) if total else 0.0,
            pixels=total,
            f1=entry.get("f1") if whole else None,
            iou=entry.get("iou") if whole else None,
            threshold=result["thresholds"][name][k],
            others=tuple(result["methods"][other]["per_class"][k][measure] for other in others),
        )
    n_crops = len(result["classes"])
    grown = int(truth_k[:n_crops].sum())
    rows = sorted(
        (k for k in range(len(counts)) if truth_k[k] or counts[:, k].any()),
        key=lambda k: (k >= n_crops, -truth_k[k]),
    )
    columns = [*rows, *range(len(counts), counts.shape[1])]
    return Trust(
        regions=result["regions"],
        pixels=result["pixels"],
        whole=whole,
        accuracy=network["accuracy"],
        on_crops=float(np.trace(counts[:n_crops, :n_crops]) / grown) if grown else None,
        score=network["score"],
        interval=_pair(network["interval"]),
        methods=(name, *others),
        scores={key: (row["score"], _pair(row["interval"])) for key, row in result["methods"].items()},
        crops=crops,
        labels=tuple(labels[k] for k in columns),
        confusion=tuple(
            tuple(float(counts[k, c] / truth_k[k]) if truth_k[k] else None for c in columns) for k in rows
        ),
        reliability=_curve(result),
        surest_half=next((row["accuracy"] for row in result.get("kept", []) if row["share"] == _HALF), None),
        by_lead=tuple((row["months"], row["mean"], row["per_class"]) for row in result.get("by_lead", [])),
        by_date=tuple(
            (row["date"], row.get(result["score"]), _pair(row["interval"])) for row in result["by_as_of"]
        ),
        thresholds_chosen_on=result["thresholds_chosen_on"],
    )


def _curve(result: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    """The reliability of the class that is shown. Evaluations of earlier versions have none."""
    if "calibration" not in result:
        return ()
    curve = result["calibration"]["curve"]["after"]
    return tuple(zip(curve["predicted"], curve["observed"], strict=True))


def _pair(interval: list[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])

"""Scores from confusion matrices, with intervals from a block bootstrap.

A confusion matrix is (M, M): rows are the truth, columns the prediction. The K crops come first, and the
last of M = K + 1 is "none" (the truth is no crop, or no class is predicted). R blocks, D bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.types import BACKGROUND, UNLABELLED, ByteArray, DoubleArray, IndexArray

Counts = npt.NDArray[np.int64]

Scope = Literal["truth", "class_map", "annotated"]
"""Where the truth is known: everywhere; where a dense map is not masked; on annotated parcels only."""


def known_truth(scope: Scope, label_hw: ByteArray, truth_hw: ByteArray | None) -> ByteArray:
    """The truth to score against, UNLABELLED where it is unknown.

    With "annotated", background is left out too: it comes from a land-cover map, not from the field, and
    the surroundings of the parcels are unknown anyway.
    """
    if scope == "truth":
        assert truth_hw is not None
        return truth_hw
    if scope == "class_map":
        return label_hw
    return np.where(label_hw == BACKGROUND, np.uint8(UNLABELLED), label_hw)


def confusion(truth: ByteArray, predicted: ByteArray, n_classes: int) -> Counts:
    """Confusion matrix (K + 1, K + 1) of two maps of the same shape; BACKGROUND is the last class.

    Pixels with UNLABELLED truth are not counted.
    """
    from sklearn.metrics import confusion_matrix  # a second, which each process of a prediction would pay

    known = truth != UNLABELLED
    labels = [*range(n_classes), BACKGROUND]
    if not known.any():  # scikit-learn refuses empty input
        return np.zeros((len(labels), len(labels)), np.int64)
    counts: Counts = confusion_matrix(truth[known], predicted[known], labels=labels).astype(np.int64)
    return counts


def per_class(counts: Counts) -> list[dict[str, Any]]:
    """Precision, recall, F1, IoU and support (pixels of truth) of each of the M classes.

    A class without truth has no figures: None, so that nobody takes it for a class that was missed.
    Precision, F1 and IoU are valid only if the truth of every pixel is known. scikit-learn scores the
    M x M pairs of classes, weighted by their counts.
    """
    from sklearn.metrics import jaccard_score, precision_recall_fscore_support

    truth, predicted = (index.ravel() for index in np.indices(counts.shape))
    options = {"labels": list(range(len(counts))), "sample_weight": counts.ravel(), "zero_division": 0.0}
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, **options)
    iou = jaccard_score(truth, predicted, average=None, **options)
    figures = {"precision": precision, "recall": recall, "f1": f1, "iou": iou}
    return [
        {name: float(values[m]) if support[m] else None for name, values in figures.items()}
        | {"support": int(support[m])}
        for m in range(len(counts))
    ]


def precision_bounds(counts: Counts, unknown_k: IndexArray) -> list[tuple[float, float] | None]:
    """The least and the largest precision that each of the K crops can have, whatever the unknown land is.

    `unknown_k` counts the pixels of unknown truth that are mapped as a crop: none of them is it at worst, all
    are at best. None for a crop that is mapped nowhere.
    """
    right_k = np.diagonal(counts)[:-1]
    mapped_k = counts.sum(axis=0)[:-1] + unknown_k
    return [
        (float(right / mapped), float((right + unknown) / mapped)) if mapped else None
        for right, unknown, mapped in zip(right_k, unknown_k, mapped_k, strict=True)
    ]


def macro_f1(counts: npt.NDArray[Any]) -> DoubleArray:
    """Mean F1 over the crops (not "none") of matrices (…, M, M): F1 = 2 TP / (2 TP + FP + FN).

    Crops without truth are left out, so all classifiers are scored on the same crops. NaN if none is left.
    """
    true_positive = np.diagonal(counts, axis1=-2, axis2=-1)[..., :-1]
    support, predicted = counts.sum(axis=-1)[..., :-1], counts.sum(axis=-2)[..., :-1]
    return _mean_of_defined(2 * true_positive, np.where(support > 0, support + predicted, 0))


def macro_recall(counts: npt.NDArray[Any]) -> DoubleArray:
    """Mean recall of matrices (…, M, M) over the crops that have truth; NaN if none has."""
    true_positive = np.diagonal(counts, axis1=-2, axis2=-1)[..., :-1]
    return _mean_of_defined(true_positive, counts.sum(axis=-1)[..., :-1])


def _mean_of_defined(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> DoubleArray:
    """Mean over the last axis of the ratios with a denominator above 0; NaN if there is none."""
    ratios = numerator / np.ma.masked_equal(denominator, 0)
    mean: DoubleArray = np.ma.filled(ratios.mean(axis=-1), np.nan)
    return mean


def bootstrap(counts_by_block: Counts, draws: int, seed: int) -> Counts:
    """Confusion matrices (D, M, M): sums over R of the blocks (R, M, M), drawn with replacement.

    The same seed draws the same blocks, so scores of several classifiers are paired.
    """
    n_blocks = len(counts_by_block)
    often_dr = np.random.default_rng(seed).multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=draws)
    return np.asarray(np.einsum("dr,rmn->dmn", often_dr, counts_by_block), np.int64)


def interval(scores: DoubleArray) -> list[float] | None:
    """95 % percentile interval of bootstrap scores (D,); None if none is defined."""
    defined = scores[~np.isnan(scores)]
    return [float(bound) for bound in np.quantile(defined, [0.025, 0.975])] if len(defined) else None


def score_table(
    scope: Scope,
    classes: Sequence[str],
    counts: Mapping[str, Counts],
    *,
    draws: int,
    seed: int,
    unknown: Mapping[str, IndexArray] | None = None,
) -> dict[str, Any]:
    """Scores of each classifier, and the differences between the first and each other one.

    `counts` are confusion matrices by block (R, K + 1, K + 1) of each classifier, over the same pixels. The
    score is the macro-F1 over crops, or the macro-recall for scope "annotated". Its 95 % interval comes from
    a bootstrap of the blocks that uses the same draws for all classifiers, so differences are paired. A
    single block has no interval. `over` names the crops with truth, whose mean the score is. For scope
    "annotated", `unknown` gives each classifier's pixels of unknown truth by crop (K,), for
    `precision_bounds`. Raises InputError if no pixel is known.
    """
    if not any(blocks.any() for blocks in counts.values()):
        raise InputError(
            "the split has no pixel of known class: there is nothing to score. Give it more parcels, or "
            "raise rois.split.val or rois.split.test in a new --run folder"
        )
    score = macro_recall if scope == "annotated" else macro_f1
    n_blocks = len(next(iter(counts.values())))
    draws = draws if n_blocks > 1 else 0
    totals = {name: blocks.sum(axis=0) for name, blocks in counts.items()}
    values = {name: float(score(total)) for name, total in totals.items()}
    spreads = {name: score(bootstrap(blocks, draws, seed)) for name, blocks in counts.items()}
    first, *others = counts
    return {
        "scope": scope,
        "score": score.__name__,
        "over": [name for name, total in zip(classes, totals[first].sum(axis=1), strict=False) if total],
        "blocks": n_blocks,
        "pixels": int(totals[first].sum()),
        "methods": {
            name: {
                **_figure(values[name], spreads[name]),
                "accuracy": float(np.trace(total)) / int(total.sum()),
                "per_class": _class_rows(scope, classes, total, (unknown or {}).get(name)),
                # With "annotated" no truth is "none": that row would be empty.
                "confusion": (total[:-1] if scope == "annotated" else total).tolist(),
            }
            for name, total in totals.items()
        },
        "differences": {
            name: _figure(values[first] - values[name], spreads[first] - spreads[name]) for name in others
        },
    }


def _figure(value: float, spread: DoubleArray) -> dict[str, Any]:
    """A score, None if it is undefined (JSON has no NaN), and its interval."""
    return {"score": None if math.isnan(value) else value, "interval": interval(spread)}


def _class_rows(
    scope: Scope, classes: Sequence[str], counts: Counts, unknown_k: IndexArray | None
) -> list[dict[str, Any]]:
    """Figures of each crop; with "annotated" only those that need no truth outside the parcels."""
    rows = [{"class": name, **row} for name, row in zip(classes, per_class(counts)[:-1], strict=True)]
    if scope != "annotated":
        return rows
    rows = [{key: row[key] for key in ("class", "recall", "support")} for row in rows]
    if unknown_k is not None:
        for row, bounds in zip(rows, precision_bounds(counts, unknown_k), strict=True):
            row["precision_bounds"] = bounds
    return rows

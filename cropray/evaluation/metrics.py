"""Scores from confusion matrices, and how sure they are when whole blocks are drawn again.

A confusion matrix is (M, M): rows are the truth, columns the prediction, the K crops first; the
last of M = K + 1 is "none" (known to be no crop, or no class predicted). R blocks, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, jaccard_score, precision_recall_fscore_support

from cropray.errors import InputError
from cropray.types import BACKGROUND, UNLABELLED, ByteArray

Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

NONE = "none"
"""Name of the last row and column: no crop."""


def confusion(truth: ByteArray, predicted: ByteArray, n_classes: int) -> Counts:
    """Confusion matrix (K + 1, K + 1) of two maps of classes, BACKGROUND as the last class.

    Pixels whose truth is UNLABELLED are not counted. The maps may have any shape, but the same.
    """
    known = truth != UNLABELLED
    labels = [*range(n_classes), BACKGROUND]
    if not known.any():  # as in a tile between the parcels, which scikit-learn refuses
        return np.zeros((len(labels), len(labels)), np.int64)
    counts: Counts = confusion_matrix(truth[known], predicted[known], labels=labels).astype(np.int64)
    return counts


def per_class(counts: Counts) -> list[dict[str, Any]]:
    """Precision, recall, F1, IoU and support (pixels of truth) of each of the M classes.

    Only where the truth of every pixel is known: precision needs all that is not the class.
    scikit-learn scores the M × M pairs of classes, each weighted with its count.
    """
    truth, predicted = (index.ravel() for index in np.indices(counts.shape))
    weights = counts.ravel()
    options = {"labels": list(range(len(counts))), "sample_weight": weights, "zero_division": 0.0}
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, **options)
    iou = jaccard_score(truth, predicted, average=None, **options)
    return [
        {"precision": float(p), "recall": float(r), "f1": float(f), "iou": float(i), "support": int(s)}
        for p, r, f, i, s in zip(precision, recall, f1, iou, support, strict=True)
    ]


def recalls(counts: Counts) -> list[dict[str, Any]]:
    """Recall and support of each crop, where the truth is known of annotated parcels only."""
    return [{"recall": row["recall"], "support": row["support"]} for row in per_class(counts)[:-1]]


def macro_f1(counts: npt.NDArray[Any]) -> Scores:
    """Mean F1 over the crops (not "none") of matrices (…, M, M): F1 = 2 TP / (2 TP + FP + FN).

    A crop that does not occur in the truth is left out, so that all methods are scored on the same
    crops; NaN where none occurs.
    """
    true_positive = np.diagonal(counts, axis1=-2, axis2=-1)[..., :-1]
    there, predicted = counts.sum(axis=-1)[..., :-1], counts.sum(axis=-2)[..., :-1]
    return _mean_of_defined(2 * true_positive, np.where(there > 0, there + predicted, 0))


def macro_recall(counts: npt.NDArray[Any]) -> Scores:
    """Mean recall over the crops that occur in the truth, of matrices (…, M, M)."""
    true_positive = np.diagonal(counts, axis1=-2, axis2=-1)[..., :-1]
    return _mean_of_defined(true_positive, counts.sum(axis=-1)[..., :-1])


def block_draws(n_blocks: int, draws: int, seed: int) -> Counts:
    """How often each block occurs (D, R) in `draws` samples of R blocks with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=draws).astype(np.int64)


def drawn(counts_by_block: Counts, draws: Counts) -> Counts:
    """Confusion matrices (D, M, M) of the blocks (R, M, M) as often as drawn (D, R)."""
    summed: Counts = np.einsum("dr,rmn->dmn", draws, counts_by_block)
    return summed


def interval(scores: Scores, level: float = 0.95) -> list[float] | None:
    """Percentile interval of bootstrap scores (D,); None where there are none."""
    defined = scores[~np.isnan(scores)]
    if not len(defined):
        return None
    tail = (1 - level) / 2
    return [float(bound) for bound in np.quantile(defined, [tail, 1 - tail])]


def _mean_of_defined(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Scores:
    """Mean over the last axis of the ratios whose denominator is not 0; NaN where all are."""
    defined = denominator > 0
    ratios = np.divide(numerator, denominator, out=np.zeros(denominator.shape), where=defined)
    number = defined.sum(axis=-1)
    mean: Scores = np.divide(ratios.sum(axis=-1), number, out=np.full(number.shape, np.nan), where=number > 0)
    return mean


Scope = Literal["truth", "class_map", "annotated"]
"""What is known: of every pixel; of every pixel of a dense map that is not masked; of annotated parcels."""


def scored_truth(scope: Scope, label_hw: ByteArray, truth_hw: ByteArray | None) -> ByteArray:
    """The truth that counts: UNLABELLED where none is known.

    Under "annotated" known background is left out too: it comes from a land-cover map, not from the
    field, and what surrounds the parcels stays unknown anyway.
    """
    if scope == "truth":
        assert truth_hw is not None
        return truth_hw
    if scope == "class_map":
        return label_hw
    return np.where(label_hw == BACKGROUND, np.uint8(UNLABELLED), label_hw)


def tables(
    scope: Scope,
    classes: Sequence[str],
    counts: Mapping[str, Counts],
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Scores by method, and how much the first method differs from each other one.

    `counts` are confusion matrices of blocks (R, K + 1, K + 1) by method, of the same pixels. The
    score is the macro-F1 over crops, or under "annotated" the macro-recall; its interval (95 %) comes
    from drawing the blocks again, the same draws for every method, so that differences are paired.
    A single block cannot be drawn differently: it has no interval. Raises InputError where no pixel
    is known.
    """
    if not any(blocks.any() for blocks in counts.values()):
        raise InputError(
            "no pixel of the test split is annotated: there is nothing to score; give the split more ROIs "
            "(rois.split.test), or evaluate with labels that reach them"
        )
    score = macro_recall if scope == "annotated" else macro_f1
    n_blocks = len(next(iter(counts.values())))
    picks = block_draws(n_blocks, draws if n_blocks > 1 else 0, seed)
    values = {name: float(score(blocks.sum(axis=0))) for name, blocks in counts.items()}
    spreads: dict[str, Scores] = {name: score(drawn(blocks, picks)) for name, blocks in counts.items()}
    first, *others = counts
    return {
        "scope": scope,
        "score": "macro_recall" if scope == "annotated" else "macro_f1",
        "blocks": n_blocks,
        "pixels": int(counts[first].sum()),
        "methods": {
            name: {
                "score": _number(values[name]),
                "interval": interval(spreads[name]),
                "accuracy": _accuracy(blocks.sum(axis=0)),
                "per_class": _per_class(scope, classes, blocks.sum(axis=0)),
                "confusion": _shown(scope, blocks.sum(axis=0)).tolist(),
            }
            for name, blocks in counts.items()
        },
        "differences": {
            name: {
                "score": _number(values[first] - values[name]),
                "interval": interval(spreads[first] - spreads[name]),
            }
            for name in others
        },
    }


def _per_class(scope: Scope, classes: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    rows = recalls(counts) if scope == "annotated" else per_class(counts)[:-1]
    return [{"class": name, **row} for name, row in zip(classes, rows, strict=True)]


def _shown(scope: Scope, counts: Counts) -> Counts:
    """Nothing is known to be "none" where parcels alone are known, so that row is no result."""
    return counts[:-1] if scope == "annotated" else counts


def _accuracy(counts: Counts) -> float:
    return float(np.trace(counts)) / int(counts.sum())


def _number(value: float) -> float | None:
    """As JSON has it: a score of a land without any crop is None."""
    return None if math.isnan(value) else value

"""How a classifier decides, chosen on val: calibration, thresholds, and sets of classes that may be.

N known pixels of val, K classes. Labels are class indices or BACKGROUND, which is none of them; blocks are
groups of neighbouring ROIs, since pixels of one site are much alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from cropray.config.training import Calibration, ThresholdRule, TrainConfig
from cropray.evaluation.classifiers import Classifier, Network, grouped, scored_at
from cropray.evaluation.mosaics import block_numbers, plan_tiles, read_tile, roi_grids
from cropray.models.checkpoint import Checkpoint
from cropray.models.decision import UNCALIBRATED, Decision, choose_thresholds, logit, sigmoid, with_none
from cropray.progress import progress
from cropray.shards.reader import ShardReader
from cropray.types import BACKGROUND, UNLABELLED, BoolArray, ByteArray, DoubleArray, FloatArray

_PIXELS = 1_000_000  # over all classifiers; bounds memory: 4 bytes per class each
_PATCHES = 2000  # bounds time, where a head node without a GPU chooses for a large val
_CALIBRATION_PIXELS = 100_000
_HALF_WEIGHT_BLOCKS = 6  # at which "shrunk" takes half of a class's own threshold
# Of the squared distance of a class's bias to that of all, in cross-entropy per pixel, divided by the blocks
# that the class is in: one of few blocks keeps nearer to the others (benchmarks/README.md).
_BIAS_PENALTY = 0.01
_STEPS = 1000  # of logits, of which a common threshold is one


@dataclass(frozen=True)
class DecisionRule:
    """How val chooses. A given `threshold` is one of uncalibrated scores, and decides as it did of them."""

    calibration: Calibration = "none"
    thresholds: ThresholdRule = "class"
    threshold: float | None = None
    coverage: float = 0.9

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> DecisionRule:
        """That of a training's settings. Those of earlier versions had thresholds of each class alone."""
        settings = TrainConfig.model_fields
        return cls(
            calibration=recipe.get("calibration", "none"),
            thresholds=recipe.get("threshold_rule", "class"),
            threshold=recipe.get("threshold"),
            coverage=recipe.get("coverage", settings["coverage"].default),
        )


@dataclass(frozen=True)
class Known:
    """Known pixels of a split: labels and blocks (N,), and the scores (N, K) of each classifier."""

    label_n: ByteArray
    block_n: npt.NDArray[np.int64]
    scores_nk: Mapping[str, FloatArray]


def settled(checkpoint: Checkpoint, val: ShardReader, *, buffer_m: float, overlap: int) -> Checkpoint:
    """The checkpoint with the decisions that val chooses by its recipe, one for each number of months it
    serves. Unchanged if val knows no pixel of a class.
    """
    networks, rule = networks_by_months(checkpoint), DecisionRule.of(checkpoint.recipe)
    chosen = choose_decisions(val, networks, rule, buffer_m=buffer_m, overlap=overlap)
    if all(decision.thresholds is None for decision in chosen.values()):
        return checkpoint
    return checkpoint.decided({int(name): decision for name, decision in chosen.items()})


def networks_by_months(checkpoint: Checkpoint) -> dict[str, Classifier]:
    """The uncalibrated network by each number of months that it serves."""
    fewest = checkpoint.recipe.get("min_months", 1) if checkpoint.any_date else checkpoint.months
    plain = replace(checkpoint, **vars(UNCALIBRATED), earlier={})
    return {str(months): Network(plain, months) for months in range(fewest, checkpoint.months + 1)}


def choose_decisions(
    val: ShardReader,
    classifiers: Mapping[str, Classifier],
    rule: DecisionRule,
    *,
    buffer_m: float,
    overlap: int,
) -> dict[str, Decision]:
    """The decisions of uncalibrated classifiers; defaults if val knows no pixel of a class."""
    if not classifiers:
        return {}
    known = known_scores(val, classifiers, buffer_m=buffer_m, overlap=overlap)
    if not (known.label_n != BACKGROUND).any():
        return dict.fromkeys(classifiers, UNCALIBRATED)
    return {
        name: fit_decision(scores_nk, known.label_n, known.block_n, rule)
        for name, scores_nk in known.scores_nk.items()
    }


def known_scores(
    reader: ShardReader, classifiers: Mapping[str, Classifier], *, buffer_m: float, overlap: int
) -> Known:
    """Scores on all labelled pixels of a split, or on a random sample of them.

    Pixels without a valid observation are left out, as in the scores of an evaluation.
    """
    rng = np.random.default_rng(0)
    labelled = reader.table["labelled_fraction"].to_numpy()
    plans = [plan for plan in plan_tiles(reader, overlap) if labelled[list(plan.rows)].any()]
    patches = sum(len(plan.rows) for plan in plans)
    if patches > _PATCHES:
        chosen = rng.random(len(plans)) < _PATCHES / patches
        plans = [plan for plan, take in zip(plans, chosen, strict=True) if take]
    block_of = block_numbers(roi_grids(reader), buffer_m)
    pixels = labelled.sum() * reader.metadata.size**2
    share = min(1.0, _PIXELS / max(1.0, pixels * len(classifiers)))
    labels, blocks = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
    empty = np.empty((0, len(reader.metadata.classes)), np.float32)
    scores = {name: [empty] for name in classifiers}
    with progress("thresholds", len(plans)) as bar:
        for group in grouped(plans):
            tiles, masks = [read_tile(reader, plan) for plan in group], list[BoolArray]()
            for plan, tile in zip(group, tiles, strict=True):
                known_hw = (tile.label_hw != UNLABELLED) & tile.seen_hw
                masks.append(known_hw & (rng.random(tile.label_hw.shape) < share))
                labels.append(tile.label_hw[masks[-1]])
                blocks.append(np.full(len(labels[-1]), block_of[plan.roi_id]))
            for name, classifier in classifiers.items():
                scores[name] += scored_at(classifier, tiles, masks)
            bar.advance(len(group))
    found = {name: np.concatenate(parts) for name, parts in scores.items()}
    return Known(np.concatenate(labels), np.concatenate(blocks), found)


def fit_decision(
    scores_nk: FloatArray, label_n: ByteArray, block_n: npt.NDArray[np.int64], rule: DecisionRule
) -> Decision:
    """The decision that a rule chooses by uncalibrated scores of known pixels."""
    temperature, biases = fit_calibration(scores_nk, label_n, block_n, rule.calibration)
    decision = Decision(temperature=temperature, biases=biases)
    probabilities_nk = decision.calibrated(scores_nk.T[:, :, None])[:, :, 0].T
    if rule.threshold is not None:
        given = np.full((scores_nk.shape[1], 1, 1), rule.threshold)
        thresholds = decision.calibrated(given).ravel()
    else:
        thresholds = fit_thresholds(probabilities_nk, label_n, block_n, rule.thresholds)
    return replace(
        decision,
        thresholds=tuple(thresholds.tolist()),
        quantiles=conformal_quantiles(probabilities_nk, label_n, block_n, rule.coverage),
    )


def fit_calibration(
    scores_nk: FloatArray, label_n: ByteArray, block_n: npt.NDArray[np.int64], kind: Calibration
) -> tuple[float, tuple[float, ...]]:
    """Temperature and biases (none unless `kind` is "bias") of the least mean binary cross-entropy.

    A class without a known pixel has no say, and the bias of the others.
    """
    if kind == "none" or not len(label_n):
        return 1.0, ()
    step = -(-len(label_n) // _CALIBRATION_PIXELS)
    z_nk = logit(scores_nk[::step]).astype(np.float64)
    label_n, block_n = label_n[::step], block_n[::step]
    n_classes = z_nk.shape[1]
    target_nk = label_n[:, None] == np.arange(n_classes)
    there_k = target_nk.any(axis=0)
    penalty_k = _BIAS_PENALTY / np.maximum(1, blocks_of_classes(label_n, block_n, n_classes))

    def loss(x: DoubleArray) -> tuple[float, DoubleArray]:
        bias_k = x[1] + x[2:] * there_k
        inverse = np.exp(-x[0])
        y_nk = (z_nk - bias_k) * inverse
        entropy_nk = (np.logaddexp(0, y_nk) - target_nk * y_nk) * there_k
        slope_nk = (expit(y_nk) - target_nk) * there_k / len(z_nk)
        by_bias = -slope_nk.sum(axis=0) * inverse
        gradient = np.concatenate(
            [[-(slope_nk * y_nk).sum(), by_bias.sum()], by_bias + 2 * penalty_k * x[2:]]
        )
        if kind == "temperature":
            gradient[1:] = 0
        return float(entropy_nk.sum() / len(z_nk) + (penalty_k * x[2:] ** 2).sum()), gradient

    bounds = [(-2.0, 2.0), *[(-10.0, 10.0)] * (n_classes + 1)]
    x = minimize(loss, np.zeros(n_classes + 2), jac=True, method="L-BFGS-B", bounds=bounds).x
    biases = () if kind == "temperature" else tuple((x[1] + x[2:] * there_k).tolist())
    return float(np.exp(x[0])), biases


def fit_thresholds(
    probabilities_nk: FloatArray, label_n: ByteArray, block_n: npt.NDArray[np.int64], rule: ThresholdRule
) -> FloatArray:
    """Thresholds (K,) by a rule.

    "class": the best F1 of each class alone. "common": one for all classes, which maximises the macro-F1 of
    the whole decision. "shrunk": between these logits, the class's own with a weight of m / (m + 6) for m
    blocks of val with the class.
    """
    n_classes = probabilities_nk.shape[1]
    own_k = choose_thresholds(probabilities_nk, label_n)
    if rule == "class":
        return own_k
    common = common_threshold(probabilities_nk, label_n)
    if rule == "common":
        return np.full(n_classes, common, np.float32)
    blocks_k = blocks_of_classes(label_n, block_n, n_classes)
    weight_k = (blocks_k / (blocks_k + _HALF_WEIGHT_BLOCKS)).astype(np.float32)
    return sigmoid(weight_k * logit(own_k) + (1 - weight_k) * logit(np.array(common)))


def blocks_of_classes(
    label_n: ByteArray, block_n: npt.NDArray[np.int64], n_classes: int
) -> npt.NDArray[np.int64]:
    """The number of blocks (K,) with known pixels of each class."""
    return np.array([len(np.unique(block_n[label_n == k])) for k in range(n_classes)])


def common_threshold(probabilities_nk: FloatArray, label_n: ByteArray) -> float:
    """The threshold at which the most probable class, or none below it, has the best macro-F1.

    Of equally good ones it is the middle.
    """
    n_classes = probabilities_nk.shape[1]
    top_n, highest_n = probabilities_nk.argmax(axis=1), logit(probabilities_nk.max(axis=1))
    edges = np.linspace(highest_n.min(), highest_n.max(), _STEPS + 1)
    place_n = np.clip(np.searchsorted(edges, highest_n, side="right") - 1, 0, _STEPS - 1)

    def from_above(chosen_n: BoolArray) -> DoubleArray:
        """(steps, K): chosen pixels at or above each edge, by their most probable class."""
        flat = place_n[chosen_n] * n_classes + top_n[chosen_n]
        counts = np.bincount(flat, minlength=_STEPS * n_classes).reshape(_STEPS, n_classes)
        return counts[::-1].cumsum(axis=0)[::-1].astype(np.float64)

    support_k = np.bincount(label_n, minlength=256)[:n_classes]
    hits, shown = from_above(top_n == label_n), from_above(np.ones(len(top_n), bool))
    there_k = support_k > 0
    score = (2 * hits / np.maximum(shown + support_k, 1))[:, there_k].mean(axis=1)
    best = np.flatnonzero(score >= score.max() - 1e-12)
    return float(sigmoid(edges[best[len(best) // 2]][None])[0])


def conformal_quantiles(
    probabilities_nk: FloatArray, label_n: ByteArray, block_n: npt.NDArray[np.int64], coverage: float
) -> tuple[float | None, ...]:
    """The probability (K + 1,) that a class, or none of them last, must reach to be in a pixel's set.

    Class-conditional split conformal prediction (Vovk 2012, arXiv:1209.2673): the set holds the true class
    in `coverage` of its pixels. Pixels of a block are alike, so each block is left out once, and the lowest
    of these quantiles holds. A class in one block has the lower of its own and that of all pixels. None for
    a class that val does not know.
    """
    values_nk = with_none(probabilities_nk.T[:, :, None])[:, :, 0].T
    n_classes = values_nk.shape[1] - 1
    index_n = np.where(label_n == BACKGROUND, n_classes, label_n).astype(np.intp)
    own_n = values_nk[np.arange(len(values_nk)), index_n]
    found: list[float | None] = []
    for k in range(n_classes + 1):
        mine_n, blocks = own_n[index_n == k], block_n[index_n == k]
        numbers = np.unique(blocks)
        if not len(mine_n):
            found.append(None)
        elif len(numbers) == 1:
            found.append(min(_quantile(mine_n, coverage), _quantile(own_n, coverage)))
        else:
            found.append(min(_quantile(mine_n[blocks != number], coverage) for number in numbers))
    return tuple(found)


def _quantile(values_n: FloatArray, coverage: float) -> float:
    """A value that a new one of the same kind reaches with this probability; 0 where these are too few."""
    place = int(np.floor((len(values_n) + 1) * (1 - coverage) + 1e-9))
    return float(np.sort(values_n)[place - 1]) if place else 0.0

"""From scores to calibrated probabilities, classes, and classes that are sure enough.

It travels with a registered model, so it imports only what travels too. Shape suffixes: K classes, H rows,
W columns, N pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.types import BACKGROUND, UNSURE, ByteArray, FloatArray

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Decision:
    """How the scores of K classes become probabilities and classes.

    The probability of a class is sigmoid((logit - bias) / temperature), with a bias for each class (none: 0;
    Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599). `thresholds` are of these
    probabilities; None until chosen. `quantiles` are those of class-conditional conformal sets, for the K
    classes and for none of them: a pixel may be of a class whose probability reaches its quantile. A quantile
    is None where val knows no pixel of the class; all are missing until val has chosen.
    """

    thresholds: tuple[float, ...] | None = None
    temperature: float = 1.0
    biases: tuple[float, ...] = ()
    quantiles: tuple[float | None, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """From a dict of `asdict`. Fields that earlier versions do not have may be missing."""
        return cls(
            thresholds=data["thresholds"] and tuple(data["thresholds"]),
            temperature=float(data.get("temperature", 1.0)),
            biases=tuple(data.get("biases", ())),
            quantiles=tuple(data.get("quantiles", ())),
        )

    def thresholds_k(self, n_classes: int) -> FloatArray:
        """(K,); 0.5 for every class if none were chosen."""
        return np.array(self.thresholds or (DEFAULT_THRESHOLD,) * n_classes, np.float32)

    @property
    def score_thresholds(self) -> tuple[float, ...] | None:
        """Thresholds of uncalibrated scores that decide alike; None if none were chosen."""
        if self.thresholds is None or (self.temperature == 1 and not self.biases):
            return self.thresholds
        thresholds = np.array(self.thresholds, np.float32)[:, None, None]
        return tuple(self.uncalibrated(thresholds).ravel().tolist())

    def calibrated(self, scores_khw: npt.NDArray[np.floating]) -> FloatArray:
        """Probabilities of uncalibrated scores (…, K, H, W)."""
        return sigmoid((logit(scores_khw) - self._biases(scores_khw)) / np.float32(self.temperature))

    def uncalibrated(self, probabilities_khw: npt.NDArray[np.floating]) -> FloatArray:
        """The scores (…, K, H, W) of calibrated probabilities."""
        return sigmoid(
            logit(probabilities_khw) * np.float32(self.temperature) + self._biases(probabilities_khw)
        )

    def _biases(self, values_khw: npt.NDArray[np.floating]) -> FloatArray:
        biases = self.biases or (0.0,) * values_khw.shape[-3]
        return np.array(biases, np.float32)[:, None, None]

    def decide(self, probabilities_khw: npt.NDArray[np.floating], *, unsure: bool = False) -> ByteArray:
        """The class (…, H, W) of calibrated probabilities (…, K, H, W), or BACKGROUND for none (`decide`).

        With `unsure` a class stands only where it is the only one in the pixel's set, UNSURE elsewhere.
        Raises ValueError with `unsure` if there are no quantiles.
        """
        probabilities = np.asarray(probabilities_khw, dtype=np.float32)
        class_hw = decide(probabilities, self.thresholds_k(probabilities.shape[-3]))
        if unsure:
            sets = self.sets(probabilities)
            index = np.where(class_hw == BACKGROUND, sets.shape[-3] - 1, class_hw)
            in_set = np.take_along_axis(sets, index[..., None, :, :].astype(np.intp), axis=-3)[..., 0, :, :]
            return np.where(in_set & (sets.sum(axis=-3) == 1), class_hw, np.uint8(UNSURE))
        return class_hw

    def sets(self, probabilities_khw: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Which of the classes, and none of them last (…, K + 1, H, W), a pixel may be."""
        if not self.quantiles:
            raise ValueError("there are no quantiles: the decision was not chosen on val")
        quantiles = np.array([np.inf if q is None else q for q in self.quantiles], np.float32)
        return with_none(probabilities_khw) >= quantiles[:, None, None]


UNCALIBRATED = Decision()
"""Scores are probabilities, and 0.5 is enough of them."""


def decide(probabilities_khw: npt.NDArray[np.floating], thresholds_k: npt.NDArray[np.floating]) -> ByteArray:
    """The class (…, H, W) of probabilities (…, K, H, W), or BACKGROUND if none reaches its threshold.

    Among the classes with p_c >= t_c, the one with the largest excess in odds wins: argmax of
    logit(p_c) - logit(t_c). Comparing p_c alone would let a frequent class win wherever it barely passes
    where thresholds differ; the ratio p_c / t_c would favour low thresholds without bound. Ties go to the
    lower index. NaN (no view at all) is BACKGROUND. Raises ValueError unless the thresholds are (K,).
    """
    probabilities = np.asarray(probabilities_khw, dtype=np.float32)
    thresholds = np.asarray(thresholds_k, dtype=np.float32)
    if thresholds.shape != (probabilities.shape[-3],):
        raise ValueError(f"thresholds are {thresholds.shape} for probabilities {probabilities.shape}")
    excess = logit(probabilities) - logit(thresholds)[:, None, None]
    passing = probabilities >= thresholds[:, None, None]
    best = np.argmax(np.where(passing, excess, -np.inf), axis=-3).astype(np.uint8)
    return np.where(passing.any(axis=-3), best, np.uint8(BACKGROUND))


def with_none(probabilities_khw: npt.NDArray[np.floating]) -> FloatArray:
    """Probabilities (…, K + 1, H, W): last that of none of the classes, what they leave of 1."""
    probabilities = np.asarray(probabilities_khw, dtype=np.float32)
    rest = np.clip(1 - probabilities.sum(axis=-3, keepdims=True), 0, 1)
    return np.concatenate([probabilities, rest], axis=-3)


def confidence(probabilities_khw: npt.NDArray[np.floating], class_hw: ByteArray) -> FloatArray:
    """The probability (…, H, W) of the class that a map shows, BACKGROUND for none of the classes."""
    values = with_none(probabilities_khw)
    index = np.where(class_hw == BACKGROUND, values.shape[-3] - 1, class_hw).astype(np.intp)
    shown: FloatArray = np.take_along_axis(values, index[..., None, :, :], axis=-3)[..., 0, :, :]
    return shown


def logit(p: npt.NDArray[np.floating]) -> FloatArray:
    """log(p / (1 - p)), finite: of probabilities from 1e-6 to 1 - 1e-6."""
    clipped = np.clip(np.asarray(p, np.float32), np.float32(1e-6), np.float32(1 - 1e-6))
    return np.asarray(np.log(clipped) - np.log1p(-clipped), np.float32)


def sigmoid(x: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(np.asarray(x, np.float32), -80, 80))), np.float32)


def choose_thresholds(scores_nk: npt.NDArray[np.floating], labels_n: ByteArray) -> FloatArray:
    """Thresholds (K,) that maximise each class's F1 on known pixels.

    `labels_n` holds class indices or BACKGROUND (a negative of every class), without unlabelled pixels. Of
    equally good thresholds, the middle of the gap below the lowest accepted score is chosen, so that chance
    does not decide about scores in the gap. A class without a positive pixel keeps 0.5. Raises ValueError for
    other labels.
    """
    scores = np.asarray(scores_nk, dtype=np.float32)
    n_classes = scores.shape[1]
    if np.any((labels_n >= n_classes) & (labels_n != BACKGROUND)):
        raise ValueError(f"labels must be 0..{n_classes - 1} or {BACKGROUND}, got {np.unique(labels_n)}")
    return np.array([_best_threshold(scores[:, k], labels_n == k) for k in range(n_classes)], np.float32)


def _best_threshold(scores_n: npt.NDArray[np.float32], positive_n: npt.NDArray[np.bool_]) -> float:
    positives = int(positive_n.sum())
    if not positives:
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores_n, kind="stable")
    ranked = scores_n[order]
    true_positives = np.cumsum(positive_n[order])
    accepted = np.arange(1, len(ranked) + 1)
    f1 = 2 * true_positives / (accepted + positives)
    cuts = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # between different scores only
    best = cuts[np.argmax(f1[cuts])]
    below = ranked[best + 1] if best + 1 < len(ranked) else np.float32(0)
    middle = np.float32((ranked[best] + below) / 2)
    return float(middle if middle > below else ranked[best])  # neighbouring floats have no middle

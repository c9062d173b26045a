"""Whether probabilities hold on a split: calibration, coverage of sets, and accuracy of the surest land.

Sums over pixels of known truth, so that a split of any size fits in memory. K classes, and none of them last
where there are K + 1. A pixel's confidence is the probability of the class that is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.models.decision import Decision, confidence
from cropray.types import BACKGROUND, UNLABELLED, ByteArray, DoubleArray, FloatArray

_BINS = 15  # as usual since Guo et al. 2017
_STEPS = 1000  # of confidence, by which land is ordered
KEPT_SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)


class Bins:
    """Pixels, summed probabilities and occurrences of an event, by equal steps of its probability."""

    def __init__(self, bins: int = _BINS) -> None:
        self.sums_3b: DoubleArray = np.zeros((3, bins))

    def add(self, probability_n: FloatArray, happened_n: npt.NDArray[np.bool_]) -> None:
        bins = self.sums_3b.shape[1]
        place_n = np.clip((probability_n * bins).astype(np.intp), 0, bins - 1)
        for row, weights in enumerate((None, probability_n, happened_n)):
            self.sums_3b[row] += np.bincount(place_n, weights, minlength=bins)

    @property
    def ece(self) -> float | None:
        """Expected calibration error (Naeini et al. 2015); None without pixels."""
        pixels_b, expected_b, happened_b = self.sums_3b
        return float(np.abs(expected_b - happened_b).sum() / pixels_b.sum()) if pixels_b.any() else None

    def curve(self) -> dict[str, list[float]]:
        """Mean probability and share of occurrences of the bins that have pixels."""
        pixels_b, expected_b, happened_b = self.sums_3b[:, self.sums_3b[0] > 0]
        return {
            "predicted": np.round(expected_b / pixels_b, 4).tolist(),
            "observed": np.round(happened_b / pixels_b, 4).tolist(),
            "pixels": pixels_b.astype(int).tolist(),
        }


class Reliability:
    """What a classifier's calibrated probabilities are worth, pixel by pixel."""

    def __init__(self, decision: Decision, n_classes: int) -> None:
        self._decision, self._n_classes = decision, n_classes
        self._before, self._after = ([Bins() for _ in range(n_classes)] for _ in range(2))
        self._shown_before, self._shown_after = Bins(), Bins()
        self._by_confidence = Bins(_STEPS)
        self._of_class_k = np.zeros(n_classes + 1, np.int64)
        self._covered_k = np.zeros(n_classes + 1, np.int64)
        self._set_size = self._sure = self._sure_right = 0

    def add(self, probabilities_khw: FloatArray, shown_hw: ByteArray, truth_hw: ByteArray) -> None:
        """The pixels whose truth is not UNLABELLED, and the class that is shown for them."""
        known = truth_hw != UNLABELLED
        p_kn1, truth_n = probabilities_khw[:, known][:, :, None], truth_hw[known]
        if not len(truth_n):
            return
        shown_n, raw_kn1 = shown_hw[known], self._decision.uncalibrated(p_kn1)
        for k in range(self._n_classes):
            self._before[k].add(raw_kn1[k, :, 0], truth_n == k)
            self._after[k].add(p_kn1[k, :, 0], truth_n == k)
        right_n = shown_n == truth_n
        confidence_n = confidence(p_kn1, shown_n[:, None])[:, 0]
        self._shown_before.add(confidence(raw_kn1, shown_n[:, None])[:, 0], right_n)
        self._shown_after.add(confidence_n, right_n)
        self._by_confidence.add(confidence_n, right_n)
        if not self._decision.quantiles:
            return
        sets_kn = self._decision.sets(p_kn1)[:, :, 0]
        index_n = np.where(truth_n == BACKGROUND, self._n_classes, truth_n).astype(np.intp)
        covered_n = sets_kn[index_n, np.arange(len(index_n))]
        self._of_class_k += np.bincount(index_n, minlength=self._n_classes + 1)
        self._covered_k += np.bincount(index_n, covered_n, minlength=self._n_classes + 1).astype(np.int64)
        sure_n = (sets_kn.sum(axis=0) == 1) & (self._decision.decide(p_kn1, unsure=True)[:, 0] == shown_n)
        self._set_size += int(sets_kn.sum())
        self._sure += int(sure_n.sum())
        self._sure_right += int((sure_n & right_n).sum())

    def calibration(self, classes: Sequence[str]) -> dict[str, Any]:
        """ECE of the shown class and of each class against the rest, with curves, before and after."""
        return {
            "temperature": self._decision.temperature,
            "biases": list(self._decision.biases),
            "ece": {"before": self._shown_before.ece, "after": self._shown_after.ece},
            "curve": {"before": self._shown_before.curve(), "after": self._shown_after.curve()},
            "per_class": [
                {
                    "class": name,
                    "ece": {"before": before.ece, "after": after.ece},
                    "curve": {"before": before.curve(), "after": after.curve()},
                }
                for name, before, after in zip(classes, self._before, self._after, strict=True)
            ],
        }

    def doubt(self, classes: Sequence[str]) -> dict[str, Any] | None:
        """Coverage of the sets by class, their size, and the land that is sure; None without quantiles."""
        pixels = int(self._of_class_k.sum())
        if not self._decision.quantiles or not pixels:
            return None
        rows = zip([*classes, "none"], self._covered_k.tolist(), self._of_class_k.tolist(), strict=True)
        return {
            "coverage": int(self._covered_k.sum()) / pixels,
            "per_class": [
                {"class": name, "coverage": covered / n if n else None, "pixels": n}
                for name, covered, n in rows
            ],
            "set_size": self._set_size / pixels,
            "sure": self._sure / pixels,
            "accuracy_of_sure": self._sure_right / self._sure if self._sure else None,
        }

    def kept(self) -> list[dict[str, float]]:
        """Accuracy of the land of the highest confidence, by its share, and the lowest confidence there."""
        pixels_b, _, right_b = self._by_confidence.sums_3b[:, ::-1].cumsum(axis=1)
        rows = []
        for share in KEPT_SHARES:
            place = int(np.searchsorted(pixels_b, share * pixels_b[-1] - 0.5))
            rows.append(
                {
                    "share": share,
                    "accuracy": float(right_b[place] / pixels_b[place]),
                    "confidence": 1 - (place + 1) / _STEPS,
                }
            )
        return rows

    @property
    def figures(self) -> dict[str, Any]:
        """Pixels, ECE of the shown class, and coverage of the sets, for a table."""
        pixels = int(self._shown_after.sums_3b[0].sum())
        known = int(self._of_class_k.sum())
        coverage = int(self._covered_k.sum()) / known if known else None
        return {"n": pixels, "ece": self._shown_after.ece, "coverage": coverage}

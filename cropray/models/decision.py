"""From probabilities to one class a pixel, and the thresholds for it. Numpy only, no I/O."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cropray.models.checkpoint import Checkpoint
from cropray.types import BACKGROUND, ByteArray, FloatArray, IntArray

DEFAULT_THRESHOLD = 0.5


def decide(probabilities_khw: npt.NDArray[np.floating], thresholds_k: npt.NDArray[np.floating]) -> ByteArray:
    """The class (…, H, W) of probabilities (…, K, H, W), or BACKGROUND where none reaches its threshold.

    Among the classes with p_c >= t_c the one with the largest excess in odds wins:
    argmax of logit(p_c) - logit(t_c). Thresholds differ by class since the sigmoids are calibrated
    differently (rare classes have low scores and low thresholds); comparing raw p_c would let
    a frequent class win wherever it barely passes, and the ratio p_c / t_c would favour low
    thresholds without bound. Ties go to the lower index. NaN (no view at all) is BACKGROUND.
    """
    probabilities = np.asarray(probabilities_khw, dtype=np.float32)
    thresholds = np.asarray(thresholds_k, dtype=np.float32)
    if thresholds.shape != (probabilities.shape[-3],):
        raise ValueError(
            f"thresholds are {thresholds.shape} for probabilities {probabilities.shape}; wanted (K,)"
        )
    excess = _logit(probabilities) - _logit(thresholds)[:, None, None]
    passing = probabilities >= thresholds[:, None, None]
    best = np.argmax(np.where(passing, excess, -np.inf), axis=-3).astype(np.uint8)
    return np.where(passing.any(axis=-3), best, np.uint8(BACKGROUND))


def choose_thresholds(scores_nk: npt.NDArray[np.floating], labels_n: ByteArray) -> npt.NDArray[np.float32]:
    """Thresholds (K,) that maximise each class's F1 on known pixels.

    `labels_n` holds class indices or BACKGROUND (a negative of every class); pixels of which nothing
    is known must be left out beforehand. Of equally good thresholds the middle of the gap below the
    lowest accepted score is taken, so that a score between the two sides is not decided by chance.
    A class without a positive pixel keeps 0.5.
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


def _logit(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)


class Predictor:
    """Holds the network on one device. Calls are independent of batch size and order."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._network = checkpoint.build().to(self.device)

    @property
    def thresholds(self) -> FloatArray:
        """(K,); 0.5 for every class where none were chosen."""
        chosen = self.checkpoint.thresholds or (DEFAULT_THRESHOLD,) * len(self.checkpoint.classes)
        return np.array(chosen, np.float32)

    def probabilities(self, s1_bcthw: IntArray, s2_bcthw: IntArray) -> FloatArray:
        """Probabilities (B, K, H, W) of int16 patches as stored; H and W multiples of 16.

        Raises ValueError where bands, months or sides do not fit the network.
        """
        with torch.inference_mode():
            inputs = self.checkpoint.normalisation.apply(
                torch.as_tensor(s1_bcthw).to(self.device), torch.as_tensor(s2_bcthw).to(self.device)
            )
            probabilities: FloatArray = self._network(*inputs).sigmoid().cpu().numpy()
        return probabilities

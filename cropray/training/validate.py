"""How good a network is on annotated pixels and known background of the validation split, by class.

These figures choose an epoch and thresholds; they do not estimate the accuracy of a map.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from cropray.errors import DivergedError
from cropray.models.decision import choose_thresholds
from cropray.models.dual_unet3d import MAIN
from cropray.models.losses import LossTerms, total
from cropray.shards.reader import ShardReader
from cropray.training.step import Trainer
from cropray.types import UNLABELLED, Batch, ByteArray, FloatArray

History = list[dict[str, Any]]


def best_entry(history: History) -> dict[str, Any]:
    """The entry of the best epoch: of equal or unknown scores the last."""
    return max(history, key=lambda entry: (epoch_score(entry), entry["epoch"]))


def epoch_score(entry: dict[str, Any]) -> float:
    """The score of an epoch; -1, below every score, if it is unknown."""
    value = entry.get(SCORE)
    return -1.0 if value is None else float(value)


SCORE = "val_mean_average_precision"
"""The figure that selects the best epoch."""

MAX_PIXELS = 1_000_000
"""The most pixels to look at, known or not, spread evenly over the split: bounds memory and time."""


def pixel_stride(n_samples: int, size: int) -> int:
    """Look at every so many-th pixel; odd, so that no column of a patch of even width is favoured."""
    return -(-n_samples * size * size // MAX_PIXELS) | 1


def validate(
    trainer: Trainer, batches: Iterable[Batch], stride: int, head: str = MAIN
) -> tuple[FloatArray, ByteArray, LossTerms]:
    """Scores (N, K) and labels (N,) of known pixels, and the loss over all pixels, of all ranks.

    Every `stride`-th pixel of a sample counts, from one that its id decides: batches and ranks make no
    difference. Labels are class indices or BACKGROUND.
    """
    scores = [np.empty((0, trainer.n_classes(head)), np.float32)]
    labels = [np.empty(0, np.uint8)]
    terms = trainer.no_terms(head)
    for batch in batches:
        logits, part = trainer.logits(batch, head)
        terms = terms + part.exact()
        places = _places(batch, stride)
        label = batch.label_bhw.reshape(-1)[places]
        known = label != UNLABELLED
        # In float32, like predictions: bfloat16 has no number between 0.996 and 1.
        spread_nk = logits.movedim(1, -1).flatten(0, 2)[places].float().sigmoid().cpu().numpy()
        scores.append(spread_nk[known])
        labels.append(label[known])
    mine = np.concatenate(scores), np.concatenate(labels), terms
    all_scores, all_labels, parts = zip(*trainer.of_all_ranks(mine), strict=True)
    return np.concatenate(all_scores), np.concatenate(all_labels), sum(parts, trainer.no_terms(head))


def _places(batch: Batch, stride: int) -> slice | npt.NDArray[np.int64]:
    """Every `stride`-th of the flat pixels of each sample of a batch."""
    if stride == 1:
        return slice(None)
    size = batch.label_bhw[0].size
    starts = [xxhash.xxh3_64_intdigest(name.encode()) % stride for name in batch.rows["sample_id"]]
    return np.concatenate(
        [np.arange(i * size + start, (i + 1) * size, stride) for i, start in enumerate(starts)]
    )


def score(
    scores_nk: FloatArray, label_n: ByteArray, classes: Sequence[str]
) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """Average precision and F1 by class and their means, and the thresholds (K,) of that F1.

    The thresholds are chosen on the same pixels, so the F1 is optimistic. A class without a positive has
    no figures (None) and does not count in the means, which are None if no class has any. Raises
    DivergedError if a score is not a number.
    """
    from sklearn.metrics import average_precision_score, f1_score  # not in every process of a training

    if np.isnan(scores_nk).any():
        raise DivergedError("the network predicts NaN: the training diverged. Lower the learning rate (lr)")
    thresholds = choose_thresholds(scores_nk, label_n)
    by_class: dict[str, dict[str, float] | None] = {}
    for k, name in enumerate(classes):
        positive, scores = label_n == k, scores_nk[:, k]
        by_class[name] = None
        if positive.any():
            by_class[name] = {
                "average_precision": float(average_precision_score(positive, scores)),
                "f1": float(f1_score(positive, scores >= thresholds[k])),
                "threshold": float(thresholds[k]),
                "pixels": int(positive.sum()),
            }
    figures = [figure for figure in by_class.values() if figure is not None]
    means = {
        f"val_mean_{name}": float(np.mean([figure[name] for figure in figures])) if figures else None
        for name in ("average_precision", "f1")
    }
    return {**means, "val_known_pixels": len(label_n), "val_classes": by_class}, thresholds


def validate_epoch(
    trainer: Trainer, reader: ShardReader, classes: Sequence[str], head: str = MAIN
) -> tuple[dict[str, Any], tuple[float, ...]] | None:
    """The figures of a head on its validation split, and the thresholds by class.

    Each rank's `reader` has its own samples. None if no rank has any.
    """
    start = time.perf_counter()
    samples = sum(trainer.of_all_ranks(len(reader.table)))
    if not samples:
        return None
    stride = pixel_stride(samples, reader.metadata.size)
    scores_nk, label_n, terms = validate(trainer, reader.epoch(0), stride, head)
    figures, thresholds = score(scores_nk, label_n, classes)
    losses = {
        "val_loss": total(terms, trainer.recipe.loss).item(),
        "val_class_loss": class_losses(terms, classes),
    }
    seconds = time.perf_counter() - start
    return {**losses, **figures, "val_seconds": seconds}, tuple(float(t) for t in thresholds)


def class_losses(terms: LossTerms, classes: Sequence[str]) -> dict[str, float]:
    """Mean binary cross-entropy of each class over the known pixels."""
    values = (terms.class_sums / terms.known.clamp(min=1)).tolist()
    return dict(zip(classes, values, strict=True))

"""How good a network is on the validation split: by class, on the pixels of which something is known.

Truth is known of annotated pixels and of known background only, so these are figures for choosing
an epoch and thresholds, not estimates of accuracy over the land.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from sklearn.metrics import average_precision_score, f1_score

from cropray.models.decision import choose_thresholds
from cropray.models.dual_unet3d import MAIN
from cropray.models.losses import LossTerms, total
from cropray.shards.reader import ShardReader
from cropray.training.step import Trainer
from cropray.types import UNLABELLED, Batch, ByteArray, FloatArray

History = list[dict[str, Any]]


def best_entry(history: History) -> dict[str, Any]:
    """The entry of the epoch to keep: of equal or unknown scores the last."""
    return max(history, key=lambda entry: (epoch_score(entry), entry["epoch"]))


def epoch_score(entry: dict[str, Any]) -> float:
    """The score of an epoch; -1, below every score, where the validation split says nothing."""
    value = entry.get(SCORE)
    return -1.0 if value is None else float(value)


SCORE = "val_mean_average_precision"
"""The figure by which the best epoch is chosen."""

MAX_PIXELS = 1_000_000
"""Pixels looked at, known or not, evenly spread over the split: bounds memory and time."""


@dataclass(frozen=True)
class KnownPixels:
    """Probabilities (N, K) and labels (N,), class index or BACKGROUND, of known pixels."""

    scores_nk: FloatArray
    label_n: ByteArray


def pixel_stride(n_samples: int, size: int) -> int:
    """Every how many-th pixel to look at; odd, so that no column of a patch of even width is favoured."""
    return -(-n_samples * size * size // MAX_PIXELS) | 1


def validate(
    trainer: Trainer, batches: Iterable[Batch], stride: int, head: str = MAIN
) -> tuple[KnownPixels, LossTerms]:
    """Known pixels among every `stride`-th one of each sample, and the loss over all pixels, of all ranks.

    Which pixels are looked at follows from a sample's id: batches and ranks make no difference.
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
        # In float32, as a prediction is: bfloat16 holds no number between 0.996 and 1.
        spread_nk = logits.movedim(1, -1).flatten(0, 2)[places].float().sigmoid().cpu().numpy()
        scores.append(spread_nk[known])
        labels.append(label[known])
    mine = KnownPixels(np.concatenate(scores), np.concatenate(labels)), terms
    pixels, parts = zip(*trainer.of_all_ranks(mine), strict=True)
    together = KnownPixels(
        np.concatenate([part.scores_nk for part in pixels]), np.concatenate([part.label_n for part in pixels])
    )
    return together, sum(parts, trainer.no_terms(head))


def _places(batch: Batch, stride: int) -> slice | npt.NDArray[np.int64]:
    """Where to look in the flat pixels of a batch."""
    if stride == 1:
        return slice(None)
    size = batch.label_bhw[0].size
    starts = [xxhash.xxh3_64_intdigest(name.encode()) % stride for name in batch.rows["sample_id"]]
    return np.concatenate(
        [np.arange(i * size + start, (i + 1) * size, stride) for i, start in enumerate(starts)]
    )


def score(pixels: KnownPixels, classes: Sequence[str]) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """Average precision by class and their mean, F1 at the thresholds (K,), and these thresholds.

    The thresholds are chosen on the same pixels, so the F1 is that of the best case. A class without
    a positive has no figure (None) and is not in the means; where no class has one, neither have
    these.
    """
    thresholds = choose_thresholds(pixels.scores_nk, pixels.label_n)
    by_class: dict[str, dict[str, float] | None] = {}
    for k, name in enumerate(classes):
        positive, scores = pixels.label_n == k, pixels.scores_nk[:, k]
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
    return {**means, "val_known_pixels": len(pixels.label_n), "val_classes": by_class}, thresholds


def validate_epoch(
    trainer: Trainer, reader: ShardReader, classes: Sequence[str], head: str = MAIN
) -> tuple[dict[str, Any], tuple[float, ...]] | None:
    """The figures of one pass over the validation split of a head, and the thresholds by class.

    Each rank's `reader` has its own samples. None where no rank has any.
    """
    start = time.perf_counter()
    samples = sum(trainer.of_all_ranks(len(reader.table)))
    if not samples:
        return None
    pixels, terms = validate(trainer, reader.epoch(0), pixel_stride(samples, reader.metadata.size), head)
    figures, thresholds = score(pixels, classes)
    losses = {
        "val_loss": total(terms, trainer.recipe.loss).item(),
        "val_class_loss": class_losses(terms, classes),
    }
    seconds = time.perf_counter() - start
    return {**losses, **figures, "val_seconds": seconds}, tuple(float(t) for t in thresholds)


def class_losses(terms: LossTerms, classes: Sequence[str]) -> dict[str, float]:
    """Binary cross-entropy of each class, over the known pixels."""
    values = (terms.class_sums / terms.known.clamp(min=1)).tolist()
    return dict(zip(classes, values, strict=True))

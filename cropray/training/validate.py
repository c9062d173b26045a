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
import torch.distributed as dist
from sklearn.metrics import average_precision_score, f1_score

from cropray.models.decision import choose_thresholds
from cropray.models.losses import total
from cropray.shards.reader import ShardReader
from cropray.training.step import Trainer
from cropray.types import UNLABELLED, Batch, ByteArray, FloatArray

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


def validate(trainer: Trainer, batches: Iterable[Batch], stride: int) -> tuple[KnownPixels, float]:
    """Known pixels among every `stride`-th one, of all ranks, and the loss over all pixels."""
    scores: list[FloatArray] = []
    labels: list[ByteArray] = []
    terms = trainer.no_terms()
    for batch in batches:
        logits, part = trainer.logits(batch)
        terms = terms + part
        label = batch.label_bhw.reshape(-1)[::stride]
        known = label != UNLABELLED
        # In float32, as a prediction is: bfloat16 holds no number between 0.996 and 1.
        spread_nk = logits.movedim(1, -1).flatten(0, 2)[::stride].float().sigmoid().cpu().numpy()
        scores.append(spread_nk[known])
        labels.append(label[known])
    pixels = KnownPixels(np.concatenate(scores), np.concatenate(labels))
    loss = total(trainer.over_ranks(terms), trainer.recipe.loss).item()
    return _gathered(pixels) if trainer.world_size > 1 else pixels, loss


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
    trainer: Trainer, reader: ShardReader, classes: Sequence[str]
) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The figures of one pass over the validation split, and the thresholds by class."""
    start = time.perf_counter()
    pixels, loss = validate(trainer, reader.epoch(0), pixel_stride(len(reader.table), reader.metadata.size))
    figures, thresholds = score(pixels, classes)
    seconds = time.perf_counter() - start
    return {"val_loss": loss, **figures, "val_seconds": seconds}, tuple(float(t) for t in thresholds)


def _gathered(pixels: KnownPixels) -> KnownPixels:
    parts: list[KnownPixels | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, pixels)
    there = [part for part in parts if part is not None]
    return KnownPixels(
        np.concatenate([part.scores_nk for part in there]), np.concatenate([part.label_n for part in there])
    )

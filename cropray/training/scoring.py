"""From confusion matrices of blocks to the tables of an evaluation, by what is known of the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from cropray.training.metrics import (
    Counts,
    Scores,
    block_draws,
    drawn,
    interval,
    macro_f1,
    macro_recall,
    per_class,
    recalls,
)
from cropray.types import BACKGROUND, UNLABELLED, ByteArray, InputError

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

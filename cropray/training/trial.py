"""The record of a sweep's trial, which lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cropray.training.history import History, best_entry
from cropray.training.validate import SCORE

TRIAL = "trial.json"


@dataclass(frozen=True)
class Trial:
    """What a trial tried, and what it reached: the best of its validated epochs."""

    id: str
    values: dict[str, Any]
    epochs: int  # trained
    best_epoch: int
    score: float | None
    stopped: bool  # before its last epoch: it fell behind, failed, or time was up


def judged(identity: str, values: dict[str, Any], history: History, epochs: int) -> Trial:
    """The record of a trial with the history so far, of `epochs` in all."""
    validated = [entry for entry in history if entry.get(SCORE) is not None]
    best = best_entry(validated) if validated else None
    return Trial(
        identity,
        values,
        epochs=history[-1]["epoch"] if history else 0,
        best_epoch=best["epoch"] if best else 0,
        score=best[SCORE] if best else None,
        stopped=not history or history[-1]["epoch"] < epochs,
    )

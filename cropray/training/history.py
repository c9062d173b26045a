"""The history of a training: one object an epoch, its figures by name."""

from __future__ import annotations

from typing import Any

from cropray.training.validate import SCORE

History = list[dict[str, Any]]


def best_entry(history: History) -> dict[str, Any]:
    """The entry of the epoch to keep: of equal or unknown scores the last."""
    return max(history, key=lambda entry: (_score(entry), entry["epoch"]))


def _score(entry: dict[str, Any]) -> float:
    value = entry.get(SCORE)
    return -1.0 if value is None else float(value)

"""The record of a sweep's trial, which lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cropray.training.history import History, best_entry
from cropray.training.validate import SCORE

TRIAL = "trial.json"


@dataclass(frozen=True)
class Trial:
    """What a trial tries, and what it has reached: the best of its validated epochs.

    `end` says how far it came: to its last epoch ("finished"), to where it fell "behind" others, to an
    error ("failed", by `problem`), or to none of them ("open": under way, interrupted, or out of time).
    """

    id: str
    values: dict[str, Any]
    epochs: int = 0  # trained
    best_epoch: int = 0
    score: float | None = None
    end: Literal["open", "finished", "behind", "failed"] = "open"
    problem: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing of it is left to try."""
        return self.end in ("finished", "behind")


def judged(identity: str, values: dict[str, Any], history: History, epochs: int) -> Trial:
    """The record of a trial with the history so far, of `epochs` in all."""
    validated = [entry for entry in history if entry.get(SCORE) is not None]
    best = best_entry(validated) if validated else None
    trained = history[-1]["epoch"] if history else 0
    return Trial(
        identity,
        values,
        epochs=trained,
        best_epoch=best["epoch"] if best else 0,
        score=best[SCORE] if best else None,
        end="finished" if trained == epochs else "open",
    )

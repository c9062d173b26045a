"""What Ray Tune asks for its next trial: one that is not over yet, else a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from cropray.config import Config
from cropray.training.validate import SCORE
from cropray.tuning.space import Trial, Values, propose, trials_of

UNKNOWN = -1.0
"""Below every score: what Tune hears of an epoch of which nothing is known."""


class Search(Searcher):  # type: ignore[misc]  # Ray does not say its type
    """Trials by number; those of `known` that are over are not made again, and count for what comes.

    Everything that a sweep needs to go on stands in the records of its trials. Tune keeps none of it, so
    another command may ask for more trials, or for more at a time.
    """

    def __init__(self, config: Config, known: Sequence[Trial]) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._config = config
        left = {int(trial.id): trial.values for trial in known if not trial.over}
        new = set(range(1, trials_of(config.tune) + 1)) - {int(trial.id) for trial in known}
        self._next: list[tuple[int, Values | None]] = [
            *sorted(left.items()),
            *((number, None) for number in sorted(new)),
        ]
        self._reached = {
            int(trial.id): (trial.values, trial.score)
            for trial in known
            if trial.over and trial.score is not None
        }
        self._scores: dict[str, float] = {}  # the best so far, by Tune's own ids
        self._ended = False
        self.begun: dict[str, Trial] = {}
        """Trials in the order in which they began, by Tune's own ids."""
        self.done = sum(trial.over for trial in known)
        """How many have ended, in whatever way."""
        self.best = max((trial.score for trial in known if trial.score is not None), default=None)
        """The best score so far."""

    @property
    def left(self) -> int:
        """How many are still to begin."""
        return len(self._next)

    def end(self) -> None:
        """Begin none any more."""
        self._ended = True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self._ended or not self._next:
            return str(Searcher.FINISHED)
        number, values = self._next.pop(0)
        if values is None:
            reached = [self._reached[known] for known in sorted(self._reached)]
            values = propose(self._config.tune, self._config.seed, number, reached)
        self.begun[trial_id] = Trial(f"{number:04d}", dict(values))
        return {"id": self.begun[trial_id].id, "values": dict(values)}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        score = self._scores[trial_id] = max(self._scores.get(trial_id, UNKNOWN), result[SCORE])
        if score > UNKNOWN and (self.best is None or score > self.best):
            self.best = score

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        self.done += 1
        if result is None or error:
            return
        self.on_trial_result(trial_id, result)
        if self._scores[trial_id] > UNKNOWN:
            trial = self.begun[trial_id]
            self._reached[int(trial.id)] = (trial.values, self._scores[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records have it all."""

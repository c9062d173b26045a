"""What a sweep searches: the space, checked before anything starts, its trials, and Optuna's search."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import optuna
from ray.tune.search.optuna import OptunaSearch

from cropray.config import Config
from cropray.config.load import updated
from cropray.config.training import Dimension, TuneConfig
from cropray.errors import InputError
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.monitor import ResourceRequest, Resources, check_workers, worker_resources
from cropray.training.validate import SCORE, History, best_entry

BEST = "best_score"
"""The result that the search learns from: the best score of a trial's epochs so far."""
UNKNOWN = -1.0
"""Stands for the score of an epoch without known pixels: below all others."""

_RECORD = "trial.json"


def check_space(config: Config) -> None:
    """Raises InputError, with the key, if a dimension is not a training setting or has invalid values."""
    tune = config.tune
    if not tune.space:
        raise InputError(
            "tune.space is empty: give at least one setting, such as "
            f"--set 'tune.space={{{tune.stage}.lr: {{loguniform: [1.0e-5, 1.0e-2]}}}}'"
        )
    sections = (tune.stage, "model")  # trials use existing shards: what those were made with is fixed
    for key, dimension in tune.space.items():
        if key.split(".")[0] not in sections or "." not in key:
            wanted = " or ".join(f"{section}.…" for section in sections)
            raise InputError(
                f"tune.space has {key}, which is not a setting of {tune.stage}; wanted {wanted}. A sweep "
                "trains on existing shards, and cannot change how they were made"
            )
        if tune.search == "grid" and dimension.choice is None:
            raise InputError(
                f"tune.search is grid, but {key} is a range ({dimension.kind}): give its values as a choice, "
                "or set tune.search to optuna or random"
            )
        for value in dimension.extremes:
            updated(config, {key: value}, "tune.space")


def check_trials(config: Config, have: Resources, most: Resources | None) -> None:
    """Raises InputError, with the arithmetic, if the concurrent trials never have room together.

    Ray has `have` now, and `most` (None if unknown) after adding nodes. If the sweep searches the number of
    workers or GPUs, its extremes count.
    """
    tune = config.tune
    keys = {f"{tune.stage}.workers", f"{tune.stage}.gpus"} & tune.space.keys()
    extremes = [{}, *({key: value} for key in sorted(keys) for value in tune.space[key].extremes)]
    for values in extremes:
        settings = getattr(updated(config, values), tune.stage)
        workers, each = (
            (settings.min_workers, settings.max_workers),
            worker_resources(settings, have, tune.cpus),
        )
        check_workers(tune.stage, ResourceRequest(workers, each, trials=tune.concurrent), most)


def count_trials(tune: TuneConfig) -> int:
    """The number of trials: all combinations of a grid, otherwise `tune.trials`."""
    if tune.search != "grid":
        return tune.trials
    return math.prod(len(dimension.choice or ()) for dimension in tune.space.values())


@dataclass(frozen=True)
class Trial:
    """The record of a trial: the values it tries, and the best of its validated epochs.

    `end` is "finished" (all epochs trained), "pruned" (by the scheduler; formerly "behind"), "diverged" or
    "failed" (both with a `problem`), or "open" (running, interrupted, or out of time).
    """

    id: str
    values: dict[str, Any]
    epochs: int = 0  # trained
    best_epoch: int = 0
    score: float | None = None
    end: Literal["open", "finished", "pruned", "diverged", "failed"] = "open"
    problem: str = ""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.end in ("finished", "pruned", "diverged")

    def after(self, history: History, epochs: int) -> Trial:
        """The record after the epochs in `history`, of `epochs` in all."""
        best = best_entry(history) if history else {}
        score, trained = best.get(SCORE), history[-1]["epoch"] if history else 0
        end: Literal["open", "finished"] = "finished" if trained == epochs else "open"
        return Trial(self.id, self.values, trained, 0 if score is None else best["epoch"], score, end)

    def folder(self, run: Run) -> Folder:
        """Where the trial has its record and the states of its training."""
        return sweep_folder(run).child(f"trials/{self.id}")

    def write(self, run: Run) -> Trial:
        """Write the record, and return it."""
        self.folder(run).write_text(_RECORD, json.dumps(asdict(self)) + "\n")
        return self

    @staticmethod
    def read_all(run: Run) -> list[Trial]:
        """The records of all trials of a sweep, the best first. Raises InputError for a damaged one."""
        folder, trials = sweep_folder(run).child("trials"), []
        for name in folder.names(_RECORD):
            text = folder.read_text(name).replace('"behind"', '"pruned"')
            try:
                trials.append(Trial(**json.loads(text)))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{folder}/{name} is damaged: {error}. Delete the folder of this trial and run the same "
                    "command again: it is tried once more, and the others are kept"
                ) from error
        return sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0), trial.id))


def sweep_folder(run: Run) -> Folder:
    """The folder of the sweep, `tune/<name>`."""
    return run.folder.child(f"tune/{run.config.tune.name}")


class Search(OptunaSearch):  # type: ignore[misc]  # Ray has no types
    """Ray's Optuna search, started from the records of earlier trials.

    Trials that are not over come first, with their values; Optuna learns the scores of those that are. So a
    sweep resumes from its records alone, and the next command may ask for more trials, or run more at a time.
    Each trial is drawn with a seed of its own: a resumed sweep suggests what it would have without a break.

    `numbers` are the trials still to start, none if `closed` is set; `started` are those that this search has
    started. `done` counts all that have ended, and `best` is their best score.
    """

    def __init__(self, config: Config, known: Sequence[Trial]) -> None:
        tune = config.tune
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = optuna.samplers
        self._sampler_type = samplers.TPESampler if tune.search == "optuna" else samplers.RandomSampler
        self._entropy = config.seed
        dimensions = dict(sorted(tune.space.items()))
        by_number = {int(trial.id): trial for trial in known}
        left = sorted(number for number, trial in by_number.items() if not trial.over)
        new = [number for number in range(1, count_trials(tune) + 1) if number not in by_number]
        points = [by_number[number].values for number in left]
        if tune.search == "grid":
            grid = list(product(*(dimension.extremes for dimension in dimensions.values())))
            points += [dict(zip(dimensions, grid[number - 1], strict=True)) for number in new]
        with warnings.catch_warnings():  # of choices that Optuna could not store in a database
            warnings.simplefilter("ignore", UserWarning)
            space = {key: _distribution(dimension) for key, dimension in dimensions.items()}
        super().__init__(space, BEST, "max", points)
        over = [trial for _, trial in sorted(by_number.items()) if trial.over]
        for trial in over:
            self.add_evaluated_point(trial.values, UNKNOWN if trial.score is None else trial.score)
        self.numbers, self.closed, self.done = [*left, *new], False, len(over)
        self.started = list[Trial]()
        self.best = max((trial.score for trial in known if trial.score is not None), default=UNKNOWN)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.closed or not self.numbers:
            return str(self.FINISHED)
        number = self.numbers.pop(0)
        seed = np.random.SeedSequence((self._entropy, number)).generate_state(1)[0]
        self._ot_study.sampler = self._sampler_type(seed=int(seed))
        self.started.append(Trial(f"{number:04d}", super().suggest(trial_id)))
        return {"id": self.started[-1].id, "values": self.started[-1].values}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.done += 1
        self.best = max(self.best, (result or {}).get(BEST, UNKNOWN))
        super().on_trial_complete(trial_id, result, error)


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if dimension.choice is not None:
        return optuna.distributions.CategoricalDistribution(dimension.choice)
    low, high = dimension.extremes
    if dimension.integers is not None:
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=dimension.loguniform is not None)

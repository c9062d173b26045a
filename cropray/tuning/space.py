"""What a sweep asks for, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cropray.config import Config
from cropray.config.load import updated
from cropray.config.training import Dimension, TuneConfig
from cropray.errors import InputError
from cropray.training.validate import SCORE, History, best_entry

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# A sweep trains on shards that are there: what they were made by cannot be searched.
_SEARCHED = ("model",)


def check_space(config: Config) -> None:
    """Raises InputError, naming the key, where a dimension is none of the training's settings, where the
    configuration refuses one of its values, or where the search cannot take it.
    """
    tune = config.tune
    if not tune.space:
        raise InputError(
            "tune.space is empty: name at least one setting, as "
            f"--set 'tune.space={{{tune.stage}.lr: {{loguniform: [1.0e-5, 1.0e-2]}}}}'"
        )
    rooms = (tune.stage, *_SEARCHED)
    for key, dimension in tune.space.items():
        if key.split(".")[0] not in rooms or "." not in key:
            raise InputError(
                f"tune.space has {key}, which is no setting of {tune.stage}; wanted "
                f"{' or '.join(f'{room}.…' for room in rooms)}: shards, and what they were made by, stay"
            )
        if tune.search == "grid" and dimension.choice is None:
            raise InputError(
                f"tune.search is grid, but {key} is a range ({dimension.kind}): list its values as a "
                "choice, or search by optuna or at random"
            )
        for value in dimension.extremes:
            updated(config, {key: value}, "tune.space")


def trials_of(tune: TuneConfig) -> int:
    """How many trials a sweep has: every combination of a grid, else as many as are set."""
    if tune.search != "grid":
        return tune.trials
    return math.prod(len(dimension.choice or ()) for dimension in tune.space.values())


Values = Mapping[str, Any]
"""By dotted key, as the space has them."""


def propose(tune: TuneConfig, seed: int, number: int, reached: Iterable[tuple[Values, float]]) -> Values:
    """The values of the trial `number`, counted from 1.

    The same for the same arguments, however the space is written: a sweep that is taken up proposes what
    it would have proposed. `reached` are values and best scores of trials that are over; `optuna` alone
    asks for them.
    """
    if tune.search == "grid":
        keys = sorted(tune.space)
        combinations = product(*(tune.space[key].extremes for key in keys))
        return dict(zip(keys, next(islice(combinations, number - 1, None)), strict=True))
    import optuna
    from optuna.samplers import RandomSampler, TPESampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    sampler = RandomSampler(seed=own) if tune.search == "random" else TPESampler(seed=own)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    dimensions = dict(sorted(tune.space.items()))
    distributions = {key: _distribution(dimension) for key, dimension in dimensions.items()}
    for values, score in reached:
        drawn = {key: _drawn(dimension, values[key]) for key, dimension in dimensions.items()}
        study.add_trial(optuna.trial.create_trial(params=drawn, distributions=distributions, value=score))
    drawn = study.ask(distributions).params
    return {key: _value(dimension, drawn[key]) for key, dimension in dimensions.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    """As Optuna draws from it: of a choice the index, for its values may be of any kind."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choice is not None:
        return CategoricalDistribution(range(len(dimension.choice)))
    low, high = dimension.extremes
    if dimension.integers is not None:
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=dimension.loguniform is not None)


def _drawn(dimension: Dimension, value: Any) -> Any:
    return value if dimension.choice is None else dimension.choice.index(value)


def _value(dimension: Dimension, drawn: Any) -> Any:
    return drawn if dimension.choice is None else dimension.choice[drawn]


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

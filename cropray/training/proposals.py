"""What a trial of a sweep tries: by the seed, its number, and what earlier trials have reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from cropray.config.tune import Dimension, TuneConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

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

"""What a sweep asks for, checked before anything starts."""

from __future__ import annotations

import math

from cropray.config import Config
from cropray.config.tune import TuneConfig
from cropray.overrides import updated
from cropray.types import InputError

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

"""What a sweep asks for: checked before it starts, proposed alike for the same seed, drawn as it went."""

import io
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from cropray.config import Config
from cropray.config.tune import Dimension, TuneConfig
from cropray.figures.sweep import Axis, sweep_picture
from cropray.overrides import load_config, updated
from cropray.training.driver_tune import _searcher, domains
from cropray.training.space import check_space, trials_of
from cropray.types import InputError

SPACE = {
    "finetune.lr": {"loguniform": [1e-5, 1e-2]},
    "finetune.unlabelled": {"choice": ["ignore", "own_crop"]},
    "model.width": {"choice": [4, 8]},
}


def config(**tune: Any) -> Config:
    return updated(Config(), {"tune": {"space": SPACE, **tune}})


def test_a_space_of_known_settings_is_taken() -> None:
    check_space(config())


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "tune.space is empty"),
        ({"finetune.lrr": {"uniform": [0, 1]}}, r"(?s)in tune\.space .*\.lrr: unknown key; did you"),
        ({"finetune.lr": {"uniform": [-1, 1]}}, r"finetune\.lr: .*got -1\.0"),
        ({"finetune.epochs": {"choice": [4, "many"]}}, r"finetune\.epochs: .*got 'many'"),
        ({"patch.size": {"choice": [32, 64]}}, "shards, and what they were made by, stay"),
        ({"pretrain.lr": {"uniform": [0.1, 1]}}, "no setting of finetune"),
        ({"finetune": {"choice": [1]}}, "no setting of finetune"),
    ],
)
def test_what_cannot_be_searched_is_named(space: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_space(config(space=space))


def test_a_grid_has_no_ranges() -> None:
    with pytest.raises(InputError, match=r"finetune\.lr is a range"):
        check_space(config(search="grid"))


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        ({}, "got none"),
        ({"uniform": [0, 1], "choice": [1]}, "got uniform, choice"),
        ({"uniform": [1, 1]}, r"\[1, 1\] is no range: wanted \[low, high\], low below high$"),
        ({"loguniform": [0, 1e-5]}, r"\[0, 1e-05\] is no range: .* and above 0"),
        ({"uniform": [0.1, float("inf")]}, "finite number"),
        ({"lognormal": [1e-5, 1e-2]}, r"lr\.lognormal: unknown key; did you mean .*loguniform"),
        ({"choice": []}, "at least 1"),
    ],
)
def test_a_dimension_is_one_range_or_one_list(dimension: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config(space={"finetune.lr": dimension})


def test_a_space_can_be_given_on_the_command_line() -> None:
    given = load_config(None, ["tune.space={finetune.lr: {loguniform: [1.0e-5, 1.0e-2]}}"])
    assert given.tune.space["finetune.lr"].extremes == (1e-5, 1e-2)


def test_a_grid_has_every_combination() -> None:
    choices = {"finetune.lr": Dimension(choice=(1e-4, 1e-3, 1e-2)), "model.width": Dimension(choice=(4, 8))}
    assert trials_of(TuneConfig(search="grid", space=choices, trials=99)) == 6
    assert trials_of(TuneConfig(space=choices, trials=99)) == 99


def proposals(order: list[str], seed: int, n: int = 14) -> list[dict[str, Any]]:
    """What a sweep tries if low learning rates are good: each trial is over before the next is proposed."""
    settings = config(space={key: SPACE[key] for key in order}).tune
    searcher = _searcher(settings, seed)
    assert searcher.set_search_properties(None, None, domains(settings))
    found = []
    for i in range(n):
        values = searcher.suggest(str(i))
        score = -abs(np.log10(values["finetune.lr"]) + 4)
        searcher.on_trial_complete(str(i), {"val_mean_average_precision": score})
        found.append(values)
    return found


def test_a_seed_proposes_the_same_trials_however_the_space_is_written() -> None:
    keys = list(SPACE)
    assert proposals(keys, 1) == proposals(keys[::-1], 1)
    assert proposals(keys, 1) != proposals(keys, 2)


def test_proposals_are_within_the_space() -> None:
    for values in proposals(list(SPACE), 0):
        assert 1e-5 <= values["finetune.lr"] <= 1e-2
        assert values["model.width"] in {4, 8}
        updated(config(), values)


def test_whole_numbers_reach_both_ends() -> None:
    drawn = domains(TuneConfig(space={"finetune.epochs": Dimension(integers=(1, 3))}))["finetune.epochs"]
    assert {drawn.sample(random_state=np.random.default_rng(i)) for i in range(60)} == {1, 2, 3}


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_sweep_is_drawn_whatever_it_came_to(n: int) -> None:
    axes = [Axis("finetune.lr", True, ()), Axis("finetune.unlabelled", False, ("ignore", "own_crop"))]
    trials = [
        {"finetune.lr": 10.0**-i, "finetune.unlabelled": "ignore", "score": 0.1 * i, "stopped": i > 1}
        for i in range(n)
    ]
    unjudged = {"finetune.lr": 1.0, "finetune.unlabelled": "ignore", "score": None, "stopped": True}
    picture = matplotlib.image.imread(io.BytesIO(sweep_picture(axes, [*trials, unjudged], "score")))
    assert picture.std() > 0.02

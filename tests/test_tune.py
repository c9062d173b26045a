"""What a sweep asks for: checked before it starts, proposed alike for the same seed, drawn as it went."""

import io
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import matplotlib.image
import numpy as np
import pytest

from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.config.training import Dimension, TuneConfig
from cropray.errors import InputError
from cropray.figures.charts import Axis, sweep_chart
from cropray.training.validate import SCORE
from cropray.tuning.search import Search
from cropray.tuning.space import Trial, check_space, judged, propose, trials_of
from cropray.tuning.sweep import wanting

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
        ({"finetune.lrr": {"uniform": [0, 1]}}, r"(?s)in tune\.space .*Unknown setting finetune\.lrr"),
        ({"finetune.lr": {"uniform": [-1, 1]}}, r"finetune\.lr .*got -1\.0"),
        ({"finetune.epochs": {"choice": [4, "many"]}}, r"finetune\.epochs .*got 'many'"),
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
        ({"uniform": [1, 1]}, r"\[1, 1\] needs low < high$"),
        ({"loguniform": [0, 1e-5]}, r"\[0, 1e-05\] needs low < high and low > 0"),
        ({"uniform": [0.1, float("inf")]}, "finite number"),
        ({"lognormal": [1e-5, 1e-2]}, r"lr\.lognormal\. Did you mean .*loguniform"),
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


def score_of(values: Mapping[str, Any]) -> float:
    """Low learning rates are good."""
    return 1 - 0.1 * abs(math.log10(values["finetune.lr"]) + 4)


def proposals(order: list[str], seed: int, n: int = 14, search: str = "optuna") -> list[Mapping[str, Any]]:
    """What a sweep tries: each trial is over before the next is proposed."""
    settings = config(space={key: SPACE[key] for key in order}, search=search).tune
    found: list[Mapping[str, Any]] = []
    for number in range(1, n + 1):
        found.append(propose(settings, seed, number, [(values, score_of(values)) for values in found]))
    return found


@pytest.mark.parametrize("search", ["optuna", "random"])
def test_a_seed_proposes_the_same_trials_however_the_space_is_written(search: str) -> None:
    keys = list(SPACE)
    assert proposals(keys, 1, search=search) == proposals(keys[::-1], 1, search=search)
    assert proposals(keys, 1, search=search) != proposals(keys, 2, search=search)


def test_proposals_are_within_the_space_and_each_its_own() -> None:
    found = proposals(list(SPACE), 0)
    for values in found:
        assert 1e-5 <= values["finetune.lr"] <= 1e-2
        assert values["model.width"] in {4, 8}
        updated(config(), values)
    assert len({values["finetune.lr"] for values in found}) == len(found)


def test_optuna_goes_by_what_was_reached_and_random_does_not() -> None:
    tried = proposals(list(SPACE), 0, 30)
    settings = config().tune
    toward = [propose(settings, 0, n, [(v, score_of(v)) for v in tried]) for n in range(31, 51)]
    away = [propose(settings, 0, n, [(v, -score_of(v)) for v in tried]) for n in range(31, 51)]
    assert np.mean([score_of(v) for v in toward]) > np.mean([score_of(v) for v in away]) + 0.05
    drawn = config(search="random").tune
    assert propose(drawn, 0, 31, []) == propose(drawn, 0, 31, [(v, score_of(v)) for v in tried])


def test_values_of_a_choice_may_be_of_any_kind() -> None:
    space = {"finetune.workers": {"choice": [1, [1, 2]]}, "finetune.also": {"choice": [[], [{"run": "a"}]]}}
    tried = [propose(TuneConfig.model_validate({"space": space}), 0, n, []) for n in range(1, 15)]
    known = json.loads(json.dumps(tried))  # as the records have them
    settings = TuneConfig.model_validate({"space": space})
    after = propose(settings, 0, 15, [(values, 0.5) for values in known])
    assert all(after[key] in dimension["choice"] for key, dimension in space.items())
    assert {str(values) for values in tried} == {
        str({"finetune.also": also, "finetune.workers": workers})
        for also in space["finetune.also"]["choice"]
        for workers in space["finetune.workers"]["choice"]
    }


def test_whole_numbers_reach_both_ends() -> None:
    settings = TuneConfig(search="random", space={"finetune.epochs": Dimension(integers=(1, 3))})
    assert {propose(settings, 0, n, [])["finetune.epochs"] for n in range(60)} == {1, 2, 3}


def grid() -> Config:
    return config(
        search="grid", space={"finetune.lr": {"choice": [1e-4, 1e-3]}, "model.width": SPACE["model.width"]}
    )


def test_a_grid_tries_every_combination_once() -> None:
    tried = [propose(grid().tune, 0, number, []) for number in range(1, 5)]
    assert {tuple(values.values()) for values in tried} == {(1e-4, 4), (1e-4, 8), (1e-3, 4), (1e-3, 8)}


@pytest.mark.parametrize("search", ["optuna", "random", "grid"])
def test_no_search_begins_more_trials_than_are_to_run_at_a_time(search: str) -> None:
    """As Tune asks: it limits a `Searcher` alone, and passes over others without a word."""
    from ray.tune.search import ConcurrencyLimiter, Searcher

    settings = updated(grid(), {"tune.search": search, "tune.trials": 4})
    mine = Search(settings, [])
    assert isinstance(mine, Searcher)
    limited = ConcurrencyLimiter(mine, 2)
    begun = [limited.suggest(name) for name in "abc"]
    assert [values is not None for values in begun] == [True, True, False]
    limited.on_trial_complete("a", error=True)
    assert limited.suggest("c") is not None
    assert limited.suggest("d") is None


def ended(
    number: int, end: Literal["open", "finished", "behind", "failed"], score: float | None = None
) -> Trial:
    known = propose(config().tune, 0, number, [])
    return Trial(f"{number:04d}", dict(known), epochs=2, best_epoch=1, score=score, end=end)


def test_what_is_left_of_a_sweep_goes_on_by_its_values_before_anything_new() -> None:
    known = [ended(1, "finished", 0.5), ended(2, "failed"), ended(3, "behind", 0.2), ended(5, "open", 0.7)]
    search = Search(config(trials=6), known)
    assert (search.left, search.done, search.best) == (4, 2, 0.7)
    begun = [search.suggest(name) for name in "abcde"]
    assert [trial["id"] for trial in begun[:4]] == ["0002", "0005", "0004", "0006"]
    assert begun[4] == "FINISHED"
    assert [trial["values"] for trial in begun[:2]] == [known[1].values, known[3].values]


def test_a_sweep_that_is_taken_up_proposes_what_it_would_have_proposed() -> None:
    whole, tried = Search(config(trials=14), []), []
    for number in range(14):
        tried.append(whole.suggest(str(number)))
        result = {SCORE: score_of(tried[-1]["values"])}
        whole.on_trial_result(str(number), result | {SCORE: 0.0})
        whole.on_trial_complete(str(number), result)
    known = [
        Trial(trial["id"], trial["values"], score=score_of(trial["values"]), end="finished")
        for trial in tried
    ]
    for n in (3, 13):
        assert Search(config(trials=14), known[:n]).suggest("a") == tried[n]


def test_a_sweep_that_is_to_end_begins_no_trial() -> None:
    search = Search(config(trials=3), [])
    assert search.suggest("a") != "FINISHED"
    search.end()
    assert search.suggest("b") == "FINISHED"


def test_a_finished_sweep_goes_on_where_more_is_asked_or_something_failed() -> None:
    summary = {"trials": 4, "failed": 0, "out_of_time_s": None}
    assert not wanting(summary, TuneConfig(trials=4, concurrent=3, cpus=0.5, budget_s=1))
    assert not wanting(summary, TuneConfig(trials=3))
    assert wanting(summary, TuneConfig(trials=5))
    assert wanting(summary | {"failed": 1}, TuneConfig(trials=4))
    short = summary | {"out_of_time_s": 60.0}
    assert not wanting(short, TuneConfig(trials=9, budget_s=60))
    assert wanting(short, TuneConfig(trials=9, budget_s=61))
    assert wanting(short, TuneConfig(trials=9))


def test_a_trial_is_over_at_its_last_epoch() -> None:
    history = [{"epoch": 1, SCORE: 0.4}, {"epoch": 2, SCORE: 0.3}]
    assert judged("0001", {}, history[:1], 2) == Trial("0001", {}, 1, 1, 0.4, "open")
    assert judged("0001", {}, history, 2) == Trial("0001", {}, 2, 1, 0.4, "finished")
    assert not judged("0001", {}, [], 2).over


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_sweep_is_drawn_whatever_it_came_to(n: int) -> None:
    axes = [Axis("finetune.lr", True, ()), Axis("finetune.unlabelled", False, ("ignore", "own_crop"))]
    trials = [
        {"finetune.lr": 10.0**-i, "finetune.unlabelled": "ignore", "score": 0.1 * i, "stopped": i > 1}
        for i in range(n)
    ]
    unjudged = {"finetune.lr": 1.0, "finetune.unlabelled": "ignore", "score": None, "stopped": True}
    picture = matplotlib.image.imread(io.BytesIO(sweep_chart(axes, [*trials, unjudged], "score")))
    assert picture.std() > 0.02

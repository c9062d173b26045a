"""A sweep: its space, checked before it starts; its suggestions, the same for the same seed; its picture."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
import numpy as np
import pytest
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import ConcurrencyLimiter, Searcher

from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.config.training import Dimension, TuneConfig
from cropray.errors import InputError
from cropray.figures.charts import Axis, sweep_chart
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.validate import SCORE
from cropray.tuning.space import BEST, Search, Trial, check_space, count_trials
from cropray.tuning.sweep import is_incomplete

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
        ({"patch.size": {"choice": [32, 64]}}, "existing shards"),
        ({"pretrain.lr": {"uniform": [0.1, 1]}}, "not a setting of finetune"),
        ({"finetune": {"choice": [1]}}, "not a setting of finetune"),
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
    assert count_trials(TuneConfig(search="grid", space=choices, trials=99)) == 6
    assert count_trials(TuneConfig(space=choices, trials=99)) == 99


def score_of(values: Mapping[str, Any]) -> float:
    """Low learning rates are good."""
    return 1 - 0.1 * abs(math.log10(values.get("finetune.lr", 1e-4)) + 4)


def complete(search: Search, name: str, score: float) -> None:
    search.on_trial_complete(name, {BEST: score, TRAINING_ITERATION: 1})


def swept(settings: Config, known: Sequence[Trial] = ()) -> list[dict[str, Any]]:
    """What a sweep suggests if each trial is over before the next one starts."""
    search, found = Search(settings, known), []
    while search.numbers:
        found.append(search.suggest(str(len(found))))
        complete(search, str(len(found) - 1), score_of(found[-1]["values"]))
    return found


def values_of(settings: Config) -> list[dict[str, Any]]:
    return [suggestion["values"] for suggestion in swept(settings)]


@pytest.mark.parametrize("search", ["optuna", "random"])
def test_a_seed_suggests_the_same_trials_in_whatever_order_the_space_is_written(search: str) -> None:
    forward = config(search=search, trials=14)
    backward = config(search=search, trials=14, space=dict(reversed(SPACE.items())))
    assert swept(forward) == swept(backward)
    assert swept(forward) != swept(updated(forward, {"seed": 1}))


def test_suggestions_are_within_the_space_and_each_its_own() -> None:
    found = values_of(config(trials=14))
    for values in found:
        assert 1e-5 <= values["finetune.lr"] <= 1e-2
        assert values["model.width"] in {4, 8}
        updated(config(), values)
    assert len({values["finetune.lr"] for values in found}) == len(found)


def test_optuna_learns_from_known_scores_and_random_does_not() -> None:
    tried = swept(config(trials=30))

    def after(settings: Config, sign: int) -> float:
        known = [Trial(**t, score=sign * score_of(t["values"]), end="finished") for t in tried]
        more = updated(settings, {"tune.trials": 50})
        return float(np.mean([score_of(found["values"]) for found in swept(more, known)]))

    assert after(config(), 1) > after(config(), -1) + 0.05
    assert after(config(search="random"), 1) == after(config(search="random"), -1)


def test_values_of_a_choice_may_be_of_any_kind() -> None:
    space = {"finetune.workers": {"choice": [1, [1, 2]]}, "finetune.also": {"choice": [[], [{"run": "a"}]]}}
    settings = Config.model_validate({"tune": {"space": space, "trials": 14}})
    tried = json.loads(json.dumps(swept(settings)))  # as the records have them
    known = [Trial(**trial, score=0.5, end="finished") for trial in tried]
    (after,) = swept(updated(settings, {"tune.trials": 15}), known)
    assert all(after["values"][key] in dimension["choice"] for key, dimension in space.items())
    assert {str(trial["values"]) for trial in tried} == {
        str({"finetune.also": also, "finetune.workers": workers})
        for also in space["finetune.also"]["choice"]
        for workers in space["finetune.workers"]["choice"]
    }


def test_integers_reach_both_ends() -> None:
    settings = config(search="random", trials=60, space={"finetune.epochs": {"integers": [1, 3]}})
    assert {values["finetune.epochs"] for values in values_of(settings)} == {1, 2, 3}


def grid() -> Config:
    return config(
        search="grid", space={"finetune.lr": {"choice": [1e-4, 1e-3]}, "model.width": SPACE["model.width"]}
    )


def test_a_grid_tries_every_combination_once() -> None:
    tried = values_of(grid())
    assert len(tried) == 4
    assert {tuple(values.values()) for values in tried} == {(1e-4, 4), (1e-4, 8), (1e-3, 4), (1e-3, 8)}


def test_a_grid_resumes_with_the_combinations_that_are_left() -> None:
    tried = swept(grid())
    known = [Trial(**tried[2], score=0.5, end="finished"), Trial(**tried[1], end="failed")]
    assert swept(grid(), known) == [tried[1], tried[0], tried[3]]


@pytest.mark.parametrize("search", ["optuna", "random", "grid"])
def test_no_more_trials_run_at_a_time_than_are_allowed(search: str) -> None:
    """As Tune asks. It limits only a `Searcher`, and ignores the limit for others."""
    mine = Search(updated(grid(), {"tune.search": search, "tune.trials": 4}), [])
    assert isinstance(mine, Searcher)
    limited = ConcurrencyLimiter(mine, 2)
    started = [limited.suggest(name) for name in "abc"]
    assert [values is not None for values in started] == [True, True, False]
    limited.on_trial_complete("a", error=True)
    assert limited.suggest("c") is not None
    assert limited.suggest("d") is None


def ended(
    number: int, end: Literal["open", "finished", "pruned", "failed"], score: float | None = None
) -> Trial:
    values = swept(config(trials=number))[-1]["values"]
    return Trial(f"{number:04d}", values, epochs=2, best_epoch=1, score=score, end=end)


def test_incomplete_trials_come_first_and_with_their_values() -> None:
    known = [ended(1, "finished", 0.5), ended(2, "failed"), ended(3, "pruned", 0.2), ended(5, "open", 0.7)]
    search = Search(config(trials=6), known)
    assert (len(search.numbers), search.done, search.best) == (4, 2, 0.7)
    started = [search.suggest(name) for name in "abcde"]
    assert [trial["id"] for trial in started[:4]] == ["0002", "0005", "0004", "0006"]
    assert started[4] == "FINISHED"
    assert [trial["values"] for trial in started[:2]] == [known[1].values, known[3].values]


@pytest.mark.parametrize("search", ["optuna", "random"])
def test_a_resumed_sweep_suggests_what_it_would_have_without_a_break(search: str) -> None:
    settings = config(search=search, trials=14)
    tried = swept(settings)
    known = [Trial(**trial, score=score_of(trial["values"]), end="finished") for trial in tried]
    for n in (3, 13):
        assert swept(settings, known[:n]) == tried[n:]


def test_a_closed_search_starts_no_trial() -> None:
    search = Search(config(trials=3), [])
    assert search.suggest("a") != "FINISHED"
    search.closed = True
    assert search.suggest("b") == "FINISHED"


def test_progress_counts_trials_that_ended_and_knows_the_best() -> None:
    search = Search(config(trials=3), [])
    for name in "abc":
        search.suggest(name)
    complete(search, "a", 0.4)
    search.on_trial_complete("b", error=True)
    complete(search, "c", 0.3)
    assert (search.done, search.best) == (3, 0.4)


def test_a_finished_sweep_continues_if_more_is_wanted_or_a_trial_failed() -> None:
    summary = {"trials": 4, "failed": 0, "out_of_time_s": None}
    assert not is_incomplete(summary, TuneConfig(trials=4, concurrent=3, cpus=0.5, budget_s=1))
    assert not is_incomplete(summary, TuneConfig(trials=3))
    assert is_incomplete(summary, TuneConfig(trials=5))
    assert is_incomplete(summary | {"failed": 1}, TuneConfig(trials=4))
    short = summary | {"out_of_time_s": 60.0}
    assert not is_incomplete(short, TuneConfig(trials=9, budget_s=60))
    assert is_incomplete(short, TuneConfig(trials=9, budget_s=61))
    assert is_incomplete(short, TuneConfig(trials=9))


def test_a_trial_is_over_after_its_last_epoch() -> None:
    trial, history = Trial("0001", {}), [{"epoch": 1, SCORE: 0.4}, {"epoch": 2, SCORE: 0.3}]
    assert trial.after(history[:1], 2) == Trial("0001", {}, 1, 1, 0.4, "open")
    assert trial.after(history, 2) == Trial("0001", {}, 2, 1, 0.4, "finished")
    assert not trial.after([], 2).over


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


def test_a_truncated_record_of_a_trial_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path)), Config())
    records = [Trial(f"{number:04d}", {"lr": 1e-3}, 2, 1, 0.5, "finished").write(run) for number in (1, 2)]
    folder = records[1].folder(run)
    (name,) = folder.names()
    folder.write_text(name, folder.read_text(name)[:20])
    with pytest.raises(InputError, match=rf"0002/{name} is damaged.*Delete the folder of this trial"):
        Trial.read_all(run)
    folder.delete(name)
    assert Trial.read_all(run) == records[:1]

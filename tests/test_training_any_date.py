"""One network for any date: what a training shows it, and that it learns from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.figures.charts import EVALUATION
from cropray.models.checkpoint import Checkpoint, save_checkpoint
from cropray.models.inference import Predictor
from cropray.pipeline.import_series import import_series
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.batches import draw_seen, without
from cropray.training.plan import make_plan
from cropray.training.recipe import initial_network
from cropray.training.step import Trainer
from tests.series_tables import long_table, run_in, write
from tests.training_data import make_run, write_split

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = (2, 0.0, 0.1, 0.05)
SETTINGS = {
    "model.kind": "temporal",
    "model.width": 16,
    "finetune": {"any_date": True, "min_months": 2, "batch_size": 20, "epochs": 30, "lr": 0.01, "ema": 0.9},
}


def test_what_a_sample_shows_ends_at_a_uniform_month_with_gaps_at_their_rates() -> None:
    ids = [f"field-{i}" for i in range(6000)]
    seen = draw_seen(ids, 3, 5, 6, *RATES)
    assert seen.shape == (6000, 2, 6)
    last = 6 - np.argmax(seen.any(1)[:, ::-1], axis=1)
    shares = np.bincount(last[seen.any((1, 2))], minlength=7)[2:] / 6000
    assert shares == pytest.approx(np.full(5, 0.2), abs=0.03)
    assert not seen[last == 3][:, :, 3:].any()
    full = seen[last == 6]
    both = full[full.any(2).all(1)]
    assert np.mean(~both[:, :, :5]) == pytest.approx(0.1, abs=0.02)
    assert np.mean(~full.any(2), axis=0) == pytest.approx(np.full(2, 0.05), abs=0.02)
    assert full.any(2).any(1).mean() > 0.999


def test_some_windows_are_whole_and_the_others_end_as_before() -> None:
    ids = [f"field-{i}" for i in range(6000)]
    free, half = draw_seen(ids, 3, 5, 6, 2, 0.0, 0.0, 0.0), draw_seen(ids, 3, 5, 6, 2, 0.5, 0.0, 0.0)
    whole = half.all((1, 2))
    assert whole.mean() == pytest.approx(0.5 + 0.5 * 0.2, abs=0.03)
    np.testing.assert_array_equal(half[~whole], free[~whole])


def test_what_a_sample_shows_depends_on_seed_and_epoch_and_not_on_its_batch() -> None:
    ids = [f"field-{i}" for i in range(50)]
    seen = draw_seen(ids, 3, 5, 6, *RATES)
    np.testing.assert_array_equal(draw_seen(ids[7:9], 3, 5, 6, *RATES), seen[7:9])
    for other in (draw_seen(ids, 3, 6, 6, *RATES), draw_seen(ids, 4, 5, 6, *RATES)):
        assert (other != seen).any()


def test_months_that_are_not_seen_have_no_data_and_the_batch_stays_as_it_was() -> None:
    s1, s2 = torch.ones(2, 2, 3, 1, 1, dtype=torch.int16), torch.ones(2, 9, 3, 1, 1, dtype=torch.int16)
    seen = np.ones((2, 2, 3), np.bool_)
    seen[0, 0, 2] = seen[1, 1, 0] = False
    radar, optical = without(s1, s2, seen)
    assert (optical[0, :, 2] == NODATA).all()
    assert (radar[1, :, 0] == NODATA).all()
    assert int((radar == NODATA).sum() + (optical == NODATA).sum()) == 9 + 2
    assert (s1 == 1).all()
    assert (s2 == 1).all()
    assert radar.dtype == torch.int16


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("series")
    run = run_in(path / "run", **SETTINGS)
    import_series([write(path / "a.parquet", long_table(120))], run)
    return run


def trained(run: Run, *, leave_at: int = 0) -> tuple[Trainer, Checkpoint]:
    """A training by its steps alone, perhaps taken up by another trainer after an epoch."""
    plan = make_plan(run, "finetune")

    def make() -> Trainer:
        torch.manual_seed(plan.recipe.seed)
        network = initial_network(plan.checkpoint.network, plan.recipe.seed)
        steps = plan.steps // plan.recipe.epochs
        return Trainer(network, plan.checkpoint.normalisation, plan.recipe, steps, torch.device("cpu"))

    trainer, reader = make(), plan.train.reader(20, seed=plan.recipe.seed)
    for epoch in range(plan.recipe.epochs):
        if epoch == leave_at > 0:
            state, generator = trainer.state(), torch.get_rng_state()
            trainer = make()
            trainer.load_state(state)
            torch.set_rng_state(generator)
        trainer.train_mode()
        for index, batch in enumerate(reader.epoch(epoch)):
            trainer.step(batch, epoch, index)
    return trainer, replace(plan.checkpoint, weights=trainer.published.state_dict())


def test_one_network_knows_more_at_each_later_date(series: Run) -> None:
    """The two crops differ from May on, the third month of the window."""
    _, checkpoint = trained(series)
    assert (checkpoint.any_date, checkpoint.calendar) == (True, [3, 4, 5, 6])
    assert len(checkpoint.s2_bands) == 9
    reader = make_plan(series, "finetune").val.part(1000, 0, 1)
    assert reader is not None
    batch, predictor = reader.take(range(len(reader.table))), Predictor(checkpoint)
    right = []
    for months in (2, 4):
        found = predictor.probabilities(batch.s1_bcthw[:, :, :months], batch.s2_bcthw[:, :, :months])
        right.append(np.mean(found.argmax(1) == batch.label_bhw))
    assert right[1] > 0.1 + right[0]
    assert right[1] > 0.8
    # Sentinel-1 says nothing of these crops; without Sentinel-2 the network still answers.
    alone = predictor.probabilities(batch.s1_bcthw, np.full_like(batch.s2_bcthw, NODATA))
    assert np.isfinite(alone).all()


def test_one_checkpoint_is_scored_as_of_several_dates_and_elsewhere(series: Run, tmp_path: Path) -> None:
    _, checkpoint = trained(series)
    save_checkpoint(checkpoint, series.folder.child("models/finetune"))
    other = run_in(tmp_path / "other", **SETTINGS, **{"evaluate.model": f"{series.folder}/models/finetune"})
    import_series([write(tmp_path / "b.parquet", long_table(30, seed=1))], other, "test")
    elsewhere = evaluate(other)  # it has no train and no val
    assert (elsewhere["pixels"], "macro_f1/forest" in elsewhere) == (30, False)
    with pytest.raises(InputError, match="2021-04-30 to 2021-06-30"):
        evaluate(run_in(Path(series.folder.uri), **SETTINGS, **{"evaluate.as_of": ["2021-03-31"]}))
    settings = {"evaluate.as_of": ["2021-04-30", "2021-06-30"], "evaluate.bootstrap": 10}
    evaluate(run_in(Path(series.folder.uri), **SETTINGS, **settings))
    result = json.loads(series.folder.read_text(EVALUATION))
    early, late = result["by_as_of"]
    assert [(row["date"], row["months"]) for row in (early, late)] == [("2021-04-30", 2), ("2021-06-30", 4)]
    assert late["macro_f1"] == result["methods"]["network"]["score"]
    assert late["macro_f1"] > 0.1 + early["macro_f1"]
    assert early["n"] == result["pixels"] > 10
    assert 0 <= early["ece"] <= 1
    assert [row["class"] for row in early["per_class"]] == ["wheat", "maize"]
    baselines = {name: row["macro_f1"] for name, row in late["baselines"].items()}
    assert baselines == {name: result["methods"][name]["score"] for name in baselines}
    assert baselines.keys() == {"forest", "logistic", "boosting", "majority"}
    assert late["baselines"]["forest"]["macro_f1"] > 0.1 + early["baselines"]["forest"]["macro_f1"]
    shares = [row["share"] for row in result["decided"]["dates"]]
    assert 0 <= shares[0] <= shares[1] <= 1
    assert result["by_lead"] == []  # points have no calendar
    assert series.folder.exists("evaluation/dates.png")


def test_a_training_taken_up_after_an_epoch_ends_with_the_same_bits(series: Run) -> None:
    one, _ = trained(series)
    two, _ = trained(series, leave_at=5)
    others = two.published.state_dict()
    assert all(torch.equal(x, others[name]) for name, x in one.published.state_dict().items())


@pytest.mark.parametrize(
    ("model", "finetune", "said"),
    [
        ({"kind": "temporal"}, {}, "tell the crop"),
        ({}, {"any_date": True}, r"any_date needs .*as_of"),
        ({"members": 2}, {}, r"members .*temporal"),
    ],
)
def test_what_a_network_cannot_do_is_refused(
    tmp_path: Path, model: dict[str, Any], finetune: dict[str, Any], said: str
) -> None:
    folder = Folder(str(tmp_path))
    write_split(folder, "train", 8)
    run = make_run(folder, **finetune)
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update=model)})
    with pytest.raises(InputError, match=said):
        make_plan(Run(folder, config), "finetune")


def test_more_months_than_the_window_has_are_refused(series: Run) -> None:
    settings = SETTINGS | {"finetune": {"any_date": True, "min_months": 5}}
    with pytest.raises(InputError, match=r"min_months is 5, .* 4 months"):
        make_plan(run_in(Path(series.folder.uri), **settings), "finetune")

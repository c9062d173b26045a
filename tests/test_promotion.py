"""From candidate to champion, in a registry of two models that map a small land."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from cropray.config import Config
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.evaluation.promotion import compare, not_worse, promote
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.run import Run
from cropray.shards.file import fingerprint, shard_uris
from cropray.tracking.connection import open_client, tracking_uri
from cropray.tracking.registry import register_checkpoint, resolve_model
from cropray.tracking.versions import find, list_versions, page, table
from cropray.types import BACKGROUND
from tests.lands import LANDS, ready_run, small_checkpoint
from tests.test_evaluate import expected_map

FAIR, LAZY = (0.5, 0.5), (0.999, 0.999)  # thresholds that map crops, and that map none


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Version 1 maps crops, version 2 none, version 3 as version 1 does; all are evaluated."""
    run = ready_run(str(tmp_path_factory.mktemp("run")), thresholds=FAIR)
    run = with_settings(run, {"evaluate.baselines": False})
    models = {"lazy": LAZY, "equal": (0.5000001, 0.5)}
    for name, thresholds in models.items():
        save_checkpoint(small_checkpoint(thresholds), run.folder.child(f"models/{name}"))
    for number, reference in enumerate(["", "run:models/lazy", "run:models/equal"], start=1):
        assert register_checkpoint(run, reference)["registered"] == f"models:/cropray/{number}"
        result = evaluate(with_settings(run, {"evaluate.model": reference}))
        assert result["versions"] == [f"models:/cropray/{number}"]
    return run


def with_settings(run: Run, settings: dict) -> Run:
    return Run(run.folder, updated(run.config, settings))


def checkpoint_of(run: Run, reference: str) -> tuple:
    return reference, load_checkpoint(resolve_model(reference, run))


def test_the_first_champion_needs_an_evaluation_and_the_next_must_not_be_worse(run: Run) -> None:
    result = promote(run, "models:/cropray/1")
    assert (result["champion"], result["before"]) == ("models:/cropray/1", None)
    assert result["evaluation"]["value"] == find(run, "models:/cropray/1").evaluation["value"]
    with pytest.raises(InputError, match=r"cropray/2 may be worse.*tracking\.promotion_margin.*--force"):
        promote(run, "models:/cropray/2")
    assert find(run, "models:/cropray@champion").number == "1"
    result = promote(run)  # what tracking.alias points to: version 3
    assert (result["champion"], result["before"]) == ("models:/cropray/3", "models:/cropray/1")
    assert result["comparison"]["interval"] == [0, 0]
    assert promote(run) == {"champion": "models:/cropray/3", "before": "models:/cropray/3"}
    record = json.loads(find(run, "models:/cropray@champion").tags["cropray.promotion"])
    assert record["comparison"]["val_shards"] == fingerprint(shard_uris(run.folder, "val"))
    assert record["margin"] == run.config.tracking.promotion_margin


def test_a_forced_promotion_is_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "a. user")
    promote(run, "models:/cropray/2", force="the harvest is in ten days")
    version = find(run, "models:/cropray@champion")
    record = json.loads(version.tags["cropray.promotion"])
    assert version.number == "2"
    assert record["forced"] == "the harvest is in ten days"
    assert record["by"] == "a. user"
    assert record["at"].startswith("20")
    promote(run, "models:/cropray/3")  # better than that one: an interval above 0
    assert find(run, "models:/cropray@champion").number == "3"


def test_the_comparison_is_the_difference_of_both_maps_of_val(run: Run) -> None:
    found = compare(run, checkpoint_of(run, "models:/cropray/1"), checkpoint_of(run, "models:/cropray/2"))
    lands, scores = LANDS["val"], []
    truth = np.concatenate([land.truth_hw[land.seen_hw] for land in lands])
    for thresholds in (FAIR, LAZY):
        mapped = np.concatenate([expected_map(land, thresholds)[land.seen_hw] for land in lands])
        scores.append(f1_score(truth, mapped, labels=[0, 1], average="macro", zero_division=0))
    assert [found["candidate_score"], found["champion_score"]] == pytest.approx(scores)
    assert found["difference"] == pytest.approx(scores[0] - scores[1])
    assert found["pixels"] == truth.size
    # Two blocks can be drawn in three ways: the interval ends at the extremes, each block alone.
    alone = []
    for land in lands:
        parts = [land.truth_hw[land.seen_hw]]
        parts += [expected_map(land, thresholds)[land.seen_hw] for thresholds in (FAIR, LAZY)]
        there = [c for c in (0, 1) if c in parts[0]]
        fair, lazy = (
            f1_score(parts[0], mapped, labels=there, average="macro", zero_division=0) for mapped in parts[1:]
        )
        alone.append(fair - lazy)
    assert found["interval"] == pytest.approx(sorted(alone))
    assert BACKGROUND in truth


def test_the_lower_bound_must_lie_above_the_margin() -> None:
    assert not_worse({"interval": [-0.019, 0.2]}, 0.02)
    assert not not_worse({"interval": [-0.02, 0.2]}, 0.02)
    assert not_worse({"interval": [0.001, 0.2]}, 0.0)
    assert not not_worse({"interval": [0.0, 0.0]}, 0.0)
    assert not not_worse({"interval": None}, 0.5)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"classes": ("maize", "onion")}, "maize, onion.*maize, pea"),
        ({"s1_quantity": "sigma0"}, "the other.*gamma0.*sigma0"),
        ({"s2_bands": ("B02",)}, "the other.*B02, B03.*trained on B02$"),
        ({"window": {"anchor": "as_of", "months": 2}}, "other.*as_of"),
    ],
)
def test_models_of_other_conditions_cannot_be_compared(run: Run, change: dict, facts: str) -> None:
    mine = checkpoint_of(run, "models:/cropray/1")
    with pytest.raises(InputError, match=facts):
        compare(run, mine, ("the other", replace(mine[1], **change)))


def test_a_single_block_or_no_draws_give_no_interval(run: Run) -> None:
    promote(run, "models:/cropray/3", force="a test begins here")
    for settings in ({"rois.split.buffer_m": 100_000}, {"evaluate.bootstrap": 0}):
        with pytest.raises(InputError, match=r"cannot be compared with .*two blocks.*evaluate\.bootstrap"):
            promote(with_settings(run, settings), "models:/cropray/1")


def test_a_run_without_val_cannot_compare(run: Run, tmp_path: Path) -> None:
    tracking = {"tracking.uri": tracking_uri(run)}
    elsewhere = with_settings(ready_run(str(tmp_path)), tracking)
    elsewhere.folder.delete("shards/val/00000.parquet")
    with pytest.raises(InputError, match=r"no shards of the split val.*--force"):
        promote(elsewhere, "models:/cropray/1")


def test_a_model_must_be_evaluated_before_promotion(run: Run) -> None:
    save_checkpoint(small_checkpoint((0.4, 0.4)), run.folder.child("models/new"))
    new = register_checkpoint(run, "run:models/new")["registered"]
    with pytest.raises(InputError, match=rf"{new} was not evaluated yet.*cropray evaluate"):
        promote(run)
    client = open_client(tracking_uri(run))
    client.delete_model_version("cropray", new.rsplit("/", 1)[-1])


def test_no_training_may_make_a_champion() -> None:
    with pytest.raises(ValueError, match="cropray models promote"):
        Config.model_validate({"tracking": {"alias": "champion"}})


def test_the_figures_of_an_evaluation_are_with_the_version(run: Run) -> None:
    version = find(run, "models:/cropray/1")
    result = evaluate(with_settings(run, {"evaluate.model": "models:/cropray/1"}))
    assert version.evaluation["value"] == result["macro_f1/network"]
    assert version.evaluation["blocks"] == result["blocks"] == 2
    client = open_client(tracking_uri(run))
    logged = client.get_logged_model(version.tags["cropray.model_id"])
    figures = {metric.key: metric.value for metric in logged.metrics}
    assert figures["test_macro_f1"] == result["macro_f1/network"]
    assert {"test_f1/maize", "test_support/pea", "test_accuracy"} <= figures.keys()
    card = Path(logged.artifact_location.removeprefix("file://"), "README.md").read_text()
    assert f"macro_f1 {result['macro_f1/network']:.3f}" in card
    assert card == version.card


def test_an_evaluation_belongs_to_these_thresholds_alone(run: Run) -> None:
    one, two = (find(run, f"models:/cropray/{number}") for number in (1, 2))
    assert one.tags["cropray.weights_xxh3"] == two.tags["cropray.weights_xxh3"]
    assert one.evaluation["value"] > two.evaluation["value"]


def test_a_checkpoint_that_is_registered_keeps_its_version(run: Run) -> None:
    before = len(list_versions(run))
    assert register_checkpoint(run, "run:models/lazy")["registered"] == "models:/cropray/2"
    assert len(list_versions(run)) == before
    assert find(run, "models:/cropray@candidate").number == "2"
    with pytest.raises(InputError, match="registered already"):
        register_checkpoint(run, "models:/cropray/2")


def test_a_person_can_read_the_list_and_a_page(run: Run) -> None:
    for number in (2, 3):
        promote(run, f"models:/cropray/{number}", force="a test begins here")
    lines = table(list_versions(run)).splitlines()
    assert lines[0].split()[:2] == ["MODEL", "ALIASES"]
    (first,) = [line for line in lines if line.startswith("models:/cropray/3 ")]
    assert "champion" in first
    assert "macro_f1 0." in first
    shown = page(find(run, "models:/cropray/3"))
    assert "a test begins here" in shown
    assert "## Limits" in shown


def test_without_a_registry_a_list_makes_none(tmp_path: Path) -> None:
    empty = ready_run(str(tmp_path))
    with pytest.raises(InputError, match=r"no registry at sqlite.*--run.*tracking\.uri"):
        list_versions(empty)
    assert not (tmp_path / "mlflow").exists()

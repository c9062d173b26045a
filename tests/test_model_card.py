"""The card of a registered model."""

from dataclasses import replace
from typing import Any

import pytest

from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.models.checkpoint import Checkpoint
from cropray.tracking.documents import LONGEST, description, model_card, with_evaluation
from tests.lands import small_checkpoint

CROPS = (
    "common wheat", "dry pulses, vegetables and flowers", "rape and turnip rape", "other cereals", "maize"
)  # fmt: skip
FACTS: dict[str, Any] = {
    "shards": {"train": {"00000.parquet": "a"}, "val": {"00000.parquet": "b", "00001.parquet": "c"}},
    "parent": {"reference": "models:/cropray-pretrained@candidate", "weights_xxh3": "w0"},
    "config": updated(Config(), {"source.kind": "simulated"}).model_dump(mode="json"),
    "git": None,
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return replace(small_checkpoint((0.25, 0.5)), data_fingerprint="d1")


def test_the_card_has_all_its_parts(checkpoint: Checkpoint) -> None:
    figures = {"average_precision": 0.8125, "f1": 0.75, "pixels": 77}
    history = [
        {"epoch": 1, "val_classes": {"maize": figures | {"f1": 0.1}, "pea": None}},
        {"epoch": 2, "val_classes": {"maize": figures, "pea": None}},
        {"epoch": 3, "train_loss": 0.1},
    ]
    card = model_card("cropray", replace(checkpoint, epoch=2), FACTS, history)
    for heading in ("Intended use", "Input and output", "Training data", "Measured", "Limits", "Licence"):
        assert f"\n## {heading}" in card
    assert "maize 0.25, pea 0.50" in card
    assert "| maize | 0.812 | 0.750 | 77 |" in card
    assert "Started from models:/cropray-pretrained@candidate (weights w0)" in card
    assert "simulated world" in card
    assert "Weights: whoever trained them owns them and says here how they may be used" in card
    assert "(1 shard of train, 2 shards of val)" in card
    assert "commit unknown: no checkout, and CROPRAY_GIT_COMMIT" in card
    git = {"commit": "0123456789abcdef", "dirty": True}
    assert "commit 0123456789ab with changes" in model_card("cropray", checkpoint, FACTS | {"git": git}, [])
    assert "Not yet" in card


def test_the_card_shows_how_to_ask_for_what_is_sure_if_the_model_knows_it(checkpoint: Checkpoint) -> None:
    assert '"output": "sure"' not in model_card("cropray", checkpoint, FACTS, [])
    settled = replace(checkpoint, quantiles=(0.1, 0.2, None), temperature=0.5)
    card = model_card("cropray", settled, FACTS, [])
    assert '"output": "sure"' in card
    assert "calibrated on the known pixels of val" in card


@pytest.mark.parametrize(
    ("window", "sentence"),
    [
        (
            {"anchor": "harvest", "lead_months": 1},
            "last month ends 1 month before the harvest starts.",
        ),
        (
            {"anchor": "harvest", "lead_months": 2},
            "last month ends 2 months before the harvest starts.",
        ),
        ({"anchor": "harvest", "lead_months": 0}, "last month ends when the harvest starts."),
        ({"anchor": "as_of", "lead_months": 1}, "last month ends on the as-of date."),
    ],
)
def test_the_card_says_which_months_are_seen(
    checkpoint: Checkpoint, window: dict[str, Any], sentence: str
) -> None:
    assert sentence in model_card("cropray", replace(checkpoint, window=window), FACTS, [])


@pytest.mark.parametrize(
    ("periods", "years"),
    [
        ((("2021-11-01", "2021-12-01"), ("2021-12-01", "2022-01-01")), "2021"),
        ((("2021-12-01", "2022-01-01"), ("2022-01-01", "2022-02-01")), "2021-2022"),
    ],
)
def test_the_notice_of_copernicus_has_the_years_of_the_imagery(
    checkpoint: Checkpoint, periods: tuple[tuple[str, str], ...], years: str
) -> None:
    facts = FACTS | {"config": None}
    card = model_card("cropray", replace(checkpoint, periods=periods), facts, [])
    assert f"Contains modified Copernicus Sentinel data [{years}]:" in card


def test_the_licence_is_that_of_the_data_that_the_run_used(checkpoint: Checkpoint) -> None:
    def licence(config: Config) -> str:
        facts = FACTS | {"config": config.model_dump(mode="json")}
        return model_card("cropray", checkpoint, facts, []).split("## Licences")[1]

    europe = licence(load_config("configs/europe.yaml", ()))
    assert "modified Copernicus Sentinel data [year unknown here]" in europe
    assert "EUCROPMAP" in europe
    assert "CC BY 4.0" in europe
    assert "Parcels" not in europe
    own = licence(updated(Config(classes=("maize",)), {"source.kind": "stac"}))
    assert "Copernicus" in own
    assert "Parcels" in own
    assert "EUCROPMAP" not in own


def test_scores_fill_their_section_of_the_card_and_can_be_replaced(checkpoint: Checkpoint) -> None:
    def result(f1: float) -> dict[str, Any]:
        rows = [{"class": name, "recall": 0.5, "f1": f1, "support": 9} for name in checkpoint.classes]
        network = {"score": f1, "interval": [f1 - 0.1, f1 + 0.1], "per_class": rows}
        methods = {"network": network, "forest": {"score": 0.25}}
        return {"score": "macro_f1", "scope": "truth", "blocks": 7, "pixels": 18, "methods": methods}

    card = model_card("cropray", checkpoint, FACTS, [])
    once = with_evaluation(card, result(0.625))
    assert "macro_f1 0.625 (95 % interval 0.525 to 0.725) over 7 independent blocks" in once
    assert "| pea | 0.500 | 0.625 | 9 |" in once
    assert "forest 0.250" in once
    assert "Not yet" not in once
    assert with_evaluation(with_evaluation(card, result(0.1)), result(0.625)) == once
    assert once.split("## Limits")[1] == card.split("## Limits")[1]


def test_a_description_fits_the_database(checkpoint: Checkpoint) -> None:
    many = replace(checkpoint, classes=CROPS * 20, thresholds=(0.5,) * 100)
    card = model_card("cropray", many, FACTS, [])
    assert len(card) > LONGEST
    assert len(description(card)) <= LONGEST
    assert description(card).endswith("README.md of the model.\n")
    assert description("short") == "short"

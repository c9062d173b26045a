"""Figures by date: when land is decided, leads before the harvest, baselines that see part of a season."""

from datetime import date
from typing import Any

import numpy as np
import pytest

from cropray.config.training import EvaluateConfig
from cropray.evaluation.baselines import fit_baselines
from cropray.evaluation.by_date import DecidedLand, by_lead
from cropray.evaluation.mosaics import plan_tiles, read_tile
from cropray.shards.reader import ShardReader
from cropray.types import BACKGROUND, UNLABELLED, Roi
from tests.lands import MONTHS, ready_run

DATES = ("2022-04-30", "2022-05-31", "2022-06-30")


def decided(maps: list[list[int]], confidences: list[list[float]], truth: list[int]) -> dict[str, Any]:
    """The table of one tile (1, W) of class 0, 1 or none, by date."""
    land = DecidedLand(DATES, 0.8)
    for shown, values in zip(maps, confidences, strict=True):
        map_hw = np.array([shown], np.uint8)
        values_khw = np.zeros((2, 1, len(shown)), np.float32)
        for column, (label, value) in enumerate(zip(shown, values, strict=True)):
            if label == BACKGROUND:
                values_khw[0, 0, column] = 1 - value
            else:
                values_khw[label, 0, column] = value
        land.add(np.array([truth], np.uint8), values_khw, map_hw)
    found = land.table()
    assert found is not None
    return found


def test_land_is_decided_when_its_class_stays_to_the_end_with_confidence() -> None:
    # From the first date on; from the second; never, as the last is unsure; changed its class; unknown truth.
    maps = [[0, 0, 1, 1, 0], [0, BACKGROUND, 1, 0, 0], [0, BACKGROUND, 1, 0, 0]]
    confidences = [[0.9, 0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.7, 0.9], [0.85, 0.9, 0.5, 0.9, 0.9]]
    found = decided(maps, confidences, [0, BACKGROUND, 1, 1, UNLABELLED])
    assert [row["share"] for row in found["dates"]] == [0.25, 0.5, 0.75]
    assert [row["accuracy"] for row in found["dates"]] == [1.0, 1.0, pytest.approx(2 / 3)]
    assert DecidedLand(DATES, 0.8).table() is None


def roi(crop: str, harvest: date | None) -> Roi:
    return Roi(crop, crop, "", "", "", "test", (0, 0, 1, 1), "EPSG:32632", harvest_start=harvest)


def test_leads_are_whole_months_before_each_crops_own_harvest() -> None:
    rois = [roi("barley", date(2021, 7, 13)), roi("maize", date(2021, 9, 20)), roi("pea", None)]
    rows = [
        {
            "date": day,
            "per_class": [
                {"class": crop, "f1": score + number / 10}
                for crop, score in (("barley", 0.1), ("maize", 0.2), ("pea", 0.3))
            ],
        }
        for number, day in enumerate(("2022-05-31", "2022-06-12", "2022-06-30"))
    ]
    table = {row["months"]: row["per_class"] for row in by_lead(rows, rois)}
    # Barley: 13 July less a month is 13 June, so 12 June is one month ahead and 30 June none.
    assert table[0] == {"barley": pytest.approx(0.3)}
    assert table[1] == {"barley": pytest.approx(0.2)}
    assert table[2] == {"maize": pytest.approx(0.4)}
    assert table[3] == {"maize": pytest.approx(0.3)}  # of 31 May and 12 June the later one
    assert by_lead(rows, [roi("pea", None)]) == []


def test_a_baseline_of_a_date_sees_the_months_before_it_alone(tmp_path: Any) -> None:
    run = ready_run(str(tmp_path))
    uris = {name: [run.folder.child(f"shards/{name}/00000.parquet").uri] for name in ("train", "val", "test")}
    settings = EvaluateConfig(forest_trees=10, forest_pixels=2000)
    fitted, about = fit_baselines(
        uris["train"], uris["val"], settings, months=[1, MONTHS], unlabelled="ignore", seed=0
    )
    assert fitted.keys() == {"forest", "logistic", "boosting", "majority"}
    assert about["settings"]["forest"]["min_samples_leaf"] in (1, 5)
    reader = ShardReader(uris["test"], batch_size=4, shuffle=False)
    tile = read_tile(reader, plan_tiles(reader, 16)[0])
    later = tile.s2_hull_cthw.copy()
    tile.s2_hull_cthw[:, 1:] = 0
    for name, versions in fitted.items():
        before = versions[1].probabilities(tile)
        tile.s2_hull_cthw[:, 1:] = later[:, 1:]
        np.testing.assert_array_equal(versions[1].probabilities(tile), before)
        right = versions[MONTHS].probabilities(tile).argmax(0) == tile.truth_hw
        crops = tile.seen_hw & (tile.truth_hw != BACKGROUND)
        assert right[crops].mean() > (0.3 if name == "majority" else 0.95)
        tile.s2_hull_cthw[:, 1:] = 0


def test_baselines_are_those_that_are_wanted() -> None:
    assert EvaluateConfig(baselines=False).wanted_baselines == ()
    assert EvaluateConfig(baselines=("boosting",)).wanted_baselines == ("boosting",)
    assert len(EvaluateConfig().wanted_baselines) == 4

"""Evaluation on whole ROIs of several sizes, in a small land whose truth is known."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from cropray.bands import NODATA
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.evaluation.classifiers import Network, grouped, scored, scored_at
from cropray.evaluation.evaluate import evaluate
from cropray.evaluation.mosaics import block_numbers, plan_tiles, read_tile
from cropray.figures.charts import EVALUATION
from cropray.grid import Grid, Window
from cropray.maps.tiles import PredictionSettings, predict_tile
from cropray.models.blending import blended, patches_over
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.models.inference import Predictor
from cropray.run import Run
from cropray.shards.reader import ShardReader
from cropray.types import BACKGROUND, UNLABELLED, Batch, Composite, CompositeRecipe, ImageRequest
from tests.lands import LANDS, PERIODS, SIZE, Land, beside_others, ready_run, small_checkpoint


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = ready_run(str(tmp_path_factory.mktemp("run")))
    evaluate(run)
    return run


def result_of(run: Run) -> dict:
    return json.loads(run.folder.read_text(EVALUATION))


class LandSource:
    """The imagery of a land, as that of any source. Nothing lies beyond it."""

    def __init__(self, land: Land) -> None:
        self.land = land

    def identity(self) -> dict[str, str]:
        return {"kind": "test", "s1_quantity": "gamma0"}

    def composite(self, request: ImageRequest) -> Composite:
        row = round((request.extent.y0 - request.grid.y0) / 10)
        col = round((request.grid.x0 - request.extent.x0) / 10)
        assert min(row, col) >= 0
        part = (slice(None), slice(None), *Window(row, col, *request.grid.shape).slices)
        s1, s2 = self.land.s1_cthw[part].swapaxes(0, 1), self.land.s2_cthw[part].swapaxes(0, 1)
        seen = s2[:, 0] != NODATA, s1[:, 0] != NODATA
        return Composite(request.grid, PERIODS, (s2 / 1e4).astype("f4"), (s1 / 1e2).astype("f4"), *seen)


def expected_map(land: Land, thresholds: tuple[float, ...]) -> np.ndarray:
    """What a prediction shows, in tiles of another size than those of the evaluation."""
    grid = Grid("EPSG:32632", 500_000, 5_000_000, 10, *land.truth_hw.shape)
    predictor = Predictor(small_checkpoint(thresholds))
    settings = PredictionSettings(PERIODS, date(2022, 6, 1), CompositeRecipe(), size=SIZE, overlap=16)
    shown = np.zeros(grid.shape, np.uint8)
    for tile in grid.blocks(40):
        wanted = np.ones((tile.height, tile.width), bool)
        made = predict_tile(tile, wanted, grid, LandSource(land), predictor, settings)
        shown[tile.slices] = made.class_hw
    return shown


def test_a_tile_is_the_land_that_its_patches_were_cut_from(evaluated: Run) -> None:
    reader = ShardReader([evaluated.folder.child("shards/test/00000.parquet").uri], batch_size=4)
    lands = {land.roi.roi_id: land for land in LANDS["test"]}
    for plan in plan_tiles(reader, 16):
        land, tile = lands[plan.roi_id], read_tile(reader, plan)
        np.testing.assert_array_equal(tile.label_hw, land.label_hw)
        np.testing.assert_array_equal(tile.truth_hw, land.truth_hw)
        np.testing.assert_array_equal(tile.s1_cthw, land.s1_cthw)
        np.testing.assert_array_equal(tile.s2_cthw, land.s2_cthw)


@pytest.mark.parametrize("size", [20, 33, 64])
def test_smaller_tiles_show_the_same_probabilities(evaluated: Run, size: int) -> None:
    reader = ShardReader([evaluated.folder.child("shards/test/00000.parquet").uri], batch_size=4)
    network = Network(small_checkpoint(None))
    (whole_plan,) = [plan for plan in plan_tiles(reader, 16) if plan.roi_id == "test-0"]
    whole = network.probabilities(read_tile(reader, whole_plan))
    parts = [plan for plan in plan_tiles(reader, 16, size) if plan.roi_id == "test-0"]
    assert len(parts) > 1
    seen = np.zeros(whole.shape[1:], int)
    corner = iter((r, c) for r in range(0, 71, size) for c in range(0, 45, size))
    for plan, (row, col) in zip(parts, corner, strict=True):
        tile = network.probabilities(read_tile(reader, plan))
        here = slice(row, row + tile.shape[1]), slice(col, col + tile.shape[2])
        np.testing.assert_allclose(tile, whole[:, *here], rtol=1e-5)
        seen[here] += 1
    assert (seen == 1).all()


def test_tiles_that_are_scored_together_have_the_scores_of_each_alone(evaluated: Run) -> None:
    reader = ShardReader([evaluated.folder.child("shards/test/00000.parquet").uri], batch_size=4)
    plans = plan_tiles(reader, 16, 33)
    tiles, network = [read_tile(reader, plan) for plan in plans], Network(small_checkpoint(None))
    assert len(tiles) > 3
    for together, tile in zip(scored(network, tiles), tiles, strict=True):
        np.testing.assert_allclose(together, network.probabilities(tile), rtol=1e-5)
    seen = [tile.seen_hw for tile in tiles]
    for together, tile in zip(scored_at(network, tiles, seen), tiles, strict=True):
        np.testing.assert_allclose(together, network.probabilities_at(tile, tile.seen_hw), rtol=1e-5)
    patch, points = replace(plans[0], hull=(64, 64)), [replace(plans[0], hull=(1, 1))] * 5000
    assert [len(group) for group in grouped([patch, *points])] == [1, 4096, 904]


def test_edges_that_are_not_stored_are_no_input_of_the_network(evaluated: Run) -> None:
    uris = [evaluated.folder.child("shards/test/00000.parquet").uri]
    last = max(ShardReader(uris, batch_size=4).table["col"].to_pylist())
    assert last > 0
    reader = ShardReader(uris, batch_size=4, keep=lambda table: table["col"].to_numpy() < last)
    (plan,) = [plan for plan in plan_tiles(reader, 16) if plan.roi_id == "test-0"]
    stored = Window.around(plan.stored)
    for patch in plan.patches:
        assert patch.shared(stored) == patch
    tile = read_tile(reader, plan)
    inside = np.isfinite(Network(small_checkpoint(None)).probabilities(tile)).all(axis=0)
    assert inside[:, : stored.right].all()
    assert (tile.label_hw[:, stored.right :] == UNLABELLED).all()


def test_the_network_is_scored_on_every_pixel_of_the_map_once(evaluated: Run) -> None:
    result = result_of(evaluated)
    lands = LANDS["test"]
    truth = np.concatenate([land.truth_hw[land.seen_hw] for land in lands])
    predicted = np.concatenate([expected_map(land, (0.5, 0.5))[land.seen_hw] for land in lands])
    row = result["methods"]["network"]
    assert result["scope"] == "truth"
    assert result["pixels"] == truth.size == 71 * 45 + 32 * 32 - 2 * 2 * 9  # but those never seen
    np.testing.assert_array_equal(
        row["confusion"], confusion_matrix(truth, predicted, labels=[0, 1, BACKGROUND])
    )
    there = [c for c in (0, 1) if c in truth or c in predicted]
    assert row["score"] == pytest.approx(f1_score(truth, predicted, labels=there, average="macro"))
    assert (result["regions"], result["blocks"]) == (2, 2)


def test_neighbouring_regions_are_one_block() -> None:
    def grid(x0: float, crs: str = "EPSG:32632") -> Grid:
        return Grid(crs, x0, 5_000_000, 10, 64, 64)

    grids = {
        "a": grid(500_000),
        "a, another season": grid(500_000),
        "near": grid(501_000),
        "far": grid(510_000),
    }
    block = block_numbers(grids, buffer_m=1000)
    assert block["a"] == block["a, another season"] == block["near"] != block["far"]
    assert len(set(block_numbers(grids, buffer_m=100).values())) == 3
    # On the border of two zones a place has coordinates in both.
    border = Grid.covering((12.0, 45.0, 12.005, 45.005), "EPSG:4326", crs="EPSG:32633")
    same = Grid.covering((12.0, 45.0, 12.005, 45.005), "EPSG:4326", crs="EPSG:32632")
    assert set(block_numbers({"one": border, "other": same}, 100).values()) == {0}


def test_regions_that_overlap_have_no_interval_of_their_own(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), buffer_m=10_000)
    evaluate(run)
    result = result_of(run)
    assert (result["regions"], result["blocks"]) == (2, 1)
    assert result["methods"]["network"]["interval"] is None


def test_baselines_are_scored_on_the_same_pixels(evaluated: Run) -> None:
    result = result_of(evaluated)
    totals = {name: np.sum(row["confusion"]) for name, row in result["methods"].items()}
    names = ("network", "forest", "logistic", "boosting", "majority")
    assert totals == dict.fromkeys(names, result["pixels"])
    assert result["baselines"]["settings"].keys() == {"forest", "logistic", "boosting"}
    # The land is made so that single pixels tell the classes apart.
    assert result["methods"]["forest"]["score"] > 0.97
    assert result["methods"]["majority"]["score"] < 0.4
    model, forest = result["methods"]["network"], result["methods"]["forest"]
    difference = result["differences"]["forest"]
    assert difference["score"] == pytest.approx(model["score"] - forest["score"])
    low, high = difference["interval"]
    assert low <= difference["score"] <= high
    assert result["thresholds"]["network"] == [0.5, 0.5]
    assert result["baselines"]["labelled_pixels"].keys() == {"maize", "pea", "none"}


def test_probabilities_and_doubt_are_measured_on_the_same_pixels(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), thresholds=None)
    folder = run.folder.child("models/finetune")
    recipe = {"calibration": "bias", "threshold_rule": "common"}
    save_checkpoint(replace(load_checkpoint(folder), recipe=recipe), folder)
    evaluate(run)
    result = result_of(run)
    assert result["calibration"]["ece"]["after"] < result["calibration"]["ece"]["before"]
    assert sum(result["calibration"]["curve"]["after"]["pixels"]) == result["pixels"]
    assert [row["class"] for row in result["doubt"]["per_class"]] == ["maize", "pea", "none"]
    assert sum(row["pixels"] for row in result["doubt"]["per_class"]) == result["pixels"]
    assert result["kept"][0]["accuracy"] == pytest.approx(result["methods"]["network"]["accuracy"])
    assert len(set(result["thresholds"]["forest"])) == 1  # by the same rule


def test_pictures_are_written(evaluated: Run) -> None:
    names = evaluated.folder.child("evaluation").names(".png")
    assert names == ["calibration.png", "confusion.png", "rois/test-0.png", "rois/test-1.png", "scores.png"]
    assert result_of(evaluated)["pictures"] == ["rois/test-0.png", "rois/test-1.png"]


def test_the_test_split_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, taken = ready_run(str(tmp_path), thresholds=None), Counter[str]()
    take = ShardReader.take

    def counted(reader: ShardReader, rows: Sequence[int]) -> Batch:
        batch = take(reader, rows)
        taken.update(str(name) for name in batch.rows["sample_id"])
        return batch

    monkeypatch.setattr(ShardReader, "take", counted)
    evaluate(run)
    assert {name.split("-")[0] for name in taken} == {"val", "test"}
    assert set(taken.values()) == {1}


def test_a_second_evaluation_is_reused(evaluated: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = evaluated.folder.local(EVALUATION).stat().st_mtime_ns
    assert evaluate(evaluated)["macro_f1/forest"] > 0.97
    assert "reused" in capsys.readouterr().err
    assert evaluated.folder.local(EVALUATION).stat().st_mtime_ns == before


def test_another_model_or_other_shards_are_evaluated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready_run(str(tmp_path))
    first = evaluate(run)
    folder = run.folder.child("models/finetune")
    checkpoint = load_checkpoint(folder)
    negated = {name: -x for name, x in checkpoint.weights.items() if name.startswith("final_conv")}
    save_checkpoint(replace(checkpoint, weights=checkpoint.weights | negated), folder)
    second = evaluate(run)
    assert "evaluate: runs again: model changed" in capsys.readouterr().err
    assert second["macro_f1/network"] != first["macro_f1/network"]
    assert second["macro_f1/forest"] == first["macro_f1/forest"]
    run.folder.delete_folder("shards/test")
    with pytest.raises(InputError, match="no shards of the split test"):
        evaluate(run)
    assert "evaluate: runs again: shards changed" in capsys.readouterr().err


def test_an_auxiliary_head_scores_as_it_does_alone(evaluated: Run, tmp_path: Path) -> None:
    run = ready_run(str(tmp_path))
    save_checkpoint(beside_others(small_checkpoint((0.5, 0.5)), "crops"), run.folder.child("models/finetune"))
    with pytest.raises(InputError, match="of another class list: forest"):
        evaluate(run)
    evaluate(Run(run.folder, updated(run.config, {"evaluate.head": "crops"})))
    alone, beside = (result_of(r)["methods"]["network"] for r in (evaluated, run))
    assert alone["confusion"] == beside["confusion"]


def test_thresholds_are_chosen_on_val_where_the_model_has_none(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), thresholds=None)
    evaluate(run)
    result = result_of(run)
    scores, labels = [], []
    for land in LANDS["val"]:
        predictor, shape = Predictor(small_checkpoint(None)), land.truth_hw.shape
        patches = patches_over(Window(0, 0, *shape), shape, SIZE, 16)
        blended_khw = blended(predictor, land.s1_cthw, land.s2_cthw, patches, 16)
        known = (land.label_hw != UNLABELLED) & land.seen_hw
        scores.append(blended_khw[:, known].T)
        labels.append(land.label_hw[known])
    score_nk, label_n = np.concatenate(scores), np.concatenate(labels)
    for k, threshold in enumerate(result["thresholds"]["network"]):
        best = max(
            f1_score(label_n == k, score_nk[:, k] >= t)
            for t in np.quantile(score_nk[:, k], np.linspace(0, 1, 200))
        )
        assert f1_score(label_n == k, score_nk[:, k] >= threshold) >= best - 0.01
    assert result["thresholds_chosen_on"] == "val"


def test_without_a_val_split_thresholds_are_defaults_or_those_of_the_checkpoint(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), thresholds=(0.25, 0.75))
    run.folder.delete("shards/val/00000.parquet")
    evaluate(run)
    result = result_of(run)
    assert result["thresholds"] == {
        "network": [0.25, 0.75],
        **{name: [0.5, 0.5] for name in ("forest", "logistic", "boosting", "majority")},
    }
    assert "no val split: 0.5" in result["thresholds_chosen_on"]


def test_partly_labelled_land_has_recall_and_no_precision(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), with_truth=False)
    evaluate(run)
    result = result_of(run)
    assert result["scope"] == "annotated"
    assert result["score"] == "macro_recall"
    assert '"precision"' not in json.dumps(result)
    annotated = sum(int(((land.label_hw < 2) & land.seen_hw).sum()) for land in LANDS["test"])
    for row in result["methods"].values():
        assert np.sum(row["confusion"]) == annotated == result["pixels"]
        assert np.shape(row["confusion"]) == (2, 3)
    # The majority is mapped everywhere: at worst the other land is something else, at best all of it is it.
    everywhere = sum(int(land.seen_hw.sum()) for land in LANDS["test"])
    found = [row["precision_bounds"] for row in result["methods"]["majority"]["per_class"]]
    (k,) = (k for k, bounds in enumerate(found) if bounds is not None)
    own, other = (
        sum(int(((land.label_hw == c) & land.seen_hw).sum()) for land in LANDS["test"]) for c in (k, 1 - k)
    )
    assert found[k] == pytest.approx([own / everywhere, 1 - other / everywhere])


def test_a_province_left_out_is_scored_beside_the_blocks_of_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready_run(str(tmp_path), provinces={"train": "Gilan", "val": "Gilan", "test": "Fars"})
    evaluate(run)
    found = result_of(run)["protocol"]
    assert (found["left_out"], found["regions"]) == ("region", {"train": ["Gilan"], "test": ["Fars"]})
    truth = np.concatenate([land.truth_hw[land.seen_hw] for land in LANDS["val"]])
    shown = np.concatenate([expected_map(land, (0.5, 0.5))[land.seen_hw] for land in LANDS["val"]])
    by_hand = f1_score(truth, shown, labels=[0, 1], average="macro")
    assert found["val_blocks"]["score"] == pytest.approx(by_hand)
    assert "in Fars" in capsys.readouterr().err


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path))
    other = replace(small_checkpoint(None), classes=("maize", "onion"))
    save_checkpoint(other, run.folder.child("models/finetune"))
    with pytest.raises(InputError, match=r"maize, onion.*maize, pea"):
        evaluate(run)


def test_a_model_of_another_backscatter_is_refused(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path))
    save_checkpoint(
        replace(small_checkpoint(None), s1_quantity="sigma0"), run.folder.child("models/finetune")
    )
    with pytest.raises(InputError, match=r"test split has gamma0 .* the model was trained on sigma0"):
        evaluate(run)


def test_a_run_without_test_rois_is_an_error(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path))
    run.folder.delete("shards/test/00000.parquet")
    with pytest.raises(InputError, match=r"rois\.split\.test"):
        evaluate(run)

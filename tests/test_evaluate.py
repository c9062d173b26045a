"""Evaluation on whole ROIs of several sizes, in a small land whose truth is known."""

import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from cropray.bands import NODATA
from cropray.config import Config, EvaluateConfig, PatchConfig
from cropray.grid import Grid
from cropray.models.checkpoint import Checkpoint, save_checkpoint
from cropray.models.decision import decide
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.normalisation import FixedNormalisation
from cropray.models.predictor import Predictor
from cropray.run import Run
from cropray.shards.patching import plan_windows
from cropray.shards.reader import ShardReader
from cropray.shards.schema import ShardMetadata, encode_patch, to_table
from cropray.shards.store import shard_name
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.training.baselines import PixelSample, even_shares, pixel_features
from cropray.training.blocks import plan_tiles, read_tile
from cropray.training.evaluate import RESULT, evaluate
from cropray.types import BACKGROUND, UNLABELLED, InputError, Patch, Period, Roi

CLASSES = ("maize", "pea")
MONTHS, SIZE = 2, 32
PERIODS = tuple(Period(date(2022, month, 1), date(2022, month + 1, 1)) for month in (4, 5))
SHAPES = {"train": [(32, 32), (48, 80), (70, 40)], "val": [(50, 50), (32, 60)], "test": [(71, 45), (32, 32)]}


@dataclass(frozen=True)
class Land:
    """One ROI as it is: what the patches are cut from."""

    roi: Roi
    s1_cthw: np.ndarray
    s2_cthw: np.ndarray
    label_hw: np.ndarray
    truth_hw: np.ndarray


def make_land(split: str, index: int, shape: tuple[int, int]) -> Land:
    """Fields of 8 x 8 pixels; maize is bright in the first band and pea in the second."""
    rng = np.random.default_rng([len(split), index])
    fields = rng.choice(np.array([0, 1, BACKGROUND], np.uint8), (shape[0] // 8 + 1, shape[1] // 8 + 1))
    truth = np.kron(fields, np.ones((8, 8), np.uint8))[: shape[0], : shape[1]]
    s2 = rng.normal(1000, 150, (10, MONTHS, *shape))
    s2[0] += 2000 * (truth == 0)
    s2[1] += 2000 * (truth == 1)
    s1 = rng.normal(-1200, 100, (2, MONTHS, *shape))
    s2[:, 0, :5] = NODATA
    own = index % len(CLASSES)
    told = np.kron(rng.random(fields.shape) < 0.5, np.ones((8, 8), bool))[: shape[0], : shape[1]]
    label = np.where(told & np.isin(truth, [own, BACKGROUND]), truth, UNLABELLED).astype(np.uint8)
    roi = Roi(f"{split}-{index}", CLASSES[own], "2022", "", "", split, (0, 0, 1, 1), "EPSG:32632")
    return Land(roi, s1.astype(np.int16), s2.astype(np.int16), label, truth)


LANDS = {split: [make_land(split, i, s) for i, s in enumerate(shapes)] for split, shapes in SHAPES.items()}


def write_land(folder: Folder, *, with_truth: bool) -> None:
    window = {"anchor": "harvest", "months": MONTHS, "lead_months": 1, "as_of": None}
    source = {"kind": "simulated", "s1_quantity": "gamma0"}
    metadata = ShardMetadata(CLASSES, SIZE, window, "gamma0", "recipe", source, has_truth=with_truth)
    for split, lands in LANDS.items():
        rows = []
        for land in lands:
            extent = Grid("EPSG:32632", 500_000, 5_000_000, 10, *land.truth_hw.shape)
            for window in plan_windows(*extent.shape, SIZE, 16):
                part = window.slices
                patch = Patch(
                    f"{land.roi.roi_id}-{window.row}-{window.col}",
                    window.row,
                    window.col,
                    land.s2_cthw[:, :, *part],
                    land.s1_cthw[:, :, *part],
                    land.label_hw[part],
                    land.truth_hw[part] if with_truth else None,
                )
                rows.append(encode_patch(patch, land.roi, extent, PERIODS))
        order = np.random.default_rng(0).permutation(len(rows))  # as compaction leaves them
        groups = [to_table([rows[i] for i in order[k : k + 4]], metadata) for k in range(0, len(rows), 4)]
        write_shard(folder, shard_name(split, 0), metadata, groups, codec="lz4")


def small_checkpoint(thresholds: tuple[float, ...] | None) -> Checkpoint:
    torch.manual_seed(3)
    network = NetworkSpec(n_classes=2, width=2, months=MONTHS)
    return Checkpoint(
        CLASSES,
        network,
        FixedNormalisation(),
        {"anchor": "harvest", "months": MONTHS, "lead_months": 1, "as_of": None},
        "gamma0",
        network.build().state_dict(),
        thresholds=thresholds,
    )


def ready_run(
    path: Path, *, with_truth: bool = True, thresholds: tuple[float, ...] | None = (0.5, 0.5)
) -> Run:
    settings = EvaluateConfig(forest_trees=20, forest_pixels=3000, bootstrap=200)
    run = Run(Folder(str(path)), Config(classes=CLASSES, evaluate=settings, patch=PatchConfig(size=SIZE)))
    for stage in ("rois", "export", "compact"):
        run.finish(stage, {})
    write_land(run.folder, with_truth=with_truth)
    save_checkpoint(small_checkpoint(thresholds), run.folder.child("models/finetune"))
    return run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = ready_run(tmp_path_factory.mktemp("run"))
    evaluate(run)
    return run


def result_of(run: Run) -> dict:
    return json.loads(run.folder.read_text(RESULT))


def expected_map(land: Land, thresholds: tuple[float, ...]) -> np.ndarray:
    """The network's map, put together pixel by pixel in plain loops."""
    predictor = Predictor(small_checkpoint(thresholds))
    total, count = np.zeros((2, *land.truth_hw.shape)), np.zeros(land.truth_hw.shape)
    for window in plan_windows(*land.truth_hw.shape, SIZE, 16):
        rows, cols = window.slices
        total[:, rows, cols] += predictor.probabilities(
            land.s1_cthw[None, :, :, rows, cols], land.s2_cthw[None, :, :, rows, cols]
        )[0]
        count[rows, cols] += 1
    return decide(total / count, np.array(thresholds))


def test_a_tile_is_the_land_that_its_patches_were_cut_from(evaluated: Run) -> None:
    reader = ShardReader([evaluated.folder.child("shards/test/00000.parquet").uri], batch_size=4)
    lands = {land.roi.roi_id: land for land in LANDS["test"]}
    for plan in plan_tiles(reader):
        land, tile = lands[plan.roi_id], read_tile(reader, plan)
        np.testing.assert_array_equal(tile.label_hw, land.label_hw)
        np.testing.assert_array_equal(tile.truth_hw, land.truth_hw)
        np.testing.assert_array_equal(tile.s1_cthw, land.s1_cthw)
        np.testing.assert_array_equal(tile.s2_cthw, land.s2_cthw)


@pytest.mark.parametrize("size", [20, 33, 64])
def test_smaller_tiles_show_the_same_pixels_and_means(evaluated: Run, size: int) -> None:
    reader = ShardReader([evaluated.folder.child("shards/test/00000.parquet").uri], batch_size=4)
    (whole_plan,) = [plan for plan in plan_tiles(reader) if plan.roi_id == "test-0"]
    values = np.random.default_rng(0).random((len(reader.table), 3, SIZE, SIZE), np.float32)
    whole = read_tile(reader, whole_plan).mosaicked(values[list(whole_plan.rows)])
    parts = [plan for plan in plan_tiles(reader, size) if plan.roi_id == "test-0"]
    assert len(parts) > 1
    seen = np.zeros(whole.shape[1:], int)
    corner = iter((r, c) for r in range(0, 71, size) for c in range(0, 45, size))
    for plan, (row, col) in zip(parts, corner, strict=True):
        tile = read_tile(reader, plan).mosaicked(values[list(plan.rows)])
        here = slice(row, row + tile.shape[1]), slice(col, col + tile.shape[2])
        np.testing.assert_allclose(tile, whole[:, *here], rtol=1e-5)
        seen[here] += 1
    assert (seen == 1).all()


def test_the_network_is_scored_on_every_pixel_once(evaluated: Run) -> None:
    result = result_of(evaluated)
    truth = np.concatenate([land.truth_hw.ravel() for land in LANDS["test"]])
    predicted = np.concatenate([expected_map(land, (0.5, 0.5)).ravel() for land in LANDS["test"]])
    row = result["methods"]["model"]
    assert result["scope"] == "truth"
    assert result["pixels"] == truth.size == 71 * 45 + 32 * 32
    np.testing.assert_array_equal(
        row["confusion"], confusion_matrix(truth, predicted, labels=[0, 1, BACKGROUND])
    )
    there = [c for c in (0, 1) if c in truth or c in predicted]
    assert row["score"] == pytest.approx(f1_score(truth, predicted, labels=there, average="macro"))
    assert result["blocks"] == 2


def test_baselines_stand_beside_it_on_the_same_pixels(evaluated: Run) -> None:
    result = result_of(evaluated)
    totals = {name: np.sum(row["confusion"]) for name, row in result["methods"].items()}
    assert totals == dict.fromkeys(("model", "forest", "majority"), result["pixels"])
    # The land is made so that single pixels tell the classes apart.
    assert result["methods"]["forest"]["score"] > 0.97
    assert result["methods"]["majority"]["score"] < 0.4
    model, forest = result["methods"]["model"], result["methods"]["forest"]
    difference = result["differences"]["forest"]
    assert difference["score"] == pytest.approx(model["score"] - forest["score"])
    low, high = difference["interval"]
    assert low <= difference["score"] <= high
    assert result["thresholds"]["model"] == [0.5, 0.5]
    assert result["baselines"]["labelled_pixels"].keys() == {"maize", "pea", "none"}


def test_pictures_are_there(evaluated: Run) -> None:
    names = evaluated.folder.child("evaluation").names(".png")
    assert names == ["confusion.png", "rois/test-0.png", "rois/test-1.png", "scores.png"]
    assert result_of(evaluated)["pictures"] == ["rois/test-0.png", "rois/test-1.png"]


def test_a_second_evaluation_reads_nothing_again(evaluated: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = evaluated.folder.local(RESULT).stat().st_mtime_ns
    assert evaluate(evaluated)["macro_f1/forest"] > 0.97
    assert "reused" in capsys.readouterr().err
    assert evaluated.folder.local(RESULT).stat().st_mtime_ns == before


def test_thresholds_are_chosen_on_val_where_the_model_has_none(tmp_path: Path) -> None:
    run = ready_run(tmp_path, thresholds=None)
    evaluate(run)
    result = result_of(run)
    scores, labels = [], []
    for land in LANDS["val"]:
        predictor = Predictor(small_checkpoint(None))
        total, count = np.zeros((2, *land.truth_hw.shape)), np.zeros(land.truth_hw.shape)
        for window in plan_windows(*land.truth_hw.shape, SIZE, 16):
            rows, cols = window.slices
            part = land.s1_cthw[None, :, :, rows, cols], land.s2_cthw[None, :, :, rows, cols]
            total[:, rows, cols] += predictor.probabilities(*part)[0]
            count[rows, cols] += 1
        known = land.label_hw != UNLABELLED
        scores.append((total / count)[:, known].T)
        labels.append(land.label_hw[known])
    score_nk, label_n = np.concatenate(scores), np.concatenate(labels)
    for k, threshold in enumerate(result["thresholds"]["model"]):
        best = max(
            f1_score(label_n == k, score_nk[:, k] >= t)
            for t in np.quantile(score_nk[:, k], np.linspace(0, 1, 200))
        )
        assert f1_score(label_n == k, score_nk[:, k] >= threshold) >= best - 0.01
    assert result["thresholds_chosen_on"] == "val"


def test_partly_labelled_land_has_recall_and_no_precision(tmp_path: Path) -> None:
    run = ready_run(tmp_path, with_truth=False)
    evaluate(run)
    result = result_of(run)
    assert result["scope"] == "annotated"
    assert result["score"] == "macro_recall"
    assert "precision" not in json.dumps(result)
    annotated = sum(int((land.label_hw < 2).sum()) for land in LANDS["test"])
    for row in result["methods"].values():
        assert np.sum(row["confusion"]) == annotated == result["pixels"]
        assert np.shape(row["confusion"]) == (2, 3)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    run = ready_run(tmp_path)
    other = replace(small_checkpoint(None), classes=("maize", "onion"))
    save_checkpoint(other, run.folder.child("models/finetune"))
    with pytest.raises(InputError, match=r"maize, onion.*maize, pea"):
        evaluate(run)


def test_a_run_without_test_rois_is_told_so(tmp_path: Path) -> None:
    run = ready_run(tmp_path)
    run.folder.delete("shards/test/00000.parquet")
    with pytest.raises(InputError, match=r"rois\.split\.test"):
        evaluate(run)


def test_features_are_all_bands_of_all_months_and_validity() -> None:
    land = LANDS["test"][0]
    where = np.zeros(land.truth_hw.shape, bool)
    where[0, 3] = where[20, 7] = True
    features = pixel_features(land.s1_cthw, land.s2_cthw, where)
    assert features.shape == (2, 12 * MONTHS + 2 * MONTHS)
    np.testing.assert_array_equal(features[1, : 2 * MONTHS], land.s1_cthw[:, :, 20, 7].ravel())
    np.testing.assert_array_equal(features[1, 2 * MONTHS : 12 * MONTHS], land.s2_cthw[:, :, 20, 7].ravel())
    # s1 by month, then s2 by month: the upper rows have no view in the first month.
    np.testing.assert_array_equal(features[:, 12 * MONTHS :], [[1, 1, 0, 1], [1, 1, 1, 1]])


def test_a_sample_of_pixels_is_bounded_and_uniform() -> None:
    sample = PixelSample(capacity=500, seed=0)
    s1 = np.zeros((2, 1, 40, 50), np.int16)
    for patch in range(10):
        s2 = np.full((10, 1, 40, 50), patch, np.int16)
        sample.add(s1, s2, np.zeros((40, 50), np.uint8))
    features, labels = sample.drawn(400)
    assert sample.seen == {0: 20_000}
    assert len(features) == len(labels) == 400
    by_patch = np.bincount(features[:, 2], minlength=10)
    # 400 of ten equal parts: 40 each, standard deviation 6.
    assert (np.abs(by_patch - 40) < 25).all()


def test_shares_are_even_but_for_what_is_scarce() -> None:
    assert even_shares({0: 5, 1: 1000, 2: 1000}, 105) == {0: 5, 1: 50, 2: 50}
    assert even_shares({0: 5, 1: 6}, 100) == {0: 5, 1: 6}

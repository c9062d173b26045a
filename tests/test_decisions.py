"""How val chooses: calibration, thresholds and conformal quantiles, on scores whose truth is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cropray.evaluation.classifiers import Network
from cropray.evaluation.decisions import (
    DecisionRule,
    common_threshold,
    conformal_quantiles,
    fit_calibration,
    fit_decision,
    fit_thresholds,
    settled,
)
from cropray.evaluation.metrics import confusion, macro_f1
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.models.decision import Decision, confidence, decide, sigmoid
from cropray.models.heads import with_head
from cropray.models.inference import Predictor
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNSURE
from tests.lands import MONTHS, ready_run, small_checkpoint

N = 20_000
BLOCKS = np.arange(N) % 20


def one_of(probabilities_nk: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels drawn from the probabilities of each pixel; none of the classes with what is left."""
    rng = np.random.default_rng(seed)
    drawn = (rng.random((len(probabilities_nk), 1)) > probabilities_nk.cumsum(axis=1)).sum(axis=1)
    return np.where(drawn == probabilities_nk.shape[1], BACKGROUND, drawn).astype(np.uint8)


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 3) that are right, and labels drawn by them."""
    rng = np.random.default_rng(1)
    values = rng.dirichlet((0.3, 0.3, 0.3, 0.6), N)[:, :3].clip(1e-4, 1 - 1e-4).astype(np.float32)
    return values, one_of(values)


def test_calibration_finds_the_temperature_and_the_biases_that_were_put_in(
    truth: tuple[np.ndarray, np.ndarray],
) -> None:
    right_nk, label_n = truth
    put_in = Decision(temperature=1.7, biases=(-1.0, 0.5, 0.2))
    scores_nk = put_in.uncalibrated(right_nk.T[:, :, None])[:, :, 0].T
    temperature, biases = fit_calibration(scores_nk, label_n, BLOCKS, "bias")
    assert temperature == pytest.approx(1.7, rel=0.1)
    assert biases == pytest.approx(put_in.biases, abs=0.2)
    again = Decision(temperature=temperature, biases=biases).calibrated(scores_nk.T[:, :, None])[:, :, 0].T
    assert np.abs(again - right_nk).mean() < 0.02 < np.abs(scores_nk - right_nk).mean()
    assert fit_calibration(scores_nk, label_n, BLOCKS, "none") == (1.0, ())
    assert fit_calibration(scores_nk, label_n, BLOCKS, "temperature")[1] == ()


def test_a_class_that_val_does_not_know_has_the_bias_of_the_others(
    truth: tuple[np.ndarray, np.ndarray],
) -> None:
    right_nk, label_n = truth
    scores_nk = Decision(biases=(-2.0, -2.0, -2.0)).uncalibrated(right_nk.T[:, :, None])[:, :, 0].T
    known = label_n != 2
    _, biases = fit_calibration(scores_nk[known], label_n[known], BLOCKS[known], "bias")
    assert biases[2] == pytest.approx(np.mean(biases[:2]), abs=0.3)
    assert biases[2] < -1


def test_a_class_of_one_block_keeps_nearer_to_the_others(truth: tuple[np.ndarray, np.ndarray]) -> None:
    right_nk, label_n = truth
    scores_nk = Decision(biases=(-2.0, 0.0, 0.0)).uncalibrated(right_nk.T[:, :, None])[:, :, 0].T

    def spread(block_n: np.ndarray) -> float:
        _, biases = fit_calibration(scores_nk, label_n, block_n, "bias")
        return max(biases) - min(biases)

    assert spread(np.zeros(N, int)) < spread(BLOCKS) - 0.05


def test_calibration_and_its_inverse_and_thresholds_of_scores_decide_alike() -> None:
    rng = np.random.default_rng(2)
    scores_khw = rng.uniform(0.01, 0.99, (3, 9, 9)).astype(np.float32)
    decision = Decision((0.3, 0.4, 0.5), 0.6, (-1.0, 0.0, 1.0))
    calibrated_khw = decision.calibrated(scores_khw)
    np.testing.assert_allclose(decision.uncalibrated(calibrated_khw), scores_khw, atol=1e-4)
    by_scores = np.array(decision.score_thresholds, np.float32)
    np.testing.assert_array_equal(decision.decide(calibrated_khw), decide(scores_khw, by_scores))


def test_a_common_threshold_has_the_best_macro_f1_of_the_whole_decision(
    truth: tuple[np.ndarray, np.ndarray],
) -> None:
    right_nk, label_n = truth

    def score(threshold: float) -> float:
        shown = decide(right_nk.T[:, :, None], np.full(3, threshold))[:, 0]
        return float(macro_f1(confusion(label_n, shown, 3)))

    found = common_threshold(right_nk, label_n)
    assert score(found) >= max(score(t) for t in np.linspace(0.02, 0.98, 97)) - 1e-3


def test_shrunk_thresholds_lie_between_the_class_s_own_and_the_common_one(
    truth: tuple[np.ndarray, np.ndarray],
) -> None:
    right_nk, label_n = truth
    scores_nk = Decision(biases=(-2.0, 0.0, 1.0)).uncalibrated(right_nk.T[:, :, None])[:, :, 0].T
    block_n = np.arange(N) % 2
    own, common = (fit_thresholds(scores_nk, label_n, block_n, rule) for rule in ("class", "common"))
    assert len(set(common.tolist())) == 1
    few = fit_thresholds(scores_nk, label_n, block_n, "shrunk")
    many = fit_thresholds(scores_nk, label_n, np.arange(N) % 600, "shrunk")
    for k in range(3):
        assert min(own[k], common[k]) <= few[k] <= max(own[k], common[k])
        assert abs(many[k] - own[k]) <= abs(few[k] - own[k])
    assert np.abs(many - own).max() < 0.02
    # Two blocks: a weight of 2 / (2 + 6).
    logits = [np.log(t / (1 - t)) for t in (own[0], common[0])]
    assert few[0] == pytest.approx(
        float(sigmoid(np.array([0.25 * logits[0] + 0.75 * logits[1]]))[0]), abs=1e-4
    )


def test_a_given_threshold_decides_as_it_did_of_the_scores(truth: tuple[np.ndarray, np.ndarray]) -> None:
    right_nk, label_n = truth
    scores_khw = Decision(temperature=2.0, biases=(-1.0, 0.0, 0.0)).uncalibrated(right_nk.T[:, :, None])
    rule = DecisionRule("bias", "common", threshold=0.35)
    decision = fit_decision(scores_khw[:, :, 0].T, label_n, BLOCKS, rule)
    assert decision.temperature != 1
    shown = decision.decide(decision.calibrated(scores_khw))
    assert (shown == decide(scores_khw, np.full(3, 0.35))).mean() > 0.9999  # but for rounding


def test_sets_hold_their_class_as_often_as_wanted(truth: tuple[np.ndarray, np.ndarray]) -> None:
    right_nk, label_n = truth
    half = np.arange(N) < N // 2
    block_n = np.zeros(N, int)  # one block each: nothing is left out, but all pixels are alike here
    quantiles = conformal_quantiles(right_nk[half], label_n[half], block_n[half], 0.9)
    sets = Decision(quantiles=quantiles).sets(right_nk[~half].T[:, :, None])[:, :, 0]
    for k in range(4):
        mine = label_n[~half] == (BACKGROUND if k == 3 else k)
        assert sets[k, mine].mean() >= 0.88
    assert 1 < sets.sum(axis=0).mean() < 3


def test_a_block_that_lowers_a_quantile_counts_wherever_it_is() -> None:
    """Half of a class's blocks have low probabilities: leaving out another one must not hide that."""
    low, high = np.full(100, 0.2, np.float32), np.full(100, 0.9, np.float32)
    probabilities = np.concatenate([low, high, high])[:, None]
    label_n, block_n = np.zeros(300, np.uint8), np.repeat([0, 1, 2], 100)
    assert conformal_quantiles(probabilities, label_n, block_n, 0.6)[0] == pytest.approx(0.2)
    without_blocks = conformal_quantiles(probabilities, label_n, np.zeros(300, int), 0.6)[0]
    assert without_blocks == pytest.approx(0.9)
    assert conformal_quantiles(probabilities, label_n, block_n, 0.6)[1] is None  # no known background


def test_unsure_is_where_a_set_has_not_exactly_the_class_that_is_shown() -> None:
    decision = Decision((0.3, 0.3), quantiles=(0.5, 0.4, 0.9))
    probabilities = np.array([[0.8, 0.6, 0.35, 0.02], [0.1, 0.45, 0.3, 0.03]], np.float32)[:, :, None]
    assert decision.decide(probabilities).ravel().tolist() == [0, 0, 0, BACKGROUND]
    sure = decision.decide(probabilities, unsure=True).ravel().tolist()
    assert sure == [0, UNSURE, UNSURE, BACKGROUND]
    shown = decision.decide(probabilities)
    assert confidence(probabilities, shown).ravel() == pytest.approx([0.8, 0.6, 0.35, 0.95], abs=1e-6)
    with pytest.raises(ValueError, match="no quantiles"):
        Decision((0.3, 0.3)).decide(probabilities, unsure=True)


def test_a_checkpoint_keeps_its_decisions_and_serves_calibrated_probabilities(tmp_path: Path) -> None:
    plain = small_checkpoint(None)
    whole = Decision((0.25, 0.5), 2.0, (0.5, -0.5), (0.1, None, 0.2))
    earlier = Decision((0.125, 0.25), 0.5, (1.0, 0.0), (0.3, 0.4, None))
    made = replace(plain.decided({1: earlier, MONTHS: whole}), recipe={"any_date": True}, epoch=7)
    save_checkpoint(made, Folder(str(tmp_path)))
    loaded = load_checkpoint(Folder(str(tmp_path)))
    assert (loaded.decision(), loaded.decision(1), loaded.epoch) == (whole, earlier, 7)
    rng = np.random.default_rng(3)
    s1 = rng.integers(-2000, -500, (2, 2, MONTHS, 16, 16)).astype(np.int16)
    s2 = rng.integers(0, 4000, (2, 10, MONTHS, 16, 16)).astype(np.int16)
    raw = Predictor(replace(plain, recipe={"any_date": True}))
    for months, decision in ((MONTHS, whole), (1, earlier)):
        parts = s1[:, :, :months], s2[:, :, :months]
        wanted = decision.calibrated(raw.probabilities(*parts))
        np.testing.assert_allclose(Predictor(loaded).probabilities(*parts), wanted, atol=1e-5)


def test_a_checkpoint_of_an_earlier_version_is_not_calibrated(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    save_checkpoint(small_checkpoint((0.25, 0.5)), folder)
    text = folder.read_text("checkpoint.json")
    for field in (
        '"temperature": 1.0,',
        '"biases": [],',
        '"quantiles": [],',
        '"earlier": {},',
        '"epoch": 0,',
    ):
        assert field in text
        text = text.replace(field, "")
    folder.write_text("checkpoint.json", text)
    assert load_checkpoint(folder).decision() == Decision((0.25, 0.5))


def test_a_kept_head_decides_as_it_did(tmp_path: Path) -> None:
    decision = Decision((0.25, 0.5), 2.0, (0.5, -0.5))
    first = small_checkpoint(None).decided({MONTHS: decision})
    assert with_head(first, None, "").decision() == decision
    assert first.label_sets["main"].thresholds == decision.score_thresholds


def test_val_settles_the_decisions_of_a_network(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), thresholds=None)
    torch.manual_seed(0)
    recipe = {"calibration": "bias", "threshold_rule": "common", "coverage": 0.8}
    checkpoint = replace(small_checkpoint(None), recipe=recipe)
    val = ShardReader([run.folder.child("shards/val/00000.parquet").uri], batch_size=4, shuffle=False)
    made = settled(checkpoint, val, buffer_m=1000, overlap=16)
    assert made.temperature != 1
    assert len(made.biases) == len(made.thresholds or ()) == 2
    assert len(set(made.thresholds or ())) == 1
    assert len(made.quantiles) == 3
    assert made.earlier == {}
    again = settled(made, val, buffer_m=1000, overlap=16)  # of scores, whatever was chosen before
    assert again.decision() == made.decision()
    dated = replace(checkpoint, recipe=recipe | {"any_date": True, "min_months": 1})
    assert settled(dated, val, buffer_m=1000, overlap=16).earlier.keys() == {1}
    assert Network(dated, 1).decision == dated.decision(1)

"""Calibration, coverage and kept shares, on pixels whose probabilities are known to be right or wrong."""

import numpy as np
import pytest

from cropray.evaluation.reliability import Reliability
from cropray.models.decision import Decision
from cropray.types import BACKGROUND, UNLABELLED
from tests.test_decisions import one_of

CLASSES = ("maize", "pea", "onion")
N = 40_000


@pytest.fixture(scope="module")
def right() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (3, N, 1) that are right, and the truth (N, 1) that was drawn by them."""
    rng = np.random.default_rng(5)
    values = rng.dirichlet((0.3, 0.3, 0.3, 0.6), N)[:, :3].clip(1e-4, 1 - 1e-4).astype(np.float32)
    return values.T[:, :, None], one_of(values)[:, None]


def measured(decision: Decision, values_khw: np.ndarray, truth_hw: np.ndarray) -> Reliability:
    made = Reliability(decision, 3)
    shown = decision.decide(values_khw)
    for part in np.array_split(np.arange(N), 3):  # tile by tile
        made.add(values_khw[:, part], shown[part], truth_hw[part])
    return made


def test_right_probabilities_have_no_error_and_shifted_ones_have_theirs(
    right: tuple[np.ndarray, np.ndarray],
) -> None:
    values, truth = right
    # Their calibration made them right: before it, they were those of this bias.
    found = measured(Decision((0.3,) * 3, 1.0, (2.0, 2.0, 2.0)), values, truth).calibration(CLASSES)
    assert found["ece"]["after"] < 0.01 < 0.1 < found["ece"]["before"]
    for row in found["per_class"]:
        assert row["ece"]["after"] < 0.01 < row["ece"]["before"]
        curve = row["curve"]["after"]
        assert sum(curve["pixels"]) == N
        busy = np.array(curve["pixels"]) > 500
        np.testing.assert_allclose(
            np.array(curve["predicted"])[busy], np.array(curve["observed"])[busy], atol=0.05
        )


def test_coverage_is_that_of_the_sets(right: tuple[np.ndarray, np.ndarray]) -> None:
    values, truth = right
    decision = Decision((0.3,) * 3, quantiles=(0.2, 0.2, 0.2, 0.5))
    found = measured(decision, values, truth).doubt(CLASSES)
    assert found is not None
    sets = decision.sets(values)[:, :, 0]
    for k, row in enumerate(found["per_class"]):
        mine = truth[:, 0] == (BACKGROUND if k == 3 else k)
        assert row["coverage"] == pytest.approx(sets[k, mine].mean())
        assert row["pixels"] == mine.sum()
    assert found["set_size"] == pytest.approx(sets.sum(axis=0).mean())
    assert found["accuracy_of_sure"] > measured(decision, values, truth).kept()[0]["accuracy"]
    assert measured(Decision((0.3,) * 3), values, truth).doubt(CLASSES) is None


def test_the_surest_land_is_the_most_accurate(right: tuple[np.ndarray, np.ndarray]) -> None:
    values, truth = right
    decision = Decision((0.3,) * 3)
    rows = measured(decision, values, truth).kept()
    assert [row["share"] for row in rows] == [1.0, 0.9, 0.8, 0.7, 0.5]
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] == pytest.approx((decision.decide(values) == truth).mean())
    confidences = [row["confidence"] for row in rows]
    assert confidences == sorted(confidences)


def test_pixels_of_unknown_truth_do_not_count(right: tuple[np.ndarray, np.ndarray]) -> None:
    values, truth = right
    hidden = truth.copy()
    hidden[: N // 2] = UNLABELLED
    decision = Decision((0.3,) * 3, quantiles=(0.2,) * 4)
    figures = measured(decision, values, hidden).figures
    assert figures["n"] == N - N // 2
    assert 0 < figures["coverage"] <= 1
    empty = Reliability(decision, 3)
    empty.add(values, decision.decide(values), np.full_like(truth, UNLABELLED))
    assert empty.figures == {"n": 0, "ece": None, "coverage": None}

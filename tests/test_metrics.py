"""Scores against scikit-learn on plain pixels, the block bootstrap, and the table of classifiers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from cropray.errors import InputError
from cropray.evaluation.metrics import (
    bootstrap,
    confusion,
    interval,
    known_truth,
    macro_f1,
    macro_recall,
    per_class,
    precision_bounds,
    score_table,
)
from cropray.types import BACKGROUND, UNLABELLED

K = 4
maps = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, BACKGROUND]))


@given(truth=maps, predicted=maps)
def test_scores_are_those_of_scikit_learn_on_the_pixels(truth: np.ndarray, predicted: np.ndarray) -> None:
    counts = confusion(truth, predicted, K)
    labels = [0, 1, 2, 3, BACKGROUND]
    pixels = (truth.ravel(), predicted.ravel())
    options = {"labels": labels, "average": None, "zero_division": 0.0}
    rows = per_class(counts)
    for name, score in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
        ("iou", jaccard_score),
    ):
        for label, row, expected in zip(labels, rows, score(*pixels, **options), strict=True):
            if (truth == label).any():
                assert row[name] == pytest.approx(expected)
            else:
                assert row[name] is None
    in_truth = [c for c in range(K) if (truth == c).any()]
    if in_truth:
        expected = f1_score(*pixels, labels=in_truth, average="macro", zero_division=0.0)
        assert macro_f1(counts) == pytest.approx(expected)
        expected = recall_score(*pixels, labels=in_truth, average="macro")
        assert macro_recall(counts) == pytest.approx(expected)


def test_a_pixel_of_unknown_truth_is_not_counted() -> None:
    truth = np.array([0, UNLABELLED, 1, BACKGROUND], np.uint8)
    predicted = np.array([0, 0, BACKGROUND, 1], np.uint8)
    counts = confusion(truth, predicted, 2)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_maps_of_unknown_truth_count_nothing() -> None:
    unknown = np.full((3, 4), UNLABELLED, np.uint8)
    np.testing.assert_array_equal(confusion(unknown, np.zeros_like(unknown), 2), np.zeros((3, 3)))


def test_a_score_of_nothing_is_not_a_number() -> None:
    nothing = np.zeros((3, 3), np.int64)
    assert np.isnan(macro_f1(nothing))
    assert np.isnan(macro_recall(nothing))
    assert interval(np.array([np.nan, np.nan])) is None


def test_a_draw_is_the_sum_of_the_blocks_it_names() -> None:
    # A block is a power of 10 in every cell, so the sum of five blocks shows which were drawn.
    blocks = np.broadcast_to(10 ** np.arange(5)[:, None, None], (5, 3, 3))
    counts = bootstrap(blocks, 200, seed=3)
    assert (counts == counts[:, :1, :1]).all()
    often = [[int(digit) for digit in f"{value:05d}"] for value in counts[:, 0, 0]]
    assert {sum(draw) for draw in often} == {5}
    assert np.mean(often, axis=0) == pytest.approx(np.ones(5), abs=0.25)
    np.testing.assert_array_equal(counts, bootstrap(blocks, 200, seed=3))


def test_the_interval_of_equal_blocks_is_a_point_and_of_unequal_ones_has_their_spread() -> None:
    good, bad = np.array([[90, 10], [10, 90]]), np.array([[10, 90], [90, 10]])
    same = bootstrap(np.stack([good] * 8), 500, seed=0)
    low, high = interval(macro_f1(same)) or (0, 1)
    assert low == pytest.approx(high)
    mixed = bootstrap(np.stack([good] * 4 + [bad] * 4), 2000, seed=0)
    # F1 of a draw with n good blocks is 0.1 + 0.1 n; n is binomial(8, 1/2), of which 1 and 7 are
    # the 2.5 and 97.5 per cent points (P(n <= 0) = 0.4 %, P(n <= 1) = 3.5 %).
    assert interval(macro_f1(mixed)) == pytest.approx([0.2, 0.8])


CLASSES = ("maize", "pea")
GOOD = np.array([[8, 1, 1], [2, 6, 2], [0, 0, 10]])
BAD = np.array([[1, 8, 1], [6, 2, 2], [5, 5, 0]])


def test_a_single_block_has_a_score_and_no_interval() -> None:
    table = score_table("truth", CLASSES, {"network": GOOD[None], "forest": BAD[None]}, draws=100, seed=0)
    assert table["methods"]["network"]["score"] > table["methods"]["forest"]["score"]
    assert table["methods"]["network"]["interval"] is None
    assert table["differences"]["forest"]["interval"] is None


def test_differences_are_paired() -> None:
    """A classifier does not differ from itself in any draw, however wide its own interval is."""
    blocks = np.stack([GOOD, BAD, GOOD, BAD])
    table = score_table("truth", CLASSES, {"one": blocks, "same": blocks.copy()}, draws=200, seed=0)
    low, high = table["methods"]["one"]["interval"]
    assert high - low > 0.1
    assert table["differences"]["same"] == {"score": 0.0, "interval": [0.0, 0.0]}


def test_land_without_any_crop_has_no_score() -> None:
    background = np.zeros((2, 3, 3), np.int64)
    background[:, 2, 2] = 10
    table = score_table("truth", CLASSES, {"network": background}, draws=10, seed=0)
    assert table["methods"]["network"]["score"] is None
    assert table["methods"]["network"]["interval"] is None
    assert table["methods"]["network"]["accuracy"] == 1.0
    json.dumps(table, allow_nan=False)


def test_a_split_without_known_pixels_is_an_error() -> None:
    nothing = np.zeros((2, 3, 3), np.int64)
    with pytest.raises(InputError, match=r"nothing to score.*rois\.split\.test"):
        score_table("annotated", CLASSES, {"network": nothing}, draws=10, seed=0)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("truth", [1, 0, 1, 0]), ("class_map", [0, BACKGROUND, UNLABELLED, 1]), ("annotated", [0, 255, 255, 1])],
)
def test_only_known_truth_is_scored(scope: str, expected: list[int]) -> None:
    label = np.array([[0, BACKGROUND, UNLABELLED, 1]], np.uint8)
    truth = np.array([[1, 0, 1, 0]], np.uint8)
    assert known_truth(scope, label, truth).tolist() == [expected]


def test_annotated_parcels_have_recall_and_no_precision() -> None:
    counts = np.array([[[8, 1, 1], [5, 5, 0], [0, 0, 0]]])
    table = score_table("annotated", CLASSES, {"network": counts}, draws=0, seed=0)
    row = table["methods"]["network"]
    assert row["per_class"] == [
        {"class": "maize", "recall": 0.8, "support": 10},
        {"class": "pea", "recall": 0.5, "support": 10},
    ]
    assert row["confusion"] == [[8, 1, 1], [5, 5, 0]]
    assert (table["score"], row["score"]) == ("macro_recall", pytest.approx(0.65))


def test_precision_has_bounds_whatever_the_unknown_land_is() -> None:
    counts = np.array([[8, 1, 1], [5, 5, 0], [0, 0, 0]])
    assert precision_bounds(counts, np.array([12, 0])) == [(0.32, 0.8), (5 / 6, 5 / 6)]
    unmapped = np.array([[0, 0, 3], [0, 2, 0], [0, 0, 0]])
    assert precision_bounds(unmapped, np.array([0, 2])) == [None, (0.5, 1.0)]
    table = score_table(
        "annotated", CLASSES, {"a": counts[None]}, draws=0, seed=0, unknown={"a": np.array([12, 0])}
    )
    assert table["methods"]["a"]["per_class"][0]["precision_bounds"] == (0.32, 0.8)


def test_a_class_that_does_not_occur_has_no_figures_and_no_part_in_the_mean() -> None:
    counts = np.array([[[8, 0, 1, 0], [2, 6, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])  # the third crop never
    table = score_table("truth", ("a", "b", "c"), {"network": counts}, draws=0, seed=0)
    row = table["methods"]["network"]
    assert table["over"] == ["a", "b"]
    assert [figures["recall"] for figures in row["per_class"]] == [pytest.approx(8 / 9), 6 / 9, None]
    assert row["per_class"][2] == {
        "class": "c",
        "precision": None,
        "recall": None,
        "f1": None,
        "iou": None,
        "support": 0,
    }
    assert row["score"] == pytest.approx((16 / 19 + 12 / 15) / 2)

"""The tables of an evaluation: what is said of scores, intervals and differences."""

import json

import numpy as np
import pytest

from cropray.errors import InputError
from cropray.evaluation.metrics import scored_truth, tables
from cropray.types import BACKGROUND, UNLABELLED

CLASSES = ("maize", "pea")
GOOD = np.array([[8, 1, 1], [2, 6, 2], [0, 0, 10]])
BAD = np.array([[1, 8, 1], [6, 2, 2], [5, 5, 0]])


def test_a_single_block_has_a_score_and_no_interval() -> None:
    table = tables("truth", CLASSES, {"network": GOOD[None], "forest": BAD[None]}, draws=100, seed=0)
    assert table["methods"]["network"]["score"] > table["methods"]["forest"]["score"]
    assert table["methods"]["network"]["interval"] is None
    assert table["differences"]["forest"]["interval"] is None


def test_differences_are_those_of_the_same_draws() -> None:
    """A method beside itself differs by nothing in every draw, however wide its own interval is."""
    blocks = np.stack([GOOD, BAD, GOOD, BAD])
    table = tables("truth", CLASSES, {"one": blocks, "same": blocks.copy()}, draws=200, seed=0)
    low, high = table["methods"]["one"]["interval"]
    assert high - low > 0.1
    assert table["differences"]["same"] == {"score": 0.0, "interval": [0.0, 0.0]}


def test_land_without_any_crop_has_no_score() -> None:
    background = np.zeros((2, 3, 3), np.int64)
    background[:, 2, 2] = 10
    table = tables("truth", CLASSES, {"network": background}, draws=10, seed=0)
    assert table["methods"]["network"]["score"] is None
    assert table["methods"]["network"]["interval"] is None
    assert table["methods"]["network"]["accuracy"] == 1.0
    json.dumps(table, allow_nan=False)


def test_a_test_split_of_which_nothing_is_known_is_told() -> None:
    nothing = np.zeros((2, 3, 3), np.int64)
    with pytest.raises(InputError, match=r"nothing to score.*rois\.split\.test"):
        tables("annotated", CLASSES, {"network": nothing}, draws=10, seed=0)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("truth", [1, 0, 1, 0]), ("class_map", [0, BACKGROUND, UNLABELLED, 1]), ("annotated", [0, 255, 255, 1])],
)
def test_what_is_scored_is_what_is_known(scope: str, expected: list[int]) -> None:
    label = np.array([[0, BACKGROUND, UNLABELLED, 1]], np.uint8)
    truth = np.array([[1, 0, 1, 0]], np.uint8)
    assert scored_truth(scope, label, truth).tolist() == [expected]

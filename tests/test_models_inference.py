import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cropray.models.decision import choose_thresholds, decide
from cropray.types import BACKGROUND

# Few distinct values, so that ties are frequent.
tenths = st.integers(0, 10).map(lambda n: np.float32(n / 10))


def test_a_class_needs_its_own_threshold() -> None:
    probabilities = np.array([[0.6, 0.4, 0.1], [0.1, 0.5, 0.3]]).reshape(2, 1, 3)
    decided = decide(probabilities, np.array([0.55, 0.2]))
    assert decided.dtype == np.uint8
    assert decided.tolist() == [[0, 1, 1]]
    assert decide(probabilities, np.array([0.9, 0.9])).tolist() == [[BACKGROUND] * 3]


def test_of_several_passing_classes_the_largest_excess_in_odds_wins() -> None:
    # 0.7 against 0.65 is odds × 1.26; 0.4 against 0.2 is odds × 2.67.
    assert decide(np.array([0.7, 0.4]).reshape(2, 1, 1), np.array([0.65, 0.2])).item() == 1
    # With equal thresholds it is the most probable class.
    assert decide(np.array([0.7, 0.8]).reshape(2, 1, 1), np.array([0.3, 0.3])).item() == 1


def test_leading_axes_are_kept_and_nan_is_background() -> None:
    probabilities = np.full((4, 2, 3, 5), 0.9)
    probabilities[1] = np.nan
    decided = decide(probabilities, np.array([0.5, 0.5]))
    assert decided.shape == (4, 3, 5)
    assert (decided[1] == BACKGROUND).all()
    assert (decided[0] == 0).all()


def test_thresholds_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"thresholds are .* for probabilities"):
        decide(np.zeros((3, 2, 2)), np.array([0.5, 0.5]))


@given(arrays(np.float32, (4, 3, 3), elements=tenths), arrays(np.float32, 4, elements=tenths))
def test_what_is_decided_has_passed_and_background_only_stands_where_nothing_has(
    probabilities: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32]
) -> None:
    decided = decide(probabilities, thresholds)
    passing = probabilities >= thresholds[:, None, None]
    np.testing.assert_array_equal(decided == BACKGROUND, ~passing.any(axis=0))
    rows, cols = np.nonzero(decided != BACKGROUND)
    assert passing[decided[rows, cols], rows, cols].all()


def f1(positive: npt.NDArray[np.bool_], accepted: npt.NDArray[np.bool_]) -> float:
    return 2 * int((positive & accepted).sum()) / int(positive.sum() + accepted.sum())


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            arrays(np.float32, (n, 2), elements=tenths),
            arrays(np.uint8, n, elements=st.sampled_from([0, 1, BACKGROUND])),
        )
    )
)
def test_no_threshold_gives_a_better_f1_than_the_chosen_one(
    pixels: tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]],
) -> None:
    scores, labels = pixels
    chosen = choose_thresholds(scores, labels)
    for k in range(2):
        positive = labels == k
        if not positive.any():
            assert chosen[k] == 0.5
            continue
        best = max(f1(positive, scores[:, k] >= t) for t in np.unique(scores[:, k]))
        assert f1(positive, scores[:, k] >= chosen[k]) == pytest.approx(best)


def test_the_threshold_lies_midway_between_the_two_sides() -> None:
    scores = np.array([[0.9], [0.8], [0.4], [0.1]])
    labels = np.array([0, 0, BACKGROUND, BACKGROUND], np.uint8)
    assert choose_thresholds(scores, labels).tolist() == pytest.approx([0.6])


def test_unlabelled_pixels_must_be_left_out_beforehand() -> None:
    with pytest.raises(ValueError, match="255"):
        choose_thresholds(np.zeros((2, 2)), np.array([0, 255], np.uint8))

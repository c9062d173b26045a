"""The baselines: features and samples of pixels."""

import numpy as np
import pytest

from cropray.errors import InputError
from cropray.evaluation.classifiers import PixelSample, even_shares, pixel_features
from tests.lands import LANDS, MONTHS


def sample(labels: tuple[int, ...] = (0, 1, 254)) -> PixelSample:
    rng = np.random.default_rng(0)
    made = PixelSample(500, seed=1)
    label_hw = rng.choice(np.array(labels, np.uint8), (16, 16))
    s1 = rng.integers(-2000, 0, (2, 1, 16, 16), np.int16)
    s2 = rng.integers(0, 4000, (10, 1, 16, 16), np.int16)
    made.add(s1, s2, label_hw)
    return made


def test_without_a_labelled_crop_there_is_no_majority() -> None:
    assert sample((1, 254)).majority() == 1
    for labels in ((255,), (254, 255)):
        with pytest.raises(InputError, match="no pixel of the train split"):
            sample(labels).majority()


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


def test_shares_are_even_unless_a_label_is_scarce() -> None:
    assert even_shares({0: 5, 1: 1000, 2: 1000}, 105) == {0: 5, 1: 50, 2: 50}
    assert even_shares({0: 5, 1: 6}, 100) == {0: 5, 1: 6}

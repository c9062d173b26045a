"""The forest grows step by step, for the bar, and is still the forest of one fit."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from cropray.errors import InputError
from cropray.evaluation.baselines import PixelSample, fit_forest
from cropray.progress import progress

TREES = 23


def sample(labels: tuple[int, ...] = (0, 1, 254)) -> PixelSample:
    rng = np.random.default_rng(0)
    made = PixelSample(500, seed=1)
    label_hw = rng.choice(np.array(labels, np.uint8), (16, 16))
    s1 = rng.integers(-2000, 0, (2, 1, 16, 16), np.int16)
    s2 = rng.integers(0, 4000, (10, 1, 16, 16), np.int16)
    made.add(s1, s2, label_hw)
    return made


def test_a_forest_grown_in_steps_is_that_of_one_fit(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("baselines", TREES) as bar:
        forest = fit_forest(sample(), 2, pixels=200, trees=TREES, seed=5, bar=bar)
    features, labels = sample().drawn(200)
    at_once = RandomForestClassifier(TREES, random_state=5).fit(features, labels)
    assert len(forest.model.estimators_) == TREES
    np.testing.assert_array_equal(forest.model.predict_proba(features), at_once.predict_proba(features))
    assert f"baselines: {TREES}/{TREES}" in capsys.readouterr().err


def test_without_a_label_there_is_nothing_to_grow_on() -> None:
    with pytest.raises(InputError, match="nothing to fit a forest on"), progress("baselines", 1) as bar:
        fit_forest(sample((255,)), 2, pixels=200, trees=1, seed=5, bar=bar)

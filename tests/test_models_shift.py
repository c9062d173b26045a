"""The share of inputs outside the training data."""

import numpy as np
import pytest

from cropray.bands import NODATA
from cropray.models.shift import input_range, outside, shift_warning

RNG = np.random.default_rng(0)


def land(brightness: float = 1.0, months: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """s1 (B, 2, T, H, W) and s2 (B, 3, T, H, W); a band has its own level in each month."""
    level_ct = np.arange(3 * months).reshape(3, months)[:, :, None, None] * 400 + 1000
    s2 = (RNG.normal(level_ct, 100, (16, 3, months, 32, 32)) * brightness).astype(np.int16)
    s1 = RNG.normal(-1200, 200, (16, 2, months, 32, 32)).astype(np.int16)
    return s1, s2


def test_land_like_the_training_has_two_per_cent_outside() -> None:
    known = input_range(*land())
    s1, s2 = land()
    beyond, total = outside(s1[0], s2[0], known)
    assert total == 5 * 3 * 32 * 32
    assert beyond / total == pytest.approx(0.02, abs=0.01)
    assert shift_warning(beyond, total, "the area") is None


def test_brighter_land_and_a_season_that_is_a_month_late_are_outside() -> None:
    known = input_range(*land())
    s1, s2 = land(brightness=1.3)
    late = np.roll(s2[0], 1, axis=1) / 1.3
    for other in (s2[0], late.astype(np.int16)):
        beyond, total = outside(s1[0], other, known)
        warning = shift_warning(beyond, total, "the area")
        assert warning is not None
        assert f"{beyond / total:.0%} of the values of the area" in warning


def test_values_that_nobody_saw_and_months_to_come_do_not_count() -> None:
    s1, s2 = land()
    s2[:, 0, 1] = NODATA
    known = input_range(s1, s2)
    assert known["s2"][0][1] is None
    one, other = land()
    other[:, 1] = NODATA
    _, total = outside(one[0], other[0], known)
    assert total == (2 * 3 + 3 * 3 - 1 - 3) * 32 * 32
    _, early = outside(one[0][:, :1], other[0][:, :1], known)
    assert early == (2 + 2) * 32 * 32
    assert outside(one[0], other[0], {}) == (0, 0)
    assert shift_warning(0, 0, "the area") is None

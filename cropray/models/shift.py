"""Whether inputs lie where a network was trained: the share of values outside its training quantiles.

A simple score, which sees other brightness, another scale or sensor, and much of another land. It does not
see a season that is a month late, nor crops that look alike and are others. C bands, T months; integers as
stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cropray.bands import NODATA
from cropray.types import IntArray

QUANTILES = (0.01, 0.99)
"""Of the values of a band in a month: about 0.02 of the training data lie outside."""

WARNING = 0.05
"""The share outside from which a user is warned (benchmarks/README.md)."""

_EVERY = 4  # pixels of a patch, along each axis


def input_range(s1_bcthw: IntArray, s2_bcthw: IntArray) -> dict[str, Any]:
    """By sensor, the quantiles (C, T, 2) of samples as nested lists; None where nothing was seen."""
    found = {}
    for name, values_bcthw in (("s1", s1_bcthw), ("s2", s2_bcthw)):
        thinned = values_bcthw[..., ::_EVERY, ::_EVERY]
        by_band_month = thinned.transpose(1, 2, 0, 3, 4)
        found[name] = [[_quantiles(values) for values in band] for band in by_band_month]
    return found


def outside(s1_cthw: IntArray, s2_cthw: IntArray, known: dict[str, Any]) -> tuple[int, int]:
    """How many valid values of (C, T, H, W) lie outside `input_range`, and how many there are.

    Months are the first of the window, or all. Values of a band and month that training never saw do not
    count. Without a range (0, 0).
    """
    beyond = total = 0
    for name, values_cthw in (("s1", s1_cthw), ("s2", s2_cthw)):
        for band_thw, ranges in zip(values_cthw, known.get(name, ()), strict=False):
            for month_hw, bounds in zip(band_thw, ranges, strict=False):
                if bounds is not None:
                    valid = month_hw[month_hw != NODATA]
                    beyond += int(((valid < bounds[0]) | (valid > bounds[1])).sum())
                    total += valid.size
    return beyond, total


def shift_warning(beyond: int, total: int, what: str) -> str | None:
    """A warning that names the share outside, if it is large."""
    if not total or beyond / total < WARNING:
        return None
    return (
        f"{beyond / total:.0%} of the values of {what} lie outside what the model was trained on (about 2 % "
        "are usual): another land or sensor. Its accuracy there is unknown; check it with labels"
    )


def _quantiles(values: IntArray) -> list[int] | None:
    valid = values[values != NODATA]
    return [int(q) for q in np.quantile(valid, QUANTILES)] if valid.size else None

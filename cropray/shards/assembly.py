"""Samples to the arrays of a batch: as they are stored, or normalised while they are in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.shards.schema import TensorSpec
from cropray.types import FloatArray, IntArray

Arrays = dict[str, npt.NDArray[Any]]

Normalise = Callable[[IntArray, IntArray, FloatArray, FloatArray], None]
"""Writes stored s1, s2 (B, C, T, H, W), which may be overwritten, as floats to the other two."""

_NORMALISED = ("s1", "s2")


@dataclass(frozen=True)
class Assembly:
    """What the arrays of a batch are, and how they are filled; it pickles if `normalise` does."""

    stored: dict[str, TensorSpec]
    normalise: Normalise | None = None

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """One sample of a batch, by name."""
        if self.normalise is None:
            return self.stored
        return self.stored | {name: TensorSpec(self.stored[name].shape, "<f4") for name in _NORMALISED}

    def fill(self, samples: Iterable[Mapping[str, npt.NDArray[Any]]], arrays: Arrays) -> None:
        """Write samples, in their order, to arrays (B, *shape) by name."""
        if self.normalise is None:
            for i, sample in enumerate(samples):
                for name, values in sample.items():
                    arrays[name][i] = values
            return
        # New memory is slow: one place for all samples stays in the cache.
        s1, s2 = (np.empty((1, *self.stored[name].shape), self.stored[name].dtype) for name in _NORMALISED)
        for i, sample in enumerate(samples):
            s1[0], s2[0] = sample["s1"], sample["s2"]
            self.normalise(s1, s2, arrays["s1"][i : i + 1], arrays["s2"][i : i + 1])
            for name in sample.keys() - _NORMALISED:
                arrays[name][i] = sample[name]

"""Samples to the arrays of a batch: as they are stored, or normalised while they are in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cropray.shards.schema import TensorSpec
from cropray.types import FloatArray, IntArray

Arrays = dict[str, npt.NDArray[Any]]


class Normaliser(Protocol):
    """What makes floats of stored integers, as `models.normalisation.Normalisation` does."""

    @property
    def validity(self) -> bool:
        """Whether batches are to hold the validity too: a network trained with it is given it."""

    def into(
        self,
        s1_bcthw: IntArray,
        s2_bcthw: IntArray,
        out_s1: FloatArray,
        out_s2: FloatArray,
        out_valid_b2thw: IntArray,
    ) -> None:
        """Write stored s1, s2, which may be overwritten, as floats to the next two, and where both are valid.

        That is 1 or 0, channel 0 of s2, 1 of s1.
        """


_NORMALISED = ("s1", "s2")


@dataclass(frozen=True)
class Assembly:
    """What the arrays of a batch are, and how they are filled; it pickles if `normalise` does."""

    stored: dict[str, TensorSpec]
    normalise: Normaliser | None = None

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """One sample of a batch, by name."""
        if self.normalise is None:
            return self.stored
        floats = {name: TensorSpec(self.stored[name].shape, "<f4") for name in _NORMALISED}
        return self.stored | floats | ({"valid": self._valid} if self.normalise.validity else {})

    @property
    def _valid(self) -> TensorSpec:
        return TensorSpec((2, *self.stored["s2"].shape[1:]), "<i2")

    def fill(self, samples: Iterable[Mapping[str, npt.NDArray[Any]]], arrays: Arrays) -> None:
        """Write samples, in their order, to arrays (B, *shape) by name."""
        if self.normalise is None:
            for i, sample in enumerate(samples):
                for name, values in sample.items():
                    arrays[name][i] = values
            return
        # New memory is slow: one place for all samples stays in the cache.
        s1, s2, valid = (
            np.empty((1, *spec.shape), spec.dtype)
            for spec in (self.stored["s1"], self.stored["s2"], self._valid)
        )
        for i, sample in enumerate(samples):
            s1[0], s2[0] = sample["s1"], sample["s2"]
            one = slice(i, i + 1)
            out_valid = arrays["valid"][one] if "valid" in arrays else valid
            self.normalise.into(s1, s2, arrays["s1"][one], arrays["s2"][one], out_valid)
            for name in sample.keys() - _NORMALISED:
                arrays[name][i] = sample[name]

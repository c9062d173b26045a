"""Arrays in memory that is used again: the first touch of new memory costs more than a copy."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


class Buffers:
    """Hands out arrays and takes their memory back once nobody refers to them or to a view of them."""

    def __init__(self) -> None:
        self._idle: list[npt.NDArray[np.uint8]] = []

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A writable C-ordered array of undefined values."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        fitting = (i for i, memory in enumerate(self._idle) if memory.nbytes >= nbytes)
        at = next(fitting, None)
        memory = np.empty(nbytes, np.uint8) if at is None else self._idle.pop(at)
        # Every view's base is `lent`, whose own base is no array, so it lives as long as they do.
        lent = np.frombuffer(memory.data, np.uint8, nbytes)
        weakref.finalize(lent, self._idle.append, memory).atexit = False
        return lent.view(dtype).reshape(shape)

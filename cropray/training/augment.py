"""Flips and quarter turns of whole samples: all months, bands and the label alike, nothing resampled.

Shape suffixes: B samples, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

SYMMETRIES = 8
"""Of a square: four quarter turns, each with and without a mirror image."""


def draw_symmetries(sample_ids: Sequence[str], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The symmetry (0..7) of each sample in an epoch, of seed, epoch and the sample's own id alone.

    So it is the same in whatever batch, on whatever rank and after whatever interruption a sample comes;
    one that an epoch has several times is the same each time.
    """
    hashes = (xxhash.xxh3_64_intdigest(f"{seed} {epoch} {sample_id}".encode()) for sample_id in sample_ids)
    return np.fromiter((value % SYMMETRIES for value in hashes), np.int64, len(sample_ids))


def apply_symmetries(tensors: tuple[Tensor, ...], symmetry_b: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Copies of tensors (B, …, H, W), sample b under its symmetry: a mirror image if >= 4, then turns.

    Raises ValueError for patches that are not square.
    """
    for x in tensors:
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"quarter turns need square patches, got {tuple(x.shape)}")
    moved = tuple(torch.empty_like(x) for x in tensors)
    for symmetry in np.unique(symmetry_b).tolist():
        chosen = torch.from_numpy(np.flatnonzero(symmetry_b == symmetry))
        for x, y in zip(tensors, moved, strict=True):
            index = chosen.to(x.device)
            part = x[index].flip(-1) if symmetry >= 4 else x[index]
            y[index] = part.rot90(symmetry % 4, (-2, -1))
    return moved

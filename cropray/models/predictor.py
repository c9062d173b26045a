"""Predictor: a checkpoint at work, stored integers in, probabilities out. No Ray, no files."""

from __future__ import annotations

import numpy as np
import torch

from cropray.models.checkpoint import Checkpoint
from cropray.models.decision import DEFAULT_THRESHOLD
from cropray.types import FloatArray, IntArray


class Predictor:
    """Holds the network on one device. Calls are independent of batch size and order."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._network = checkpoint.build().to(self.device)

    @property
    def thresholds(self) -> FloatArray:
        """(K,); 0.5 for every class where none were chosen."""
        chosen = self.checkpoint.thresholds or (DEFAULT_THRESHOLD,) * len(self.checkpoint.classes)
        return np.array(chosen, np.float32)

    def probabilities(self, s1_bcthw: IntArray, s2_bcthw: IntArray) -> FloatArray:
        """Probabilities (B, K, H, W) of int16 patches as stored; H and W multiples of 16.

        Raises ValueError where bands, months or sides do not fit the network.
        """
        with torch.inference_mode():
            inputs = self.checkpoint.normalisation.apply(
                torch.as_tensor(s1_bcthw).to(self.device), torch.as_tensor(s2_bcthw).to(self.device)
            )
            probabilities: FloatArray = self._network(*inputs).sigmoid().cpu().numpy()
        return probabilities

"""A moving average of a network's weights in training (Polyak and Juditsky 1992), for use in its place."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cropray.models.dual_unet3d import DualUNet3D
from cropray.training.batch_norm import Statistics


class MovingAverage:
    """A second network, whose weights and running statistics follow those of the first.

    At update t the decay is min(`decay`, (1 + t) / (10 + t)), so that the first steps of a training,
    far from its end, are soon forgotten.
    """

    def __init__(self, network: DualUNet3D, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.statistics = Statistics(self.network)
        self._decay, self.updates = decay, 0
        self._pairs = list(zip(_floats(self.network), _floats(network), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine, theirs = ([pair[i] for pair in self._pairs] for i in (0, 1))
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def _floats(network: nn.Module) -> list[torch.Tensor]:
    return [x for x in network.state_dict(keep_vars=True).values() if x.is_floating_point()]

"""Batch norm in training: whose samples it sees, and its running statistics as one tensor."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cropray.errors import InputError
from cropray.models.dual_unet3d import DualUNet3D
from cropray.training.recipe import BatchNorm


def prepared(network: DualUNet3D, mode: BatchNorm, world_size: int, device: torch.device) -> DualUNet3D:
    """The network with the batch norm of a mode; the names of its tensors stay.

    `local` normalises by the samples of one rank and `sync` by those of all. Raises InputError where
    several ranks on CPUs shall synchronise, which PyTorch cannot.
    """
    if mode != "sync" or world_size == 1:
        return network
    if device.type == "cpu":
        raise InputError(
            "batch_norm: sync needs GPUs where there are several workers (PyTorch synchronises batch norm "
            "on GPUs alone): set batch_norm to local or frozen, or workers to 1"
        )
    kind: Any = nn.SyncBatchNorm
    synchronised: DualUNet3D = kind.convert_sync_batchnorm(network)
    return synchronised


def train_mode(network: DualUNet3D, mode: BatchNorm, *, new_head: bool) -> None:
    """Training mode; under `frozen` batch norm goes on with the statistics that it came with.

    Its weights and biases learn in any case, and a new head's has no statistics to keep yet.
    """
    network.train()
    if mode != "frozen":
        return
    kept = [network.unet3d_s1, network.unet3d_s2, *([] if new_head else [network.final_conv])]
    for part in kept:
        for module in part.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class Statistics:
    """The running means and variances of all layers, laid side by side in one tensor, `all`.

    So they are kept and put back by one operation each, on any device and without waiting for it.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        places = [(layer, name) for layer in layers for name in ("running_mean", "running_var")]
        parts = [getattr(layer, name) for layer, name in places]
        self.all = torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0)
        self._before = self.all.clone()
        for (layer, name), view in zip(
            places, torch.split(self.all, [part.numel() for part in parts]), strict=True
        ):
            setattr(layer, name, view)

    def keep(self) -> None:
        """Remember them as they are."""
        self._before.copy_(self.all)

    def put_back_unless(self, good: Tensor) -> None:
        """As they were at the last `keep`, unless the bool tensor () says that all is well."""
        torch.where(good, self.all, self._before, out=self.all)


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

"""The optimizer of a training: which parameters learn, and at what rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cropray.models.dual_unet3d import MAIN, DualUNet3D
from cropray.training.recipe import Recipe


def make_optimizer(network: DualUNet3D, recipe: Recipe, also: Sequence[str]) -> Any:
    """Two groups, each with its `highest_lr`: the body, and the main head with those named in `also`."""
    heads = [p for head in (MAIN, *also) for p in network.head_parameters(head)]
    groups = [
        {"params": network.body_parameters(), "lr": recipe.lr, "highest_lr": recipe.lr},
        {"params": heads, "lr": recipe.head_lr, "highest_lr": recipe.head_lr},
    ]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    # Fused: one pass over each parameter; on a CPU a quarter of the time (8 ms of 30 for 3.9 million).
    return kind(groups, weight_decay=recipe.weight_decay, fused=True)

"""What a training does to a network, step by step: plain data, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cropray.models.losses import LossRecipe

BatchNorm = Literal["local", "sync", "frozen"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """`lr` is the body's rate and `head_lr` the head's, at their highest.

    A step's batch is gone through in `accumulate` parts, one after another. Gradients whose norm is
    beyond `clip_norm` are scaled down to it. `ema` is the decay a step of the moving average of the
    weights that is validated and published in place of the weights themselves. After `max_nonfinite`
    steps that came to no finite loss or gradient the training ends.
    """

    epochs: int
    lr: float
    head_lr: float
    loss: LossRecipe
    weight_decay: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: float = 0.05
    augment: bool = True
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    batch_norm: BatchNorm = "local"
    max_nonfinite: int = 10
    seed: int = 0


def rate_factor(step: int, steps: int, schedule: str, warmup_fraction: float) -> float:
    """The share of the highest learning rate at `step` (0-based) of `steps`.

    Linear warm-up over the first `warmup_fraction`, then constant, or half a cosine that would
    reach 0 at `steps` (Loshchilov and Hutter 2017, one cycle).
    """
    warmup = math.ceil(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

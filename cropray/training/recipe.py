"""What a training does to a network, step by step: plain data, and the learning rate of each step."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.errors import InputError
from cropray.models.dual_unet3d import MAIN, SIDE_MULTIPLE, DualUNet3D, NetworkSpec
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


_SIDE = 4 * SIDE_MULTIPLE
# What bfloat16 must be worth on a CPU to be chosen: so many times as fast as float32. Narrower networks are
# not timed: little of their time goes into products, and chance would decide.
_FASTER, _WIDTH = 1.5, 32
_CPUINFO = Path("/proc/cpuinfo")


def chosen(wanted: Precision | None, spec: NetworkSpec, device: torch.device) -> Precision:
    """The precision that was asked for; where none was (None), bfloat16 if the device gains by it.

    A GPU does where it has bfloat16 at all. A CPU must have instructions for it, and is then timed on
    a step of the network itself. Raises InputError for what the device does not have.
    """
    cuda = device.type == "cuda"
    if wanted is None:
        gains = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_gains(spec)
        return "bfloat16" if gains else "float32"
    if wanted == "tf32" and not cuda:
        raise InputError("precision: tf32 is of GPUs; the workers have none: set auto, float32 or bfloat16")
    return wanted


def apply_to_device(precision: Precision, device: torch.device) -> None:
    """Let convolutions of float32 be rounded to TF32 where that was asked for, and nowhere else."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False  # of the loss's sums


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether the flags of a processor (Linux's /proc/cpuinfo) name instructions for bfloat16."""
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo) is not None


def _cpu_gains(spec: NetworkSpec) -> bool:
    if spec.width < _WIDTH or not _CPUINFO.exists() or not has_bfloat16(_CPUINFO.read_text()):
        return False
    network, threads = spec.build(), torch.get_num_threads()
    torch.set_num_threads(1)  # several spend time on waiting for each other where others want the cores too
    try:
        _step_s(network, torch.float32)  # the first of all is slower
        full = _step_s(network, torch.float32)
        half = min(_step_s(network, torch.bfloat16) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    return full > _FASTER * half


def _step_s(network: DualUNet3D, kind: torch.dtype) -> float:
    """Seconds of the processor (so that other processes do not count) for a sample there and back."""
    s1, s2, valid = (
        torch.zeros(1, bands, network.months, _SIDE, _SIDE) for bands in (len(S1_NAMES), len(S2_NAMES), 2)
    )
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        logits = network(s1, s2, valid)
    torch.autograd.backward(logits.float().sum())
    return time.process_time() - start

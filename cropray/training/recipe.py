"""What a training does to a network, as plain data: rates, optimizer, precision, batch norm, average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from cropray.errors import InputError
from cropray.models.dual_unet3d import MAIN, CropNetwork, NetworkSpec
from cropray.models.losses import LossRecipe

BatchNorm = Literal["local", "sync", "frozen"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """The settings of a step (`TrainConfig`); `lr` and `head_lr` are the highest rates of body and heads."""

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
    any_date: bool = False
    min_months: int = 3
    whole_windows: float = 0.0
    drop_months: float = 0.1
    drop_sensors: float = 0.05
    teacher_confidence: float = 0.7
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


def teacher_ramp(step: int, steps: int) -> float:
    """The share of a teacher's weight at `step` (0-based) of `steps`: 0 up to a quarter, 1 from the half on.

    Before, a moving average of few steps would teach what it does not know yet.
    """
    return min(1.0, max(0.0, 4 * step / steps - 1))


def make_optimizer(network: CropNetwork, recipe: Recipe, also: Sequence[str]) -> Any:
    """Two groups, each with its `highest_lr`: the body, and the main head with those named in `also`."""
    heads = [p for head in (MAIN, *also) for p in network.head_parameters(head)]
    parts = ((network.body_parameters(), recipe.lr), (heads, recipe.head_lr))
    groups = [{"params": part, "lr": lr, "highest_lr": lr} for part, lr in parts]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    # Fused: one pass over each parameter; on a CPU a quarter of the time (8 ms of 30 for 3.9 million).
    return kind(groups, weight_decay=recipe.weight_decay, fused=True)


def choose_precision(wanted: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The precision as set; `auto` is bfloat16 on GPUs that have it, else float32.

    Raises InputError for tf32 without a GPU.
    """
    cuda = device.type == "cuda"
    if wanted == "auto":
        return "bfloat16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if wanted == "tf32" and not cuda:
        raise InputError("precision: tf32 needs GPUs, and the workers have none; set auto, float32, bfloat16")
    return wanted


def initial_network(
    spec: NetworkSpec, seed: int, weights: dict[str, Tensor] | None = None, *, keep_head: bool = False
) -> CropNetwork:
    """A new network from a seed, the same on every rank.

    `weights` of another network replace the body's, and with `keep_head` the head's too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build()
    if weights is not None:
        given = {k: x for k, x in weights.items() if keep_head or not k.startswith("final_conv.")}
        network.load_state_dict(network.state_dict() | given)
    return network


def with_batch_norm(
    network: CropNetwork, mode: BatchNorm, world_size: int, device: torch.device
) -> CropNetwork:
    """The network with batch norm over all ranks' samples if `sync`; names of tensors stay.

    Raises InputError for `sync` on several CPUs, which PyTorch lacks.
    """
    if mode != "sync" or world_size == 1:
        return network
    if device.type == "cpu":
        raise InputError(
            "batch_norm: sync needs GPUs if there are several workers; set batch_norm to local or frozen, or "
            "workers to 1"
        )
    kind: Any = nn.SyncBatchNorm
    return cast(CropNetwork, kind.convert_sync_batchnorm(network))


def set_train_mode(network: CropNetwork, mode: BatchNorm, *, new_head: bool) -> None:
    """Training mode; under `frozen`, batch norm keeps its statistics, but in a new head, which has none."""
    network.train()
    if mode == "frozen":
        for part in (*network.body, *([] if new_head else [network.final_conv])):
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()


class Statistics:
    """The running means and variances of all batch norm layers in one tensor, `all`.

    So one operation keeps or restores them without waiting for the device.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = (module for module in network.modules() if isinstance(module, _BatchNorm))
        places = [(layer, name) for layer in layers for name in ("running_mean", "running_var")]
        parts = [getattr(layer, name) for layer, name in places]
        self.all = torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0)
        self._before = self.all.clone()
        views = torch.split(self.all, [part.numel() for part in parts])
        for (layer, name), view in zip(places, views, strict=True):
            setattr(layer, name, view)

    def keep(self) -> None:
        self._before.copy_(self.all)

    def put_back_unless(self, good: Tensor) -> None:
        """As they were at the last `keep`, unless the bool tensor () is true."""
        torch.where(good, self.all, self._before, out=self.all)


def moving_average(network: CropNetwork, decay: float) -> AveragedModel:
    """A second network, whose weights and running statistics follow those of the first.

    At update n (from 1) the decay is min(`decay`, n / (9 + n)): the first steps are soon forgotten.
    """

    def follow(mine: Any, theirs: Any, updates: Tensor | int) -> None:
        if mine[0].is_floating_point():
            n = int(updates)
            torch._foreach_lerp_(mine, theirs, 1 - min(decay, n / (9 + n)))

    average = AveragedModel(network, multi_avg_fn=follow, use_buffers=True)
    average.n_averaged += 1  # its first update would copy the weights instead
    average.requires_grad_(requires_grad=False).eval()
    return average

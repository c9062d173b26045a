"""Training of one network, epoch by epoch: numpy and torch alone, with or without several ranks.

What an epoch does depends on the weights, the optimizer's state, the epoch's number and the batches,
and on nothing else, so a training that is taken up after any epoch ends as if undisturbed (to the
bit on a CPU). Ranks are those of `torch.distributed` where it is initialised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cropray.models.dual_unet3d import DualUNet3D, NetworkSpec
from cropray.models.losses import LossRecipe, LossTerms, loss_terms, total
from cropray.models.normalisation import Normalisation
from cropray.training.augment import apply_symmetries, draw_symmetries
from cropray.types import Batch


@dataclass(frozen=True)
class Recipe:
    """What a training does. `lr` is the body's rate and `head_lr` the head's, at their highest."""

    epochs: int
    lr: float
    head_lr: float
    loss: LossRecipe
    weight_decay: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: float = 0.05
    augment: bool = True
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


def initial_network(
    spec: NetworkSpec, seed: int, weights: dict[str, Tensor] | None = None, *, keep_head: bool = False
) -> DualUNet3D:
    """A new network from a seed, the same on every rank.

    `weights` of another network replace the body's, and the head's too with `keep_head`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build()
    if weights is not None:
        new_head = {} if keep_head else {k: v for k, v in network.state_dict().items() if _of_head(k)}
        network.load_state_dict({k: v for k, v in weights.items() if keep_head or not _of_head(k)} | new_head)
    return network


def _n_classes(network: DualUNet3D) -> int:
    return network.head_parameters()[-1].shape[0]  # its last bias


def _of_head(name: str) -> bool:
    return name.startswith("final_conv.")


class Trainer:
    """A network in training on one device."""

    def __init__(
        self,
        network: DualUNet3D,
        normalisation: Normalisation,
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.network = network.to(device)
        self.normalisation, self.recipe, self.device = normalisation, recipe, device
        self.steps_per_epoch = steps_per_epoch
        self._classes = _n_classes(network)
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self._module: nn.Module = DistributedDataParallel(self.network) if several else self.network
        groups = [
            {"params": self.network.body_parameters(), "lr": recipe.lr, "highest_lr": recipe.lr},
            {"params": self.network.head_parameters(), "lr": recipe.head_lr, "highest_lr": recipe.head_lr},
        ]
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        # Fused: one pass over each parameter; on a CPU a quarter of the time (8 ms of 30 for 3.9 million).
        self._optimizer = kind(groups, weight_decay=recipe.weight_decay, fused=True)

    def train_epoch(
        self, batches: Iterable[Batch], epoch: int, on_step: Callable[[int, Tensor], None]
    ) -> dict[str, float]:
        """One epoch (0-based). `on_step` gets the number of steps done and the last step's loss.

        Returns the loss over the epoch's pixels, the samples of all ranks a second, and the rate.
        """
        self._module.train()
        start, samples, terms = time.perf_counter(), 0, self.no_terms()
        for index, batch in enumerate(batches):
            loss, part = self._step(batch, epoch, index)
            terms, samples = terms + part, samples + len(batch)
            on_step(index + 1, loss)
        loss_value = total(self.over_ranks(terms), self.recipe.loss).item()
        if self.world_size > 1:  # each rank's batch norm saw its own samples; rank 0's are kept
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
        seconds = time.perf_counter() - start
        return {
            "train_loss": loss_value,
            "lr": self._optimizer.param_groups[0]["lr"],
            "train_seconds": seconds,
            "samples_per_second": samples * self.world_size / seconds,
        }

    @torch.inference_mode()
    def logits(self, batch: Batch) -> tuple[Tensor, LossTerms]:
        """Logits (B, K, H, W) of a batch in evaluation mode, and its loss terms on this rank."""
        self.network.eval()
        s1, s2, label, crop = self._to_device(batch)
        logits = self._forward(self.network, s1, s2)
        return logits, loss_terms(logits, label, crop, self.recipe.loss)

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on, beside the number of epochs done."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self._optimizer.state.items():
            for name, value in moments.items():
                # A fused optimizer goes through memory as it lies, and does not look at strides.
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)

    def _step(self, batch: Batch, epoch: int, index: int) -> tuple[Tensor, LossTerms]:
        recipe = self.recipe
        s1, s2, label, crop = self._to_device(batch)
        if recipe.augment:
            symmetries = draw_symmetries(batch.rows["sample_id"], recipe.seed, epoch)
            s1, s2, label = apply_symmetries((s1, s2, label), symmetries)
        terms = loss_terms(self._forward(self._module, s1, s2), label, crop, recipe.loss)
        counts = terms.counts
        if self.world_size > 1:  # means over the pixels of all ranks, not means of the ranks' means
            counts = counts.clone()
            dist.all_reduce(counts)
        loss = total(replace(terms, counts=counts), recipe.loss)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss * self.world_size)  # the gradients of the ranks are averaged
        self._set_rates(epoch * self.steps_per_epoch + index)
        self._optimizer.step()
        return loss.detach(), replace(terms, sums=terms.sums.detach())

    def _forward(self, module: nn.Module, s1_int16: Tensor, s2_int16: Tensor) -> Tensor:
        inputs = self.normalisation.apply(s1_int16, s2_int16)
        # bfloat16 where there are tensor cores for it: its range is float32's, so nothing is scaled.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits: Tensor = module(*inputs)
        return logits

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        arrays = (batch.s1_bcthw, batch.s2_bcthw, batch.label_bhw, batch.crop_b)
        s1, s2, label, crop = (torch.from_numpy(x).to(self.device, non_blocking=True) for x in arrays)
        return s1, s2, label, crop

    def _set_rates(self, step: int) -> None:
        steps = self.recipe.epochs * self.steps_per_epoch
        factor = rate_factor(step, steps, self.recipe.schedule, self.recipe.warmup_fraction)
        for group in self._optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor

    def no_terms(self) -> LossTerms:
        """The terms of nothing, to add others to."""
        three, classes, one = (torch.zeros(n, device=self.device) for n in (3, self._classes, 1))
        return LossTerms(three, three.clone(), classes, one[0])

    def over_ranks(self, terms: LossTerms) -> LossTerms:
        """The sum of all ranks' terms, which are overwritten by it."""
        if self.world_size > 1:
            dist.all_reduce(terms.sums)
            dist.all_reduce(terms.counts)
        return terms

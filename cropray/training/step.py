"""Training of one network, step by step, with numpy and torch alone, on one or several ranks.

A step depends on the weights, the optimizer's state, its place in the training and its samples, and on
nothing else: a training that resumes after any step ends as if undisturbed (to the bit on a CPU). Ranks are
those of `torch.distributed` if it is initialised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from operator import attrgetter
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from cropray.errors import DivergedError, InputError, counted
from cropray.models.dual_unet3d import MAIN, CropNetwork
from cropray.models.losses import LossTerms, loss_counts, loss_terms, total
from cropray.models.normalisation import Normalisation
from cropray.training.batches import (
    AsyncMetrics,
    apply_symmetries,
    draw_seen,
    draw_symmetries,
    prefetched,
    to_device,
    without,
)
from cropray.training.recipe import (
    Precision,
    Recipe,
    Statistics,
    make_optimizer,
    moving_average,
    rate_factor,
    set_train_mode,
    teacher_ramp,
    with_batch_norm,
)
from cropray.training.state import copied, load_optimizer_state
from cropray.types import UNLABELLED, Batch

T = TypeVar("T")

_ARRAYS = ("s1_bcthw", "s2_bcthw", "label_bhw", "crop_b")
Inputs = tuple[Tensor, ...]
"""Those arrays on the device (int16, int16, uint8, int64), and months (B, T) and places (B, 2) if needed."""


@dataclass(frozen=True)
class StepResult:
    """A step of all ranks; one that is not `finite` changed nothing.

    `terms` are on the CPU, in float64; `asked` is what rank 0 asked all to do.
    """

    head: str
    loss: float
    terms: LossTerms
    samples: int
    gradient_norm: float
    finite: bool
    asked: int


class Trainer:
    """A network in training on one device.

    `new_head`: its head has no batch norm statistics yet. `also` names the auxiliary heads that learn; others
    stay as they are. Raises InputError for a batch norm that the ranks cannot have.
    """

    def __init__(
        self,
        network: CropNetwork,
        normalisation: Normalisation,
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device,
        *,
        precision: Precision = "float32",
        new_head: bool = True,
        compiled: bool = False,
        also: Sequence[str] = (),
    ) -> None:
        self.normalisation, self.recipe, self.device = normalisation, recipe, device
        self.steps_per_epoch, self.precision, self._new_head = steps_per_epoch, precision, new_head
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        network = with_batch_norm(network.to(device), recipe.batch_norm, self.world_size, device)
        for name, head in network.heads.items():
            head.requires_grad_(requires_grad=name in also)
        self.network = self.published = network
        self._average: AveragedModel | None = None
        self._statistics = [Statistics(network)]
        if recipe.ema is not None:
            self._average = moving_average(network, recipe.ema)
            self.published = cast(CropNetwork, self._average.module)
            self._statistics.append(Statistics(self.published))
        # No step depends on running statistics: none is sent before the epoch's end (`agree`).
        names = signature(DistributedDataParallel).parameters
        options: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False,
            "gradient_as_bucket_view": True,
            "find_unused_parameters": bool(also),  # a step of one head leaves the others without gradients
        }
        self._ddp = DistributedDataParallel(network, **options) if several else None
        self._module: Any = network if self._ddp is None else self._ddp
        if compiled:
            self._module = torch.compile(self._module)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(network, recipe, also)
        self._pending: AsyncMetrics[tuple[Batch, str]] = AsyncMetrics(device)
        self.skipped, self.suspects = 0, list[str]()
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = False  # of the loss's sums

    @property
    def rates(self) -> list[float]:
        """The learning rates of body and heads at the last step."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def train_mode(self) -> None:
        """Call it before the first step and after every validation."""
        set_train_mode(self.network, self.recipe.batch_norm, new_head=self._new_head)

    def agree(self) -> None:
        """Give all ranks the running statistics of rank 0; each has those of its own samples before."""
        if self.world_size > 1:
            for statistics in self._statistics:
                dist.broadcast(statistics.all, 0)

    def ahead(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Inputs]]:
        """Batches for `step`; on a GPU the next one is copied there during a step."""
        return prefetched(batches, self._arrays, self.device)

    def step(
        self,
        batch: Batch,
        epoch: int,
        index: int,
        ask: int = 0,
        head: str = MAIN,
        sent: Inputs | None = None,
    ) -> list[StepResult]:
        """Step `index` of an epoch (both 0-based) of a head, with this rank's part of its samples.

        All ranks learn what rank 0 `ask`s for. Returns the results that are known by now: on a CPU this
        step's, on a GPU an earlier one's. Raises InputError after too many steps without finite numbers.
        """
        s1, s2, label, *others = sent or to_device(self._arrays(batch), self.device)
        names, recipe = batch.rows["sample_id"], self.recipe
        if recipe.augment:
            s1, s2, label = apply_symmetries((s1, s2, label), draw_symmetries(names, recipe.seed, epoch))
        place = epoch * self.steps_per_epoch + min(index, self.steps_per_epoch - 1)
        ramp = teacher_ramp(place, recipe.epochs * self.steps_per_epoch) if recipe.loss.teacher else 0.0
        taught = self._taught(s1, s2, label, others[1:]) if ramp and head == MAIN else None
        if recipe.any_date or recipe.loss.teacher:
            fewest = recipe.min_months if recipe.any_date else s1.shape[2]
            rates = (fewest, recipe.whole_windows, recipe.drop_months, recipe.drop_sensors)
            s1, s2 = without(s1, s2, draw_seen(names, recipe.seed, epoch, s1.shape[2], *rates))
        metrics = self._step((s1, s2, label, *others), place, ask, head, taught, ramp)
        self._pending.put(metrics, (batch, head))
        return self.settle(all_of_them=False)

    def settle(self, *, all_of_them: bool = True) -> list[StepResult]:
        """The results that are still to come, or those that are due. Call it before a state is taken."""
        results = []
        for metrics, (batch, head) in self._pending.due(all_of_them=all_of_them):
            (samples, asked, norm), x = metrics[4:7].tolist(), metrics.double()
            terms, finite = LossTerms(x[7:11], x[:4], x[12:], x[11]), bool(x.isfinite().all())
            loss = total(terms, self.recipe.loss).item()
            results.append(StepResult(head, loss, terms, int(samples), norm, finite, int(asked)))
            if not finite:
                self._note_skipped(batch, head)
        return results

    def _step(
        self, inputs: Inputs, place: int, ask: int, head: str, taught: Tensor | None, ramp: float
    ) -> Tensor:
        """The metrics of the step at `place` (0-based) of the training, as `settle` reads them."""
        _, _, label, crop, *_ = inputs
        before = torch.empty(6, device=self.device)  # the denominators of all ranks' pixels, first
        before[:4] = loss_counts(label, crop, self.n_classes(head), self.recipe.loss, taught)
        before[4], before[5] = len(label), ask if self.rank == 0 else 0
        if self.world_size > 1:
            dist.all_reduce(before)
        self._statistics[0].keep()
        self._optimizer.zero_grad()
        after = self._backward(inputs, before[:4], head, taught, ramp)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.recipe.clip_norm, norm)
        # The gradients are those of all ranks by now, and so is the loss: all decide alike.
        finite = after.isfinite().all() & norm.isfinite()
        steps = self.recipe.epochs * self.steps_per_epoch
        factor = rate_factor(place, steps, self.recipe.schedule, self.recipe.warmup_fraction)
        for group in self._optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor
        # Fused optimizers change nothing if this is 1 (it is made for loss scaling), so that nobody waits
        # for the device.
        self._optimizer.found_inf = (~finite).float()
        self._optimizer.step()
        self._statistics[0].put_back_unless(finite)
        if self._average is not None:
            self._average.update_parameters(self.network)
        return torch.cat((before, norm[None], after))

    @torch.inference_mode()
    def logits(self, batch: Batch, head: str = MAIN) -> tuple[Tensor, LossTerms]:
        """Logits (B, K, H, W) of a batch by the published network in evaluation mode, and their terms."""
        self.published.eval()
        s1, s2, label, crop, *months = to_device(self._arrays(batch), self.device)
        logits = self._forward(self.published, s1, s2, head, months)
        return logits, loss_terms(logits, label, crop, self.recipe.loss)

    def state(self) -> dict[str, Any]:
        """What a later process needs to resume: a copy on the CPU of tensors, numbers and strings."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "skipped": self.skipped,
            "suspects": list(self.suspects),
        }
        if self._average is not None:
            updates = int(self._average.n_averaged) - 1
            state |= {"average": self.published.state_dict(), "updates": updates}
        return cast(dict[str, Any], copied(state))

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        self.skipped, self.suspects = state["skipped"], list(state["suspects"])
        if self._average is not None:
            self.published.load_state_dict(state["average"])
            self._average.n_averaged.fill_(state["updates"] + 1)

    def n_classes(self, head: str = MAIN) -> int:
        return int(self.network.head_parameters(head)[-1].shape[0])  # its last bias

    def no_terms(self, head: str = MAIN) -> LossTerms:
        """The terms of nothing, to add others to: on the CPU, in float64."""
        four, classes = (torch.zeros(n, dtype=torch.float64) for n in (4, self.n_classes(head)))
        return LossTerms(four, four, classes, torch.zeros((), dtype=torch.float64))

    def of_all_ranks(self, mine: T) -> list[T]:
        """What each rank gives, by rank. All ranks call it alike."""
        if self.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, mine)
        return found

    @torch.no_grad()
    def _taught(self, s1: Tensor, s2: Tensor, label: Tensor, months: Sequence[Tensor]) -> Tensor:
        """The classes (B, H, W) of which the moving average is sure where no label is; UNLABELLED elsewhere.

        It sees all months of the samples (mean teacher; Tarvainen and Valpola 2017, arXiv:1703.01780).
        """
        if self.world_size > 1 and len(statistics := self._statistics[-1].all):
            dist.broadcast(statistics, 0)  # an interruption leaves those of rank 0
        logits = self._forward(self.published.eval(), s1, s2, MAIN, months)
        best, taught = logits.float().sigmoid().max(1)
        sure = (best > self.recipe.teacher_confidence) & (label == UNLABELLED)
        return taught.to(label.dtype).where(sure, label.new_tensor(UNLABELLED))

    def _backward(
        self, inputs: Inputs, counts: Tensor, head: str, taught: Tensor | None, ramp: float
    ) -> Tensor:
        """Gradients of the loss over all ranks' samples; its sums over these."""
        n_parts = min(self.recipe.accumulate, len(inputs[0]))
        parts = list(zip(*(x.tensor_split(n_parts) for x in inputs), strict=True))
        teaching = [None] * n_parts if taught is None else taught.tensor_split(n_parts)
        so_far = torch.zeros(5 + self.n_classes(head), device=self.device)
        waiting = None
        for number, ((s1, s2, label, crop, *months), told) in enumerate(zip(parts, teaching, strict=True), 1):
            last = number == n_parts
            with nullcontext() if last or self._ddp is None else self._ddp.no_sync():
                logits = self._forward(self._module, s1, s2, head, months)
                terms = loss_terms(logits, label, crop, self.recipe.loss, told, ramp)
                so_far += torch.cat((terms.sums.detach(), terms.known[None], terms.class_sums))
                if last and self.world_size > 1:  # on its way during the last gradients
                    waiting = dist.all_reduce(so_far, async_op=True)
                loss = total(replace(terms, counts=counts), self.recipe.loss)
                torch.autograd.backward(loss * self.world_size)  # the ranks' gradients are averaged
        if waiting is not None:
            waiting.wait()
        return so_far

    def _forward(
        self, module: nn.Module, s1_int16: Tensor, s2_int16: Tensor, head: str, months: Sequence[Tensor]
    ) -> Tensor:
        inputs = self.normalisation.apply(s1_int16, s2_int16)
        # bfloat16 has the range of float32, so nothing is scaled.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits: Tensor = module(*inputs, head, *months)
        return logits

    def _arrays(self, batch: Batch) -> tuple[Any, ...]:
        told = ["month_bt"] * self.network.needs_months + ["place_b2"] * self.network.needs_places
        return tuple(getattr(batch, name) for name in (*_ARRAYS, *told))

    def _note_skipped(self, batch: Batch, head: str) -> None:
        """Count a step that changed nothing, and find the samples to blame. All ranks call it alike."""
        self.skipped += 1
        named = [name for names in self.of_all_ranks(self._not_finite(batch, head)) for name in names]
        self.suspects += [name for name in named if name not in self.suspects]
        if self.skipped <= self.recipe.max_nonfinite:
            return
        limit = self.recipe.max_nonfinite
        skipped = f"{counted(self.skipped, 'step')} had no finite loss or gradient (max_nonfinite is {limit})"
        if len(named) in (0, sum(self.of_all_ranks(len(batch.rows["sample_id"])))):
            raise DivergedError(
                f"{skipped}; no single sample is to blame: the training diverged. Lower the learning rate "
                "(lr), or clip gradients (clip_norm)"
            )
        names = ", ".join(self.suspects)
        raise InputError(
            f"{skipped}; the loss of these samples is not finite: {names} (look: cropray shards show ID)"
        )

    def _not_finite(self, batch: Batch, head: str) -> list[str]:
        """Ids of the samples whose loss is not finite, each tried by itself."""
        names = []
        for i, name in enumerate(batch.rows["sample_id"]):
            one = replace(batch, **{field: getattr(batch, field)[i : i + 1] for field in _ARRAYS})
            if not self.logits(one, head)[1].sums.isfinite().all():
                names.append(str(name))
        self.train_mode()
        return names


_arrays = attrgetter(*_ARRAYS)

"""What `train.py` times: trainings of a given size, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode
from train_data import MONTHS, N_CLASSES, SIZE

from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.losses import LossRecipe
from cropray.models.normalisation import FixedNormalisation
from cropray.training.recipe import Precision, Recipe, initial_network
from cropray.training.step import Trainer
from cropray.types import Batch

RATE = 1e-3


@dataclass(frozen=True)
class Size:
    """What one turn is."""

    batch: int
    steps: int
    stem: int | None = None
    precision: Precision = "float32"
    compiled: bool = False


SIZES: dict[str, dict[int, Size]] = {
    # Width 8 is the demonstration's, 64 the published one.
    "cpu": {8: Size(4, 12, stem=16), 16: Size(8, 4), 64: Size(4, 2)},
    "cuda": {
        8: Size(128, 40, 16, "bfloat16"),
        16: Size(128, 40, None, "bfloat16"),
        64: Size(128, 20, None, "bfloat16"),
    },
}


def spec(width: int, size: Size) -> NetworkSpec:
    return NetworkSpec(N_CLASSES, width, MONTHS, stem=size.stem, validity=FixedNormalisation.validity)


def trainer(width: int, size: Size, device: torch.device) -> Trainer:
    recipe = Recipe(
        epochs=1,
        lr=RATE,
        head_lr=RATE,
        loss=LossRecipe(),
        weight_decay=0.01,  # AdamW's own default
        schedule="constant",
        warmup_fraction=0.0,
        augment=False,
    )
    return Trainer(
        initial_network(spec(width, size), 0),
        FixedNormalisation(),
        recipe,
        size.steps,
        device,
        precision=size.precision,
        compiled=size.compiled,
    )


def resident(batches: Sequence[Batch], device: torch.device) -> list[Batch]:
    """The same batches on the device."""

    def moved(values: npt.NDArray[Any]) -> Any:
        return values if device.type == "cpu" else torch.from_numpy(values).to(device)

    return [
        replace(
            batch,
            s1_bcthw=moved(batch.s1_bcthw),
            s2_bcthw=moved(batch.s2_bcthw),
            label_bhw=moved(batch.label_bhw),
            crop_b=moved(batch.crop_b),
        )
        for batch in batches
    ]


def trained(run: Trainer, batches: Iterable[Batch]) -> list[float]:
    """The loss of each step of an epoch."""
    run.train_mode()
    sent = enumerate(run.ahead(batches))
    results = [result for i, (batch, there) in sent for result in run.step(batch, 0, i, sent=there)]
    return [result.loss for result in [*results, *run.settle()]]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    runs: dict[str, Callable[[], object]], samples: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median samples a second of each, after one turn that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            rate = samples / seconds(run, device)
            if turn:
                taken[name].append(rate)
    return {name: statistics.median(rates) for name, rates in taken.items()}


def gflop_trained(width: int, size: Size) -> float:
    """Of one sample: three times the forward pass."""
    network = spec(width, size).build_empty()
    s1, s2, valid = (torch.empty(1, n, MONTHS, SIZE, SIZE, device="meta") for n in (2, 10, 2))
    with FlopCounterMode(display=False) as counter:
        network(s1, s2, valid)
    return 3e-9 * float(counter.get_total_flops())

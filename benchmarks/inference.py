"""Prediction of a whole tile against a plain tiled loop: speed, cost, and how far the results differ.

    python benchmarks/inference.py [--width 64] [--side 512] [--model FOLDER] [--json]

Both sides predict the same tile with the same weights, patches, batches and blending, one thread each, in
turn; CPU seconds, the median of several. The plain loop runs the network as it was trained, in float32. With
random weights, which are used unless a checkpoint folder is given, the share of changed classes means little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import nn

from cropray.grid import Window
from cropray.models.blending import blended, patch_weights, patches_over
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation
from cropray.storage import Folder
from cropray.types import FloatArray, IntArray, Precision

USD_AN_HOUR = 0.04
"""Assumed price of one virtual CPU, on demand."""

PATCH, OVERLAP, BATCH = 64, 16, 16
PIXEL_KM2 = 1e-4


def random_checkpoint(width: int) -> Checkpoint:
    torch.manual_seed(0)
    classes = tuple(f"crop{n}" for n in range(8))
    spec = NetworkSpec(len(classes), width=width, validity=True, head="conv")
    network = spec.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    window = {"anchor": "as_of", "months": 6, "lead_months": 0, "as_of": None}
    return Checkpoint(classes, spec, FixedNormalisation(), window, "gamma0", network.state_dict())


def imagery(checkpoint: Checkpoint, side: int) -> tuple[IntArray, IntArray]:
    """Stored integers (C, T, side, side) of fields of 8 px."""
    rng, fields = np.random.default_rng(0), -(-side // 8)

    def cube(bands: int, low: int, high: int) -> IntArray:
        values = rng.integers(low, high, (bands, checkpoint.months, fields, fields), dtype=np.int16)
        return values.repeat(8, axis=2).repeat(8, axis=3)[..., :side, :side]

    return cube(len(checkpoint.s1_bands), -2200, -600), cube(len(checkpoint.s2_bands), 200, 4500)


def plain_loop(checkpoint: Checkpoint) -> Callable[[IntArray, IntArray, list[Window]], FloatArray]:
    """What a user writes first: batches of patches through the network, and their weighted mean."""
    network, decision = checkpoint.build(), checkpoint.decision(None)
    bias_k11 = torch.tensor(decision.biases or [0.0] * len(checkpoint.classes))[:, None, None]

    def predict(s1_cthw: IntArray, s2_cthw: IntArray, patches: list[Window]) -> FloatArray:
        total = np.zeros((len(checkpoint.classes), *s1_cthw.shape[2:]), np.float32)
        weight, weights_hw = np.zeros(s1_cthw.shape[2:], np.float32), patch_weights(PATCH, OVERLAP)
        for start in range(0, len(patches), BATCH):
            batch = patches[start : start + BATCH]
            cubes = [
                torch.from_numpy(np.stack([cube[:, :, *each.slices] for each in batch]))
                for cube in (s1_cthw, s2_cthw)
            ]
            with torch.inference_mode():
                logits = network(*checkpoint.normalisation.apply(*cubes))
                values = ((logits - bias_k11) / decision.temperature).sigmoid().numpy()
            for patch, value in zip(batch, values, strict=True):
                total[:, *patch.slices] += value * weights_hw
                weight[patch.slices] += weights_hw
        return total / weight

    return predict


def compare(
    checkpoint: Checkpoint, side: int, precisions: list[Precision], repeats: int
) -> list[dict[str, object]]:
    """A row for the plain loop, and one for each precision."""
    s1_cthw, s2_cthw = imagery(checkpoint, side)
    patches = patches_over(Window(0, 0, side, side), (side, side), PATCH, OVERLAP)
    loop = plain_loop(checkpoint)
    sides: dict[str, Callable[[], FloatArray]] = {"plain loop": lambda: loop(s1_cthw, s2_cthw, patches)}
    for precision in precisions:
        predictor = Predictor(checkpoint, precision=precision)

        def ours(predictor: Predictor = predictor) -> FloatArray:
            return blended(predictor, s1_cthw, s2_cthw, patches, OVERLAP, BATCH)

        sides[precision] = ours
    values = {name: work() for name, work in sides.items()}  # and a first, slower turn for all
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    plain, wanted = statistics.median(times["plain loop"]), values["plain loop"]
    decide = checkpoint.decision(None).decide
    rows: list[dict[str, object]] = []
    for name, seconds in times.items():
        cpu_s = statistics.median(seconds)
        rate = side * side * PIXEL_KM2 / cpu_s
        rows.append(
            {
                "side": name,
                "cpu_s": round(cpu_s, 2),
                "times": round(plain / cpu_s, 2),
                "km2_s_core": round(rate, 3),
                "usd_1000_km2": round(1000 / rate / 3600 * USD_AN_HOUR, 4),
                "largest_difference": float(np.abs(values[name] - wanted).max()),
                "changed_classes": float((decide(values[name]) != decide(wanted)).mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of a network with random weights")
    parser.add_argument("--model", type=Path, help="checkpoint folder, instead of random weights")
    parser.add_argument("--side", type=int, default=512, help="of the tile, in pixels of 10 m")
    parser.add_argument(
        "--precision", nargs="+", choices=get_args(Precision), default=["float32", "bfloat16"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = arguments.model
    checkpoint = load_checkpoint(Folder(str(given))) if given else random_checkpoint(arguments.width)
    rows = compare(checkpoint, arguments.side, arguments.precision, arguments.repeats)
    if arguments.json:
        print(json.dumps({"width": checkpoint.network.width, "side": arguments.side, "sides": rows}))
        return
    print(f"width {checkpoint.network.width}, {arguments.side} px, USD {USD_AN_HOUR} an hour and CPU")
    for row in rows:
        print(
            f"{row['side']:12}{row['cpu_s']:8} CPU s  x{row['times']:<6}{row['km2_s_core']:8} km²/s a core"
            f"  USD {row['usd_1000_km2']} a 1,000 km²  differs by {row['largest_difference']:.1e},"
            f" classes {row['changed_classes']:.2%}"
        )


if __name__ == "__main__":
    main()

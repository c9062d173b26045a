"""Training: samples a second beside a plain PyTorch loop, by workers, on a GPU, and fed from shards.

    python benchmarks/train.py [--device cpu|cuda] [--parts beside workers feed ray] [--widths N …]
                               [--profile] [--json]

beside   one run beside the loop of `train_peer.py` on the same device and threads: the same weights to
         start with (logits compared), the same batches, the same losses of the first steps (compared). The
         two take turns. On a GPU, batches lie there already; the share of its bfloat16 peak counts forward
         three times (multiplications and additions, convolutions alone).
workers  two processes on a core each, joined by gloo, beside one of them alone on its core, in turns; and
         both at a time as if alone ("two apart"): what the machine itself loses when both cores work.
feed     batches from Parquet by the reader of shards, as integers that are normalised on the device,
         beside the same batches that lie there already, in turns.
ray      the driver of `cropray pretrain` on a small simulated run: time to the first step after Ray's own
         start, and two workers beside one. Only this part imports ray.

Data are smooth random fields of 64 x 64 pixels, 6 months, 12 bands, 21 classes. All figures are medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from train_data import MONTHS, N_CLASSES, make_batches, write_shards
from train_peer import PlainLoop, PlainNetwork, StoredBatch
from train_runs import RATE, SIZES, Size, gflop_trained, in_turns, resident, seconds, trained, trainer

from cropray.shards.reader import ShardReader
from cropray.training.step import Trainer
from cropray.types import Batch

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 of NVIDIA's data sheets (SXM), by what the device's name holds."""
TARGETS = {
    "beside": "ours at least as fast as the plain loop, hoped for 1.2 times",
    "workers": "two at least 1.6 times one",
    "feed": "fed at least 0.95 of resident",
    "ray": "first step within 15 s; two workers at least 1.6 times one",
}

Figures = dict[str, Any]


def beside(width: int, size: Size, repeats: int, device: torch.device) -> Figures:
    batches = resident(make_batches(size.batch, size.steps), device)
    stored = [as_tensors(batch) for batch in batches]
    ours = trainer(width, size, device)
    plain = PlainLoop(PlainNetwork(N_CLASSES, width, MONTHS, size.stem), N_CLASSES, RATE, device)
    plain.network.load_state_dict(ours.network.state_dict())
    check_same(ours, plain, batches[:3], stored[:3], exact=size.precision == "float32")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates = in_turns(
        {"ours": lambda: trained(ours, batches), "plain": lambda: plain.epoch(stored)},
        size.batch * size.steps,
        repeats,
        device,
    )
    figures: Figures = {"batch": size.batch, **rates, "ratio": rates["ours"] / rates["plain"]}
    if device.type == "cuda":
        figures |= device_figures(width, size, rates["ours"], device)
        torch.cuda.reset_peak_memory_stats()
        trained(ours, batches)
        figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def as_tensors(batch: Batch) -> StoredBatch:
    values = (torch.as_tensor(x) for x in (batch.s1_bcthw, batch.s2_bcthw, batch.label_bhw))
    return cast(StoredBatch, tuple(values))


def check_same(
    ours: Trainer, plain: PlainLoop, batches: Sequence[Batch], stored: Sequence[StoredBatch], *, exact: bool
) -> None:
    """Raises AssertionError unless logits, and the losses of the first steps, are the same to rounding.

    That is the rounding of float32 where `exact`, else of bfloat16.
    """
    plain.network.eval()
    with torch.no_grad():
        theirs = plain.logits(*stored[0][:2])
    torch.testing.assert_close(
        ours.logits(batches[0])[0].float(), theirs.float(), rtol=0, atol=1e-4 if exact else 5e-2
    )
    losses = [torch.tensor(x) for x in (trained(ours, batches), plain.epoch(stored))]
    torch.testing.assert_close(*losses, rtol=1e-3 if exact else 2e-2, atol=0)


def device_figures(width: int, size: Size, rate: float, device: torch.device) -> Figures:
    name, work = torch.cuda.get_device_name(device), gflop_trained(width, size)
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    return {
        "gflop_a_sample": work,
        "tflops": rate * work / 1e3,
        "share_of_peak": None if peak is None else rate * work * 1e9 / peak,
    }


def feed(width: int, size: Size, repeats: int, device: torch.device) -> Figures:
    run = trainer(width, size, device)
    with tempfile.TemporaryDirectory(prefix="cropray-train-") as folder:
        uris = write_shards(Path(folder), size.batch * size.steps)
        reader = ShardReader(uris, batch_size=size.batch)
        there = resident(list(reader.epoch(0)), device)
        rates = in_turns(
            {"resident": lambda: trained(run, there), "fed": lambda: trained(run, reader.epoch(0))},
            size.batch * size.steps,
            repeats,
            device,
        )
    share = rates["fed"] / rates["resident"]
    return {"batch": size.batch, **rates, "ratio": share}


def workers(width: int, size: Size, repeats: int) -> Figures:
    """Both processes live all the time; while one works alone, the other waits."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two workers need two cores")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="cropray-train-") as folder:
        result = Path(folder) / "rates.json"
        processes = [
            context.Process(target=_worker, args=(rank, core, width, size, repeats, result))
            for rank, core in enumerate(cores)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("a worker failed")
        rates: dict[str, float] = json.loads(result.read_text())
    return {"batch": size.batch, **rates, "ratio": rates["two"] / rates["one"]}


def _worker(rank: int, core: int, width: int, size: Size, repeats: int, result: Path) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    device = torch.device("cpu")
    batches = make_batches(size.batch, size.steps, seed=rank)
    alone = trainer(width, size, device)  # before there is a group: it knows of no other rank
    dist.init_process_group("gloo", init_method=f"file://{result}.join", rank=rank, world_size=2)
    together = trainer(width, size, device)
    samples = size.batch * size.steps
    taken: dict[str, list[float]] = {"one": [], "two": [], "two apart": []}
    for turn in range(repeats + 1):
        for name, run, ranks in (("one", alone, 1), ("two", together, 2), ("two apart", alone, 2)):
            dist.barrier()
            taken_s = seconds(partial(trained, run, batches), device) if rank < ranks else 0.0
            if rank == 0 and turn:
                taken[name].append(ranks * samples / taken_s)
    if rank == 0:
        result.write_text(json.dumps({name: statistics.median(rates) for name, rates in taken.items()}))
    dist.destroy_process_group()


def profile(width: int, size: Size, device: torch.device) -> str:
    """Where the time of our steps goes, by operation."""
    batches = resident(make_batches(size.batch, min(size.steps, 5)), device)
    run = trainer(width, size, device)
    trained(run, batches)
    with torch.profiler.profile() as found:
        trained(run, batches)
    key = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


def measured(arguments: argparse.Namespace, sizes: dict[int, Size]) -> dict[str, Figures]:
    """Figures by part and width."""
    device, repeats = torch.device(arguments.device), arguments.repeats
    runs: dict[str, Callable[[int, Size], Figures]] = {
        "beside": lambda width, size: beside(width, size, repeats, device),
        "workers": lambda width, size: workers(width, size, repeats),
        "feed": lambda width, size: feed(width, size, repeats, device),
    }
    figures: dict[str, Figures] = {}
    for part in arguments.parts:
        if part == "ray":
            from train_ray import through_ray

            with tempfile.TemporaryDirectory(prefix="cropray-train-") as folder:
                figures[part] = {"demonstration": through_ray(Path(folder))}
            continue
        figures[part] = {}
        for width, size in sizes.items():
            sys.stderr.write(f"{part}, width {width}\n")
            figures[part][f"width {width}"] = runs[part](width, size)
    return figures


def shown(figures: dict[str, Figures]) -> str:
    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = []
    for part, rows in figures.items():
        lines.append(f"{part}: {TARGETS[part]}")
        for name, row in rows.items():
            lines.append(f"  {name}: " + ", ".join(f"{key} {cell(value)}" for key, value in row.items()))
    return "\n".join(lines)


def setup(device: str) -> Figures:
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=TARGETS, default=["beside", "workers", "feed"])
    parser.add_argument("--widths", type=int, nargs="+", choices=sorted(SIZES["cpu"]), default=[8, 16, 64])
    parser.add_argument("--batch", type=int, help="samples a step, instead of each width's own")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="ours; else the device's own")
    parser.add_argument("--compiled", action="store_true", help="ours by torch.compile")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="only where the time goes, by operation")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    sizes = {width: SIZES[arguments.device][width] for width in arguments.widths}
    if arguments.batch:
        sizes = {width: replace(size, batch=arguments.batch) for width, size in sizes.items()}
    if arguments.precision:
        sizes = {width: replace(size, precision=arguments.precision) for width, size in sizes.items()}
    if arguments.compiled:
        sizes = {width: replace(size, compiled=True) for width, size in sizes.items()}
    torch.backends.cudnn.benchmark = True  # for both sides: shapes are always the same
    if arguments.profile:
        for width, size in sizes.items():
            print(f"width {width}, batch {size.batch}")
            print(profile(width, size, torch.device(arguments.device)))
        return
    about, figures = setup(arguments.device), measured(arguments, sizes)
    if arguments.json:
        print(json.dumps({**about, "figures": figures, "targets": TARGETS}))
    else:
        print(", ".join(f"{name}: {value}" for name, value in about.items()))
        print(shown(figures))


if __name__ == "__main__":
    main()

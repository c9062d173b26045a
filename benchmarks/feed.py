"""Samples a second from shards, beside a folder of GeoTIFFs of the usual kind.

    python benchmarks/feed.py [--samples N] [--repeats N] [--json]

The peer keeps a sample as the published system does: 13 uncompressed GeoTIFFs (six months of Sentinel-2 as
float32, six of Sentinel-1 as float64, a label as float64; 1.41 MB). It opens each with rasterio, normalises
with numpy and stacks batches. cropray verifies every checksum. "Stored" batches hold integers, as they go to
a GPU, which normalises them; "normalised" batches are the same float tensors as the peer's (checked), made
on the CPU. Each side reads the same patches of the simulated world in one process, from the page cache. Two
limits stand below: a read of a shard's bytes into memory, and a copy of them in memory.

Memory: one long epoch (5 GB of tensors: the shard many times) in a process of its own. Pages of mapped
files, which the system takes back when it wants them, are not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from torch import Tensor

from cropray.bands import NODATA, S1_BANDS, S2_BANDS
from cropray.config import Config
from cropray.config.imagery import LabelsConfig, PatchConfig
from cropray.imagery.simulated import SimulatedSource
from cropray.models.normalisation import SeedNormalisation
from cropray.pipeline.tiles import Tile, cut_patches, plan_tiles, shard_metadata
from cropray.rois.calendar import periods_for
from cropray.shards.file import shard_name, shard_uris
from cropray.shards.reader import ShardReader
from cropray.shards.schema import encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import UNLABELLED, ImageRequest, Patch, Roi

BATCH, ROW_GROUP, SIZE = 16, 32, 64
TARGET = 8000
CODECS, EPOCHS = ("lz4", "none"), 10
EPOCH_SAMPLES = 8416
CONFIG = Config(
    classes=("crop",), labels=LabelsConfig(parcels=False), patch=PatchConfig(max_overlap=0, tile_patches=8)
)

NORMALISATION = SeedNormalisation()  # the published system's

Tensors = tuple[Tensor, Tensor, Tensor]
"""s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W) float32, label (B, H, W) uint8."""


def make_data(count: int, folder: Folder, tiffs: Path) -> None:
    """`count` patches of the simulated world as shards of both codecs and as GeoTIFFs."""
    source = SimulatedSource(CONFIG.source.simulated)
    metadata = shard_metadata(CONFIG, source)
    bounds = (500_000.0, 5_600_000.0, 500_000.0 + 5120 * -(-count // 64), 5_605_120.0)
    roi = Roi("roi", "", "", "", "", "", bounds, "EPSG:32631", harvest_start=date(2022, 8, 1))
    periods = periods_for(CONFIG.window, roi.harvest_start)
    rows = []
    for tile in plan_tiles(roi, CONFIG.grid, CONFIG.patch):
        composite = source.composite(ImageRequest(tile.grid, tile.extent, periods))
        label_hw = source.class_map("truth", tile.grid).astype(np.uint8)
        known_hw = label_hw != UNLABELLED
        for patch in cut_patches(tile, composite, label_hw, known_hw, None)[: count - len(rows)]:
            _write_tiffs(patch, tile, tiffs / f"{len(rows):05d}")
            rows.append(encode_patch(patch, roi, tile.extent, periods))
    groups = [to_table(rows[i : i + ROW_GROUP], metadata) for i in range(0, count, ROW_GROUP)]
    for codec in ("none", "lz4", "compact"):
        write_shard(folder, shard_name(codec, 0), metadata, groups, codec=codec)


def _write_tiffs(patch: Patch, tile: Tile, folder: Path) -> None:
    folder.mkdir(parents=True)
    transform = rasterio.Affine(*tile.extent.transform)
    for sensor, stored_cthw, scale, dtype in (
        ("s2", patch.s2_cthw, S2_BANDS[0].scale, np.float32),
        ("s1", patch.s1_cthw, S1_BANDS[0].scale, np.float64),
    ):
        values_cthw = np.where(stored_cthw == NODATA, np.nan, stored_cthw * scale).astype(dtype)
        for month in range(values_cthw.shape[1]):
            _write_tiff(folder / f"{sensor}_{month}.tif", values_cthw[:, month], tile, transform)
    _write_tiff(folder / "label.tif", patch.label_hw[None].astype(np.float64), tile, transform)


def _write_tiff(path: Path, values_chw: npt.NDArray[np.floating], tile: Tile, transform: object) -> None:
    profile = {"count": len(values_chw), "height": SIZE, "width": SIZE, "dtype": values_chw.dtype.name}
    with rasterio.open(path, "w", "GTiff", crs=tile.extent.crs, transform=transform, **profile) as dst:
        dst.write(values_chw)


def tiff_batches(folder: Path) -> Iterator[Tensors]:
    """The published loader's way: sample by sample, month by month."""
    samples = sorted(folder.iterdir())
    for first in range(0, len(samples), BATCH):
        s1, s2, labels = zip(*(_tiff_sample(path) for path in samples[first : first + BATCH]), strict=True)
        yield tuple(torch.from_numpy(np.stack(parts)) for parts in (s1, s2, labels))


def _tiff_sample(folder: Path) -> tuple[npt.NDArray[np.float32], ...]:
    s1, s2 = [], []
    for month in range(6):
        s2_chw = np.nan_to_num(_read(folder / f"s2_{month}.tif"))
        s2.append(np.clip(s2_chw, 0.0001, 0.9999))
        s1_chw = np.clip(np.nan_to_num(_read(folder / f"s1_{month}.tif")), -25.0, 10.0)
        low, high = s1_chw.min(), s1_chw.max()
        span = high - low
        s1.append(np.clip((s1_chw - low) / span if span else np.zeros_like(s1_chw), 0.0001, 0.9999))
    label = _read(folder / "label.tif")[0].astype(np.uint8)
    return np.stack(s1, 1).astype(np.float32), np.stack(s2, 1).astype(np.float32), label


def _read(path: Path) -> npt.NDArray[np.floating]:
    with rasterio.open(path) as source:
        values: npt.NDArray[np.floating] = source.read()
    return values


def shard_batches(reader: ShardReader) -> Iterator[Tensors]:
    for batch in reader.epoch(0):
        s1, s2, _ = NORMALISATION.apply(torch.from_numpy(batch.s1_bcthw), torch.from_numpy(batch.s2_bcthw))
        yield s1, s2, torch.from_numpy(batch.label_bhw)


def check_same(one: Iterator[Tensors], two: Iterator[Tensors]) -> None:
    """Raises AssertionError unless both give the same batches (to the rounding of float32)."""
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def rate(run: Callable[[], object], samples: int) -> float:
    """Samples a second."""
    start = time.perf_counter()
    run()
    return samples / (time.perf_counter() - start)


def drain(batches: Iterator[object]) -> None:
    for _ in batches:
        pass


def measure(count: int, repeats: int, folder: Path) -> dict[str, float]:
    """Medians of samples a second by what was run; the runs take turns."""
    run = Folder(str(folder))
    make_data(count, run, folder / "tiffs")
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "GeoTIFFs": (lambda: drain(tiff_batches(folder / "tiffs")), 1)
    }
    for codec in CODECS:
        reader = ShardReader(shard_uris(run, codec), batch_size=BATCH, shuffle=False)
        check_same(shard_batches(reader), tiff_batches(folder / "tiffs"))
        runs[f"stored, {codec}"] = (lambda reader=reader: drain(reader.epoch(0)), EPOCHS)
        runs[f"normalised, {codec}"] = (lambda reader=reader: drain(shard_batches(reader)), EPOCHS)
    shard = Path(shard_uris(run, "none")[0])
    memory = np.ones(shard.stat().st_size, np.uint8)
    copied = np.ones_like(memory)

    def read_raw() -> None:
        with shard.open("rb", buffering=0) as file:
            file.readinto(memory)

    runs["limit: read of the file"] = (read_raw, EPOCHS)
    runs["limit: copy in memory"] = (lambda: np.copyto(copied, memory), EPOCHS)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (function, epochs) in runs.items():
            function()  # pages are mapped
            taken[name].append(rate(lambda f=function, n=epochs: [f() for _ in range(n)], count * epochs))
    return {name: statistics.median(rates) for name, rates in taken.items()}


def memory(uris: list[str]) -> dict[str, float]:
    """Peak MB of a process that reads a long epoch, over all of it and over its first tenth.

    They are the same, unless memory grows with what was read.
    """
    code = f"import feed; feed.read_and_report({uris!r})"
    place = {"cwd": Path(__file__).parent, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, **place)
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


def read_and_report(uris: list[str]) -> None:
    samples = len(ShardReader(uris, batch_size=BATCH).table)
    reader = ShardReader(uris * math.ceil(EPOCH_SAMPLES / samples), batch_size=BATCH)
    peak = early = 0.0
    for step, _ in enumerate(reader.epoch(0)):
        if step % 8 == 0:
            peak = max(peak, own_mb())
        if step == len(reader) // 10:
            early = peak
    print(json.dumps({"peak": peak, "early": early}))


def own_mb() -> float:
    """Memory of this process, without pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return sum(int(status.split(f"{kind}:")[1].split()[0]) for kind in ("RssAnon", "RssShmem")) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(args.samples, args.repeats, Path(folder))
        peaks = {codec: memory(shard_uris(Folder(folder), codec)) for codec in ("lz4", "compact")}
    ratios = {name: value / rates["GeoTIFFs"] for name, value in rates.items()}
    if args.json:
        setup = {"samples": args.samples, "batch": BATCH, "torch_threads": 1}
        print(
            json.dumps(
                {**setup, "samples_per_s": rates, "ratio": ratios, "target": TARGET, "memory_mb": peaks}
            )
        )
        return
    print(
        f"{args.samples} samples of {SIZE} x {SIZE} px, 6 months, 12 bands; median of {args.repeats} runs\n"
    )
    print(f"{'':34}{'samples/s':>10}{'ratio':>8}")
    for name, value in rates.items():
        print(f"{name:34}{value:10.0f}{ratios[name]:8.1f}")
    print(f"\ntarget: stored, lz4, at least {TARGET:,} samples/s: what an H200 trains in bfloat16")
    print(f"\npeak MB over {EPOCH_SAMPLES} samples (over the first tenth of them)\n")
    for codec, peak in peaks.items():
        print(f"{codec:34}{peak['peak']:10.0f} ({peak['early']:.0f})")


if __name__ == "__main__":
    main()

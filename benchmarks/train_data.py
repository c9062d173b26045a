"""Made-up samples for `train.py`: smooth random fields, as batches and as shards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cropray.grid import Grid
from cropray.shards.schema import ShardMetadata, encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import Batch, Patch, Period, Roi

N_CLASSES, MONTHS, SIZE = 21, 6, 64
ROW_GROUP, SHARD = 32, 512
KNOTS = 9  # a side: fields of about 80 m
LOW_HIGH = {"s2": (0, 6000), "s1": (-2500, 0)}
EXTENT = Grid("EPSG:32631", 500_000.0, 5_600_000.0, 10.0, SIZE, SIZE)
ROI = Roi("r", "", "", "", "", "train", EXTENT.bounds, EXTENT.crs)
PERIODS = [Period(date(2022, month, 1), date(2022, month + 1, 1)) for month in range(1, MONTHS + 1)]
METADATA = ShardMetadata(
    classes=tuple(f"class {i}" for i in range(N_CLASSES)),
    size=SIZE,
    window={"anchor": "as_of", "months": MONTHS, "lead_months": 0, "as_of": "2022-06-30"},
    s1_quantity="gamma0",
    recipe="0" * 16,
    source={"kind": "made up"},
)


def fields(count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Fields (count, H, W) in 0..1, bilinear between random values."""
    knots = torch.from_numpy(rng.random((1, count, KNOTS, KNOTS), np.float32))
    smooth = torch.nn.functional.interpolate(knots, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    return smooth[0].numpy()


def patches(count: int, seed: int = 0) -> Iterator[Patch]:
    """Samples of which each pixel is labelled."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        stored = {}
        for sensor, bands in (("s2", 10), ("s1", 2)):
            low, high = LOW_HIGH[sensor]
            values = low + (high - low) * fields(bands * MONTHS, rng)
            values += rng.normal(0, 0.01 * (high - low), values.shape)
            stored[sensor] = values.astype(np.int16).reshape(bands, MONTHS, SIZE, SIZE)
        label = (fields(1, rng)[0] * N_CLASSES).astype(np.uint8)
        yield Patch(f"{seed}-{number}", 0, 0, stored["s2"], stored["s1"], label)


def make_batches(batch: int, count: int, seed: int = 0) -> list[Batch]:
    """`count` batches of integers as they are stored."""
    made = []
    samples = patches(batch * count, seed)
    for _ in range(count):
        some = [next(samples) for _ in range(batch)]
        made.append(
            Batch(
                s1_bcthw=np.stack([p.s1_cthw for p in some]),
                s2_bcthw=np.stack([p.s2_cthw for p in some]),
                label_bhw=np.stack([p.label_hw for p in some]),
                truth_bhw=None,
                crop_b=np.full(batch, -1),
                rows={"sample_id": [p.sample_id for p in some]},
            )
        )
    return made


def write_shards(folder: Path, count: int) -> list[str]:
    """Shards of `count` samples under the default codec; their paths."""
    uris = []
    samples = patches(count)
    for first in range(0, count, SHARD):
        rows = [encode_patch(next(samples), ROI, EXTENT, PERIODS) for _ in range(min(SHARD, count - first))]
        groups = [to_table(rows[i : i + ROW_GROUP], METADATA) for i in range(0, len(rows), ROW_GROUP)]
        write_shard(Folder(str(folder)), f"{first:06d}.parquet", METADATA, groups, codec="lz4")
        uris.append(str(folder / f"{first:06d}.parquet"))
    return uris

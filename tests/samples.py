"""Small made-up samples for tests of shards and of what reads them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np

from cropray.bands import NODATA
from cropray.grid import Grid, Window, plan_starts
from cropray.shards.schema import ShardMetadata, encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import UNLABELLED, Patch, Period, Roi

SIZE = 16
PERIODS = (Period(date(2022, 3, 1), date(2022, 4, 1)), Period(date(2022, 4, 1), date(2022, 5, 1)))
EXTENT = Grid("EPSG:32639", 500_000.0, 4_000_000.0, 10.0, 640, 640)
ROI = Roi("maize-1", "maize", "spring", "فارس", "Iran", "train", (0, 0, 1, 1), "EPSG:4326")
METADATA = ShardMetadata(
    classes=("maize", "pea"),
    size=SIZE,
    window={"anchor": "harvest", "months": 2, "lead_months": 1, "as_of": None},
    s1_quantity="gamma0",
    recipe="0f",
    source={"kind": "made up"},
)


def plan_windows(height: int, width: int, size: int, max_overlap: int) -> list[Window]:
    """The patches of a raster of `height` by `width` pixels, row by row."""
    rows, cols = (plan_starts(length, size, max_overlap) for length in (height, width))
    return [Window(row, col, size, size) for row in rows for col in cols]


def make_patch(number: int) -> Patch:
    """Patch `number`: noise drawn from its number, its first month without a Sentinel-1 view."""
    rng = np.random.default_rng(number)
    s1 = rng.integers(-2500, 500, (2, 2, SIZE, SIZE), np.int16)
    s1[:, 0] = NODATA
    label = rng.integers(0, 2, (SIZE, SIZE), np.uint8)
    label[: SIZE // 4] = UNLABELLED
    return Patch(
        sample_id=f"maize-1-{number:05d}",
        row=number * SIZE,
        col=0,
        s2_cthw=rng.integers(0, 10_000, (10, 2, SIZE, SIZE), np.int16),
        s1_cthw=s1,
        label_hw=label,
    )


def make_rows(numbers: Sequence[int], split: str = "train") -> list[dict[str, Any]]:
    roi = replace(ROI, split=split)
    return [encode_patch(make_patch(number), roi, EXTENT, PERIODS) for number in numbers]


def write_samples(
    folder: Folder,
    numbers: Sequence[int],
    *,
    shard_samples: int = 8,
    group_samples: int = 4,
    codec: str = "lz4",
    metadata: ShardMetadata = METADATA,
) -> list[str]:
    """Shards of the patches of these numbers, in their order; their URIs."""
    uris = []
    for start in range(0, len(numbers), shard_samples):
        rows = make_rows(numbers[start : start + shard_samples])
        groups = [to_table(rows[i : i + group_samples], metadata) for i in range(0, len(rows), group_samples)]
        name = f"{start // shard_samples:05d}.parquet"
        write_shard(folder, name, metadata, groups, codec=codec)
        uris.append(f"{folder.uri}/{name}")
    return uris

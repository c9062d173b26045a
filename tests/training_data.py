"""A small learnable data set as shards: three classes that differ in one band, mostly unlabelled."""

from dataclasses import replace
from datetime import date

import numpy as np

from cropray.bands import NODATA
from cropray.config import Config
from cropray.grid import Grid
from cropray.run import Run
from cropray.shards.schema import ShardMetadata, encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNLABELLED, Patch, Period, Roi

CLASSES = ("maize", "onion", "tomato")
SIZE, MONTHS = 16, 3
METADATA = ShardMetadata(
    classes=CLASSES,
    size=SIZE,
    window={"anchor": "harvest", "months": MONTHS, "lead_months": 1, "as_of": None},
    s1_quantity="gamma0",
    recipe="0" * 16,
    source={"kind": "test"},
)
PERIODS = [Period(date(2022, 4 + i, 1), date(2022, 5 + i, 1)) for i in range(MONTHS)]
EXTENT = Grid("EPSG:32631", 500_000, 5_000_000, 10.0, SIZE, SIZE)


def make_patch(rng: np.random.Generator, name: str, crop: int) -> Patch:
    """Vertical halves: the crop, whose band `crop` is bright, and background; a third is labelled."""
    s2 = rng.normal(2000, 300, (10, MONTHS, SIZE, SIZE))
    s1 = rng.normal(-1200, 200, (2, MONTHS, SIZE, SIZE))
    is_crop = np.zeros((SIZE, SIZE), bool)
    is_crop[:, : SIZE // 2] = True
    s2[crop, :, is_crop] += 2500
    s2[:, 0, :2] = NODATA
    label = np.where(is_crop, crop, BACKGROUND)
    label[rng.random((SIZE, SIZE)) > 0.3] = UNLABELLED
    return Patch(name, 0, 0, s2.astype(np.int16), s1.astype(np.int16), label.astype(np.uint8))


def write_split(
    folder: Folder, split: str, samples: int, *, seed: int = 0, unlabelled_from: int | None = None
) -> None:
    """Perhaps without any label from a sample on."""
    rng = np.random.default_rng([seed, len(split)])
    rows = []
    for i in range(samples):
        crop = i % len(CLASSES)
        roi = Roi(f"{split}-{i}", CLASSES[crop], "", "", "", split, (0, 0, 1, 1), "EPSG:32631")
        patch = make_patch(rng, f"{split}-{i}", crop)
        if unlabelled_from is not None and i >= unlabelled_from:
            patch = replace(patch, label_hw=np.full_like(patch.label_hw, UNLABELLED))
        rows.append(encode_patch(patch, roi, EXTENT, PERIODS))
    for part in range(2):
        groups = [to_table(rows[start : start + 8 : 2], METADATA) for start in range(part, samples, 8)]
        write_shard(folder, f"shards/{split}/{part:05d}.parquet", METADATA, groups, codec="lz4")


def make_run(folder: Folder, **settings: object) -> Run:
    """A run whose stages before the training are done, with a narrow network."""
    training = {"epochs": 3, "batch_size": 4, "lr": 0.01, "threads": 1, **settings}
    config = Config.model_validate(
        {
            "classes": CLASSES,
            "window": {"months": MONTHS},
            "model": {"width": 4},
            "pretrain": training,
            "finetune": training,
        }
    )
    run = Run(folder, config)
    for stage in ("rois", "export", "compact"):
        run.finish(stage, {"made": "by a test"})
    return run

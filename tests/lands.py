"""A small land whose truth is known, and a run folder with its shards and an untrained network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch

from cropray.bands import NODATA
from cropray.config import Config
from cropray.config.imagery import PatchConfig, SourceConfig
from cropray.config.rois import RoisConfig, SplitConfig, WindowConfig
from cropray.config.training import EvaluateConfig
from cropray.grid import Grid
from cropray.models.checkpoint import Checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.heads import keep_heads, starting_weights
from cropray.models.normalisation import FixedNormalisation
from cropray.run import Run
from cropray.shards.file import shard_name
from cropray.shards.schema import ShardMetadata, encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNLABELLED, Patch, Period, Roi
from tests.samples import plan_windows

CLASSES = ("maize", "pea")
MONTHS, SIZE = 2, 32
PERIODS = tuple(Period(date(2022, month, 1), date(2022, month + 1, 1)) for month in (4, 5))
SHAPES = {"train": [(32, 32), (48, 80), (70, 40)], "val": [(50, 50), (32, 60)], "test": [(71, 45), (32, 32)]}


@dataclass(frozen=True)
class Land:
    """One ROI as it is: what the patches are cut from."""

    roi: Roi
    s1_cthw: np.ndarray
    s2_cthw: np.ndarray
    label_hw: np.ndarray
    truth_hw: np.ndarray

    @property
    def seen_hw(self) -> np.ndarray:
        return ((self.s1_cthw != NODATA) | (self.s2_cthw[:2] != NODATA)).any(axis=(0, 1))


def make_land(split: str, index: int, shape: tuple[int, int]) -> Land:
    """Fields of 8 x 8 pixels; maize is bright in the first band and pea in the second."""
    rng = np.random.default_rng([len(split), index])
    fields = rng.choice(np.array([0, 1, BACKGROUND], np.uint8), (shape[0] // 8 + 1, shape[1] // 8 + 1))
    truth = np.kron(fields, np.ones((8, 8), np.uint8))[: shape[0], : shape[1]]
    s2 = rng.normal(1000, 150, (10, MONTHS, *shape))
    s2[0] += 2000 * (truth == 0)
    s2[1] += 2000 * (truth == 1)
    s1 = rng.normal(-1200, 100, (2, MONTHS, *shape))
    s2[:, 0, :5] = NODATA
    s1[..., -2:, :9] = s2[..., -2:, :9] = NODATA  # never seen
    own = index % len(CLASSES)
    told = np.kron(rng.random(fields.shape) < 0.5, np.ones((8, 8), bool))[: shape[0], : shape[1]]
    label = np.where(told & np.isin(truth, [own, BACKGROUND]), truth, UNLABELLED).astype(np.uint8)
    roi = Roi(f"{split}-{index}", CLASSES[own], "2022", "", "", split, (0, 0, 1, 1), "EPSG:32632")
    return Land(roi, s1.astype(np.int16), s2.astype(np.int16), label, truth)


LANDS = {split: [make_land(split, i, s) for i, s in enumerate(shapes)] for split, shapes in SHAPES.items()}


def write_land(folder: Folder, *, with_truth: bool, provinces: Mapping[str, str] | None = None) -> None:
    """The shards of LANDS. `provinces` names that of each split."""
    window = {"anchor": "harvest", "months": MONTHS, "lead_months": 1, "as_of": None}
    source = {"kind": "simulated", "s1_quantity": "gamma0"}
    metadata = ShardMetadata(CLASSES, SIZE, window, "gamma0", "recipe", source, has_truth=with_truth)
    for split, lands in LANDS.items():
        rows = []
        for number, land in enumerate(lands):  # 5 km apart
            roi = replace(land.roi, province=(provinces or {}).get(split, ""))
            extent = Grid("EPSG:32632", 500_000 + 5_000 * number, 5_000_000, 10, *land.truth_hw.shape)
            for window in plan_windows(*extent.shape, SIZE, 16):
                part = window.slices
                patch = Patch(
                    f"{land.roi.roi_id}-{window.row}-{window.col}",
                    window.row,
                    window.col,
                    land.s2_cthw[:, :, *part],
                    land.s1_cthw[:, :, *part],
                    land.label_hw[part],
                    land.truth_hw[part] if with_truth else None,
                )
                rows.append(encode_patch(patch, roi, extent, PERIODS))
        order = np.random.default_rng(0).permutation(len(rows))  # as compaction leaves them
        groups = [to_table([rows[i] for i in order[k : k + 4]], metadata) for k in range(0, len(rows), 4)]
        write_shard(folder, shard_name(split, 0), metadata, groups, codec="lz4")


def small_checkpoint(thresholds: tuple[float, ...] | None) -> Checkpoint:
    torch.manual_seed(3)
    network = NetworkSpec(n_classes=2, width=2, months=MONTHS)
    return Checkpoint(
        CLASSES,
        network,
        FixedNormalisation(),
        {"anchor": "harvest", "months": MONTHS, "lead_months": 1, "as_of": None},
        "gamma0",
        network.build().state_dict(),
        thresholds=thresholds,
    )


def ready_run(
    folder: str,
    *,
    with_truth: bool = True,
    thresholds: tuple[float, ...] | None = (0.5, 0.5),
    buffer_m: float = 1000,
    provinces: Mapping[str, str] | None = None,
) -> Run:
    """A run whose stages before the evaluation are done."""
    settings = EvaluateConfig(forest_trees=20, forest_pixels=3000, bootstrap=200)
    config = Config(
        classes=CLASSES,
        rois=RoisConfig(split=SplitConfig(buffer_m=buffer_m)),
        window=WindowConfig(months=MONTHS),
        source=SourceConfig(kind="simulated"),
        evaluate=settings,
        patch=PatchConfig(size=SIZE, max_overlap=16),
    )
    run = Run(Folder(folder), config)
    for stage in ("rois", "export", "compact"):
        run.finish(stage, {})
    write_land(run.folder, with_truth=with_truth, provinces=provinces)
    save_checkpoint(small_checkpoint(thresholds), run.folder.child("models/finetune"))
    return run


def beside_others(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The main head of a checkpoint as the head `name` of another, whose main one is of other classes."""
    other = replace(checkpoint.network, n_classes=1)
    wanted = keep_heads(
        replace(checkpoint, classes=("forest",), network=other, thresholds=None), checkpoint, name
    )
    weights = wanted.network.build().state_dict() | starting_weights(checkpoint, wanted)
    return replace(wanted, weights=weights)

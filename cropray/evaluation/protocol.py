"""How far the test split is from the training: in the same provinces and years, or in others.

Spatial blocks within one year and province flatter every method: fields of another province or year differ
more from the training's than those beyond a buffer do.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

from cropray.evaluation.mosaics import MosaicTile
from cropray.models.checkpoint import Checkpoint
from cropray.models.shift import outside
from cropray.shards.reader import ShardReader


def protocol(test: ShardReader, train: Sequence[str], checkpoint: Checkpoint) -> dict[str, Any]:
    """What was left out of the training: "blocks", "region", "year", or "unknown" without a train split.

    Regions are the provinces and countries of the ROIs; they count only where all ROIs have one. Years are
    those of the last month. Without a train split, the checkpoint names one of the training.
    """
    trained, known = {date.fromisoformat(end).year for _, end in checkpoint.periods[-1:]}, set[str]()
    if train:
        reader = ShardReader(train, batch_size=1, shuffle=False)
        trained, known = _years(reader), _regions(reader)
    years, regions = _years(test), _regions(test)
    kind = "blocks" if train else "unknown"
    if train and regions and known and not regions & known:
        kind = "region"
    if trained and not years & trained:
        kind = "year"
    return {
        "left_out": kind,
        "years": {"train": sorted(trained), "test": sorted(years)},
        "regions": {"train": sorted(known), "test": sorted(regions)},
    }


class InputShift:
    """The share of a split's values outside the training data of a model (`shift.outside`)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._known, self._counts = checkpoint.input_range, np.zeros(2, np.int64)

    def add(self, tile: MosaicTile) -> None:
        self._counts += outside(tile.s1_cthw, tile.s2_cthw, self._known)

    @property
    def counts(self) -> tuple[int, int]:
        """Values outside, and all."""
        beyond, total = self._counts.tolist()
        return beyond, total

    @property
    def share(self) -> float | None:
        """None for a checkpoint of an earlier version, which keeps no range."""
        beyond, total = self.counts
        return beyond / total if total else None


def _years(reader: ShardReader) -> set[int]:
    return {periods[-1].year for periods in reader.table["period_end"].to_pylist()}


def _regions(reader: ShardReader) -> set[str]:
    columns = (reader.table[name].to_pylist() for name in ("country", "province"))
    names = {" ".join(filter(None, pair)) for pair in zip(*columns, strict=True)}
    return set() if "" in names else names

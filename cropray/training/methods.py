"""The methods that an evaluation compares: probabilities of a tile's pixels, thresholds from val."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cropray.models.decision import DEFAULT_THRESHOLD, choose_thresholds
from cropray.models.predictor import Predictor
from cropray.progress import Progress, progress
from cropray.shards.reader import ShardReader
from cropray.training.baselines import Forest, PixelSample, fit_forest, majority
from cropray.training.blocks import Tile, TilePlan, read_tile
from cropray.types import BACKGROUND, UNLABELLED, ByteArray, FloatArray

Thresholds = npt.NDArray[np.float32]

_BATCH = 16
_VAL_PIXELS = 1_000_000  # known pixels on which thresholds are chosen, at most: 4 bytes a class each


class Method(Protocol):
    """What gives every pixel of a tile its probabilities."""

    def probabilities(self, tile: Tile) -> FloatArray:
        """(K, H, W) of the tile; what stands where no patch lies is not read."""
        ...


@dataclass(frozen=True)
class Network:
    """The trained network: patches predicted one by one, their means where they overlap."""

    predictor: Predictor

    def probabilities(self, tile: Tile) -> FloatArray:
        starts = range(0, len(tile.s1_ncthw), _BATCH)
        parts = [
            self.predictor.probabilities(tile.s1_ncthw[i : i + _BATCH], tile.s2_ncthw[i : i + _BATCH])
            for i in starts
        ]
        return tile.mosaicked(np.concatenate(parts))


def fit_baselines(
    reader: ShardReader, *, unlabelled: str, pixels: int, trees: int, seed: int
) -> tuple[dict[str, Method], dict[str, Any]]:
    """The forest and the majority crop, fitted on the labels that the network was trained on.

    Pixels without a label are left out, or none of the crops where `unlabelled` is "negative", as in
    the loss. (A forest has no weak negatives: under "own_crop" they are left out too.) A pixel in
    the overlap of two patches is offered twice, as it is to the network. Returns the methods by name
    and what they rest on. Raises InputError where nothing is labelled.
    """
    n_classes = len(reader.metadata.classes)
    sample = PixelSample(pixels, seed)
    with progress("baselines", len(reader) + trees) as bar:
        for batch in reader.epoch(0):
            labels = batch.label_bhw
            if unlabelled == "negative":
                labels = np.where(labels == UNLABELLED, np.uint8(BACKGROUND), labels)
            for s1_cthw, s2_cthw, label_hw in zip(batch.s1_bcthw, batch.s2_bcthw, labels, strict=True):
                sample.add(s1_cthw, s2_cthw, label_hw)
            bar.advance(note="reading labels")
        forest: Forest = fit_forest(sample, n_classes, pixels=pixels, trees=trees, seed=seed, bar=bar)
    constant = majority(sample, n_classes)
    names = [*reader.metadata.classes]
    told = {
        "trees": trees,
        "pixels": min(pixels, sum(sample.seen.values())),
        "labelled_pixels": {
            names[label] if label < n_classes else "none": number
            for label, number in sorted(sample.seen.items())
        },
        "unlabelled": unlabelled,
        "majority": names[constant.crop],
    }
    return {"forest": forest, "majority": constant}, told


def thresholds_on(
    reader: ShardReader, plans: list[TilePlan], methods: Mapping[str, Method], bar: Progress, seed: int
) -> dict[str, Thresholds]:
    """Thresholds (K,) of each method, chosen on the labelled pixels of all tiles (or a share of them).

    Pixels that nothing saw are left out, as in the scores.
    """
    known = sum(reader.table["labelled_fraction"].to_pylist()) * reader.metadata.size**2
    share = min(1.0, _VAL_PIXELS / max(1.0, known))
    rng = np.random.default_rng(seed)
    labels: list[ByteArray] = []
    scores: dict[str, list[FloatArray]] = defaultdict(list)
    for plan in plans:
        tile = read_tile(reader, plan)
        known_hw = (tile.label_hw != UNLABELLED) & tile.seen_hw
        chosen = known_hw & (rng.random(tile.label_hw.shape) < share)
        labels.append(tile.label_hw[chosen])
        for name, method in methods.items():
            scores[name].append(method.probabilities(tile)[:, chosen].T)
        bar.advance()
    together = np.concatenate(labels)
    return {name: choose_thresholds(np.concatenate(parts), together) for name, parts in scores.items()}


def default_thresholds(n_classes: int) -> Thresholds:
    """(K,) for where there is nothing to choose them on."""
    return np.full(n_classes, DEFAULT_THRESHOLD, np.float32)

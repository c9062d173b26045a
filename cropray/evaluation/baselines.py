"""What a network must be better than: a random forest on single pixels, and the most frequent crop.

Both give probabilities by class, so that thresholds and decisions are those of the network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.evaluation.mosaics import Tile, TilePlan, read_tile
from cropray.models.decision import DEFAULT_THRESHOLD, Predictor, choose_thresholds
from cropray.progress import Progress, progress
from cropray.shards.reader import ShardReader
from cropray.types import BACKGROUND, UNLABELLED, BoolArray, ByteArray, FloatArray, IntArray

_PIXELS_AT_ONCE = 100_000
_TREES_AT_ONCE = 10


def pixel_features(s1_cthw: IntArray, s2_cthw: IntArray, where_hw: BoolArray) -> IntArray:
    """Features (P, F) of the pixels of a mask: all bands of all months, then validity by sensor and month.

    Stored integers as they are, since a tree needs no scale; without a valid view they are NODATA, a
    value that no measurement has, and the validity is 0.
    """
    flags = [(cube[:1] != NODATA).astype(np.int16) for cube in (s1_cthw, s2_cthw)]
    cubes = [cube[:, :, where_hw].reshape(-1, int(where_hw.sum())) for cube in (s1_cthw, s2_cthw, *flags)]
    return np.ascontiguousarray(np.concatenate(cubes).T)


class PixelSample:
    """A uniform sample of at most `capacity` pixels of each label, from a stream, in bounded memory.

    Every pixel draws a random key; those with the smallest keys of their label stay. `seen` counts
    the pixels offered, by label.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.seen: dict[int, int] = {}
        self._capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._kept: dict[int, tuple[npt.NDArray[np.float64], IntArray]] = {}

    def add(self, s1_cthw: IntArray, s2_cthw: IntArray, label_hw: ByteArray) -> None:
        """Offer the pixels of one patch; those whose label is UNLABELLED are left out."""
        for label in np.unique(label_hw[label_hw != UNLABELLED]).tolist():
            here = label_hw == label
            keys = self._rng.random(int(here.sum()))
            self.seen[label] = self.seen.get(label, 0) + len(keys)
            kept = self._kept.get(label)
            if kept is not None and len(kept[0]) == self._capacity:
                here[here] = keys < kept[0][-1]
                keys = keys[keys < kept[0][-1]]
            features = pixel_features(s1_cthw, s2_cthw, here)
            if kept is not None:
                keys, features = np.concatenate([kept[0], keys]), np.concatenate([kept[1], features])
            best = np.argsort(keys)[: self._capacity]
            self._kept[label] = keys[best], features[best]

    def drawn(self, total: int) -> tuple[IntArray, ByteArray]:
        """Features (P, F) and labels (P,) of at most `total` pixels, as evenly over labels as there are."""
        shares = even_shares({label: len(keys) for label, (keys, _) in self._kept.items()}, total)
        features = [self._kept[label][1][:share] for label, share in shares.items()]
        return np.concatenate(features), np.repeat(np.array(list(shares), np.uint8), list(shares.values()))


def even_shares(available: Mapping[int, int], total: int) -> dict[int, int]:
    """Parts of `total`, equal but for the keys of which fewer are available."""
    shares: dict[int, int] = {}
    for key, number in sorted(available.items(), key=lambda item: item[1]):
        shares[key] = min(number, (total - sum(shares.values())) // (len(available) - len(shares)))
    return shares


@dataclass(frozen=True)
class Forest:
    """A fitted forest; the probability of "none" is the rest to 1."""

    model: RandomForestClassifier
    n_classes: int

    def probabilities(self, tile: Tile) -> FloatArray:
        """Probabilities (K, H, W) of a tile's pixels; 0 for a class of which none was annotated."""
        s1_cthw, s2_cthw = tile.s1_cthw, tile.s2_cthw
        _, _, height, width = s1_cthw.shape
        rows_at_once = max(1, _PIXELS_AT_ONCE // width)
        values_khw = np.zeros((self.n_classes, height, width), np.float32)
        known = [k for k in self.model.classes_.tolist() if k != BACKGROUND]
        columns = np.flatnonzero(self.model.classes_ != BACKGROUND)
        for row in range(0, height, rows_at_once):
            rows = slice(row, row + rows_at_once)
            s1_part, s2_part = s1_cthw[:, :, rows], s2_cthw[:, :, rows]
            features = pixel_features(s1_part, s2_part, np.ones(s1_part.shape[2:], np.bool_))
            scores = self.model.predict_proba(features)[:, columns]
            values_khw[known, rows] = scores.T.reshape(len(known), -1, width)
        return values_khw


def fit_forest(
    sample: PixelSample, n_classes: int, *, pixels: int, trees: int, seed: int, bar: Progress
) -> Forest:
    """A random forest on at most `pixels` pixels of the sample; `bar` advances by its trees.

    It is the forest that scikit-learn grows at once: the trees that are there count in the seed of
    the next ones. Raises InputError without any label.
    """
    if not sample.seen:
        raise InputError("no pixel of the train split is labelled: there is nothing to fit a forest on")
    features, labels = sample.drawn(pixels)
    model = RandomForestClassifier(0, n_jobs=-1, random_state=seed, warm_start=True)
    while model.n_estimators < trees:
        more = min(_TREES_AT_ONCE, trees - model.n_estimators)
        model.set_params(n_estimators=model.n_estimators + more).fit(features, labels)
        bar.advance(more)
    return Forest(model, n_classes)


@dataclass(frozen=True)
class Majority:
    """The crop with the most annotated pixels, everywhere."""

    crop: int
    n_classes: int

    def probabilities(self, tile: Tile) -> FloatArray:
        values_khw = np.zeros((self.n_classes, *tile.label_hw.shape), np.float32)
        values_khw[self.crop] = 1
        return values_khw


def majority(sample: PixelSample, n_classes: int) -> Majority:
    """Raises InputError where no crop is annotated."""
    crops = {label: number for label, number in sample.seen.items() if label != BACKGROUND}
    if not crops:
        raise InputError("no pixel of the train split is annotated with a crop")
    return Majority(max(crops, key=lambda label: crops[label]), n_classes)


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

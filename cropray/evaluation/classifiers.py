"""Classifiers that an evaluation compares: the trained network, classifiers of pixels, the majority crop.

Each gives class probabilities for the pixels of a tile and says how they become classes, by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.evaluation.mosaics import MosaicTile, TilePlan
from cropray.models.blending import Patched, blended, blended_each
from cropray.models.checkpoint import Checkpoint
from cropray.models.decision import UNCALIBRATED, Decision
from cropray.models.inference import Predictor
from cropray.types import BACKGROUND, UNLABELLED, BoolArray, ByteArray, FloatArray, IntArray, Precision

_PATCHES_AT_ONCE = 16
_PIXELS_AT_ONCE = 100_000
_PIXELS_TOGETHER = 4096  # of tiles that are worth a group: less than a patch has
_WORTH_THREADS = 4096  # pixels; starting threads takes a tenth of a second


class Classifier(Protocol):
    """Gives every pixel of a tile its class probabilities, calibrated by its decision."""

    @property
    def decision(self) -> Decision: ...

    def probabilities(self, tile: MosaicTile) -> FloatArray:
        """Probabilities (K, H, W); values of pixels without imagery are ignored."""
        ...

    def probabilities_at(self, tile: MosaicTile, where_hw: BoolArray) -> FloatArray:
        """Probabilities (P, K) of the pixels in a mask."""
        ...


class Network:
    """The trained network, on a GPU if there is one. It predicts a tile as a map does.

    With `months`, an any-date network sees the first of its window alone.
    """

    def __init__(
        self, checkpoint: Checkpoint, months: int | None = None, precision: Precision = "float32"
    ) -> None:
        self.predictor = Predictor(checkpoint, "cuda" if torch.cuda.is_available() else "cpu", precision)
        self._months = months

    @property
    def decision(self) -> Decision:
        return self.predictor.decision(self._months)

    def probabilities(self, tile: MosaicTile) -> FloatArray:
        plan, months = tile.plan, slice(self._months)
        s1_cthw, s2_cthw = tile.s1_hull_cthw[:, months], tile.s2_hull_cthw[:, months]
        values_khw = blended(
            self.predictor, s1_cthw, s2_cthw, plan.patches, plan.overlap, _PATCHES_AT_ONCE, plan.grid
        )
        return values_khw[:, *plan.inner.slices]

    def probabilities_at(self, tile: MosaicTile, where_hw: BoolArray) -> FloatArray:
        return self.probabilities(tile)[:, where_hw].T

    def together(self, tiles: Sequence[MosaicTile]) -> list[FloatArray]:
        months, plan = slice(self._months), tiles[0].plan
        rasters = [
            Patched(
                tile.s1_hull_cthw[:, months], tile.s2_hull_cthw[:, months], tile.plan.patches, tile.plan.grid
            )
            for tile in tiles
        ]
        batch_size = max(_PATCHES_AT_ONCE, _PIXELS_TOGETHER // plan.patches[0].height ** 2)
        made = blended_each(self.predictor, rasters, plan.overlap, batch_size)
        return [values[:, *t.plan.inner.slices] for values, t in zip(made, tiles, strict=True)]


def scored(classifier: Classifier, tiles: Sequence[MosaicTile]) -> list[FloatArray]:
    """Probabilities (K, H, W) of each tile. Those of a group (`grouped`) are computed together."""
    if len(tiles) > 1 and isinstance(classifier, Network | PixelClassifier):
        return classifier.together(tiles)
    return [classifier.probabilities(tile) for tile in tiles]


def scored_at(
    classifier: Classifier, tiles: Sequence[MosaicTile], where: Sequence[BoolArray]
) -> list[FloatArray]:
    """Probabilities (P, K) of the pixels in a mask of each tile."""
    pairs = zip(tiles, where, strict=True)
    if len(tiles) == 1:
        return [classifier.probabilities_at(tile, where_hw) for tile, where_hw in pairs]
    made = scored(classifier, tiles)
    return [values_khw[:, where_hw].T for values_khw, where_hw in zip(made, where, strict=True)]


def grouped(plans: Sequence[TilePlan]) -> Iterator[list[TilePlan]]:
    """The plans in order, small ones in groups: a call of a classifier costs as much as thousands of pixels.

    Point series have tiles of one pixel.
    """
    group, pixels = list[TilePlan](), 0
    for plan in plans:
        size = plan.hull[0] * plan.hull[1]
        if group and pixels + size > _PIXELS_TOGETHER:
            yield group
            group, pixels = [], 0
        group, pixels = [*group, plan], pixels + size
    if group:
        yield group


def pixel_features(s1_cthw: IntArray, s2_cthw: IntArray, where_hw: BoolArray) -> IntArray:
    """Features (P, F) of the pixels in a mask: all bands of all months, then validity by sensor and month.

    Stored integers are used unscaled, since trees are invariant to scale. A missing value is NODATA, which
    no measurement has.
    """
    flags = [(cube[:1] != NODATA).astype(np.int16) for cube in (s1_cthw, s2_cthw)]
    cubes = [cube[:, :, where_hw].reshape(-1, int(where_hw.sum())) for cube in (s1_cthw, s2_cthw, *flags)]
    return np.ascontiguousarray(np.concatenate(cubes).T)


class PixelSample:
    """A uniform sample of at most `capacity` pixels per label from a stream, in bounded memory.

    Every pixel draws a random key, and the smallest keys of each label are kept. `seen` counts the offered
    pixels by label.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.seen: dict[int, int] = {}
        self._capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._kept: dict[int, tuple[npt.NDArray[np.float64], IntArray]] = {}

    def add(self, s1_cthw: IntArray, s2_cthw: IntArray, label_hw: ByteArray) -> None:
        """Offer the labelled pixels of one patch."""
        for label in np.unique(label_hw[label_hw != UNLABELLED]).tolist():
            here = label_hw == label
            keys = self._rng.random(int(here.sum()))
            self.seen[label] = self.seen.get(label, 0) + len(keys)
            features = pixel_features(s1_cthw, s2_cthw, here)
            if kept := self._kept.get(label):
                keys, features = np.concatenate([kept[0], keys]), np.concatenate([kept[1], features])
            best = np.argsort(keys)[: self._capacity]
            self._kept[label] = keys[best], features[best]

    def drawn(self, total: int) -> tuple[IntArray, ByteArray]:
        """Features (P, F) and labels (P,) of at most `total` pixels, divided evenly among the labels."""
        shares = even_shares({label: len(keys) for label, (keys, _) in self._kept.items()}, total)
        features = [self._kept[label][1][:share] for label, share in shares.items()]
        return np.concatenate(features), np.repeat(np.array(list(shares), np.uint8), list(shares.values()))

    def majority(self) -> int:
        """The crop with the most offered pixels. Raises InputError if no crop was offered."""
        crops = {label: number for label, number in self.seen.items() if label != BACKGROUND}
        if not crops:
            raise InputError("no pixel of the train split is labelled as a crop: add parcels to it")
        return max(crops, key=lambda label: crops[label])


def even_shares(available: Mapping[int, int], total: int) -> dict[int, int]:
    """Divide `total` evenly; a key with less available gets all it has."""
    shares: dict[int, int] = {}
    for key, number in sorted(available.items(), key=lambda item: item[1]):
        shares[key] = min(number, (total - sum(shares.values())) // (len(available) - len(shares)))
    return shares


@dataclass(frozen=True)
class PixelClassifier:
    """A fitted classifier of pixels by their first months. A class without training pixels has 0."""

    model: Any  # of scikit-learn
    n_classes: int
    months: int
    decision: Decision = UNCALIBRATED

    def probabilities(self, tile: MosaicTile) -> FloatArray:
        height, width = tile.label_hw.shape
        values_khw = np.zeros((self.n_classes, height, width), np.float32)
        rows_at_once = max(1, _PIXELS_AT_ONCE // width)
        for row in range(0, height, rows_at_once):
            where_hw = np.zeros((height, width), np.bool_)
            where_hw[row : row + rows_at_once] = True
            values_khw[:, where_hw] = self.probabilities_at(tile, where_hw).T
        return values_khw

    def probabilities_at(self, tile: MosaicTile, where_hw: BoolArray) -> FloatArray:
        if not where_hw.any():
            return np.zeros((0, self.n_classes), np.float32)
        return self._scores(self._features(tile, where_hw))

    def together(self, tiles: Sequence[MosaicTile]) -> list[FloatArray]:
        features = [self._features(tile, np.ones(tile.label_hw.shape, np.bool_)) for tile in tiles]
        ends = np.cumsum([len(each) for each in features])[:-1]
        parts = np.split(self._scores(np.concatenate(features)), ends)
        return [part.T.reshape(-1, *t.label_hw.shape) for part, t in zip(parts, tiles, strict=True)]

    def _features(self, tile: MosaicTile, where_hw: BoolArray) -> IntArray:
        return pixel_features(tile.s1_cthw[:, : self.months], tile.s2_cthw[:, : self.months], where_hw)

    def _scores(self, features: IntArray) -> FloatArray:
        values_pk = np.zeros((len(features), self.n_classes), np.float32)
        if hasattr(self.model, "n_jobs"):
            self.model.n_jobs = 1 if len(values_pk) < _WORTH_THREADS else -1
        is_crop = self.model.classes_ != BACKGROUND
        scores = self.model.predict_proba(features)
        values_pk[:, self.model.classes_[is_crop]] = scores[:, is_crop]
        return self.decision.calibrated(values_pk.T[:, :, None])[:, :, 0].T


@dataclass(frozen=True)
class Majority:
    """Predicts the crop with the most labelled pixels everywhere."""

    crop: int
    n_classes: int
    decision: Decision = UNCALIBRATED

    def probabilities(self, tile: MosaicTile) -> FloatArray:
        values_khw = np.zeros((self.n_classes, *tile.label_hw.shape), np.float32)
        values_khw[self.crop] = 1
        return values_khw

    def probabilities_at(self, tile: MosaicTile, where_hw: BoolArray) -> FloatArray:
        return self.probabilities(tile)[:, where_hw].T

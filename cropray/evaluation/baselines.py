"""Baselines on single pixels: the majority crop, and three classifiers of scikit-learn, each tuned on val.

They see what the network sees of a pixel: all bands of the months that are over, and their validity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cropray.bands import NODATA
from cropray.config.training import EvaluateConfig
from cropray.evaluation.classifiers import Majority, PixelClassifier, PixelSample
from cropray.progress import progress
from cropray.shards.reader import ShardReader
from cropray.types import BACKGROUND, UNLABELLED, BoolArray, ByteArray, IntArray

_PATCHES_AT_ONCE = 16
_VAL_PIXELS = 10_000
MAJORITY = "majority"

Fitted = dict[str, dict[int, PixelClassifier | Majority]]
"""By name, then by the number of months that are seen."""


@dataclass(frozen=True)
class _Kind:
    """A classifier with a setting that val chooses; the first choice is the default."""

    setting: str
    choices: tuple[float, ...]
    make: Callable[[EvaluateConfig, int, Any], Any]


def _forest(settings: EvaluateConfig, seed: int, leaf: int) -> Any:
    trees = settings.forest_trees
    return RandomForestClassifier(trees, min_samples_leaf=leaf, n_jobs=-1, random_state=seed)


def _logistic(_settings: EvaluateConfig, _seed: int, c: float) -> Any:
    filled = SimpleImputer(missing_values=NODATA, keep_empty_features=True)
    return make_pipeline(filled, StandardScaler(), LogisticRegression(C=c, max_iter=200))


def _boosting(_settings: EvaluateConfig, seed: int, leaves: int) -> Any:
    return HistGradientBoostingClassifier(
        max_iter=50, max_leaf_nodes=leaves, early_stopping=False, random_state=seed
    )


_KINDS = {
    "forest": _Kind("min_samples_leaf", (1, 5), _forest),
    "logistic": _Kind("C", (1.0, 0.01), _logistic),
    "boosting": _Kind("max_leaf_nodes", (31, 8), _boosting),
}


def fit_baselines(
    train: Sequence[str],
    val: Sequence[str],
    settings: EvaluateConfig,
    *,
    months: Sequence[int],
    unlabelled: str,
    seed: int,
) -> tuple[Fitted, dict[str, Any]]:
    """Fit the baselines on the labelled patches of train, anew for each number of `months`, the last of
    which are all.

    One setting of each is chosen on labelled pixels of val, with all months, by the macro-F1 of its most
    probable labels. With `unlabelled` "negative" a pixel without a label counts as no crop, as in the loss;
    otherwise it is left out. Returns the classifiers, and a description of them and their training data.
    Raises InputError if no crop is labelled.
    """
    reader, pixels = _labelled(train), settings.forest_pixels
    names, n_months = reader.metadata.classes, reader.metadata.months
    wanted = settings.wanted_baselines
    sample = sampled(reader, pixels, seed, unlabelled)
    most, (features, labels) = sample.majority(), sample.drawn(pixels)
    kinds = {name: kind for name, kind in _KINDS.items() if name in wanted and len(sample.seen) > 1}
    chosen: dict[str, float] = {name: kind.choices[0] for name, kind in kinds.items()}
    tried: dict[tuple[str, float], Any] = {}
    fitted: Fitted = {}
    trials = 2 * len(kinds) * settings.tune_baselines
    with progress("baselines", trials + len(kinds) * len(months)) as bar:
        if val and settings.tune_baselines:
            known = sampled(_labelled(val), _VAL_PIXELS, seed, unlabelled)
            judged = known.drawn(_VAL_PIXELS) if known.seen else None
            for name, kind in kinds.items():
                scores = []
                for choice in kind.choices if judged else ():
                    model = fit_model(kind.make(settings, seed, choice), features, labels)
                    tried[name, choice] = model
                    scores.append(_score(model, *judged) if judged else 0.0)
                    bar.advance()
                if scores:
                    chosen[name] = kind.choices[int(np.argmax(scores))]
        for name in wanted:
            if name == MAJORITY:
                fitted[name] = dict.fromkeys(months, Majority(most, len(names)))
            elif name in kinds:
                fitted[name] = {}
                for number in months:
                    seen = np.arange(features.shape[1]) % n_months < number
                    model = tried.get((name, chosen[name])) if seen.all() else None
                    if model is None:
                        made = kinds[name].make(settings, seed, chosen[name])
                        model = fit_model(made, features[:, seen], labels)
                    fitted[name][number] = PixelClassifier(model, len(names), number)
                    bar.advance()
    description = {
        "trees": settings.forest_trees,
        "settings": {name: {kinds[name].setting: value} for name, value in chosen.items()},
        "pixels": len(labels),
        "labelled_pixels": {
            "none" if label == BACKGROUND else names[label]: number
            for label, number in sorted(sample.seen.items())
        },
        "unlabelled": unlabelled,
        "majority": names[most],
    }
    return fitted, description


def sampled(reader: ShardReader, pixels: int, seed: int, unlabelled: str) -> PixelSample:
    """Labelled pixels of all patches. Those in the overlap of two are offered twice, as to the network."""
    sample = PixelSample(pixels, seed)
    for batch in reader.epoch(0):
        labels = batch.label_bhw
        if unlabelled == "negative":
            labels = np.where(labels == UNLABELLED, np.uint8(BACKGROUND), labels)
        for s1_cthw, s2_cthw, label_hw in zip(batch.s1_bcthw, batch.s2_bcthw, labels, strict=True):
            sample.add(s1_cthw, s2_cthw, label_hw)
    return sample


def fit_model(model: Any, features: IntArray, labels: ByteArray) -> Any:
    with warnings.catch_warnings():
        # A logistic regression that has not converged after its iterations is as good a baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return model


def _score(model: Any, features: IntArray, labels: ByteArray) -> float:
    return float(f1_score(labels, model.predict(features), average="macro", zero_division=0.0))


def _labelled(uris: Sequence[str]) -> ShardReader:
    def keep(table: pa.Table) -> BoolArray:
        return np.asarray(table["labelled_fraction"].to_numpy() > 0, np.bool_)

    return ShardReader(uris, batch_size=_PATCHES_AT_ONCE, shuffle=False, keep=keep)

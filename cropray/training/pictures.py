"""Pictures of a training for its record: its curves, and what its network sees on the validation split."""

from __future__ import annotations

import numpy as np

from cropray.figures.pictures import comparison_picture, curves_picture
from cropray.models.checkpoint import Checkpoint
from cropray.models.decision import decide
from cropray.models.predictor import Predictor
from cropray.shards.reader import ShardReader
from cropray.training.history import History

_SAMPLES = 4


def training_pictures(
    checkpoint: Checkpoint, history: History, val: ShardReader | None, title: str
) -> dict[str, bytes]:
    """PNGs by name: `curves.png`, and a few of the samples in `val`, each of another crop where it can be."""
    pictures = {"curves.png": curves_picture(history, title)}
    if val is None or not len(val.table):
        return pictures
    batch = val.take(_most_labelled(val))
    predictor = Predictor(checkpoint)
    probabilities = predictor.probabilities(batch.s1_bcthw, batch.s2_bcthw)
    truth = batch.label_bhw if batch.truth_bhw is None else batch.truth_bhw
    for i, name in enumerate(batch.rows["sample_id"]):
        seen = decide(probabilities[i], predictor.thresholds)
        pictures[f"predictions/{i + 1}.png"] = comparison_picture(
            truth[i], seen, checkpoint.classes, batch.s2_bcthw[i], str(name)
        )
    return pictures


def _most_labelled(val: ShardReader) -> list[int]:
    """Rows with the most labels, first of each crop, then again."""
    labelled = val.table["labelled_fraction"].to_numpy()
    crops = val.table["crop"].to_pylist()
    turns: dict[str, int] = {}
    keys = []
    for row in np.argsort(-labelled, kind="stable").tolist():
        turn = turns.get(crops[row], 0)
        turns[crops[row]] = turn + 1
        keys.append((turn, -labelled[row], row))
    return [row for _, _, row in sorted(keys)[:_SAMPLES]]

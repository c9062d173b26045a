"""Early-season accuracy on real labelled series, in spatial folds: choices on val, each test fold read once.

    python benchmarks/real_series.py FILE [--config FILE] [--folds N] [--partial] [--work FOLDER]
                                     [--set KEY=VALUE ...] [--json]

FILE is a table of point series in the long format of ESA WorldCereal's extractions. Folds are dealt out from
the cells of its column `h3_l3_cell`, and samples nearer than `rois.split.buffer_m` to a test fold are left
out of its training. Each fold is what a user does: import the rest (val by blocks), fine-tune, import the
test fold into another run, and evaluate the model there as of each date of `evaluate.as_of`. Figures are the
macro-F1 over the classes of all folds together. The random forest (100 trees) is fitted anew for each date,
on the same samples. With --work, finished stages are reused.

With --partial, training has the labels that a survey of single crops leaves: in each square of 25 km one
crop, that of a sample drawn at random, and of it 30 % of the samples. All others stay as samples without a
label; --set finetune.teacher=1 finetune.unlabelled_share=0.5 lets the network learn from them. Test folds
keep all their labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accuracy import ROOT
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.evaluation.evaluate import evaluate
from cropray.evaluation.metrics import macro_f1
from cropray.figures.charts import EVALUATION
from cropray.grid import transformer
from cropray.pipeline.import_series import import_series
from cropray.pipeline.series import match_codes
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.driver import finetune
from cropray.types import UNLABELLED

_EARTH_M = 6_371_000.0
_SQUARE_M, _SHARE = 25_000.0, 0.3


def deal_folds(samples: pd.DataFrame, folds: int) -> np.ndarray:
    """The fold of each sample: cells go, the largest first, to the fold whose classes lack them most."""
    counts = pd.crosstab(samples.h3_l3_cell, samples["class"])
    wanted = counts.sum().to_numpy() / folds
    order = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
    dealt, totals = {}, np.zeros((folds, counts.shape[1]))
    for cell in order:
        mine = counts.loc[cell].to_numpy()
        gain = (((totals + mine - wanted) / wanted) ** 2 - ((totals - wanted) / wanted) ** 2).sum(axis=1)
        dealt[cell] = int(np.argmin(gain))
        totals[dealt[cell]] += mine
    return samples.h3_l3_cell.map(dealt).to_numpy()


def places(samples: pd.DataFrame) -> np.ndarray:
    """(N, 3) metres from the centre of the Earth."""
    lon, lat = np.radians(samples.lon), np.radians(samples.lat)
    return _EARTH_M * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def partly_labelled(samples: pd.DataFrame, seed: int) -> np.ndarray:
    """Whether each sample keeps its label: one crop a square, and 30 % of its samples, at least one."""
    rng, kept = np.random.default_rng(seed), np.zeros(len(samples), bool)
    x, y = transformer("EPSG:4326", "EPSG:6933").transform(samples.lon.to_numpy(), samples.lat.to_numpy())
    squares = pd.DataFrame({"x": np.floor(x / _SQUARE_M), "y": np.floor(y / _SQUARE_M)})
    for rows in squares.groupby(["x", "y"]).indices.values():
        crop = samples["class"].iloc[rng.choice(rows)]
        own = rows[(samples["class"].iloc[rows] == crop).to_numpy()]
        kept[rng.choice(own, max(1, round(_SHARE * len(own))), replace=False)] = True
    return kept


def features(run: Run, splits: tuple[str, ...], months: int) -> tuple[np.ndarray, np.ndarray]:
    """All bands of the first months, and the labels, of the samples of some splits."""
    uris = [uri for split in splits for uri in shard_uris(run.folder, split)]
    batches = list(ShardReader(uris, batch_size=256, shuffle=False).epoch(0))
    cubes = [np.concatenate([batch.s2_bcthw, batch.s1_bcthw], axis=1)[:, :, :months] for batch in batches]
    labels = np.concatenate([batch.label_bhw.ravel() for batch in batches])
    known = labels != UNLABELLED
    return np.concatenate(cubes).reshape(len(labels), -1)[known], labels[known]


def run_fold(
    table: pd.DataFrame, known: pd.DataFrame, test: pd.Index, train: pd.Index, work: Path, config: Config
) -> tuple[list[dict[str, Any]], list[tuple[np.ndarray, np.ndarray]]]:
    """The network's rows of `by_as_of`, and truth and prediction of the forest, by date.

    Training has the labels that are `known`.
    """
    work.mkdir(parents=True, exist_ok=True)
    for name, labels, ids in (("rest", known, train), ("test", table, test)):
        labels[labels.sample_id.isin(ids)].to_parquet(work / f"{name}.parquet")
    rest = {"rois.split.test": 0.0, "series.keep_unlabelled": config.finetune.teacher > 0}
    first = Run(Folder(str(work / "run")), updated(config, rest))
    import_series([str(work / "rest.parquet")], first)
    finetune(first)
    model = {"evaluate.model": str(work / "run" / "models" / "finetune"), "evaluate.baselines": False}
    other = Run(Folder(str(work / "test")), updated(config, model | {"evaluate.bootstrap": 0}))
    import_series([str(work / "test.parquet")], other, "test")
    evaluate(other)
    rows = json.loads(other.folder.read_text(EVALUATION))["by_as_of"]
    forests = []
    for row in rows:
        forest = RandomForestClassifier(100, random_state=config.seed)
        forest.fit(*features(first, ("train", "val"), row["months"]))
        values, truth = features(other, ("test",), row["months"])
        forests.append((truth, forest.predict(values)))
    return rows, forests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--config", default=str(ROOT / "configs" / "canada.yaml"))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("--work", default="")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    table = pd.read_parquet(options.file)
    samples = table.drop_duplicates("sample_id").reset_index(drop=True)
    samples["class"], _ = match_codes(samples.CROPTYPE_LABEL.astype(str).tolist(), config.series)
    samples = samples[samples["class"].isin(config.classes)].reset_index(drop=True)
    fold_of, xyz = deal_folds(samples, options.folds), places(samples)
    blank = samples.sample_id[~partly_labelled(samples, config.seed)] if options.partial else ()
    known = table.assign(CROPTYPE_LABEL=table.CROPTYPE_LABEL.where(~table.sample_id.isin(blank), 0))
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for fold in range(options.folds):
            test = fold_of == fold
            near = cKDTree(xyz[test]).query(xyz)[0] < config.rois.split.buffer_m
            ids = samples.sample_id[test], samples.sample_id[~test & ~near]
            found.append(run_fold(table, known, *ids, Path(options.work or scratch) / f"fold-{fold}", config))
    lines = []
    for number, row in enumerate(found[0][0]):
        confusion = np.sum([rows[number]["confusion"] for rows, _ in found], axis=0)
        truth, predicted = (np.concatenate([forests[number][k] for _, forests in found]) for k in (0, 1))
        forest = f1_score(truth, predicted, average="macro", zero_division=0)
        lines.append({"as of": row["date"], "network": float(macro_f1(confusion)), "forest": float(forest)})
    if options.json:
        print(json.dumps(lines, indent=1))
        return
    print("| as of | network | random forest |\n|---|---|---|")
    for line in lines:
        print(f"| {line['as of']} | {line['network']:.3f} | {line['forest']:.3f} |")


if __name__ == "__main__":
    main()

"""Macro-F1 on whole held-out regions of the simulated world: the network against its baselines.

    python benchmarks/accuracy.py [--config FILE] [--seeds 0 1 2] [--published] [--work FOLDER] [--json]

Each seed is another world, split and start of the weights, and runs the real stages: pretraining,
fine-tuning, evaluation. --published adds the published recipe, in which every unlabelled pixel is a
negative of every crop, on the same shards and from the same pretrained network. Within a recipe, all
classifiers have the same pixels, labels, and choice of thresholds on val. The interval of a mean over seeds
is Student's t at 95 %. A seed's own interval, from a bootstrap of its regions, is in its evaluation.json.
With --work, finished stages are reused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from cropray.cluster import ray_session
from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.evaluation.evaluate import evaluate
from cropray.figures.charts import EVALUATION
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.rois.build import build_rois
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.driver import finetune, pretrain

ROOT = Path(__file__).parents[1]
NETWORK = "network"
LEVEL = 0.95
# What a second fine-tuning takes from the first: the regions, the shards, and the records of both.
SHARED = ("config.yaml", "world", "rois", "shards", "ledger.parquet")
SHARED_STAGES = ("rois", "export", "compact")


def measure(config: Config, seed: int, work: Path, *, published: bool) -> dict[str, float]:
    """Macro-F1 of one seed, by classifier."""
    config = updated(config, {"seed": seed, "source.simulated.seed": seed})
    folder = work / f"seed-{seed}"
    first = Run(Folder(str(folder / "pretraining")), updated(config, config.demo.pretraining))
    init = {"finetune.init": first.folder.child("models/pretrain").uri}
    recipe = Run(Folder(str(folder / "finetuning")), updated(config, init))
    with ray_session(config.ray):
        for stage in (build_rois, export, compact, pretrain):
            stage(first)
        for stage in (build_rois, export, compact, finetune, evaluate):
            stage(recipe)
        if not published:
            return scores(recipe)
        negative = {**init, "finetune.unlabelled": "negative"}
        other = Run(Folder(str(folder / "published")), updated(config, negative))
        share_shards(recipe, other)
        for stage in (finetune, evaluate):
            stage(other)
    published_scores = scores(other)
    named = {f"{name}, unlabelled = negative": published_scores[name] for name in (NETWORK, "forest")}
    return scores(recipe) | named


def share_shards(source: Run, target: Run) -> None:
    """Copy what both runs have in common, once."""
    if target.summary("compact") is not None:
        return
    src, dst = source.folder.local(), target.folder.local()
    for name in SHARED:
        if (src / name).is_dir():
            shutil.copytree(src / name, dst / name, dirs_exist_ok=True)
        elif (src / name).exists():
            dst.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(src / name, dst / name)
    (dst / "stages").mkdir(exist_ok=True)
    for stage in SHARED_STAGES:
        shutil.copyfile(src / f"stages/{stage}.json", dst / f"stages/{stage}.json")


def scores(run: Run) -> dict[str, float]:
    result = json.loads(run.folder.read_text(EVALUATION))
    if result["score"] != "macro_f1":
        raise SystemExit("the configuration has no labels.truth, so whole regions cannot be scored")
    return {name: float(row["score"]) for name, row in result["methods"].items()}


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean over seeds, and its t interval if there is more than one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "interval": None}
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * float(stats.sem(values))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def compare_seeds(by_seed: dict[int, dict[str, float]], subject: str = NETWORK) -> dict[str, Any]:
    """By classifier: scores by seed, their mean, and the mean lead of the subject, paired by seed."""
    names = next(iter(by_seed.values()))
    table = {}
    for name in names:
        values = [row[name] for row in by_seed.values()]
        ahead = [row[subject] - row[name] for row in by_seed.values()]
        table[name] = {"scores": values, **mean_interval(values), "ahead": mean_interval(ahead)}
    return table


def format_table(
    table: dict[str, Any], seeds: Sequence[int], score: str = "macro-F1", subject: str = NETWORK
) -> str:
    def cell(figures: dict[str, Any], sign: str = "") -> str:
        bounds = figures["interval"]
        interval = f" ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})" if bounds else ""
        return f"{figures['mean']:{sign}.3f}{interval}"

    width = max(len(name) for name in (*table, score))
    heads = "".join(f"{f'seed {seed}':>9}" for seed in seeds)
    lines = [f"{score:{width}}{heads}   {'mean (95 %)':26}{subject} ahead by (95 %)"]
    for name, row in table.items():
        values = "".join(f"{value:9.3f}" for value in row["scores"])
        ahead = "" if name == subject else cell(row["ahead"], "+")
        lines.append(f"{name:{width}}{values}   {cell(row):26}{ahead}".rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--published", action="store_true", help="also train with unlabelled = negative")
    parser.add_argument("--work", help="folder for the runs; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    with contextlib.ExitStack() as stack:
        work = arguments.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="cropray-accuracy-"))
        by_seed = {}
        for seed in arguments.seeds:
            sys.stderr.write(f"── seed {seed}\n")
            by_seed[seed] = measure(config, seed, Path(work), published=arguments.published)
    table = compare_seeds(by_seed)
    if arguments.json:
        print(json.dumps({"config": arguments.config, "seeds": arguments.seeds, "methods": table}))
    else:
        print(format_table(table, arguments.seeds))


if __name__ == "__main__":
    main()

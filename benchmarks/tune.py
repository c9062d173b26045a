"""What a sweep gains over the published fine-tuning rates, 1e-5 for the body and 1e-4 for the head.

    python benchmarks/tune.py [--seeds 0 1 2] [--set tune.trials=12] [--config FILE] [--work FOLDER] [--json]

Each seed is another world, split and start of the weights. All sides start from the same pretrained network
and train on the same shards, for the same epochs and steps: "sweep" is the best trial of `tune` with the
given configuration, "published rates" one fine-tuning with 1e-5 and 1e-4, "configured rates" one with the
rates of the configuration, which shows how much of the gain needs no sweep. Everything else is as
configured, for all sides. A sweep trains many times: the epochs of all its trials are reported.

Each side chooses its best epoch and its thresholds on val, and the sweep its trial. Test is read once, for
all sides together. Two 95 % intervals are reported: Student's t over the seeds, and for each seed a
bootstrap of its regions with the same draws for all sides, so differences are paired. With --work, finished
stages are reused, and seeds may run side by side (--seeds 0, --seeds 1, …) before all are requested
together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuracy import ROOT, compare_seeds, format_table, share_shards

from cropray.cluster import ray_session
from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.evaluation.promotion import paired_scores
from cropray.models.checkpoint import load_checkpoint
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.rois.build import build_rois
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.driver import finetune, pretrain
from cropray.training.validate import SCORE
from cropray.tuning.sweep import tune

SWEEP = "sweep"
PEERS: dict[str, dict[str, float]] = {
    "published rates": {"finetune.lr": 1e-5, "finetune.head_lr": 1e-4},
    "configured rates": {},
}


def measure(config: Config, seed: int, work: Path) -> dict[str, Any]:
    """Scores of one seed on val and test by side, their intervals, and a summary of the sweep."""
    config = updated(config, {"seed": seed, "source.simulated.seed": seed, "tune.evaluate": False})
    folder = work / f"seed-{seed}"
    regions = Run(Folder(str(folder / "regions")), updated(config, config.demo.pretraining))
    sites = Run(Folder(str(folder / "sites")), config)
    with ray_session(config.ray, dashboard=True):
        for stage in (build_rois, export, compact, pretrain):
            stage(regions)
        for stage in (build_rois, export, compact):
            stage(sites)
        init = {"finetune.init": regions.folder.child("models/pretrain").uri}
        runs = {SWEEP: Run(Folder(str(folder / SWEEP)), updated(config, init))}
        for name, rates in PEERS.items():
            runs[name] = Run(Folder(str(folder / name.replace(" ", "-"))), updated(config, init | rates))
        for run in runs.values():
            share_shards(sites, run)
        found = {name: (tune if name == SWEEP else finetune)(run) for name, run in runs.items()}
    models = {name: Folder(str(summary["model"])) for name, summary in found.items()}
    return {
        "val": {name: float(summary[SCORE]) for name, summary in found.items()},
        **read_test(sites, models),
        "sweep": sweep_summary(runs[SWEEP], found[SWEEP]),
    }


def read_test(run: Run, models: Mapping[str, Folder]) -> dict[str, Any]:
    """Macro-F1 on all pixels of the test regions, and the lead of the sweep, with intervals."""
    reader = ShardReader(shard_uris(run.folder, "test"), batch_size=32, shuffle=False)
    result = paired_scores(run, reader, {name: load_checkpoint(model) for name, model in models.items()})
    if result["score"] != "macro_f1":
        raise SystemExit("the configuration has no labels.truth, so whole regions cannot be scored")
    return {
        "test": {name: float(row["score"]) for name, row in result["methods"].items()},
        "test_interval": {name: row["interval"] for name, row in result["methods"].items()},
        "ahead": {name: row["score"] for name, row in result["differences"].items()},
        "ahead_interval": {name: row["interval"] for name, row in result["differences"].items()},
        "blocks": result["blocks"],
    }


def sweep_summary(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    table = json.loads(run.folder.read_text(f"tune/{run.config.tune.name}/sweep.json"))
    return {
        "trials": summary["trials"],
        "pruned": summary["pruned"],
        "epochs": sum(trial["epochs"] for trial in table["trials"]),
        "epochs_of_one": run.config.finetune.epochs,
        "best": summary["best_values"],
    }


def format_seed(seed: int, row: Mapping[str, Any]) -> str:
    """The bootstrap intervals of a seed, and a summary of its sweep."""

    def between(bounds: list[float] | None, sign: str = "") -> str:
        return f"({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})" if bounds else "(no interval)"

    lines = [f"seed {seed}: test macro-F1, bootstrap of its {row['blocks']} blocks of regions (95 %)"]
    for name, score in row["test"].items():
        line = f"  {name:17} {score:.3f} {between(row['test_interval'][name])}"
        if name in row["ahead"]:
            line += f"   sweep ahead by {row['ahead'][name]:+.3f} {between(row['ahead_interval'][name], '+')}"
        lines.append(line)
    sweep = row["sweep"]
    lines.append(
        f"  the sweep: {sweep['trials']} trials, {sweep['ended_early']} pruned, {sweep['epochs']} "
        f"epochs in all (one training: {sweep['epochs_of_one']}); best: "
        + ", ".join(f"{key}={_short(value)}" for key, value in sweep["best"].items())
    )
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", help="folder for the runs; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    with contextlib.ExitStack() as stack:
        work = arguments.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="cropray-tune-"))
        by_seed = {}
        for seed in arguments.seeds:
            sys.stderr.write(f"── seed {seed}\n")
            by_seed[seed] = measure(config, seed, Path(work))
    tables = {
        score: compare_seeds({seed: row[part] for seed, row in by_seed.items()}, SWEEP)
        for score, part in (("val mean AP", "val"), ("test macro-F1", "test"))
    }
    if arguments.json:
        everything = {"config": arguments.config, "set": arguments.set, "seeds": by_seed, **tables}
        print(json.dumps(everything))
        return
    parts = [format_table(table, arguments.seeds, score, SWEEP) for score, table in tables.items()]
    print("\n\n".join([*parts, *(format_seed(seed, row) for seed, row in by_seed.items())]))


if __name__ == "__main__":
    main()

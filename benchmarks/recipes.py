"""Recipes of training beside each other at equal steps on the simulated world: chosen on val, test read once.

    python benchmarks/recipes.py [--seeds 0 1 2] [--variant NAME KEY=VALUE ...] [--test NAME ...]
                                 [--config FILE] [--work FOLDER] [--json]

Every seed is another world, another split and another start of the weights. Each variant pretrains and
fine-tunes with the same shards, epochs and batch sizes; what else the configuration says of these two
stages stands for none of them. Without --variant the named recipes are compared, and the published one
with the rates of the modern one, which at few steps is the fairer peer:

    --variant modern recipe=modern
    --variant "modern, no balance" recipe=modern finetune.balance=null

`recipe` is that of both stages. The figure is the mean average precision over the crops on the known
pixels of val, by which variants are chosen. --test adds the macro-F1 on the whole land of the test
regions for the variants that it names, and reads nothing of test for the others. Intervals over seeds
are Student's t at 95 %; "ahead" is that of the first variant before each other, seed by seed. With
--work, finished stages are reused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import xxhash
import yaml
from accuracy import NETWORK, ROOT, compared, scores, share_shards, shown

from cropray.cluster import ray_session
from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.config.training import RECIPES
from cropray.evaluation.evaluate import evaluate
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.rois.build import build_rois
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.driver import finetune, pretrain
from cropray.training.validate import SCORE

STAGES = ("pretrain", "finetune")
EQUAL = ("epochs", "batch_size", "store_every", "workers", "threads")
_RATES = {
    f"{stage}.{key}": RECIPES["modern"][stage][key]
    for stage in STAGES
    for key in ("lr", "head_lr")
    if key in RECIPES["modern"][stage]
}
_SEED = {"recipe": "seed", "model.normalisation": "seed"}
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {"recipe": "modern"},
    "seed, rates of modern": {**_SEED, **_RATES},
    "seed": _SEED,
}


def measure(
    config: Config, seed: int, work: Path, variants: dict[str, dict[str, Any]], tested: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """By variant: mean average precision on val, and of those tested macro-F1 on test."""
    config = updated(config, {"seed": seed, "source.simulated.seed": seed})
    folder = work / f"seed-{seed}"
    sources = {
        "pretrain": Run(Folder(str(folder / "regions")), updated(config, config.demo.pretraining)),
        "finetune": Run(Folder(str(folder / "sites")), config),
    }
    on_val, on_test = {}, {}
    with ray_session(config.ray):
        for source in sources.values():
            for stage in (build_rois, export, compact):
                stage(source)
        for name, overrides in variants.items():
            body = trained(sources["pretrain"], overrides, "pretrain", folder)
            init = {"finetune.init": body.folder.child("models/pretrain").uri}
            run = trained(sources["finetune"], overrides | init, "finetune", folder)
            on_val[name] = float((run.summary("finetune") or {})[SCORE])
            if name in tested:
                evaluate(run)
                on_test[name] = scores(run)[NETWORK]
    return on_val, on_test


def trained(source: Run, overrides: dict[str, Any], stage: str, folder: Path) -> Run:
    """A training on the shards of `source`; one of the same settings is done once."""
    base = getattr(source.config, stage).model_dump()
    settings = {key: base[key] for key in EQUAL} | {"recipe": overrides["recipe"]}
    mine = {k: v for k, v in overrides.items() if k.startswith((f"{stage}.", "model."))}
    config = updated(source.config, {stage: settings, **mine})
    used = {name: getattr(config, name).model_dump(mode="json") for name in (stage, "model")}
    name = f"{stage}-{xxhash.xxh3_64_hexdigest(json.dumps(used, sort_keys=True).encode())}"
    run = Run(Folder(str(folder / name)), config)
    share_shards(source, run)
    {"pretrain": pretrain, "finetune": finetune}[stage](run)
    return run


def given_variants(groups: list[list[str]]) -> dict[str, dict[str, Any]]:
    variants = {}
    for name, *settings in groups:
        pairs = (setting.partition("=") for setting in settings)
        variants[name] = {key: yaml.safe_load(value) for key, _, value in pairs}
        if variants[name].get("recipe") not in RECIPES:
            raise SystemExit(f"variant {name!r} names no recipe: recipe=" + "|".join(RECIPES))
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--test", nargs="*", default=[], metavar="NAME", help="variants to read test for")
    parser.add_argument("--work", help="folder to keep the runs in; else a temporary one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    variants = given_variants(arguments.variant) or VARIANTS
    unknown = set(arguments.test) - set(variants)
    if unknown:
        raise SystemExit(f"--test names {', '.join(unknown)}; there are {', '.join(variants)}")
    val, test = {}, {}
    with contextlib.ExitStack() as stack:
        work = arguments.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="cropray-recipes-"))
        for seed in arguments.seeds:
            sys.stderr.write(f"── seed {seed}\n")
            val[seed], test[seed] = measure(config, seed, Path(work), variants, arguments.test)
    tables = {
        score: (compared(by_seed, first), first)
        for score, by_seed in (("val mean AP", val), ("test macro-F1", test))
        for first in [next(iter(by_seed[arguments.seeds[0]]), None)]
        if first is not None
    }
    if arguments.json:
        found = {score: table for score, (table, _) in tables.items()}
        print(json.dumps({"config": arguments.config, "seeds": arguments.seeds, **found}))
    else:
        print(
            "\n\n".join(
                shown(table, arguments.seeds, score, first) for score, (table, first) in tables.items()
            )
        )


if __name__ == "__main__":
    main()

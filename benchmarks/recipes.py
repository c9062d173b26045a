"""Training recipes compared at equal steps on the simulated world: chosen on val, test read once.

    python benchmarks/recipes.py [--seeds 0 1 2] [--variant NAME KEY=VALUE ...] [--test NAME ...]
                                 [--config FILE] [--work FOLDER] [--json]

Each seed is another world, split and start of the weights. All variants pretrain and fine-tune on the same
shards, for the same epochs, with the same batch sizes; other settings of these stages in the configuration
are ignored. The default variants are the named recipes, and the published one with the rates of the modern
one, which is a fairer peer at few steps:

    --variant modern recipe=modern
    --variant "modern, no balance" recipe=modern finetune.balance=null

`recipe` applies to both stages. Variants are chosen by the mean average precision over crops on the known
pixels of val. --test adds the macro-F1 on all pixels of the test regions for the variants it names, and
reads nothing of test for the others. Intervals over seeds are Student's t at 95 %; "ahead by" is the lead
of the first variant over each other, paired by seed. With --work, finished stages are reused.
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
from accuracy import NETWORK, ROOT, compare_seeds, format_table, scores, share_shards

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
    """By variant: mean average precision on val, and macro-F1 on test for those in `tested`."""
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
    """A training on the shards of `source`; the same settings train only once."""
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
            raise SystemExit(f"variant {name!r} needs a recipe: recipe=" + "|".join(RECIPES))
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--test", nargs="*", default=[], metavar="NAME", help="variants to read test for")
    parser.add_argument("--work", help="folder for the runs; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    variants = given_variants(arguments.variant) or VARIANTS
    unknown = set(arguments.test) - set(variants)
    if unknown:
        raise SystemExit(f"--test names {', '.join(unknown)}; known: {', '.join(variants)}")
    val, test = {}, {}
    with contextlib.ExitStack() as stack:
        work = arguments.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="cropray-recipes-"))
        for seed in arguments.seeds:
            sys.stderr.write(f"── seed {seed}\n")
            val[seed], test[seed] = measure(config, seed, Path(work), variants, arguments.test)
    tables = {
        score: (compare_seeds(by_seed, first), first)
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
                format_table(table, arguments.seeds, score, first) for score, (table, first) in tables.items()
            )
        )


if __name__ == "__main__":
    main()

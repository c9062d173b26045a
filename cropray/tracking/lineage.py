"""Where a registered model comes from: data, shards, settings, code, commit and parent."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

import cropray
from cropray.config.load import updated
from cropray.models.checkpoint import DESCRIPTION, Checkpoint, weights_checksum
from cropray.run import Inputs, Run
from cropray.shards.file import fingerprint, read_footer, shard_uris
from cropray.shards.schema import ROWS_KEY
from cropray.storage import Folder
from cropray.tracking.packaging import code_checksum

PREFIX = "cropray."
CHECKPOINT, WEIGHTS, CODE = f"{PREFIX}checkpoint", f"{PREFIX}weights_xxh3", f"{PREFIX}code_xxh3"
EVALUATION, CREATED = f"{PREFIX}evaluation", f"{PREFIX}created"
PARENT, MODEL_ID = f"{PREFIX}parent_weights_xxh3", f"{PREFIX}model_id"
"""Tags of a version: its checkpoint with thresholds, its weights alone, its code; scores; when it was first
registered (of a relocated one); the weights that it started from; MLflow's logged model."""

COMMIT = "CROPRAY_GIT_COMMIT"
"""Variable with the commit of code without its checkout, in the form of `git describe --always --dirty`."""

_INIT = "the checkpoint to start from"  # among a training's inputs, beside "shards"
_GIT_S = 10
_READERS = 8  # footers read at the same time: object storage answers slowly


def checkpoint_id(folder: Folder) -> str:
    """Identifies a checkpoint: weights (by their checksum), thresholds and the rest of its description."""
    return xxhash.xxh3_64_hexdigest(folder.read_bytes(DESCRIPTION))


def lineage(run: Run, stage: str, folder: Folder, checkpoint: Checkpoint) -> dict[str, Any]:
    """What is known of a checkpoint's origin, as JSON.

    If `folder` is the run's own model of the stage or of a sweep, configuration and parent come from the
    run's records. Shards are listed if they are still those of the training. Otherwise these are None.
    """
    config, inputs = _recorded(run, stage, folder, checkpoint.recipe)
    reference = checkpoint.recipe.get("init", "")
    return {
        "checkpoint": checkpoint_id(folder),
        "weights_xxh3": weights_checksum(folder),
        "data_fingerprint": checkpoint.data_fingerprint,
        "shards": _shards(run, inputs.get("shards", "")),
        "recipe": checkpoint.recipe,
        "window": checkpoint.window,
        "imagery": checkpoint.imagery,
        "config": config,
        "run": None if config is None else run.folder.uri,
        "parent": {"reference": reference, "weights_xxh3": inputs.get(_INIT)} if reference else None,
        "git": git_state(Path(cropray.__file__).parent),
        "code_version": checkpoint.code_version,
        "code_xxh3": code_checksum(),
    }


def tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version: what people search for. `lineage.json` in the model has the rest."""
    git, parent, shards = facts["git"] or {}, facts["parent"] or {}, facts["shards"] or {}
    values = {
        CHECKPOINT: facts["checkpoint"],
        WEIGHTS: facts["weights_xxh3"],
        CODE: facts["code_xxh3"],
        PARENT: parent.get("weights_xxh3"),
        f"{PREFIX}parent": parent.get("reference"),
        f"{PREFIX}data_fingerprint": facts["data_fingerprint"],
        **{f"{PREFIX}shards.{split}": f"{len(files)}: {_digest(files)}" for split, files in shards.items()},
        f"{PREFIX}recipe": json.dumps(facts["recipe"], sort_keys=True, default=str),
        f"{PREFIX}config_xxh3": facts["config"] and _digest(facts["config"]),
        f"{PREFIX}run": facts["run"],
        f"{PREFIX}code_version": facts["code_version"],
        f"{PREFIX}git_commit": git.get("commit"),
        f"{PREFIX}git_dirty": git.get("dirty"),
    }
    return {key: str(value) for key, value in values.items() if value not in (None, "")}


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout that contains `folder`, and whether files in the folder differ from it.

    If git does not track `__init__.py` there (an installed package, a copy on a cluster), the variable
    `CROPRAY_GIT_COMMIT` may name the commit. Otherwise None.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_S)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        stated = os.environ.get(COMMIT, "")
        return (
            {"commit": stated.removesuffix("-dirty"), "dirty": stated.endswith("-dirty")} if stated else None
        )


def _recorded(
    run: Run, stage: str, folder: Folder, recipe: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, Inputs]:
    """Settings by section, and inputs, of the training or sweep of this run that made the model `folder`."""
    if folder.uri == run.folder.child(f"models/{stage}").uri:
        return run.recorded(stage), run.inputs(stage)
    place, _, last = folder.uri.rpartition("/")
    parent, _, name = place.rpartition("/")
    if (parent, last) != (run.folder.child("tune").uri, "model"):
        return None, {}
    sweep = Run(run.folder, updated(run.config, {"tune.name": name}))
    settings, inputs = sweep.recorded("tune"), sweep.inputs("tune")
    if settings is None:
        return None, {}
    if settings[stage]["init"] != recipe.get("init"):  # the sweep searched it too
        inputs = {key: value for key, value in inputs.items() if key != _INIT}
    return _of_best_trial(settings, stage, Folder(place), recipe), inputs


def _of_best_trial(
    settings: dict[str, Any], stage: str, sweep: Folder, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a sweep's best trial. The checkpoint's recipe has those of the stage."""
    from cropray.figures.charts import SWEEP

    values = json.loads(sweep.read_text(SWEEP))["trials"][0]["values"].items()
    model = {key.removeprefix("model."): value for key, value in values if key.startswith("model.")}
    trained = {key: recipe.get(key, value) for key, value in settings[stage].items()}
    return settings | {"model": settings["model"] | model, stage: trained}


def _shards(run: Run, trained_on: str) -> dict[str, dict[str, str]] | None:
    """The checksum of every shard by split and name. None if they are not those of the training."""
    uris = {split: shard_uris(run.folder, split) for split in ("train", "val")}
    if not trained_on or fingerprint(uris["train"] + uris["val"]) != trained_on:
        return None

    def checksum(uri: str) -> tuple[str, str]:
        return uri.rsplit("/", 1)[-1], read_footer(uri).get(ROWS_KEY, b"").decode()

    with ThreadPoolExecutor(_READERS) as pool:
        return {split: dict(pool.map(checksum, files)) for split, files in uris.items()}


def _digest(data: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(data, sort_keys=True, default=str).encode())

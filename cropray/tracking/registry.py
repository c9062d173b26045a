"""The registry: checkpoints as named, versioned models, and the way back to a checkpoint."""

from __future__ import annotations

import json
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropray.config import CHAMPION
from cropray.errors import InputError
from cropray.models.checkpoint import DESCRIPTION, Checkpoint, load_checkpoint
from cropray.run import Run, Summary
from cropray.storage import Folder
from cropray.tracking import lineage as origin
from cropray.tracking.card import description, model_card
from cropray.tracking.connection import server_errors, shown
from cropray.tracking.packaging import save_model_folder
from cropray.tracking.runs import Tracker, client_of, tracked, tracking_uri
from cropray.tracking.stac_mlm import mlm_item

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CARD, ITEM, LINEAGE = "README.md", "stac-item.json", "lineage.json"
"""Beside the files that MLflow writes in a model's folder."""

_HISTORY = "history.json"
_PAGE = 100
_SHOWN_MODELS = 20
_REFERENCE = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))")


def register_checkpoint(run: Run, reference: str = "") -> Summary:
    """Register a checkpoint folder, as a reference means it (`resolve_model`), with `tracking.alias`.

    Raises InputError for a model that comes from the registry already.
    """
    if reference.startswith("models:"):
        raise InputError(f"{reference} is registered already; give a checkpoint folder, or nothing")
    folder = resolve_model(reference, run)
    stage = str(load_checkpoint(folder).recipe.get("stage", "finetune"))
    with tracked(run, "register") as tracker:
        version = register(run, stage, folder, tracker)
    return {
        "registered": f"models:/{registered_name(run, stage)}/{version}",
        "alias": run.config.tracking.alias,
        "checkpoint": folder.uri,
        "registry": shown(tracking_uri(run)),
    }


def register(run: Run, stage: str, folder: Folder, tracker: Tracker) -> str:
    """Log a checkpoint folder as a model, register it as a new version, set the alias on it.

    Returns the version. The model is a pyfunc of two named tensors of stored integers, s1
    (B, 2, T, H, W) and s2 (B, 10, T, H, W); it loads without Ray and without this package. Beside it
    lie its card, its STAC item and its lineage, which stands in the version's tags too. A checkpoint
    that is registered already with the same code keeps its version.
    """
    client, name = tracker.client, registered_name(run, stage)
    checkpoint = load_checkpoint(folder)
    facts = origin.lineage(run, stage, folder, checkpoint)
    tags = origin.tags(facts)
    known = (origin.CHECKPOINT, origin.CODE)
    same = [
        found for found in versions(client, name) if all(found.tags.get(tag) == tags[tag] for tag in known)
    ]
    version = same[0].version if same else _registered(run, stage, folder, tracker, checkpoint, facts, tags)
    client.set_registered_model_alias(name, run.config.tracking.alias, version)
    return str(version)


def registered_name(run: Run, stage: str) -> str:
    """Pretrained networks have a name of their own: their classes are others."""
    name = run.config.tracking.model_name
    return f"{name}-pretrained" if stage == "pretrain" else name


def resolve_model(reference: str, run: Run) -> Folder:
    """The checkpoint folder that a reference means.

    "" is the run's own finetuned model, else its pretrained one; `models:/name@alias` and
    `models:/name/version` come from the registry and are copied into the run folder, where every
    worker can read them; anything else is a folder by path or URI, or by `run:PATH` from the run
    folder. What is read is the checkpoint: the packages that the registered model lists need not be
    installed. Raises InputError where there is no such model, and says which there are.
    """
    if reference.startswith("models:"):
        return _from_registry(reference, run)
    if reference:
        folder = run.place(reference)
        if not folder.exists(DESCRIPTION):
            there = ", ".join(folder.names()[:8]) or "nothing"
            raise InputError(f"{folder} is no checkpoint folder: no {DESCRIPTION} there, but {there}")
        return folder
    for stage in ("finetune", "pretrain"):
        folder = run.folder.child(f"models/{stage}")
        if folder.exists(DESCRIPTION):
            return folder
    raise InputError(f"{run.folder} has no trained model yet: run cropray finetune, or name a model")


def find_version(reference: str, client: MlflowClient, uri: str) -> ModelVersion:
    """The version that a `models:/` reference means. Raises InputError that says what is there."""
    from mlflow.exceptions import MlflowException

    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference!r} is not of the form models:/name@alias or models:/name/version")
    name, alias, version = match["name"], match["alias"], match["version"]
    model = registered_model(name, client)
    if model is None:
        there = ", ".join(other.name for other in client.search_registered_models(max_results=_SHOWN_MODELS))
        raise InputError(
            f"there is no model {name!r} in the registry {shown(uri)}, which has: {there or 'none'}; "
            "set tracking.uri to the registry that has it"
        )
    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        aliases = ", ".join(f"@{key} (version {value})" for key, value in sorted(model.aliases.items()))
        numbers = sorted(int(found.version) for found in versions(client, name))
        hint = f"; {CHAMPION} is given by cropray models promote" if alias == CHAMPION else ""
        raise InputError(
            f"there is no {reference} in the registry {shown(uri)}: {name} has the versions {numbers} "
            f"and the aliases {aliases or 'none'}{hint}"
        ) from error


def registered_model(name: str, client: MlflowClient) -> RegisteredModel | None:
    """The model of this name, None where there is none. Asked for by name: lists come in pages."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a model, the newest first."""
    quote = '"' if "'" in name else "'"
    return sorted(
        search_versions(client, f"name={quote}{name}{quote}"), key=lambda version: -int(version.version)
    )


def search_versions(client: MlflowClient, condition: str) -> list[ModelVersion]:
    """All versions of which a condition of MLflow's holds."""
    page = client.search_model_versions(condition, max_results=_PAGE)
    found = list(page)
    while page.token:
        page = client.search_model_versions(condition, max_results=_PAGE, page_token=page.token)
        found += page
    return found


def _registered(
    run: Run,
    stage: str,
    folder: Folder,
    tracker: Tracker,
    checkpoint: Checkpoint,
    facts: dict[str, Any],
    tags: dict[str, str],
) -> str:
    """Write the model's folder, give it to the server, make a version of it; the version."""
    from mlflow.entities import LoggedModelOutput

    client, name = tracker.client, registered_name(run, stage)
    mlflow_run = client.get_run(tracker.run_id)
    history = json.loads(folder.read_text(_HISTORY)) if folder.exists(_HISTORY) else []
    card = model_card(name, checkpoint, facts, history)
    item = mlm_item(checkpoint, name, datetime.now(UTC), f"Crops by pixel: {', '.join(checkpoint.classes)}")
    papers = {CARD: card, ITEM: json.dumps(item, indent=1), LINEAGE: json.dumps(facts, indent=1, default=str)}
    logged = client.create_logged_model(
        mlflow_run.info.experiment_id,
        name=stage,
        source_run_id=tracker.run_id,
        params=mlflow_run.data.params,
    )
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "model"
        identity = {
            "run_id": tracker.run_id,
            "model_uuid": logged.model_id,
            "model_id": logged.model_id,
        }
        save_model_folder(saved, checkpoint, folder, Path(scratch), identity, papers)
        client.log_model_artifacts(logged.model_id, str(saved))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(tracker.run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
    if registered_model(name, client) is None:
        client.create_registered_model(name)
    made = client.create_model_version(
        name,
        logged.artifact_location,
        run_id=tracker.run_id,
        model_id=logged.model_id,
        tags=tags | {origin.MODEL_ID: logged.model_id},  # MLflow's own database forgets it
        description=description(card),
    )
    return str(made.version)


def _from_registry(reference: str, run: Run) -> Folder:
    from mlflow.artifacts import download_artifacts

    uri, client = tracking_uri(run), client_of(run)
    with server_errors(uri), tempfile.TemporaryDirectory() as scratch:
        found = find_version(reference, client, uri)
        target = run.folder.child(f"models/registry/{found.name}/{found.version}")
        source = client.get_model_version_download_uri(found.name, found.version)
        if source.startswith("file:") and not Folder(source).exists():
            raise InputError(
                f"the files of {reference} are not where the registry {shown(uri)} says, in {source}: they "
                "were deleted or moved (MLflow keeps absolute paths). Put them back, link them there, or "
                "name the checkpoint folder instead of the reference"
            )
        local = download_artifacts(f"{source}/artifacts/checkpoint", dst_path=scratch, tracking_uri=uri)
        for path in sorted(Path(local).iterdir()):
            target.publish(path, path.name)
    return target

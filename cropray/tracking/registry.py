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
from cropray.tracking.connection import (
    ARTIFACTS,
    open_client,
    open_existing,
    quoted,
    server_errors,
    tracking_uri,
)
from cropray.tracking.documents import description, model_card, model_item
from cropray.tracking.packaging import save_model_folder
from cropray.tracking.runs import Tracker, tracked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

CARD, ITEM, LINEAGE = "README.md", "stac-item.json", "lineage.json"
"""Files of ours in a model's folder, beside MLflow's own."""

_HISTORY = "history.json"
_MOST_VERSIONS = 200_000  # MLflow's limit for one search
_SHOWN_MODELS = 20
_REFERENCE = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))")
_RELOCATING = " (relocating)"


def register_checkpoint(run: Run, reference: str = "") -> Summary:
    """Register the checkpoint that a reference names (see `resolve_model`) with the alias `tracking.alias`.

    Raises InputError for a model that comes from the registry already.
    """
    if reference.startswith("models:"):
        raise InputError(f"{reference} is registered already. Give a checkpoint folder, or nothing")
    folder = resolve_model(reference, run)
    stage = str(load_checkpoint(folder).recipe.get("stage", "finetune"))
    with tracked(run, "register") as tracker:
        version = register(run, stage, folder, tracker)
    return {
        "registered": f"models:/{registered_name(run, stage)}/{version}",
        "alias": run.config.tracking.alias,
        "checkpoint": folder.uri,
        "registry": tracking_uri(run),
    }


def register(run: Run, stage: str, folder: Folder, tracker: Tracker) -> str:
    """Log a checkpoint folder as a model, register it as a new version and set the alias; the version.

    The model is a pyfunc of two named tensors of stored integers, s1 (B, 2, T, H, W) and s2
    (B, 10, T, H, W). It loads without Ray and without this package. Its card, STAC item and lineage are in
    its folder. A checkpoint that is already registered with the same code keeps its version.
    """
    client, name = tracker.client, registered_name(run, stage)
    checkpoint = load_checkpoint(folder)
    facts = origin.lineage(run, stage, folder, checkpoint)
    tags = origin.tags(facts)
    identity = (origin.CHECKPOINT, origin.CODE)
    same = [old for old in versions(client, name) if all(old.tags.get(tag) == tags[tag] for tag in identity)]
    version = same[0].version if same else _create(name, stage, folder, tracker, checkpoint, facts)
    client.set_registered_model_alias(name, run.config.tracking.alias, version)
    return str(version)


def registered_name(run: Run, stage: str) -> str:
    """`tracking.model_name`. Pretrained networks have other classes, and so a name of their own."""
    name = run.config.tracking.model_name
    return f"{name}-pretrained" if stage == "pretrain" else name


def resolve_model(reference: str, run: Run) -> Folder:
    """The checkpoint folder that a reference names.

    "" is the run's own finetuned model, or its pretrained one if there is no other. `models:/NAME@ALIAS`
    and `models:/NAME/VERSION` are copied from the registry into the run folder, where every worker can
    read them. Anything else is a folder by path or URI; `run:PATH` is relative to the run folder. Only the
    checkpoint is read: the packages that a registered model requires need not be installed. Raises
    InputError with the known models if there is no such model.
    """
    if reference.startswith("models:"):
        return _download(reference, run)
    if reference:
        folder = run.place(reference)
        if not folder.exists(DESCRIPTION):
            files = ", ".join(folder.names()[:8]) or "nothing"
            raise InputError(f"{folder} is not a checkpoint folder: it has no {DESCRIPTION}, but {files}")
        return folder
    for stage in ("finetune", "pretrain"):
        folder = run.folder.child(f"models/{stage}")
        if folder.exists(DESCRIPTION):
            return folder
    raise InputError(f"{run.folder} has no trained model yet. Run cropray finetune, or name a model")


def relocate(run: Run) -> Summary:
    """Point the registry of a run folder that was moved or copied to the files in it.

    cropray finds the files without this; plain MLflow does not, because it keeps absolute locations and
    cannot change them. So each model is created again, with the same version numbers, tags and aliases,
    under another name, and then takes the place of the old one; after an interruption the same command
    finishes the work. MLflow's interface still shows parameters and metrics of older runs but not their
    files, which are in `mlflow/artifacts`. Raises InputError if the run has no registry of its own.
    """
    if run.config.tracking.uri:
        raise InputError(
            f"tracking.uri is {run.config.tracking.uri}: only the registry in a run folder can be "
            "relocated. Add --set tracking.uri="
        )
    client, uri = open_registry(run)
    with server_errors(uri):
        for name in {version.name for version in versions(client)}:
            former = name.removesuffix(_RELOCATING)
            if name != former and registered_model(former, client) is None:  # an interruption left it
                client.rename_registered_model(name, former)
        names = {version.name for version in versions(client)}
        moved = [_recreate(run, client, name) for name in names if not name.endswith(_RELOCATING)]
    return {"versions": sum(moved), "registry": uri}


def open_registry(run: Run) -> tuple[MlflowClient, str]:
    """A client of the run's registry, and its URI. Raises InputError if it does not exist yet."""
    client, uri = open_existing(run), tracking_uri(run)
    if client is None:
        raise InputError(
            f"there is no registry at {uri} yet. Give the folder of a run with a trained model "
            "(--run), or set tracking.uri to an MLflow server"
        )
    return client, uri


def find_version(reference: str, client: MlflowClient, uri: str) -> ModelVersion:
    """The version that a `models:/` reference names. Raises InputError with what exists instead."""
    from mlflow.exceptions import MlflowException

    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference!r} does not have the form models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = match["name"], match["alias"], match["version"]
    model = registered_model(name, client)
    if model is None:
        others = ", ".join(other.name for other in client.search_registered_models(max_results=_SHOWN_MODELS))
        raise InputError(
            f"there is no model {name!r} in the registry {uri}; it has: {others or 'none'}. Set "
            "tracking.uri to the registry that has it"
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
        hint = f". cropray models promote sets @{CHAMPION}" if alias == CHAMPION else ""
        raise InputError(
            f"there is no {reference} in the registry {uri}: {name} has the versions {numbers} "
            f"and the aliases {aliases or 'none'}{hint}"
        ) from error


def registered_model(name: str, client: MlflowClient) -> RegisteredModel | None:
    """The model of this name, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def versions(client: MlflowClient, name: str = "") -> list[ModelVersion]:
    """The versions of a model or of all models, by model, the newest first."""
    condition = f"name={quoted(name)}" if name else ""
    found = client.search_model_versions(condition, max_results=_MOST_VERSIONS)
    return sorted(found, key=lambda version: (version.name, -int(version.version)))


def open_files(run: Run, client: MlflowClient, version: ModelVersion) -> ArtifactRepository:
    """The files of a version. Raises InputError if they are gone."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = _location(run, client, version)
    if location.startswith("file:") and not Folder(location).exists():
        raise InputError(
            f"the files of models:/{version.name}/{version.version} are not in {location}, where the "
            f"registry {tracking_uri(run)} says they are: they were deleted or moved (MLflow keeps "
            "absolute paths). Put them back, link them there, or name a checkpoint folder instead"
        )
    return get_artifact_repository(location, tracking_uri=client.tracking_uri)


def _location(run: Run, client: MlflowClient, version: ModelVersion) -> str:
    """Where the files of a version are. A run folder that was moved or copied has them itself."""
    source = str(client.get_model_version_download_uri(version.name, version.version))
    _, below, path = source.rpartition(f"/{ARTIFACTS}/")
    if run.config.tracking.uri or not below:
        return source
    moved = run.folder.local(f"{ARTIFACTS}/{path}")
    return moved.as_uri() if moved.exists() else source


def _recreate(run: Run, client: MlflowClient, name: str) -> int:
    """Create a model again if files of it have moved; how many versions moved."""
    model, new = client.get_registered_model(name), name + _RELOCATING
    if registered_model(new, client) is not None:
        client.delete_registered_model(new)
    found = {int(version.version): version for version in versions(client, name)}
    places = {number: _location(run, client, version) for number, version in found.items()}
    moved = [number for number, version in found.items() if version.source != places[number]]
    if not moved:
        return 0
    client.create_registered_model(new, tags=model.tags, description=model.description)
    for number in range(1, max(found) + 1):
        if number not in found:  # it was deleted, but its number stays taken
            client.create_model_version(new, source=ARTIFACTS)
            client.delete_model_version(new, str(number))
            continue
        old = found[number]
        created = datetime.fromtimestamp(old.creation_timestamp / 1000, UTC).isoformat()
        tags = {origin.CREATED: created} | old.tags
        client.create_model_version(
            new, places[number], run_id=old.run_id, tags=tags, description=old.description
        )
    for alias, number in model.aliases.items():
        client.set_registered_model_alias(new, alias, str(number))
    client.delete_registered_model(name)
    client.rename_registered_model(new, name)
    return len(moved)


def _create(
    name: str, stage: str, folder: Folder, tracker: Tracker, checkpoint: Checkpoint, facts: dict[str, Any]
) -> str:
    """Write the model's folder, upload it and create a version of it; the version."""
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    mlflow_run = client.get_run(tracker.run_id)
    history = json.loads(folder.read_text(_HISTORY)) if folder.exists(_HISTORY) else []
    card = model_card(name, checkpoint, facts, history)
    extra = {
        CARD: card,
        ITEM: json.dumps(model_item(checkpoint, name, datetime.now(UTC)), indent=1),
        LINEAGE: json.dumps(facts, indent=1, default=str),
    }
    logged = client.create_logged_model(
        mlflow_run.info.experiment_id,
        name=stage,
        source_run_id=tracker.run_id,
        params=mlflow_run.data.params,
    )
    identity = {"run_id": tracker.run_id, "model_uuid": logged.model_id, "model_id": logged.model_id}
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "model"
        save_model_folder(saved, checkpoint, folder, Path(scratch), identity, extra)
        client.log_model_artifacts(logged.model_id, str(saved))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(tracker.run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
    if registered_model(name, client) is None:
        client.create_registered_model(name)
    version = client.create_model_version(
        name,
        logged.artifact_location,
        run_id=tracker.run_id,
        model_id=logged.model_id,
        tags=origin.tags(facts) | {origin.MODEL_ID: logged.model_id},  # MLflow's own database forgets it
        description=description(card),
    )
    return str(version.version)


def _download(reference: str, run: Run) -> Folder:
    uri = tracking_uri(run)
    client = open_client(uri)
    with server_errors(uri), tempfile.TemporaryDirectory() as scratch:
        found = find_version(reference, client, uri)
        target = run.folder.child(f"models/registry/{found.name}/{found.version}")
        files = open_files(run, client, found).download_artifacts("artifacts/checkpoint", scratch)
        for path in sorted(Path(files).iterdir()):
            target.publish(path, path.name)
    return target

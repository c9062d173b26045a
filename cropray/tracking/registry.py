"""The registry: checkpoints as named, versioned models, and the way back to a checkpoint."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import cropray
from cropray.bands import S1_NAMES, S2_NAMES
from cropray.models.checkpoint import DESCRIPTION, Checkpoint, load_checkpoint
from cropray.run import Run
from cropray.storage import Folder
from cropray.tracking.runs import Tracker, open_client, tracking_uri
from cropray.types import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.models import ModelSignature

_SCRIPT = Path(__file__).with_name("pyfunc_model.py")
# What a loaded model imports of this package, which is on no index and so travels as files.
_TRAVELS = ("__init__.py", "types.py", "bands.py", "storage.py", "models")
_REQUIREMENTS = ("mlflow", "numpy", "pyarrow", "safetensors", "torch", "xxhash")
_SHOWN_MODELS = 20
_REFERENCE = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))")


def register(run: Run, stage: str, folder: Folder, tracker: Tracker) -> str:
    """Log a checkpoint folder as a model, register it as a new version, set the alias on it.

    Returns the version. The model is a pyfunc of two named tensors of stored integers, s1
    (B, 2, T, H, W) and s2 (B, 10, T, H, W); it loads without Ray and without this package.
    """
    from mlflow.entities import LoggedModelOutput

    client, tracking = tracker.client, run.config.tracking
    checkpoint = load_checkpoint(folder)
    mlflow_run = client.get_run(tracker.run_id)
    logged = client.create_logged_model(
        mlflow_run.info.experiment_id,
        name=stage,
        source_run_id=tracker.run_id,
        params=mlflow_run.data.params,
    )
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # MLflow would check the signature by an example, and infers types of its own on import.
        warnings.filterwarnings("ignore", message=".*([Tt]ype hint|input example)", category=UserWarning)
        saved = Path(scratch) / "model"
        _save_pyfunc(saved, checkpoint, folder, Path(scratch), tracker.run_id, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(saved))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(tracker.run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
    name = registered_name(run, stage)
    if _registered_model(name, client) is None:
        client.create_registered_model(name)
    version = client.create_model_version(
        name, logged.artifact_location, run_id=tracker.run_id, model_id=logged.model_id
    ).version
    client.set_registered_model_alias(name, tracking.alias, version)
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
    folder. Raises InputError where there is no such model, and says which there are.
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


def _save_pyfunc(
    path: Path, checkpoint: Checkpoint, folder: Folder, scratch: Path, run_id: str, model_id: str
) -> None:
    """Write the model folder: models-from-code script, checkpoint, code, signature, requirements."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    files = scratch / "checkpoint"
    for name in folder.names():
        _fetch(folder, name, files)
    code = scratch / "cropray"
    package = Path(cropray.__file__).parent
    for name in _TRAVELS:
        source, target = package / name, code / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    save_model(
        path=str(path),
        python_model=str(_SCRIPT),
        artifacts={"checkpoint": str(files)},
        code_paths=[str(code)],
        signature=_signature(checkpoint),
        # Named, not inferred: inferring runs the model in a new process and asks an index.
        pip_requirements=[f"{name}=={installed_version(name)}" for name in _REQUIREMENTS],
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        metadata={"classes": list(checkpoint.classes)},
    )


def _signature(checkpoint: Checkpoint) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    months, stored = checkpoint.months, np.dtype(np.int16)
    return ModelSignature(
        inputs=Schema(
            [
                TensorSpec(stored, (-1, len(S1_NAMES), months, -1, -1), "s1"),
                TensorSpec(stored, (-1, len(S2_NAMES), months, -1, -1), "s2"),
            ]
        ),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(checkpoint.classes), -1, -1))]),
    )


def _from_registry(reference: str, run: Run) -> Folder:
    from mlflow.artifacts import download_artifacts

    uri = tracking_uri(run)
    client = open_client(uri)
    found = _model_version(reference, client, uri)
    target = run.folder.child(f"models/registry/{found.name}/{found.version}")
    with tempfile.TemporaryDirectory() as scratch:
        source = client.get_model_version_download_uri(found.name, found.version)
        local = download_artifacts(f"{source}/artifacts/checkpoint", dst_path=scratch, tracking_uri=uri)
        for path in sorted(Path(local).iterdir()):
            target.publish(path, path.name)
    return target


def _model_version(reference: str, client: MlflowClient, uri: str) -> ModelVersion:
    """The version that a `models:/` reference means. Raises InputError that says what is there."""
    from mlflow.exceptions import MlflowException

    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference!r} is not of the form models:/name@alias or models:/name/version")
    name, alias, version = match["name"], match["alias"], match["version"]
    model = _registered_model(name, client)
    if model is None:
        there = ", ".join(other.name for other in client.search_registered_models(max_results=_SHOWN_MODELS))
        raise InputError(
            f"there is no model {name!r} in the registry {uri}, which has: {there or 'none'}; "
            "set tracking.uri to the registry that has it"
        )
    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        aliases = ", ".join(f"@{key} (version {value})" for key, value in sorted(model.aliases.items()))
        versions = sorted(int(found.version) for found in client.search_model_versions(f"name='{name}'"))
        raise InputError(
            f"there is no {reference} in the registry {uri}: {name} has the versions {versions} "
            f"and the aliases {aliases or 'none'}"
        ) from error


def _registered_model(name: str, client: MlflowClient) -> RegisteredModel | None:
    """The model of this name, None where there is none. Asked for by name: lists come in pages."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _fetch(folder: Folder, name: str, target: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_bytes(folder.read_bytes(name))

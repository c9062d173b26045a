"""A checkpoint as an MLflow model: script, code, weights, signature, requirements, example and papers."""

from __future__ import annotations

import ast
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

import cropray
from cropray.bands import NODATA, S1_NAMES, S2_NAMES
from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import SIDE_MULTIPLE
from cropray.storage import Folder

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_PACKAGE = Path(cropray.__file__).parent
_SCRIPT = Path(__file__).with_name("pyfunc_model.py")
_REQUIREMENTS = ("mlflow", "numpy", "pyarrow", "safetensors", "torch", "xxhash")


def save_model_folder(
    path: Path,
    checkpoint: Checkpoint,
    folder: Folder,
    scratch: Path,
    identity: Mapping[str, str],
    papers: Mapping[str, str],
) -> None:
    """Write the model folder `path`, with `papers` (texts by file name) beside MLflow's own files.

    `identity` are the ids that MLflow gave to run and model. `scratch` is an empty local folder.
    """
    files = scratch / "checkpoint"
    for name in folder.names():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(folder.read_bytes(name))
    with warnings.catch_warnings():
        # MLflow infers types of its own on import, and would have a hint of what it itself checks.
        warnings.filterwarnings("ignore", message=".*[Tt]ype hint", category=UserWarning)
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        save_model(
            path=str(path),
            python_model=str(_SCRIPT),
            artifacts={"checkpoint": str(files)},
            code_paths=[str(_copied_code(scratch))],
            signature=_signature(checkpoint),
            input_example=example(checkpoint),
            pip_requirements=requirements(),
            mlflow_model=Model(**identity),
            metadata={
                "classes": list(checkpoint.classes),  # of the main head, whose probabilities it gives
                "heads": {name: list(head.classes) for name, head in checkpoint.heads.items()},
            },
        )
    for name, text in papers.items():
        (path / name).write_text(text)


def requirements() -> list[str]:
    """Exact, and named rather than inferred: inferring runs the model in a process and asks an index.

    Without the local part of a version (torch's "+cpu"), which no index has.
    """
    return [f"{name}=={installed_version(name).split('+')[0]}" for name in _REQUIREMENTS]


def code_checksum() -> str:
    """xxh3 of all code that a registered model takes along."""
    digest = xxhash.xxh3_64(_SCRIPT.read_bytes())
    for name in travelling_modules():
        digest.update(name.encode() + b"\0" + (_PACKAGE / name).read_bytes())
    return digest.hexdigest()


def travelling_modules() -> list[str]:
    """The files of this package, by path below it, that the registered model's script imports.

    The package is on no index, so these travel with the model. They are the closure of the imports
    that run, wherever in a file they stand, and so can never lack one that the code has come to need.
    """
    found: set[Path] = set()
    left = [_SCRIPT]
    while left:
        for path in _imported(left.pop()) - found:
            found.add(path)
            left.append(path)
    return sorted(path.relative_to(_PACKAGE).as_posix() for path in found)


def _imported(script: Path) -> set[Path]:
    """The files of this package that a script imports, the packages around them included."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(script.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    files: set[Path] = set()
    for first, *parts in (name.split(".") for name in names):
        if first != _PACKAGE.name:
            continue
        paths = [_PACKAGE.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        candidates = [file for path in paths for file in (path / "__init__.py", path.with_suffix(".py"))]
        files.update(file for file in candidates if file.is_file())
    return files


def example(checkpoint: Checkpoint) -> dict[str, npt.NDArray[np.int16]]:
    """One small sample as shards hold it: a green field on bare soil, and a month without a view."""
    side, months = SIDE_MULTIPLE, checkpoint.months
    green = np.zeros((side, side))
    green[4:12, 4:12] = 1
    # Reflectance of bare soil and of a full canopy, by band; dB likewise.
    soil = np.array([0.06, 0.09, 0.12, 0.15, 0.17, 0.19, 0.21, 0.22, 0.29, 0.24])
    canopy = np.array([0.03, 0.06, 0.04, 0.09, 0.26, 0.33, 0.36, 0.38, 0.20, 0.10])
    bare_db, full_db = np.array([-12.5, -20.0]), np.array([-9.0, -15.5])
    season = green * np.linspace(0, 1, months)[:, None, None]  # (T, H, W)
    s2 = soil[:, None, None, None] + (canopy - soil)[:, None, None, None] * season
    s1 = bare_db[:, None, None, None] + (full_db - bare_db)[:, None, None, None] * season
    stored = {"s1": np.rint(s1[None] * 100), "s2": np.rint(s2[None] * 10_000)}
    arrays = {name: values.astype(np.int16) for name, values in stored.items()}
    arrays["s2"][:, :, 0] = NODATA
    return arrays


def _copied_code(scratch: Path) -> Path:
    code = scratch / _PACKAGE.name
    for name in travelling_modules():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_PACKAGE / name, code / name)
    return code


def _signature(checkpoint: Checkpoint) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    months, stored = checkpoint.months, np.dtype(np.int16)
    return ModelSignature(
        inputs=Schema(
            [
                TensorSpec(stored, (-1, len(S1_NAMES), months, -1, -1), "s1"),
                TensorSpec(stored, (-1, len(S2_NAMES), months, -1, -1), "s2"),
            ]
        ),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(checkpoint.classes), -1, -1))]),
        params=ParamSchema([ParamSpec("metadata", DataType.string, "")]),
    )

"""A checkpoint as an MLflow model: script, code, weights, signature, requirements and example."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

import cropray
from cropray.bands import NODATA, S1_NAMES, S2_NAMES
from cropray.models.checkpoint import Checkpoint
from cropray.models.decision import DEFAULT_THRESHOLD
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNSURE

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_PACKAGE = Path(cropray.__file__).parent
_SCRIPT = Path(__file__).with_name("pyfunc_model.py")
_REQUIREMENTS = ("mlflow", "numpy", "pyarrow", "rasterio", "safetensors", "torch", "xxhash")


def save_model_folder(
    path: Path,
    checkpoint: Checkpoint,
    folder: Folder,
    scratch: Path,
    identity: Mapping[str, str],
    extra_files: Mapping[str, str],
) -> None:
    """Write the model folder `path`. `extra_files` are texts by name, added to MLflow's own files.

    `identity` are the ids that MLflow gave to run and model. `scratch` is an empty local folder.
    """
    files = scratch / "checkpoint"
    for name in folder.names():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(folder.read_bytes(name))
    code = scratch / _PACKAGE.name
    for name in travelling_modules():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_PACKAGE / name, code / name)
    with warnings.catch_warnings():
        # MLflow infers types of its own on import, and asks for a hint of what it checks itself.
        warnings.filterwarnings("ignore", message=".*[Tt]ype hint", category=UserWarning)
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        save_model(
            path=str(path),
            python_model=str(_SCRIPT),
            artifacts={"checkpoint": str(files)},
            code_paths=[str(code)],
            signature=_signature(checkpoint),
            input_example=example(checkpoint),
            pip_requirements=requirements(),
            mlflow_model=Model(**identity),
            metadata=output_facts(checkpoint)
            | {"heads": {name: list(head.classes) for name, head in checkpoint.heads.items()}},
        )
    for name, text in extra_files.items():
        (path / name).write_text(text)


def output_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What users of a model need to know of its input and of the output of its main head, as JSON."""
    thresholds = checkpoint.thresholds or [DEFAULT_THRESHOLD] * len(checkpoint.classes)
    return {
        "classes": list(checkpoint.classes),
        "thresholds": list(thresholds),
        "none": BACKGROUND,  # the value of a class map where no class reaches its threshold
        "unsure": UNSURE,  # the value where another class may be, if only sure classes are wanted
        "calibrated": checkpoint.temperature != 1 or bool(checkpoint.biases),
        "s1": list(checkpoint.s1_bands),
        "s2": list(checkpoint.s2_bands),
        "s1_quantity": checkpoint.s1_quantity,
        "months": checkpoint.months,
        "window": checkpoint.window,
    }


def requirements() -> list[str]:
    """Exact versions, without the local part (torch's "+cpu"), which no index has.

    They are named here because inferring them runs the model in a process and asks an index.
    """
    return [f"{name}=={installed_version(name).split('+')[0]}" for name in _REQUIREMENTS]


def code_checksum() -> str:
    """xxh3 of the code in a registered model."""
    digest = xxhash.xxh3_64(_SCRIPT.read_bytes())
    for name in travelling_modules():
        digest.update(name.encode() + b"\0" + (_PACKAGE / name).read_bytes())
    return digest.hexdigest()


def travelling_modules() -> list[str]:
    """The files of this package that the registered model's script imports, by path below the package.

    They travel with the model, because the package is on no index. They are the closure of all imports,
    wherever in a file they are, so none can be missing.
    """
    installed_beside = {path.stem for path in _PACKAGE.parent.iterdir()} - {_PACKAGE.name}
    finder = ModuleFinder(path=[str(_PACKAGE.parent)], excludes=sorted(installed_beside))
    finder.run_script(str(_SCRIPT))
    own = [module for name, module in finder.modules.items() if name.split(".")[0] == _PACKAGE.name]
    return sorted(Path(vars(module)["__file__"]).relative_to(_PACKAGE).as_posix() for module in own)


def example(checkpoint: Checkpoint) -> dict[str, npt.NDArray[np.int16]]:
    """One small sample as shards store it: young crops, and a first month without a view in Sentinel-2."""
    reflectance = (0.05, 0.08, 0.08, 0.12, 0.21, 0.26, 0.28, 0.30, 0.24, 0.17)
    values_of = dict(zip((*S2_NAMES, *S1_NAMES), (*reflectance, -10.5, -17.5), strict=True))

    def stored(bands: Sequence[str], scale: float) -> npt.NDArray[np.int16]:
        values = [values_of[band] for band in bands]
        integers = np.rint(np.array(values) / scale).astype(np.int16)
        side = checkpoint.network.side_multiple
        shape = (1, len(values), checkpoint.months, side, side)
        return np.broadcast_to(integers[None, :, None, None, None], shape).copy()

    arrays = {"s1": stored(checkpoint.s1_bands, 0.01), "s2": stored(checkpoint.s2_bands, 0.0001)}
    arrays["s2"][:, :, 0] = NODATA
    return arrays


def _signature(checkpoint: Checkpoint) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    return ModelSignature(
        # An input has one of several types, which a signature cannot say: MLflow takes "object" for any.
        inputs=Schema([TensorSpec(np.dtype(object), (-1,), name) for name in ("s1", "s2")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(checkpoint.classes), -1, -1))]),
        params=ParamSchema(
            [
                ParamSpec("metadata", DataType.string, ""),
                ParamSpec("output", DataType.string, "probabilities"),
            ]
        ),
    )

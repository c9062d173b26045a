"""A model as one ONNX file, for users without torch: normalisation inside, for any number of pixels."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cropray.bands import NODATA, S1_BANDS, S2_BANDS
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, load_checkpoint
from cropray.models.heads import with_head
from cropray.models.inference import StoredNetwork
from cropray.run import Run, Summary
from cropray.storage import Folder
from cropray.tracking.lineage import checkpoint_id
from cropray.tracking.packaging import output_facts
from cropray.tracking.registry import resolve_model

_PACKAGES = ("onnx", "onnxscript")
_SIDE = 24  # of the example that is traced: it must not be a multiple of 16, for which nothing is repeated


class _Graph(nn.Module):
    """Integers as int32, for which an ONNX runtime has all operations, or from floats."""

    def __init__(self, checkpoint: Checkpoint, floats: bool) -> None:
        super().__init__()
        self.network, self.floats = StoredNetwork(checkpoint), floats

    def forward(self, s1_bcthw: Tensor, s2_bcthw: Tensor) -> Tensor:
        """Probabilities (B, K, H, W)."""
        scales = (S1_BANDS[0].scale, S2_BANDS[0].scale)
        pairs = zip((s1_bcthw, s2_bcthw), scales, strict=True)
        stored = [self._stored(x, scale) if self.floats else x.to(torch.int32) for x, scale in pairs]
        probabilities_bkhw: Tensor = self.network(*stored)
        return probabilities_bkhw

    @staticmethod
    def _stored(x: Tensor, scale: float) -> Tensor:
        integers = (x / scale).round().clamp(NODATA + 1, -NODATA - 1)
        return torch.where(x.isfinite(), integers, NODATA).to(torch.int32)


def export_model(run: Run, reference: str, out: str, *, floats: bool = False, head: str = "") -> Summary:
    """Write the model that a reference names (see `resolve_model`) as the ONNX file `out`.

    Inputs are s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W) with any B, H and W: int16 as stored, or with
    `floats` float32 in dB and reflectance, NaN where nothing was seen. The output is probabilities
    (B, K, H, W). The file's metadata has classes, thresholds, bands and months. Raises InputError if the
    extra `onnx` is not installed, if there is no such model, and if `out` exists.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f'an ONNX export needs {", ".join(missing)}: pip install "cropray[onnx]"')
    path = Path(out)
    if path.exists() or path.suffix != ".onnx":
        raise InputError(f"--out {out} exists already or does not end in .onnx; give a new file")
    folder = resolve_model(reference, run)
    checkpoint = with_head(load_checkpoint(folder), head or None, str(folder))
    program = _program(checkpoint, floats)
    facts = output_facts(checkpoint) | {"checkpoint": checkpoint_id(folder), "input": _input_facts(floats)}
    program.model.metadata_props.update({key: _text(value) for key, value in facts.items()})
    with Folder(str(path.parent)).making(path.name) as temporary:
        program.save(str(temporary))
    return {"onnx": str(path), "megabytes": round(path.stat().st_size / 1e6, 1), **facts}


def _program(checkpoint: Checkpoint, floats: bool) -> Any:
    """The traced graph. torch warns of what it leaves out and of names of axes, which nobody can act on."""
    dtype = torch.float32 if floats else torch.int16
    bands = (len(checkpoint.s1_bands), len(checkpoint.s2_bands))
    inputs = [torch.zeros((2, n, checkpoint.months, _SIDE, 2 * _SIDE), dtype=dtype) for n in bands]
    axes = {0: "samples", 3: "height", 4: "width"}
    dynamic = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            _Graph(checkpoint, floats).eval(),
            tuple(inputs),
            input_names=["s1", "s2"],
            output_names=["probabilities"],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            verbose=False,
        )


def _input_facts(floats: bool) -> str:
    if floats:
        return "float32: s1 in dB, s2 in reflectance, NaN where nothing was seen"
    scales = f"s1 in {S1_BANDS[0].scale:g} dB, s2 in {S2_BANDS[0].scale:g} of reflectance"
    return f"int16: {scales}, {NODATA} where nothing was seen"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

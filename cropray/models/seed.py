"""Imports the published network's weights, as its authors' PyTorch files hold them.

A pretrained file holds the tensors of the network by their own names. A fine-tuned one holds them under
`dualunet3d.`, including the unused head of the pretraining, and its own head under `final_conv.`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import xxhash
from torch import Tensor

from cropray.errors import InputError
from cropray.models.checkpoint import DESCRIPTION, Checkpoint, describe_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.normalisation import SeedNormalisation
from cropray.storage import Folder

EUROPE_CLASSES = (
    "common wheat", "durum wheat", "barley", "rye", "oats", "maize", "rice", "triticale", "other cereals",
    "potatoes", "sugar beet", "other root crops", "other non-permanent industrial crops", "sunflower",
    "rape and turnip rape", "soya", "dry pulses, vegetables and flowers", "fodder crops", "bare arable land",
    "woodland and shrubland", "grassland",
)  # fmt: skip
"""Classes of EUCROPMAP 2018 (d'Andrimont et al. 2021) in the order of their codes, 211 to 500."""

IRAN_CLASSES = ("canola", "cotton", "lentils", "maize", "onion", "pea", "sugarbeet", "tomato")

FINETUNED_THRESHOLD = 0.35
"""Of every class, in the evaluation of the fine-tuned network."""

_BODY = "dualunet3d."
_WRAPPERS = {"module", "_orig_mod"}  # that PyTorch puts before the names of a wrapped network
_STATES = ("state_dict", "model_state_dict", "model")  # keys of a network's tensors in larger files
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of torch.save's files, since version 1.6 and before
# What torch.load raises for truncated or damaged files.
_DAMAGED = (EOFError, LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def import_seed(file: str, out: str) -> dict[str, Any]:
    """Write the checkpoint folder `out` from a published file of weights, and describe it.

    Nothing in the file is executed. Raises InputError if the file needs that, is damaged or not of the
    published layout, and if `out` holds a checkpoint already.
    """
    folder = Folder(out)
    if folder.exists(DESCRIPTION):
        raise InputError(f"{folder} holds a checkpoint already; give another --out")
    path = Path(file)
    checkpoint = from_seed(_read(path), file)
    origin = {"file": path.name, "file_xxh3": xxhash.xxh3_64_hexdigest(path.read_bytes())}
    save_checkpoint(replace(checkpoint, recipe=checkpoint.recipe | origin), folder)
    return describe_checkpoint(out)


def from_seed(content: object, where: str) -> Checkpoint:
    """The checkpoint of a published file's content: a mapping of tensors, perhaps within another one.

    Width, stem and months follow from the tensors. Raises InputError that names the file `where` for
    any other layout: missing, unknown or misshapen tensors, values that are not finite, or other numbers of
    classes than the published 21 and 8.
    """
    state = _tensors(content, where)
    finetuned = any(name.startswith(_BODY) for name in state)
    unused = f"{_BODY}final_conv."
    state = {name.removeprefix(_BODY): x for name, x in state.items() if not name.startswith(unused)}
    spec = _spec(state, finetuned, where)
    if mismatch := spec.mismatch(state):
        raise InputError(f"{where} is not of the published layout ({spec}): {mismatch}")
    return Checkpoint(
        classes=IRAN_CLASSES if finetuned else EUROPE_CLASSES,
        network=spec,
        normalisation=SeedNormalisation(),
        window={"anchor": "harvest", "months": spec.months, "lead_months": 1, "as_of": None},
        s1_quantity="sigma0",  # of Earth Engine's COPERNICUS/S1_GRD
        weights=state,
        recipe={"stage": "finetune" if finetuned else "pretrain", "recipe": "seed"},
        # Masked were 8, 9 and 11; scene classes 0 and 1 are invalid in any case.
        imagery={
            "grid": {"crs": "EPSG:3857", "resolution": 10.0},
            "composite": {
                "scl_invalid": [0, 1, 8, 9, 11],
                "s1_passes": ["ascending", "descending"],
                "cloud_score": None,
                "s1_orbit_rule": "monthly",
            },
        },
        thresholds=(FINETUNED_THRESHOLD,) * len(IRAN_CLASSES) if finetuned else None,
    )


def _tensors(content: object, where: str) -> dict[str, Tensor]:
    """The tensors by their bare names: float32, but integers stay as they are."""
    for key in _STATES:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{where} holds no tensors of a network by name (a state_dict), but {type(content)}")
    others = [
        f"{name!r} is {type(value).__name__}"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided)
    ]
    if others:
        raise InputError(
            f"{where} holds more than a network's tensors: {shorten(', '.join(others), 200)}. Save its "
            f"state_dict alone, or under one of the keys {', '.join(_STATES)}"
        )
    state = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): tensor
        for name, tensor in content.items()
    }
    if len(state) < len(content):
        raise InputError(f"{where} holds a network and the same one wrapped: names occur twice")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(
            f"{where}: values of {len(broken)} tensors are not finite: {shorten(', '.join(broken), 200)}"
        )
    return {name: (x.float() if x.is_floating_point() else x).contiguous() for name, x in state.items()}


def _spec(state: dict[str, Tensor], finetuned: bool, where: str) -> NetworkSpec:
    """The network of these tensors, by the shapes of three of them. Raises InputError if one is missing."""

    def size(name: str, axis: int, ndim: int) -> int:
        if name not in state or state[name].ndim != ndim:
            raise InputError(
                f"{where} is not of the published layout: it has no {name} of {ndim} axes. Its {len(state)} "
                f"tensors: {shorten(', '.join(state), 200)}"
            )
        return int(state[name].shape[axis])

    width = size("unet3d_s2.unet.downs.0.conv.0.weight", 0, 4)
    stem = size("unet3d_s2.conv3d.conv.0.weight", 0, 5)
    return NetworkSpec(
        len(IRAN_CLASSES if finetuned else EUROPE_CLASSES),
        width=width,
        months=size("unet3d_s2.conv3d.conv.3.weight", 2, 5),
        head="conv" if finetuned else "linear",
        stem=None if stem == width // 2 else stem,
    )


def _read(path: Path) -> object:
    """The content of a file of torch.save. Raises InputError for other files and those that run code."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}") from error
    if start != _ZIP and not start.startswith(_PICKLE):
        raise InputError(f"{path} is not a file of torch.save: it begins with {start!r}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it holds more than tensors, and reading it would run code "
            f"({_reason(error)}). If you trust it, save its tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged or truncated: {_reason(error)}; copy it again") from error


def _reason(error: Exception) -> str:
    """The sentence of torch.load's long text that says what is wrong."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__

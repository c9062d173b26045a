"""The published network's weights, as its authors' PyTorch files hold them, as a checkpoint of ours.

A pretrained file holds the tensors of the network under their own names. A fine-tuned one holds them
under `dualunet3d.`, where the pretraining's head is left unused, and the new head under `final_conv.`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from cropray.errors import InputError
from cropray.models.checkpoint import DESCRIPTION, Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.normalisation import SeedNormalisation
from cropray.storage import Folder

EUROPE_CLASSES = (
    "common wheat",
    "durum wheat",
    "barley",
    "rye",
    "oats",
    "maize",
    "rice",
    "triticale",
    "other cereals",
    "potatoes",
    "sugar beet",
    "other root crops",
    "other non-permanent industrial crops",
    "sunflower",
    "rape and turnip rape",
    "soya",
    "dry pulses, vegetables and flowers",
    "fodder crops",
    "bare arable land",
    "woodland and shrubland",
    "grassland",
)
"""Classes of EUCROPMAP 2018 (d'Andrimont et al. 2021) in the order of their codes, 211 to 500."""

IRAN_CLASSES = ("canola", "cotton", "lentils", "maize", "onion", "pea", "sugarbeet", "tomato")

FINETUNED_THRESHOLD = 0.35
"""With which the fine-tuned network was evaluated, for every class."""

_BODY = "dualunet3d."
# What PyTorch puts before the names of a network that it wraps.
_WRAPPERS = {"module", "_orig_mod"}
# Under which keys training loops keep a network's tensors beside other things.
_STATES = ("state_dict", "model_state_dict", "model")
_SHOWN = 5


def from_seed(content: object, where: str) -> Checkpoint:
    """The checkpoint of what a published file holds: a mapping of tensors, perhaps within another one.

    Width, stem and months are those of the tensors. Raises InputError, naming the file `where`, for
    anything but the published layout: tensors that are missing, beside it, of another shape, not
    finite, or of another number of classes than the published 21 and 8.
    """
    state = _tensors(content, where)
    finetuned = any(name.startswith(_BODY) for name in state)
    if finetuned:
        state = {
            name.removeprefix(_BODY): tensor
            for name, tensor in state.items()
            if not name.startswith(f"{_BODY}final_conv.")
        }
    spec = _spec(state, finetuned, where)
    _check_layout(state, spec, where)
    return Checkpoint(
        classes=IRAN_CLASSES if finetuned else EUROPE_CLASSES,
        network=spec,
        normalisation=SeedNormalisation(),
        window={"anchor": "harvest", "months": spec.months, "lead_months": 1, "as_of": None},
        s1_quantity="sigma0",  # what Earth Engine's COPERNICUS/S1_GRD holds
        weights=state,
        recipe={"stage": "finetune" if finetuned else "pretrain", "recipe": "seed"},
        # Scene classes 0 and 1 are no view in any recipe; 8, 9 and 11 are what was masked.
        imagery={
            "grid": {"crs": "EPSG:3857", "resolution": 10.0},
            "composite": {
                "scl_invalid": [0, 1, 8, 9, 11],
                "s1_passes": ["ascending", "descending"],
                "cloud_score": None,
            },
        },
        thresholds=(FINETUNED_THRESHOLD,) * len(IRAN_CLASSES) if finetuned else None,
    )


def _tensors(content: object, where: str) -> dict[str, Tensor]:
    """Float32 tensors by their bare names (counters stay integers)."""
    for key in _STATES:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{where} holds {_said(content)}; wanted the tensors of a network by name (a state_dict)"
        )
    others = [f"{name!r} is {_said(value)}" for name, value in content.items() if not _is_weight(name, value)]
    if others:
        raise InputError(
            f"{where} holds other things than a network's tensors: {_some(others)}; "
            "save its state_dict alone, or under one of the keys " + ", ".join(_STATES)
        )
    state = {_bare(name): tensor for name, tensor in content.items()}
    if len(state) < len(content):
        raise InputError(f"{where} holds tensors of one name twice: of a network, and of one wrapped in it")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"{where}: {len(broken)} tensors hold values that are not finite: {_some(broken)}")
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }


def _is_weight(name: object, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _spec(state: dict[str, Tensor], finetuned: bool, where: str) -> NetworkSpec:
    """The network of these tensors, by the shapes of four. Raises InputError where these are not there."""

    def size(name: str, axis: int, ndim: int) -> int:
        if name not in state or state[name].ndim != ndim:
            raise InputError(
                f"{where} is not of the published layout: it lacks {name}, or has it with another number of "
                f"axes than {ndim}; it holds {len(state)} tensors: {_some(list(state))}"
            )
        return int(state[name].shape[axis])

    n_classes = size("final_conv.conv.3.weight" if finetuned else "final_conv.weight", 0, 4)
    wanted = len(IRAN_CLASSES if finetuned else EUROPE_CLASSES)
    if n_classes != wanted:
        raise InputError(
            f"{where}: its head has {n_classes} classes, the published "
            f"{'fine-tuned' if finetuned else 'pretrained'} one {wanted}: which they are is not known"
        )
    width = size("unet3d_s2.unet.downs.0.conv.0.weight", 0, 4)
    stem = size("unet3d_s2.conv3d.conv.0.weight", 0, 5)
    return NetworkSpec(
        n_classes,
        width=width,
        months=size("unet3d_s2.conv3d.conv.3.weight", 2, 5),
        head="conv" if finetuned else "linear",
        stem=None if stem == width // 2 else stem,
    )


def _check_layout(state: dict[str, Tensor], spec: NetworkSpec, where: str) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in spec.build_empty().state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "not of this network": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {given[name]} instead of {wanted[name]}"
            for name in sorted(wanted.keys() & given.keys())
            if wanted[name] != given[name]
        ],
    }
    said = [f"{len(names)} tensors {what}: {_some(names)}" for what, names in problems.items() if names]
    if said:
        raise InputError(f"{where} is not of the published layout ({spec}): {'; '.join(said)}")


def _said(value: object) -> str:
    return (
        f"{type(value).__name__} ({len(value)} entries)" if isinstance(value, Mapping) else repr(type(value))
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how files of torch.save begin, since 1.6 and before
# What torch.load raises for files that are cut short or damaged, beside what it refuses.
_DAMAGED = (EOFError, LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def import_seed(file: str, out: str) -> dict[str, Any]:
    """Write the checkpoint folder `out` from a published PyTorch file of weights.

    Nothing in the file is executed. Raises InputError where it cannot be read so, where it is not of
    the published layout (`models.seed`), and where `out` holds a checkpoint.
    """
    folder = Folder(out)
    if folder.exists(DESCRIPTION):
        raise InputError(f"{folder} holds a checkpoint already; give another --out")
    path = Path(file)
    checkpoint = from_seed(_content(path), file)
    made_of = {"file": path.name, "file_xxh3": _checksum(path)}
    save_checkpoint(replace(checkpoint, recipe=checkpoint.recipe | made_of), folder)
    return show(out)


def show(place: str) -> dict[str, Any]:
    """What a checkpoint folder holds, verified: all but the weights themselves."""
    folder = Folder(place)
    return {"checkpoint": folder.uri, **_described(load_checkpoint(folder))}


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    parameters = sum(p.numel() for p in checkpoint.network.build_empty().parameters())
    return {"parameters": parameters, **checkpoint.describe()}


def _content(path: Path) -> object:
    """What a file of torch.save holds. Raises InputError for a file that is none, or that needs code."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}") from error
    if start != _ZIP and not start.startswith(_PICKLE):
        raise InputError(f"{path} is no file of torch.save: it begins with {start!r}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, and reading it would run code that it names "
            f"({_reason(error)}): refused. Whoever trusts it can save its tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged or cut short: {_reason(error)}; copy it again") from error


def _reason(error: Exception) -> str:
    """The sentence of torch.load's long text that says what is wrong."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Checkpoints by themselves: taken over from the published files, and shown."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from cropray.models.checkpoint import DESCRIPTION, Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.seed import from_seed
from cropray.run import Summary
from cropray.storage import Folder
from cropray.types import InputError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how files of torch.save begin, since 1.6 and before
# What torch.load raises for files that are cut short or damaged, beside what it refuses.
_DAMAGED = (EOFError, LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def import_seed(file: str, out: str) -> Summary:
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


def show(place: str) -> Summary:
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

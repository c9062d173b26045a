"""Checkpoints: weights (safetensors) and everything needed to use them (checkpoint.json). No pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

import cropray
from cropray.bands import S1_NAMES, S2_NAMES
from cropray.errors import InputError
from cropray.models.dual_unet3d import DualUNet3D, NetworkSpec
from cropray.models.normalisation import Normalisation
from cropray.storage import Folder

FORMAT = "cropray-checkpoint"
VERSION = 1
DESCRIPTION = "checkpoint.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class FurtherHead:
    """The class list of a head beside the main one, and its thresholds, None until chosen."""

    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and the conditions under which it may be used.

    `classes` and `thresholds` (None until chosen) are those of the main head, `heads` the others by
    name. `window` has the keys anchor, months, lead_months and as_of (ISO date or None); `periods` are
    the first day and the day after the last, ISO, of each of these months over all training samples,
    empty where not known. `data_fingerprint` names the training data, `recipe` the training settings,
    `imagery` those of the grid and the composites that it learnt from.
    """

    classes: tuple[str, ...]
    network: NetworkSpec
    normalisation: Normalisation
    window: dict[str, Any]
    s1_quantity: str  # "gamma0" or "sigma0"
    weights: dict[str, Tensor]
    s2_bands: tuple[str, ...] = S2_NAMES
    s1_bands: tuple[str, ...] = S1_NAMES
    recipe: dict[str, Any] = field(default_factory=dict)
    imagery: dict[str, Any] = field(default_factory=dict)
    thresholds: tuple[float, ...] | None = None
    heads: dict[str, FurtherHead] = field(default_factory=dict)
    periods: tuple[tuple[str, str], ...] = ()
    data_fingerprint: str = ""
    code_version: str = cropray.__version__

    @property
    def months(self) -> int:
        return self.network.months

    def build(self) -> DualUNet3D:
        """The network with these weights, in evaluation mode."""
        network = self.network.build()
        network.load_state_dict(self.weights)
        return network.eval()

    def describe(self) -> dict[str, Any]:
        """All but the weights, as JSON."""
        return {
            "classes": list(self.classes),
            "network": asdict(self.network),
            "normalisation": self.normalisation.to_json(),
            "window": self.window,
            "s1_quantity": self.s1_quantity,
            "s2_bands": list(self.s2_bands),
            "s1_bands": list(self.s1_bands),
            "recipe": self.recipe,
            "imagery": self.imagery,
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "heads": {name: asdict(head) for name, head in self.heads.items()},
            "periods": [list(period) for period in self.periods],
            "data_fingerprint": self.data_fingerprint,
            "code_version": self.code_version,
        }


def save_checkpoint(checkpoint: Checkpoint, folder: Folder) -> None:
    """Write both files; the description last, with the weights' checksum, so that half is never read."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    weights = safetensors.torch.save(tensors)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "weights_xxh3": xxhash.xxh3_64_hexdigest(weights),
        **checkpoint.describe(),
    }
    folder.write_bytes(WEIGHTS, weights)
    folder.write_text(DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_checkpoint(folder: Folder) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises InputError, naming the file, where one is missing, cut short, changed, or of another
    format version, or where the weights do not fit the network described.
    """
    data = _read_description(folder)
    weights = _load_weights(folder, data.pop("weights_xxh3", ""))
    try:
        checkpoint = _from_json(data, weights)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder}/{DESCRIPTION} lacks or mistypes {error}; copy or train the model again"
        ) from error
    _check_fit(checkpoint, folder)
    return checkpoint


def weights_checksum(folder: Folder) -> str:
    """The checksum of a checkpoint's weights, as its description has it: what tells models apart.

    Raises InputError as `load_checkpoint` does for the description; the weights are not read.
    """
    return str(_read_description(folder).get("weights_xxh3", ""))


def check_classes(checkpoint: Checkpoint, classes: Sequence[str], where: str) -> None:
    """Raises InputError where the checkpoint's classes are not these, in this order."""
    if tuple(classes) != checkpoint.classes:
        raise InputError(
            f"the checkpoint {where} is of another class list: {', '.join(checkpoint.classes)}; "
            f"the configuration has classes {', '.join(classes)}; set `classes` alike, or use a "
            "checkpoint trained for them"
        )


def check_inputs(
    checkpoint: Checkpoint,
    *,
    s2_bands: Sequence[str],
    s1_bands: Sequence[str],
    s1_quantity: str,
    where: str,
) -> None:
    """Raises InputError where `where` offers other bands or another backscatter than was trained on."""
    for sensor, trained, offered in (
        ("Sentinel-2", checkpoint.s2_bands, s2_bands),
        ("Sentinel-1", checkpoint.s1_bands, s1_bands),
    ):
        if tuple(trained) != tuple(offered):
            raise InputError(
                f"the model was trained on the {sensor} bands {', '.join(trained)}; "
                f"{where} has {', '.join(offered)}: use a model of these bands"
            )
    if checkpoint.s1_quantity != s1_quantity:
        raise InputError(
            f"the model was trained on {checkpoint.s1_quantity} of Sentinel-1, {where} has {s1_quantity}: "
            "they differ by the angle of incidence; use a source or a model of the same quantity"
        )


def _read_description(folder: Folder) -> dict[str, Any]:
    where = f"{folder}/{DESCRIPTION}"
    try:
        data = json.loads(folder.read_text(DESCRIPTION))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is damaged: {error}; copy or train the model again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{where} is not a {FORMAT}; wanted a folder that training wrote")
    if data.get("version") != VERSION:
        raise InputError(
            f"{where} has format version {data.get('version')}, this cropray reads {VERSION}; "
            f"it was written by cropray {data.get('code_version', 'of unknown version')}"
        )
    return data


def _load_weights(folder: Folder, checksum: str) -> dict[str, Tensor]:
    data = folder.read_bytes(WEIGHTS)
    if xxhash.xxh3_64_hexdigest(data) != checksum:
        raise InputError(
            f"{folder}/{WEIGHTS} is damaged or belongs to another {DESCRIPTION} (checksum differs); "
            "copy or train the model again"
        )
    try:
        weights: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise InputError(f"{folder}/{WEIGHTS} is no safetensors file: {error}") from error
    return weights


def _from_json(data: dict[str, Any], weights: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(
        classes=tuple(data["classes"]),
        network=NetworkSpec.from_json(data["network"]),
        normalisation=Normalisation.from_json(data["normalisation"]),
        window=data["window"],
        s1_quantity=data["s1_quantity"],
        weights=weights,
        s2_bands=tuple(data["s2_bands"]),
        s1_bands=tuple(data["s1_bands"]),
        recipe=data["recipe"],
        imagery=data["imagery"],
        thresholds=_thresholds(data["thresholds"]),
        # Checkpoints that were written before there were these two have them not.
        heads={
            name: FurtherHead(tuple(head["classes"]), _thresholds(head["thresholds"]))
            for name, head in data.get("heads", {}).items()
        },
        periods=tuple((start, end) for start, end in data.get("periods", ())),
        data_fingerprint=data["data_fingerprint"],
        code_version=data["code_version"],
    )


def _check_fit(checkpoint: Checkpoint, folder: Folder) -> None:
    network = checkpoint.network.build_empty()
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {name: tensor.shape for name, tensor in checkpoint.weights.items()}
    differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    heads = {head.name: head.n_classes for head in checkpoint.network.heads}
    if (
        differing
        or checkpoint.network.n_classes != len(checkpoint.classes)
        or heads != {name: len(head.classes) for name, head in checkpoint.heads.items()}
    ):
        raise InputError(
            f"{folder}: weights and description do not fit ({checkpoint.network}, "
            f"{len(checkpoint.classes)} classes, heads {', '.join(checkpoint.heads) or 'none'} beside, "
            f"{len(differing)} tensors differ: {', '.join(differing[:3])})"
        )
    for head in (FurtherHead(checkpoint.classes, checkpoint.thresholds), *checkpoint.heads.values()):
        if head.thresholds is not None and len(head.thresholds) != len(head.classes):
            raise InputError(
                f"{folder}/{DESCRIPTION} has {len(head.thresholds)} thresholds for "
                f"{len(head.classes)} classes; copy or train the model again"
            )


def _thresholds(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)

"""Checkpoints: weights (safetensors) and all that is needed to use them (checkpoint.json). No pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

import safetensors.torch
import xxhash
from torch import Tensor

import cropray
from cropray.bands import S1_NAMES, S2_NAMES
from cropray.errors import InputError
from cropray.models.decision import Decision
from cropray.models.dual_unet3d import MAIN, CropNetwork, NetworkSpec
from cropray.models.normalisation import Normalisation
from cropray.storage import Folder
from cropray.types import calendar_months

FORMAT = "cropray-checkpoint"
VERSION = 1
DESCRIPTION = "checkpoint.json"
WEIGHTS = "weights.safetensors"

_COPY_AGAIN = "copy or train the model again"


@dataclass(frozen=True)
class LabelSet:
    """The classes of a head, and their thresholds, None until chosen, of scores that are not calibrated."""

    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and the conditions of its use. `classes` are those of the main head."""

    classes: tuple[str, ...]
    network: NetworkSpec
    normalisation: Normalisation
    window: dict[str, Any]  # anchor, months, lead_months, and as_of: an ISO date or None
    s1_quantity: str  # "gamma0" or "sigma0"; "none" if it was trained without Sentinel-1
    weights: dict[str, Tensor]
    s2_bands: tuple[str, ...] = S2_NAMES
    s1_bands: tuple[str, ...] = S1_NAMES
    recipe: dict[str, Any] = field(default_factory=dict)  # settings of the training
    imagery: dict[str, Any] = field(default_factory=dict)  # settings of grid and composites
    # Of the main head, as in `decision.Decision`: thresholds (None until chosen), calibration, quantiles.
    thresholds: tuple[float, ...] | None = None
    temperature: float = 1.0
    biases: tuple[float, ...] = ()
    quantiles: tuple[float | None, ...] = ()
    earlier: dict[int, Decision] = field(default_factory=dict)  # by months seen, of an any-date network
    heads: dict[str, LabelSet] = field(default_factory=dict)  # of the auxiliary heads
    # By month: the first day and the day after the last (ISO) over all training samples; empty if unknown.
    periods: tuple[tuple[str, str], ...] = ()
    input_range: dict[str, Any] = field(default_factory=dict)  # of the training data: `shift.input_range`
    data_fingerprint: str = ""  # identifies the training data
    epoch: int = 0  # of the training; 0 if unknown
    code_version: str = cropray.__version__

    @property
    def months(self) -> int:
        return self.network.months

    @property
    def any_date(self) -> bool:
        """Whether it was trained on windows that end early, and so serves dates before its window's end."""
        return bool(self.recipe.get("any_date"))

    @property
    def calendar(self) -> list[int]:
        """The calendar months of its window; zeros if they are unknown."""
        if not self.periods:
            return [0] * self.months
        return calendar_months(date.fromisoformat(start) for start, _ in self.periods)

    def decision(self, months: int | None = None) -> Decision:
        """How the main head's scores become classes, where so many months are seen (None: all)."""
        whole = Decision(self.thresholds, self.temperature, self.biases, self.quantiles)
        return whole if months is None else self.earlier.get(months, whole)

    def decided(self, decisions: Mapping[int, Decision]) -> Checkpoint:
        """With decisions of the main head, by the months that are seen; all of them must be among these."""
        whole = decisions[self.months]
        earlier = {months: decision for months, decision in decisions.items() if months < self.months}
        return replace(self, **vars(whole), earlier=earlier)

    @property
    def label_sets(self) -> dict[str, LabelSet]:
        """Of every head by name, the main one first."""
        return {MAIN: LabelSet(self.classes, self.decision().score_thresholds)} | self.heads

    def build(self) -> CropNetwork:
        """The network with these weights, in evaluation mode."""
        network = self.network.build()
        network.load_state_dict(self.weights)
        return network.eval()

    def describe(self) -> dict[str, Any]:
        """All but the weights, as plain JSON."""
        values = {name: value for name, value in vars(self).items() if name != "weights"}
        values |= {"network": asdict(self.network), "normalisation": self.normalisation.to_json()}
        values["heads"] = {name: asdict(head) for name, head in self.heads.items()}
        values["earlier"] = {months: asdict(decision) for months, decision in self.earlier.items()}
        plain: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists
        return plain


def save_checkpoint(checkpoint: Checkpoint, folder: Folder) -> None:
    """Write both files. The description comes last, with the weights' checksum: half is never read."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    weights = safetensors.torch.save(tensors)
    checksum = xxhash.xxh3_64_hexdigest(weights)
    description = {"format": FORMAT, "version": VERSION, "weights_xxh3": checksum} | checkpoint.describe()
    folder.write_bytes(WEIGHTS, weights)
    folder.write_text(DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_checkpoint(folder: Folder) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises InputError that names the file if one is missing, truncated, changed or of another format version,
    or if the weights do not fit the network described.
    """
    data = _read_description(folder)
    weights = _load_weights(folder, data.pop("weights_xxh3", ""))
    try:
        checkpoint = _from_json(data, weights)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/{DESCRIPTION} lacks or mistypes {error}; {_COPY_AGAIN}") from error
    _check_fit(checkpoint, folder)
    return checkpoint


def describe_checkpoint(place: str) -> dict[str, Any]:
    """The description of the checkpoint in a folder, verified, with its number of parameters."""
    checkpoint = load_checkpoint(Folder(place))
    parameters = checkpoint.network.count_parameters()
    return {"checkpoint": Folder(place).uri, "parameters": parameters, **checkpoint.describe()}


def weights_checksum(folder: Folder) -> str:
    """The checksum of a checkpoint's weights by its description, which identifies the model.

    The weights are not read. Raises InputError as `load_checkpoint` does for the description.
    """
    return str(_read_description(folder).get("weights_xxh3", ""))


def check_classes(checkpoint: Checkpoint, classes: Sequence[str], where: str) -> None:
    """Raises InputError unless the classes of the checkpoint `where` are these, in this order."""
    if tuple(classes) != checkpoint.classes:
        raise InputError(
            f"the checkpoint {where} is of another class list: {', '.join(checkpoint.classes)}. The "
            f"configuration has {', '.join(classes)}; set `classes` alike, or use a checkpoint for them"
        )


def check_inputs(
    checkpoint: Checkpoint, *, s2_bands: Sequence[str], s1_bands: Sequence[str], s1_quantity: str, where: str
) -> None:
    """Raises InputError if the data `where` have other bands or another backscatter than the model's.

    Without Sentinel-1 ("none") there is nothing to compare: its pixels are missing.
    """
    for sensor, trained, given in (
        ("Sentinel-2", checkpoint.s2_bands, s2_bands),
        ("Sentinel-1", checkpoint.s1_bands, s1_bands),
    ):
        if tuple(trained) != tuple(given):
            order = " in another order" if sorted(trained) == sorted(given) else ""
            raise InputError(
                f"{where} has the {sensor} bands {', '.join(given)}{order}; the model was trained on "
                f"{', '.join(trained)}"
            )
    if "none" not in (checkpoint.s1_quantity, s1_quantity) and checkpoint.s1_quantity != s1_quantity:
        raise InputError(
            f"{where} has {s1_quantity} of Sentinel-1, the model was trained on {checkpoint.s1_quantity}: "
            "they differ by the angle of incidence. Use a source or a model of the same quantity"
        )


def _read_description(folder: Folder) -> dict[str, Any]:
    where = f"{folder}/{DESCRIPTION}"
    try:
        data = json.loads(folder.read_text(DESCRIPTION))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is damaged: {error}; {_COPY_AGAIN}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{where} is not a {FORMAT}; give a folder that training wrote")
    if data.get("version") != VERSION:
        raise InputError(
            f"{where} has format version {data.get('version')}, this cropray reads {VERSION}. "
            f"Use the version that wrote it: cropray {data.get('code_version', 'of unknown version')}"
        )
    return data


def _load_weights(folder: Folder, checksum: str) -> dict[str, Tensor]:
    data = folder.read_bytes(WEIGHTS)
    if xxhash.xxh3_64_hexdigest(data) != checksum:
        problem = f"is damaged or belongs to another {DESCRIPTION} (wrong checksum)"
        raise InputError(f"{folder}/{WEIGHTS} {problem}; {_COPY_AGAIN}")
    return dict(safetensors.torch.load(data))


def _from_json(data: dict[str, Any], weights: dict[str, Tensor]) -> Checkpoint:
    decoded: dict[str, Any] = {
        "network": NetworkSpec.from_json(data["network"]),
        "normalisation": Normalisation.from_json(data["normalisation"]),
        "weights": weights,
        # Checkpoints of earlier versions lack these.
        "heads": {
            name: LabelSet(*(head[key] and tuple(head[key]) for key in ("classes", "thresholds")))
            for name, head in data.get("heads", {}).items()
        },
        "periods": tuple((start, end) for start, end in data.get("periods", ())),
        "earlier": {int(n): Decision.from_json(values) for n, values in data.get("earlier", {}).items()},
        "epoch": data.get("epoch", 0),
        "input_range": data.get("input_range", {}),
        **vars(Decision.from_json(data)),
    }
    for name in Checkpoint.__dataclass_fields__.keys() - decoded.keys():
        value = data[name]
        decoded[name] = tuple(value) if isinstance(value, list) else value
    return Checkpoint(**decoded)


def _check_fit(checkpoint: Checkpoint, folder: Folder) -> None:
    problems = [mismatch] if (mismatch := checkpoint.network.mismatch(checkpoint.weights)) else []
    sizes = {MAIN: checkpoint.network.n_classes} | {h.name: h.n_classes for h in checkpoint.network.heads}
    lists = {name: len(labels.classes) for name, labels in checkpoint.label_sets.items()}
    if sizes != lists:
        problems.append(f"the heads have {sizes} classes, the class lists {lists}")
    problems += [
        f"{len(labels.thresholds)} thresholds for {len(labels.classes)} classes"
        for labels in checkpoint.label_sets.values()
        if labels.thresholds is not None and len(labels.thresholds) != len(labels.classes)
    ]
    wanted, decisions = len(checkpoint.classes), [checkpoint.decision(), *checkpoint.earlier.values()]
    problems += [
        f"{len(values)} {name} for {wanted} classes"
        for decision in decisions
        for name, values, number in (
            ("biases", decision.biases, wanted),
            ("quantiles", decision.quantiles, wanted + 1),
        )
        if len(values) not in (0, number)
    ]
    if problems:
        raise InputError(f"{folder}: weights and description do not fit: {'; '.join(problems)}")

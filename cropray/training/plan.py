"""The plan of a training, complete and checked before any worker starts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from cropray.config import Config
from cropray.config.training import OPERATIONAL, AuxiliaryConfig, TrainConfig
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, check_inputs, load_checkpoint, weights_checksum
from cropray.models.dual_unet3d import Head, NetworkSpec
from cropray.models.heads import add_head, keep_heads
from cropray.models.losses import LossRecipe
from cropray.models.normalisation import make_normalisation
from cropray.models.shift import input_range
from cropray.run import Inputs, Run
from cropray.shards.file import check_shards, fingerprint, shard_uris
from cropray.shards.reader import ShardReader
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder
from cropray.tracking.registry import resolve_model
from cropray.training.data import Data
from cropray.training.lock import RunLock
from cropray.training.recipe import Recipe
from cropray.types import patch_places

RAYS = "ray"
"""The folder, among the states, in which Ray Train keeps its checkpoints."""

_RUNS, _RUN_SAMPLES, _RUN_PIXELS = 8, 16, 512  # of samples, for the range of the inputs
_LEAST_SPREAD = 0.01  # degrees: a kilometre


@dataclass(frozen=True)
class AuxiliaryData:
    """A label set for the auxiliary head `head`: `weight` steps for each step of the main head.

    Figures on `val`, if it has shards, do not select the best epoch.
    """

    head: str
    data: Data
    val: Data
    weight: float


@dataclass(frozen=True)
class TrainingPlan:
    """All that a worker needs to know.

    `checkpoint` is the one to publish, without weights, and without thresholds if val chooses them. `init` is
    the one to start from; `keep_head`: its classes are the same. States go to `states` while the driver holds
    `lock`. `steps` are those of all epochs.
    """

    train: Data
    also: tuple[AuxiliaryData, ...]
    val: Data
    recipe: Recipe
    settings: TrainConfig
    states: Folder
    lock: RunLock | None
    checkpoint: Checkpoint
    init: Folder | None
    keep_head: bool
    samples: int
    steps: int
    parameters: int

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this training: states of another one are not resumed."""
        settings = {k: v for k, v in self.checkpoint.recipe.items() if k not in OPERATIONAL}
        return {"recipe": settings, "data_fingerprint": self.checkpoint.data_fingerprint}


def training_inputs(run: Run, stage: str) -> Inputs:
    """What a training depends on: the shards of train and val, and the weights that it starts from.

    Raises InputError for missing or damaged shards.
    """
    settings: TrainConfig = getattr(run.config, stage)
    check_shards(run.folder, (run.summary("compact") or {}).get("shards", {}))
    inputs = {"shards": _shards(run.folder)}
    inputs |= {f"the shards of {also.head}": _shards(run.place(also.run)) for also in settings.also}
    if settings.init:
        inputs["the checkpoint to start from"] = weights_checksum(resolve_model(settings.init, run))
    return inputs


def _shards(folder: Folder) -> str:
    return fingerprint(shard_uris(folder, "train") + shard_uris(folder, "val"))


def make_plan(run: Run, stage: str) -> TrainingPlan:
    """The plan of a training. Raises InputError if shards, settings and starting checkpoint do not fit."""
    settings: TrainConfig = getattr(run.config, stage)
    _check_shares(settings, stage)
    uris = shard_uris(run.folder, "train")
    if not uris:
        raise InputError(
            f"{run.folder} has no shards of the split train: nothing to train on. Add parcels, or start with "
            "a smaller rois.split.val and rois.split.test in a new --run folder"
        )
    train = Data(uris, settings.min_labelled_fraction, settings.balance, settings.unlabelled_share)
    most = settings.max_workers
    reader = train.reader(settings.batch_size // most, seed=run.config.seed, world_size=most)
    if not (reader.table["labelled_fraction"].to_numpy() > settings.min_labelled_fraction).any():
        raise InputError(
            f"no sample of {run.folder}/shards/train has more than {settings.min_labelled_fraction:.0%} "
            f"labelled pixels ({stage}.min_labelled_fraction): nothing to train on"
        )
    checkpoint, init, keep_head = _start(run, stage, reader.metadata)
    if run.config.model.places and init is None:
        place_n2 = patch_places(reader.table.to_pydict(), reader.metadata.size)
        lon, lat = ((float(x.mean()), max(float(x.std()), _LEAST_SPREAD)) for x in place_n2.T)
        checkpoint = replace(checkpoint, network=replace(checkpoint.network, places=(lon, lat)))
    starts, ends = (  # the first day and the day after the last, by month, over all samples
        np.array(reader.table[name].to_pylist(), "datetime64[D]") for name in ("period_start", "period_end")
    )
    checkpoint = replace(
        checkpoint,
        data_fingerprint=_fingerprint(reader.table),
        periods=tuple((str(a), str(b)) for a, b in zip(starts.min(0), ends.max(0), strict=True)),
        input_range=_input_range(reader),
    )
    auxiliary = []
    for also in settings.also:
        data, val = (Data(shard_uris(run.place(also.run), split), 0.0) for split in ("train", "val"))
        checkpoint = _with_label_set(checkpoint, also, data, run)
        auxiliary.append(AuxiliaryData(also.head, data, val, also.weight))
    own: dict[str, Any] = {
        "seed": run.config.seed,
        "loss": LossRecipe(
            settings.unlabelled, settings.own_crop_weight, settings.cross_negatives, settings.teacher
        ),
        "head_lr": settings.lr if keep_head or settings.head_lr is None else settings.head_lr,
    }
    return TrainingPlan(
        train=train,
        also=tuple(auxiliary),
        val=Data(shard_uris(run.folder, "val"), 0.0),
        recipe=Recipe(
            **{f.name: getattr(settings, f.name) for f in fields(Recipe) if f.name not in own}, **own
        ),
        settings=settings,
        states=run.folder.child(f"checkpoints/{stage}"),
        lock=None,
        checkpoint=checkpoint,
        init=init,
        keep_head=keep_head,
        samples=len(reader.table),
        steps=settings.epochs * len(reader),
        parameters=checkpoint.network.count_parameters(),
    )


def _check_shares(settings: TrainConfig, stage: str) -> None:
    """Raise InputError if a step cannot be shared evenly, or frozen batch norm has no statistics."""
    for workers in range(settings.min_workers, settings.max_workers + 1):
        if settings.batch_size % (workers * settings.accumulate):
            raise InputError(
                f"{stage}.batch_size = {settings.batch_size} (samples a step of all workers together) is no "
                f"multiple of {stage}.workers × {stage}.accumulate = {workers} × {settings.accumulate}: "
                "change one of them"
            )
    if settings.batch_norm == "frozen" and not settings.init:
        raise InputError(
            f"{stage}.batch_norm is frozen, but there are no statistics to keep: set {stage}.init, or "
            f"{stage}.batch_norm to local"
        )


def _check_dates(config: Config, stage: str, data: ShardMetadata, *, validity: bool) -> None:
    """Raise InputError for a network of dates on windows that differ by crop, or that cannot see gaps."""
    settings: TrainConfig = getattr(config, stage)
    if config.model.kind == "temporal" and data.window["anchor"] != "as_of":
        raise InputError(
            "model.kind temporal is told the calendar months, and with window.anchor=harvest these tell the "
            "crop. Export with window.anchor=as_of, or set model.kind to dual_unet3d"
        )
    if config.model.places and config.model.kind != "temporal":
        raise InputError("model.places needs model.kind=temporal; dual_unet3d is told no places")
    if config.model.members > 1 and config.model.kind != "temporal":
        raise InputError(
            "model.members above 1 needs model.kind=temporal; one dual_unet3d is trained at a time"
        )
    if settings.any_date and (data.window["anchor"] != "as_of" or not validity):
        raise InputError(
            f"{stage}.any_date needs shards with window.anchor=as_of, and model.normalisation=fixed, which "
            "tells the network what is missing"
        )
    if settings.teacher and not validity:
        raise InputError(
            f"{stage}.teacher needs model.normalisation=fixed, which tells the network what is missing"
        )
    if settings.any_date and settings.min_months > data.months:
        raise InputError(
            f"{stage}.min_months is {settings.min_months}, but windows have {data.months} months"
        )


def _start(run: Run, stage: str, data: ShardMetadata) -> tuple[Checkpoint, Folder | None, bool]:
    """The checkpoint to publish, the one to start from, and whether its head is kept."""
    config, n_classes = run.config, len(data.classes)
    settings: TrainConfig = getattr(config, stage)
    normalisation = make_normalisation(
        config.model.normalisation, data.s2_bands, data.s1_bands, config.model.clip
    )
    _check_dates(config, stage, data, validity=normalisation.validity)
    checkpoint = Checkpoint(
        classes=data.classes,
        network=NetworkSpec(
            n_classes,
            config.model.width,
            data.months,
            stem=config.model.stem,
            validity=normalisation.validity,
            kind=config.model.kind,
            members=config.model.members,
            s2_bands=len(data.s2_bands),
            s1_bands=len(data.s1_bands),
        ),
        normalisation=normalisation,
        window=data.window,
        s1_quantity=data.s1_quantity,
        weights={},
        s2_bands=data.s2_bands,
        s1_bands=data.s1_bands,
        imagery=data.imagery,
        thresholds=None if settings.threshold is None else (settings.threshold,) * n_classes,
        recipe={"stage": stage, "seed": config.seed, **settings.model_dump(mode="json")},
    )
    if not settings.init:
        if settings.keep_heads is not None:
            raise InputError(
                f"{stage}.keep_heads is {settings.keep_heads!r}, but there is no checkpoint whose head to "
                f"keep: set {stage}.init"
            )
        return checkpoint, None, False
    init = resolve_model(settings.init, run)
    first = load_checkpoint(init)
    _check_init(first, checkpoint, init, wants_places=config.model.places)
    same = first.classes == checkpoint.classes
    network = replace(first.network, heads=())
    if not same:
        head: Head = "conv" if network.kind == "dual_unet3d" else "linear"
        network = replace(network, n_classes=n_classes, head=head)
    checkpoint = replace(checkpoint, network=network, normalisation=first.normalisation)
    if settings.keep_heads is not None:
        checkpoint = keep_heads(checkpoint, first, settings.keep_heads)
    return checkpoint, init, same


def _with_label_set(checkpoint: Checkpoint, also: AuxiliaryConfig, data: Data, run: Run) -> Checkpoint:
    """With an auxiliary head. Raises InputError if its shards are missing or have other inputs."""
    where = f"{run.place(also.run)} (also: {also.head})"
    if not data.uris:
        raise InputError(f"{where} has no shards of the split train to learn from: run compact there")
    reader = data.reader(1, seed=0)
    found = reader.metadata
    if not len(reader.table):
        raise InputError(f"{where} has no sample with a labelled pixel to learn from")
    if found.months != checkpoint.months:
        raise InputError(f"{where} has windows of {found.months} months, this run of {checkpoint.months}")
    quantity = found.s1_quantity
    check_inputs(
        checkpoint, s2_bands=found.s2_bands, s1_bands=found.s1_bands, s1_quantity=quantity, where=where
    )
    together = f"{checkpoint.data_fingerprint} {also.head} {_fingerprint(reader.table)}"
    return replace(
        add_head(checkpoint, also.head, found.classes),
        data_fingerprint=xxhash.xxh3_64_hexdigest(together.encode()),
    )


def _check_init(first: Checkpoint, wanted: Checkpoint, init: Folder, *, wants_places: bool) -> None:
    """Raise InputError if the body of `first` does not fit these data and settings."""
    has, wants = (
        x.describe() | {"normalisation": x.normalisation.to_json()["kind"], "places": places}
        for x, places in ((first, first.network.places is not None), (wanted, wants_places))
    )
    for *path, setting in (
        ("network", "months", "window.months"),
        ("network", "kind", "model.kind"),
        ("network", "members", "model.members"),
        ("network", "width", "model.width"),
        ("network", "stem", "model.stem"),
        ("places", "model.places"),
        ("normalisation", "model.normalisation"),
        ("s1_quantity", "the imagery source"),
        ("s2_bands", "the imagery source"),
        ("s1_bands", "the imagery source"),
    ):
        one, other = (reduce(getitem, path, described) for described in (has, wants))
        unseen = path[-1] == "s1_quantity" and "none" in (str(one), str(other))  # by one of them
        if one != other and not unseen:
            name = path[-1].replace("s1_", "Sentinel-1 ").replace("s2_", "Sentinel-2 ")
            where = "" if setting.startswith("model.") else " in a new --run folder"
            raise InputError(
                f"cannot start from {init}: its {name} is {one}, the run's is {other}; start from another "
                f"checkpoint, or change {setting}{where}"
            )


def _input_range(reader: ShardReader) -> dict[str, Any]:
    """The range of the inputs, from a few runs of samples: their order is random, and each run is in one or
    two row groups.
    """
    length = max(_RUN_SAMPLES, _RUN_PIXELS // reader.metadata.size**2)
    starts = np.linspace(0, max(0, len(reader.table) - length), _RUNS).astype(np.int64)
    rows = np.unique((starts[:, None] + np.arange(length)).clip(max=len(reader.table) - 1))
    batch = reader.take(rows)
    return input_range(batch.s1_bcthw, batch.s2_bcthw)


def _fingerprint(table: pa.Table) -> str:
    """xxh3 of the ids and checksums of all samples, in any order."""
    rows = sorted(zip(table["sample_id"].to_pylist(), table["xxh3"].to_pylist(), strict=True))
    return xxhash.xxh3_64_hexdigest(repr(rows).encode())

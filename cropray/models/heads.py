"""Several class lists on one body: a head chosen for use, heads kept beside a new one, their weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, FurtherHead
from cropray.models.dual_unet3d import MAIN, Head, HeadSpec, head_prefix


def with_head(checkpoint: Checkpoint, name: str | None, where: str) -> Checkpoint:
    """The checkpoint with one of its heads as the main and only one, for prediction and evaluation.

    `name` is that of a head, None for the main one. Raises InputError, naming `where`, for a
    head that it has not.
    """
    name = name or MAIN
    lists, kinds = class_lists(checkpoint), _kinds(checkpoint)
    if name not in lists:
        there = "; ".join(f"{head}: {', '.join(classes)}" for head, classes in lists.items())
        raise InputError(f"the checkpoint {where} has no head {name!r}, but: {there}")
    chosen = FurtherHead(lists[name], checkpoint.thresholds)
    if name != MAIN:
        chosen = checkpoint.heads[name]
    return replace(
        checkpoint,
        classes=chosen.classes,
        thresholds=chosen.thresholds,
        network=replace(checkpoint.network, n_classes=len(chosen.classes), head=kinds[name], heads=()),
        heads={},
        weights=_body(checkpoint.weights) | _moved(checkpoint.weights, name, MAIN),
    )


def class_lists(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The classes of every head by its name, the main one first."""
    return {MAIN: checkpoint.classes} | {name: head.classes for name, head in checkpoint.heads.items()}


def keep_heads(wanted: Checkpoint, first: Checkpoint, name: str) -> Checkpoint:
    """`wanted`, which starts from `first`, with the heads of `first` beside its own main one.

    The main head of `first` is kept as `name`, unless the new one is of the same classes; the others
    keep their names. Raises InputError where one of these, or the new one, has that name already.
    """
    kinds = _kinds(first)
    kept = dict(first.heads)
    if first.classes != wanted.classes:
        if name == MAIN or name in kept:
            raise InputError(
                f"there is a head {name!r} already, so the main one of the checkpoint to start from cannot "
                "be kept under this name: give another (keep_heads)"
            )
        kinds[name] = kinds[MAIN]
        kept[name] = FurtherHead(first.classes, first.thresholds)
    specs = tuple(HeadSpec(head, len(kept[head].classes), kinds[head]) for head in kept)
    return replace(wanted, heads=kept, network=replace(wanted.network, heads=specs))


def add_head(checkpoint: Checkpoint, name: str, classes: tuple[str, ...]) -> Checkpoint:
    """`checkpoint`, to be trained, with a head of these classes beside its own.

    One of this name and classes that is kept there already goes on, with thresholds to be chosen
    anew. Raises InputError for the name of a head of other classes.
    """
    there = class_lists(checkpoint).get(name)
    if there not in (None, classes) or name == MAIN:
        raise InputError(
            f"there is a head {name!r} already, for {', '.join(there or ())}: give that for "
            f"{', '.join(classes)} another name"
        )
    specs = checkpoint.network.heads
    if there is None:
        specs = (*specs, HeadSpec(name, len(classes)))
    return replace(
        checkpoint,
        heads={**checkpoint.heads, name: FurtherHead(classes)},
        network=replace(checkpoint.network, heads=specs),
    )


def starting_weights(first: Checkpoint, wanted: Checkpoint) -> dict[str, Tensor]:
    """Weights of `first` for a network `wanted`: the body's, and those of every head of wanted's
    that is of the same classes and kind as one of first's, whatever their names.
    """
    lists, kinds = class_lists(first), _kinds(first)
    weights = _body(first.weights)
    for name, classes in class_lists(wanted).items():
        for other, there in lists.items():
            if there == classes and kinds[other] == _kinds(wanted)[name]:
                weights |= _moved(first.weights, other, name)
                break
    return weights


def _kinds(checkpoint: Checkpoint) -> dict[str, Head]:
    return {MAIN: checkpoint.network.head} | {head.name: head.kind for head in checkpoint.network.heads}


def _body(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in weights.items() if not name.startswith((head_prefix(MAIN), "heads."))
    }


def _moved(weights: dict[str, Tensor], name: str, to: str) -> dict[str, Tensor]:
    old, new = head_prefix(name), head_prefix(to)
    return {new + key.removeprefix(old): tensor for key, tensor in weights.items() if key.startswith(old)}

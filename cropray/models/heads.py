"""Several class lists on one body: choosing a head, keeping heads of another checkpoint, adding one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, LabelSet
from cropray.models.decision import Decision
from cropray.models.dual_unet3d import MAIN, Head, HeadSpec, head_prefix


def with_head(checkpoint: Checkpoint, name: str | None, where: str) -> Checkpoint:
    """The checkpoint with one of its heads as its only one, for prediction and evaluation.

    None is the main head. Raises InputError, naming the checkpoint `where`, if there is no such head.
    """
    name = name or MAIN
    label_sets = checkpoint.label_sets
    if name not in label_sets:
        known = "; ".join(f"{head}: {', '.join(labels.classes)}" for head, labels in label_sets.items())
        raise InputError(f"the checkpoint {where} has no head {name!r}. Its heads: {known}")
    chosen, kind = label_sets[name], _kinds(checkpoint)[name]
    if name != MAIN:  # other heads are not calibrated
        checkpoint = replace(checkpoint, **vars(Decision(chosen.thresholds)), earlier={})
    return replace(
        checkpoint,
        classes=chosen.classes,
        network=replace(checkpoint.network, n_classes=len(chosen.classes), head=kind, heads=()),
        heads={},
        weights=_body(checkpoint.weights) | _renamed(checkpoint.weights, name, MAIN),
    )


def keep_heads(target: Checkpoint, initial: Checkpoint, name: str) -> Checkpoint:
    """`target`, which starts from `initial`, with the heads of `initial` beside its own main one.

    The main head of `initial` is kept under `name`, unless `target` has the same classes. The others keep
    their names. Raises InputError if `name` is taken.
    """
    kinds = _kinds(initial)
    kept = dict(initial.heads)
    if initial.classes != target.classes:
        if name == MAIN or name in kept:
            raise InputError(
                f"there is a head {name!r} already: the main head of the initial checkpoint cannot be kept "
                "under this name. Set keep_heads to another"
            )
        kinds[name] = kinds[MAIN]
        kept[name] = initial.label_sets[MAIN]
    specs = tuple(HeadSpec(head, len(kept[head].classes), kinds[head]) for head in kept)
    return replace(target, heads=kept, network=replace(target.network, heads=specs))


def add_head(checkpoint: Checkpoint, name: str, classes: tuple[str, ...]) -> Checkpoint:
    """`checkpoint`, which is to be trained, with another head of these classes.

    A kept head of this name and these classes is trained on, with new thresholds. Raises InputError if the
    name belongs to a head of other classes.
    """
    known = checkpoint.label_sets.get(name)
    if known is not None and (name == MAIN or known.classes != classes):
        raise InputError(
            f"there is a head {name!r} already, for {', '.join(known.classes)}; name the head for "
            f"{', '.join(classes)} differently"
        )
    specs = checkpoint.network.heads
    if known is None:
        specs = (*specs, HeadSpec(name, len(classes)))
    return replace(
        checkpoint,
        heads={**checkpoint.heads, name: LabelSet(classes)},
        network=replace(checkpoint.network, heads=specs),
    )


def starting_weights(initial: Checkpoint, target: Checkpoint) -> dict[str, Tensor]:
    """Weights of `initial` for a network `target`: those of the body, and those of every head of `target` for
    which `initial` has one of the same classes and kind, under any name.
    """
    weights, kinds = _body(initial.weights), _kinds(initial)
    for name, labels in target.label_sets.items():
        for other, known in initial.label_sets.items():
            if known.classes == labels.classes and kinds[other] == _kinds(target)[name]:
                weights |= _renamed(initial.weights, other, name)
                break
    return weights


def _kinds(checkpoint: Checkpoint) -> dict[str, Head]:
    return {MAIN: checkpoint.network.head} | {head.name: head.kind for head in checkpoint.network.heads}


def _body(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in weights.items() if not name.startswith((head_prefix(MAIN), "heads."))
    }


def _renamed(weights: dict[str, Tensor], name: str, to: str) -> dict[str, Tensor]:
    old, new = head_prefix(name), head_prefix(to)
    return {new + key.removeprefix(old): tensor for key, tensor in weights.items() if key.startswith(old)}

"""Binary cross-entropy by class, for labels that cover only some of the pixels.

With logits z, l+(z) = softplus(-z) and l-(z) = softplus(z), the loss is a weighted sum of means:

    L = mean over annotated pixels and classes of BCE(z, one-hot)
      + mean over known background and classes of l-(z)
      + w · mean over unlabelled pixels of ROIs of crop c of l-(z_c)
      + v · mean over unlabelled pixels and classes of BCE(z, one-hot of the teacher's class)

The third are weak negatives: most unlabelled land of an ROI is not its crop. In the last, pixels of which the
teacher is not sure count as 0 (FixMatch; Sohn et al. 2020, arXiv:2001.07685), and those of which it is sure
are no weak negatives. The published network takes every unlabelled pixel for a negative of every class, in
one mean over all pixels and classes. Shape suffixes: B samples, K classes, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cropray.types import BACKGROUND, UNLABELLED

Unlabelled = Literal["negative", "ignore", "own_crop"]


@dataclass(frozen=True)
class LossRecipe:
    """What unlabelled pixels are: `negative` of every class, `ignore`d, or weak negatives of their ROI's
    `own_crop`. Without `cross_negatives`, an annotated pixel is a positive of its class and nothing else.
    `teacher` is the weight v of a teacher's labels.
    """

    unlabelled: Unlabelled = "ignore"
    own_crop_weight: float = 0.3
    cross_negatives: bool = True
    teacher: float = 0.0


@dataclass(frozen=True)
class LossTerms:
    """Sums and counts of the four means (annotated, background, weak, taught), each a tensor (4,).

    Terms of batches or ranks add up exactly; the loss of the whole is `total` of their sum. `class_sums` (K,)
    and `known` () are for the record: sums of each class's cross-entropy over annotated and background
    pixels, and the number of these pixels.
    """

    sums: Tensor
    counts: Tensor
    class_sums: Tensor
    known: Tensor

    def __add__(self, other: LossTerms) -> LossTerms:
        mine, theirs = vars(self), vars(other)
        return LossTerms(**{name: mine[name] + theirs[name] for name in mine})

    def exact(self) -> LossTerms:
        """The terms on the CPU in float64, in which those of many batches add up without rounding."""
        return LossTerms(**{name: x.detach().cpu().double() for name, x in vars(self).items()})


def loss_terms(
    logits_bkhw: Tensor,
    label_bhw: Tensor,
    crop_b: Tensor,
    recipe: LossRecipe,
    taught_bhw: Tensor | None = None,
    ramp: float = 1.0,
) -> LossTerms:
    """The terms of a batch, in float32 for logits of any type.

    `label_bhw` holds class indices, BACKGROUND or UNLABELLED (any integer type). `crop_b` (int64) is the
    class of each sample's ROI, or -1; `own_crop` ignores unlabelled pixels of ROIs without a crop.
    `taught_bhw` holds the classes of which a teacher is sure, UNLABELLED elsewhere; `ramp` scales their sum.
    """
    logits = logits_bkhw.float()
    n_classes = logits.shape[1]
    annotated_bhw, background_bhw, _, weak_bhw = masks = _masks(label_bhw, crop_b, n_classes, taught_bhw)
    negative_bkhw = softplus(logits)  # l-(z)
    own_index_bhw = label_bhw.long().clamp(max=n_classes - 1)
    own_logit_bhw = logits.gather(1, own_index_bhw.unsqueeze(1)).squeeze(1) * annotated_bhw
    # Multiplying by masks, unlike selecting with them, does not wait for the device.
    kinds_bpm = torch.stack(masks[:3], -1).flatten(1, 2)
    negative_km = (negative_bkhw.flatten(2) @ kinds_bpm.float()).sum(0)
    on_annotated, on_background, on_unlabelled = negative_km.sum(0)
    if recipe.cross_negatives:  # BCE(z, one-hot) summed over classes, as l+(z) = l-(z) - z
        on_annotated = on_annotated - own_logit_bhw.sum()
    else:
        on_annotated = (softplus(-own_logit_bhw) * annotated_bhw).sum()
    none = on_annotated.new_zeros(())
    on_taught = none
    if taught_bhw is not None:
        sure_bhw = taught_bhw < n_classes
        taught_index_b1hw = taught_bhw.long().clamp(max=n_classes - 1).unsqueeze(1)
        each_bhw = negative_bkhw.sum(1) - logits.gather(1, taught_index_b1hw).squeeze(1)
        on_taught = ramp * (each_bhw * sure_bhw).sum()
    if recipe.unlabelled == "own_crop":
        own_negative_bhw = negative_bkhw[torch.arange(len(crop_b), device=crop_b.device), crop_b.clamp(min=0)]
        sums = torch.stack((on_annotated, on_background, (own_negative_bhw * weak_bhw).sum(), on_taught))
    elif recipe.unlabelled == "negative":  # one mean over everything
        together = on_annotated + on_background + on_unlabelled
        sums = torch.stack((together, none, none, on_taught))
    else:
        sums = torch.stack((on_annotated, on_background, none, on_taught))
    own_k = logits.new_zeros(n_classes)
    own_k.index_add_(0, own_index_bhw.flatten(), own_logit_bhw.detach().flatten())
    return LossTerms(
        sums,
        _counts(masks, n_classes, recipe, taught=taught_bhw is not None),
        class_sums=negative_km.detach()[:, :2].sum(1) - own_k,
        known=(annotated_bhw | background_bhw).sum().float(),
    )


def loss_counts(
    label_bhw: Tensor, crop_b: Tensor, n_classes: int, recipe: LossRecipe, taught_bhw: Tensor | None = None
) -> Tensor:
    """The counts (4,) of the terms of a batch, which do not depend on logits."""
    masks = _masks(label_bhw, crop_b, n_classes, taught_bhw)
    return _counts(masks, n_classes, recipe, taught=taught_bhw is not None)


def total(terms: LossTerms, recipe: LossRecipe) -> Tensor:
    """The loss: the weighted sum of the means. A term without pixels is 0."""
    weights = terms.sums.new_tensor([1.0, 1.0, recipe.own_crop_weight, recipe.teacher])
    return (weights * terms.sums / terms.counts.clamp(min=1)).sum()


def _masks(
    label_bhw: Tensor, crop_b: Tensor, n_classes: int, taught_bhw: Tensor | None
) -> tuple[Tensor, ...]:
    """Annotated, background, unlabelled and weakly negative pixels (B, H, W)."""
    unlabelled_bhw = label_bhw == UNLABELLED
    weak_bhw = unlabelled_bhw & (crop_b >= 0).view(-1, 1, 1)
    if taught_bhw is not None:
        weak_bhw = weak_bhw & (taught_bhw == UNLABELLED)
    return label_bhw < n_classes, label_bhw == BACKGROUND, unlabelled_bhw, weak_bhw


def _counts(masks: tuple[Tensor, ...], n_classes: int, recipe: LossRecipe, *, taught: bool) -> Tensor:
    annotated, background, unlabelled, weak = (mask.sum() for mask in masks)
    annotated = annotated * (n_classes if recipe.cross_negatives else 1)
    background, none = background * n_classes, torch.zeros_like(background)
    unlabelled = unlabelled * n_classes
    together = recipe.unlabelled == "negative"
    return torch.stack(
        (
            annotated + background + unlabelled if together else annotated,
            none if together else background,
            weak if recipe.unlabelled == "own_crop" else none,
            unlabelled if taught else none,
        )
    ).float()

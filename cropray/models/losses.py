"""Binary cross-entropy by class where only some of the pixels are labelled.

With z the logits, l+(z) = softplus(-z) and l-(z) = softplus(z), a loss is a weighted sum of means:

    L = mean over annotated pixels and classes of BCE(z, one-hot)
      + mean over known background and classes of l-(z)
      + w · mean over unlabelled pixels of ROIs of crop c of l-(z_c)

(the weak negatives: most of an ROI's unlabelled land is not its crop). The published network's own
choice, every unlabelled pixel a negative of every class, is one mean over all pixels and classes.
Shape suffixes: B samples, K classes, H rows, W columns.
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
    """What pixels without a label are: `negative` of every class, `ignore`d, or weak negatives of
    their ROI's `own_crop`. Without `cross_negatives` an annotated pixel says nothing of the other
    classes: it is a positive only.
    """

    unlabelled: Unlabelled = "ignore"
    own_crop_weight: float = 0.3
    cross_negatives: bool = True


@dataclass(frozen=True)
class LossTerms:
    """Sums and counts of the three means (annotated, background, unlabelled), each a tensor (3,).

    Terms of batches, or of the ranks of one step, add up exactly: the loss of the whole is
    `total` of the added terms.
    """

    sums: Tensor
    counts: Tensor

    def __add__(self, other: LossTerms) -> LossTerms:
        return LossTerms(self.sums + other.sums, self.counts + other.counts)


def loss_terms(logits_bkhw: Tensor, label_bhw: Tensor, crop_b: Tensor, recipe: LossRecipe) -> LossTerms:
    """The terms of a batch, in float32 whatever the logits are.

    `label_bhw` holds class indices, BACKGROUND or UNLABELLED (any integer type); `crop_b` (int64) is
    the class of each sample's ROI, -1 for none (its unlabelled pixels are ignored under `own_crop`).
    """
    logits = logits_bkhw.float()
    n_classes = logits.shape[1]
    label = label_bhw.long()
    annotated, background, unlabelled = label < n_classes, label == BACKGROUND, label == UNLABELLED
    negative_bkhw = softplus(logits)  # l-(z)
    index_b1hw = label.clamp(max=n_classes - 1).unsqueeze(1)
    own_logit_bhw = logits.gather(1, index_b1hw).squeeze(1)
    if recipe.cross_negatives:  # BCE(z, one-hot) summed over classes, as l+(z) = l-(z) - z
        annotated_bhw, per_pixel = negative_bkhw.sum(1) - own_logit_bhw, n_classes
    else:
        annotated_bhw, per_pixel = softplus(-own_logit_bhw), 1
    all_negative_bhw = negative_bkhw.sum(1)
    sums = [_sum(annotated_bhw, annotated), _sum(all_negative_bhw, background)]
    counts = [annotated.sum() * per_pixel, background.sum() * n_classes]
    if recipe.unlabelled == "own_crop":
        weak = unlabelled & (crop_b >= 0).view(-1, 1, 1)
        own_negative_bhw = negative_bkhw[torch.arange(len(crop_b), device=crop_b.device), crop_b.clamp(min=0)]
        sums.append(_sum(own_negative_bhw, weak))
        counts.append(weak.sum())
    elif recipe.unlabelled == "negative":  # one mean over everything
        sums = [sums[0] + _sum(all_negative_bhw, background | unlabelled)]
        counts = [counts[0] + (background | unlabelled).sum() * n_classes]
    zero = logits.new_zeros(())
    padding = [zero] * (3 - len(sums))
    return LossTerms(torch.stack(sums + padding), torch.stack([*counts, *padding]).float())


def total(terms: LossTerms, recipe: LossRecipe) -> Tensor:
    """The loss: the weighted sum of the means of what was counted; a term without pixels is 0."""
    weights = terms.sums.new_tensor([1.0, 1.0, recipe.own_crop_weight])
    return (weights * terms.sums / terms.counts.clamp(min=1)).sum()


def _sum(values_bhw: Tensor, mask_bhw: Tensor) -> Tensor:
    # Multiplied, not selected: no index is made and the device is not waited for.
    return (values_bhw * mask_bhw).sum()

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropray.models.losses import LossRecipe, LossTerms, loss_counts, loss_terms, total
from cropray.types import BACKGROUND, UNLABELLED

RECIPES = [
    LossRecipe("negative"),
    LossRecipe("ignore"),
    LossRecipe("own_crop", 0.3),
    LossRecipe("own_crop", 2.0, cross_negatives=False),
    LossRecipe("ignore", cross_negatives=False),
    LossRecipe("negative", cross_negatives=False),
]


def make_batch(seed: int, n: int = 3, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (n, classes, 4, 5)).astype(np.float32))
    label = rng.choice([*range(classes), BACKGROUND, UNLABELLED], size=(n, 4, 5)).astype(np.uint8)
    return logits, torch.from_numpy(label), torch.from_numpy(rng.integers(-1, classes, n))


def by_loops(logits: Any, label: Any, crop: Any, recipe: LossRecipe) -> float:
    """The formulas of the module's head, pixel by pixel in double precision."""
    annotated: list[float] = []
    background: list[float] = []
    unlabelled: list[float] = []
    everything: list[float] = []
    for b, y, x in np.ndindex(*label.shape):
        p = [1 / (1 + math.exp(-float(z))) for z in logits[b, :, y, x]]
        here = int(label[b, y, x])
        negatives = [-math.log(1 - q) for q in p]
        if here < len(p):
            losses = [-math.log(p[here])]
            if recipe.cross_negatives:
                losses += [loss for c, loss in enumerate(negatives) if c != here]
            annotated += losses
            everything += losses
        else:
            everything += negatives
            if here == BACKGROUND:
                background += negatives
            elif crop[b] >= 0:
                unlabelled.append(negatives[int(crop[b])])

    def mean(values: list[float]) -> float:
        return sum(values) / max(1, len(values))

    if recipe.unlabelled == "negative":
        return mean(everything)
    weight = recipe.own_crop_weight if recipe.unlabelled == "own_crop" else 0.0
    return mean(annotated) + mean(background) + weight * mean(unlabelled)


def reference(
    logits: torch.Tensor, label: torch.Tensor, crop: torch.Tensor, recipe: LossRecipe
) -> torch.Tensor:
    """The same formulas in the precision of the logits, each pixel's cross-entropy by itself."""
    target = torch.stack([label == k for k in range(logits.shape[1])], 1).to(logits.dtype)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    annotated, background, unlabelled = (
        mask.unsqueeze(1).expand_as(each)
        for mask in (label < logits.shape[1], label == BACKGROUND, label == UNLABELLED)
    )
    if not recipe.cross_negatives:
        annotated = target.bool()
    if recipe.unlabelled == "negative":
        return each[annotated | background | unlabelled].mean()
    loss = each[annotated].mean() + each[background].mean()
    if recipe.unlabelled == "own_crop":
        own = torch.zeros_like(unlabelled)
        own[torch.arange(len(crop))[crop >= 0], crop[crop >= 0]] = True
        loss = loss + recipe.own_crop_weight * each[unlabelled & own].mean()
    return loss


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_is_that_of_plain_loops(recipe: LossRecipe, seed: int) -> None:
    logits, label, crop = make_batch(seed)
    loss = total(loss_terms(logits, label, crop, recipe), recipe).item()
    assert loss == pytest.approx(by_loops(logits.numpy(), label.numpy(), crop.numpy(), recipe), rel=1e-5)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 5))
@pytest.mark.parametrize("recipe", RECIPES)
def test_parts_of_a_batch_add_up_to_the_whole(recipe: LossRecipe, seed: int, cut: int) -> None:
    logits, label, crop = make_batch(seed, n=6)
    whole = loss_terms(logits, label, crop, recipe)
    parts = [loss_terms(logits[i], label[i], crop[i], recipe) for i in (slice(cut), slice(cut, None))]
    added = parts[0] + parts[1]
    torch.testing.assert_close(added.counts, whole.counts)
    torch.testing.assert_close(total(added, recipe), total(whole, recipe))


def test_the_published_choice_is_plain_binary_cross_entropy_over_all_pixels() -> None:
    logits, label, crop = make_batch(0)
    target = torch.stack([label == c for c in range(4)], dim=1).float()
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    recipe = LossRecipe("negative")
    torch.testing.assert_close(total(loss_terms(logits, label, crop, recipe), recipe), plain)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_ignores_gets_no_gradient(recipe: LossRecipe) -> None:
    logits, label, crop = make_batch(3)
    logits.requires_grad_()
    total(loss_terms(logits, label, crop, recipe), recipe).backward()
    gradient = logits.grad
    assert gradient is not None
    unlabelled = (label == UNLABELLED).unsqueeze(1).expand_as(gradient)
    own = torch.zeros_like(unlabelled)
    for b, c in enumerate(crop.tolist()):
        if c >= 0:
            own[b, c] = True
    used = {"negative": unlabelled, "own_crop": unlabelled & own, "ignore": torch.zeros_like(unlabelled)}
    assert (gradient[unlabelled & ~used[recipe.unlabelled]] == 0).all()
    assert (gradient[used[recipe.unlabelled]] > 0).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_extreme_logits_and_empty_labels_stay_finite(recipe: LossRecipe) -> None:
    logits, label, crop = make_batch(4)
    logits = (logits * 1e4).requires_grad_()
    loss = total(loss_terms(logits, label, crop, recipe), recipe)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    nothing = torch.full_like(label, UNLABELLED)
    empty = total(loss_terms(logits.detach(), nothing, torch.full_like(crop, -1), recipe), recipe)
    assert torch.isfinite(empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_and_its_gradient_are_those_of_float64_from_near_0_to_10000(
    recipe: LossRecipe, scale: float, dtype: torch.dtype
) -> None:
    logits, label, crop = make_batch(6)
    logits = (logits.sign() * scale * (1 + 0.1 * logits.tanh())).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    loss = total(loss_terms(logits, label, crop, recipe), recipe)
    expected = reference(exact, label, crop, recipe)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    steps = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=steps, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_certain_and_right_costs_nothing_and_certain_and_wrong_a_lot(
    recipe: LossRecipe, dtype: torch.dtype
) -> None:
    label = torch.randint(0, 5, (8, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    label[label == 4] = BACKGROUND
    right = torch.stack([torch.where(label == k, 1e4, -1e4) for k in range(4)], 1).to(dtype)
    crop = torch.zeros(8, dtype=torch.int64)
    values = [total(loss_terms(z, label, crop, recipe), recipe).item() for z in (right, -right)]
    assert abs(values[0]) < 1e-2  # of 10,000
    assert values[1] > 1e3


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    logits, label, crop = make_batch(5)
    terms = loss_terms(logits.bfloat16(), label, crop, LossRecipe())
    assert isinstance(terms, LossTerms)
    assert terms.sums.dtype == terms.counts.dtype == torch.float32


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(RECIPES))
def test_each_class_has_its_own_sum_over_the_known_pixels(seed: int, recipe: LossRecipe) -> None:
    logits, label, crop = make_batch(seed)
    terms = loss_terms(logits, label, crop, recipe)
    known = label != UNLABELLED
    assert int(terms.known) == int(known.sum())
    for k in range(logits.shape[1]):
        truth = (label == k)[known].double()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, k][known].double(), truth, reduction="sum"
        )
        assert float(terms.class_sums[k]) == pytest.approx(float(expected), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_counted_is_known_before_the_logits(recipe: LossRecipe) -> None:
    logits, label, crop = make_batch(0)
    counts = loss_counts(label, crop, logits.shape[1], recipe)
    assert torch.equal(counts, loss_terms(logits, label, crop, recipe).counts)

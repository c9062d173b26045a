from dataclasses import replace

import numpy as np
import pytest
import torch

from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, LabelSet
from cropray.models.dual_unet3d import MAIN, HeadSpec, NetworkSpec
from cropray.models.heads import keep_heads, starting_weights, with_head
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation

MONTHS = 2
EUROPE, IRAN, TURKEY = ("rye", "oats", "maize"), ("canola", "pea"), ("cotton", "tomato", "onion", "maize")


def make(
    classes: tuple[str, ...], seed: int = 0, head: str = "linear", **heads: tuple[str, ...]
) -> Checkpoint:
    torch.manual_seed(seed)
    specs = tuple(HeadSpec(name, len(names), "linear") for name, names in heads.items())
    spec = NetworkSpec(len(classes), width=4, months=MONTHS, head=head, heads=specs)
    others = {name: LabelSet(names, (0.25,) * len(names)) for name, names in heads.items()}
    weights = spec.build().state_dict()
    return Checkpoint(
        classes,
        spec,
        FixedNormalisation(),
        {},
        "gamma0",
        weights,
        thresholds=(0.75,) * len(classes),
        heads=others,
    )


def class_lists(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    return {name: labels.classes for name, labels in checkpoint.label_sets.items()}


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(9)
    return tuple(torch.randn(2, bands, MONTHS, 16, 16) for bands in (2, 10, 2))


def test_every_head_has_its_own_classes_on_the_same_features() -> None:
    checkpoint = make(IRAN, europe=EUROPE, turkey=TURKEY)
    network = checkpoint.build()
    assert network(*inputs()).shape[1] == 2
    seen = []
    network.unet3d_s2.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    for name, classes in class_lists(checkpoint).items():
        assert network(*inputs(), head=name).shape[1] == len(classes)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_heads_beside_leave_the_names_of_the_rest_as_published() -> None:
    alone, beside = (make(IRAN, **heads).weights for heads in ({}, {"europe": EUROPE}))
    assert sorted(beside.keys() - alone.keys()) == ["heads.europe.bias", "heads.europe.weight"]
    assert alone.keys() <= beside.keys()


@pytest.mark.parametrize("name", ["europe", "turkey", MAIN])
def test_a_chosen_head_predicts_what_it_does_beside_the_others(name: str) -> None:
    checkpoint = make(IRAN, europe=EUROPE, turkey=TURKEY)
    together = checkpoint.build()(*inputs(), head=name)
    chosen = with_head(checkpoint, name, "models/x")
    assert chosen.classes == class_lists(checkpoint)[name]
    assert chosen.heads == {}
    assert torch.equal(chosen.build()(*inputs()), together)
    s1, s2 = (np.zeros((1, bands, MONTHS, 16, 16), np.int16) for bands in (2, 10))
    predictor = Predictor(chosen)
    assert predictor.probabilities(s1, s2).shape[1] == len(predictor.thresholds) == len(chosen.classes)
    assert set(predictor.thresholds.tolist()) == {0.75 if name == MAIN else 0.25}


def test_no_name_is_the_main_head_and_an_unknown_one_is_refused_with_those_there_are() -> None:
    checkpoint = make(IRAN, europe=EUROPE)
    assert with_head(checkpoint, None, "models/x").classes == IRAN
    with pytest.raises(InputError, match=r"models/x has no head 'eu'.* main: canola, pea; europe: rye, oats"):
        with_head(checkpoint, "eu", "models/x")


def test_a_kept_head_and_the_body_go_over_to_the_last_bit() -> None:
    first = make(EUROPE, turkey=TURKEY)
    wanted = keep_heads(make(IRAN, seed=1, head="conv"), first, "europe")
    assert class_lists(wanted) == {MAIN: IRAN, "turkey": TURKEY, "europe": EUROPE}
    new = wanted.network.build()
    missing, unexpected = new.load_state_dict(starting_weights(first, wanted), strict=False)
    assert unexpected == []
    assert missing
    assert all(name.startswith("final_conv.conv.") for name in missing)
    old = first.build()
    for name, kept in (("europe", MAIN), ("turkey", "turkey")):
        assert torch.equal(new.eval()(*inputs(), head=name), old(*inputs(), head=kept))
    assert wanted.heads["europe"].thresholds == (0.75,) * 3


def test_a_start_from_the_same_classes_keeps_the_main_head_where_it_is() -> None:
    first = make(EUROPE, turkey=TURKEY)
    wanted = keep_heads(make(EUROPE, seed=1), first, "old")
    assert class_lists(wanted) == class_lists(first)
    assert starting_weights(first, wanted).keys() == first.weights.keys()


def test_without_keeping_only_body_and_a_head_of_the_same_classes_go_over() -> None:
    first = make(EUROPE, turkey=TURKEY)
    for classes, taken in ((IRAN, None), (EUROPE, "final_conv.weight"), (TURKEY, "heads.turkey.weight")):
        weights = starting_weights(first, make(classes, seed=1))
        assert not any(name.startswith("heads.") for name in weights)
        assert ("final_conv.weight" in weights) == (taken is not None)
        if taken is not None:
            assert torch.equal(weights["final_conv.weight"], first.weights[taken])


def test_a_head_of_another_kind_is_not_taken_over() -> None:
    first = make(EUROPE)
    assert not any(name.startswith("final") for name in starting_weights(first, make(EUROPE, head="conv")))


def test_two_heads_of_one_name_are_refused() -> None:
    first = make(EUROPE, turkey=TURKEY)
    for name in ("turkey", MAIN):
        with pytest.raises(InputError, match=f"there is a head '{name}' already"):
            keep_heads(make(IRAN), first, name)
    assert keep_heads(make(IRAN), replace(first, thresholds=None), "e").heads["e"].thresholds is None

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cropray.config.training import ModelConfig
from cropray.errors import InputError
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.models.heads import starting_weights
from cropray.run import Run
from cropray.storage import Folder
from cropray.training.data import Data
from cropray.training.plan import TrainingPlan, make_plan, training_inputs
from cropray.training.recipe import initial_network
from cropray.training.validate import SCORE, best_entry
from tests.training_data import CLASSES, METADATA, MONTHS, PERIODS, make_run, write_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 24)
    write_split(folder, "val", 6)
    return folder


@pytest.fixture
def first(folder: Folder, tmp_path: Path) -> Folder:
    """A checkpoint to start from, of the same classes."""
    plan = make_plan(make_run(folder), "pretrain")
    weights = plan.checkpoint.network.build().state_dict()
    target = Folder(str(tmp_path / "first"))
    save_checkpoint(replace(plan.checkpoint, weights=weights), target)
    return target


def plan_from(folder: Folder, first: Folder, **settings: Any) -> TrainingPlan:
    return make_plan(make_run(folder, init=first.uri, **settings), "finetune")


def test_a_plan_says_what_the_data_say(folder: Folder) -> None:
    plan = make_plan(make_run(folder, epochs=5), "pretrain")
    assert plan.checkpoint.classes == CLASSES
    assert plan.checkpoint.window == METADATA.window
    assert plan.checkpoint.s1_quantity == METADATA.s1_quantity
    assert plan.checkpoint.network.months == MONTHS
    assert (plan.samples, plan.steps) == (24, 5 * 6)
    assert plan.checkpoint.recipe["stage"] == "pretrain"


def test_the_fingerprint_is_that_of_the_samples(folder: Folder, tmp_path: Path) -> None:
    fingerprint = make_plan(make_run(folder), "pretrain").checkpoint.data_fingerprint
    assert make_plan(make_run(folder, lr=0.1), "finetune").checkpoint.data_fingerprint == fingerprint
    other = Folder(str(tmp_path))
    write_split(other, "train", 24, seed=1)
    assert make_plan(make_run(other), "pretrain").checkpoint.data_fingerprint != fingerprint


def test_a_training_rests_on_its_shards_and_on_the_weights_it_starts_from(
    folder: Folder, first: Folder, tmp_path: Path
) -> None:
    inputs = training_inputs(make_run(folder, init=first.uri), "finetune")
    assert training_inputs(make_run(folder), "finetune") == {"shards": inputs["shards"]}
    moved = Folder(str(tmp_path / "moved"))
    shutil.copytree(folder.local("shards"), moved.local("shards"))
    assert training_inputs(make_run(moved), "finetune") == {"shards": inputs["shards"]}
    write_split(moved, "train", 24, seed=1)
    assert training_inputs(make_run(moved), "finetune") != {"shards": inputs["shards"]}
    moved.delete_folder("shards/train")
    assert training_inputs(make_run(moved), "finetune") != {"shards": inputs["shards"]}

    checkpoint = load_checkpoint(first)
    halved = {name: tensor * 0.5 for name, tensor in checkpoint.weights.items()}
    save_checkpoint(replace(checkpoint, weights=halved), first)
    again = training_inputs(make_run(folder, init=first.uri), "finetune")
    assert [name for name in inputs if inputs[name] != again[name]] == ["the checkpoint to start from"]


def test_a_run_that_was_moved_is_the_same_training(folder: Folder, first: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder.local("shards"), tmp_path / "here/run/shards")
    shutil.copytree(first.local(), tmp_path / "here/first")

    def at(place: str) -> tuple[Any, dict[str, Any]]:
        run = make_run(Folder(str(tmp_path / place / "run")), init="run:../first")
        run.begin("finetune")
        return training_inputs(run, "finetune"), make_plan(run, "finetune").checkpoint.recipe

    before = at("here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert at("there") == before


def test_a_start_from_the_same_classes_keeps_the_head(folder: Folder, first: Folder) -> None:
    plan = plan_from(folder, first, head_lr=0.5)
    assert plan.keep_head
    assert plan.checkpoint.network == load_checkpoint(first).network
    assert plan.recipe.head_lr == plan.recipe.lr == 0.01


def test_a_start_from_other_classes_gets_a_new_head_with_its_own_rate(folder: Folder, first: Folder) -> None:
    checkpoint = load_checkpoint(first)
    save_checkpoint(replace(checkpoint, classes=("a", "b", "c")), first)
    plan = plan_from(folder, first, head_lr=0.5)
    assert not plan.keep_head
    assert plan.checkpoint.network.head == "conv"
    assert plan.checkpoint.classes == CLASSES
    assert (plan.recipe.lr, plan.recipe.head_lr) == (0.01, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"s1_quantity": "sigma0"}, "Sentinel-1 quantity is sigma0, the run's is gamma0"),
        ({"s2_bands": CLASSES}, "Sentinel-2 bands"),
    ],
)
def test_a_start_from_another_kind_of_data_is_refused(
    folder: Folder, first: Folder, change: dict[str, Any], said: str
) -> None:
    save_checkpoint(replace(load_checkpoint(first), **change), first)
    with pytest.raises(InputError, match=said):
        plan_from(folder, first)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"width": 8}, "width is 4, the run's is 8"),
        ({"stem": 8}, "stem is None, the run's is 8"),
        ({"normalisation": "seed"}, "fixed, the run's is seed"),
    ],
)
def test_a_start_from_another_network_is_refused(
    folder: Folder, first: Folder, model: dict[str, Any], said: str
) -> None:
    run = make_run(folder, init=first.uri)
    changed = run.config.model_copy(update={"model": run.config.model.model_copy(update=model)})
    with pytest.raises(InputError, match=said):
        make_plan(Run(folder, changed), "finetune")


def test_the_published_normalisation_goes_with_the_published_inputs(folder: Folder, first: Folder) -> None:
    run = make_run(folder)
    seed = run.config.model_copy(update={"model": ModelConfig(normalisation="seed")})
    assert not make_plan(Run(folder, seed), "pretrain").checkpoint.network.validity
    assert load_checkpoint(first).network.validity


def test_a_body_keeps_its_inputs_under_a_new_head(folder: Folder, first: Folder) -> None:
    checkpoint = load_checkpoint(first)
    spec = replace(checkpoint.network, validity=False)
    weights = spec.build().state_dict()
    other = replace(checkpoint, network=spec, weights=weights, classes=("a", "b", "c"))
    save_checkpoint(other, first)
    network = plan_from(folder, first).checkpoint.network
    assert network == replace(spec, head="conv")
    initial_network(network, seed=0, weights=weights)


def test_the_head_of_the_start_stays_beside_the_new_one_if_it_is_named(folder: Folder, first: Folder) -> None:
    checkpoint = replace(load_checkpoint(first), classes=("a", "b", "c"))
    save_checkpoint(checkpoint, first)
    assert plan_from(folder, first).checkpoint.heads == {}
    plan = plan_from(folder, first, keep_heads="europe")
    assert plan.checkpoint.heads["europe"].classes == ("a", "b", "c")
    weights = starting_weights(checkpoint, plan.checkpoint)
    network = initial_network(plan.checkpoint.network, 0, weights, keep_head=plan.keep_head)
    kept = network.state_dict()["heads.europe.weight"]
    assert torch.equal(kept, checkpoint.weights["final_conv.weight"])
    with pytest.raises(InputError, match=r"no checkpoint whose head to keep: set finetune\.init"):
        make_plan(make_run(folder, keep_heads="europe"), "finetune")


def test_the_months_of_the_samples_stand_in_the_checkpoint(folder: Folder) -> None:
    periods = make_plan(make_run(folder), "pretrain").checkpoint.periods
    assert periods == tuple((p.start.isoformat(), p.end.isoformat()) for p in PERIODS)


def test_a_threshold_that_is_set_is_that_of_every_class(folder: Folder) -> None:
    assert make_plan(make_run(folder), "pretrain").checkpoint.thresholds is None
    plan = make_plan(make_run(folder, threshold=0.35), "pretrain")
    assert plan.checkpoint.thresholds == (0.35, 0.35, 0.35)


def test_crops_are_balanced_in_training_alone(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for split in ("train", "val"):
        write_split(folder, split, 4 if split == "val" else 22)  # 8 of maize, 7 of each of the others
    plan = make_plan(make_run(folder, balance=1.0), "pretrain")
    for data, expected in ((plan.train, 22), (plan.val, 4)):
        reader = data.reader(1, seed=0)
        read = np.concatenate([reader.order(epoch).left for epoch in range(30)])
        assert len(read) == 30 * expected
        crops = np.array([CLASSES.index(crop) for crop in reader.table["crop"].to_pylist()])
        share = np.bincount(crops[read])
        wanted = np.full(3, 1 / 3) if data is plan.train else np.bincount(crops) / expected
        np.testing.assert_allclose(share / share.sum(), wanted, atol=0.01)


def test_samples_with_too_few_labels_are_left_out(folder: Folder) -> None:
    assert make_plan(make_run(folder, min_labelled_fraction=0.3), "pretrain").samples < 24
    with pytest.raises(InputError, match="nothing to train on"):
        make_plan(make_run(folder, min_labelled_fraction=0.9), "pretrain")


def test_a_batch_must_be_shared_out_evenly(folder: Folder) -> None:
    with pytest.raises(InputError, match=r"multiple of pretrain\.workers × pretrain\.accumulate = 3 × 1"):
        make_plan(make_run(folder, workers=3), "pretrain")
    plan = make_plan(make_run(folder, workers=2), "pretrain")
    assert plan.settings.batch_size == 4
    assert plan.steps == make_plan(make_run(folder), "pretrain").steps
    with pytest.raises(InputError, match=r"pretrain\.workers × pretrain\.accumulate = 1 × 3"):
        make_plan(make_run(folder, accumulate=3), "pretrain")
    with pytest.raises(InputError, match=r"= 3 × 1"):
        make_plan(make_run(folder, workers=[1, 4]), "pretrain")
    assert make_plan(make_run(folder, workers=[1, 2]), "pretrain").steps == plan.steps


def test_batch_norm_is_frozen_only_where_there_are_statistics(folder: Folder, first: Folder) -> None:
    with pytest.raises(InputError, match=r"batch_norm is frozen, .* set pretrain\.init"):
        make_plan(make_run(folder, batch_norm="frozen"), "pretrain")
    assert plan_from(folder, first, batch_norm="frozen").recipe.batch_norm == "frozen"


def test_settings_of_the_machines_make_no_other_training(folder: Folder) -> None:
    plan = make_plan(make_run(folder), "pretrain")
    free = {"workers": [1, 2], "threads": 3, "store_every_s": 5.0, "max_failures": 9}
    assert make_plan(make_run(folder, **free), "pretrain").identity == plan.identity
    for bound in ({"ema": 0.9}, {"accumulate": 2}, {"balance": 0.5}, {"precision": "bfloat16"}):
        assert make_plan(make_run(folder, **bound), "pretrain").identity != plan.identity


def test_every_sample_of_val_is_on_one_rank(folder: Folder) -> None:
    val = make_plan(make_run(folder), "pretrain").val
    parts = [val.part(4, rank, 4) for rank in range(4)]
    names = [name for part in parts if part is not None for name in part.table["sample_id"].to_pylist()]
    assert sorted(names) == sorted(f"val-{i}" for i in range(6))
    assert Data([], 0.0).part(4, 0, 1) is None


def test_shards_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shards of the split train: nothing to train on"):
        make_plan(make_run(Folder(str(tmp_path))), "pretrain")


def test_shards_that_compaction_wrote_and_that_are_gone_are_missed(folder: Folder) -> None:
    run = make_run(folder)
    run.finish("compact", {"shards": {"train": 2}})
    training_inputs(run, "pretrain")
    run.finish("compact", {"shards": {"train": 3, "val": 1}})
    with pytest.raises(InputError, match=r"shards/train has 2 shards, but compact wrote 3; run compact"):
        training_inputs(run, "pretrain")


def test_the_best_epoch_has_the_highest_score_and_of_equal_ones_is_the_last() -> None:
    scores = [0.2, 0.5, None, 0.5, 0.4]
    history = [{"epoch": i + 1, SCORE: score} for i, score in enumerate(scores)]
    assert best_entry(history)["epoch"] == 4
    assert best_entry([{"epoch": 1}, {"epoch": 2}])["epoch"] == 2


def test_the_plan_travels_without_weights(folder: Folder) -> None:
    assert make_plan(make_run(folder), "pretrain").checkpoint.weights == {}
    assert not torch.is_tensor(make_plan(make_run(folder), "pretrain").parameters)

"""Several label sets in one training: which head learns when, and that nothing depends on interruptions."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cropray.errors import InputError
from cropray.models.checkpoint import LabelSet, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import MAIN, HeadSpec
from cropray.models.heads import with_head
from cropray.models.normalisation import FixedNormalisation
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.storage import Folder
from cropray.training.data import Data
from cropray.training.loop import AuxiliaryTask
from cropray.training.monitor import flat_entry
from cropray.training.plan import make_plan, training_inputs
from cropray.training.recipe import initial_network
from cropray.training.step import Trainer
from cropray.training.validate import SCORE, best_entry, validate_epoch
from cropray.types import Batch
from tests.training_data import CLASSES, make_run, write_split
from tests.training_loop import HEAD, RECIPE, SPEC, Script, make_loop

ROOT = Path(__file__).parents[1]
STEPS, EPOCHS = 6, 3
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Folder]:
    """Shards of a training, and fewer of another label set, which is gone through several times."""
    own, beside = (Folder(str(tmp_path_factory.mktemp(name))) for name in ("own", "beside"))
    write_split(own, "train", 24)
    write_split(own, "val", 9)
    write_split(beside, "train", 12, seed=1)
    return own, beside


def reader(folder: Folder) -> Any:
    return Data(shard_uris(folder, "train"), 0.0).reader(4, seed=3)


def ids(batch: Batch) -> list[str]:
    return [str(name) for name in batch.rows["sample_id"]]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.5])
def test_a_label_set_comes_as_often_as_its_weight_says_and_goes_round(
    folders: tuple[Folder, Folder], weight: float
) -> None:
    data = reader(folders[1])
    task = AuxiliaryTask(HEAD, weight, data)
    steps = [list(task.before(step)) for step in range(20)]
    assert {len(batches) for batches in steps} <= {int(weight), int(weight) + 1}
    read = [ids(batch) for batches in steps for batch in batches]
    assert len(read) == int(20 * weight)
    expected = [ids(batch) for epoch in range(20) for batch in data.epoch(epoch)]
    assert read == expected[: len(read)]
    for start in (3, 7, 15):  # taken up there
        again = AuxiliaryTask(HEAD, weight, data)
        rest = [ids(batch) for step in range(start, 20) for batch in again.before(step)]
        assert rest == read[len(read) - len(rest) :]


def make_trainer(**settings: Any) -> Trainer:
    spec = replace(SPEC, heads=(HeadSpec(HEAD, 3), HeadSpec("old", 5)))
    trainer = Trainer(
        initial_network(spec, 3), FixedNormalisation(), replace(RECIPE, **settings), STEPS, CPU, also=[HEAD]
    )
    trainer.train_mode()
    return trainer


@pytest.mark.parametrize("head", [MAIN, HEAD])
def test_a_step_of_one_head_moves_it_and_the_body_and_no_other_head(
    folders: tuple[Folder, Folder], head: str
) -> None:
    trainer = make_trainer()
    for batch in reader(folders[0]).epoch(0):  # moments, which would move a head without gradients
        for name in (MAIN, HEAD):
            trainer.step(batch, 0, 0, head=name)
    before = {name: x.detach().clone() for name, x in trainer.network.named_parameters()}
    (result,) = trainer.step(batch, 0, 5, head=head)
    assert (result.head, result.terms.class_sums.shape) == (head, (3,))
    moved = {name for name, x in trainer.network.named_parameters() if not torch.equal(x, before[name])}
    mine = "final_conv." if head == MAIN else f"heads.{HEAD}."
    assert {name for name in moved if name.startswith(("final_conv", "heads"))} == {
        name for name in before if name.startswith(mine)
    }
    assert any(name.startswith("unet3d_s2") for name in moved)


def test_both_heads_learn_and_the_record_tells_of_both(
    folders: tuple[Folder, Folder], tmp_path: Path
) -> None:
    loop = make_loop(folders[0], Folder(str(tmp_path)), Script(), replace(RECIPE, epochs=8), folders[1])
    assert loop.run()
    for name in ("train_loss", f"train_loss_{HEAD}"):
        losses = [entry[name] for entry in loop.state.history]
        assert losses[-1] < 0.8 * losses[0]
    stored = load_checkpoint(Folder(str(tmp_path / "epoch-0008")))
    assert {name: x.classes for name, x in stored.label_sets.items()} == {MAIN: CLASSES, HEAD: CLASSES}
    assert stored.thresholds is not None
    assert stored.heads[HEAD].thresholds is None  # it has no validation split
    assert "val_heads" not in loop.state.history[-1]


def test_a_head_beside_is_validated_on_its_own_split_and_the_main_one_chooses_the_epoch(
    folders: tuple[Folder, Folder], tmp_path: Path
) -> None:
    own = folders[0]
    beside, alone = (Folder(str(tmp_path / name)) for name in ("beside", "alone"))
    write_split(beside, "train", 12, seed=1)
    write_split(beside, "val", 6, seed=2)
    write_split(alone, "train", 24)
    write_split(alone, "val", 6, seed=2)  # that of the other one
    recipe = replace(RECIPE, epochs=2)
    loop = make_loop(own, Folder(str(tmp_path / "states")), Script(), recipe, beside)
    assert loop.run()
    entry = loop.state.history[-1]
    stored = load_checkpoint(Folder(str(tmp_path / "states" / "epoch-0002")))
    figures = entry["val_heads"][HEAD]
    assert stored.heads[HEAD].thresholds == pytest.approx(
        [figures["val_classes"][crop]["threshold"] for crop in CLASSES]
    )
    assert stored.thresholds == pytest.approx([entry["val_classes"][crop]["threshold"] for crop in CLASSES])
    assert figures[SCORE] != entry[SCORE]

    # Independently: that head as the only one of a network, validated on that split.
    chosen = with_head(stored, HEAD, "")
    judge = Trainer(chosen.build(), FixedNormalisation(), RECIPE, STEPS, CPU, new_head=False)
    val = Data(shard_uris(alone, "val"), 0.0).part(4, 0, 1)
    assert val is not None
    again, thresholds = validate_epoch(judge, val, CLASSES) or ({}, ())
    for name in (SCORE, "val_loss", "val_mean_f1", "val_known_pixels"):
        assert figures[name] == pytest.approx(again[name], rel=1e-5)
    assert thresholds == pytest.approx(stored.heads[HEAD].thresholds)

    recorded = flat_entry(entry)
    assert recorded[f"{SCORE}_{HEAD}"] == figures[SCORE]
    assert recorded[f"val_f1_{HEAD}/maize"] == figures["val_classes"]["maize"]["f1"]
    assert recorded["val_f1/maize"] == entry["val_classes"]["maize"]["f1"]
    lower, higher = (
        {"epoch": n, SCORE: x, "val_heads": {HEAD: {SCORE: 1 - x}}} for n, x in ((1, 0.2), (2, 0.9))
    )
    assert best_entry([lower, higher]) == higher


@pytest.mark.parametrize("leave_at", [1, 3, STEPS, STEPS + 2])
def test_a_joint_training_left_at_any_step_ends_as_if_undisturbed(
    folders: tuple[Folder, Folder], tmp_path: Path, leave_at: int
) -> None:
    own, beside = folders
    whole = make_loop(own, Folder(str(tmp_path / "whole")), Script(), beside=beside)
    assert whole.run()
    halves = Folder(str(tmp_path / "halves"))
    assert not make_loop(own, halves, Script(leave_at=leave_at), beside=beside).run()
    rest = make_loop(own, halves, Script(), beside=beside)
    assert rest.run()
    assert same(rest.trainer.state(), whole.trainer.state())
    for one, two in zip(rest.state.history, whole.state.history, strict=True):
        assert [one[name] for name in one if "loss" in name] == [two[name] for name in two if "loss" in name]


def test_two_ranks_step_for_the_same_heads_and_go_on_where_they_were(
    folders: tuple[Folder, Folder], tmp_path: Path
) -> None:
    own, beside = (folder.uri for folder in folders)
    command = [sys.executable, "-m", "tests.training_loop", own]
    options = ["2", str(tmp_path), beside]
    processes = [subprocess.Popen([*command, str(rank), *options], cwd=ROOT) for rank in range(2)]
    for process in processes:
        assert process.wait(400) == 0
    ends = {
        name: [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for name in ("whole", "interrupted")
    }
    whole = [end["network"] for end in ends["whole"]]
    initial = initial_network(replace(SPEC, heads=(HeadSpec(HEAD, 3),)), RECIPE.seed)
    for name, start in initial.named_parameters():
        assert torch.equal(whole[0][name], whole[1][name])
        assert not torch.equal(whole[0][name], start)
    for one, two in zip(*ends.values(), strict=True):
        assert same(one["network"], two["network"])
        assert same(one["optimizer"], two["optimizer"])


def joint_run(folder: Folder, beside: Folder, **settings: Any) -> Run:
    return make_run(folder, also=[{"run": beside.uri, "head": HEAD, "weight": 0.5}], **settings)


def test_a_plan_has_a_head_for_each_label_set(folders: tuple[Folder, Folder], tmp_path: Path) -> None:
    own, beside = folders
    alone, joint = make_plan(make_run(own), "pretrain"), make_plan(joint_run(own, beside), "pretrain")
    assert joint.checkpoint.heads == {HEAD: LabelSet(CLASSES)}
    assert joint.checkpoint.network.heads == (HeadSpec(HEAD, 3, "linear"),)
    assert joint.also[0].data.uris == shard_uris(beside, "train")
    assert joint.steps == alone.steps
    assert joint.checkpoint.data_fingerprint != alone.checkpoint.data_fingerprint
    assert training_inputs(joint_run(own, beside), "pretrain").keys() == {"shards", f"the shards of {HEAD}"}


def test_a_head_that_is_kept_goes_on_learning(folders: tuple[Folder, Folder], tmp_path: Path) -> None:
    own, beside = folders
    first = Folder(str(tmp_path / "first"))
    plan = make_plan(make_run(own), "pretrain")
    old = replace(
        plan.checkpoint,
        classes=("a", "b", "c"),
        weights=plan.checkpoint.network.build().state_dict(),
        thresholds=(0.1, 0.2, 0.3),
    )
    save_checkpoint(old, first)
    with pytest.raises(InputError, match=r"there is a head 'europe' already, for a, b, c"):
        make_plan(joint_run(own, beside, init=first.uri, keep_heads=HEAD), "finetune")
    save_checkpoint(replace(old, classes=CLASSES), first)
    kept = make_plan(joint_run(own, beside, init=first.uri, keep_heads="other"), "finetune").checkpoint
    assert kept.heads == {HEAD: LabelSet(CLASSES)}


@pytest.mark.parametrize("name", [MAIN, "a.b", ""])
def test_names_of_heads_that_cannot_be_are_refused(folders: tuple[Folder, Folder], name: str) -> None:
    own, beside = folders
    with pytest.raises((InputError, ValueError), match="head"):
        make_plan(make_run(own, also=[{"run": beside.uri, "head": name}]), "pretrain")


def test_a_label_set_without_shards_is_refused(folders: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(also: europe\) has no shards of the split train"):
        make_plan(joint_run(folders[0], Folder(str(tmp_path))), "pretrain")

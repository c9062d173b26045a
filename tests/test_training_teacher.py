"""A mean teacher: what it labels, when, for whom, and that a training with it resumes to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cropray.config.load import updated
from cropray.config.training import TrainConfig
from cropray.errors import InputError
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.losses import LossRecipe, loss_counts, loss_terms, total
from cropray.models.normalisation import FixedNormalisation
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.data import Data
from cropray.training.plan import make_plan
from cropray.training.recipe import Recipe, initial_network, teacher_ramp
from cropray.training.step import Trainer
from cropray.types import UNLABELLED, Batch
from tests.training_data import CLASSES, MONTHS, make_run, write_split
from tests.training_loop import RECIPE as LOOP_RECIPE
from tests.training_loop import Script, make_loop

pytestmark = pytest.mark.usefixtures("one_thread")

LOSS = LossRecipe("own_crop", 0.5, teacher=2.0)
RECIPE = Recipe(epochs=2, lr=0.01, head_lr=0.02, loss=LOSS, ema=0.9, teacher_confidence=0.4, seed=3)
STEPS = 4  # of an epoch; the teacher is heard from the third on
K = len(CLASSES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 24)
    write_split(folder, "val", 6)
    return folder


@pytest.fixture(scope="module")
def batches(shards: Folder) -> list[Batch]:
    return list(ShardReader(shard_uris(shards, "train"), batch_size=6, seed=3).epoch(0))


def make_trainer(recipe: Recipe = RECIPE) -> Trainer:
    network = initial_network(NetworkSpec(K, width=4, months=MONTHS), recipe.seed)
    trainer = Trainer(network, FixedNormalisation(), recipe, STEPS, torch.device("cpu"))
    trainer.train_mode()
    return trainer


def test_the_weight_rises_from_a_quarter_of_the_steps_to_the_half() -> None:
    assert [teacher_ramp(step, 80) for step in (0, 20, 25, 30, 40, 79)] == [0, 0, 0.25, 0.5, 1, 1]


def test_pixels_of_a_sure_teacher_are_learnt_and_are_no_weak_negatives() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]]).view(1, K, 1, 1).expand(1, K, 1, 3).clone().requires_grad_()
    label = torch.tensor([[[UNLABELLED, UNLABELLED, 1]]], dtype=torch.uint8)
    taught = torch.tensor([[[2, UNLABELLED, UNLABELLED]]], dtype=torch.uint8)
    crop = torch.tensor([0])
    terms = loss_terms(logits, label, crop, LOSS, taught, ramp=0.5)
    assert torch.equal(terms.counts, torch.tensor([3.0, 0.0, 1.0, 6.0]))  # one weak pixel is left of two
    assert torch.equal(terms.counts, loss_counts(label, crop, K, LOSS, taught))
    z = logits.detach()[0, :, 0, 0].double()
    cross = torch.nn.functional.binary_cross_entropy_with_logits(
        z, torch.tensor([0.0, 0.0, 1.0]).double(), reduction="sum"
    )
    assert terms.sums[3].item() == pytest.approx(0.5 * float(cross), rel=1e-5)
    (2.0 * terms.sums[3] / 6).backward()
    gradient = logits.grad
    assert gradient is not None
    assert (gradient[..., 0] != 0).all()
    assert (gradient[..., 1:] == 0).all()
    without = loss_terms(logits, label, crop, LOSS)
    taught_part = 2.0 * terms.sums[3].item() / 6
    assert (total(terms, LOSS) - total(without, LOSS)).item() == pytest.approx(taught_part, rel=1e-4)


def test_a_teacher_is_heard_from_a_quarter_of_the_steps_on(batches: list[Batch]) -> None:
    trainer = make_trainer()
    heard = []
    for epoch in range(2):
        for index, batch in enumerate(batches):
            (result,) = trainer.step(batch, epoch, index)
            unlabelled = int((batch.label_bhw == UNLABELLED).sum()) * K
            heard.append((float(result.terms.counts[3]), float(result.terms.sums[3]), unlabelled))
    assert all((count, told) == (0, 0) for count, told, _ in heard[:3])
    assert all(count == unlabelled for count, _, unlabelled in heard[3:])
    assert all(told > 0 for _, told, _ in heard[4:])


def test_one_that_is_never_sure_changes_the_weak_negatives_in_nothing(batches: list[Batch]) -> None:
    silent, none = (
        make_trainer(replace(RECIPE, teacher_confidence=0.999999)),
        make_trainer(replace(RECIPE, loss=replace(LOSS, teacher=1e-30))),
    )
    for epoch in range(2):
        for index, batch in enumerate(batches):
            results = [trainer.step(batch, epoch, index)[0] for trainer in (silent, none)]
    assert float(results[0].terms.sums[3]) == 0 < float(results[1].terms.sums[3])
    assert float(results[0].terms.counts[2]) > float(results[1].terms.counts[2])


def test_a_training_with_a_teacher_ends_with_the_same_bits_however_it_is_left(
    shards: Folder, tmp_path: Path
) -> None:
    recipe = replace(LOOP_RECIPE, loss=LOSS, teacher_confidence=0.4)

    def trained(name: str, *leave_at: int) -> dict[str, torch.Tensor]:
        for at in (*leave_at, 0):
            loop = make_loop(shards, Folder(str(tmp_path / name)), Script(leave_at=at), recipe)
            assert loop.run() == (at == 0)
        return loop.trainer.state()["average"]

    whole, parts = trained("whole"), trained("parts", 7, 3)
    assert all(torch.equal(x, parts[name]) for name, x in whole.items())


def test_samples_without_a_label_have_their_share_of_an_epoch(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    write_split(folder, "train", 30, unlabelled_from=10)
    uris = shard_uris(folder, "train")
    assert len(Data(uris, 0.0).reader(5, seed=0).table) == 10
    for balance in (None, 0.5):
        reader = Data(uris, 0.0, balance, unlabelled_share=0.5).reader(5, seed=0)
        labelled = [
            (batch.label_bhw != UNLABELLED).any((1, 2)) for epoch in range(4) for batch in reader.epoch(epoch)
        ]
        assert np.concatenate(labelled).mean() == pytest.approx(0.5, abs=0.02)
        assert len(reader) == 6
    alone = Data([uris[0]], 0.0, unlabelled_share=0.5)
    assert len(alone.reader(5, seed=0)) > 0


def test_settings_without_sense_are_refused(tmp_path: Path) -> None:
    for settings, said in (
        ({"teacher": 1.0}, "ema"),
        ({"teacher": 1.0, "ema": 0.9, "unlabelled": "negative"}, "negative"),
        ({"unlabelled_share": 0.5}, "teacher"),
    ):
        with pytest.raises(ValidationError, match=said):
            TrainConfig(**settings)  # type: ignore[arg-type]
    run = make_run(Folder(str(tmp_path)), teacher=1.0, ema=0.9)
    write_split(run.folder, "train", 6)
    run = replace(run, config=updated(run.config, {"model.normalisation": "seed"}))
    with pytest.raises(InputError, match="normalisation"):
        make_plan(run, "finetune")

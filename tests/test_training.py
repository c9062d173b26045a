import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cropray.errors import DivergedError
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.losses import LossRecipe
from cropray.models.normalisation import FixedNormalisation
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.batches import apply_symmetries, draw_symmetries
from cropray.training.recipe import Recipe, initial_network, rate_factor
from cropray.training.step import Trainer
from cropray.training.validate import pixel_stride, score, validate, validate_epoch
from cropray.types import BACKGROUND, UNLABELLED
from tests.training_data import CLASSES, MONTHS, SIZE, write_split

RECIPE = Recipe(epochs=4, lr=0.01, head_lr=0.02, loss=LossRecipe("own_crop"), seed=3)
SPEC = NetworkSpec(len(CLASSES), width=4, months=MONTHS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 24)
    write_split(folder, "val", 9)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reader(shards: Folder, split: str = "train") -> ShardReader:
    return ShardReader(shard_uris(shards, split), batch_size=8, seed=3, shuffle=split == "train")


def make_trainer(steps: int, recipe: Recipe = RECIPE) -> Trainer:
    network = initial_network(SPEC, recipe.seed)
    return Trainer(network, FixedNormalisation(), recipe, steps, torch.device("cpu"))


def run(trainer: Trainer, data: ShardReader, epochs: range) -> list[float]:
    """Train; the mean loss of the steps of each epoch."""
    losses = []
    for epoch in epochs:
        trainer.train_mode()
        steps = [trainer.step(batch, epoch, index) for index, batch in enumerate(data.epoch(epoch))]
        losses.append(float(np.mean([result.loss for results in steps for result in results])))
    return losses


def same_weights(one: Trainer, two: Trainer) -> bool:
    others = two.network.state_dict()
    return all(torch.equal(x, others[name]) for name, x in one.network.state_dict().items())


def test_two_trainings_of_the_same_seed_end_with_the_same_bits(shards: Folder) -> None:
    data = reader(shards)
    one, two, other = (make_trainer(len(data), replace(RECIPE, seed=seed)) for seed in (3, 3, 4))
    assert run(one, data, range(2)) == run(two, data, range(2))
    assert same_weights(one, two)
    run(other, data, range(2))
    assert not same_weights(one, other)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_training_taken_up_after_any_epoch_ends_as_if_undisturbed(
    shards: Folder, tmp_path: Path, optimizer: str
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, weight_decay=0.01)
    data = reader(shards)
    undisturbed = make_trainer(len(data), recipe)
    run(undisturbed, data, range(4))
    first = make_trainer(len(data), recipe)
    run(first, data, range(2))
    torch.save(first.state(), tmp_path / "state.pt")
    second = make_trainer(len(data), replace(recipe, seed=recipe.seed))
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, reader(shards), range(2, 4))
    assert same_weights(undisturbed, second)


def test_the_memory_layout_of_a_stored_state_does_not_matter(shards: Folder) -> None:
    data = reader(shards)
    first, second = make_trainer(len(data)), make_trainer(len(data))
    run(first, data, range(1))
    state = copy.deepcopy(first.state())
    for moments in state["optimizer"]["state"].values():
        for name, value in moments.items():  # as formats keep tensors that know no strides
            moments[name] = value.contiguous()
    second.load_state(state)
    run(first, data, range(1, 2))
    run(second, data, range(1, 2))
    assert same_weights(first, second)


def test_training_learns_what_the_bands_say(shards: Folder) -> None:
    data = reader(shards)
    recipe = replace(RECIPE, epochs=12)
    network = initial_network(replace(SPEC, width=8), recipe.seed)
    trainer = Trainer(network, FixedNormalisation(), recipe, len(data), torch.device("cpu"))
    losses = run(trainer, data, range(12))
    found = validate_epoch(trainer, reader(shards, "val"), CLASSES)
    assert found is not None
    figures, thresholds = found
    assert losses[-1] < 0.6 * losses[0]
    assert figures["val_mean_average_precision"] > 0.5  # chance: 0.17
    assert len(thresholds) == len(CLASSES)


def test_the_head_has_its_own_rate(shards: Folder) -> None:
    data = reader(shards)
    trainer = make_trainer(len(data), replace(RECIPE, lr=1e-12, head_lr=0.1, weight_decay=0.0))
    before = {name: x.clone() for name, x in trainer.network.named_parameters()}
    run(trainer, data, range(1))
    for name, x in trainer.network.named_parameters():
        change = float((x - before[name]).detach().abs().max())
        assert change > 1e-3 if name.startswith("final_conv") else change < 1e-9, name


def test_a_new_head_on_a_trained_body() -> None:
    trained = initial_network(NetworkSpec(5, width=4, months=MONTHS), seed=0).state_dict()
    network = initial_network(replace(SPEC, head="conv"), 1, trained)
    for name, x in network.state_dict().items():
        assert name.startswith("final_conv") or torch.equal(x, trained[name])
    kept = initial_network(NetworkSpec(5, width=4, months=MONTHS), 1, trained, keep_head=True)
    assert torch.equal(kept.state_dict()["final_conv.weight"], trained["final_conv.weight"])


def test_making_a_network_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_network(SPEC, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_the_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    rates = [rate_factor(step, 100, "cosine", 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert [rate_factor(step, 10, "constant", 0.0) for step in range(10)] == [1.0] * 10


def test_all_parts_of_a_sample_move_together() -> None:
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 256, (16, 8, 8)).astype(np.uint8))
    s2 = label.short()[:, None, None].expand(16, 10, 3, 8, 8)
    s1 = label.short()[:, None, None].expand(16, 2, 3, 8, 8)
    moved = apply_symmetries((s1, s2, label), np.arange(16) % 8)
    for x in moved[:2]:
        assert (x == moved[2].short()[:, None, None]).all()
    # Symmetry 0 does nothing; the eight are all different.
    assert torch.equal(moved[2][0], label[0])
    eight = apply_symmetries((label[:1].repeat(8, 1, 1),), np.arange(8))[0]
    assert len({x.numpy().tobytes() for x in eight}) == 8
    assert all(sorted(x.flatten().tolist()) == sorted(label[0].flatten().tolist()) for x in eight)


def test_a_sample_has_its_own_symmetry_in_whatever_batch_it_comes() -> None:
    ids = [f"maize-7-r{row:05d}c00000" for row in range(4000)]
    symmetries = draw_symmetries(ids, 3, 5)
    shuffled = np.random.default_rng(0).permutation(4000)
    moved = np.concatenate([draw_symmetries([ids[i] for i in part], 3, 5) for part in np.split(shuffled, 25)])
    np.testing.assert_array_equal(moved, symmetries[shuffled])
    # All eight alike, and neither the next epoch's nor another seed's: an eighth is the same by chance.
    assert np.bincount(symmetries, minlength=8) == pytest.approx(np.full(8, 500), abs=90)  # 4 sigma
    for other in (draw_symmetries(ids, 3, 6), draw_symmetries(ids, 4, 5)):
        assert np.mean(other == symmetries) == pytest.approx(1 / 8, abs=0.021)  # 4 sigma


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_steps_of_an_epoch_turn_a_sample_alike_on_any_number_of_ranks(
    shards: Folder, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, int] = {}

    def note(sample_ids: list[str], seed: int, epoch: int) -> np.ndarray:
        symmetries = draw_symmetries(sample_ids, seed, epoch)
        given.update(zip(sample_ids, symmetries.tolist(), strict=True))
        return symmetries

    monkeypatch.setattr("cropray.training.step.draw_symmetries", note)
    for rank in range(world_size):
        data = ShardReader(
            shard_uris(shards, "train"), batch_size=5, seed=3, rank=rank, world_size=world_size
        )
        run(make_trainer(len(data)), data, range(1, 2))
    ids = [f"train-{i}" for i in range(24)]
    assert given == dict(zip(ids, draw_symmetries(ids, RECIPE.seed, 1).tolist(), strict=True))


def test_patches_that_are_not_square_are_not_turned() -> None:
    with pytest.raises(ValueError, match="square"):
        apply_symmetries((torch.zeros(1, 4, 6),), np.zeros(1, np.int64))


def test_validation_sees_every_known_pixel_once_and_no_other(shards: Folder) -> None:
    data = reader(shards, "val")
    labels = np.concatenate([batch.label_bhw.ravel() for batch in data.epoch(0)])
    scores_nk, label_n, terms = validate(make_trainer(1), data.epoch(0), stride=1)
    np.testing.assert_array_equal(label_n, labels[labels != UNLABELLED])
    assert scores_nk.shape == (len(label_n), len(CLASSES))
    assert int(terms.known) == len(label_n)


def test_the_figures_of_a_validation_are_those_of_its_pixels(shards: Folder) -> None:
    trainer, data = make_trainer(1), reader(shards, "val")
    found = validate_epoch(trainer, data, CLASSES)
    assert found is not None
    scores_nk, label_n, _ = validate(trainer, data.epoch(0), stride=1)
    for k, name in enumerate(CLASSES):
        p = np.clip(scores_nk[:, k].astype(np.float64), 1e-12, 1 - 1e-12)
        expected = -np.mean(np.where(label_n == k, np.log(p), np.log1p(-p)))
        assert found[0]["val_class_loss"][name] == pytest.approx(expected, rel=1e-5)


def test_the_pixels_that_are_looked_at_are_the_same_in_any_batches(shards: Folder) -> None:
    trainer = make_trainer(1)
    for stride in (3, 7):
        pixels = [
            validate(
                trainer,
                ShardReader(shard_uris(shards, "val"), batch_size=size, shuffle=False).epoch(0),
                stride,
            )
            for size in (2, 9)
        ]
        np.testing.assert_array_equal(pixels[0][1], pixels[1][1])
        np.testing.assert_allclose(pixels[0][0], pixels[1][0], rtol=1e-5)


def test_scores_are_told_apart_in_full_precision(shards: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = make_trainer(1), next(reader(shards, "val").epoch(0))
    logits, terms = trainer.logits(batch)
    steep = (6 + 4 * logits).bfloat16()  # as a GPU gives them, most of them beyond a sigmoid of 0.996
    monkeypatch.setattr(trainer, "logits", lambda _batch, _head: (steep, terms))
    scores_nk, *_ = validate(trainer, [batch], stride=1)
    known = torch.from_numpy(batch.label_bhw != UNLABELLED)
    expected = torch.special.expit(steep.double()).movedim(1, -1)[known]
    np.testing.assert_allclose(scores_nk, expected.numpy(), rtol=1e-6)


def test_the_stride_bounds_the_pixels_and_is_odd() -> None:
    assert pixel_stride(10, SIZE) == 1
    for samples in (300, 10_000, 123_456):
        stride = pixel_stride(samples, 64)
        assert stride % 2 == 1
        assert samples * 4096 / stride <= 1_000_000


def test_perfect_scores_are_perfect_and_a_class_without_pixels_has_no_figure() -> None:
    label = np.array([0, 0, 1, BACKGROUND], np.uint8)
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.2, 0.1], [0.1, 0.7, 0.3], [0.3, 0.1, 0.9]], np.float32)
    figures, thresholds = score(scores, label, CLASSES)
    assert figures["val_mean_average_precision"] == figures["val_mean_f1"] == 1.0
    assert figures["val_classes"]["tomato"] is None
    assert thresholds[2] == 0.5
    empty = np.empty((0, 3), np.float32), np.empty(0, np.uint8)
    assert score(*empty, CLASSES)[0]["val_mean_average_precision"] is None
    scores[0, 0] = np.nan
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        score(scores, label, CLASSES)

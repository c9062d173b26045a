"""What the settings of a step do: parts, clipping, averages, batch norm, numbers that are not finite."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from cropray.errors import DivergedError, InputError
from cropray.models.dual_unet3d import HeadSpec, NetworkSpec
from cropray.models.losses import LossRecipe
from cropray.models.normalisation import FixedNormalisation
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.recipe import Recipe, choose_precision, initial_network, with_batch_norm
from cropray.training.step import Trainer
from cropray.types import Batch
from tests.training_data import CLASSES, MONTHS, write_split

CPU = torch.device("cpu")
SPEC = NetworkSpec(len(CLASSES), width=4, months=MONTHS)
RECIPE = Recipe(epochs=2, lr=0.01, head_lr=0.02, loss=LossRecipe("own_crop"), seed=3)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_split(folder, "train", 24)
    return list(ShardReader(shard_uris(folder, "train"), batch_size=6, seed=3).epoch(0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_trainer(recipe: Recipe = RECIPE, *, new_head: bool = True, spec: NetworkSpec = SPEC) -> Trainer:
    trainer = Trainer(
        initial_network(spec, recipe.seed), FixedNormalisation(), recipe, 4, CPU, new_head=new_head
    )
    trainer.train_mode()
    return trainer


def parameters(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def statistics(network: nn.Module) -> torch.Tensor:
    return torch.cat([x.flatten().float() for name, x in network.named_buffers() if "running" in name])


def gradients(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])


def test_a_step_in_parts_is_the_step_of_the_whole_batch(batches: list[Batch]) -> None:
    # Batch norm alone sees the parts; with fixed statistics nothing does.
    recipe = replace(RECIPE, batch_norm="frozen", optimizer="adam")
    whole, parts = (make_trainer(replace(recipe, accumulate=n), new_head=False) for n in (1, 4))
    results = [trainer.step(batches[0], 0, 0)[0] for trainer in (whole, parts)]
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-4, atol=1e-7)
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-6)
    assert torch.equal(results[1].terms.counts, results[0].terms.counts)


def test_the_loss_of_a_step_is_that_of_its_samples(batches: list[Batch]) -> None:
    trainer = make_trainer(replace(RECIPE, batch_norm="frozen", augment=False), new_head=False)
    before = trainer.logits(batches[0])[1].exact()
    trainer.train_mode()
    (result,) = trainer.step(batches[0], 0, 0)
    torch.testing.assert_close(result.terms.sums, before.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.terms.class_sums, before.class_sums, rtol=1e-5, atol=1e-5)
    assert (result.samples, result.finite, result.asked) == (6, True, 0)


def test_gradients_are_scaled_down_to_the_norm_that_is_allowed(batches: list[Batch]) -> None:
    free, clipped = make_trainer(), make_trainer(replace(RECIPE, clip_norm=0.01))
    norms = [trainer.step(batches[0], 0, 0)[0].gradient_norm for trainer in (free, clipped)]
    assert norms[0] == norms[1] == pytest.approx(float(gradients(free).norm()), rel=1e-5)
    assert norms[0] > 0.01
    assert float(gradients(clipped).norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(gradients(clipped) * norms[0] / 0.01, gradients(free), rtol=1e-3, atol=1e-6)


def test_the_average_follows_the_weights(batches: list[Batch]) -> None:
    trainer = make_trainer(replace(RECIPE, ema=0.3))
    expected = {name: x.clone() for name, x in trainer.network.state_dict().items() if x.is_floating_point()}
    for index, batch in enumerate(batches):
        trainer.step(batch, 0, index)
        decay = min(0.3, (1 + index) / (10 + index))
        weights = trainer.network.state_dict()
        expected = {name: decay * x + (1 - decay) * weights[name] for name, x in expected.items()}
    for name, x in expected.items():
        torch.testing.assert_close(trainer.published.state_dict()[name], x)
    assert not torch.equal(
        parameters(trainer), torch.cat([p.flatten() for p in trainer.published.parameters()])
    )
    assert make_trainer().published.training  # without one, the network itself


def test_frozen_batch_norm_keeps_its_statistics_but_for_a_new_head(batches: list[Batch]) -> None:
    spec = replace(SPEC, head="conv")
    for new_head in (True, False):
        trainer = make_trainer(replace(RECIPE, batch_norm="frozen"), new_head=new_head, spec=spec)
        body, head = (statistics(part) for part in (trainer.network.unet3d_s2, trainer.network.final_conv))
        before = parameters(trainer)
        trainer.step(batches[0], 0, 0)
        assert torch.equal(statistics(trainer.network.unet3d_s2), body)
        assert torch.equal(statistics(trainer.network.final_conv), head) is not new_head
        assert not torch.equal(parameters(trainer), before)


def test_batch_norm_of_several_cpus_cannot_be_synchronised() -> None:
    network = initial_network(SPEC, 0)
    with pytest.raises(InputError, match="sync needs GPUs"):
        with_batch_norm(network, "sync", 2, CPU)
    assert with_batch_norm(network, "sync", 1, CPU) is network


def test_a_head_that_is_kept_beside_learns_nothing(batches: list[Batch]) -> None:
    trainer = make_trainer(spec=replace(SPEC, heads=(HeadSpec("europe", 5),)))
    before = {name: x.clone() for name, x in trainer.network.heads.named_parameters()}
    trainer.step(batches[0], 0, 0)
    for name, x in trainer.network.heads.named_parameters():
        assert torch.equal(x, before[name])


@dataclass(frozen=True)
class Poisoned(FixedNormalisation):
    """As a division by a deviation of 0 would: samples whose first pixel has this value become NaN."""

    MARK = -31_999

    def apply(self, s1_bcthw, s2_bcthw):  # type: ignore[no-untyped-def]
        s1, s2, valid = super().apply(s1_bcthw, s2_bcthw)
        s2[(s2_bcthw == self.MARK).flatten(1).any(1)] = float("nan")
        return s1, s2, valid


def poisoned(batch: Batch, *places: int) -> Batch:
    s2 = batch.s2_bcthw.copy()
    s2[list(places), 0, 0, 0, 0] = Poisoned.MARK
    return replace(batch, s2_bcthw=s2)


def poisonable(max_nonfinite: int) -> Trainer:
    recipe = replace(RECIPE, max_nonfinite=max_nonfinite, ema=0.9, clip_norm=1.0)
    trainer = Trainer(initial_network(SPEC, 3), Poisoned(), recipe, 4, CPU)
    trainer.train_mode()
    return trainer


def test_a_step_on_a_sample_that_makes_nan_is_as_if_it_had_not_been(batches: list[Batch]) -> None:
    trainer, spared = poisonable(1), poisonable(1)
    bad = poisoned(batches[1], 2)
    results = [trainer.step(batch, 0, i)[0] for i, batch in enumerate([batches[0], bad, batches[2]])]
    for i in (0, 2):
        spared.step(batches[i], 0, i)
    assert [result.finite for result in results] == [True, False, True]
    assert torch.equal(parameters(trainer), parameters(spared))
    assert torch.equal(statistics(trainer.network), statistics(spared.network))
    assert trainer.skipped == 1
    assert trainer.suspects == [batches[1].rows["sample_id"][2]]
    assert torch.isfinite(parameters(trainer)).all()


def test_after_too_many_such_steps_the_training_ends_with_the_samples(batches: list[Batch]) -> None:
    trainer = poisonable(1)
    trainer.step(poisoned(batches[0], 0), 0, 0)
    names = [batches[0].rows["sample_id"][0], batches[1].rows["sample_id"][3]]
    with pytest.raises(InputError, match=rf"2 steps .*max_nonfinite is 1.*{names[0]}, {names[1]}") as caught:
        trainer.step(poisoned(batches[1], 3), 0, 1)
    assert not isinstance(caught.value, DivergedError)  # the data is to blame, not the settings


def test_a_step_whose_numbers_overflow_changes_nothing(batches: list[Batch]) -> None:
    trainer = make_trainer(replace(RECIPE, max_nonfinite=0, batch_norm="frozen"), new_head=False)
    before = parameters(trainer).clone()
    with torch.no_grad():
        trainer.network.final_conv.weight.fill_(3e38)  # finite, but no sum of them is
    with pytest.raises(DivergedError, match=r"1 step .*Lower the learning rate"):
        trainer.step(batches[0], 0, 0)
    assert int((parameters(trainer) != before).sum()) == trainer.network.final_conv.weight.numel()


def test_a_count_of_skipped_steps_goes_with_the_state(batches: list[Batch]) -> None:
    trainer, other = poisonable(5), poisonable(5)
    trainer.step(poisoned(batches[0], 0), 0, 0)
    other.load_state(trainer.state())
    assert (other.skipped, other.suspects) == (1, trainer.suspects)


def test_state_stands_still_while_the_training_goes_on(batches: list[Batch]) -> None:
    trainer = make_trainer(replace(RECIPE, ema=0.9))
    trainer.step(batches[0], 0, 0)
    state, weights = trainer.state(), parameters(trainer).clone()
    trainer.step(batches[1], 0, 1)
    assert not torch.equal(parameters(trainer), weights)
    later = make_trainer(replace(RECIPE, ema=0.9))
    later.load_state(state)
    assert torch.equal(parameters(later), weights)
    later.step(batches[1], 0, 1)
    assert torch.equal(parameters(later), parameters(trainer))
    np.testing.assert_array_equal(statistics(later.published), statistics(trainer.published))


def test_a_cpu_computes_in_float32_unless_it_is_told_otherwise() -> None:
    assert choose_precision("auto", CPU) == "float32"
    assert choose_precision("bfloat16", CPU) == "bfloat16"
    with pytest.raises(InputError, match="tf32 needs GPUs"):
        choose_precision("tf32", CPU)


def test_bfloat16_computes_nearly_the_same(batches: list[Batch]) -> None:
    network = initial_network(SPEC, 3)
    half = Trainer(network, FixedNormalisation(), RECIPE, 4, CPU, precision="bfloat16")
    half.train_mode()
    loss = make_trainer().step(batches[0], 0, 0)[0].loss
    assert half.step(batches[0], 0, 0)[0].loss == pytest.approx(loss, rel=0.02)
    assert next(half.network.parameters()).dtype == torch.float32

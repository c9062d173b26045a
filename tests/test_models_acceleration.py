"""A network that is made quicker gives what it gave before, within what its module states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cropray.models.acceleration import BFLOAT16_TOLERANCE, dtype_of, fold_batch_norm
from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor, StoredNetwork
from cropray.models.normalisation import FixedNormalisation
from cropray.types import IntArray

MONTHS = 3


def checkpoint_of(spec: NetworkSpec) -> Checkpoint:
    """Random weights, and statistics of batch norm as after a training."""
    torch.manual_seed(1)
    network = spec.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.5, 0.5)
            nn.init.uniform_(module.get_buffer("running_var"), 0.2, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    window = {"anchor": "as_of", "months": MONTHS, "lead_months": 0, "as_of": None}
    checkpoint = Checkpoint(
        ("a", "b"), spec, FixedNormalisation(), window, "gamma0", network.state_dict(), temperature=0.3
    )
    return replace(checkpoint, biases=(0.2, -0.4))


def stored() -> tuple[IntArray, IntArray]:
    rng = np.random.default_rng(0)
    s1 = rng.integers(-2500, -500, (2, 2, MONTHS, 32, 48), dtype=np.int16)
    return s1, rng.integers(0, 6000, (2, 10, MONTHS, 32, 48), dtype=np.int16)


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(2, width=4, months=MONTHS, head="conv", validity=True),
        NetworkSpec(2, width=8, months=MONTHS, kind="temporal", members=2),
    ],
)
def test_a_predictor_gives_what_its_network_gives(spec: NetworkSpec) -> None:
    checkpoint, inputs = checkpoint_of(spec), stored()
    with torch.inference_mode():
        plain = StoredNetwork(checkpoint)(*map(torch.from_numpy, inputs)).numpy()
    assert plain.std() > 0.005
    np.testing.assert_allclose(Predictor(checkpoint).probabilities(*inputs), plain, atol=1e-5)
    short = Predictor(checkpoint, precision="bfloat16").probabilities(*inputs)
    assert short.dtype == np.float32
    assert np.abs(short - plain).max() < BFLOAT16_TOLERANCE


def test_bfloat16_is_used_by_the_u_net_alone() -> None:
    inputs = stored()
    for kind in ("dual_unet3d", "temporal"):
        checkpoint = checkpoint_of(NetworkSpec(2, width=8, months=MONTHS, kind=kind))
        exact, short = (
            Predictor(checkpoint, precision=precision).probabilities(*inputs)
            for precision in ("float32", "bfloat16")
        )
        assert np.array_equal(exact, short) == (kind == "temporal")


def test_no_batch_norm_is_left() -> None:
    network = NetworkSpec(2, width=8, months=MONTHS, head="conv").build()
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batch_norm(network.train())
    fold_batch_norm(network.eval())
    assert not [each for each in network.modules() if isinstance(each, nn.BatchNorm2d | nn.BatchNorm3d)]
    layouts = [each.weight.stride()[1] for each in network.modules() if isinstance(each, nn.Conv2d)]
    assert set(layouts) == {1}  # channels last, as before


def test_auto_is_float32_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert [dtype_of(setting, cpu) for setting in ("auto", "float32", "bfloat16")] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
    ]

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cropray.bands import NODATA
from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation


def inputs(n: int = 2, months: int = 6, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    s1, s2, valid = (torch.randn(n, channels, months, size, size) for channels in (2, 10, 2))
    return s1, s2, (valid > 0).float()


def test_the_published_network_has_62134293_parameters() -> None:
    network = NetworkSpec(21).build_empty()
    assert sum(p.numel() for p in network.parameters()) == 62_134_293


def test_a_forward_pass_of_a_sample_is_12_95_gflop() -> None:
    network = NetworkSpec(21).build_empty()
    s1, s2, valid = (torch.zeros(1, bands, 6, 64, 64, device="meta") for bands in (2, 10, 2))
    with FlopCounterMode(display=False) as counter:
        network(s1, s2, valid)
    assert counter.get_total_flops() / 1e9 == pytest.approx(12.95, abs=0.005)


def test_names_and_shapes_of_the_tensors_are_the_published_ones(shared_data: Path) -> None:
    pretrained, finetuned = json.loads((shared_data / "seed_checkpoint_layout.json").read_text()).values()
    ours = {name: list(x.shape) for name, x in NetworkSpec(21).build_empty().state_dict().items()}
    assert len(ours) == 262
    assert ours == pretrained
    # The published fine-tuned network wraps the pretrained one, whose own head it leaves unused.
    renamed = {
        name.removeprefix("dualunet3d."): shape
        for name, shape in finetuned.items()
        if not name.startswith("dualunet3d.final_conv")
    }
    ours = {name: list(x.shape) for name, x in NetworkSpec(8, head="conv").build_empty().state_dict().items()}
    assert ours == renamed


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("months", [1, 4])
def test_logits_have_one_plane_a_class_whatever_the_months_and_head(months: int, head: str) -> None:
    network = NetworkSpec(5, width=4, months=months, head=head).build()
    assert network(*inputs(months=months, size=32)).shape == (2, 5, 32, 32)


def test_the_width_scales_every_layer_and_the_stem_has_half_of_it_or_its_own() -> None:
    for stem, expected in ((None, 3), (8, 8)):
        network = NetworkSpec(3, width=6, stem=stem).build_empty()
        assert network.unet3d_s2.conv3d.conv[0].out_channels == expected
        assert [down.conv[0].out_channels for down in network.unet3d_s2.unet.downs] == [6, 12, 24, 48]
        assert network.unet3d_s2.unet.bottleneck.conv[0].out_channels == 96


def test_every_month_and_both_sensors_reach_the_logits() -> None:
    torch.manual_seed(0)
    network = NetworkSpec(2, width=8, months=3, validity=True).build()
    s1, s2, valid = (x.requires_grad_() for x in inputs(months=3))
    network(s1, s2, valid).pow(3).sum().backward()
    for gradient in (s1.grad, s2.grad, *valid.grad.split(1, dim=1)):
        assert (gradient.abs().sum(dim=(0, 1, 3, 4)) > 0).all()


def test_only_a_network_with_validity_tells_a_gap_from_a_measured_value() -> None:
    s1, s2, _ = inputs()
    seen, gap = torch.ones(2, 2, 6, 16, 16), torch.zeros(2, 2, 6, 16, 16)
    for validity in (True, False):
        network = NetworkSpec(2, width=4, validity=validity).build().eval()
        assert torch.equal(network(s1, s2, seen), network(s1, s2, gap)) != validity


@pytest.mark.parametrize("shape", [(1, 2, 5, 16, 16), (1, 3, 6, 16, 16), (1, 2, 6, 16, 24), (2, 6, 16, 16)])
def test_a_wrong_axis_fails_at_the_boundary_and_the_error_prints_the_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        NetworkSpec(2, width=4).build()(torch.zeros(shape), *inputs()[1:])


def test_body_and_head_are_all_parameters_once() -> None:
    network = NetworkSpec(2, width=4, head="conv").build()
    parted = {id(p) for p in (*network.body_parameters(), *network.head_parameters())}
    assert parted == {id(p) for p in network.parameters()}
    assert not {id(p) for p in network.body_parameters()} & {id(p) for p in network.head_parameters()}


def make_predictor() -> Predictor:
    torch.manual_seed(0)
    spec = NetworkSpec(3, width=4, months=2)
    weights = spec.build().state_dict()
    checkpoint = Checkpoint(("a", "b", "c"), spec, FixedNormalisation(), {}, "gamma0", weights)
    return Predictor(checkpoint)


def test_a_prediction_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    rng = np.random.default_rng(0)
    s1 = rng.integers(-2500, -500, (3, 2, 2, 16, 16), dtype=np.int16)
    s2 = rng.integers(0, 6000, (3, 10, 2, 16, 16), dtype=np.int16)
    s2[0, :, 0] = NODATA
    predictor = make_predictor()
    together = predictor.probabilities(s1, s2)
    alone = np.concatenate([predictor.probabilities(s1[i : i + 1], s2[i : i + 1]) for i in range(3)])
    assert together.dtype == np.float32
    assert ((together > 0) & (together < 1)).all()
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_thresholds_that_were_not_chosen_are_one_half() -> None:
    assert make_predictor().thresholds.tolist() == [0.5, 0.5, 0.5]

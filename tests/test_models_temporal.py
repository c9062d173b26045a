"""The network that sees each pixel by itself: any size, any gaps, any date of its window."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import CropNetwork, NetworkSpec
from cropray.models.inference import Predictor, stored_inputs
from cropray.models.normalisation import make_normalisation
from cropray.models.temporal import TemporalNetwork
from cropray.storage import Folder
from cropray.tracking.packaging import save_model_folder

SPEC = NetworkSpec(3, width=16, months=5, validity=True, kind="temporal", s2_bands=9)
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
MONTHS = torch.tensor([[3, 4, 5, 6, 7]])


def network() -> CropNetwork:
    torch.manual_seed(0)
    return SPEC.build().eval()


def inputs(n: int = 2, height: int = 3, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    s1, s2, valid = (torch.randn(n, c, 5, height, width, generator=generator) for c in (2, 9, 2))
    valid = (valid > -0.5).float()
    return s1 * valid[:, 1:], s2 * valid[:, :1], valid


def test_every_pixel_is_classified_by_itself() -> None:
    net, (s1, s2, valid) = network(), inputs()
    whole = net(s1, s2, valid, month_bt=MONTHS.expand(2, -1))
    assert whole.shape == (2, 3, 3, 5)
    pixel = (slice(None), slice(None), slice(None), slice(1, 2), slice(4, 5))
    alone = net(s1[pixel], s2[pixel], valid[pixel], month_bt=MONTHS.expand(2, -1))
    torch.testing.assert_close(alone, whole[:, :, 1:2, 4:5])


def test_a_month_without_a_view_has_no_part() -> None:
    net, (s1, s2, valid) = network(), inputs()
    valid[:, :, 1] = s1[:, :, 1] = s2[:, :, 1] = 0
    expected = net(s1, s2, valid, month_bt=MONTHS.expand(2, -1))
    other = MONTHS.clone()
    other[0, 1] = 12
    torch.testing.assert_close(net(s1, s2, valid, month_bt=other.expand(2, -1)), expected)
    nothing = net(0 * s1, 0 * s2, 0 * valid, month_bt=MONTHS.expand(2, -1))
    assert nothing.isfinite().all()


def test_the_calendar_month_and_each_sensor_matter() -> None:
    net, (s1, s2, valid) = network(), inputs()
    expected = net(s1, s2, valid, month_bt=MONTHS.expand(2, -1))
    assert not torch.allclose(net(s1, s2, valid, month_bt=MONTHS.expand(2, -1) + 2), expected)
    for k, pair in enumerate(((s1, 0 * s2), (0 * s1, s2))):
        one = valid.clone()
        one[:, k] = 0
        alone = net(*pair, one, month_bt=MONTHS.expand(2, -1))
        assert alone.isfinite().all()
        assert not torch.allclose(alone, expected)


def test_members_are_averaged_in_evaluation_and_each_learns_from_its_part_of_a_batch() -> None:
    torch.manual_seed(0)
    net, (s1, s2, valid) = replace(SPEC, members=3).build(), inputs(n=4)
    assert isinstance(net, TemporalNetwork)
    months = MONTHS.expand(4, -1)
    net.eval()
    average = net(s1, s2, valid, month_bt=months).sigmoid()
    single = []
    for encoder in net.encoders:
        alone = SPEC.build().eval()
        alone.load_state_dict(
            {f"encoders.0.{name}": x for name, x in encoder.state_dict().items()}
            | {f"final_conv.{name}": x for name, x in net.final_conv.state_dict().items()}
        )
        single.append(alone(s1, s2, valid, month_bt=months).sigmoid())
    torch.testing.assert_close(average, torch.stack(single).mean(0))
    assert not torch.allclose(single[0], single[1])
    net.train()
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    logits = net(s1, s2, valid, month_bt=months)
    for i, member in enumerate((0, 1, 2, 0)):
        torch.testing.assert_close(logits[i].sigmoid(), single[member][i])


def test_every_parameter_belongs_to_the_body_or_to_a_head() -> None:
    for spec in (SPEC, replace(SPEC, kind="dual_unet3d", width=4), replace(SPEC, members=2)):
        net = spec.build_empty()
        found = [*net.body_parameters(), *net.head_parameters()]
        assert {id(x) for x in found} == {id(x) for x in net.parameters()}


def test_inputs_of_other_bands_or_months_are_refused() -> None:
    s1, s2, valid = inputs()
    with pytest.raises(ValueError, match="s2 is"):
        network()(s1, torch.cat((s2, s2[:, :1]), 1), valid)
    with pytest.raises(ValueError, match="s1 is"):
        network()(s1[:, :, :4], s2, valid)


def checkpoint(*, any_date: bool) -> Checkpoint:
    return Checkpoint(
        classes=("a", "b", "c"),
        network=SPEC,
        normalisation=make_normalisation("fixed", BANDS, ("VV", "VH")),
        window={"anchor": "as_of", "months": 5, "lead_months": 1, "as_of": "2022-07-31"},
        s1_quantity="sigma0",
        weights=network().state_dict(),
        s2_bands=BANDS,
        recipe={"any_date": any_date},
        periods=tuple((f"2022-0{m}-01", f"2022-0{m + 1}-01") for m in range(3, 8)),
    )


def stored(months: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    s1 = rng.integers(-2000, -800, (2, 2, months, 3, 5)).astype(np.int16)
    return s1, rng.integers(200, 4000, (2, 9, months, 3, 5)).astype(np.int16)


def test_a_checkpoint_keeps_the_kind_the_bands_and_the_calendar(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(any_date=True), Folder(str(tmp_path)))
    loaded = load_checkpoint(Folder(str(tmp_path)))
    assert (loaded.network, loaded.normalisation) == (SPEC, checkpoint(any_date=True).normalisation)
    assert (loaded.any_date, loaded.calendar) == (True, [3, 4, 5, 6, 7])
    s1, s2 = stored()
    expected = Predictor(checkpoint(any_date=True)).probabilities(s1, s2)
    given = stored_inputs(loaded, {"s1": s1, "s2": s2})
    np.testing.assert_array_equal(Predictor(loaded).probabilities(*given), expected)


def test_an_earlier_date_is_the_window_without_its_last_months() -> None:
    predictor, (s1, s2) = Predictor(checkpoint(any_date=True)), stored()
    early = predictor.probabilities(s1[:, :, :3], s2[:, :, :3])
    assert not np.allclose(early, predictor.probabilities(s1, s2))
    s1[:, :, 3:], s2[:, :, 3:] = NODATA, NODATA
    np.testing.assert_array_equal(early, predictor.probabilities(s1, s2))
    with pytest.raises(ValueError, match="s1 is"):
        Predictor(checkpoint(any_date=False)).probabilities(s1[:, :, :3], s2[:, :, :3])


def test_bands_that_the_network_was_not_built_for_are_refused() -> None:
    s1, s2 = stored()
    with pytest.raises(InputError, match="9 bands"):
        stored_inputs(checkpoint(any_date=True), {"s1": s1, "s2": np.repeat(s2[:, :1], 10, axis=1)})


def test_a_wider_clip_tells_snow_from_bright_soil() -> None:
    bright, snow = (torch.full((1, 9, 1, 1, 1), value, dtype=torch.int16) for value in (3000, 8000))
    s1 = torch.full((1, 2, 1, 1, 1), -1200, dtype=torch.int16)
    for clip, apart in ((6.0, False), (20.0, True)):
        scheme = make_normalisation("fixed", BANDS, ("VV", "VH"), clip)
        one, other = (scheme.apply(s1.clone(), x.clone())[1][0, 0].item() for x in (bright, snow))
        assert (one < other) == apart


def test_the_weights_of_another_kind_do_not_fit(tmp_path: Path) -> None:
    other = replace(checkpoint(any_date=True), network=replace(SPEC, kind="dual_unet3d"))
    save_checkpoint(other, Folder(str(tmp_path)))
    with pytest.raises(InputError, match="do not fit"):
        load_checkpoint(Folder(str(tmp_path)))


def test_the_model_folder_of_any_date_loads_alone_and_predicts_what_the_checkpoint_does(
    tmp_path: Path,
) -> None:
    folder = Folder(str(tmp_path / "checkpoint"))
    save_checkpoint(checkpoint(any_date=True), folder)
    (tmp_path / "scratch").mkdir()
    loaded = load_checkpoint(folder)
    save_model_folder(tmp_path / "model", loaded, folder, tmp_path / "scratch", {}, {})
    for months in (3, 5):
        s1, s2 = stored(months)
        np.savez(tmp_path / f"{months}.npz", s1=s1, s2=s2)
    script = (
        "import sys, mlflow, numpy as np\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "for months in (3, 5):\n"
        "    batch = np.load(f'{months}.npz')\n"
        "    np.save(f'{months}.npy', model.predict({'s1': batch['s1'], 's2': batch['s2']}))\n"
        "import cropray\n"
        "print(cropray.__file__)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "model")
    for months in (3, 5):
        expected = Predictor(loaded).probabilities(*stored(months))
        np.testing.assert_array_equal(np.load(tmp_path / f"{months}.npy"), expected)

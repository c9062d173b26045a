import numpy as np
import numpy.typing as npt
import pytest
import torch

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.models.normalisation import NORMALISATIONS, FixedNormalisation, Normalisation, SeedNormalisation

Stored = tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]


@pytest.fixture
def stored() -> Stored:
    """Two samples of three months; the sensors' gaps differ."""
    rng = np.random.default_rng(1)
    s1 = rng.integers(-3000, 1500, (2, 2, 3, 8, 8), dtype=np.int16)
    s2 = rng.integers(-50, 12000, (2, 10, 3, 8, 8), dtype=np.int16)
    s1[0, :, 1, :4] = NODATA
    s2[1, :, 0] = NODATA
    s2[0, 3, 2, 0, 0] = NODATA  # one band alone
    return s1, s2


def apply(normalisation: Normalisation, stored: Stored) -> tuple[npt.NDArray[np.float32], ...]:
    outcome = normalisation.apply(*(torch.from_numpy(x) for x in stored))
    assert all(x.dtype == torch.float32 for x in outcome[:2])
    s1, s2, valid = (x.numpy() for x in outcome)
    return s1, s2, valid.astype(bool)


def test_valid_is_where_every_band_of_a_sensor_is(stored: Stored) -> None:
    _, _, valid = apply(FixedNormalisation(), stored)
    assert valid.shape == (2, 2, 3, 8, 8)
    expected = np.ones((2, 2, 3, 8, 8), bool)
    expected[0, 1, 1, :4] = False
    expected[1, 0, 0] = False
    expected[0, 0, 2, 0, 0] = False
    np.testing.assert_array_equal(valid, expected)


def test_fixed_is_a_clipped_z_score_of_physical_values_and_0_in_gaps(stored: Stored) -> None:
    fixed = FixedNormalisation()
    s1, s2, valid = apply(fixed, stored)
    for got, raw, scale, mean, std, ok in (
        (s1, stored[0], 0.01, fixed.s1_mean, fixed.s1_std, valid[:, 1]),
        (s2, stored[1], 0.0001, fixed.s2_mean, fixed.s2_std, valid[:, 0]),
    ):
        for band in range(raw.shape[1]):
            z = (raw[:, band].astype(np.float64) * scale - mean[band]) / std[band]
            expected = np.where(ok, np.clip(z, -fixed.clip, fixed.clip), 0)
            np.testing.assert_allclose(got[:, band], expected, atol=1e-4)


def test_seed_is_the_published_one_month_by_month(stored: Stored) -> None:
    s1, s2, valid = apply(SeedNormalisation(), stored)
    for b in range(2):
        for t in range(3):
            reflectance = stored[1][b, :, t] * 1e-4
            reflectance[:, ~valid[b, 0, t]] = 0
            np.testing.assert_allclose(s2[b, :, t], np.clip(reflectance, 0.0001, 0.9999), atol=1e-6)
            db = stored[0][b, :, t] * 1e-2
            db[:, ~valid[b, 1, t]] = 0
            db = np.clip(db, -25, 10)
            unit = (db - db.min()) / (db.max() - db.min())
            np.testing.assert_allclose(s1[b, :, t], np.clip(unit, 0.0001, 0.9999), atol=1e-6)


def test_seed_makes_a_constant_month_finite() -> None:
    flat = torch.full((1, 2, 1, 4, 4), -900, dtype=torch.int16)
    s1, _, _ = SeedNormalisation().apply(flat, torch.zeros(1, 10, 1, 4, 4, dtype=torch.int16))
    assert torch.isfinite(s1).all()


def test_real_reflectance_and_backscatter_come_out_near_zero_mean_and_unit_spread() -> None:
    # Dense winter wheat in May: dark visible bands, bright near infrared.
    s2 = torch.tensor([300, 600, 350, 900, 2800, 3500, 3700, 3900, 1700, 850], dtype=torch.int16)
    s1 = torch.tensor([-1100, -1800], dtype=torch.int16)
    z1, z2, _ = FixedNormalisation().apply(s1.view(1, 2, 1, 1, 1), s2.view(1, 10, 1, 1, 1))
    assert torch.cat((z1.flatten(), z2.flatten())).abs().max() < 2


@pytest.mark.parametrize("kind", sorted(NORMALISATIONS))
def test_json_gives_the_same_normalisation_back(kind: str) -> None:
    normalisation = NORMALISATIONS[kind]()
    assert Normalisation.from_json(normalisation.to_json()) == normalisation


@pytest.mark.parametrize("data", [{"kind": "other"}, {"clip": 3.0}, {"kind": "fixed", "clips": 3.0}])
def test_an_unknown_normalisation_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is unknown; expected one of fixed, seed"):
        Normalisation.from_json(data)


def test_a_sample_comes_out_alike_among_any_number_of_others() -> None:
    """Some 3,000 pixels are handled at once, the last ones in a part of their own."""
    rng = np.random.default_rng(3)
    s2 = torch.from_numpy(rng.integers(-200, 9000, (7001, 10, 8, 1, 1)).astype(np.int16))
    s1 = torch.from_numpy(rng.integers(-3000, 100, (7001, 2, 8, 1, 1)).astype(np.int16))
    s2[::5, :, 2] = NODATA
    for normalisation in (FixedNormalisation(), SeedNormalisation()):
        together = normalisation.apply(s1, s2)
        for i in (0, 5, 3071, 3072, 6999, 7000):
            alone = normalisation.apply(s1[i : i + 1], s2[i : i + 1])
            assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together, alone, strict=True))

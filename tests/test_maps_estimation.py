"""Estimates from checked pixels: against a published example, other formulas, and the truth of a world."""

from functools import cache

import numpy as np
import pytest

from cropray.grid import Grid
from cropray.maps.estimation import (
    LEAST_IN_UNIT,
    Checked,
    Strata,
    accuracy,
    calibrated,
    class_hectares,
    confusion_hectares,
    plan_sample,
)
from cropray.simulation.landscape import Place, codes_at
from cropray.simulation.noise import uniform

CODES = (211, 213, 232, 216, 221, 222, 240, 223)  # eight crops; all other land is the last class
K = len(CODES) + 1

# Olofsson et al. (2014), tables 5 and 8: deforestation, forest gain, stable forest, stable non-forest.
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])


def published() -> tuple[Checked, Strata]:
    stratum, truth = (np.repeat(index.ravel(), COUNTS.ravel()) for index in np.indices(COUNTS.shape))
    return Checked(stratum, np.full(len(truth), 0.09), stratum, truth), Strata(PIXELS, PIXELS * 0.09)


def everywhere(checked: Checked) -> np.ndarray:
    return np.ones((1, len(checked.truth_n)), bool)


def test_a_published_example_gives_the_published_hectares_and_accuracies() -> None:
    checked, strata = published()
    found, _ = class_hectares(
        checked, strata, np.diag(strata.hectares_h).sum(axis=0)[None], everywhere(checked)
    )
    share = (PIXELS[:, None] * COUNTS / COUNTS.sum(axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(found.value[0], 0.09 * share)
    assert found.value[0, 0] == pytest.approx(21_158, abs=1)
    # The paper's interval is ± 6,158 ha. Ours is a little wider: no stratum counts as free of error.
    assert 6_158 / 1.96 < found.se[0, 0] < 1.05 * 6_158 / 1.96
    assert 6_158 < (found.high[0, 0] - found.low[0, 0]) / 2 < 1.07 * 6_158
    rates = accuracy(checked, strata, 4)
    assert rates["overall"].value[0] == pytest.approx(0.95, abs=0.005)
    np.testing.assert_allclose(rates["users"].value, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(rates["producers"].value, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    for name, half in (("users", [0.07, 0.10, 0.04, 0.02]), ("producers", [0.21, 0.23, 0.03, 0.01])):
        ours = 1.96 * rates[name].se
        assert ((ours > np.array(half) - 0.005) & (ours < 1.15 * np.array(half) + 0.01)).all(), (name, ours)
    np.testing.assert_allclose(confusion_hectares(checked, strata, 4).sum(axis=0), found.value[0])


@cache
def world() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth, an erroneous map, its unsure pixels and the halves of 5 x 5 km of the simulated world."""
    grid = Grid("EPSG:32631", 594_000, 5_600_000, 10, 500, 500)
    place = Place.on(grid, seed=0)

    def classes(name: str) -> np.ndarray:
        codes = codes_at(name, place, 2022)
        return np.select([codes == code for code in CODES], range(K - 1), K - 1)

    truth, mapped = classes("truth"), classes("eucropmap")
    doubt = uniform(1, "doubt", place.cells[0].astype(np.int64))
    unsure = doubt < np.where(truth == mapped, 0.25, 0.75)
    return truth, mapped, unsure, (np.arange(truth.size) // 500) < 250


def drawn(rng: np.random.Generator, members: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Random pixels, as many of each stratum as wanted."""
    return np.concatenate(
        [each[rng.choice(len(each), n, False)] for each, n in zip(members, points, strict=True)]
    )


def planned(
    mapped: np.ndarray, stratum: np.ndarray, truth: np.ndarray, size: int
) -> tuple[Strata, np.ndarray]:
    pixels = np.bincount(stratum)
    strata = Strata(pixels, pixels * 0.01)
    rates = np.zeros((len(pixels), K))
    np.add.at(rates, (stratum, truth), 1)
    wanted = np.append(0.15 * np.bincount(mapped, minlength=K)[:-1] * 0.01 / 1.96, np.inf)
    points, _ = plan_sample(strata, rates / pixels[:, None], wanted, least=25, size=size)
    return strata, points


def coverage(size: int, stratum: np.ndarray, mapped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of 1,000 samples whose interval holds the true hectares (U, K), and the mean error (U, K)."""
    truth, of_strata, _, north = world()
    strata, points = planned(of_strata, stratum, truth, size)
    units = np.stack([np.ones(len(truth), bool), north, ~north])
    true_uk = np.stack([np.bincount(truth[unit], minlength=K) for unit in units]) * 0.01
    mapped_uk = np.stack([np.bincount(mapped[unit], minlength=K) for unit in units]) * 0.01
    members = [np.flatnonzero(stratum == h) for h in range(len(points))]
    rng = np.random.default_rng(5)
    held, told, off = np.zeros((3, K)), np.zeros((3, K)), np.zeros((3, K))
    for _ in range(1000):
        pick = drawn(rng, members, points)
        checked = Checked(stratum[pick], np.full(len(pick), 0.01), mapped[pick], truth[pick])
        found, enough = class_hectares(checked, strata, mapped_uk, units[:, pick])
        told += enough
        held += enough & (found.low <= true_uk) & (true_uk <= found.high)
        off += found.value - true_uk
    return np.divide(held, told, out=np.ones((3, K)), where=told > 20), off / 1000


def test_intervals_hold_the_truth_in_93_to_97_per_cent_of_1000_samples_of_the_world() -> None:
    truth, mapped, unsure, _ = world()
    common = np.bincount(truth, minlength=K) > 0.01 * truth.size
    assert common.sum() == K - 1  # one crop grows on 0.3 % of the land
    held, off = coverage(800, 2 * mapped + unsure, mapped)
    assert (held[0, common] >= 0.93).all()
    assert (held[0, common] <= 0.97).all()
    assert held[:, ~common].min() >= 0.93
    assert held[1:, common].min() >= 0.92  # halves of the land
    true_ha = np.bincount(truth, minlength=K) * 0.01
    assert (np.abs(off[0]) < 0.01 * true_ha).all()


def test_a_sample_serves_another_map_of_the_same_land() -> None:
    """The strata are then no classes of the map."""
    truth, mapped, unsure, _ = world()
    later = np.where(np.random.default_rng(9).random(truth.size) < 0.3, np.roll(mapped, 7), truth)
    held, off = coverage(800, 2 * mapped + unsure, later)
    common = np.bincount(truth, minlength=K) > 0.01 * truth.size
    assert ((held[0, common] >= 0.93) & (held[0, common] <= 0.97)).all()
    assert (np.abs(off[0, common]) < 0.01 * np.bincount(truth)[common] * 0.01).all()


def test_a_unit_or_a_class_with_few_checked_pixels_has_no_estimate() -> None:
    checked, strata = published()
    inside = np.zeros((3, len(checked.truth_n)), bool)
    inside[0], inside[1, : LEAST_IN_UNIT - 1], inside[2, :LEAST_IN_UNIT] = True, True, True
    mapped = np.tile(strata.hectares_h, (3, 1))
    _, enough = class_hectares(checked, strata, mapped, inside)
    assert enough.tolist() == [[True] * 4, [False] * 4, [True, False, False, False]]


def test_unequal_pixels_count_by_their_hectares() -> None:
    """Of a stratum half of whose pixels are twice as large, all small ones bear the class."""
    stratum = np.zeros(200, int)
    truth = np.repeat([0, 1], 100)
    checked = Checked(stratum, np.where(truth == 0, 1.0, 2.0), np.zeros(200, int), truth)
    found, _ = class_hectares(
        checked, Strata(np.array([1000]), np.array([1500.0])), np.array([[1500.0, 0.0]]), everywhere(checked)
    )
    np.testing.assert_allclose(found.value, [[500, 1000]])


def test_the_planned_size_reaches_the_wanted_errors_and_one_point_in_ten_less_does_not() -> None:
    rates = np.array([[0.8, 0.1, 0.1], [0.15, 0.75, 0.1], [0.05, 0.05, 0.9]])
    strata = Strata(np.array([30_000, 10_000, 60_000]), np.array([300.0, 100.0, 600.0]))
    wanted = np.array([0.1 * 300, 0.1 * 100, np.inf]) / 1.96
    points, expected = plan_sample(strata, rates, wanted, least=25)
    assert (expected <= wanted).all()
    scale = strata.hectares_h**2 * (1 - points / strata.pixels_h) / points
    np.testing.assert_allclose(expected, np.sqrt(scale @ (rates * (1 - rates))))
    fewer, worse = plan_sample(strata, rates, wanted, least=25, size=int(0.9 * points.sum()))
    assert fewer.sum() <= 0.9 * points.sum()
    assert (worse > wanted).any()
    everything, nothing = plan_sample(strata, rates, np.full(3, 1e-9), least=25)
    assert everything.tolist() == [30_000, 10_000, 60_000]
    assert nothing.tolist() == [0, 0, 0]


def test_mapped_hectares_are_divided_as_held_out_regions_were() -> None:
    one = np.array([[8, 1, 0], [2, 9, 0], [0, 0, 0]])  # truth in rows; nothing was mapped as the last class
    found = calibrated(np.array([100.0, 50.0, 7.0]), np.stack([one, one]), draws=50, seed=0)
    np.testing.assert_allclose(found.value, [80 + 5, 20 + 45, 7])
    np.testing.assert_allclose([found.low, found.high], [found.value] * 2)  # the blocks are the same
    other = np.array([[5, 0, 0], [5, 10, 0], [0, 0, 0]])
    found = calibrated(np.array([100.0, 50.0, 7.0]), np.stack([one, other]), draws=200, seed=0)
    assert found.low[0] < found.value[0] < found.high[0]

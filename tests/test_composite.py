"""Compositing, against plain computations in float64 and by its properties."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.composite import Orbit, S1Scene, S2Scene, choose_orbits, composite_scenes
from cropray.types import Composite, CompositeRecipe, ImageRequest, Period

MAY = Period(date(2021, 5, 1), date(2021, 6, 1))
CLEAR, CLOUD = 4, 9
NOON = datetime(2021, 5, 10, 12, tzinfo=UTC)
SHAPE = (3, 5)
DEFAULT = CompositeRecipe()


def request(shape: tuple[int, int] = SHAPE, recipe: CompositeRecipe = DEFAULT) -> ImageRequest:
    grid = Grid("EPSG:32631", 0, 0, 10, *shape)
    return ImageRequest(grid, grid, (MAY,), recipe)


def composite(
    s2: Sequence[S2Scene] = (), s1: Sequence[S1Scene] = (), req: ImageRequest | None = None
) -> Composite:
    return composite_scenes(req or request(), lambda _: s2, lambda _: s1)


def optical(values: float | np.ndarray, scl: int | np.ndarray = CLEAR, when: datetime = NOON) -> S2Scene:
    """A scene; a number or (H, W) is the same in all bands."""
    reflectance = np.broadcast_to(np.float32(values), (len(S2_BANDS), *SHAPE)).copy()
    return S2Scene(when, reflectance, np.broadcast_to(np.uint8(scl), SHAPE).copy())


def radar(
    power: float | np.ndarray,
    orbit: int = 1,
    orbit_pass: Any = "ascending",
    contains: bool = True,
    when: datetime = NOON,
) -> S1Scene:
    values = np.broadcast_to(np.float32(power), (len(S1_BANDS), *SHAPE)).copy()
    return S1Scene(when, orbit, orbit_pass, contains, values)


def db(power: float) -> float:
    return 10 * np.log10(power)


seeds = st.integers(0, 2**32 - 1)


def random_optical(seed: int, n: int, shape: tuple[int, int]) -> list[S2Scene]:
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(n):
        values = rng.normal(0.2, 0.2, (len(S2_BANDS), *shape)).astype(np.float32)
        values[:, rng.random(shape) < 0.1] = np.nan
        values[rng.random(values.shape) < 0.01] = np.nan  # one band alone
        scl = rng.choice(np.array([2, 4, 5, 3, 8, 9, 0], np.uint8), shape)
        scenes.append(S2Scene(NOON + timedelta(days=int(rng.integers(0, 20))), values, scl))
    return scenes


def plain_median(scenes: Sequence[S2Scene], invalid: Sequence[int]) -> np.ma.MaskedArray:
    """(C, H, W), one pixel after the other in float64."""
    shape = scenes[0].reflectance_chw.shape
    out = np.ma.masked_all(shape)
    for row in range(shape[1]):
        for col in range(shape[2]):
            views = [
                s.reflectance_chw[:, row, col].astype(float)
                for s in scenes
                if s.scl_hw[row, col] not in invalid and np.isfinite(s.reflectance_chw[:, row, col]).all()
            ]
            if views:
                out[:, row, col] = np.median(views, axis=0)
    return out


@given(seeds, st.integers(1, 17), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_the_median_is_that_of_the_clear_views(seed: int, n: int, shape: tuple[int, int]) -> None:
    scenes = random_optical(seed, n, shape)
    recipe = CompositeRecipe(scl_invalid=(0, 3, 8, 9))
    expected = plain_median(scenes, recipe.scl_invalid)
    got = composite(scenes, req=request(shape, recipe))
    np.testing.assert_array_equal(got.s2_valid_thw[0], ~np.ma.getmaskarray(expected)[0])
    np.testing.assert_allclose(
        got.s2_tchw[0][:, got.s2_valid_thw[0]],
        expected.filled(0)[:, got.s2_valid_thw[0]],
        rtol=2e-7,
        atol=1e-8,
    )


@given(seeds, st.integers(2, 9), st.randoms())
def test_the_order_of_scenes_does_not_matter(seed: int, n: int, random: Any) -> None:
    scenes = random_optical(seed, n, SHAPE)
    rng = np.random.default_rng(seed)
    passes = ("ascending", "descending")
    s1 = [
        radar(rng.lognormal(-2, 1, (2, *SHAPE)), int(rng.integers(1, 4)), passes[rng.integers(2)], False)
        for _ in range(n)
    ]
    one = composite(scenes, s1)
    random.shuffle(scenes)
    random.shuffle(s1)
    other = composite(scenes, s1)
    np.testing.assert_array_equal(one.s2_tchw, other.s2_tchw)
    np.testing.assert_allclose(one.s1_tchw, other.s1_tchw, rtol=1e-6)


def test_a_large_stack_that_needs_several_blocks_is_composed_as_a_small_one() -> None:
    shape = (300, 150)
    scenes = random_optical(1, 7, shape)
    stack = np.ma.stack(
        [
            np.ma.array(
                s.reflectance_chw.astype(float),
                mask=np.broadcast_to(
                    np.isin(s.scl_hw, DEFAULT.scl_invalid) | ~np.isfinite(s.reflectance_chw).all(axis=0),
                    s.reflectance_chw.shape,
                ),
            )
            for s in scenes
        ]
    )
    expected = np.ma.median(stack, axis=0)
    got = composite(scenes, req=request(shape))
    valid = got.s2_valid_thw[0]
    np.testing.assert_array_equal(valid, ~np.ma.getmaskarray(expected)[0])
    np.testing.assert_allclose(got.s2_tchw[0][:, valid], expected.filled(0)[:, valid], rtol=2e-7, atol=1e-8)


@given(st.integers(1, 12), st.floats(-0.125, 1.5, width=32))
def test_the_median_of_constants_is_the_constant(n: int, value: float) -> None:
    np.testing.assert_array_equal(composite([optical(value)] * n).s2_tchw, np.float32(value))


def test_an_even_number_of_views_gives_the_mean_of_the_middle_two() -> None:
    got = composite([optical(v) for v in (0.9, 0.1, 0.2, 0.4)])
    np.testing.assert_allclose(got.s2_tchw, 0.3, rtol=1e-6)


@pytest.mark.parametrize("scl", DEFAULT.scl_invalid)
def test_a_view_that_is_not_clear_counts_nowhere(scl: int) -> None:
    mask = np.full(SHAPE, CLEAR, np.uint8)
    mask[0, 0] = scl
    got = composite([optical(0.5, mask), optical(0.9, CLOUD)])
    assert not got.s2_valid_thw[0, 0, 0]
    assert got.s2_valid_thw.sum() == mask.size - 1
    np.testing.assert_array_equal(got.s2_tchw[0, :, 1:], np.float32(0.5))


def test_a_view_that_lacks_one_band_counts_in_none() -> None:
    incomplete = optical(0.9)
    incomplete.reflectance_chw[3, 1, 1] = np.nan
    got = composite([incomplete, optical(0.1)])
    np.testing.assert_array_equal(got.s2_tchw[0, :, 1, 1], np.float32(0.1))
    np.testing.assert_allclose(got.s2_tchw[0, :, 0, 0], 0.5)
    assert got.s2_valid_thw.all()


def test_a_period_without_scenes_is_all_invalid_and_counted() -> None:
    grid = Grid("EPSG:32631", 0, 0, 10, *SHAPE)
    april = Period(date(2021, 4, 1), date(2021, 5, 1))
    got = composite_scenes(
        ImageRequest(grid, grid, (april, MAY)),
        lambda period: [optical(0.2)] * 3 if period == MAY else [],
        lambda period: [radar(0.1)] if period == MAY else [],
    )
    assert not got.s2_valid_thw[0].any()
    assert not got.s1_valid_thw[0].any()
    assert got.s2_valid_thw[1].all()
    assert got.s1_valid_thw[1].all()
    assert got.scenes == {"s2": (0, 3), "s1": (0, 1)}


def test_one_orbit_is_averaged_in_power_not_in_decibels() -> None:
    got = composite(s1=[radar(0.1), radar(0.3), radar(0.0), radar(np.nan), radar(np.inf)])
    np.testing.assert_allclose(got.s1_tchw, db(0.2), rtol=1e-6)


def test_radar_counts_where_both_polarisations_do() -> None:
    power = np.full((2, *SHAPE), 0.1)
    power[1, 0, 0] = 0
    got = composite(s1=[radar(power), radar(np.where(power > 0, 0.3, np.nan))])
    assert not got.s1_valid_thw[0, 0, 0]
    assert got.s1_valid_thw.sum() == power[0].size - 1


@given(seeds, st.integers(1, 12))
def test_the_mosaic_is_that_of_the_plain_rule(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = [
        radar(
            np.where(rng.random(SHAPE) < 0.4, np.nan, rng.lognormal(-2, 1, (2, *SHAPE))),
            orbit=int(rng.integers(1, 4)),
            orbit_pass=("ascending", "descending")[rng.integers(2)],
            contains=bool(rng.random() < 0.2),
        )
        for _ in range(n)
    ]
    for order in (("ascending", "descending"), ("descending", "ascending"), ("descending",)):
        expected = plain_mosaic(scenes, order)
        got = composite(s1=scenes, req=request(recipe=CompositeRecipe(s1_passes=order)))
        np.testing.assert_array_equal(got.s1_valid_thw[0], np.isfinite(expected[0]))
        np.testing.assert_allclose(got.s1_tchw[0], expected, rtol=1e-5)


def plain_mosaic(scenes: Sequence[S1Scene], order: Sequence[str]) -> np.ndarray:
    for name in order:
        used = [s for s in scenes if s.orbit_pass == name and s.contains_extent]
        if used:
            break
    else:
        used = [s for s in scenes if s.orbit_pass in order]
    layers: dict[tuple[int, int, int], list[np.ndarray]] = {}
    for scene in used:
        same = [
            s for s in used if (s.orbit_pass, s.relative_orbit) == (scene.orbit_pass, scene.relative_orbit)
        ]
        key = (order.index(scene.orbit_pass), -len(same), scene.relative_orbit)
        layers[key] = [s.power_chw.astype(float) for s in same]
    out = np.full((2, *SHAPE), np.nan)
    for key in sorted(layers):
        layer = np.ma.masked_invalid(layers[key]).mean(axis=0)
        out = np.where(np.isnan(out), 10 * np.ma.log10(layer).filled(np.nan), out)
    return out


def test_a_pass_that_contains_the_extent_goes_before_a_preferred_one_that_does_not() -> None:
    scenes = [radar(0.1, 7, "ascending", contains=False), radar(0.4, 3, "descending")]
    got = composite(s1=scenes)
    np.testing.assert_allclose(got.s1_tchw, db(0.4), rtol=1e-6)
    assert got.scenes["s1"] == (1,)


def test_the_orbit_with_most_scenes_lies_on_top_then_the_lower_number() -> None:
    left, right = np.full(SHAPE, np.nan), np.full(SHAPE, np.nan)
    left[:, :3], right[:, 2:] = 1, 1
    twice = [radar(0.1 * left, 9, contains=False)] * 2
    once = [radar(0.2 * right, 2, contains=False), radar(0.3, 5, contains=False)]
    got = composite(s1=[*once, *twice])
    np.testing.assert_allclose(got.s1_tchw[0, 0, 0], [db(0.1)] * 3 + [db(0.2)] * 2, rtol=1e-5)
    equal = composite(s1=[radar(0.3, 5, contains=False), radar(0.2 * right, 2, contains=False)])
    np.testing.assert_allclose(equal.s1_tchw[0, 0, 0], [db(0.3)] * 2 + [db(0.2)] * 3, rtol=1e-5)


def test_orbits_are_chosen_from_counts_of_scenes_alone() -> None:
    passes = ("ascending", "descending")
    first, second = Orbit("ascending", False, 2), Orbit("ascending", False, 9)
    other = Orbit("descending", False, 7)
    counts = {second: 2, first: 2, other: 5}
    assert choose_orbits(counts, passes) == [first, second, other]  # by pass, then the lower number
    assert choose_orbits({**counts, second: 3}, passes) == [second, first, other]  # more scenes first
    whole = Orbit("descending", True, 7)
    assert choose_orbits({**counts, whole: 1}, passes) == [whole]
    assert choose_orbits({**counts, whole: 1}, ("ascending",)) == [first, second]
    assert choose_orbits({}, passes) == []


@pytest.mark.parametrize(
    "when", [datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 4, 30, 23, 59, tzinfo=UTC)]
)
def test_a_scene_outside_its_period_is_refused(when: datetime) -> None:
    with pytest.raises(ValueError, match="2021-05-01 to 2021-06-01"):
        composite([optical(0.2, when=when)])
    with pytest.raises(ValueError, match="2021-05-01 to 2021-06-01"):
        composite(s1=[radar(0.1, when=when)])


def test_a_scene_after_the_as_of_date_is_refused() -> None:
    grid = Grid("EPSG:32631", 0, 0, 10, *SHAPE)
    late = ImageRequest(grid, grid, (MAY,), not_after=date(2021, 5, 31))
    object.__setattr__(late, "not_after", date(2021, 5, 9))  # which a request itself would refuse
    with pytest.raises(ValueError, match="later than the as-of date 2021-05-09"):
        composite([optical(0.2)], req=late)


def test_a_cloud_score_that_scenes_do_not_carry_is_refused() -> None:
    with pytest.raises(InputError, match=r"composite\.cloud_score.*earthengine.*scl_invalid"):
        composite([optical(0.2)], req=request(recipe=CompositeRecipe(cloud_score=0.6)))


def test_a_scene_without_utc_or_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="UTC"):
        optical(0.2, when=NOON.replace(tzinfo=None))
    with pytest.raises(ValueError, match="UTC"):
        radar(0.2, when=NOON.astimezone(timezone(timedelta(hours=3))))
    with pytest.raises(ValueError, match="wanted"):
        S2Scene(NOON, np.zeros((4, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="was offered for a grid"):
        composite([optical(0.2)], req=request((4, 4)))

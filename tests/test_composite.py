"""Compositing, against plain computations in float64 and by its properties."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.composite import composite_scenes
from cropray.imagery.orbits import Orbit, choose_season, monthly_order, season_order
from cropray.imagery.scenes import LostScene, S1Scene, S2Scene, acquisitions
from cropray.types import Composite, CompositeRecipe, ImageRequest, Period

MAY = Period(date(2021, 5, 1), date(2021, 6, 1))
CLEAR, CLOUD = 4, 9
NOON = datetime(2021, 5, 10, 12, tzinfo=UTC)
SHAPE = (3, 5)
DEFAULT = CompositeRecipe()
MONTHLY = CompositeRecipe(s1_orbit_rule="monthly")


def request(shape: tuple[int, int] = SHAPE, recipe: CompositeRecipe = DEFAULT) -> ImageRequest:
    grid = Grid("EPSG:32631", 0, 0, 10, *shape)
    return ImageRequest(grid, grid, (MAY,), recipe)


def composite(
    s2: Sequence[S2Scene | LostScene] = (),
    s1: Sequence[S1Scene | LostScene] = (),
    req: ImageRequest | None = None,
) -> Composite:
    """Of scenes of May. Orbits of a season are chosen by the same scenes."""
    return composite_scenes(
        req or request(), lambda _: s2, lambda *_: s1, lambda r: choose_season(r, lambda *_: s1)
    )


def optical(
    values: float | np.ndarray, scl: int | np.ndarray = CLEAR, when: datetime | None = None, **known: Any
) -> S2Scene:
    """A scene of its own day, unless it is given; a number or (H, W) is the same in all bands."""
    reflectance = np.broadcast_to(np.float32(values), (len(S2_BANDS), *SHAPE)).copy()
    when = when or datetime(2021, 5, 1, 6, tzinfo=UTC) + timedelta(hours=next(days) % 700)
    return S2Scene(when, reflectance, np.broadcast_to(np.uint8(scl), SHAPE).copy(), **known)


days = itertools.count()


def radar(
    power: float | np.ndarray,
    orbit: int = 1,
    orbit_pass: Any = "ascending",
    contains: bool = True,
    when: datetime | None = None,
    **known: Any,
) -> S1Scene:
    """A scene of its own day, unless it is given."""
    values = np.broadcast_to(np.float32(power), (len(S1_BANDS), *SHAPE)).copy()
    when = when or datetime(2021, 5, 1, 6, tzinfo=UTC) + timedelta(hours=next(days) % 700)
    return S1Scene(when, orbit, orbit_pass, contains, values, **known)


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
        scenes.append(S2Scene(NOON + timedelta(hours=len(scenes)), values, scl))
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
    recipe = CompositeRecipe(scl_invalid=(0, 3, 8, 9), max_impossible=1)
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
    req = request(recipe=CompositeRecipe(max_impossible=1))
    one = composite(scenes, s1, req)
    random.shuffle(scenes)
    random.shuffle(s1)
    other = composite(scenes, s1, req)
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
    got = composite([optical(value) for _ in range(n)], req=request(recipe=CompositeRecipe(max_impossible=1)))
    np.testing.assert_array_equal(got.s2_tchw, np.float32(value))


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
        lambda period: [optical(0.2) for _ in range(3)] if period == MAY else [],
        lambda period, _: [radar(0.1)] if period == MAY else [],
        lambda r: choose_season(r, lambda period, _: [radar(0.1)] if period == MAY else []),
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
        recipe = CompositeRecipe(s1_passes=order, s1_orbit_rule="monthly")
        got = composite(s1=scenes, req=request(recipe=recipe))
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
    got = composite(s1=scenes, req=request(recipe=MONTHLY))
    np.testing.assert_allclose(got.s1_tchw, db(0.4), rtol=1e-6)
    assert got.scenes["s1"] == (1,)
    assert got.orbits_s1 == ()


def test_the_orbit_with_most_scenes_lies_on_top_then_the_lower_number() -> None:
    left, right = np.full(SHAPE, np.nan), np.full(SHAPE, np.nan)
    left[:, :3], right[:, 2:] = 1, 1
    twice = [radar(0.1 * left, 9, contains=False) for _ in range(2)]
    once = [radar(0.2 * right, 2, contains=False), radar(0.3, 5, contains=False)]
    got = composite(s1=[*once, *twice], req=request(recipe=MONTHLY))
    np.testing.assert_allclose(got.s1_tchw[0, 0, 0], [db(0.1)] * 3 + [db(0.2)] * 2, rtol=1e-5)
    scenes = [radar(0.3, 5, contains=False), radar(0.2 * right, 2, contains=False)]
    equal = composite(s1=scenes, req=request(recipe=MONTHLY))
    np.testing.assert_allclose(equal.s1_tchw[0, 0, 0], [db(0.3)] * 2 + [db(0.2)] * 3, rtol=1e-5)


def test_orbits_of_a_month_are_chosen_from_counts_of_scenes_alone() -> None:
    passes = ("ascending", "descending")
    first, second = Orbit("ascending", 2), Orbit("ascending", 9)
    other = Orbit("descending", 7)
    counts = {second: 2, first: 2, other: 5}
    assert monthly_order(counts, passes) == [first, second, other]  # by pass, then the lower number
    assert monthly_order({**counts, second: 3}, passes) == [second, first, other]  # more scenes first
    whole = Orbit("descending", 7, contains_extent=True)
    assert monthly_order({**counts, whole: 1}, passes) == [whole]
    assert monthly_order({**counts, whole: 1}, ("ascending",)) == [first, second]
    assert monthly_order({}, passes) == []


def test_orbits_of_a_season_are_chosen_by_the_pixels_that_they_see() -> None:
    passes = ("ascending", "descending")
    few, many, other = Orbit("ascending", 2), Orbit("ascending", 9), Orbit("descending", 7)

    def order(acquired: tuple[int, int, int] = (1, 1, 1), **seen: Any) -> list[Orbit]:
        masks = {o: np.zeros((2, 10, 10), bool) for o in (few, many, other)}
        for orbit, rows in zip(masks, (seen["few"], seen["many"], seen["other"]), strict=True):
            masks[orbit][:, :rows] = True
        return season_order(masks, dict(zip(masks, acquired, strict=True)), passes)

    assert order(few=4, many=10, other=10) == [many, few]  # the preferred pass alone, if it sees all
    assert order((1, 1, 9), few=10, many=10, other=10) == [few, many]  # then the lower number
    assert order((2, 3, 9), few=10, many=10, other=10) == [many, few]  # more acquisitions before
    assert order(few=2, many=3, other=10) == [other]
    assert order(few=0, many=0, other=5) == [other]
    assert order(few=0, many=0, other=0) == [few, many, other]
    west, east = np.zeros((1, 10, 10), bool), np.zeros((1, 10, 10), bool)
    west[..., :7], east[..., 4:] = True, True
    assert season_order({few: east, other: west}, {few: 1, other: 1}, passes) == [other, few]
    assert season_order({few: west, other: west}, {few: 1, other: 1}, ("descending",)) == [other]
    assert season_order({}, {}, passes) == []


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
        composite([optical(0.2, when=NOON)], req=late)


def test_a_cloud_score_that_scenes_do_not_carry_is_refused() -> None:
    with pytest.raises(InputError, match=r"composite\.cloud_score.*earthengine.*scl_invalid"):
        composite([optical(0.2)], req=request(recipe=CompositeRecipe(cloud_score=0.6)))


def test_a_scene_without_utc_is_refused() -> None:
    for when in (NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=3)))):
        with pytest.raises(ValueError, match="UTC"):
            composite([optical(0.2, when=when)])
        with pytest.raises(ValueError, match="UTC"):
            composite(s1=[radar(0.2, when=when)])


# --- an acquisition counts once -----------------------------------------------------------------------

DATES = [datetime(2021, 5, day, 7, 33, 11, tzinfo=UTC) for day in (5, 10, 15)]


def test_a_date_in_two_processing_baselines_counts_once_and_the_newest_wins() -> None:
    old = optical(0.20, when=DATES[0], platform="2a", revision=(2.14, ""))
    new = optical(0.10, when=DATES[0], platform="2a", revision=(5.0, ""))
    others = [optical(v, when=when) for v, when in zip((0.30, 0.50), DATES[1:], strict=True)]
    for scenes in ([old, new, *others], [*others, new, old]):
        got = composite(scenes)
        np.testing.assert_allclose(got.s2_tchw, 0.30, rtol=1e-6)
        assert got.scenes["s2"] == (3,)


def test_the_newest_baseline_wins_where_it_says_cloud() -> None:
    old = optical(0.2, CLEAR, when=DATES[0], platform="2a", revision=(2.14, ""))
    new = optical(0.8, CLOUD, when=DATES[0], platform="2a", revision=(5.0, ""))
    assert not composite([old, new]).s2_valid_thw.any()


def test_a_radar_acquisition_offered_twice_counts_once() -> None:
    twice = [radar(0.1, when=DATES[0], platform="1a", name="a")] * 2
    got = composite(s1=[*twice, radar(0.4, when=DATES[1], platform="1a", name="b")])
    np.testing.assert_allclose(got.s1_tchw, db(0.25), rtol=1e-6)
    assert got.scenes["s1"] == (2,)


def test_overlapping_tiles_of_one_datatake_are_one_view_of_a_pixel() -> None:
    """Tiles are sensed seconds apart. They share the columns in the middle."""
    west, east = np.full(SHAPE, 0.1), np.full(SHAPE, 0.3)
    west[:, 3:], east[:, :2] = np.nan, np.nan
    later = DATES[0] + timedelta(seconds=14)
    tiles = [optical(west, when=DATES[0], name="a"), optical(east, when=later, name="b")]
    (view,) = acquisitions(tiles)
    np.testing.assert_allclose(view.reflectance_chw[0, 0], [0.1, 0.1, 0.3, 0.3, 0.3], rtol=1e-6)
    got = composite([*tiles, optical(0.5, when=DATES[1])])
    np.testing.assert_allclose(got.s2_tchw[0, 0, 0], [0.3, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)
    assert got.scenes["s2"] == (2,)
    slices = [radar(west, when=DATES[0]), radar(east, when=later), radar(0.5, when=DATES[1])]
    np.testing.assert_allclose(
        composite(s1=slices).s1_tchw[0, 0, 0], db(np.array([0.3, 0.3, 0.4, 0.4, 0.4])), rtol=1e-6
    )


def test_two_platforms_and_two_orbits_are_two_acquisitions() -> None:
    scenes = [optical(v, when=DATES[0], platform=name) for v, name in ((0.1, "2a"), (0.3, "2b"))]
    assert len(acquisitions(scenes)) == 2
    assert (
        len(acquisitions([*scenes, optical(0.2, when=DATES[0] + timedelta(minutes=98), platform="2a")])) == 3
    )
    assert len(acquisitions([*scenes, optical(0.2, when=DATES[0])])) == 2  # a platform that is not stated


# --- one radar geometry a season ------------------------------------------------------------------------


def alternating(months: int = 6) -> tuple[ImageRequest, list[S1Scene]]:
    """A season of two orbits with a repeat of 12 days each, which see everything.

    Months have two or three scenes of each, by turns; the second orbit looks more steeply: 1.5 dB more.
    """
    grid = Grid("EPSG:32631", 0, 0, 10, *SHAPE)
    starts = [date(2021, month, 1) for month in range(2, 2 + months + 1)]
    periods = tuple(Period(a, b) for a, b in itertools.pairwise(starts))
    scenes = []
    for number, first_day, more_db in ((15, 0, 0.0), (88, 5, 1.5)):
        day = datetime(2021, 2, 1, 6, tzinfo=UTC) + timedelta(days=first_day)
        while day.date() < starts[-1]:
            scenes.append(radar(10 ** ((-12 + more_db) / 10), number, when=day, platform="1a"))
            day += timedelta(days=12)
    return ImageRequest(grid, grid, periods), scenes


def seasonal(req: ImageRequest, scenes: Sequence[S1Scene]) -> Composite:
    def of(period: Period, *_: Any) -> list[S1Scene]:
        return [scene for scene in scenes if scene.when in period]

    return composite_scenes(req, lambda _: [], of, lambda r: choose_season(r, of))


def test_orbits_that_alternate_by_their_number_of_scenes_do_not_alternate_in_a_season() -> None:
    req, scenes = alternating()
    by_month = seasonal(replace(req, recipe=MONTHLY), scenes)
    jumps = np.abs(np.diff(by_month.s1_tchw[:, 0].mean(axis=(1, 2))))
    assert jumps.max() == pytest.approx(1.5, abs=1e-4)
    assert (jumps > 1).sum() >= 2
    got = seasonal(req, scenes)
    np.testing.assert_allclose(got.s1_tchw, -12, atol=1e-4)
    assert got.orbits_s1 == ("ascending 15", "ascending 88")
    assert got.s1_valid_thw.all()


def test_a_month_without_the_topmost_orbit_shows_the_next() -> None:
    req, scenes = alternating()
    march = req.periods[1]
    kept = [s for s in scenes if s.relative_orbit == 15 or s.when in march]
    kept = [s for s in kept if s.relative_orbit == 88 or s.when not in march]
    got = seasonal(req, kept)
    assert got.orbits_s1 == ("ascending 15", "ascending 88")
    assert got.s1_tchw[:, 0, 0, 0] == pytest.approx([-12, -10.5, -12, -12, -12, -12], abs=1e-4)


def test_a_pass_is_chosen_by_its_pixels_not_by_its_footprint() -> None:
    scenes = [radar(np.nan, 7, "ascending", contains=True), radar(0.4, 3, "descending", contains=False)]
    got = composite(s1=scenes)
    assert got.s1_valid_thw.all()
    np.testing.assert_allclose(got.s1_tchw, db(0.4), rtol=1e-6)
    assert got.orbits_s1 == ("descending 3",)


# --- what cannot be used ----------------------------------------------------------------------------------


def test_a_scene_whose_offset_was_applied_twice_is_left_out_by_name() -> None:
    good = [optical(v, name=f"good {v}") for v in (0.04, 0.05, 0.06)]
    got = composite([*good, optical(0.04 - 0.1, name="shifted")])
    np.testing.assert_allclose(got.s2_tchw, 0.05, rtol=1e-6)
    (line,) = got.lost
    assert line.startswith("shifted: 100% of B02")
    assert got.scenes["s2"] == (3,)
    assert got.impossible["s2"] == (0.0,)


def green(blue: float, shape: tuple[int, int] = (12, 12)) -> S2Scene:
    """A crop, with an SCL of vegetation: dark in visible light, bright in the near infrared."""
    spectrum = np.array([0.0, 0.02, 0.01, 0.05, 0.2, 0.28, 0.3, 0.32, 0.18, 0.09], np.float32) + blue
    values = np.broadcast_to(spectrum[:, None, None], (10, *shape)).copy()
    return S2Scene(DATES[0], values, np.full(shape, 4, np.uint8), f"green {blue}")


def test_an_offset_that_was_left_in_is_found_by_the_vegetation() -> None:
    grid = Grid("EPSG:32631", 0, 0, 10, 12, 12)
    req = replace(request(), grid=grid, extent=grid)
    later = [replace(green(b), when=DATES[0] + timedelta(days=d)) for d, b in ((1, 0.03), (2, 0.05))]
    got = composite([*later, green(0.04 + 0.1)], req=req)
    (line,) = got.lost
    assert line.startswith("green 0.14: the darkest 5% of its vegetation have a B02 of 0.14")
    np.testing.assert_allclose(got.s2_tchw[0, 0], 0.04, rtol=1e-6)
    with pytest.raises(InputError, match=r"1 of 1 Sentinel-2 scenes .*source\.stac\.s2\.offset"):
        composite([green(0.14)], req=req)
    unchecked = replace(req, recipe=CompositeRecipe(max_impossible=1))
    assert composite([green(0.14)], req=unchecked).s2_valid_thw.all()
    bright = green(0.14)
    soil = replace(bright, scl_hw=np.full_like(bright.scl_hw, 5))
    assert composite([soil], req=req).lost == ()  # deserts are as bright


def test_reflectances_that_were_scaled_twice_are_found() -> None:
    grid = Grid("EPSG:32631", 0, 0, 10, 12, 12)
    scene = replace(green(0.04), reflectance_chw=green(0.04).reflectance_chw * np.float32(1e-4))
    with pytest.raises(InputError, match=r"1 of 1 Sentinel-2 scenes .*raster:scale"):
        composite([scene], req=replace(request(), grid=grid, extent=grid))


@pytest.mark.parametrize(
    ("power", "words"),
    [(200.0, "100% of VV lies outside -50 to 10 dB"), (-12.0, "100% of VV"), (1e-7, "100% of VV")],
    ids=["digital numbers of GRD", "dB taken for power", "another unit"],
)
def test_radar_of_another_unit_is_left_out_or_refused(power: float, words: str) -> None:
    good = [radar(0.1, name="good"), radar(0.1, name="fine")]
    got = composite(s1=[*good, radar(power, name="raw")])
    np.testing.assert_allclose(got.s1_tchw, db(0.1), rtol=1e-6)
    assert got.lost[0].startswith(f"raw: {words}")
    with pytest.raises(InputError, match=r"2 of 3 Sentinel-1 scenes cannot be used .*max_lost.*\n*raw.*VV"):
        composite(s1=[good[0], radar(power, name="raw"), radar(power, name="raw too")])


def test_a_share_below_the_limit_is_counted_and_water_is_not() -> None:
    dark = np.full(SHAPE, 0.2)
    dark[0] = -0.05  # a third
    assert composite([optical(dark)]).impossible["s2"] == (pytest.approx(1 / 3),)
    water = np.where(dark < 0, 6, CLEAR)
    strict = CompositeRecipe(max_impossible=0.3)
    with pytest.raises(InputError, match="1 of 1 Sentinel-2 scenes"):
        composite([optical(dark)], req=request(recipe=strict))
    with pytest.raises(InputError, match=r"Sentinel-2 composite of 2021-05 is impossible: 33% of B02"):
        composite([optical(dark, water)], req=request(recipe=strict))


def test_a_dead_scene_is_counted_and_too_many_are_refused() -> None:
    dead = LostScene("S2X", "cannot read B03.tif: 404")
    got = composite([optical(0.2), dead, dead])
    assert got.lost == ("S2X: cannot read B03.tif: 404",)
    for recipe in (CompositeRecipe(max_lost=0.4), CompositeRecipe(max_lost=0)):
        with pytest.raises(InputError, match=r"1 of 2 Sentinel-2 scenes .*S2X: cannot read B03"):
            composite([optical(0.2), dead], req=request(recipe=recipe))
    with pytest.raises(InputError, match=r"1 of 1 Sentinel-1 scenes .*S1X"):
        composite(s1=[LostScene("S1X", "gone")])


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_a_sensor_that_is_not_wanted_is_missing(sensor: str) -> None:
    got = composite([optical(0.2)], [radar(0.1)], request(recipe=CompositeRecipe(sensors=(sensor,))))
    assert got.s1_valid_thw.all() == (sensor == "s1")
    assert got.s2_valid_thw.any() == (sensor == "s2")
    assert got.scenes == {"s2": (int(sensor == "s2"),), "s1": (int(sensor == "s1"),)}

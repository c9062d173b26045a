"""The simulation as imagery: one landscape for all grids, and as hard as reality."""

import pickle
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config.imagery import SimulatedConfig
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.imagery import ImagerySource
from cropray.imagery.simulated import VERSION, PlaceScenes, SimulatedSource
from cropray.simulation.landscape import LAND_COVER_CODES, TRUTH_CODES, Place
from cropray.simulation.noise import gamma_rows, normal, smooth
from cropray.simulation.radar import GAMMA0_DB, ORBITS
from cropray.simulation.sky import cloud_thickness, s2_days
from cropray.simulation.tables import CROPS
from cropray.types import CompositeRecipe, ImageRequest, Period

SOURCE = SimulatedSource(SimulatedConfig())
GRID = Grid("EPSG:32631", 590_000, 5_600_000, 10, 96, 80)
MAY = Period(date(2022, 5, 1), date(2022, 6, 1))
TEN_DAYS = Period(date(2022, 5, 1), date(2022, 5, 11))
MERCATOR = Grid("EPSG:3857", 480_000, 6_500_000, 10, 96, 80)


def request(grid, *periods, extent=None):
    return ImageRequest(grid, extent or grid, periods)


@cache
def whole_of(grid):
    return SOURCE.composite(request(grid, TEN_DAYS))


def test_it_is_a_source_of_imagery():
    assert isinstance(SOURCE, ImagerySource)
    assert pickle.loads(pickle.dumps(SOURCE)).identity() == SOURCE.identity()
    assert SOURCE.identity()["s1_quantity"] == "gamma0"


def test_another_seed_is_another_landscape():
    other = SimulatedSource(SimulatedConfig(seed=1))
    assert (other.class_map("truth", GRID) != SOURCE.class_map("truth", GRID)).mean() > 0.5
    assert other.identity() != SOURCE.identity()


def test_the_pixels_of_this_version_are_known():
    """Any change of them needs another VERSION: figures made with the simulation hold for one version."""
    grid = GRID.window(Window(20, 30, 32, 40))
    months = [Period(date(2022, month, 1), date(2022, month + 1, 1)) for month in range(3, 8)]
    recipe = CompositeRecipe(s1_orbit_rule="monthly")  # the rule may change, the scenes do not
    maps = ("truth", "eucropmap", "land_cover")
    image = SOURCE.composite(ImageRequest(grid, grid, tuple(months), recipe, maps=maps))
    digest = xxhash.xxh3_64()
    for codes in image.maps.values():
        digest.update(codes.tobytes())
    for values, valid in ((image.s2_tchw, image.s2_valid_thw), (image.s1_tchw, image.s1_valid_thw)):
        digest.update(valid.tobytes())
        # Means and spreads by month and band: a processor may round single pixels differently.
        for month, seen in zip(values.astype(np.float64), valid, strict=True):
            for figure in (*month[:, seen].mean(axis=1), *month[:, seen].std(axis=1)):
                digest.update(f"{figure:.5f}".encode())
    assert (VERSION, digest.hexdigest()) == (1, "c9f07c154a49059c")


@pytest.mark.parametrize("grid", [GRID, MERCATOR], ids=lambda grid: grid.crs)
@settings(max_examples=8)
@given(row=st.integers(0, 60), col=st.integers(0, 50), height=st.integers(1, 36), width=st.integers(1, 30))
def test_a_tile_alone_equals_the_same_pixels_of_a_larger_one(grid, row, col, height, width):
    window = Window(row, col, height, width)
    whole = whole_of(grid)
    part = SOURCE.composite(request(grid.window(window), TEN_DAYS, extent=grid))
    s2_valid, s1_valid = (valid[0][window.slices] for valid in (whole.s2_valid_thw, whole.s1_valid_thw))
    np.testing.assert_array_equal(part.s2_valid_thw[0], s2_valid)
    np.testing.assert_array_equal(part.s1_valid_thw[0], s1_valid)
    for values, whole_values, valid in (
        (part.s2_tchw, whole.s2_tchw, s2_valid),
        (part.s1_tchw, whole.s1_tchw, s1_valid),
    ):
        np.testing.assert_array_equal(values[0][:, valid], whole_values[0][:, *window.slices][:, valid])
    for name in ("truth", "eucropmap", "land_cover"):
        np.testing.assert_array_equal(
            SOURCE.class_map(name, grid.window(window)), SOURCE.class_map(name, grid)[window.slices]
        )


def test_two_reference_systems_see_the_same_fields():
    utm = Grid("EPSG:32631", 590_000, 5_600_000, 10, 60, 60)
    finer = Grid("EPSG:32631", 590_000, 5_600_000, 5, 120, 120)
    near = SOURCE.class_map("truth", finer)[::2, ::2] == SOURCE.class_map("truth", utm)
    assert near.mean() > 0.95
    west = Grid("EPSG:32631", 780_000, 5_600_000, 10, 60, 60)
    x, y = Transformer.from_crs(west.crs, "EPSG:32632", always_xy=True).transform(780_300, 5_599_700)
    # One pixel around one place, in the grids of two UTM zones.
    east = Grid("EPSG:32632", x - 5, y + 5, 10, 1, 1)
    pixel = Grid("EPSG:32631", 780_295, 5_599_705, 10, 1, 1)
    assert SOURCE.class_map("truth", east) == SOURCE.class_map("truth", pixel)


def test_scenes_carry_what_a_catalogue_would():
    scenes = list(PlaceScenes.on(GRID, 0).s2_scenes(MAY))
    assert 4 <= len(scenes) <= 7
    assert {(b.when - a.when).days % 5 for a, b in pairwise(scenes)} == {0}
    values = np.stack([scene.reflectance_chw for scene in scenes])
    assert np.isfinite(values).all()
    assert values.min() > 0
    assert values.max() < 1.2
    assert set(np.unique([scene.scl_hw for scene in scenes])) <= {3, 4, 5, 6, 7, 8, 9, 10}


def test_scl_is_right_most_of_the_time_and_misses_some_cloud():
    overcast, caught, clear, kept = 0, 0, 0, 0
    grid = Grid("EPSG:32631", 590_000, 5_600_000, 10, 200, 200)
    place = Place.on(grid, 0)
    for scene in PlaceScenes.on(grid, 0).s2_scenes(Period(date(2022, 3, 1), date(2022, 7, 1))):
        thickness = cloud_thickness(0, place.x, place.y, scene.when.date())
        cloud = thickness > 0.15
        flagged = np.isin(scene.scl_hw.ravel(), (8, 9, 10))
        overcast, caught = overcast + cloud.sum(), caught + (flagged & cloud).sum()
        clear, kept = clear + (thickness == 0).sum(), kept + (~flagged & (thickness == 0)).sum()
    assert 0.90 < caught / overcast < 0.999
    assert 0.97 < kept / clear < 0.9999


def test_months_without_a_clear_view_are_rarer_in_spring_than_in_winter():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(3.85e6, 3.95e6, 2000), rng.uniform(3.0e6, 3.1e6, 2000)

    def unseen(year, month):
        days = s2_days(0, Period(date(year, month, 1), date(year, month, 28)))
        return np.all([cloud_thickness(0, x, y, day) > 0.08 for day in days], axis=0).mean()

    winter = np.mean([unseen(year, month) for year in range(2019, 2024) for month in (12, 1, 2)])
    spring = np.mean([unseen(year, month) for year in range(2019, 2024) for month in (4, 5, 6)])
    # Flanders 2018-2019 and Belgium 2020-2021: all but a few per cent seen in the months of summer;
    # of five winter months in two winters two wholly missing.
    assert 0.06 < winter < 0.40
    assert 0.005 < spring < 0.12


def test_the_orbits_differ_in_coverage_and_one_is_everywhere():
    x, y = np.meshgrid(np.linspace(3.0e6, 5.0e6, 200), np.linspace(2.5e6, 3.5e6, 200))
    ascending, descending = (orbit.covers(x, y) for orbit in ORBITS)
    assert descending.all()
    assert 0.6 < ascending.mean() < 0.95


def test_a_swath_edge_leaves_nodata_and_does_not_contain_the_extent():
    half = []
    for east in range(300_000, 800_000, 5_000):
        grid = Grid("EPSG:32631", east, 5_600_000, 500, 10, 10)
        scenes = [s for s in PlaceScenes.on(grid, 0).s1_scenes(grid, TEN_DAYS) if s.orbit_pass == "ascending"]
        half += [s for s in scenes if np.isnan(s.power_chw).any()]
    assert half
    assert not any(scene.contains_extent for scene in half)


def test_some_acquisitions_are_missing():
    years = Period(date(2015, 1, 1), date(2025, 1, 1))
    days = len(s2_days(0, years))
    assert 0.85 < days / (3653 / 5) < 0.97
    for orbit in ORBITS:
        by_month = pd.Series(1, pd.to_datetime(orbit.days(0, years))).resample("MS").sum()
        assert 0.8 < by_month.sum() / (3653 / 6) < 0.97
        assert by_month.min() <= 1  # a month lost, or nearly


def test_speckle_has_the_looks_of_the_product():
    table = gamma_rows(2.2)
    np.testing.assert_allclose(table.mean(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(table.var(axis=0), 1 / 2.2, rtol=0.06)


def test_noise_is_standard():
    draws = normal(3, "any", np.arange(200_000))
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.02
    rng = np.random.default_rng(0)
    field = smooth(0, "any", rng.uniform(0, 2e4, 100_000), rng.uniform(0, 2e4, 100_000), 50.0)
    assert abs(field.mean()) < 0.02
    assert abs(field.std() - 1) < 0.08


@pytest.fixture(scope="module")
def wide_maps():
    """Codes of all maps over 40 km by 40 km, every 80 m."""
    grid = Grid("EPSG:32631", 570_000, 5_610_000, 80, 500, 500)
    return {name: SOURCE.class_map(name, grid) for name in ("truth", "eucropmap", "land_cover")}


def test_all_crops_and_lands_occur(wide_maps):
    share = {code: (wide_maps["truth"] == code).mean() for code in TRUTH_CODES.values()}
    assert len(set(TRUTH_CODES.values())) == len(TRUTH_CODES)
    assert abs(sum(share.values()) - 1) < 1e-9
    assert all(share[TRUTH_CODES[crop]] > 0.02 for crop in CROPS)
    assert 0.5 < sum(share[TRUTH_CODES[crop]] for crop in CROPS) < 0.75


def test_the_maps_are_wrong_as_stated(wide_maps):
    truth, eucropmap, cover = (wide_maps[name] for name in ("truth", "eucropmap", "land_cover"))
    assert 0.10 < (eucropmap != truth).mean() < 0.20
    crop = np.isin(truth, [TRUTH_CODES[name] for name in CROPS])
    called_crop = cover == LAND_COVER_CODES["maize"]
    assert 0.03 < called_crop[~crop & (truth != TRUTH_CODES["fallow"])].mean() < 0.07
    assert 0.03 < crop[~called_crop].mean() < 0.08


def test_crops_rotate_and_woods_stay():
    now, later = (
        SimulatedSource(SimulatedConfig(year=year)).class_map("truth", GRID) for year in (2022, 2023)
    )
    woods = [TRUTH_CODES[name] for name in ("trees", "built", "water", "grass")]
    np.testing.assert_array_equal(np.isin(now, woods), np.isin(later, woods))
    assert (now != later).mean() > 0.3


def test_maps_come_with_the_composites():
    got = SOURCE.composite(ImageRequest(GRID, GRID, (TEN_DAYS,), maps=("truth", "land_cover")))
    assert list(got.maps) == ["truth", "land_cover"]
    for name, codes in got.maps.items():
        np.testing.assert_array_equal(codes, SOURCE.class_map(name, GRID))


def test_an_unknown_map_is_refused():
    with pytest.raises(InputError, match=r"no map 'soil'.*eucropmap"):
        SOURCE.composite(ImageRequest(GRID, GRID, (TEN_DAYS,), maps=("soil",)))


@pytest.fixture(scope="module")
def spring():
    """Pixels (N, T, 12) of January to August over 24 places, NaN where not seen, and their codes."""
    periods = tuple(Period(date(2022, m, 1), date(2022, m + 1, 1)) for m in range(1, 9))
    rng = np.random.default_rng(5)
    values, codes = [], []
    for lon, lat in zip(rng.uniform(3.7, 5.0, 24), rng.uniform(50.1, 50.8, 24), strict=True):
        grid = Grid.covering((lon, lat, lon + 0.006, lat + 0.004), "EPSG:4326")
        image = SOURCE.composite(request(grid, *periods))
        s2 = np.where(image.s2_valid_thw[:, None], image.s2_tchw, np.nan)
        values.append(np.concatenate([s2, image.s1_tchw - GAMMA0_DB], axis=1).reshape(8, 12, -1))
        codes.append(SOURCE.class_map("truth", grid).ravel())
    return np.concatenate(values, axis=2).transpose(2, 0, 1), np.concatenate(codes)


# Barley and potato have one or two fields in the table: their spread there is not a crop's.
@pytest.mark.parametrize(
    ("real", "crop", "many_fields"),
    [
        ("winter wheat", "winter_wheat", True),
        ("winter barley", "winter_barley", False),
        ("maize", "maize", True),
        ("potato", "potato", False),
        ("sugar beet", "sugar_beet", True),
        ("permanent grass", "grass", True),
    ],
)
def test_signatures_agree_with_measured_ones(spring, shared_data: Path, real, crop, many_fields):
    values, codes = spring
    pixels = values[codes == TRUTH_CODES[crop]]
    table = pd.read_csv(shared_data / "real_signatures.csv")
    table = table[(table["site"] == "Flanders 2019") & (table["crop"] == real)].set_index("month")
    table = table.loc["2019-01":"2019-08"]
    bands = (*S2_NAMES, *S1_NAMES)
    mean, std = (table[[f"{band}_{what}" for band in bands]].to_numpy() for what in ("mean", "std"))
    apart = np.abs(np.nanmean(pixels, axis=0) - mean)
    assert apart[:, :10].mean() < 0.04
    assert apart[:, 10:].mean() < 1.8
    ratio = np.nanstd(pixels, axis=0) / std
    assert np.median(ratio[:, :10]) > 0.8
    assert np.median(ratio[:, 10:]) > 0.8
    if many_fields:
        assert np.median(ratio) < 1.5

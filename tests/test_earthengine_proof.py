"""Through the real client, HTTP and the evaluated graph come the composites of the numpy reducers.

The two share no code: the server evaluates what the source sends as Earth Engine documents it, on
scenes of the simulated world as Earth Engine stores them; `composite_scenes` reduces the same scenes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.config.imagery import EarthEngineConfig, SimulatedConfig
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.imagery.composite import composite_scenes
from cropray.imagery.earthengine.source import EarthEngineSource
from cropray.imagery.orbits import choose_season
from cropray.imagery.scenes import S1Scene, S2Scene
from cropray.imagery.simulated import PlaceScenes, SimulatedSource
from cropray.simulation import radar
from cropray.simulation.landscape import project
from cropray.types import Composite, CompositeRecipe, ImageRequest, Period
from tests.earthengine_server import Catalogue, Limits, Serving, serve
from tests.earthengine_server.catalogue import S1, S2, Gap

MARCH, APRIL, JUNE = (Period(date(2022, m, 1), date(2022, m + 1, 1)) for m in (3, 4, 6))
# The swath of the ascending orbit ends near x = 604,800 m; the descending one is everywhere.
INSIDE = Grid("EPSG:32631", 560_000.0, 5_590_000.0, 10.0, 48, 40)
ACROSS = Grid("EPSG:32631", 604_500.0, 5_590_000.0, 10.0, 40, 64)
BEYOND = Grid("EPSG:32631", 640_000.0, 5_590_000.0, 10.0, 24, 24)
MERCATOR = Grid("EPSG:3857", 420_000.0, 6_520_000.0, 10.0, 32, 32)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve(limits=Limits(per_second=10_000)) as serving:
        yield serving


@pytest.fixture(autouse=True)
def no_fetch_from_outside() -> Iterator[None]:
    with mock.patch("ee.deprecation._FetchDataCatalogStac", return_value={}):
        yield


def source_of(server: Serving, **settings: object) -> EarthEngineSource:
    return EarthEngineSource(EarthEngineConfig(url=server.url, per_second=10_000, **settings))


def reduced(request: ImageRequest, gaps: tuple[Gap, ...] = ()) -> Composite:
    """What the numpy reducers make of the same scenes."""

    def is_missing(name: str, when: datetime) -> bool:
        return any(name == gap and start <= when.date() < end for gap, start, end in gaps)

    def s2(period: Period) -> Iterator[S2Scene]:
        for scene in PlaceScenes.on(request.grid, 0).s2_scenes(period):
            if not is_missing(S2, scene.when):
                yield as_stored(scene, request)

    def s1(period: Period, _: object) -> Iterator[S1Scene]:
        x, y = request.grid.x0 - request.extent.x0, request.extent.y0 - request.grid.y0
        row, col = round(y / request.grid.resolution), round(x / request.grid.resolution)
        rows, cols = Window(row, col, *request.grid.shape).slices
        for scene in PlaceScenes.on(request.extent, 0).s1_scenes(request.extent, period):
            if not is_missing(S1, scene.when):
                yield replace(scene, power_chw=scene.power_chw[:, rows, cols])

    def survey(period: Period, grid: Grid) -> Iterator[S1Scene]:
        for scene in PlaceScenes.on(grid, 0).s1_scenes(request.extent, period):
            if not is_missing(S1, scene.when):
                yield scene

    recipe = replace(request.recipe, cloud_score=None)
    return composite_scenes(
        replace(request, recipe=recipe), s2, s1, lambda request: choose_season(request, survey)
    )


def as_stored(scene: S2Scene, request: ImageRequest) -> S2Scene:
    """Digital numbers; where the recipe asks for a cloud score, SCL says what the score says."""
    dn_chw = np.rint(scene.reflectance_chw.astype(np.float64) * 10_000)
    scl_hw = scene.scl_hw
    if request.recipe.cloud_score is not None:
        place = PlaceScenes.on(request.grid, 0)
        sky = place.sky.at(scene.when.date())
        score = np.round(1 - np.maximum(sky.cloud, 0.6 * sky.shadow).astype(np.float64), 2)
        clear = score.reshape(scl_hw.shape) >= request.recipe.cloud_score
        scl_hw = np.where(clear, 4, 8).astype(np.uint8)
    return S2Scene(scene.when, (dn_chw / 10_000).astype(np.float32), scl_hw)


def assert_same(got: Composite, wanted: Composite) -> None:
    """The same pixels are valid; the integers are those of `wanted`, rounded with halves upwards."""
    np.testing.assert_array_equal(got.s2_valid_thw, wanted.s2_valid_thw)
    np.testing.assert_array_equal(got.s1_valid_thw, wanted.s1_valid_thw)
    stored = np.rint(got.s2_tchw.swapaxes(1, 0)[:, got.s2_valid_thw] / S2_BANDS[0].scale)
    # A median of integers is whole or a half, which float32 only nearly is.
    medians = np.rint(wanted.s2_tchw.swapaxes(1, 0)[:, wanted.s2_valid_thw] / S2_BANDS[0].scale * 2) / 2
    np.testing.assert_array_equal(stored, np.floor(medians + 0.5))
    stored = np.rint(got.s1_tchw.swapaxes(1, 0)[:, got.s1_valid_thw] / S1_BANDS[0].scale)
    exact = wanted.s1_tchw.swapaxes(1, 0)[:, wanted.s1_valid_thw] / S1_BANDS[0].scale
    assert np.abs(stored - exact).max(initial=0) <= 0.5 + 1e-3  # float32 holds dB to some 2e-6


@pytest.mark.parametrize(
    ("extent", "recipe"),
    [
        (INSIDE, CompositeRecipe()),
        (INSIDE, CompositeRecipe(s1_orbit_rule="monthly")),
        (INSIDE, CompositeRecipe(s1_passes=("descending", "ascending"))),
        (INSIDE, CompositeRecipe(scl_invalid=(8, 9, 11))),
        (INSIDE, CompositeRecipe(scl_invalid=())),
        (INSIDE, CompositeRecipe(cloud_score=0.6)),
        (ACROSS, CompositeRecipe()),
        (ACROSS, CompositeRecipe(s1_orbit_rule="monthly")),
        (ACROSS, CompositeRecipe(s1_passes=("ascending",))),
        (BEYOND, CompositeRecipe(s1_passes=("ascending",))),
        (MERCATOR, CompositeRecipe()),
    ],
    ids=[
        *("inside", "inside monthly", "descending first", "scl", "no scl", "cloud score"),
        *("edge", "edge monthly", "one pass", "beyond", "3857"),
    ],
)
def test_composites_are_those_of_the_reducers(server: Serving, extent: Grid, recipe: CompositeRecipe) -> None:
    request = ImageRequest(extent, extent, (MARCH, APRIL, JUNE), recipe)
    got, wanted = source_of(server).composite(request), reduced(request)
    assert_same(got, wanted)
    assert got.orbits_s1 == wanted.orbits_s1
    if recipe.s1_passes == ("ascending",):  # partial coverage, and none
        assert wanted.s1_valid_thw.any() == (extent is ACROSS)
        assert not wanted.s1_valid_thw.all()


def test_orbits_are_laid_over_one_another_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ascending, descending = radar.ORBITS
    end = ascending.edge_m + ascending.swath_m  # of the ascending swath, in the middle of the extent
    others = ((15, 0, end - 200), (117, 1, end - 150))
    orbits = (
        ascending,
        *(replace(ascending, number=n, first_day=day, edge_m=edge) for n, day, edge in others),
        replace(descending, swath_m=249_700.0, edge_m=_descending_across(ACROSS, descending)),
    )
    monkeypatch.setattr(radar, "ORBITS", orbits)
    months = (MARCH, JUNE)
    with serve() as server:
        for passes in (("ascending", "descending"), ("descending", "ascending")):
            for rule in ("season", "monthly"):
                recipe = CompositeRecipe(s1_passes=passes, s1_orbit_rule=rule)
                request = ImageRequest(ACROSS, ACROSS, months, recipe)
                got, wanted = source_of(server).composite(request), reduced(request)
                assert_same(got, wanted)
                assert got.orbits_s1 == wanted.orbits_s1
                assert len(got.orbits_s1) == (3 if rule == "season" else 0)  # one pass sees nearly all
    scenes = list(PlaceScenes.on(ACROSS, 0).s1_scenes(ACROSS, months[0]))
    assert not any(scene.contains_extent for scene in scenes)
    assert {scene.relative_orbit for scene in scenes} == {orbit.number for orbit in orbits}
    across = PlaceScenes.on(ACROSS, 0)
    more, tie = (Counter(s.relative_orbit for s in across.s1_scenes(ACROSS, month)) for month in months)
    assert more[15] != more[117]
    assert tie[15] == tie[117]  # then the lower number


def _descending_across(grid: Grid, orbit: radar.Orbit) -> float:
    """The edge with which a swath begins in the middle of a grid."""
    x, y = grid.bounds[0] + 320, grid.bounds[1] + 200
    world_x, world_y = project(np.array([x]), np.array([y]), grid.crs)
    heading = np.deg2rad(orbit.heading_deg)
    return float(np.mod(np.cos(heading) * world_x - np.sin(heading) * world_y, orbit.spacing_m)[0])


def test_tiles_decide_on_the_whole_extent(server: Serving) -> None:
    # The tile lies within the ascending swath, its ROI does not: the descending pass is taken.
    tile = ACROSS.window(Window(8, 0, 16, 16))
    request = ImageRequest(tile, ACROSS, (MARCH, APRIL))
    alone = replace(request, extent=tile)
    source = source_of(server)
    assert_same(source.composite(request), reduced(request))
    assert_same(source.composite(alone), reduced(alone))
    assert not np.array_equal(source.composite(alone).s1_tchw, source.composite(request).s1_tchw)


def test_months_without_scenes_are_masked_and_nothing_else() -> None:
    gaps: tuple[Gap, ...] = ((S1, MARCH.start, MARCH.end), (S2, APRIL.start, APRIL.end))
    request = ImageRequest(INSIDE, INSIDE, (MARCH, APRIL, JUNE))
    with serve(Catalogue(gaps=gaps)) as server:
        got = source_of(server).composite(request)
    assert_same(got, reduced(request, gaps))
    assert got.s1_valid_thw.any(axis=(1, 2)).tolist() == [False, True, True]
    assert got.s2_valid_thw.any(axis=(1, 2)).tolist() == [True, False, True]


def test_dates_before_the_collections_give_nothing(server: Serving) -> None:
    request = ImageRequest(INSIDE, INSIDE, (Period(date(2013, 5, 1), date(2013, 6, 1)),))
    got = source_of(server).composite(request)
    assert not got.s2_valid_thw.any()
    assert not got.s1_valid_thw.any()


def test_an_acquisition_counts_once_and_its_newest_processing_shows() -> None:
    """Older processings with other values, and tiles that overlap: what is there once gives the same."""
    across_tiles = Grid("EPSG:32631", 592_000.0, 5_590_000.0, 10.0, 16, 16)
    with serve(Catalogue(copies=True)) as server:
        for settings in ({}, {"s1_orbit_rule": "monthly"}, {"cloud_score": 0.6}):
            request = ImageRequest(across_tiles, across_tiles, (MARCH,), CompositeRecipe(**settings))
            assert_same(source_of(server).composite(request), reduced(request))


def alternating(monkeypatch: pytest.MonkeyPatch) -> ImageRequest:
    """Two orbits of one satellite, with a repeat of 12 days, that see everything."""
    ascending, _ = radar.ORBITS
    whole = {"swath_m": ascending.spacing_m, "edge_m": 0.0}
    orbits = (replace(ascending, number=15, **whole), replace(ascending, number=88, **whole))
    monkeypatch.setattr(radar, "ORBITS", orbits)

    def days(orbit: radar.Orbit, _seed: int, period: Period) -> list[date]:
        ordinals = range(period.start.toordinal(), period.end.toordinal())
        return [date.fromordinal(day) for day in ordinals if day % 12 == (0 if orbit.number == 15 else 5)]

    monkeypatch.setattr(radar.Orbit, "days", days)
    months = tuple(Period(date(2022, m, 1), date(2022, m + 1, 1)) for m in range(2, 8))
    small = replace(INSIDE, height=8, width=8)
    return ImageRequest(small, small, months)


def test_a_season_keeps_its_orbit_where_the_number_of_scenes_alternates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = alternating(monkeypatch)
    by_month = [
        Counter(s.relative_orbit for s in PlaceScenes.on(INSIDE, 0).s1_scenes(INSIDE, period))
        for period in request.periods
    ]
    assert len({max(count, key=lambda n: (count[n], -n)) for count in by_month}) == 2  # they alternate
    with serve() as server:
        got = source_of(server).composite(request)
        server.forget()
        assert_same(got, reduced(request))
        monthly = replace(request, recipe=CompositeRecipe(s1_orbit_rule="monthly"))
        assert_same(source_of(server).composite(monthly), reduced(monthly))
    assert [name.split()[0] for name in got.orbits_s1] == ["ascending"] * 2
    assert got.s1_valid_thw.all()


def test_the_orbits_of_a_season_cost_no_request(server: Serving) -> None:
    request = ImageRequest(ACROSS, ACROSS, (MARCH, APRIL, JUNE))
    server.forget()
    got = source_of(server).composite(request)
    assert got.orbits_s1 == ("descending 37",)
    assert server.counters()["requests"] == {"image:computePixels": 1}


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_one_sensor_alone_is_composed(server: Serving, sensor: str) -> None:
    request = ImageRequest(INSIDE, INSIDE, (MARCH, APRIL), CompositeRecipe(sensors=(sensor,)))
    got = source_of(server).composite(request)
    assert_same(got, reduced(request))
    assert got.s1_valid_thw.any() == (sensor == "s1")
    assert got.s2_valid_thw.any() == (sensor == "s2")


@pytest.mark.parametrize(
    ("collection", "change", "words"),
    [
        (S2, lambda dn: dn - 1000, r"Sentinel-2 composite of 2022-06 is impossible: \d+% of B0"),
        (S1, lambda db: 400 * 10 ** (db / 20), "Sentinel-1 composite of 2022-06 is impossible: 100% of VV"),
        (S1, lambda db: 10 ** (db / 10), "Sentinel-1 composite of 2022-06 is impossible: 100% of VH"),
    ],
    ids=["an offset twice", "digital numbers", "power"],
)
def test_impossible_values_that_are_received_are_refused(collection: str, change: Any, words: str) -> None:
    with serve(Catalogue(changed={collection: change})) as server, pytest.raises(InputError, match=words):
        source_of(server).composite(ImageRequest(INSIDE, INSIDE, (JUNE,), name="a tile"))


def test_maps_come_with_the_pixels(server: Serving) -> None:
    request = ImageRequest(ACROSS, ACROSS, (MARCH,), maps=("eucropmap", "land_cover"))
    maps = source_of(server, eucropmap_year=2022).composite(request).maps
    for name, year in (("eucropmap", 2022), ("land_cover", 2021)):
        wanted = SimulatedSource(SimulatedConfig(seed=0, year=year)).class_map(name, ACROSS)
        np.testing.assert_array_equal(maps[name], wanted)


def test_a_map_is_masked_where_it_says_nothing(server: Serving) -> None:
    at_sea = Grid("EPSG:32628", 500_000.0, 5_000_000.0, 10.0, 16, 16)
    request = ImageRequest(at_sea, at_sea, (MARCH,), maps=("eucropmap",))
    assert (source_of(server).composite(request).maps["eucropmap"] == 0).all()


def test_pixels_do_not_depend_on_how_a_request_was_split(server: Serving) -> None:
    large = replace(INSIDE, height=150, width=130)
    request = ImageRequest(large, large, (MARCH, JUNE), maps=("eucropmap",))
    server.forget()
    whole = source_of(server).composite(request)
    assert server.counters()["statuses"] == {"200": 1}
    with serve(limits=Limits(work=80 * 70 * 13, per_second=10_000)) as small:
        split = source_of(small).composite(request)
        counted = small.counters()["statuses"]
    # Halved until 75 x 65 px of one month fit: 2 x 2 x 2 chunks, 7 refused on the way.
    assert counted == {"200": 8, "400": 7}
    for name in ("s2_tchw", "s1_tchw", "s2_valid_thw", "s1_valid_thw"):
        np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))
    np.testing.assert_array_equal(split.maps["eucropmap"], whole.maps["eucropmap"])


def test_a_request_beyond_the_limit_of_bytes_is_sent_in_chunks_and_never_refused(server: Serving) -> None:
    large = replace(INSIDE, height=130, width=40)
    request = ImageRequest(large, large, (MARCH, JUNE), maps=("eucropmap",))
    whole = source_of(server).composite(request)
    most = 100_000  # in the place of 48 MiB, which both count alike; these are 384,800 bytes
    with serve(limits=Limits(response_bytes=most, per_second=10_000)) as narrow:
        config = EarthEngineConfig(url=narrow.url, per_second=10_000)
        split = EarthEngineSource(config, max_bytes=most).composite(request)
        assert narrow.counters()["statuses"] == {"200": 4}
    for name in ("s2_tchw", "s1_tchw", "s2_valid_thw", "s1_valid_thw"):
        np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))
    np.testing.assert_array_equal(split.maps["eucropmap"], whole.maps["eucropmap"])


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("missing", "'missing' exists"),
        ("disabled", "enable the Earth Engine API"),
        ("forbidden", "needs the roles"),
        ("unregistered", "register 'unregistered'"),
    ],
)
def test_a_project_that_cannot_be_used_is_explained(server: Serving, project: str, words: str) -> None:
    request = ImageRequest(INSIDE, INSIDE, (MARCH,))
    with pytest.raises(InputError, match=words):
        source_of(server, project=project).preflight(request)

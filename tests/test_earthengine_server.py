"""The server answers the real client as Earth Engine documents it; see `earthengine_server`."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import ee
import numpy as np
import pytest

from cropray.bands import S2_BANDS
from cropray.config.imagery import SimulatedConfig
from cropray.grid import Grid
from cropray.imagery.simulated import PlaceScenes, SimulatedSource
from cropray.types import Period
from tests.earthengine_client import connected, pixels_of, pixels_on
from tests.earthengine_server import Catalogue, Fault, Limits, Serving, serve
from tests.earthengine_server.catalogue import CLOUD_SCORE, S1, S2

GRID = Grid("EPSG:32631", 600_000.0, 5_590_000.0, 10.0, 20, 24)
MARCH = Period(date(2022, 3, 1), date(2022, 4, 1))
JUNE = Period(date(2022, 6, 1), date(2022, 7, 1))


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve(limits=Limits(per_second=10_000)) as serving, connected(serving.url):
        yield serving


@pytest.fixture(autouse=True)
def without_faults(server: Serving) -> Iterator[None]:
    yield
    server.plan()


def s2(period: Period = MARCH) -> ee.ImageCollection:
    return ee.ImageCollection(S2).filterDate(str(period.start), str(period.end))


def constants(*values: float) -> ee.ImageCollection:
    return ee.ImageCollection([ee.Image.constant(value).rename("b") for value in values])


def posted(url: str, body: bytes) -> tuple[int, dict[str, str]]:
    """Status and error of a computation that is refused."""
    request = urllib.request.Request(f"{url}/v1/projects/any/value:compute", body, method="POST")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request)
    return refusal.value.code, json.loads(refusal.value.read())["error"]


def at_one_pixel(image: ee.Image) -> np.void:
    return pixels_of(image, Grid("EPSG:32631", 600_000.0, 5_590_000.0, 10.0, 1, 1))[0, 0]


def test_every_scene_is_the_world_at_the_centres_of_the_pixels(server: Serving) -> None:
    scenes = list(PlaceScenes.on(GRID, 0).s2_scenes(MARCH))
    assert s2().size().getInfo() == len(scenes) > 3
    for scene in scenes:
        day = Period(scene.when.date(), scene.when.date() + timedelta(1))
        got = pixels_of(ee.Image(s2(day).first()), GRID)
        assert got.dtype.names == (*(band.ee for band in S2_BANDS), "SCL")
        for band, reflectance in zip(S2_BANDS, scene.reflectance_chw, strict=True):
            assert got[band.ee].dtype == np.uint16
            np.testing.assert_array_equal(got[band.ee], np.rint(reflectance.astype(float) * 10_000))
        np.testing.assert_array_equal(got["SCL"], scene.scl_hw)


def test_a_turned_grid_is_sampled_pixel_by_pixel(server: Serving) -> None:
    image = ee.Image(s2().first()).select("B8")
    a, b, c, d, e, f = 8.0, 6.0, 600_000.0, 6.0, -8.0, 5_590_000.0
    got = pixels_on(image, "EPSG:32631", (a, b, c, d, e, f), (4, 5))["B8"]
    for row, col in ((0, 0), (3, 1), (2, 4)):
        x, y = a * (col + 0.5) + b * (row + 0.5) + c, d * (col + 0.5) + e * (row + 0.5) + f
        around = Grid("EPSG:32631", x - 5, y + 5, 10.0, 1, 1)
        assert pixels_of(image, around)["B8"] == got[row, col]


def test_backscatter_is_double_decibels_within_the_swath(server: Serving) -> None:
    on_edge = Grid("EPSG:32631", 600_000.0, 5_590_000.0, 400.0, 20, 40)
    seen = []
    for scene in PlaceScenes.on(on_edge, 0).s1_scenes(on_edge, MARCH):
        day = Period(scene.when.date(), scene.when.date() + timedelta(1))
        images = ee.ImageCollection(S1).filterDate(str(day.start), str(day.end))
        image = ee.Image(
            images.filter(ee.Filter.eq("relativeOrbitNumber_start", scene.relative_orbit)).first()
        )
        got = pixels_of(image.addBands(image.mask().rename(["VVm", "VHm"])), on_edge)
        valid = np.isfinite(scene.power_chw[0])
        seen.append(valid.mean())
        assert got["VV"].dtype == np.float64
        np.testing.assert_array_equal(got["VVm"], valid)
        np.testing.assert_allclose(10 ** (got["VH"][valid] / 10), scene.power_chw[1][valid], rtol=1e-6)
        assert (got["VV"][~valid] == 0).all()
    assert min(seen) < 1 == max(seen)


def test_footprints_contain_what_their_orbit_covers(server: Serving) -> None:
    inside, across, beyond = (
        Grid("EPSG:32631", x, 5_590_000.0, 10.0, 64, 64) for x in (560_000.0, 604_500.0, 640_000.0)
    )
    for grid in (inside, across, beyond):
        x0, y0, x1, y1 = grid.bounds
        area = ee.Geometry.Polygon([[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]], grid.crs, False)
        scenes = ee.ImageCollection(S1).filterDate(str(MARCH.start), str(MARCH.end))
        touching = scenes.filterBounds(area)
        containing = scenes.filter(ee.Filter.contains(".geo", area))
        expected = list(PlaceScenes.on(grid, 0).s1_scenes(grid, MARCH))
        for collection, wanted in (
            (touching, [scene.relative_orbit for scene in expected]),
            (containing, [scene.relative_orbit for scene in expected if scene.contains_extent]),
        ):
            got = collection.aggregate_array("relativeOrbitNumber_start").getInfo()
            assert sorted(got) == sorted(wanted)


def test_dates_are_half_open(server: Serving) -> None:
    when = datetime(2022, 3, 5, 10, 50, tzinfo=UTC)
    days = s2().aggregate_array("system:time_start").getInfo()
    first = datetime.fromtimestamp(days[0] / 1000, UTC)
    assert first.replace(day=5) == when
    start, end = (ee.Date(first.timestamp() * 1000), ee.Date(first.timestamp() * 1000).advance(1, "month"))
    assert ee.ImageCollection(S2).filterDate(start, end).size().getInfo() >= len(days) - 1
    assert ee.ImageCollection(S2).filterDate("2022-03-01", start).size().getInfo() == 0


def test_medians_and_means_leave_out_what_is_masked(server: Serving) -> None:
    place = Grid("EPSG:32631", 600_000.0, 5_590_000.0, 40.0, 40, 40)
    classes = [0, 1, 3, 8, 9, 10, 11]

    def clear(image: ee.Image) -> ee.Image:
        return image.updateMask(image.select("SCL").remap(classes, [0] * len(classes), 1))

    views = s2(JUNE).map(clear).select(["B4", "B8"])
    got = pixels_of(views.median().addBands(views.mean().rename(["m4", "m8"])), place)
    scenes = list(PlaceScenes.on(place, 0).s2_scenes(JUNE))
    stack = np.ma.masked_array(
        [np.rint(scene.reflectance_chw[6].astype(float) * 10_000) for scene in scenes],
        [np.isin(scene.scl_hw, classes) for scene in scenes],
    )
    assert got["B8"].dtype == got["m8"].dtype == np.float64
    assert 0 < stack.mask.all(axis=0).mean() < 1
    np.testing.assert_array_equal(got["B8"], np.ma.median(stack, axis=0).filled(0))
    np.testing.assert_allclose(got["m8"], stack.mean(axis=0).filled(0))


def test_types_of_reductions_and_of_arithmetic(server: Serving) -> None:
    bands = {
        "ints": constants(1, 2).median(),
        "floats": constants(1, 2).map(lambda image: image.toFloat()).median(),
        "quotient": ee.Image(7).divide(2),
        "by_zero": ee.Image(7).divide(0),
        "half": ee.Image(10.5).round(),
        "minus_half": ee.Image(-10.5).round(),
        "truncated": ee.Image(-1.7).toInt16(),
        "clamped": ee.Image(70_000).toInt16(),
        "byte": ee.Image(300).toByte(),
        "boolean": ee.Image(3).gt(2),
        "sum": ee.Image(200).toByte().add(ee.Image(100).toByte()),
        "log": ee.Image(100.0).log10(),
    }
    got = at_one_pixel(ee.Image.cat([image.rename(name) for name, image in bands.items()]))
    values = {name: (got[name].item(), got[name].dtype.name) for name in bands}
    assert values == {
        "ints": (1.5, "float64"),
        "floats": (1.5, "float32"),
        "quotient": (3.5, "float32"),
        "by_zero": (0.0, "float32"),
        "half": (11, "int64"),
        "minus_half": (-10, "int64"),
        "truncated": (-1, "int16"),
        "clamped": (32767, "int16"),
        "byte": (255, "uint8"),
        "boolean": (1, "uint8"),
        "sum": (300, "uint16"),
        "log": (2.0, "float64"),
    }


def test_the_last_image_of_a_mosaic_lies_on_top(server: Serving) -> None:
    masked = ee.Image.constant(9).rename("b").updateMask(0)
    assert at_one_pixel(constants(1, 2, 3).mosaic())["b"] == 3
    assert at_one_pixel(constants(1, 2).merge(ee.ImageCollection([masked])).mosaic())["b"] == 2
    ordered = ee.ImageCollection([ee.Image(n).set("order", n) for n in (2, 3, 1)])
    assert at_one_pixel(ordered.sort("order", False).mosaic())["constant"] == 1


def test_collections_that_are_not_homogeneous_are_refused(server: Serving) -> None:
    mixed = ee.ImageCollection([ee.Image(1), ee.Image(1.5)])
    uneven = ee.ImageCollection([ee.Image([1, 2]), ee.Image(1)])
    for image in (mixed.median(), mixed.mosaic(), uneven.mean()):
        with pytest.raises(ee.EEException, match="Expected a homogeneous image collection"):
            at_one_pixel(image)


def test_unmask_stays_within_the_footprint_unless_told(server: Serving) -> None:
    outside = Grid("EPSG:32631", 640_000.0, 5_590_000.0, 10.0, 2, 2)
    ascending = ee.ImageCollection(S1).filter(ee.Filter.eq("relativeOrbitNumber_start", 88)).first()
    vv = ee.Image(ascending).select("VV")
    assert (pixels_of(vv.unmask(-99.0), outside)["VV"] == 0).all()
    assert (pixels_of(vv.unmask(-99.0, False), outside)["VV"] == -99).all()


def test_bands_of_an_empty_collection_and_of_wrong_names_are_refused(server: Serving) -> None:
    empty = s2(Period(date(2010, 1, 1), date(2010, 2, 1)))
    assert empty.median().bandNames().getInfo() == []
    with pytest.raises(ee.EEException, match=r"Band pattern 'B4' did not match any bands"):
        pixels_of(empty.median().select("B4"), GRID)
    with pytest.raises(ee.EEException, match="Image has no bands"):
        pixels_of(empty.median(), GRID)
    with pytest.raises(ee.EEException, match="'COPERNICUS/S9' not found"):
        ee.ImageCollection("COPERNICUS/S9").size().getInfo()


def test_what_is_not_evaluated_is_named(server: Serving) -> None:
    with pytest.raises(ee.EEException, match=r"Image\.pixelLonLat is not evaluated"):
        pixels_of(ee.Image.pixelLonLat(), GRID)
    with pytest.raises(ee.EEException, match=r"Reducer\.median: argument 'maxRaw' is not evaluated"):
        pixels_of(constants(1).reduce(ee.Reducer.median(maxRaw=5)), GRID)
    with pytest.raises(ee.EEException, match="Fractional masks"):
        pixels_of(ee.Image(1).updateMask(0.5), GRID)

    def sent(name: str, **arguments: object) -> str:
        values = {key: {"constantValue": value} for key, value in arguments.items()}
        node = {"functionInvocationValue": {"functionName": name, "arguments": values}}
        body = json.dumps({"expression": {"result": "0", "values": {"0": node}}}).encode()
        status, answer = posted(server.url, body)
        assert (status, answer["status"]) == (400, "INVALID_ARGUMENT")
        return answer["message"]

    assert sent("Image.invent", value=1) == "No such function: 'Image.invent'."
    assert "no argument 'times'" in sent("Number.add", left=1, right=2, times=3)
    assert "'right' is missing" in sent("Number.add", left=1)


def test_cloud_scores_are_linked_by_index_and_follow_the_clouds(server: Serving) -> None:
    linked = s2().linkCollection(ee.ImageCollection(CLOUD_SCORE), ["cs_cdf"])
    scores, classes = [], []
    for index in range(s2().size().getInfo()):
        got = pixels_of(ee.Image(linked.toList(20).get(index)).select(["cs_cdf", "SCL"]), GRID)
        scores.append(got["cs_cdf"])
        classes.append(got["SCL"])
    scores, cloudy = np.stack(scores), np.isin(classes, (8, 9))
    assert 0 <= scores.min() < scores.max() == 1
    assert scores[cloudy].mean() < 0.4 < 0.8 < scores[np.isin(classes, (4, 5))].mean()


@pytest.mark.parametrize(
    ("asset", "year", "name", "band"),
    [
        ("JRC/D5/EUCROPMAP/V1", 2018, "eucropmap", "classification"),
        ("JRC/D5/EUCROPMAP/V1", 2022, "eucropmap", "classification"),
        ("ESA/WorldCover/v200", 2021, "land_cover", "Map"),
    ],
)
def test_maps_are_those_of_the_world_in_their_year(
    server: Serving, asset: str, year: int, name: str, band: str
) -> None:
    images = ee.ImageCollection(asset).filterDate(f"{year}-01-01", f"{year + 1}-01-01")
    wanted = SimulatedSource(SimulatedConfig(seed=0, year=year)).class_map(name, GRID)
    np.testing.assert_array_equal(pixels_of(images.mosaic(), GRID)[band], wanted)


def test_limits_are_those_of_the_service(server: Serving) -> None:
    stack = ee.Image.constant([0] * 72).toInt16()
    with pytest.raises(ee.EEException, match=r"Total request size \(50544000 bytes\)"):
        pixels_on(stack, "EPSG:32631", GRID.transform, (468, 500))
    with pytest.raises(ee.EEException, match=r"dimensions \(32769x1\) must be less than or equal to 32768"):
        pixels_on(stack, "EPSG:32631", GRID.transform, (1, 32_769))
    status, answer = posted(server.url, b" " * (10 << 20) + b"{}")
    assert (status, answer["message"]) == (400, "Request payload size exceeds the limit: 10485760 bytes.")


def test_memory_ends_where_the_work_is_too_much() -> None:
    with serve(limits=Limits(work=1000)) as server, connected(server.url):
        pixels_on(ee.Image(1), "EPSG:32631", GRID.transform, (25, 40))
        with pytest.raises(ee.EEException, match="User memory limit exceeded"):
            pixels_on(ee.Image([1, 2]), "EPSG:32631", GRID.transform, (25, 40))


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault("429"), ee.EEException, "Too many concurrent"),
        (Fault("403_rate"), ee.EEException, "Rate Limit"),
        (Fault("500"), ee.EEException, "internal error"),
        (Fault("503"), ee.EEException, "unavailable"),
        (Fault("html"), ee.EEException, None),
        (Fault("drop"), ConnectionError, None),
        (Fault("truncate"), ConnectionError, None),
        (Fault("delay", seconds=2), TimeoutError, None),
        (Fault("memory"), ee.EEException, "User memory limit exceeded"),
        (Fault("timeout"), ee.EEException, "Computation timed out"),
        (Fault("size"), ee.EEException, "Total request size"),
        (Fault("garbage"), ValueError, None),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_faults_reach_the_client_as_its_own_errors(
    server: Serving, fault: Fault, error: type[Exception], words: str | None
) -> None:
    ee.data.setDeadline(1000)
    try:
        server.plan(fault)
        with pytest.raises(error, match=words):
            pixels_of(ee.Image(1), GRID)
        server.plan(Fault(fault.kind, times=0, seconds=fault.seconds))
        assert (pixels_of(ee.Image(1), GRID)["constant"] == 1).all()
    finally:
        ee.data.setDeadline(0)


def test_an_array_can_come_a_row_short(server: Serving) -> None:
    server.plan(Fault("shape"))
    assert pixels_of(ee.Image(1), GRID).shape == (GRID.height - 1, GRID.width)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ('{"faults": [{"kind": "504"}]}', "no fault of kind '504'; wanted one of 429, 403_rate"),
        ('{"faults": [{"kind": "503", "often": 1}]}', "'often'"),
        ('{"faults": 3}', "wanted a list of faults"),
        ('{"fault": []}', "'fault'"),
        ("503", "no plan of faults"),
        ("none", "no plan of faults"),
    ],
)
def test_a_plan_that_means_nothing_is_refused_and_the_last_one_holds(
    server: Serving, plan: str, words: str
) -> None:
    def send(text: str) -> None:
        urllib.request.urlopen(f"{server.url}/-/faults", text.encode()).close()

    send('{"faults": [{"kind": "503"}], "seed": 4}')
    with pytest.raises(urllib.error.HTTPError) as refusal:
        send(plan)
    assert words in json.loads(refusal.value.read())["error"]["message"]
    with pytest.raises(ee.EEException, match="unavailable"):
        pixels_of(ee.Image(1), GRID)


def test_the_same_requests_meet_the_same_faults(server: Serving) -> None:
    def outcomes(seed: int) -> list[bool]:
        server.plan(Fault("503", share=0.3), seed=seed)
        good = []
        for number in range(40):
            try:
                at_one_pixel(ee.Image(number))
                good.append(True)
            except ee.EEException:
                good.append(False)
        return good

    first = outcomes(1)
    assert outcomes(1) == first != outcomes(2)
    assert 4 < first.count(False) < 20


def test_the_book_counts_requests_in_flight_and_bytes() -> None:
    with serve(latency=0.2, limits=Limits(in_flight=4)) as server, connected(server.url):

        def ask(number: int) -> bool:
            try:
                at_one_pixel(ee.Image(number))
            except ee.EEException:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            good = list(pool.map(ask, range(6)))
        counted = server.counters()
        assert counted["requests"] == {"image:computePixels": 6}
        assert (good.count(True), counted["statuses"]) == (4, {"200": 4, "429": 2})
        assert (counted["in_flight"], counted["in_flight_max"]) == (0, 6)
        assert counted["grids_served"] == {"EPSG:32631 600000.0 5590000.0 1x1": 4}
        assert counted["bytes_out"] > 4 * 128
        server.forget()
        assert server.counters()["requests"] == {}


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("missing", "not found"),
        ("disabled", "has not been used in project disabled"),
        ("forbidden", "required permission"),
        ("unregistered", "not registered"),
    ],
)
def test_projects_that_cannot_be_used_are_refused(project: str, words: str) -> None:
    with serve() as server, pytest.raises(ee.EEException, match=words), connected(server.url, project):
        pytest.fail("the client was initialised")


def test_scenes_can_be_taken_away() -> None:
    gap = (S1, MARCH.start, MARCH.end)
    with serve(Catalogue(gaps=[gap])) as server, connected(server.url):
        scenes = ee.ImageCollection(S1)
        assert scenes.filterDate("2022-03-01", "2022-04-01").size().getInfo() == 0
        assert scenes.filterDate("2022-04-01", "2022-05-01").size().getInfo() > 0


def test_it_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text('[{"kind": "503", "times": 1}]')
    command = [sys.executable, "-m", "tests.earthengine_server", "--latency", "0.01", "--faults", str(faults)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with connected(url):
                with pytest.raises(ee.EEException, match="unavailable"):
                    at_one_pixel(ee.Image(5))
                assert at_one_pixel(ee.Image(5))["constant"] == 5
            counted = json.load(urllib.request.urlopen(f"{url}/-/counters"))
            assert counted["faults"] == {"503": 1}
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0

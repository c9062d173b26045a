"""Scenes from STAC items: numbers to reflectance and power, what is refused, files, an API, real data."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.transform import Affine

from cropray.bands import S2_NAMES
from cropray.config import Config
from cropray.config.imagery import StacCollectionConfig, StacConfig, StacSentinel1Config, StacSentinel2Config
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.imagery import ImagerySource, open_source
from cropray.imagery.stac import StacSource, open_catalogue
from cropray.imagery.stac_items import Scaling, backscatter, find_asset, orbit, reflectance_scaling
from cropray.types import Composite, CompositeRecipe, ImageRequest, Period
from tests.flanders import X0, Y0, build, open_series
from tests.stac_server import serve

GRID = Grid("EPSG:32639", 500_000, 3_900_000, 10, 8, 12)
JANUARY = Period(date(2022, 1, 1), date(2022, 2, 1))
FEBRUARY = Period(date(2022, 2, 1), date(2022, 3, 1))
GAMMA0 = {"card4l:measurement_type": "gamma0", "card4l:measurement_convention": "power"}


def outline(grid: Grid, margin_m: float = 200) -> dict[str, Any]:
    """GeoJSON footprint (lon, lat) that reaches `margin_m` beyond a grid."""
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    box = shapely.segmentize(shapely.box(*grid.bounds).buffer(margin_m, join_style="mitre"), 50)
    return shapely.geometry.mapping(shapely.transform(box, to_degrees.transform, interleaved=False))


def write_tiff(path: Path, values: np.ndarray, grid: Grid, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": values.dtype}
    transform = Affine(*grid.transform) @ Affine.scale(grid.width / width, grid.height / height)
    with rasterio.open(path, "w", **profile, **{"crs": grid.crs, "transform": transform, **options}) as file:
        file.write(values, 1)


def make_item(
    name: str, when: str, properties: dict[str, Any], *, grid: Grid = GRID, footprint: Grid | None = None
) -> pystac.Item:
    geometry = outline(footprint or grid)
    return pystac.Item(
        id=name,
        geometry=geometry,
        bbox=list(shapely.geometry.shape(geometry).bounds),
        datetime=datetime.fromisoformat(when).replace(tzinfo=UTC),
        properties={"proj:code": grid.crs, **properties},
        collection="scenes",
    )


def s2_item(
    folder: Path,
    name: str,
    when: str,
    numbers: int | np.ndarray,
    properties: dict[str, Any],
    *,
    scl: int | np.ndarray = 4,
    grid: Grid = GRID,
    band: dict[str, Any] | None = None,
) -> pystac.Item:
    """An item with all bands of the same numbers (10 m) and an SCL of 20 m, in files under `folder`."""
    item = make_item(name, when, properties, grid=grid)
    for key in S2_NAMES:
        values = np.broadcast_to(np.asarray(numbers, np.uint16), grid.shape)
        write_tiff(folder / name / f"{key}.tif", values, grid)
        fields = {} if band is None else {"raster:bands": [band]}
        item.add_asset(key, pystac.Asset(f"./{name}/{key}.tif", extra_fields=fields))
    classes = np.broadcast_to(np.asarray(scl, np.uint8), (grid.height // 2, grid.width // 2))
    write_tiff(folder / name / "SCL.tif", classes, grid)
    item.add_asset("SCL", pystac.Asset(f"./{name}/SCL.tif"))
    return item


def s1_item(
    folder: Path,
    name: str,
    when: str,
    values: float | np.ndarray,
    properties: dict[str, Any] = GAMMA0,
    *,
    orbit: int = 94,
    orbit_pass: str = "ascending",
    grid: Grid = GRID,
    footprint: Grid | None = None,
    band: dict[str, Any] | None = None,
) -> pystac.Item:
    sat = {"sat:orbit_state": orbit_pass, "sat:relative_orbit": orbit}
    item = make_item(name, when, {**sat, **properties}, grid=grid, footprint=footprint)
    for key in ("vv", "vh"):
        data = np.broadcast_to(np.asarray(values, np.float32), grid.shape)
        write_tiff(folder / name / f"{key}.tif", data, grid)
        fields = {} if band is None else {"raster:bands": [band]}
        item.add_asset(key, pystac.Asset(f"./{name}/{key}.tif", extra_fields=fields))
    return item


def source(
    folder: Path,
    s2: Sequence[pystac.Item] = (),
    s1: Sequence[pystac.Item] = (),
    s2_settings: dict[str, Any] | None = None,
    s1_settings: dict[str, Any] | None = None,
) -> StacSource:
    for name, items in (("s2", s2), ("s1", s1)):
        filler = [s1_item(folder, "filler", "1999-01-01", 0.1)] if name == "s1" else []
        path = folder / f"{name}.json"
        path.write_text(json.dumps(pystac.ItemCollection([*items, *(filler if not items else [])]).to_dict()))
    if not s2:
        (folder / "s2.json").write_text(
            json.dumps(pystac.ItemCollection([s2_item(folder, "old", "1999-01-01", 1, {})]).to_dict())
        )
    return StacSource(
        StacConfig(
            s2=StacSentinel2Config(items=str(folder / "s2.json"), **(s2_settings or {})),
            s1=StacSentinel1Config(items=str(folder / "s1.json"), **(s1_settings or {})),
        )
    )


def composite(
    src: ImagerySource,
    grid: Grid = GRID,
    extent: Grid | None = None,
    periods: tuple[Period, ...] = (JANUARY, FEBRUARY),
    **recipe: Any,
) -> Composite:
    return src.composite(ImageRequest(grid, extent or grid, periods, CompositeRecipe(**recipe)))


# --- Sentinel-2: numbers to reflectance -------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "band", "offset"),
    [
        ({"s2:processing_baseline": "03.01"}, None, 0.0),
        ({"s2:processing_baseline": "04.00"}, None, -0.1),
        ({"s2:processing_baseline": "05.11"}, None, -0.1),
        ({"processing:version": "05.10"}, {"scale": 1e-4, "offset": -0.1}, -0.1),
        ({}, {"scale": 1e-4, "offset": -0.1}, -0.1),
        ({}, {"offset": 0}, 0.0),
        ({"s2:processing_baseline": "05.00"}, {"offset": 0}, 0.0),
        ({"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": True}, None, 0.0),
        ({"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": True}, {"offset": -0.1}, 0.0),
        (
            {"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": False},
            {"offset": -0.1},
            -0.1,
        ),
        ({"s2:processing_baseline": "02.14", "earthsearch:boa_offset_applied": False}, None, 0.0),
    ],
)
def test_the_offset_comes_from_the_metadata(
    properties: dict[str, Any], band: dict[str, Any] | None, offset: float
) -> None:
    item = make_item("S2", "2022-06-01", properties)
    asset = pystac.Asset("B04.tif", extra_fields={} if band is None else {"raster:bands": [band]})
    assert reflectance_scaling(item, asset, StacSentinel2Config()) == Scaling(1e-4, offset)


def test_scale_and_offset_are_read_where_stac_1_1_writes_them() -> None:
    asset = pystac.Asset("B04.tif", extra_fields={"raster:scale": 1e-4, "raster:offset": -0.1})
    assert reflectance_scaling(make_item("S2", "2022-06-01", {}), asset, StacSentinel2Config()).offset == -0.1
    asset = pystac.Asset("B04.tif", extra_fields={"bands": [{"raster:offset": -0.1}]})
    assert reflectance_scaling(make_item("S2", "2022-06-01", {}), asset, StacSentinel2Config()).offset == -0.1


@pytest.mark.parametrize(
    ("properties", "band", "words"),
    [
        ({}, None, "no s2:processing_baseline"),
        ({"earthsearch:boa_offset_applied": False}, None, "no s2:processing_baseline"),
        ({"s2:processing_baseline": "03.01"}, {"offset": -0.1}, "contradicts itself"),
        (
            {"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": False},
            {"offset": 0},
            "boa_offset_applied is False",
        ),
        ({"s2:processing_baseline": "N0400"}, None, "wanted a number"),
    ],
)
def test_an_item_that_leaves_the_offset_open_is_refused_by_name(
    properties: dict[str, Any], band: dict[str, Any] | None, words: str
) -> None:
    item = make_item("S2B_39SVA_2022", "2022-01-24", properties)
    asset = pystac.Asset("B04.tif", extra_fields={} if band is None else {"raster:bands": [band]})
    with pytest.raises(InputError, match="S2B_39SVA_2022") as caught:
        reflectance_scaling(item, asset, StacSentinel2Config())
    assert words in str(caught.value)
    if "number" not in words:
        assert "source.stac.s2.offset" in str(caught.value)
        assert reflectance_scaling(item, asset, StacSentinel2Config(offset=-0.1)).offset == -0.1


def test_reflectance_is_continuous_across_25_january_2022(tmp_path: Path) -> None:
    numbers = np.arange(96).reshape(GRID.shape) * 50 + 100
    before = s2_item(tmp_path, "before", "2022-01-22", numbers, {"s2:processing_baseline": "03.01"})
    after = s2_item(tmp_path, "after", "2022-02-01", numbers + 1000, {"s2:processing_baseline": "04.00"})
    # Collection-1: taken before that day, processed anew after it.
    again = s2_item(tmp_path, "again", "2022-02-06", numbers + 1000, {"s2:processing_baseline": "05.00"})
    got = composite(source(tmp_path, [before, after, again]))
    assert got.scenes["s2"] == (1, 2)
    for t in (0, 1):
        expected = np.broadcast_to(numbers * 1e-4, (len(S2_NAMES), *GRID.shape))
        np.testing.assert_allclose(got.s2_tchw[t], expected, atol=1e-7)


def test_number_0_is_missing_and_dark_pixels_may_fall_below_0(tmp_path: Path) -> None:
    numbers = np.full(GRID.shape, 990)
    numbers[0, 0] = 0
    item = s2_item(tmp_path, "a", "2022-02-01", numbers, {"s2:processing_baseline": "04.00"})
    got = composite(source(tmp_path, [item]))
    assert not got.s2_valid_thw[1, 0, 0]
    assert got.s2_valid_thw[1].sum() == numbers.size - 1
    np.testing.assert_allclose(got.s2_tchw[1, :, 1:], -0.001, atol=1e-7)


def test_classes_of_20_m_nest_in_pixels_of_10_m(tmp_path: Path) -> None:
    scl = np.full((4, 6), 4)
    scl[1, 2] = 9
    item = s2_item(tmp_path, "a", "2022-01-01", 3000, {"s2:processing_baseline": "03.01"}, scl=scl)
    expected = np.ones(GRID.shape, bool)
    expected[2:4, 4:6] = False
    np.testing.assert_array_equal(composite(source(tmp_path, [item])).s2_valid_thw[0], expected)


def test_scenes_of_another_crs_are_put_onto_the_grid(tmp_path: Path) -> None:
    # The neighbouring zone, over an area well around the grid, brighter towards the east.
    x0, y0 = Transformer.from_crs(GRID.crs, "EPSG:32638", always_xy=True).transform(GRID.x0, GRID.y0)
    wide = Grid("EPSG:32638", round(x0, -1) - 600, round(y0, -1) + 600, 10, 140, 140)
    ramp = np.broadcast_to(1000 + 20 * np.arange(140), wide.shape)
    item = s2_item(tmp_path, "a", "2022-01-01", ramp, {"s2:processing_baseline": "03.01"}, grid=wide)
    got = composite(source(tmp_path, [item]))
    xs, ys = np.meshgrid(*GRID.centres())
    x, _ = Transformer.from_crs(GRID.crs, wide.crs, always_xy=True).transform(xs, ys)
    expected = (1000 + 20 * ((x - wide.x0) / 10 - 0.5)) * 1e-4
    np.testing.assert_allclose(got.s2_tchw[0, 0], expected, atol=3e-4)  # an eighth of a pixel, and rounding


# --- Sentinel-1: numbers to power -------------------------------------------------------------------


def test_linear_and_decibel_items_give_the_same(tmp_path: Path) -> None:
    power = np.random.default_rng(0).lognormal(-2, 1, (2, *GRID.shape)).astype(np.float32)
    linear = [s1_item(tmp_path, f"l{i}", f"2022-01-0{i + 1}", power[i]) for i in range(2)]
    decibel = [
        s1_item(tmp_path, f"d{i}", f"2022-01-0{i + 1}", 10 * np.log10(power[i]) - 5, {}, band=band)
        for i in range(2)
        for band in ({"unit": "dB", "offset": 5},)
    ]
    (tmp_path / "x").mkdir()
    one = composite(source(tmp_path, s1=linear))
    settings = {"quantity": "gamma0"}
    other = composite(source(tmp_path, s1=decibel, s1_settings=settings))
    expected = 10 * np.log10(power.astype(float).mean(axis=0))
    np.testing.assert_allclose(one.s1_tchw[0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(other.s1_tchw[0, 1], expected, atol=1e-4)
    assert not one.s1_valid_thw[1].any()


@pytest.mark.parametrize(
    ("properties", "band", "settings", "words"),
    [
        ({}, None, {}, "does not state the quantity"),
        ({"sar:product_type": "GRD"}, {"data_type": "uint16"}, {}, "raw GRD cannot be used"),
        ({}, None, {"quantity": "sigma0"}, "does not state the unit"),
        ({}, {"data_type": "uint16"}, {"quantity": "sigma0", "unit": "linear"}, "without a scale"),
        (GAMMA0, None, {"quantity": "sigma0"}, "quantity gamma0, but source.stac.s1.quantity is sigma0"),
        ({**GAMMA0, "card4l:measurement_convention": "amplitude"}, None, {}, "'amplitude'"),
        ({**GAMMA0, "card4l:measurement_type": "beta0"}, None, {}, "'beta0'"),
        ({**GAMMA0, "proj:code": None}, None, {}, "not geocoded"),
    ],
)
def test_radar_that_is_not_calibrated_and_geocoded_is_refused_by_name(
    properties: dict[str, Any], band: dict[str, Any] | None, settings: dict[str, Any], words: str
) -> None:
    item = make_item("S1A_IW_GRDH", "2022-01-01", properties)
    asset = pystac.Asset("vv.tif", extra_fields={} if band is None else {"raster:bands": [band]})
    with pytest.raises(InputError, match="S1A_IW_GRDH") as caught:
        backscatter(item, asset, StacSentinel1Config(**settings))
    assert words in str(caught.value)


def test_an_item_without_its_orbit_is_refused() -> None:
    with pytest.raises(InputError, match=r"S1X.*sat:orbit_state.*sat:relative_orbit"):
        orbit(make_item("S1X", "2022-01-01", {"sat:orbit_state": "ascending"}))


def test_gamma0_and_sigma0_are_never_mixed(tmp_path: Path) -> None:
    items = [
        s1_item(tmp_path, "g", "2022-01-01", 0.1),
        s1_item(tmp_path, "s", "2022-01-02", 0.1, {**GAMMA0, "card4l:measurement_type": "sigma0"}),
    ]
    with pytest.raises(InputError, match="gamma0 and sigma0"):
        source(tmp_path, s1=items).identity()


def test_tiles_of_one_roi_choose_the_same_pass(tmp_path: Path) -> None:
    """The ascending scene covers the western tile alone; the descending one the whole ROI."""
    west, east = GRID.window(Window(0, 0, 8, 6)), GRID.window(Window(0, 6, 8, 6))
    ascending = s1_item(tmp_path, "a", "2022-01-01", 0.1, footprint=west.window(Window(0, -30, 8, 16)))
    descending = s1_item(tmp_path, "d", "2022-01-01", 0.4, orbit=20, orbit_pass="descending")
    src = source(tmp_path, s1=[ascending, descending])
    for tile in (west, east):
        got = composite(src, tile, GRID, s1_orbit_rule="monthly")
        np.testing.assert_allclose(got.s1_tchw[0], 10 * np.log10(0.4), rtol=1e-5)


def test_tiles_of_one_roi_choose_the_orbit_that_sees_most_of_it_in_all_months(tmp_path: Path) -> None:
    """The ascending scene has no pixel in the east. It has the wider footprint, which does not count."""
    west, east = GRID.window(Window(0, 0, 8, 6)), GRID.window(Window(0, 6, 8, 6))
    half = np.full(GRID.shape, np.nan)
    half[:, :6] = 0.1
    wide = GRID.window(Window(-50, -50, 108, 112))
    ascending = s1_item(tmp_path, "a", "2022-01-01", half, footprint=wide)
    descending = s1_item(tmp_path, "d", "2022-01-02", 0.4, orbit=20, orbit_pass="descending")
    src = source(tmp_path, s1=[ascending, descending])
    for tile in (west, east, GRID):
        got = composite(src, tile, GRID)
        assert got.s1_valid_thw[0].all()
        np.testing.assert_allclose(got.s1_tchw[0], 10 * np.log10(0.4), rtol=1e-5)
        assert got.orbits_s1 == ("descending 20",)
        assert got.scenes["s1"] == (1, 0)


# --- an acquisition counts once, a dead asset costs its scene, one sensor is enough ---------------------


def test_an_item_in_two_baselines_or_from_two_searches_counts_once(tmp_path: Path) -> None:
    old = {"s2:processing_baseline": "02.14", "platform": "SENTINEL-2"}  # which names no satellite
    new = {"s2:processing_baseline": "05.00", "platform": "Sentinel-2A"}
    items = [
        s2_item(tmp_path, "old", "2022-01-05T07:33:11", 2000, old),
        s2_item(tmp_path, "new", "2022-01-05T07:33:12", 2000, new),  # 0.10: its offset is -0.1
        *(s2_item(tmp_path, f"{n}", f"2022-01-{n}", n * 200 + 1000, new) for n in (15, 20)),
    ]
    radar = [
        *[s1_item(tmp_path, "one", "2022-01-05T04:00:00", 0.1, {**GAMMA0, "platform": "sentinel-1a"})] * 2,
        s1_item(tmp_path, "two", "2022-01-17T04:00:00", 0.4, {**GAMMA0, "platform": "sentinel-1a"}),
    ]
    got = composite(source(tmp_path, [*items, items[1]], radar))
    np.testing.assert_allclose(got.s2_tchw[0], 0.30, atol=1e-6)
    np.testing.assert_allclose(got.s1_tchw[0], 10 * np.log10(0.25), rtol=1e-6)
    assert got.scenes == {"s2": (3, 0), "s1": (2, 0)}


def test_a_dead_asset_costs_its_scene_by_name(tmp_path: Path) -> None:
    baseline = {"s2:processing_baseline": "03.01"}
    items = [s2_item(tmp_path, f"S2-{n}", f"2022-01-{n}", 100 * n, baseline) for n in (10, 15, 20)]
    (tmp_path / "S2-15" / "B03.tif").unlink()
    radar = [s1_item(tmp_path, f"S1-{n}", f"2022-01-{n}", 0.01 * n) for n in (10, 20, 30)]
    (tmp_path / "S1-20" / "vh.tif").write_bytes((tmp_path / "S1-10" / "vh.tif").read_bytes()[:300])
    src = source(tmp_path, items, radar)
    got = composite(src)
    assert [line.partition(":")[0] for line in got.lost] == ["S2-15", "S1-20"]
    assert "B03.tif" in got.lost[0]
    np.testing.assert_allclose(got.s2_tchw[0], 0.15, atol=1e-6)
    np.testing.assert_allclose(got.s1_tchw[0], 10 * np.log10(0.2), rtol=1e-6)
    with pytest.raises(InputError, match=r"1 of 3 Sentinel-2 scenes .*S2-15"):
        composite(src, max_lost=0.3)


def test_an_item_whose_pixels_were_shifted_already_is_left_out(tmp_path: Path) -> None:
    """The item says that its offset is to be applied, but it was."""
    flag = {"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": False}
    wrong = s2_item(tmp_path, "S2-W", "2022-01-10", 400, flag)
    right = s2_item(tmp_path, "S2-R", "2022-01-15", 1400, flag)
    got = composite(source(tmp_path, [wrong, right]))
    assert [line.partition(" of B02")[0] for line in got.lost] == ["S2-W: 100%"]
    np.testing.assert_allclose(got.s2_tchw[0], 0.04, atol=1e-6)
    with pytest.raises(InputError, match=r"1 of 1 Sentinel-2 scenes .*S2-W: 100% of B02"):
        composite(source(tmp_path, [wrong]))


@pytest.mark.parametrize("sensor", ["s2", "s1"])
def test_one_sensor_alone_is_a_source(tmp_path: Path, sensor: str) -> None:
    both = source(
        tmp_path,
        [s2_item(tmp_path, "a", "2022-01-05", 2000, {"s2:processing_baseline": "03.01"})],
        [s1_item(tmp_path, "b", "2022-01-05", 0.1)],
    )
    path = str(tmp_path / f"{sensor}.json")
    if sensor == "s2":
        alone = StacSource(StacConfig(s2=StacSentinel2Config(items=path)))
    else:
        alone = StacSource(StacConfig(s1=StacSentinel1Config(items=path)))
    got, other = composite(alone), composite(both, sensors=(sensor,))
    assert got.s2_valid_thw[0].all() == (sensor == "s2")
    assert got.s1_valid_thw[0].all() == (sensor == "s1")
    assert got.scenes == other.scenes
    np.testing.assert_array_equal(got.s2_tchw, other.s2_tchw)
    np.testing.assert_array_equal(got.s1_tchw, other.s1_tchw)
    assert alone.identity()["s1_quantity"] == ("gamma0" if sensor == "s1" else "none")


# --- catalogues ---------------------------------------------------------------------------------------


def test_bands_are_found_by_key_name_and_common_name() -> None:
    item = make_item("S2", "2022-01-01", {})
    item.add_asset("visual", pystac.Asset("tci.tif", extra_fields={"eo:bands": [{"name": "red"}] * 3}))
    item.add_asset("B02_10m", pystac.Asset("1.tif", extra_fields={"bands": [{"eo:common_name": "blue"}]}))
    item.add_asset("x", pystac.Asset("2.tif", extra_fields={"eo:bands": [{"common_name": "green"}]}))
    for gsd in (60, 10, 20):
        fields = {"bands": [{"name": "B08"}], "gsd": gsd}
        item.add_asset(f"B08_{gsd}m", pystac.Asset(f"{gsd}.tif", extra_fields=fields))
    assert find_asset(item, ("B02", "blue")).href == "1.tif"
    assert find_asset(item, ("B03", "green")).href == "2.tif"
    assert find_asset(item, ("B08", "nir")).href == "10.tif"
    with pytest.raises(InputError, match=r"S2 of scenes.*B11.*swir16.*visual, B02_10m"):
        find_asset(item, ("B11", "swir16"))


def test_the_source_is_one_and_pickles_and_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    src = source(folder, s1=[s1_item(folder, "a", "2022-01-01", 0.1)])
    assert isinstance(src, ImagerySource)
    again = pickle.loads(pickle.dumps(src))
    np.testing.assert_array_equal(composite(again).s1_tchw, composite(src).s1_tchw)
    shutil.move(folder, tmp_path / "two")
    moved = StacSource(
        StacConfig(
            s2=StacSentinel2Config(items=str(tmp_path / "two" / "s2.json")),
            s1=StacSentinel1Config(items=str(tmp_path / "two" / "s1.json")),
        )
    )
    assert moved.identity() == src.identity()
    assert src.identity()["s1_quantity"] == "gamma0"
    json.dumps(src.identity())


def test_a_relative_path_and_a_uri_of_items_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = composite(source(tmp_path, s1=[s1_item(tmp_path, "a", "2022-01-01", 0.1)]))
    monkeypatch.chdir(tmp_path)
    for place in ("s1.json", (tmp_path / "s1.json").as_uri()):
        s2 = place.replace("s1.json", "s2.json")
        config = StacConfig(s2=StacSentinel2Config(items=s2), s1=StacSentinel1Config(items=place))
        np.testing.assert_array_equal(composite(StacSource(config)).s1_tchw, expected.s1_tchw)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[" * 200_000, "JSON"),
        ("[]", r"type 'list'.*pystac\.ItemCollection"),
        ('{"type": "Catalog"}', r"type 'Catalog'.*pystac\.ItemCollection"),
        ('{"type": "FeatureCollection"}', "has no items"),
        ('{"type": "FeatureCollection", "features": []}', "has no items"),
    ],
    ids=["no JSON", "nested without end", "list", "catalogue", "no features", "empty"],
)
def test_a_file_that_is_no_item_collection_is_refused(tmp_path: Path, text: str, words: str) -> None:
    src = source(tmp_path)
    (tmp_path / "s2.json").write_text(text)
    with pytest.raises(InputError, match=rf"s2\.json.*{words}"):
        composite(src)


def test_a_missing_file_and_a_missing_collection_are_refused(tmp_path: Path) -> None:
    src = source(tmp_path, s2_settings={"collection": "sentinel-2-l2a"})
    with pytest.raises(InputError, match=r"no items of the collection 'sentinel-2-l2a'.* scenes"):
        composite(src)
    (tmp_path / "s2.json").unlink()
    with pytest.raises(InputError, match=r"no s2\.json"):
        composite(pickle.loads(pickle.dumps(src)))


def test_settings_must_name_one_catalogue_a_sensor() -> None:
    with pytest.raises(InputError, match=r"no catalogue\. .*source\.stac\.s2\.items .*source\.stac\.s2\.api"):
        StacSource(StacConfig())
    both = StacSentinel2Config(items="a.json", api="http://localhost")
    with pytest.raises(InputError, match=r"source\.stac\.s2\.items"):
        StacSource(StacConfig(s2=both))
    api = StacSentinel1Config(api="http://localhost")
    with pytest.raises(InputError, match=r"source\.stac\.s1\.collection"):
        StacSource(StacConfig(s2=StacSentinel2Config(items="a.json"), s1=api))


def test_an_asset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words):
            composite(source(tmp_path, s1=[item]))

    item = s1_item(tmp_path, "a", "2022-01-01", 0.1)
    path = tmp_path / "a" / "vv.tif"
    values = np.ones(GRID.shape, np.float32)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_tiff(path, values, GRID, crs=None, transform=None)
    refused(r"STAC item a: .*vv\.tif has no georeference")
    write_tiff(path, values, GRID, crs=None)
    refused(r"STAC item a: .*vv\.tif has no georeference")
    path.write_text("no TIFF")
    refused(r"STAC item a: .*vv\.tif")
    path.unlink()
    refused(r"STAC item a: .*vv\.tif")


def test_an_api_gives_what_a_file_gives(tmp_path: Path) -> None:
    baseline = {"s2:processing_baseline": "03.01"}
    days = [
        "2021-12-31T23:59:59",
        "2022-01-01",
        "2022-01-31T23:59:59",
        "2022-02-02",
        "2022-02-28",
        "2022-03-01",
    ]
    s2 = [s2_item(tmp_path, f"s2-{i}", day, 1000 * (i + 1), baseline) for i, day in enumerate(days)]
    s1 = [s1_item(tmp_path, f"s1-{i}", day, 0.1 * (i + 1)) for i, day in enumerate(days)]
    away = GRID.window(Window(0, 5000, 8, 8))
    s2.append(s2_item(tmp_path, "away", "2022-01-05", 9000, baseline, grid=away))
    expected_source = source(tmp_path, s2, s1)
    expected = composite(expected_source)
    dicts: list[dict[str, Any]] = []
    with serve(dicts, folder=tmp_path) as (url, searches):
        for kind, items in (("s2", s2), ("s1", s1)):
            for item in items:
                for asset in item.assets.values():
                    asset.href = f"{url}/{asset.href}"
                dicts.append({**item.to_dict(include_self_link=False), "collection": kind})

        def api(collection: str) -> StacSource:
            s1_config = StacSentinel1Config(api=url, collection="s1")
            return StacSource(
                StacConfig(s2=StacSentinel2Config(api=url, collection=collection), s1=s1_config)
            )

        got = composite(api("s2"))
        asked = [query["datetime"] for query in searches if query["collections"] == ["s2"]]
        assert asked == ["2022-01-01T00:00:00Z/2022-02-28T23:59:59.999999Z"] * 2  # pages of two
        assert api("s2").identity()["s1_quantity"] == "gamma0"
        assert api("s2").identity()["s2"]["api"] == url
        with pytest.raises(InputError, match=r"the STAC API http://127.* has no collection 's3'"):
            composite(api("s3"))
    assert got.scenes == expected.scenes == {"s2": (2, 2), "s1": (2, 2)}
    np.testing.assert_array_equal(got.s2_tchw, expected.s2_tchw)
    np.testing.assert_array_equal(got.s1_tchw, expected.s1_tchw)


# --- real data ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flanders(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("flanders"), shared_data)


CODES = {
    "winter wheat": 1110,
    "maize": 1200,
    "barley": 1500,
    "winter barley": 1510,
    "potato": 5100,
    "sugar beet": 8100,
    "permanent grass": 9120,
}


def test_real_composites_are_those_of_the_plain_arrays(flanders: dict[str, Path], shared_data: Path) -> None:
    periods = tuple(Period(date(2019, m, 1), date(2019, m + 1, 1)) for m in range(1, 7))
    grid = Grid("EPSG:32631", X0, Y0, 10, 64, 64)
    src = StacSource(
        StacConfig(
            s2=StacSentinel2Config(items=str(flanders["s2"])),
            s1=StacSentinel1Config(items=str(flanders["s1"]), quantity="sigma0"),
        )
    )
    got = composite(src, grid, periods=periods)
    fine, coarse = open_series(shared_data, "S2_L2A_10m"), open_series(shared_data, "S2_L2A_20m")
    radar = open_series(shared_data, "S1_GRD-ASCENDING_20m")
    for t, period in enumerate(periods):
        month = f"{period.start:%Y-%m}"
        scl = coarse.SCL.sel(timestamp=month).values.repeat(2, axis=1).repeat(2, axis=2)
        cloudy = np.isin(scl, (0, 1, 3, 8, 9, 10, 11))
        expected = []
        for band in S2_NAMES:
            values = (fine if band in fine else coarse)[band].sel(timestamp=month).values.astype(float)
            values = values if values.shape[1] == 64 else values.repeat(2, axis=1).repeat(2, axis=2)
            expected.append(np.ma.median(np.ma.array(values / 10_000, mask=cloudy), axis=0))
        clear = ~cloudy.all(axis=0)
        np.testing.assert_array_equal(got.s2_valid_thw[t], clear)
        for c, band in enumerate(expected):
            np.testing.assert_allclose(got.s2_tchw[t, c][clear], band.data[clear], atol=1e-7)
        power = 10 ** (np.stack([radar[b].sel(timestamp=month).values for b in ("VV", "VH")]) / 1e5)
        decibel = 10 * np.log10(power.mean(axis=1)).repeat(2, axis=1).repeat(2, axis=2)
        np.testing.assert_allclose(got.s1_tchw[t], decibel, atol=1e-4)
        assert got.s1_valid_thw[t].all()


def test_a_map_of_the_source_is_refused(tmp_path: Path) -> None:
    request = ImageRequest(GRID, GRID, (JANUARY,), maps=("eucropmap",))
    with pytest.raises(InputError, match=r"stac offers no maps.*source:eucropmap.*raster file"):
        source(tmp_path).composite(request)


def test_real_composites_have_the_measured_signatures(flanders: dict[str, Path], shared_data: Path) -> None:
    """The figures of `real_signatures.csv` were measured with clear views of SCL 4 to 7."""
    months = [date(2018, m, 1) for m in range(8, 13)] + [date(2019, m, 1) for m in range(1, 12)]
    periods = tuple(Period(one, other) for one, other in pairwise([*months, date(2019, 12, 1)]))
    stac = {
        "s2": {"items": str(flanders["s2"])},
        "s1": {"items": str(flanders["s1"]), "quantity": "sigma0"},
    }
    config = Config.model_validate({"source": {"kind": "stac", "stac": stac}})
    grid = Grid("EPSG:32631", X0, Y0, 10, 64, 64)
    recipe = CompositeRecipe(scl_invalid=(0, 1, 2, 3, 8, 9, 10, 11))
    got = open_source(config).composite(ImageRequest(grid, grid, periods, recipe))
    crop_type = open_series(shared_data, "OUTPUT_POLY-110_10m")["CT"].values
    with (shared_data / "real_signatures.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["site"] == "Flanders 2019" and r["crop"] in CODES]
    assert len(rows) == len(CODES) * len(periods)
    for row in rows:
        t = months.index(date.fromisoformat(f"{row['month']}-01"))
        here = crop_type == CODES[row["crop"]]
        assert here.sum() == int(row["pixels"])
        clear = here & got.s2_valid_thw[t]
        assert clear.sum() / here.sum() == pytest.approx(float(row["clear_s2"]), abs=1e-3)
        if clear.any():
            measured = [float(row[f"{band}_mean"]) for band in S2_NAMES]
            np.testing.assert_allclose(got.s2_tchw[t][:, clear].mean(axis=1), measured, atol=1e-4)
        measured = [float(row["VV_mean"]), float(row["VH_mean"])]
        np.testing.assert_allclose(got.s1_tchw[t][:, here].mean(axis=1), measured, atol=2e-4)


def test_a_catalogue_without_search_is_named() -> None:
    with serve([], conforms_to=("https://api.stacspec.org/v1.0.0/core",)) as (url, _):
        catalogue = open_catalogue(StacCollectionConfig(api=url, collection="s1"), "source.stac.s1")
        with pytest.raises(InputError, match=rf"STAC API {url} cannot be searched: .*ITEM_SEARCH"):
            catalogue.sample()

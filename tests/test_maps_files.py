"""The files of a map: rasters, areas, STAC item."""

import csv
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from jsonschema import Draft7Validator
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from cropray.errors import InputError
from cropray.figures.crops import colour_table
from cropray.grid import Grid, Window
from cropray.maps.catalogue import MapIdentity, map_item, publish_collection, state_makers
from cropray.maps.mosaic import CONFIDENCE, MAP, MONTHS, OBSERVATIONS, SCORES, SURE, assemble
from cropray.maps.observed import Observed, scenes_csv
from cropray.maps.products import publish_map
from cropray.maps.request import MapPlan
from cropray.maps.tiles import (
    NODATA,
    TileResult,
    decode_tile,
    encode_tile,
    predict_tile,
)
from cropray.models.checkpoint import save_checkpoint
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNSURE, View
from tests.lands import small_checkpoint
from tests.map_inputs import CLASSES, GRID, FakeNetwork, FakeSource, settings, whole_map
from tests.test_model_lineage import MLM_ITEM

IDENTITY = MapIdentity("crops of the test", "models/x", CLASSES, (0.3, 0.3, 0.3), settings(), "abc")


def made_map(folder: Folder, name: str = "", **changes: Any) -> tuple[TileResult, dict[str, Any]]:
    plan, chosen = MapPlan(name, GRID), settings(**changes)
    identity = replace(IDENTITY, settings=chosen)
    parts = {
        tile: encode_tile(predict_tile(tile, plan.wanted(tile), GRID, FakeSource(), FakeNetwork(), chosen))
        for tile in GRID.blocks(128)
    }
    published = publish_map(folder, plan, parts, lambda tile: decode_tile(parts[tile]), identity, scores=True)
    return whole_map(128, chosen), published.areas


def test_a_published_map_holds_what_was_predicted_and_says_what_it_means(tmp_path: Path) -> None:
    wanted, areas = made_map(Folder(str(tmp_path / "map")))
    folder = tmp_path / "map"
    rasters = {"map.tif", "scores.tif", "confidence.tif", "observations.tif", "months.tif"}
    texts = {"map.tif.aux.xml", "map.qml", "map.sld", "areas.json", "areas.csv", "item.json"}
    assert {path.name for path in folder.iterdir()} == rasters | texts | {"thumbnail.png"}
    with rasterio.open(folder / MAP) as raster:
        assert np.array_equal(raster.read(1), wanted.class_hw)
        assert raster.nodata == NODATA
        assert tuple(raster.transform)[:6] == GRID.transform
        assert raster.crs.to_epsg() == 32631
        assert json.loads(raster.tags()["CLASSES"])["2"] == "sugar beet"
        assert raster.tags()["AS_OF"] == "2022-06-15"
        assert raster.colormap(1)[1][:3] == colour_table(CLASSES)[1]
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(folder / SCORES) as raster:
        assert np.array_equal(raster.read(), wanted.percent_khw)
        assert raster.descriptions == CLASSES
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert json.loads((folder / "areas.json").read_text())["classes"] == areas
    table = list(csv.DictReader((folder / "areas.csv").read_text().splitlines()))
    assert [row["class"] for row in table] == [*CLASSES, "none of the classes"]
    assert [float(row["mapped_ha"]) for row in table] == pytest.approx(
        [row["hectares"] for row in areas.values()], abs=0.005
    )
    assert {(row["estimate_ha"], row["ci95_low"], row["method"]) for row in table} == {
        ("", "", "pixel count")
    }
    pixels = sum(row["pixels"] for row in areas.values())
    assert pixels == (wanted.class_hw != NODATA).sum()


def test_bands_are_quantities_with_names_and_scales_and_never_colours(tmp_path: Path) -> None:
    wanted, _ = made_map(Folder(str(tmp_path)))
    for name in (SCORES, CONFIDENCE, OBSERVATIONS, MONTHS):
        with rasterio.open(tmp_path / name) as raster:
            assert {interpretation.name for interpretation in raster.colorinterp} <= {"gray", "undefined"}, (
                name
            )
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert all(raster.descriptions)
    with rasterio.open(tmp_path / SCORES) as raster:
        assert raster.descriptions == ("wheat", "maize", "sugar beet")
        assert set(raster.scales) == {0.01}
    with rasterio.open(tmp_path / CONFIDENCE) as raster:
        score_hw = raster.read(1)
    classes = wanted.class_hw
    assert np.array_equal(score_hw == NODATA, classes == NODATA)
    for value in range(3):
        there = classes == value
        assert np.array_equal(score_hw[there], wanted.percent_khw[value][there])
    none = classes == BACKGROUND
    together = wanted.percent_khw[:, none].sum(axis=0, dtype=int)
    assert np.array_equal(score_hw[none], 100 - np.minimum(together, 100))


def test_a_map_of_what_is_sure_has_the_class_or_says_that_it_is_unsure(tmp_path: Path) -> None:
    made_map(Folder(str(tmp_path)), sure=True)
    with rasterio.open(tmp_path / MAP) as shown, rasterio.open(tmp_path / SURE) as sure:
        map_hw, sure_hw = shown.read(1), sure.read(1)
        assert json.loads(sure.tags()["CLASSES"])["253"] == "unsure"
        assert sure.nodata == NODATA
    unsure = sure_hw == UNSURE
    assert 0.05 < unsure.mean() < 0.95
    assert np.array_equal(sure_hw[~unsure], map_hw[~unsure])
    item = json.loads((tmp_path / "item.json").read_text())
    values = [entry["value"] for entry in item["assets"]["sure"]["classification:classes"]]
    assert UNSURE in values


def test_observations_count_the_clear_months_of_each_sensor(tmp_path: Path) -> None:
    made_map(Folder(str(tmp_path)))
    x, _ = GRID.centres()
    with rasterio.open(tmp_path / OBSERVATIONS) as raster:
        s2, s1 = raster.read()
    seen = s1 != NODATA  # Sentinel-2 sees from x = 600,500 on, Sentinel-1 from x = 600,300 on
    assert (s2[:, x > 600_500] == 6).all()
    assert (s2[:, x < 600_500][seen[:, x < 600_500]] == 0).all()
    assert (s1[:, x > 600_300] == 6).all()
    with rasterio.open(tmp_path / MONTHS) as raster:
        assert raster.descriptions[0] == "2021-12-16 red"
        colour = raster.read()
    assert colour.shape == (18, *GRID.shape)  # at full resolution, as the map is small
    assert (colour[:, :, x > 600_500] > 0).all()
    assert (colour[:, :, x < 600_500] == 0).all()


def test_overviews_show_the_most_frequent_class(tmp_path: Path) -> None:
    grid = Grid("EPSG:32631", 600_000, 5_600_000, 10, 1024, 1024)
    class_hw = np.zeros((1024, 1024), np.uint8)
    class_hw[::2, ::2] = 1  # nearest neighbour would show this class alone
    part = TileResult(class_hw, np.zeros((3, 1024, 1024), np.uint8))
    tile = Window(0, 0, 1024, 1024)
    assemble(grid, [tile], lambda _: part, tmp_path, classes=CLASSES, tags={}, scores=False)
    with rasterio.open(tmp_path / MAP, overview_level=0) as overview:
        assert (overview.read(1) == 0).all()


def test_styles_list_the_classes_from_the_largest_with_colours_and_hectares(tmp_path: Path) -> None:
    _, areas = made_map(Folder(str(tmp_path)))
    order = sorted(areas, key=lambda name: (name == "none of the classes", -areas[name]["hectares"]))
    values = {"wheat": 0, "maize": 1, "sugar beet": 2, "none of the classes": BACKGROUND}
    colours = {name: f"#{bytes(colour_table(CLASSES)[values[name]]).hex()}" for name in order}
    wanted = [(str(values[name]), name, colours[name]) for name in order]
    qgis = ET.parse(tmp_path / "map.qml").getroot().iter("paletteEntry")
    assert [(entry.get("value"), entry.get("label"), entry.get("color")) for entry in qgis] == wanted
    sld = ET.parse(tmp_path / "map.sld").getroot().iter("{http://www.opengis.net/sld}ColorMapEntry")
    assert [(entry.get("quantity"), entry.get("label"), entry.get("color")) for entry in sld] == wanted
    table = ET.parse(tmp_path / "map.tif.aux.xml").getroot().iter("Row")
    rows = [[cell.text for cell in row] for row in table]
    assert [(row[0], row[2]) for row in rows] == [entry[:2] for entry in wanted]
    assert [int(row[1] or "") for row in rows] == [areas[name]["pixels"] for name in order]
    with rasterio.open(tmp_path / MAP) as raster:  # GDAL reads the table beside the file without complaint
        assert raster.count == 1


def test_scenes_are_listed_with_their_clear_share(tmp_path: Path) -> None:
    day = datetime(2022, 5, 3, 10, 50, tzinfo=UTC)
    months_shw, colour_tchw = np.zeros((2, 8, 8), np.uint8), np.zeros((1, 3, 8, 8), np.uint8)
    views = (View("s2", day, "", ("b", "a"), 30), View("s1", day, "ascending 88", (), 100))
    first = Observed(months_shw, colour_tchw, views, 100)
    second = Observed(months_shw, colour_tchw, (View("s2", day, "", ("c",), 60),), 200)
    part = TileResult(np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), (), second)
    again = decode_tile(encode_tile(part)).observed
    assert again is not None
    assert again.views == second.views
    assert again.pixels == 200
    rows = list(csv.DictReader(scenes_csv([first, again]).splitlines()))
    assert [row["sensor"] for row in rows] == ["s1", "s2"]
    assert rows[0]["clear_share"] == "0.3333"
    assert [*rows[1].values()] == ["s2", "2022-05-03T10:50:00Z", "", "0.3000", "a b c"]


def test_documents_state_who_made_the_map_and_under_which_licence(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    made_map(folder)
    state_makers(folder, [""], producer="Ministry", licence="CC-BY-4.0", copernicus=True)
    properties = json.loads((tmp_path / "item.json").read_text())["properties"]
    assert properties["license"] == "CC-BY-4.0"
    assert [maker["name"] for maker in properties["providers"]] == [
        *("Ministry", "cropray", "Copernicus Sentinel data"),
    ]


def test_the_item_is_valid_and_describes_the_files_as_they_are(tmp_path: Path) -> None:
    made_map(Folder(str(tmp_path)))
    item = pystac.Item.from_file(str(tmp_path / "item.json"))
    assert {"projection", "classification"} <= {uri.split("/")[3] for uri in item.stac_extensions}
    with rasterio.open(tmp_path / MAP) as raster:
        assert item.properties["proj:shape"] == list(raster.shape)
        assert item.properties["proj:transform"] == list(raster.transform)[:6]
        lonlat = rasterio.warp.transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
    assert item.bbox == pytest.approx(lonlat, abs=1e-5)
    assert item.datetime == datetime(2022, 6, 15, 23, 59, 59, tzinfo=UTC)
    for asset in item.assets.values():
        data = (tmp_path / asset.href).read_bytes()
        assert asset.extra_fields["file:size"] == len(data)
        assert asset.extra_fields["file:checksum"] == f"1220{hashlib.sha256(data).hexdigest()}"
    assert item.properties["processing:level"] == "L4"
    codes = {row["value"]: row["title"] for row in item.assets["map"].extra_fields["classification:classes"]}
    assert codes[2] == "sugar beet"
    assert codes[BACKGROUND] == "none of the classes"
    # The schemas of the extensions are on the network; that of the item itself comes with pystac.
    item.stac_extensions = []
    item.validate()


@pytest.mark.parametrize("names", [[""], ["a", "b"]])
def test_the_catalogue_of_a_prediction_is_valid_and_its_links_lead_to_files(
    tmp_path: Path, names: list[str]
) -> None:
    run, model = Folder(str(tmp_path)), Folder(str(tmp_path / "models/finetune"))
    checkpoint = replace(small_checkpoint((0.25, 0.5)), periods=(("2022-04-01", "2022-05-01"),) * 2)
    save_checkpoint(checkpoint, model)
    output = run.child("maps/mine")
    for name in names:
        made_map(output.child(name) if name else output, name)
    publish_collection(output, names, IDENTITY, checkpoint, model)
    folder = tmp_path / "maps/mine"
    collection = pystac.Collection.from_file(str(folder / "collection.json"))
    collection.stac_extensions = []  # their schemas are on the network
    collection.validate()
    assert [item.id for item in collection.get_items() if item.geometry] == [
        f"{name or 'map'}-2022-06-15-abc" for name in names
    ]
    assert collection.extent.temporal.intervals[0][1] == datetime(2022, 6, 15, 23, 59, 59, tzinfo=UTC)
    for name in names:
        item = pystac.Item.from_file(str(folder / name / "item.json"))
        (derived,) = item.get_links("derived_from")
        origin = json.loads(Path(derived.get_absolute_href() or "").read_text())
        assert origin["properties"]["mlm:framework"] == "PyTorch"
        assert item.get_collection() is not None
        assert item.collection_id == origin["collection"] == collection.id
    Draft7Validator(MLM_ITEM).validate(origin)
    JsonSchemaSTACValidator().validate_core(origin, pystac.STACObjectType.ITEM, origin["stac_version"])
    (asset,) = origin["assets"].values()
    assert (folder / asset["href"]).resolve() == model.local("weights.safetensors")


def test_the_same_map_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        made_map(Folder(str(tmp_path / name)))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_map_that_cannot_be_written_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot write the map to"):
        made_map(Folder(str(tmp_path / "map")))
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_scores_are_left_out_on_demand(tmp_path: Path) -> None:
    grid, tile = GRID.window(Window(0, 0, 64, 64)), Window(0, 0, 64, 64)
    part = TileResult(np.zeros((64, 64), np.uint8), np.zeros((3, 64, 64), np.uint8))
    made = assemble(grid, [tile], lambda _: part, tmp_path, classes=CLASSES, tags={}, scores=False)
    assert {path.name for path in made} == {MAP, CONFIDENCE}
    assert {path.name for path in tmp_path.iterdir()} == {MAP, CONFIDENCE}


def test_the_item_of_a_map_across_180_degrees_is_cut_there() -> None:
    plan = MapPlan("", Grid("EPSG:32760", 815_000, 8_140_000, 10, 500, 1000))
    identity = MapIdentity("crops of the test", "models/x", CLASSES, (0.3, 0.3, 0.3), settings(), "abc")
    item = map_item(plan, identity, [])
    west, _, east, _ = item["bbox"]
    assert 179 < west < 180
    assert -180 < east < -179
    footprint = shapely.geometry.shape(item["geometry"])
    assert len(footprint.geoms) == 2
    lon_min, _, lon_max, _ = footprint.bounds
    assert (lon_min, lon_max) == (-180, 180)

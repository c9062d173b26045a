"""The files of a map: rasters, areas, STAC item."""

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from cropray.maps.catalogue import publish_catalogue
from cropray.maps.mosaic import MAP, PROBABILITIES, assemble
from cropray.maps.products import MapIdentity, publish_map, stac_item
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
from cropray.types import BACKGROUND
from tests.lands import small_checkpoint
from tests.map_inputs import CLASSES, GRID, FakeNetwork, FakeSource, settings, whole_map
from tests.test_model_lineage import MLM_ITEM

IDENTITY = MapIdentity("crops of the test", "models/x", CLASSES, (0.3, 0.3, 0.3), settings(), "abc")


def made_map(folder: Folder, name: str = "") -> tuple[TileResult, dict[str, Any]]:
    plan = MapPlan(name, GRID)
    parts = {
        tile: encode_tile(
            predict_tile(tile, plan.wanted(tile), GRID, FakeSource(), FakeNetwork(), settings())
        )
        for tile in GRID.blocks(128)
    }
    published = publish_map(
        folder, plan, parts, lambda tile: decode_tile(parts[tile]), IDENTITY, probabilities=True
    )
    return whole_map(128, settings()), published.areas


def test_a_published_map_holds_what_was_predicted_and_says_what_it_means(tmp_path: Path) -> None:
    wanted, areas = made_map(Folder(str(tmp_path / "map")))
    folder = tmp_path / "map"
    names = {"map.tif", "probabilities.tif", "areas.json", "areas.csv", "picture.png", "item.json"}
    assert {path.name for path in folder.iterdir()} == names
    with rasterio.open(folder / MAP) as raster:
        assert np.array_equal(raster.read(1), wanted.class_hw)
        assert raster.nodata == NODATA
        assert tuple(raster.transform)[:6] == GRID.transform
        assert raster.crs.to_epsg() == 32631
        assert json.loads(raster.tags()["CLASSES"])["2"] == "sugar beet"
        assert raster.tags()["AS_OF"] == "2022-06-15"
        assert raster.colormap(1)[1][:3] == colour_table(CLASSES)[1]
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(folder / PROBABILITIES) as raster:
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
        assert (tmp_path / asset.href).stat().st_size == asset.extra_fields["file:size"]
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
    publish_catalogue(output, names, IDENTITY, checkpoint, model)
    folder = tmp_path / "maps/mine"
    collection = pystac.Collection.from_file(str(folder / "collection.json"))
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


def test_probabilities_are_left_out_on_demand(tmp_path: Path) -> None:
    grid, tile = GRID.window(Window(0, 0, 64, 64)), Window(0, 0, 64, 64)
    part = TileResult(np.zeros((64, 64), np.uint8), np.zeros((3, 64, 64), np.uint8))
    made = assemble(grid, [tile], lambda _: part, tmp_path, classes=CLASSES, tags={}, probabilities=False)
    assert [path.name for path in made] == [MAP]
    assert [path.name for path in tmp_path.iterdir()] == [MAP]


def test_the_item_of_a_map_across_180_degrees_is_cut_there() -> None:
    plan = MapPlan("", Grid("EPSG:32760", 815_000, 8_140_000, 10, 500, 1000))
    identity = MapIdentity("crops of the test", "models/x", CLASSES, (0.3, 0.3, 0.3), settings(), "abc")
    item = stac_item(plan, identity, {})
    west, _, east, _ = item["bbox"]
    assert 179 < west < 180
    assert -180 < east < -179
    footprint = shapely.geometry.shape(item["geometry"])
    assert len(footprint.geoms) == 2
    lon_min, _, lon_max, _ = footprint.bounds
    assert (lon_min, lon_max) == (-180, 180)

"""Fields on a finished map: votes of pixels, flags, files, and what is refused."""

import json
import sqlite3
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from pyproj import Transformer

from cropray.config import PredictConfig
from cropray.errors import InputError
from cropray.figures.crops import class_colours
from cropray.grid import Grid, Window
from cropray.maps.fields import classify_fields, read_fields
from cropray.maps.mosaic import MAP, SCORES, assemble
from cropray.maps.regions import find_regions
from cropray.maps.request import MapPlan
from cropray.maps.tiles import NODATA, TileResult
from cropray.models.decision import decide
from cropray.pipeline.fields import given_fields, publish_fields
from cropray.storage import Folder
from cropray.types import BACKGROUND
from tests.map_inputs import CLASSES, GRID
from tests.test_maps_files import made_map

THRESHOLDS = (0.3, 0.3, 0.3)


def box(col: float, row: float, width: float, height: float) -> shapely.Polygon:
    """A rectangle of a map's grid, in pixels."""
    x, y = GRID.x0 + 10 * col, GRID.y0 - 10 * row
    return shapely.box(x, y - 10 * height, x + 10 * width, y)


def fields_file(path: Path, shapes: list[Any], **columns: list[Any]) -> str:
    gpd.GeoDataFrame(columns, geometry=shapes, crs=GRID.crs).to_crs("EPSG:4326").to_file(path)
    return str(path)


def painted(directory: Path) -> np.ndarray:
    """A map of one class a column of 100 pixels; returns its scores in per cent."""
    tile = Window(0, 0, *GRID.shape)
    percent = np.full((3, *GRID.shape), 10, np.uint8)
    percent[0, :, :100], percent[1, :, 100:200], percent[2, :, 200:300] = 90, 60, 80
    percent[0, :, 100:200] = 45  # a close call
    class_hw = decide(percent / 100, np.array(THRESHOLDS)).astype(np.uint8)
    class_hw[:, 320:] = NODATA
    part = TileResult(class_hw, np.where(class_hw == NODATA, NODATA, percent).astype(np.uint8))
    assemble(GRID, [tile], lambda _: part, directory, classes=CLASSES, tags={}, scores=True)
    return percent


def classified(directory: Path, shapes: list[Any], **columns: list[Any]) -> gpd.GeoDataFrame:
    file = fields_file(directory / "fields.gpkg", shapes, **columns)
    fields = read_fields(file, "", next(iter(columns), ""))
    return classify_fields(directory, fields, CLASSES)


def test_the_votes_of_a_field_are_those_of_the_pixels_in_it(tmp_path: Path) -> None:
    made_map(Folder(str(tmp_path)))
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    shapes = [
        shapely.Polygon(np.column_stack([x + r * np.cos(angles), y + r * np.sin(angles)]))
        for x, y, r in zip(
            rng.uniform(600_400, 603_200, 60),
            rng.uniform(5_598_000, 5_599_900, 60),
            rng.uniform(20, 200, 60),
            strict=True,
        )
    ]
    shapes = [s for i, s in enumerate(shapes) if not any(s.intersects(other) for other in shapes[:i])]
    table = classified(tmp_path, shapes)
    with rasterio.open(tmp_path / MAP) as raster, rasterio.open(tmp_path / SCORES) as scores:
        class_hw, percent = raster.read(1), scores.read()
    x, y = np.meshgrid(*GRID.centres())
    assert len(table) == len(shapes) > 20
    laea = Transformer.from_crs(GRID.crs, "+proj=laea +lat_0=50.5 +lon_0=4.4 +ellps=WGS84", always_xy=True)
    for shape, row in zip(shapes, table.itertuples(), strict=True):
        inside = shapely.contains_xy(shape, x, y) & (class_hw != NODATA)
        assert row.pixels == inside.sum()
        mean = percent[:, inside].mean(axis=1) / 100
        value = int(np.bincount(class_hw[inside]).argmax())
        assert row[2] == (CLASSES[value] if value != BACKGROUND else "none of the classes")
        assert row.agreement == pytest.approx((class_hw[inside] == value).mean(), abs=0.001)
        if value != BACKGROUND:
            assert row.score == pytest.approx(mean[value], abs=0.001)
            assert row.runner_up_score == pytest.approx(np.delete(mean, value).max(), abs=0.001)
        true_ha = shapely.transform(shape, laea.transform, interleaved=False).area / 1e4
        assert row.hectares == pytest.approx(true_ha, rel=1e-3)


def test_flags_say_what_to_look_at(tmp_path: Path) -> None:
    painted(tmp_path)
    shapes = {
        "": (box(10, 10, 20, 20), "wheat"),
        "close call": (box(110, 10, 20, 20), "Maize"),
        "several crops": (box(90, 60, 20, 20), ""),
        "edge": (box(-10, 100, 30, 20), "wheat"),
        "edge, no data": (box(310, 20, 15, 15), "rice"),
        "small": (box(20, 150, 3, 3), "WHEAT"),
        "no pixel": (box(30.6, 170.6, 0.3, 0.3), "wheat"),
        "declared otherwise": (box(10, 180, 20, 20), "sugar beet"),
        "rice": (box(305, 150, 10, 20), "rice"),
    }
    table = classified(tmp_path, [s for s, _ in shapes.values()], crop=[crop for _, crop in shapes.values()])
    flags = dict(zip(shapes, table["flags"], strict=True))
    for name in ("", "close call", "edge", "small", "no pixel", "declared otherwise"):
        assert flags[name] == name
    assert "several crops" in flags["several crops"]
    assert flags["edge, no data"] == "edge"
    assert flags["rice"] == ""  # none of the classes, as the map says
    assert table["class"].tolist()[:2] == ["wheat", "maize"]
    assert table["class"].isna().tolist() == [name == "no pixel" for name in shapes]
    assert (table["runner_up"][1], table["runner_up_score"][1]) == ("wheat", 0.45)


def test_fields_beyond_the_map_are_left_out(tmp_path: Path) -> None:
    painted(tmp_path)
    table = classified(tmp_path, [box(-50, 0, 20, 20), box(5, 5, 20, 20)])
    assert table["field"].tolist() == ["2"]


def published(folder: Folder, **settings: str) -> dict[str, Any]:
    chosen = PredictConfig(**settings)
    return publish_fields(given_fields(chosen), chosen, date(2022, 6, 15), folder, [MapPlan("", GRID)])


def test_files_hold_the_fields_as_programs_want_them(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "map"))
    made_map(folder)
    shapes = [box(60, 10, 20, 30), box(100, 20, 40, 40), box(150.6, 20.6, 0.3, 0.3)]
    file = fields_file(tmp_path / "cadastre.shp", shapes, plot=["a", "b", "c"], crop=["wheat", "", "maize"])
    summary = published(folder, fields=file, field_id="plot", declared="crop")
    assert summary == {"fields": 3, "fields_with_class": 2}
    frame = gpd.read_parquet(folder.local("fields.parquet"))
    assert frame["id"].tolist() == ["a", "b", "c"]
    assert frame.crs == "EPSG:4326"
    assert (frame["area"] > 0).all()
    assert str(frame["determination_datetime"][0]) == "2022-06-15 23:59:59+00:00"
    metadata = pq.read_schema(folder.local("fields.parquet")).metadata
    (extension,) = json.loads(metadata[b"fiboa"])["fiboa_extensions"]
    assert "crop-extension" in extension
    codes = pd.read_csv(folder.local(frame["crop:code_list"][0]), dtype=str).set_index("original_code")
    assert set(frame["determination_method"]) == {"unknown"}
    assert frame[["crop:code_list", "crop:code", "crop:name"]].notna().all(axis=None)  # as it requires
    assert codes.loc[frame["crop:code"], "original_name"].tolist() == frame["crop:name"].tolist()
    assert frame["crop:code"][2] == "255"  # no pixel
    assert json.loads(metadata[b"geo"])["primary_column"] == "geometry"
    package = folder.local("fields.gpkg")
    same = pyogrio.read_dataframe(package, layer="fields")
    assert same["class"].tolist() == frame["class"].tolist()
    with sqlite3.connect(package) as connection:
        (style,) = connection.execute("select styleQML, useAsDefault, f_table_name from layer_styles")
    assert style[1:] == (1, "fields")
    root = ET.fromstring(style[0])
    symbol = {c.get("value"): c.get("symbol") for c in root.iter("category")}
    shown = [name for name in frame["class"].dropna().unique() if name in CLASSES]
    assert shown
    for name in shown:
        (option,) = root.findall(f".//symbol[@name='{symbol[name]}']//Option[@name='color']")
        rgb = tuple(int(part) for part in (option.get("value") or "").split(",")[:3])
        assert rgb == class_colours(CLASSES)[CLASSES.index(name)]
    item = json.loads(folder.read_text("item.json"))
    for name in ("fields.parquet", "fields.gpkg", "crops.csv"):
        assert item["assets"][name]["file:size"] == folder.local(name).stat().st_size


def test_regions_stand_in_for_a_file(tmp_path: Path) -> None:
    """Square fields in a row, each of another crop than its neighbours: each is one region."""
    side = 40
    grid = Grid(GRID.crs, GRID.x0, GRID.y0, 10, side, 6 * side)
    class_hw = np.kron(np.array([[0, 1, 2, 0, 1, 2]]), np.ones((side, side), int)).astype(np.uint8)
    percent = np.full((3, *grid.shape), 10, np.uint8)
    np.put_along_axis(percent, class_hw[None].astype(np.intp), 80, axis=0)
    class_hw[:, :side], percent[:, :, :side] = NODATA, NODATA
    directory = tmp_path / "map"
    directory.mkdir()
    part, whole = TileResult(class_hw, percent), Window(0, 0, *grid.shape)
    assemble(grid, [whole], lambda _: part, directory, classes=CLASSES, tags={}, scores=True)
    found = find_regions(directory)
    assert len(found) == 5  # one of six was never seen
    assert found.crs == grid.crs
    assert found.geometry.area.tolist() == pytest.approx([side * side * 100] * 5, rel=0.01)
    assert found.geometry.union_all().area == pytest.approx(5 * side * side * 100)
    table = classify_fields(directory, found, CLASSES)
    assert table["class"].tolist() == [CLASSES[k] for k in (1, 2, 0, 1, 2)]


def test_regions_are_marked_as_found_in_imagery(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "map"))
    made_map(folder)
    summary = published(folder, fields="auto")
    frame = gpd.read_parquet(folder.local("fields.parquet"))
    assert summary["fields"] == len(frame) > 0
    assert set(frame["determination_method"]) == {"auto-imagery"}
    with pytest.raises(InputError, match=r"predict\.declared"):
        given_fields(PredictConfig(fields="auto", declared="crop"))


def test_the_same_fields_are_reused_and_changed_ones_are_not(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "map"))
    made_map(folder)
    file = fields_file(tmp_path / "fields.gpkg", [box(60, 10, 20, 30)])
    first = published(folder, fields=file)
    written = folder.local("fields.parquet").stat().st_mtime_ns
    assert published(folder, fields=file) == first
    assert folder.local("fields.parquet").stat().st_mtime_ns == written
    fields_file(tmp_path / "fields.gpkg", [box(60, 10, 20, 30), box(100, 10, 5, 5)])
    assert published(folder, fields=file)["fields"] == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fields": "nowhere.gpkg"}, "nowhere.gpkg"),
        ({"declared": "kind"}, "kind"),
        ({"field_id": "plot"}, "occurs twice"),
        ({"scores": False}, "predict.scores"),
    ],
)
def test_unusable_fields_are_refused(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    file = fields_file(tmp_path / "f.gpkg", [box(60, 10, 20, 30), box(90, 10, 20, 30)], plot=["a", "a"])
    with pytest.raises(InputError, match=told):
        given_fields(PredictConfig(**{"fields": file, **settings}))


def test_fields_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "map"))
    made_map(folder)
    with pytest.raises(InputError, match="no field of"):
        published(folder, fields=fields_file(tmp_path / "f.gpkg", [box(-900, 0, 20, 20)]))
    assert not folder.exists("fields.parquet")

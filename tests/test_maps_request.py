"""Areas to be mapped, and the conditions for the use of a network."""

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from pyproj import Transformer

from cropray.config import Config
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.maps.request import check_source, plan_maps, prediction_settings, season_warning
from cropray.storage import Folder
from tests.map_inputs import CLASSES, FakeSource


def test_a_bounding_box_is_one_whole_map(tmp_path: Path) -> None:
    (plan,) = plan_maps("4.3,50.4,4.35,50.42", Config(), Folder(str(tmp_path)))
    assert plan.grid == Grid.covering((4.3, 50.4, 4.35, 50.42), "EPSG:4326", min_size=64)
    assert plan.wanted(Window(0, 0, 10, 12)).shape == (10, 12)
    assert plan.wanted(Window(0, 0, 10, 12)).all()


def test_a_vector_file_is_mapped_inside_its_polygons(tmp_path: Path) -> None:
    shapes = [shapely.box(4.3, 50.4, 4.31, 50.41), shapely.Point(4.34, 50.42).buffer(0.005)]
    gpd.GeoDataFrame(geometry=shapes, crs="EPSG:4326").to_file(tmp_path / "area.gpkg")
    (plan,) = plan_maps(str(tmp_path / "area.gpkg"), Config(), Folder(str(tmp_path)))
    wanted = plan.wanted(Window(0, 0, *plan.grid.shape))
    x, y = np.meshgrid(*plan.grid.centres())
    lon, lat = Transformer.from_crs(plan.grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    inside = shapely.contains_xy(shapely.union_all(shapes), lon, lat)
    assert (wanted == inside).mean() > 0.999  # edges of the box are straight in degrees, nearly so in UTM


def test_a_layer_of_an_area_is_chosen_as_the_refusal_advises(tmp_path: Path) -> None:
    file, folder = tmp_path / "areas.gpkg", Folder(str(tmp_path))
    for n, layer in enumerate(("west", "east")):
        shapes = [shapely.box(4 + n, 50, 4.01 + n, 50.01)]
        gpd.GeoDataFrame(geometry=shapes, crs="EPSG:4326").to_file(file, layer=layer)
    with pytest.raises(InputError, match=r"west, east\). Set predict\.layer"):
        plan_maps(str(file), Config(), folder)
    (plan,) = plan_maps(str(file), Config(predict={"layer": "east"}), folder)
    assert plan.grid == plan_maps("5,50,5.01,50.01", Config(), folder)[0].grid


@pytest.mark.parametrize(
    ("area", "message"),
    [
        ("10,50,9,51", "not a bounding box in degrees.*vector file"),
        ("1,2,3,100", "not a bounding box in degrees"),
        ("nowhere.shp", "does not exist.*rois:SPLIT"),
    ],
)
def test_an_unusable_area_is_refused_with_advice(tmp_path: Path, area: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_maps(area, Config(), Folder(str(tmp_path)))


def test_an_area_across_180_degrees_is_one_map(tmp_path: Path) -> None:
    """On Taveuni, Fiji: a box, a polygon that is cut at 180°, and two polygons on both sides of it."""
    folder = Folder(str(tmp_path))
    (box,) = plan_maps("179.9,-16.9,-179.9,-16.8", Config(), folder)
    assert box.grid.crs in ("EPSG:32760", "EPSG:32701")
    assert box.grid.width * 10 == pytest.approx(21_300, abs=300)
    west, east = shapely.box(179.9, -16.9, 180, -16.8), shapely.box(-180, -16.9, -179.9, -16.8)
    for name, shapes in (("one", [shapely.MultiPolygon([west, east])]), ("two", [west, east])):
        path = tmp_path / f"{name}.gpkg"
        gpd.GeoDataFrame(geometry=shapes, crs="EPSG:4326").to_file(path)
        (plan,) = plan_maps(str(path), Config(), folder)
        assert plan.grid == box.grid
        assert plan.wanted(Window(0, 0, *plan.grid.shape)).mean() > 0.95
    mercator = Config.model_validate({"grid": {"crs": "EPSG:3857"}})
    with pytest.raises(
        InputError, match=r"crosses 180°.*179\.9,-16\.9,180,-16\.8.*-180,-16\.9,-179\.9,-16\.8"
    ):
        plan_maps("179.9,-16.9,-179.9,-16.8", mercator, folder)


def checkpoint(anchor: str = "as_of", **changes: Any) -> Any:
    window = {
        "anchor": anchor,
        "months": 6,
        "lead_months": 1,
        "as_of": "2022-06-01" if anchor == "as_of" else None,
    }
    fields = {
        "classes": CLASSES,
        "months": 6,
        "any_date": False,
        "window": window,
        "s1_quantity": "gamma0",
        "s2_bands": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
        "s1_bands": ("VV", "VH"),
        "imagery": Config().model_dump(mode="json", include={"grid", "composite"}),
    }
    return SimpleNamespace(**(fields | changes))


def test_prediction_without_an_as_of_date_is_refused() -> None:
    with pytest.raises(InputError, match="prediction needs an as-of date"):
        prediction_settings(checkpoint(), Config())


def test_the_months_end_on_the_as_of_date() -> None:
    config = updated(Config(), {"predict.as_of": "2023-07-01"})
    periods = prediction_settings(checkpoint(), config).periods
    assert len(periods) == 6
    assert periods[-1].end == date(2023, 7, 2)
    assert periods[0].start == date(2023, 1, 2)


def test_a_harvest_anchored_model_needs_an_assumed_harvest() -> None:
    config = updated(Config(), {"predict.as_of": "2023-06-01"})
    with pytest.raises(InputError, match="--assume-harvest"):
        prediction_settings(checkpoint("harvest"), config)
    assumed = updated(config, {"predict.assume_harvest": "2023-07-01"})
    assert prediction_settings(checkpoint("harvest"), assumed).periods[-1].end == date(2023, 6, 1)
    late = updated(config, {"predict.assume_harvest": "2023-08-01"})
    with pytest.raises(InputError, match="after the as-of date 2023-06-01"):
        prediction_settings(checkpoint("harvest"), late)


def any_date(as_of: str) -> Any:
    """Trained on January to June, and on windows of at least three of these months."""
    window = {"anchor": "as_of", "months": 6, "lead_months": 1, "as_of": "2020-06-30"}
    model = checkpoint(window=window, any_date=True, recipe={"min_months": 3})
    return prediction_settings(model, updated(Config(), {"predict.as_of": as_of})).periods


@pytest.mark.parametrize(
    ("as_of", "months"), [("2023-03-31", 3), ("2023-04-29", 3), ("2023-04-30", 4), ("2023-06-30", 6)]
)
def test_an_any_date_model_sees_the_months_of_its_season_that_are_over(as_of: str, months: int) -> None:
    periods = any_date(as_of)
    assert len(periods) == months
    assert periods[0].start == date(2023, 1, 1)
    assert periods[-1].end == date(2023, months + 1, 1)


@pytest.mark.parametrize("as_of", ["2023-03-30", "2023-07-01", "2022-12-31"])
def test_a_date_outside_what_was_trained_is_refused_with_those_inside(as_of: str) -> None:
    year = "2024" if as_of == "2023-07-01" else "2023"
    with pytest.raises(InputError, match=f"from {year}-03-31 to {year}-06-30"):
        any_date(as_of)


def test_an_as_of_date_in_another_season_gives_a_warning() -> None:
    assert season_warning(checkpoint(), date(2024, 6, 20)) is None
    assert "153 days of the year away" in str(season_warning(checkpoint(), date(2023, 11, 1)))
    window = {"anchor": "as_of", "months": 6, "lead_months": 1, "as_of": "2021-12-30"}
    assert season_warning(checkpoint(window=window), date(2023, 1, 10)) is None


def test_other_bands_or_backscatter_are_refused_by_name() -> None:
    check_source(checkpoint(), FakeSource().identity())
    with pytest.raises(InputError, match=r"source test has gamma0 .* the model was trained on sigma0"):
        check_source(checkpoint(s1_quantity="sigma0"), FakeSource().identity())
    check_source(checkpoint(s2_bands=("B02", "B03")), FakeSource().identity())  # it gets these alone
    with pytest.raises(InputError, match=r"Sentinel-2 bands .*; the model was trained on B03, B02"):
        check_source(checkpoint(s2_bands=("B03", "B02")), FakeSource().identity())


def test_another_class_list_is_refused() -> None:
    config = updated(Config(), {"predict.as_of": "2023-06-01", "classes": ["pea"]})
    with pytest.raises(InputError, match="class list"):
        prediction_settings(checkpoint(), config)


@pytest.mark.parametrize(
    "setting", [{"grid.resolution": 20.0}, {"grid.crs": "EPSG:3857"}, {"composite.scl_invalid": [0, 1]}]
)
def test_another_grid_or_mask_than_the_training_is_refused_by_name(setting: dict[str, Any]) -> None:
    config = updated(Config(classes=CLASSES), {"predict.as_of": "2022-06-01", **setting})
    with pytest.raises(InputError, match=next(iter(setting))):
        prediction_settings(checkpoint(), config)

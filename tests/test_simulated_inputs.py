"""The inputs that the simulation writes: parcels, provinces, a calendar and a table of regions."""

import json
from datetime import date
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import shapely
from pyproj import Transformer

from cropray.config.imagery import SimulatedConfig
from cropray.grid import Grid, transform_bounds
from cropray.imagery.simulated import SimulatedSource
from cropray.rasters import burn
from cropray.simulation.inputs import sites, write_inputs
from cropray.simulation.landscape import PLANE_CRS, TRUTH_CODES
from cropray.simulation.tables import CROPS

CONFIG = SimulatedConfig(sites_per_crop=2, regions=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    return directory, write_inputs(CONFIG, directory)


def parcels_of(directory, crop):
    features = json.loads((directory / "parcels" / f"{crop}.geojson").read_text())["features"]
    return [(f["properties"]["site"], shapely.geometry.shape(f["geometry"])) for f in features]


def contents(directory):
    """Time of change and bytes of every file, by its path."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_writing_again_changes_nothing(written, tmp_path):
    directory, rois = written
    before = contents(directory)
    assert write_inputs(CONFIG, directory) == rois
    assert contents(directory) == before
    write_inputs(CONFIG, tmp_path)
    assert {path: data for path, (_, data) in contents(tmp_path).items()} == {
        path: data for path, (_, data) in before.items()
    }


def test_every_named_file_exists(written):
    directory, rois = written
    names = [c.path for c in rois.parcels] + [rois.table, rois.calendar.path, rois.provinces.path]
    assert rois.data_root == str(directory)
    assert [c.crop for c in rois.parcels] == list(CROPS)
    assert all((directory / name).is_file() for name in names)


def test_sites_are_apart_and_of_one_crop_each():
    found = sites(CONFIG)
    assert sorted(crop for crop, _ in found) == sorted(CROPS * CONFIG.sites_per_crop)
    boxes = [shapely.box(*bounds) for _, bounds in found]
    assert min(a.distance(b) for a, b in combinations(boxes, 2)) > 3000


@pytest.mark.parametrize("crop", CROPS)
def test_parcels_lie_inside_fields_of_their_crop(written, crop):
    directory, _ = written
    parcels = parcels_of(directory, crop)
    assert {site for site, _ in parcels} == {n for n, (name, _) in enumerate(sites(CONFIG)) if name == crop}
    for _, shape in parcels:
        assert shape.is_valid
        grid = Grid.covering(shape.bounds, "EPSG:4326")
        projected = shapely.transform(shape, partial(_to, grid.crs))
        inside = burn([(projected, 1)], grid, 0) == 1
        truth = SimulatedSource(CONFIG).class_map("truth", grid)
        assert inside.sum() > 20
        assert (truth[inside] == TRUTH_CODES[crop]).all()


def test_some_of_the_fields_are_annotated(tmp_path):
    write_inputs(CONFIG, tmp_path / "some")
    write_inputs(CONFIG.model_copy(update={"annotated_fraction": 1.0}), tmp_path / "all")
    some, whole = (sum(len(parcels_of(tmp_path / name, crop)) for crop in CROPS) for name in ("some", "all"))
    assert 0.2 < some / whole < 0.8


def test_provinces_cover_all_and_do_not_overlap(written):
    directory, _ = written
    features = json.loads((directory / "provinces.geojson").read_text())["features"]
    shapes = [shapely.geometry.shape(f["geometry"]) for f in features]
    assert all(shape.is_valid for shape in shapes)
    assert max(a.intersection(b).area for a, b in combinations(shapes, 2)) < 1e-9
    whole = shapely.union_all(shapes)
    for _, bounds in sites(CONFIG):
        assert whole.covers(shapely.box(*transform_bounds(bounds, PLANE_CRS, "EPSG:4326")))
    regions = pd.read_csv(directory / "regions.csv")
    assert whole.covers(
        shapely.box(
            regions.min_lon.min(), regions.min_lat.min(), regions.max_lon.max(), regions.max_lat.max()
        )
    )


def test_no_crop_is_harvested_within_a_month_of_the_tenth_of_june(written):
    directory, _ = written
    calendar = pd.read_csv(directory / "calendar.csv")
    assert set(calendar.sheet) == set(CROPS)
    assert calendar.groupby("sheet").province.nunique().eq(3).all()
    assert min(map(date.fromisoformat, calendar.harvest_start)) >= date(CONFIG.year, 7, 10)
    sown = dict(zip(calendar.sheet, calendar.planting_start.str[:4].astype(int), strict=True))
    assert sown["winter_wheat"] == CONFIG.year - 1
    assert sown["maize"] == CONFIG.year


def test_regions_are_squares_on_their_grid_far_from_sites_with_some_held_out(written):
    directory, rois = written
    regions = pd.read_csv(directory / "regions.csv")
    assert set(rois.split.named) == set(regions.country)
    assert sorted(rois.split.named.values()) == ["test", "train", "train", "val"]
    middle = np.mean([transform_bounds(b, PLANE_CRS, "EPSG:4326") for _, b in sites(CONFIG)], axis=0)
    for row in regions.itertuples():
        grid = Grid.covering((row.min_lon, row.min_lat, row.max_lon, row.max_lat), "EPSG:4326")
        assert grid.shape == (320, 320)
        assert max(abs(row.min_lon - middle[0]), abs(row.min_lat - middle[1])) > 0.25


def _to(crs, lonlat):
    return np.stack(Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*lonlat.T), axis=-1)

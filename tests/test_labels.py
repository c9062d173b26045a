"""Labels compared with single pixel centres in shapely, with small maps, and with the real EUCROPMAP."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from cropray.config import Config
from cropray.config.imagery import ClassMapConfig, LabelsConfig
from cropray.config.load import load_config
from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.labels import burn_parcels, encode_classes, make_labels, source_maps
from cropray.types import BACKGROUND, UNLABELLED

GRID = Grid("EPSG:32631", 500_000, 5_650_000, 10, 30, 40)
CLASSES = ("wheat", "maize", "pea")


def parcels(*rows: tuple[str, Any], crs: str = GRID.crs) -> gpd.GeoDataFrame:
    columns = {"parcel_id": [str(i) for i in range(len(rows))], "crop": [crop for crop, _ in rows]}
    return gpd.GeoDataFrame(columns, geometry=[shape for _, shape in rows], crs=crs)


def blob(seed: int) -> shapely.Geometry:
    rng = np.random.default_rng(seed)
    points = np.array([500_000, 5_650_000]) + rng.uniform(0, 1, (6, 2)) * np.array([400, -300])
    return shapely.convex_hull(shapely.MultiPoint(points))


def config(**labels: Any) -> Config:
    return Config(classes=CLASSES, labels=LabelsConfig(**labels))


@pytest.mark.parametrize("seed", range(5))
def test_each_pixel_has_the_class_of_the_parcel_that_contains_its_centre(seed: int) -> None:
    """Several parcels of each crop overlap. Each centre is looked up by itself."""
    shapes = [(CLASSES[i % 3], blob(10 * seed + i)) for i in range(5)]
    frame = parcels(*shapes).to_crs("EPSG:4326")
    label, covered_nowhere = burn_parcels(GRID, frame, CLASSES)
    back = list(zip(frame["crop"], frame.to_crs(GRID.crs).geometry, strict=True))
    xs, ys = GRID.centres()
    compared = 0
    for row, y in enumerate(ys):
        for col, x in enumerate(xs):
            point = shapely.Point(x, y)
            if min(shape.boundary.distance(point) for _, shape in back) < 1e-3:
                continue
            crops = {crop for crop, shape in back if shape.contains(point)}
            assert covered_nowhere[row, col] == (not crops)
            wanted = CLASSES.index(crops.pop()) if len(crops) == 1 else UNLABELLED
            assert label[row, col] == wanted
            compared += 1
    assert compared > 1190
    assert len(np.unique(label)) > 2


def test_pixels_of_two_crops_stay_unlabelled() -> None:
    """Neither a class map nor land cover labels them. Parcels of the same crop agree."""
    left, right = (
        shapely.box(500_000, 5_649_700, 500_250, 5_650_000),
        shapely.box(500_150, 5_649_700, 500_400, 5_650_000),
    )
    everywhere = np.full(GRID.shape, 5)
    settings = config(
        class_map=ClassMapConfig(path="source:dense", codes=(5, 6, 7)),
        land_cover=ClassMapConfig(path="source:cover", codes=(50,)),
    )
    maps = {"dense": everywhere, "cover": np.full(GRID.shape, 50)}
    label, _ = make_labels(GRID, parcels(("wheat", left), ("maize", right)), settings, maps)
    assert (label[:, :15] == 0).all()
    assert (label[:, 15:25] == UNLABELLED).all()
    assert (label[:, 25:] == 1).all()
    label, _ = make_labels(GRID, parcels(("wheat", left), ("wheat", right)), settings, maps)
    assert (label == 0).all()


def test_label_sources_apply_in_order() -> None:
    """Parcels, then the class map outside them, then land cover for pixels still unlabelled."""
    dense = np.zeros(GRID.shape, int)  # nodata
    dense[:, 10:20], dense[:, 20:25] = 216, 600  # a class; a code that is none
    cover = np.full(GRID.shape, 50)
    cover[:, 35:] = 10
    truth = np.full(GRID.shape, 290)
    truth[0] = 0
    settings = config(
        class_map=ClassMapConfig(path="source:dense", codes=(211, 216, 240)),
        land_cover=ClassMapConfig(path="source:cover", codes=(50, 80)),
        truth=ClassMapConfig(path="source:truth", codes=(211, 216, 290)),
    )
    frame = parcels(("pea", shapely.box(500_000, 5_649_700, 500_150, 5_650_000)))
    label, known = make_labels(GRID, frame, settings, {"dense": dense, "cover": cover, "truth": truth})
    assert (label[:, :15] == 2).all()
    assert (label[:, 15:20] == 1).all()
    assert (label[:, 20:35] == BACKGROUND).all()
    assert (label[:, 35:] == UNLABELLED).all()
    assert known is not None
    assert (known[0] == UNLABELLED).all()
    assert (known[1:] == 2).all()


def test_without_parcels_or_maps_nothing_is_known() -> None:
    frame = parcels(("pea", shapely.box(500_000, 5_649_700, 500_150, 5_650_000)))
    label, truth = make_labels(GRID, frame, config(parcels=False), {})
    assert (label == UNLABELLED).all()
    assert truth is None
    label, _ = make_labels(GRID, frame.iloc[:0], config(), {})
    assert (label == UNLABELLED).all()


def test_a_crop_that_is_not_a_class_is_named() -> None:
    with pytest.raises(InputError, match=r"has oats, but .*wheat, maize, pea"):
        burn_parcels(GRID, parcels(("oats", blob(1))), CLASSES)


def test_a_source_supplies_each_of_its_maps_once() -> None:
    labels = LabelsConfig(
        class_map=ClassMapConfig(path="source:dense", codes=(1, 2, 3)),
        land_cover=ClassMapConfig(path="cover.tif", codes=(50,)),
        truth=ClassMapConfig(path="source:dense", codes=(1, 2, 3)),
    )
    assert source_maps(labels) == ("dense",)


def test_codes_become_indices_nodata_unlabelled_and_others_background() -> None:
    codes = np.array([[7, 3, 0, 9]])
    assert encode_classes(codes, (3, 7), nodata=0).tolist() == [[1, 0, UNLABELLED, BACKGROUND]]


def test_a_raster_whose_nodata_value_is_a_class_is_refused_and_mended_as_advised(tmp_path: Path) -> None:
    """Pixels of that class would be unlabelled in silence."""
    path = tmp_path / "codes.tif"
    profile = {"driver": "GTiff", "height": 30, "width": 40, "count": 1, "dtype": "uint8", "crs": GRID.crs}
    with rasterio.open(path, "w", nodata=0, transform=rasterio.Affine(*GRID.transform), **profile) as raster:
        raster.write(np.eye(30, 40, dtype=np.uint8), 1)
    source = ClassMapConfig(path=str(path), codes=(0, 1, 2), nodata=255)
    frame = parcels(("pea", blob(1))).iloc[:0]
    with pytest.raises(InputError, match=r"codes\.tif states 0 as its nodata value") as refused:
        make_labels(GRID, frame, config(class_map=source), {})
    advice = str(refused.value).partition("the file: ")[2].split()
    subprocess.run([Path(sys.executable).with_name(advice[0]), *advice[1:]], check=True)
    label, _ = make_labels(GRID, frame, config(class_map=source), {})
    np.testing.assert_array_equal(label, np.eye(30, 40))
    beyond = GRID.window(Window(-1, 0, 2, 40))
    assert (make_labels(beyond, frame, config(class_map=source), {})[0][0] == UNLABELLED).all()


EUROPE = load_config(str(Path(__file__).parents[1] / "configs" / "europe.yaml"), ())


def test_the_21_published_classes_have_codes_and_names_of_their_own() -> None:
    assert EUROPE.labels.class_map is not None
    codes = EUROPE.labels.class_map.codes
    assert len(codes) == len(set(codes)) == len(set(EUROPE.classes)) == 21
    assert not {0, 100, 600} & set(codes)


def test_on_the_real_map_codes_100_and_600_are_background(shared_data: Path) -> None:
    """Labels on a UTM grid inside the clip, compared with the pixels of the map at their coordinates."""
    path = shared_data / "eucropmap" / "south_jutland.tif"
    with rasterio.open(path) as dataset:
        codes, bounds = dataset.read(1), dataset.bounds
        inverse = ~dataset.transform
    middle = ((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2)
    grid = Grid.covering(
        (middle[0] - 0.01, middle[1] - 0.008, middle[0] + 0.01, middle[1] + 0.008), "EPSG:4326"
    )
    assert EUROPE.labels.class_map is not None
    codes_in_order = EUROPE.labels.class_map.codes
    chosen = ClassMapConfig(path=str(path), codes=codes_in_order)
    settings = Config(classes=EUROPE.classes, labels=LabelsConfig(parcels=False, class_map=chosen))
    label, _ = make_labels(grid, parcels(("pea", blob(1))), settings, {})

    x, y = np.meshgrid(*grid.centres())
    points = gpd.GeoSeries(gpd.points_from_xy(x.ravel(), y.ravel()), crs=grid.crs).to_crs("EPSG:4326")
    cols, rows = inverse.a * points.x + inverse.c, inverse.e * points.y + inverse.f
    there = codes[rows.astype(int), cols.astype(int)].reshape(grid.shape)
    sure = ((np.abs(cols - cols.round()) > 1e-4) & (np.abs(rows - rows.round()) > 1e-4)).to_numpy()
    sure = sure.reshape(grid.shape)
    position = {code: index for index, code in enumerate(codes_in_order)} | {0: UNLABELLED}
    wanted = np.vectorize(lambda code: position.get(int(code), BACKGROUND))(there)
    assert (label == wanted)[sure].all()
    assert sure.mean() > 0.99
    assert np.isin(there, (100, 600)).any()
    assert (label[np.isin(there, (100, 600)) & sure] == BACKGROUND).all()


def test_a_point_labels_the_pixel_that_contains_it() -> None:
    """A pixel with points of two crops is unlabelled, as with polygons."""
    points = [("wheat", 2.2, 5.9), ("maize", 7.5, 0.5), ("wheat", 9.1, 9.1), ("pea", 9.9, 9.9)]
    shapes = [(crop, shapely.Point(500_000 + 10 * col, 5_650_000 - 10 * row)) for crop, row, col in points]
    shapes.append(("pea", shapely.box(500_200, 5_649_800, 500_220, 5_649_820)))
    label, _ = burn_parcels(GRID, parcels(*shapes).to_crs("EPSG:4326"), CLASSES)
    expected = np.full(GRID.shape, UNLABELLED)
    expected[2, 5], expected[7, 0] = 0, 1
    expected[18:20, 20:22] = 2
    assert (label == expected).all()

import re
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from pydantic import ValidationError

from cropray.config.rois import CropConfig, SeasonConfig
from cropray.errors import InputError
from cropray.rois.parcels import Parcels, Season
from cropray.rois.parcels import read_parcels as read_all
from cropray.rois.shapes import mend, parcels_crs
from tests.rois_inputs import EAST, NORTH, UTM, field, write_fields

BOW_TIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])


def read_parcels(folder: str, entries: list[CropConfig]) -> Parcels:
    return read_all(folder, entries, max_km2=100)


def crop(path: str, *seasons: SeasonConfig, radius_m: float = 0) -> CropConfig:
    return CropConfig(crop="beet", path=path, radius_m=radius_m, seasons=seasons or (SeasonConfig(),))


def test_files_with_different_crs_become_one_frame(tmp_path: Path) -> None:
    write_fields(tmp_path / "a/one.shp", [field(0, 0), field(500, 0)])
    write_fields(tmp_path / "b/two.geojson", [field(1000, 0)], crs="EPSG:4326")
    write_fields(tmp_path / "b/three.gpkg", [field(2000, 0)], crs="EPSG:3857")
    parcels = read_parcels(str(tmp_path), [crop("*/*.shp"), crop("b/t*")])
    assert set(parcels.frame["file"]) == {"a/one.shp", "b/two.geojson", "b/three.gpkg"}
    assert parcels.frame.crs == "EPSG:4326"
    found = parcels.frame.to_crs(UTM)
    wanted = gpd.GeoSeries([field(x, 0) for x in (0, 500, 2000, 1000)], crs=UTM)
    np.testing.assert_allclose(found.geometry.centroid.x, wanted.centroid.x, atol=1e-3)
    np.testing.assert_allclose(found.geometry.area, 10_000, rtol=1e-6)
    assert parcels.seasons[Season("beet", "", "")].tolist() == [0, 1, 2, 3]


def test_seasons_take_their_parcels_by_attribute_in_any_script(tmp_path: Path) -> None:
    product = ["چغندر قند بهاره", "چغندر قند پاییزه ", "چغندر قند بهاره", "گندم"]
    fields = [field(x, 0) for x in (0, 500, 1000, 1500)]
    write_fields(tmp_path / "beet.shp", fields, Product=product)
    spring = SeasonConfig(name="spring", sheet="S", where={"Product": "چغندر قند بهاره"})
    autumn = SeasonConfig(name="autumn", sheet="A", where={"Product": "چغندر قند پاییزه"})
    parcels = read_parcels(str(tmp_path), [crop("beet.shp", spring, autumn)])
    assert {season.name: rows.tolist() for season, rows in parcels.seasons.items()} == {
        "spring": [0, 2],
        "autumn": [1],
    }
    assert [(row.item, row.reason) for row in parcels.dropped] == [
        ("feature 3", "matches no season's `where`")
    ]


def test_numbers_filter_as_they_are_written(tmp_path: Path) -> None:
    write_fields(tmp_path / "beet.gpkg", [field(0, 0), field(500, 0)], code=[1105.0, 7.5])
    season = SeasonConfig(where={"code": "1105"})
    assert len(read_parcels(str(tmp_path), [crop("beet.gpkg", season)]).frame) == 1


def test_an_attribute_may_be_named_like_an_internal_column(tmp_path: Path) -> None:
    write_fields(tmp_path / "all.shp", [field(0, 0), field(500, 0)], crop=["winter beet", "rye"])
    parcels = read_parcels(str(tmp_path), [crop("all.shp", SeasonConfig(where={"crop": "winter beet"}))])
    assert parcels.frame["crop"].tolist() == ["beet"]


def test_the_same_field_in_two_files_is_one_parcel_of_its_crop(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_fields(tmp_path / f"{name}.shp", [field(0, 0)])
    beet = read_parcels(str(tmp_path), [crop("*.shp")])
    wheat = read_parcels(str(tmp_path), [CropConfig(crop="wheat", path="one.shp")])
    assert beet.frame["parcel_id"].nunique() == 1
    assert set(beet.frame["parcel_id"]).isdisjoint(wheat.frame["parcel_id"])


def test_invalid_geometries_are_mended_and_counted(tmp_path: Path) -> None:
    bow_tie = shapely.transform(BOW_TIE, lambda xy: xy * 50 + [500_000, 5_400_000])
    sliver = shapely.Polygon([(500_000, 5_400_000), (500_100, 5_400_000), (500_000, 5_400_000)])
    write_fields(tmp_path / "beet.gpkg", [field(500, 0), bow_tie, sliver, shapely.Polygon()])
    parcels = read_parcels(str(tmp_path), [crop("beet.gpkg")])
    assert parcels.mended == 1
    assert parcels.frame.geometry.is_valid.all()
    areas = parcels.frame.to_crs(UTM).area
    np.testing.assert_allclose(areas, [10_000, bow_tie.envelope.area / 2], rtol=1e-4)
    assert [row.item for row in parcels.dropped] == ["feature 2", "feature 3"]


def test_mending_keeps_the_polygonal_part_of_a_collection_and_drops_heights() -> None:
    square = shapely.box(0, 0, 1, 1)
    collection = shapely.GeometryCollection([square, shapely.LineString([(0, 0), (5, 5)])])
    high = shapely.force_3d(square, 7)
    mended, changed = mend(np.array([square, collection, BOW_TIE, high, None], dtype=object))
    assert changed.tolist() == [False, True, True, False, False]
    assert mended[1].equals(square)
    assert mended[2].is_valid
    assert mended[2].area == pytest.approx(2)
    assert not mended[3].has_z
    assert mended[4] is None


def write_lines(folder: Path) -> None:
    write_fields(folder / "beet.gpkg", [shapely.LineString([(5e5, 5.4e6), (5.1e5, 5.4e6)])])


def write_no_crs(folder: Path) -> None:
    write_fields(folder / "beet.shp", [field(0, 0)])
    (folder / "beet.prj").unlink()


def write_empty(folder: Path) -> None:
    write_fields(folder / "beet.gpkg", [field(0, 0)])
    gpd.read_file(folder / "beet.gpkg").iloc[:0].to_file(folder / "beet.gpkg")


def write_empty_geometries(folder: Path) -> None:
    write_fields(folder / "beet.gpkg", [shapely.Polygon(), None])


def write_slivers(folder: Path) -> None:
    write_fields(folder / "beet.gpkg", [shapely.Polygon([(5e5, 5.4e6), (5.1e5, 5.4e6), (5e5, 5.4e6)])])


def write_metres_as_degrees(folder: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[field(0, 0)], crs=UTM).set_crs("EPSG:4326", allow_override=True)
    frame.to_file(folder / "beet.gpkg")


def write_two_layers(folder: Path) -> None:
    for layer in ("spring", "autumn"):
        frame = gpd.GeoDataFrame(geometry=[field(0, 0)], crs=UTM)
        frame.to_file(folder / "beet.gpkg", layer=layer)


def write_text(folder: Path) -> None:
    (folder / "beet.gpkg").write_text("no vector file")


def write_table_without_geometry(folder: Path) -> None:
    (folder / "beet.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (write_lines, "beet.gpkg", r"1 features that are not polygons .*feature 0 is a LineString"),
        (write_no_crs, "beet.shp", r"has no CRS.*beet\.prj"),
        (write_empty, "beet.gpkg", "no features with a geometry"),
        (write_empty_geometries, "beet.gpkg", "no features with a geometry"),
        (write_slivers, "beet.gpkg", "none of its 1 features is a parcel"),
        (write_metres_as_degrees, "beet.gpkg", r"EPSG:4326 is in degrees.*Correct its CRS"),
        (write_two_layers, "beet.gpkg", r"2 layers .*\(spring, autumn\).*`layer`"),
        (write_text, "beet.gpkg", "as a vector file"),
        (write_table_without_geometry, "beet.csv", "no features with a geometry"),
    ],
)
def test_unusable_files_are_refused_by_name(
    tmp_path: Path, write: Callable[[Path], None], name: str, message: str
) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path / name))}\W.*{message}"):
        read_parcels(str(tmp_path), [crop(name)])


@pytest.mark.parametrize("suffix", [".shx", ".dbf"])
def test_a_missing_part_of_a_shapefile_is_named(tmp_path: Path, suffix: str) -> None:
    write_fields(tmp_path / "beet.shp", [field(0, 0)], Product=["beet"])
    (tmp_path / f"beet{suffix}").unlink()
    season = SeasonConfig(where={"Product": "beet"})
    with pytest.raises(InputError, match=rf"beet\{suffix} is missing beside beet\.shp"):
        read_parcels(str(tmp_path), [crop("beet.shp", season)])


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"there is no file {re.escape(str(tmp_path))}/beet/\*\.shp\W"):
        read_parcels(str(tmp_path), [crop("beet/*.shp")])


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parcels").mkdir()
    with pytest.raises(InputError, match=r"is a folder.* parcels/\*\.shp"):
        read_parcels(str(tmp_path), [crop("parcels")])


def test_filters_without_a_match_list_the_values_in_the_file(tmp_path: Path) -> None:
    write_fields(tmp_path / "beet.shp", [field(0, 0)], Product=["spring beet"])
    with pytest.raises(InputError, match=r"no parcel of beet in beet\.shp .*autumn beet.*spring beet"):
        read_parcels(str(tmp_path), [crop("beet.shp", SeasonConfig(where={"Product": "autumn beet"}))])
    with pytest.raises(InputError, match=r"beet\.shp has no attribute 'Produkt'.*'Product'"):
        read_parcels(str(tmp_path), [crop("beet.shp", SeasonConfig(where={"Produkt": "spring beet"}))])


def test_a_column_says_the_crop_and_a_star_a_whole_branch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [3301010101, 3301010102, 3301020000, 3302000000, 3301010101, None]
    fields = [field(500 * n, 0) for n in range(6)]
    write_fields(tmp_path / "lpis.gpkg", fields, EC_hcat_c=codes)
    crops = {"column": "EC_hcat_c", "map": {3301010101: "wheat", "330101*": "barley", "3301*": "cereal"}}
    crops["map"]["34*"] = "rye"
    parcels = read_parcels(str(tmp_path), [CropConfig(path="lpis.gpkg", crops=crops)])
    of = {season.crop: rows.tolist() for season, rows in parcels.seasons.items()}
    crop = parcels.frame["crop"].tolist()
    assert {name: [crop[row] for row in rows] for name, rows in of.items()} == {
        "wheat": ["wheat", "wheat"],
        "barley": ["barley"],
        "cereal": ["cereal"],
    }
    x = parcels.frame.to_crs(UTM).geometry.bounds["minx"].round().sub(EAST)
    assert {name: x.iloc[rows].tolist() for name, rows in of.items()} == {
        "wheat": [0, 2000],
        "barley": [500],
        "cereal": [1000],
    }
    assert [row.item for row in parcels.dropped] == ["feature 3 (3302000000)", "feature 5 (no value)"]
    assert "no parcel of rye" in capsys.readouterr().err


def test_a_map_without_a_match_lists_the_values_in_the_file(tmp_path: Path) -> None:
    write_fields(tmp_path / "lpis.gpkg", [field(0, 0)], code=["115"])
    entry = CropConfig(path="lpis.gpkg", crops={"column": "code", "map": {"33*": "wheat"}})
    with pytest.raises(InputError, match=r"lpis\.gpkg .*`crops.map` of code.*'115'"):
        read_parcels(str(tmp_path), [entry])


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "a"},
        {"path": "a", "crop": "wheat", "crops": {"column": "c", "map": {"1": "wheat"}}},
        {"path": "a", "crops": {"column": "c", "map": {"3*1": "wheat"}}},
        {"path": "a", "crops": {"column": "c", "map": {}}},
    ],
)
def test_an_entry_has_one_crop_or_a_map(entry: dict) -> None:
    with pytest.raises(ValidationError):
        CropConfig(**entry)


def test_a_file_of_many_crops_is_read_once_and_drops_a_parcel_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = [f"crop{n}" for n in range(12)]
    fields = [field(200 * n, 0) for n in range(120)]
    write_fields(tmp_path / "all.gpkg", [*fields, field(0, 500)], kind=[*crops * 10, "none of these"])
    entries = [CropConfig(crop=name, path="all.gpkg", seasons=[{"where": {"kind": name}}]) for name in crops]
    parcels = read_parcels(str(tmp_path), entries)
    assert "parcels: 1/1" in capsys.readouterr().err
    assert {season.crop: len(rows) for season, rows in parcels.seasons.items()} == dict.fromkeys(crops, 10)
    assert all((parcels.frame["crop"].iloc[rows] == s.crop).all() for s, rows in parcels.seasons.items())
    assert [(row.item, row.crop) for row in parcels.dropped] == [("feature 120", "")]


def test_one_field_of_two_crops_is_two_parcels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fields(tmp_path / "all.gpkg", [field(0, 0), field(500, 0)])
    entries = [CropConfig(crop=name, path="all.gpkg") for name in ("wheat", "beet")]
    parcels = read_parcels(str(tmp_path), entries)
    assert parcels.frame["crop"].tolist() == ["wheat", "wheat", "beet", "beet"]
    assert {season.crop: rows.tolist() for season, rows in parcels.seasons.items()} == {
        "wheat": [0, 1],
        "beet": [2, 3],
    }
    warned = capsys.readouterr().err
    assert "2 fields with more than one crop" in warned
    assert "wheat in all.gpkg, beet in all.gpkg" in warned


def test_points_stay_points_or_become_circles(tmp_path: Path) -> None:
    points = [shapely.Point(EAST, NORTH), shapely.MultiPoint([(EAST + 500, NORTH), (EAST + 600, NORTH)])]
    write_fields(tmp_path / "points.gpkg", [*points, field(1000, 0)])
    parcels = read_parcels(str(tmp_path), [crop("points.gpkg")])
    assert parcels.frame.geom_type.tolist() == ["Point", "MultiPoint", "Polygon"]
    round_ones = read_parcels(str(tmp_path), [crop("points.gpkg", radius_m=25.0)]).frame.to_crs(UTM)
    circle = 25**2 * np.pi
    np.testing.assert_allclose(round_ones.area, [circle, 2 * circle, 10_000], rtol=0.02)
    assert round_ones.centroid[0].distance(points[0]) < 0.1
    assert set(round_ones["parcel_id"]) == set(parcels.frame["parcel_id"])


def test_parcels_of_an_implausible_size_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fields(tmp_path / "beet.gpkg", [field(0, 0), field(0, 0, 20_000), field(0, 0, 0.5)])
    parcels = read_parcels(str(tmp_path), [crop("beet.gpkg")])
    assert len(parcels.frame) == 1
    assert [(row.item, row.reason.partition(" ")[0]) for row in parcels.dropped] == [
        ("feature 1 (399.1 km²)", "more"),  # 400.3 on the ellipsoid
        ("feature 2 (0.249 m²)", "less"),
    ]
    assert [row.crop for row in parcels.dropped] == ["beet", "beet"]
    shown = capsys.readouterr().err
    assert "feature 1 (399.1 km²)" in shown
    assert "rois.max_parcel_km2" in shown
    gpd.GeoDataFrame(geometry=[shapely.box(0.5, 0.1, 0.5001, 0.1001)], crs=UTM).to_file(tmp_path / "km.gpkg")
    with pytest.raises(InputError, match=r"km\.gpkg: none of its 1 features is a parcel.*Check its CRS"):
        read_parcels(str(tmp_path), [crop("km.gpkg")])


def test_parcels_on_both_sides_of_180_degrees_keep_their_size(tmp_path: Path) -> None:
    """Written in four ways: a ring that jumps, rings that run past from both sides, and two parts."""
    box = shapely.box(179.999, -17, 180.001, -16.998)
    jumping = shapely.transform(box, lambda xy: np.column_stack([(xy[:, 0] + 180) % 360 - 180, xy[:, 1]]))
    west = shapely.transform(box, lambda xy: xy - [360, 0])
    halves = [shapely.box(179.999, -17, 180, -16.998), shapely.box(-180, -17, -179.999, -16.998)]
    shapes = [box, jumping, west, shapely.MultiPolygon(halves)]
    gpd.GeoDataFrame(geometry=shapes, crs="EPSG:4326").to_file(tmp_path / "fiji.gpkg")
    frame = read_parcels(str(tmp_path), [crop("fiji.gpkg")]).frame
    assert parcels_crs(frame, "utm") in ("EPSG:32760", "EPSG:32701")
    there = frame.to_crs("EPSG:32760")
    np.testing.assert_allclose(there.area, 213 * 221, rtol=0.01)
    assert np.ptp(there.total_bounds[[0, 2]]) == pytest.approx(213, rel=0.03)  # it is turned

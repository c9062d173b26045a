"""Vector files as people have them: formats, layers, encodings, curves, and files that are not whole."""

import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely

from cropray.errors import InputError
from cropray.rois.vectors import find_files, read_features
from tests.rois_inputs import UTM, field, write_circle, write_fields, write_styles

FIELDS = [field(0, 0), field(500, 0), field(1000, 0)]
PERSIAN = ["چغندر", "گندم", "beet"]


@pytest.mark.parametrize("bbox", [False, True])
def test_geoparquet_is_read_with_or_without_a_column_of_boxes(tmp_path: Path, bbox: bool) -> None:
    frame = gpd.GeoDataFrame({"code": ["1", "2", "3"], "other": [1, 2, 3]}, geometry=FIELDS, crs=UTM)
    frame = frame.rename_geometry("shape")
    frame.to_parquet(tmp_path / "fields.parquet", write_covering_bbox=bbox)
    read = read_features(tmp_path / "fields.parquet", ["code"])
    assert list(read.columns) == ["code", "geometry"]
    assert read.crs == UTM
    assert read.geometry.tolist() == FIELDS
    with pytest.raises(InputError, match=r"no attribute 'cod'. Did you mean 'code'"):
        read_features(tmp_path / "fields.parquet", ["cod"])


def test_parquet_without_geometry_is_refused(tmp_path: Path) -> None:
    gpd.pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(InputError, match="is not GeoParquet"):
        read_features(tmp_path / "table.parquet", [])


def test_a_layer_is_chosen_by_name_and_tables_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "fields.gpkg"
    for number, layer in enumerate(("spring", "autumn")):
        gpd.GeoDataFrame({"n": [number]}, geometry=[FIELDS[number]], crs=UTM).to_file(file, layer=layer)
        write_styles(file) if not number else None
        if not number:
            assert read_features(file, ["n"])["n"].tolist() == [0]
    assert read_features(file, ["n"], layer="autumn")["n"].tolist() == [1]
    with pytest.raises(InputError, match=r"2 layers .*spring, autumn.*`layer`"):
        read_features(file, [])
    with pytest.raises(InputError, match=r"no layer 'autum'.*'autumn'"):
        read_features(file, [], layer="autum")


def test_curves_become_polygons(tmp_path: Path) -> None:
    file = write_circle(tmp_path / "curve.gpkg")
    (circle,) = read_features(file, ["code"]).geometry
    assert circle.geom_type == "MultiPolygon"
    assert circle.area == pytest.approx(np.pi * 100**2, rel=2e-3)


@pytest.mark.parametrize("encoding", ["UTF-8", "cp1256"])
def test_text_without_a_cpg_is_utf_8_or_what_the_setting_says(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "fields.shp"
    frame = gpd.GeoDataFrame({"crop": PERSIAN}, geometry=FIELDS, crs=UTM)
    pyogrio.write_dataframe(frame, file, encoding=encoding)
    assert read_features(file, ["crop"])["crop"].tolist() == PERSIAN
    file.with_suffix(".cpg").unlink()
    if encoding == "UTF-8":
        assert read_features(file, ["crop"])["crop"].tolist() == PERSIAN
        return
    with pytest.raises(InputError, match=r"fields\.dbf.*not UTF-8.*`encoding`.*cp1256"):
        read_features(file, ["crop"])
    assert read_features(file, ["crop"], encoding="cp1256")["crop"].tolist() == PERSIAN
    with pytest.raises(InputError, match="utf-8"):
        read_features(file, ["crop"], encoding="utf-8")
    with pytest.raises(InputError, match="'klingon' is unknown"):
        read_features(file, ["crop"], encoding="klingon")
    assert len(read_features(file, [])) == 3  # nobody asks for text


def test_the_language_of_a_dbf_counts(tmp_path: Path) -> None:
    file = tmp_path / "fields.shp"
    frame = gpd.GeoDataFrame({"crop": ["blé", "maïs", "orge"]}, geometry=FIELDS, crs=UTM)
    pyogrio.write_dataframe(frame, file, encoding="cp1252")
    file.with_suffix(".cpg").unlink()
    table = bytearray(file.with_suffix(".dbf").read_bytes())
    table[29] = 0x57  # "ANSI"
    file.with_suffix(".dbf").write_bytes(table)
    assert read_features(file, ["crop"])["crop"].tolist() == ["blé", "maïs", "orge"]


DRIVERS = {
    "sqlite": "SQLite",
    "geojsonl": "GeoJSONSeq",
    "mif": "MapInfo File",
    "jml": "JML",
    "kml": "KML",
}
CUT = {
    **dict.fromkeys(("shp", "shx", "dbf"), "fields.shp"),
    **{suffix: f"fields.{suffix}" for suffix in (*DRIVERS, "gpkg", "geojson", "fgb", "parquet", "gml")},
    "dat": "fields.tab",
}


@pytest.mark.parametrize("suffix", CUT)
@pytest.mark.parametrize("left", [0.5, 0.97])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, left: float) -> None:
    shapes = [field(200 * n, 0) for n in range(300)]
    frame = gpd.GeoDataFrame({"code": [str(n) for n in range(300)]}, geometry=shapes, crs=UTM)
    file, columns = tmp_path / CUT[suffix], ["Name" if suffix == "kml" else "code"]
    if suffix == "parquet":
        frame.to_parquet(file)
    else:
        in_degrees = suffix in ("geojson", "geojsonl", "kml")
        frame = frame.rename(columns={"code": columns[0]})
        (frame.to_crs(4326) if in_degrees else frame).to_file(file, driver=DRIVERS.get(suffix))
    assert len(read_features(file, columns)) == 300
    cut = tmp_path / f"fields.{suffix}"
    data = cut.read_bytes()
    cut.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(InputError, match=rf"fields\.{suffix}") as refusal:
        read_features(file, columns)
    assert not re.search("area|CRS", str(refusal.value))


def test_a_truncated_geodatabase_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    shapes = [shapely.MultiPolygon([field(200 * n, 0)]) for n in range(300)]
    file = tmp_path / "fields.gdb"
    gpd.GeoDataFrame(geometry=shapes, crs=UTM).to_file(file, driver="OpenFileGDB")
    assert len(read_features(file, [])) == 300
    table = max(file.glob("*.gdbtable"), key=lambda path: path.stat().st_size)
    table.write_bytes(table.read_bytes()[:-1000])
    with pytest.raises(InputError, match=rf"{table.name} is truncated"):
        read_features(file, [])
    (tmp_path / "none.shp").touch()
    with pytest.raises(InputError, match=r"none\.shp is empty"):
        read_features(tmp_path / "none.shp", [])


def test_points_of_a_table_are_read_if_they_are_wanted(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("crop;Lon;lat\nwheat;3.1;51.2\nmaize;3.2;51.3\n")
    read = read_features(file, ["crop"], points=True)
    assert read["crop"].tolist() == ["wheat", "maize"]
    assert read.crs == "EPSG:4326"
    assert [(p.x, p.y) for p in read.geometry] == [(3.1, 51.2), (3.2, 51.3)]
    with pytest.raises(InputError, match=r"2 features that are not polygons .*Point"):
        read_features(file, ["crop"])
    for text in ("lon,lat\n3 E,51\n", "lon;lat\n3,5;51,2\n"):
        file.write_text(text)
        with pytest.raises(InputError, match="Give degrees, with a decimal point"):
            read_features(file, [], points=True)


def test_a_table_of_points_may_be_long_have_a_title_and_lack_coordinates(tmp_path: Path) -> None:
    file, count = tmp_path / "points.csv", 250_000  # more rows than a spreadsheet of ROIs may have
    rows = "".join(f"{3 + n * 1e-6:.6f},51,blé\n" for n in range(count))
    file.write_bytes(f"Survey of 2022\nLongitude,Latitude, crop\n{rows},,blé\nnan,51,blé\n".encode("cp1252"))
    read = read_features(file, ["crop"], points=True, encoding="cp1252")
    assert set(read["crop"]) == {"blé"}
    assert read.geometry.isna().to_numpy().nonzero()[0].tolist() == [count, count + 1]
    with pytest.raises(InputError, match=r"points\.csv is not UTF-8 text\. Set `encoding`"):
        read_features(file, ["crop"], points=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [("x,y\n3,51\n", "lon and lat in degrees"), ('WKT\n"POINT (3 51)"\n', "lon and lat in degrees")],
)
def test_a_table_without_degrees_says_what_is_wanted(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_features(tmp_path / "points.csv", [], points=True)


def test_a_glob_takes_no_parts_of_shapefiles_and_a_folder_names_one_that_works(tmp_path: Path) -> None:
    for name in ("a.b", "c"):
        write_fields(tmp_path / "all" / f"{name}.shp", [FIELDS[0]])
    (tmp_path / "all" / "c.shp.xml").write_text("<metadata/>")
    assert [file.name for file in find_files(str(tmp_path), "all/*")] == ["a.b.shp", "c.shp"]
    with pytest.raises(InputError, match=r"is a folder.*all/\*\.shp"):
        find_files(str(tmp_path), "all")
    gpd.GeoDataFrame(geometry=FIELDS, crs=UTM).to_parquet(tmp_path / "all" / "part-0.parquet")
    with pytest.raises(InputError, match=r"all/\*\.parquet"):
        find_files(str(tmp_path), "all")
    with pytest.raises(InputError, match="is a URL"):
        find_files(str(tmp_path), "https://example.com/fields.gpkg")


def test_mixed_points_and_polygons_are_one_layer(tmp_path: Path) -> None:
    write_fields(tmp_path / "mixed.gpkg", [FIELDS[0], shapely.Point(500_000, 5_400_000)])
    kinds = read_features(tmp_path / "mixed.gpkg", [], points=True).geom_type.tolist()
    assert kinds == ["Polygon", "Point"]

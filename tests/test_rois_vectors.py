"""Vector files as people have them: formats, layers, encodings, curves, and files that are not whole."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely

from cropray.errors import InputError
from cropray.rois.vectors import read_features
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


@pytest.mark.parametrize("suffix", ["shp", "shx", "dbf", "gpkg", "geojson", "fgb", "parquet"])
@pytest.mark.parametrize("left", [0.5, 0.97])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, left: float) -> None:
    shapes = [field(200 * n, 0) for n in range(300)]
    frame = gpd.GeoDataFrame({"code": [str(n) for n in range(300)]}, geometry=shapes, crs=UTM)
    file = tmp_path / f"fields.{'shp' if suffix in ('shp', 'shx', 'dbf') else suffix}"
    if suffix == "parquet":
        frame.to_parquet(file)
    else:
        (frame.to_crs(4326) if suffix == "geojson" else frame).to_file(file)
    assert len(read_features(file, ["code"])) == 300
    cut = tmp_path / f"fields.{suffix}"
    data = cut.read_bytes()
    cut.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(InputError, match=rf"fields\.{suffix}") as refusal:
        read_features(file, ["code"])
    assert "area" not in str(refusal.value)


def test_points_of_a_table_are_read_if_they_are_wanted(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("crop;Lon;lat\nwheat;3.1;51.2\nmaize;3.2;51.3\n")
    read = read_features(file, ["crop"], points=True)
    assert read["crop"].tolist() == ["wheat", "maize"]
    assert read.crs == "EPSG:4326"
    assert [(p.x, p.y) for p in read.geometry] == [(3.1, 51.2), (3.2, 51.3)]
    with pytest.raises(InputError, match=r"2 features that are not polygons .*Point"):
        read_features(file, ["crop"])
    file.write_text("lon,lat\n3 E,51\n")
    with pytest.raises(InputError, match="Give degrees"):
        read_features(file, [], points=True)


def test_mixed_points_and_polygons_are_one_layer(tmp_path: Path) -> None:
    write_fields(tmp_path / "mixed.gpkg", [FIELDS[0], shapely.Point(500_000, 5_400_000)])
    kinds = read_features(tmp_path / "mixed.gpkg", [], points=True).geom_type.tolist()
    assert kinds == ["Polygon", "Point"]

import json
import re
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
import shapely

from cropray.config.rois import RoisConfig
from cropray.errors import InputError
from cropray.rois.table import read_table

CLASSES = ("barley", "sunflower")
BOX = (10.0, 50.0, 10.5, 50.25)
RING = [[10, 50], [10.5, 50], [10.5, 50.25], [10, 50.25], [10, 50]]


def config(folder: Path, name: str = "rois.csv", **settings: object) -> RoisConfig:
    return RoisConfig(kind="table", data_root=str(folder), table=name, **settings)


def write_rois(folder: Path, *rois: object, **columns: list) -> None:
    pd.DataFrame({"roi": rois, **columns}).to_csv(folder / "rois.csv", index=False)


@pytest.mark.parametrize(
    "text",
    [
        "10,50,10.5,50.25",
        "[10.0, 50.0, 10.5, 50.25]",
        shapely.box(*BOX).wkt,
        json.dumps({"type": "Polygon", "coordinates": [RING]}),
        json.dumps(
            {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [RING]}}
        ),
        str({"geodesic": False, "type": "Polygon", "coordinates": [RING]}),
        json.dumps([RING]),
        json.dumps(RING),
        str([tuple(point) for point in RING]),
    ],
)
def test_a_box_may_be_written_in_many_ways(tmp_path: Path, text: str) -> None:
    write_rois(tmp_path, text)
    (roi,) = read_table(config(tmp_path), CLASSES)
    assert (roi.bounds, roi.crs) == (BOX, "EPSG:4326")
    assert (roi.crop, roi.split, roi.harvest_start) == ("", "", None)


def test_the_spreadsheet_of_the_published_regions_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame(
        {
            "roi": ["10,50,10.5,50.25", "20,50,20.5,50.25"],
            "harvest_date": pd.to_datetime(["2018-08-01", "2018-09-01"]),
            "main_type": ["suger beat, barley", "Sunflower "],
            "country": ["france", "hungry"],
            "uuid": ["a-1", "b-2"],
        }
    )
    frame.to_excel(tmp_path / "rois.xlsx", index=False)
    rois = read_table(config(tmp_path, "rois.xlsx"), CLASSES)
    assert "ROIs: 2/2" in capsys.readouterr().err
    assert [(roi.roi_id, roi.country, roi.harvest_start, roi.crop) for roi in rois] == [
        ("a-1", "france", date(2018, 8, 1), ""),
        ("b-2", "hungry", date(2018, 9, 1), "sunflower"),
    ]


def test_corners_in_columns_are_degrees(tmp_path: Path) -> None:
    columns = dict(zip(("min_lon", "min_lat", "max_lon", "max_lat"), BOX, strict=True))
    pd.DataFrame([columns | {"country": "here"}]).to_csv(tmp_path / "rois.csv", index=False)
    (roi,) = read_table(config(tmp_path, crs="EPSG:3857"), CLASSES)
    assert (roi.bounds, roi.crs) == (BOX, "EPSG:4326")
    assert roi.roi_id.startswith("here-")


def test_large_coordinates_need_a_named_crs(tmp_path: Path) -> None:
    write_rois(tmp_path, "1113194,6446275,1168854,6490000")
    (roi,) = read_table(config(tmp_path, crs="EPSG:3857"), CLASSES)
    assert roi.crs == "EPSG:3857"
    with pytest.raises(InputError, match=r"rois\.csv, row 2: .* not degrees.*rois\.crs"):
        read_table(config(tmp_path), CLASSES)


def test_identities_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    boxes = ["10,50,10.5,50.25", "20,50,20.5,50.25"]
    write_rois(tmp_path, *boxes)
    first = {roi.roi_id for roi in read_table(config(tmp_path), CLASSES)}
    write_rois(tmp_path, *boxes[::-1])
    assert {roi.roi_id for roi in read_table(config(tmp_path), CLASSES)} == first
    assert len(first) == 2


def test_named_splits_use_the_country_or_the_uuid(tmp_path: Path) -> None:
    write_rois(tmp_path, "10,50,10.5,50.25", "20,50,20.5,50.25", country=["here", "there"], uuid=["a", "b"])
    rois = read_table(config(tmp_path, split={"named": {"here": "train", "b": "test"}}), CLASSES)
    assert [roi.split for roi in rois] == ["train", "test"]
    with pytest.raises(InputError, match=r"row 3: rois\.split\.named has no split for 'b'.*here"):
        read_table(config(tmp_path, split={"named": {"here": "train"}}), CLASSES)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"roi": ["a field"]},
            r"row 2: cannot read roi 'a field'.*minx,miny,maxx,maxy, WKT or GeoJSON",
        ),
        ({"roi": ["10,50,11"]}, "row 2: cannot read roi"),
        ({"roi": ["POLYGON EMPTY"]}, "row 2: .* is not a box"),
        ({"roi": ["11,50,10,51"]}, "row 2: .*min x < max x.*180°"),
        ({"roi": ["nan,50,10,51"]}, "row 2: .* is not a box"),
        ({"roi": ["10,50,11,51"], "harvest_date": ["August"]}, "row 2: harvest_date is 'August'.*YYYY-MM-DD"),
        *(
            ({"roi": ["10,50,11,51"], "uuid": [name]}, rf"row 2: uuid '{re.escape(name)}' cannot name a file")
            for name in ("../a", "..", ".", "a/b", "-a")
        ),
        ({"roi": ["10,50,11,51"] * 2}, "two rows for the ROI"),
        ({"roi": ["10,50,11,51", "1113194,6446275,1168854,6490000"]}, "mixes coordinates .*EPSG:3857 and"),
        ({"min_lon": [1], "min_lat": [1], "max_lon": [2], "maxlat": [2]}, "'max_lat'.*'maxlat'"),
        ({"min_lon": ["x"], "min_lat": [1], "max_lon": [2], "max_lat": [2]}, "row 2: .*'x'.*degrees"),
        ({"roi": []}, "has no rows"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, columns: dict[str, list], message: str) -> None:
    pd.DataFrame(columns).to_csv(tmp_path / "rois.csv", index=False)
    with pytest.raises(InputError, match=rf"rois\.csv.*{message}"):
        read_table(config(tmp_path, crs="EPSG:3857"), CLASSES)


def test_a_missing_or_unreadable_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rois\.table is not set"):
        read_table(config(tmp_path, ""), CLASSES)
    with pytest.raises(InputError, match=r"no table of ROIs .*rois\.csv.*rois\.table"):
        read_table(config(tmp_path), CLASSES)
    (tmp_path / "rois.xlsx").write_text("no workbook")
    with pytest.raises(InputError, match=r"cannot read .*rois\.xlsx"):
        read_table(config(tmp_path, "rois.xlsx"), CLASSES)


def test_a_box_across_180_degrees_runs_past_it(tmp_path: Path) -> None:
    columns = dict(zip(("min_lon", "min_lat", "max_lon", "max_lat"), (179.5, -17, -179.5, -16), strict=True))
    pd.DataFrame([columns]).to_csv(tmp_path / "rois.csv", index=False)
    (roi,) = read_table(config(tmp_path), CLASSES)
    assert roi.bounds == (179.5, -17, 180.5, -16)
    write_rois(tmp_path, "179.5,-17,-179.5,-16")
    assert [roi.bounds for roi in read_table(config(tmp_path), CLASSES)] == [(179.5, -17, 180.5, -16)]

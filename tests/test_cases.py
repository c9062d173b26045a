"""Inputs that people have, each with a value known from elsewhere. `make cases` prints a line for each.

Every case makes its own files, so all of them run everywhere.
"""

from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from cropray.config import Config
from cropray.errors import InputError
from cropray.rois.build import build_rois
from cropray.rois.store import DROPPED, read_parcels, read_rois
from cropray.run import Run
from cropray.storage import Folder
from tests.rois_inputs import EAST, NORTH, UTM, field, write_circle, write_fields, write_styles


def run_of(folder: Path, *entries: dict, classes: tuple[str, ...] = ("wheat", "beet"), **rois: object) -> Run:
    settings = {"data_root": str(folder), "parcels": entries, "split": {"allow_empty": True}, "crs": UTM}
    return Run(Folder(str(folder / "run")), Config(classes=classes, rois=settings | rois))


def areas(run: Run) -> list[float]:
    build_rois(run)
    return read_parcels(run.folder).to_crs(UTM).area.round().tolist()


class TestCase6ASettingThatContradictsItself:
    def test_nodata_that_is_a_class_is_refused(self) -> None:
        with pytest.raises(ValueError, match="code 0 cannot be in `codes` and mean no data"):
            Config(classes=("a", "b"), labels={"class_map": {"path": "zero_class.tif", "codes": [0, 1]}})


class TestCase7VectorFiles:
    def test_geoparquet_with_a_column_of_boxes(self, tmp_path: Path) -> None:
        frame = gpd.GeoDataFrame({"code": ["411", "115"]}, geometry=[field(0, 0), field(500, 0)], crs=UTM)
        frame.to_parquet(tmp_path / "fields.parquet", write_covering_bbox=True)
        entry = {
            "path": "fields.parquet",
            "crops": {"column": "code", "map": {"411": "wheat", "115": "beet"}},
        }
        assert areas(run_of(tmp_path, entry)) == [10_000, 10_000]

    def test_a_geopackage_with_the_styles_of_qgis(self, tmp_path: Path) -> None:
        write_fields(tmp_path / "styled.gpkg", [field(0, 0)])
        write_styles(tmp_path / "styled.gpkg")
        assert areas(run_of(tmp_path, {"crop": "wheat", "path": "styled.gpkg"})) == [10_000]

    def test_a_curve(self, tmp_path: Path) -> None:
        write_circle(tmp_path / "curve.gpkg", radius=100.0)
        (area,) = areas(run_of(tmp_path, {"crop": "wheat", "path": "curve.gpkg"}))
        assert area == pytest.approx(31_416, rel=1e-3)

    def test_a_layer_of_several(self, tmp_path: Path) -> None:
        for layer, size in (("old", 50.0), ("new", 200.0)):
            shapes = gpd.GeoDataFrame(geometry=[field(0, 0, size)], crs=UTM)
            shapes.to_file(tmp_path / "layers.gpkg", layer=layer)
        assert areas(run_of(tmp_path, {"crop": "wheat", "path": "layers.gpkg", "layer": "new"})) == [40_000]

    def test_points_beside_polygons(self, tmp_path: Path) -> None:
        write_fields(tmp_path / "points.gpkg", [shapely.Point(EAST, NORTH)])
        write_fields(tmp_path / "fields.gpkg", [field(9000, 0)])
        run = run_of(tmp_path, *({"crop": "wheat", "path": f"{name}.gpkg"} for name in ("points", "fields")))
        assert sorted(areas(run)) == [0, 10_000]
        assert len(read_rois(run.folder)) == 2


def test_case_8_a_file_with_many_crops_drops_a_parcel_once_at_most(tmp_path: Path) -> None:
    crops = tuple(f"crop{n}" for n in range(12))
    fields = [field(150 * (n % 50), 150 * (n // 50)) for n in range(1200)]
    write_fields(tmp_path / "all.gpkg", fields, crop=[crops[n % 12] for n in range(1200)])
    entries = [{"crop": name, "path": "all.gpkg", "seasons": [{"where": {"crop": name}}]} for name in crops]
    run = run_of(tmp_path, *entries, classes=crops)
    summary = build_rois(run)
    assert (summary["parcels"], summary["dropped"]) == (1200, {})
    assert len(pd.read_csv(run.folder.local(DROPPED))) == 0


class TestCase9ADenseCadastre:
    """64 x 64 fields of 200 m that touch, two crops."""

    @pytest.fixture(autouse=True)
    def _cadastre(self, tmp_path: Path) -> None:
        places = [(x, y) for x in range(64) for y in range(64)]
        fields = [field(200 * x, 200 * y, size=200) for x, y in places]
        write_fields(
            tmp_path / "all.gpkg", fields, crop=["wheat" if (x + y) % 2 else "beet" for x, y in places]
        )

    ENTRY = {  # noqa: RUF012
        "path": "all.gpkg",
        "crops": {"column": "crop", "map": {"wheat": "wheat", "beet": "beet"}},
    }

    def test_clusters_name_the_grid(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"2 ROIs.*1 components.*rois\.kind=grid.*allow_empty"):
            build_rois(run_of(tmp_path, self.ENTRY, split={}))

    def test_a_grid_has_all_splits_and_both_crops_in_each(self, tmp_path: Path) -> None:
        summary = build_rois(run_of(tmp_path, self.ENTRY, kind="grid", split={}))
        assert min(summary["by_split"].values()) > 0
        assert summary["missing"] == {}

"""Inputs that people have, each with a value known from elsewhere. `make cases` prints a line for each.

Every case makes its own files, so all of them run everywhere. Small scenes are constants on GRID.
"""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import planetary_computer
import pystac
import pytest
import shapely
import torch

from cropray.bands import S2_BANDS, SCL_ALIASES
from cropray.config import Config
from cropray.config.imagery import StacConfig, StacSentinel1Config, StacSentinel2Config
from cropray.errors import DivergedError, InputError
from cropray.evaluation.metrics import confusion, per_class
from cropray.imagery.stac import FileCatalogue, StacSource, search
from cropray.imagery.stac_items import find_asset, footprint, reflectance_scaling
from cropray.maps.request import plan_maps
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.losses import LossRecipe
from cropray.models.normalisation import FixedNormalisation
from cropray.rois.build import build_rois
from cropray.rois.store import DROPPED, read_parcels, read_rois
from cropray.rois.vectors import read_features
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.shards.schema import quantise_composite
from cropray.storage import Folder
from cropray.training.recipe import Recipe, initial_network
from cropray.training.step import Trainer
from cropray.tuning.space import Trial
from cropray.types import CompositeRecipe, ImageRequest, Period
from tests import catalogue_items
from tests.catalogue_items import REFLECTANCE, copernicus_s2
from tests.rois_inputs import EAST, NORTH, UTM, field, write_circle, write_fields, write_styles
from tests.stac_server import serve
from tests.test_stac import GAMMA0, JANUARY, composite, s1_item, s2_item, source
from tests.training_data import CLASSES, MONTHS, write_split

OLD, NEW = ({"s2:processing_baseline": number, "platform": "sentinel-2a"} for number in ("03.01", "05.09"))
OF_1A = {**GAMMA0, "platform": "sentinel-1a"}


class TestCase1OneAcquisitionCountsOnce:
    """Reflectance 0.10, 0.30 and 0.50, the first twice; power 0.1 twice and 0.4."""

    def test_reprocessed_and_searched_twice(self, tmp_path: Path) -> None:
        scenes = [
            s2_item(tmp_path, "a-old", "2022-01-05T10:00:31", 2000, OLD),  # 0.20: the newer one wins
            s2_item(tmp_path, "a-new", "2022-01-05T10:00:31", 2000, NEW),
            s2_item(tmp_path, "b", "2022-01-10", 4000, NEW),
            s2_item(tmp_path, "c", "2022-01-15", 6000, NEW),
        ]
        got = composite(source(tmp_path, [*scenes, scenes[1]]))
        np.testing.assert_allclose(got.s2_tchw[0], 0.30, atol=1e-6)

    def test_overlapping_slices_of_a_radar_pass(self, tmp_path: Path) -> None:
        scenes = [
            s1_item(tmp_path, "first", "2022-01-05T05:12:00", 0.1, OF_1A),
            s1_item(tmp_path, "next", "2022-01-05T05:12:25", 0.1, OF_1A),
            s1_item(tmp_path, "later", "2022-01-17T05:12:00", 0.4, OF_1A),
        ]
        got = composite(source(tmp_path, s1=scenes))
        np.testing.assert_allclose(10 ** (got.s1_tchw[0] / 10), 0.25, rtol=1e-5)


class TestCase2ImpossibleValues:
    def test_an_offset_that_was_applied_already_is_named_with_band_and_share(self, tmp_path: Path) -> None:
        flag = {"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": False}
        with pytest.raises(InputError, match=r"S2-W: 100% of B02 lies outside -0\.02 to"):
            composite(source(tmp_path, [s2_item(tmp_path, "S2-W", "2022-01-10", 400, flag)]))

    @pytest.mark.parametrize("power", [250.0, -12.3], ids=["digital numbers", "dB"])
    def test_radar_in_another_unit_is_left_out_by_name(self, tmp_path: Path, power: float) -> None:
        good = [s1_item(tmp_path, f"good-{day}", f"2022-01-{day}", 0.1) for day in (10, 20)]
        got = composite(source(tmp_path, s1=[*good, s1_item(tmp_path, "raw", "2022-01-15", power)]))
        assert [line.partition(" of VV")[0] for line in got.lost] == ["raw: 100%"]
        np.testing.assert_allclose(got.s1_tchw[0], -10, atol=1e-4)


def test_case_3_the_pass_is_chosen_by_valid_pixels(tmp_path: Path) -> None:
    empty = s1_item(tmp_path, "up", "2022-01-05", np.nan, orbit=7)  # its footprint covers the region
    good = s1_item(tmp_path, "down", "2022-01-06", 0.1, orbit=3, orbit_pass="descending")
    got = composite(source(tmp_path, s1=[empty, good]))
    assert got.s1_valid_thw[0].mean() == 1
    assert got.orbits_s1 == ("descending 3",)


class TestCase4Longitudes:
    @pytest.mark.parametrize("shift", [0, 360, -360])
    def test_a_ring_beyond_180_degrees_is_found(self, tmp_path: Path, shift: float) -> None:
        ring = shapely.box(179.5 + shift, -17.5, 180.5 + shift, -16.5)
        when = datetime(2022, 1, 5, tzinfo=UTC)
        item = pystac.Item("x", shapely.geometry.mapping(ring), None, when, {})
        assert footprint(item).intersects(shapely.Point(-179.9, -17))
        path = tmp_path / "items.json"
        path.write_text(json.dumps(pystac.ItemCollection([item]).to_dict()))
        catalogue = FileCatalogue(str(path), "")
        for lon in (179.9, -179.9):
            assert search(catalogue, shapely.Point(lon, -17), date(2022, 1, 1), date(2022, 2, 1))
        assert not search(catalogue, shapely.Point(0, -17), date(2022, 1, 1), date(2022, 2, 1))

    def test_an_area_across_180_degrees_is_one_map(self, tmp_path: Path) -> None:
        (plan,) = plan_maps("179.9,-16.9,-179.9,-16.8", Config(), Folder(str(tmp_path)))
        assert plan.grid.width * 10 == pytest.approx(21_300, abs=300)


def test_case_5_keys_of_copernicus_data_space_are_known(tmp_path: Path) -> None:
    item = copernicus_s2(tmp_path, lambda name: f"./{name}")
    (tmp_path / "s2.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    stac = StacSource(StacConfig(s2=StacSentinel2Config(items=str(tmp_path / "s2.json"))))
    months = (Period(date(2022, 5, 1), date(2022, 6, 1)),)
    request = ImageRequest(
        catalogue_items.GRID, catalogue_items.GRID, months, CompositeRecipe(sensors=("s2",))
    )
    got = stac.composite(request)
    assert got.s2_valid_thw[0, 2:, 2:].all()
    for c, value in enumerate(REFLECTANCE.values()):
        np.testing.assert_allclose(got.s2_tchw[0, c, 2:, 2:], value, atol=2e-4)


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


def test_case_10_a_dead_asset_costs_its_scene(tmp_path: Path) -> None:
    scenes = [s2_item(tmp_path, f"S2-{day}", f"2022-01-{day}", 10 * day, OLD) for day in (10, 20, 30)]
    (tmp_path / "S2-20" / "B03.tif").unlink()
    got = composite(source(tmp_path, scenes))
    np.testing.assert_allclose(got.s2_tchw[0], 0.02, atol=1e-6)
    (line,) = got.lost
    assert line.startswith("S2-20: ")
    assert "B03.tif" in line
    with pytest.raises(InputError, match="1 of 3 Sentinel-2 scenes"):
        composite(source(tmp_path, scenes), max_lost=0.3)


class TestCase11Signing:
    @pytest.fixture
    def asset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        """A server whose files answer 409 without a signature."""

        def answer(request: Any) -> int | dict[str, Any] | None:
            if request.path.startswith("/token/"):
                return {"msft:expiry": "2099-01-01T00:00:00Z", "token": "sig=good"}
            return 409 if request.path.endswith(".tif") else None

        def signed(request: Any) -> int | dict[str, Any] | None:
            return None if request.path.endswith("?sig=good") else answer(request)

        planetary_computer.sas.TOKEN_CACHE.clear()
        item = s1_item(tmp_path / "container", "S1", "2022-01-05", 0.1)
        items: list[dict[str, Any]] = []
        with serve(items, folder=tmp_path, answer=signed) as (url, _):
            for asset in item.assets.values():
                asset.href = f"{url}/container/{asset.href.removeprefix('./')}"
            items.append({**item.to_dict(include_self_link=False), "collection": "rtc"})
            monkeypatch.setattr(planetary_computer.sas, "BLOB_STORAGE_DOMAIN", url.removeprefix("http://"))
            monkeypatch.setattr(planetary_computer.settings.Settings.get(), "sas_url", f"{url}/token")
            yield {"api": url, "collection": "rtc"}

    def test_unsigned_assets_are_refused_with_the_setting(self, asset: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"409.*source\.stac\.s1\.sign: planetary-computer"):
            composite(StacSource(StacConfig(s1=StacSentinel1Config(**asset))), sensors=("s1",))

    def test_signed_assets_are_read(self, asset: dict[str, Any]) -> None:
        signed = StacSentinel1Config(**asset, sign="planetary-computer")
        got = composite(StacSource(StacConfig(s1=signed)), sensors=("s1",))
        np.testing.assert_allclose(got.s1_tchw[0], -10, atol=1e-4)


def test_case_12_a_network_is_told_which_sensor_is_missing(tmp_path: Path) -> None:
    scene = s2_item(tmp_path, "S2", "2022-01-05", 2000, OLD)
    (tmp_path / "s2.json").write_text(json.dumps(pystac.ItemCollection([scene]).to_dict()))
    alone = StacSource(StacConfig(s2=StacSentinel2Config(items=str(tmp_path / "s2.json"))))
    got = composite(alone, periods=(JANUARY,))
    s1, s2 = (torch.from_numpy(np.ascontiguousarray(cube))[None] for cube in quantise_composite(got))
    *_, valid = FixedNormalisation().apply(s1, s2)
    assert (valid[:, 0].all(), valid[:, 1].any()) == (True, False)  # Sentinel-2, Sentinel-1


def test_case_13_a_class_without_support_has_no_recall() -> None:
    truth, predicted = np.array([0, 0, 0], np.uint8), np.array([0, 0, 1], np.uint8)
    wheat, beet, *_ = per_class(confusion(truth, predicted, 2))
    assert wheat["recall"] == pytest.approx(2 / 3)
    assert (beet["recall"], beet["support"]) == (None, 0)
    assert json.loads(json.dumps(beet))["recall"] is None


def test_case_14_a_diverged_training_says_so_and_is_over(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    write_split(folder, "train", 6)
    (batch,) = ShardReader(shard_uris(folder, "train"), batch_size=6).epoch(0)
    recipe = Recipe(epochs=2, lr=1e30, head_lr=1e30, loss=LossRecipe("own_crop"), max_nonfinite=1)
    spec = NetworkSpec(len(CLASSES), width=4, months=MONTHS)
    trainer = Trainer(
        initial_network(spec, 0), FixedNormalisation(), recipe, 4, torch.device("cpu"), new_head=True
    )
    trainer.train_mode()

    def train() -> None:
        for index in range(9):
            trainer.step(batch, 0, index)

    with pytest.raises(DivergedError, match="Lower the learning rate"):
        train()
    assert Trial("0001", {}, end="diverged").over  # so a sweep does not try it again


class TestTheFilesOfTheCases:
    """The files that the cases were reported with, if they are at hand."""

    @pytest.fixture
    def files(self, shared_data: Path) -> Path:
        folder = shared_data.parent / "cases"
        if not folder.is_dir():
            pytest.skip(f"no files of cases at {folder}")
        return folder

    @pytest.mark.parametrize("name", ["curve.gpkg", "styled.gpkg", "fields.parquet"])
    def test_vector_files(self, files: Path, name: str) -> None:
        found = read_features(files / name, ())
        assert (found.area > 0).all()
        if name == "curve.gpkg":
            assert found.area.iloc[-1] == pytest.approx(31_416, rel=1e-3)

    def test_the_item_of_copernicus_data_space(self, files: Path) -> None:
        (item,) = pystac.ItemCollection.from_file(str(files / "cdse_item.json"))
        for band in S2_BANDS:
            asset = find_asset(item, band.aliases)
            assert asset.href == f"{band.name}.tif"
            assert reflectance_scaling(item, asset, StacSentinel2Config()).offset == -0.1
        assert find_asset(item, SCL_ALIASES) is item.assets["SCL_20m"]

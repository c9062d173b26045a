import json
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.config.rois import RoisConfig
from cropray.errors import InputError
from cropray.labels import burn_parcels
from cropray.pipeline.tiles import parcels_near, plan_tiles
from cropray.rois.build import build_rois, fingerprints
from cropray.rois.store import DROPPED, PARCELS, ROIS, read_parcels, read_rois
from cropray.run import Run
from cropray.simulation.tables import CROPS
from cropray.storage import Folder
from tests import rois_inputs
from tests.rois_inputs import UTM, field, write_calendar, write_fields

ROOT = Path(__file__).parents[1]

SIMULATED = {"kind": "simulated"}


def run_in(folder: Path, config: Config) -> Run:
    return Run(Folder(str(folder)), config)


@pytest.fixture
def region(tmp_path: Path) -> Path:
    folder = tmp_path / "region"
    rois_inputs.write_region(folder)
    return folder


def test_clusters_become_padded_dated_regions_of_their_province(region: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", rois_inputs.config(region))
    summary = build_rois(run)
    rois = {(roi.crop, round(roi.bounds[0] - rois_inputs.EAST)): roi for roi in read_rois(run.folder)}
    assert summary["rois"] == 4
    # 300 x 100 m of two fields at (1000, 1000), widened evenly to 640 m.
    assert set(rois) == {("wheat", 830), ("wheat", 19_730), ("wheat", 69_730), ("beet", 730)}
    pair = rois["wheat", 830]
    corner = np.array([rois_inputs.EAST, rois_inputs.NORTH] * 2)
    np.testing.assert_allclose(np.array(pair.bounds) - corner, [830, 730, 1470, 1370], atol=1e-3)
    assert (pair.province, rois["wheat", 69_730].province, pair.country) == ("West", "East", "Nowhere")
    assert (pair.planting_start, pair.harvest_start) == (date(2021, 10, 1), date(2022, 7, 1))
    assert pair.crs == UTM
    assert rois["beet", 730].harvest_start == date(2021, 9, 1)
    assert len(read_parcels(run.folder)) == 5


def test_neighbours_of_all_crops_share_a_split(region: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", rois_inputs.config(region))
    build_rois(run)
    near = [roi.split for roi in read_rois(run.folder) if roi.bounds[0] < rois_inputs.EAST + 2000]
    assert len(near) == 2
    assert len(set(near)) == 1


def test_the_same_inputs_in_any_order_give_the_same_bytes(region: Path, tmp_path: Path) -> None:
    config = rois_inputs.config(region)
    first, again = run_in(tmp_path / "first", config), run_in(tmp_path / "again", config)
    build_rois(first)
    build_rois(again)
    shuffled = gpd.read_file(region / "wheat.gpkg").sample(frac=1, random_state=3)
    shuffled.to_file(region / "shuffled.gpkg")
    parcels = [entry.model_dump() for entry in reversed(config.rois.parcels)]
    parcels[1]["path"] = "shuffled.gpkg"
    other = run_in(tmp_path / "other", rois_inputs.config(region, parcels=parcels))
    build_rois(other)
    for name in (ROIS, PARCELS):
        assert first.folder.read_bytes(name) == again.folder.read_bytes(name)
        assert first.folder.read_bytes(name) == other.folder.read_bytes(name)


def test_a_finished_stage_is_reused_and_another_configuration_refused(region: Path, tmp_path: Path) -> None:
    config = rois_inputs.config(region)
    summary = build_rois(run_in(tmp_path / "run", config))
    (region / "wheat.gpkg").unlink()
    assert build_rois(run_in(tmp_path / "run", config)) == summary
    with pytest.raises(InputError, match=r"rois\.eps_m: 2000\.0 there, 500\.0 now"):
        build_rois(run_in(tmp_path / "run", updated(config, {"rois.eps_m": 500.0})))


def test_clusters_without_an_roi_are_recorded_with_the_reason(region: Path, tmp_path: Path) -> None:
    fields = [field(1000, 1000), field(60_000, 1000), field(300_000, 1000)]
    write_fields(region / "wheat.gpkg", fields)
    late = ("10-01", "11-15", "07-01", "08-01")
    write_calendar(
        region / "calendar.xlsx", Wheat=[("West", *late), ("East", "10-01", "-", "07-01", "08-01")]
    )
    config = rois_inputs.config(region, split={"allow_empty": True})
    run = run_in(tmp_path / "run", updated(config, {"rois.parcels": [config.rois.parcels[0].model_dump()]}))
    summary = build_rois(run)
    assert summary["rois"] == 1
    dropped = pd.read_csv(run.folder.local(DROPPED), keep_default_na=False)
    assert set(dropped["reason"]) == {
        "sheet 'Wheat' of the calendar lacks a date for East",
        "in no province of provinces.gpkg",
    }
    assert set(dropped["file"]) == {"wheat.gpkg"}
    assert len(read_parcels(run.folder)) == 3  # labels still use them


def test_provinces_that_cover_nothing_are_an_error_and_nothing_is_written(
    region: Path, tmp_path: Path
) -> None:
    write_fields(region / "provinces.gpkg", [field(900_000, 0)], province=["Far"])
    with pytest.raises(InputError, match=r"4 × .*no province of provinces\.gpkg"):
        build_rois(run_in(tmp_path / "run", rois_inputs.config(region)))
    assert not (tmp_path / "run").exists()


def test_after_a_mistake_the_folder_is_free_for_the_corrected_configuration(
    region: Path, tmp_path: Path
) -> None:
    config = rois_inputs.config(region)
    with pytest.raises(InputError, match="no crop calendar"):
        build_rois(run_in(tmp_path / "run", updated(config, {"rois.calendar.path": "calender.xlsx"})))
    assert build_rois(run_in(tmp_path / "run", config))["rois"] == 4


def test_an_unknown_crop_names_the_nearest_class(region: Path, tmp_path: Path) -> None:
    config = updated(rois_inputs.config(region), {"classes": ["wheat", "beets"]})
    with pytest.raises(InputError, match=r"'beet'.*none of the classes.*'beets'"):
        build_rois(run_in(tmp_path / "run", config))


def test_all_unknown_crops_are_named_at_once_by_what_the_user_wrote(region: Path, tmp_path: Path) -> None:
    config = updated(rois_inputs.config(region), {"classes": ["rye"]})
    with pytest.raises(InputError) as refused:
        build_rois(run_in(tmp_path / "run", config))
    assert [name in str(refused.value) for name in ("'wheat'", "'beet'", "rois.parcels.1")] == [True] * 3
    simulated = Config.model_validate({"classes": CROPS[:-2], "source": SIMULATED})
    with pytest.raises(InputError, match=f"{CROPS[-2]}, {CROPS[-1]}") as refused:
        build_rois(run_in(tmp_path / "simulated", simulated))
    assert "rois.parcels" not in str(refused.value)
    build_rois(run_in(tmp_path / "simulated", updated(simulated, {"classes": list(CROPS)})))


def test_one_zone_is_enough_for_a_country_but_not_for_a_continent(region: Path, tmp_path: Path) -> None:
    utm = rois_inputs.config(region, crs="utm")
    run = run_in(tmp_path / "run", utm)
    build_rois(run)
    assert {roi.crs for roi in read_rois(run.folder)} == {UTM}
    gpd.GeoSeries.from_wkt(["POLYGON ((60 50, 60.01 50, 60 50.01, 60 50))"], crs=4326).to_file(
        region / "beet.geojson"
    )
    with pytest.raises(InputError, match=r"57 degrees of longitude.*[Ss]et rois\.crs"):
        build_rois(run_in(tmp_path / "wide", utm))


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2230", "EPSG:99999", "mercator"])
def test_a_crs_that_is_not_metric_is_refused(region: Path, tmp_path: Path, crs: str) -> None:
    with pytest.raises(InputError, match=rf"rois\.crs '{crs}' .*metres"):
        build_rois(run_in(tmp_path / "run", rois_inputs.config(region, crs=crs)))


def test_named_splits_are_for_tables(region: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rois\.split\.named .*table"):
        build_rois(run_in(tmp_path / "run", rois_inputs.config(region, split={"named": {"West": "val"}})))


def test_without_calendar_and_provinces_there_are_regions_without_dates(region: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", rois_inputs.config(region, calendar={}, provinces={}))
    build_rois(run)
    assert {(roi.province, roi.harvest_start) for roi in read_rois(run.folder)} == {("", None)}


def test_lone_parcels_are_dropped_if_clusters_need_two(region: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", rois_inputs.config(region, min_samples=2, split={"allow_empty": True}))
    beet = {"rois.parcels": [run.config.rois.parcels[1].model_dump()]}
    with pytest.raises(InputError, match="1 × fewer than 2 parcels within 2000 m"):
        build_rois(run_in(tmp_path / "none", updated(run.config, beet)))
    assert build_rois(run)["rois"] == 1


def test_the_simulated_world_is_used_if_no_inputs_are_set(
    region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = []

    def write_inputs(config: object, directory: Path) -> object:
        directories.append(directory)
        return rois_inputs.config(region).rois

    monkeypatch.setitem(sys.modules, "cropray.simulation.inputs", SimpleNamespace(write_inputs=write_inputs))
    config = Config(classes=("wheat", "beet"), rois={"eps_m": 100.0, "crs": UTM}, source=SIMULATED)
    summary = build_rois(run_in(tmp_path / "run", config))
    assert directories == [tmp_path / "run" / "world"]
    assert summary["rois"] == 5  # with this eps_m, fields 200 m apart are two clusters


def test_the_real_parcels_give_the_published_regions(shared_data: Path, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/iran.yaml", [f"rois.data_root={shared_data / 'isrc'}"])
    run = run_in(tmp_path / "run", config)
    summary = build_rois(run)
    assert summary["rois"] == 1449
    assert summary["by_crop"] | {"canola": 220, "lentils": 160} == summary["by_crop"]
    assert summary["missing"] == {}
    assert summary["parcels"] + summary["repeated"] == 9070
    assert summary["mended"] == 61
    expected = pd.read_csv(shared_data / "isrc/expected_rois_canola_lentils.csv")
    rois = read_rois(run.folder)
    for crop, rows in expected.groupby("crop"):
        mine = sorted((str(roi.harvest_start), *roi.bounds) for roi in rois if roi.crop == crop)
        wanted = sorted(
            rows[["harvest_start", "minx", "miny", "maxx", "maxy"]].itertuples(index=False, name=None)
        )
        assert [row[0] for row in mine] == [row[0] for row in wanted]
        difference = np.array([row[1:] for row in mine]) - np.array([row[1:] for row in wanted])
        assert np.abs(difference).max() <= 0.001


def test_the_european_rectangles_keep_their_held_out_ones(shared_data: Path, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/europe.yaml", [f"rois.data_root={shared_data}"])
    run = run_in(tmp_path / "run", config)
    assert build_rois(run)["by_split"] == {"train": 7, "val": 1, "test": 1}
    held_out = {roi.split: roi.country for roi in read_rois(run.folder) if roi.split != "train"}
    assert held_out == {"val": "england_valid", "test": "france_valid"}
    assert len(read_parcels(run.folder)) == 0
    record = json.loads(run.folder.read_text("stages/rois.json"))
    assert record["summary"]["crs"] == "EPSG:4326"


def test_an_edited_table_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "rois.csv"
    table.write_text('roi,harvest_date,uuid\n"5,50,5.1,50.1",2018-08-01,a\n')
    rois = {"kind": "table", "data_root": str(tmp_path), "table": "rois.csv", "split": {"allow_empty": True}}
    run = run_in(tmp_path / "run", Config(rois=rois))
    build_rois(run)
    build_rois(run)
    assert "rois: reused 1 ROIs" in capsys.readouterr().err
    table.write_text(table.read_text().replace("2018-08-01", "2018-07-01"))
    build_rois(run)
    assert "rois: runs again: rois.csv changed" in capsys.readouterr().err
    assert [roi.harvest_start for roi in read_rois(run.folder)] == [date(2018, 7, 1)]


def test_the_other_files_of_a_shapefile_are_part_of_its_fingerprint(tmp_path: Path) -> None:
    for name in ("parcels.shp", "parcels.dbf", "other.dbf", "calendar.csv", "provinces.gpkg"):
        (tmp_path / name).write_text(name)
    config = RoisConfig(
        data_root=str(tmp_path),
        parcels=({"crop": "maize", "path": "*.shp"},),
        calendar={"path": "calendar.csv"},
        provinces={"path": "provinces.gpkg"},
    )
    before = fingerprints(config)
    (tmp_path / "other.dbf").write_text("else")
    assert fingerprints(config) == before
    (tmp_path / "parcels.dbf").write_text("else")
    assert {name for name, value in fingerprints(config).items() if value != before[name]} == {"*.shp"}


@pytest.mark.parametrize("kind", ["parcels", "table"])
def test_the_simulated_world_needs_no_inputs(tmp_path: Path, kind: str) -> None:
    labels = {"parcels": kind == "parcels"}
    config = Config(classes=CROPS, rois={"kind": kind}, labels=labels, source=SIMULATED)
    first, again = run_in(tmp_path / "first", config), run_in(tmp_path / "again", config)
    summary = build_rois(first)
    assert min(summary["by_split"].values()) > 0
    assert summary["missing"] == {}
    assert summary["dropped"] == {}
    build_rois(again)
    assert first.folder.read_bytes(ROIS) == again.folder.read_bytes(ROIS)
    assert all(roi.harvest_start for roi in read_rois(first.folder))


def test_parcels_on_both_sides_of_180_degrees_are_regions_with_labels(tmp_path: Path) -> None:
    """Two fields 213 m apart, one on each side: one cluster, and each labels its half of the tile."""
    shapes = [shapely.box(179.997, -17, 179.999, -16.998), shapely.box(-179.999, -17, -179.997, -16.998)]
    gpd.GeoDataFrame(geometry=shapes, crs="EPSG:4326").to_file(tmp_path / "cane.gpkg")
    entry = {"crop": "cane", "path": "cane.gpkg"}
    rois = {"data_root": str(tmp_path), "parcels": [entry], "split": {"allow_empty": True}}
    run = run_in(tmp_path / "run", Config(classes=("cane",), rois=rois))
    assert build_rois(run)["rois"] == 1
    (roi,) = read_rois(run.folder)
    assert max(roi.bounds[2] - roi.bounds[0], roi.bounds[3] - roi.bounds[1]) < 700
    (tile,) = plan_tiles(roi, run.config.grid, run.config.patch)
    parcels = read_parcels(run.folder)
    label_hw, _ = burn_parcels(tile.grid, parcels.iloc[parcels_near(tile, parcels)], ("cane",))
    pixels = (label_hw == 0).sum(axis=0)
    assert (label_hw == 0).sum() * 100 == pytest.approx(2 * 213 * 221, rel=0.03)
    middle = len(pixels) // 2
    assert pixels[middle] == 0
    assert pixels[:middle].sum() == pytest.approx(pixels[middle:].sum(), rel=0.05)

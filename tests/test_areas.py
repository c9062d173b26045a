"""`cropray areas`: from a map to points, from checked points to hectares, and what is refused on the way."""

import csv
import json
import shutil
from pathlib import Path

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from cropray.cli import main
from cropray.config import Config
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.evaluation.evaluate import open_split
from cropray.evaluation.promotion import paired_scores
from cropray.grid import Window
from cropray.maps.mosaic import assemble, pixel_hectares
from cropray.maps.strata import at_pixels, confidence, define_strata, draw
from cropray.maps.tiles import NODATA, TileResult
from cropray.models.checkpoint import load_checkpoint, save_checkpoint
from cropray.pipeline.area_estimate import estimate_areas, model_assisted_areas
from cropray.pipeline.area_sample import sample_areas
from cropray.pipeline.predict import model_fingerprint
from cropray.run import Run
from cropray.storage import Folder
from cropray.types import BACKGROUND
from tests.lands import ready_run, small_checkpoint
from tests.map_inputs import CLASSES, GRID
from tests.test_maps_files import made_map

NAMES = [*CLASSES, "none of the classes"]


def mapped_run(folder: Path) -> Run:
    """A run with a finished map, which is that of the tests of maps."""
    run = Run(Folder(str(folder)), Config(classes=CLASSES))
    made_map(run.folder.child("maps/map"))
    run.finish("predict", {"maps": [{"name": "", "folder": "", "hectares": {}}]})
    return run


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = mapped_run(tmp_path_factory.mktemp("run"))
    sample_areas(run, interval=12)
    return run


@pytest.fixture
def run(sampled: Run, tmp_path: Path) -> Run:
    shutil.copytree(sampled.folder.local(), tmp_path / "run")
    return Run(Folder(str(tmp_path / "run")), sampled.config)


def class_map(run: Run) -> np.ndarray:
    with rasterio.open(run.folder.local("maps/map/map.tif")) as raster:
        return raster.read(1)


def points_of(run: Run) -> gpd.GeoDataFrame:
    return pyogrio.read_dataframe(run.folder.local("areas/map/points.gpkg"))


def pixels_of(points: gpd.GeoDataFrame) -> tuple[np.ndarray, np.ndarray]:
    placed = points.geometry.to_crs(GRID.crs)
    return (
        ((GRID.y0 - placed.y) // GRID.resolution).to_numpy(int),
        ((placed.x - GRID.x0) // GRID.resolution).to_numpy(int),
    )


def checked(run: Run, crops: list[str] | None = None) -> Path:
    """A file with the points as somebody found them: as they are mapped, unless given."""
    points = points_of(run)
    names = dict(enumerate(CLASSES)) | {BACKGROUND: "none"}
    points["crop"] = crops or [names[value] for value in class_map(run)[pixels_of(points)]]
    path = run.folder.local("checked.gpkg")
    pyogrio.write_dataframe(points, path)
    return path


def rows_of(run: Run, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(run.folder.read_text(f"maps/map/{name}").splitlines()))


def test_the_points_are_blank_and_do_not_tell_what_the_map_shows(sampled: Run) -> None:
    points = points_of(sampled)
    assert set(points.columns) == {
        *("point", "crop", "checked_on", "checked_by", "note", "lon", "lat", "sample", "geometry")
    }
    assert set(points["crop"]) == {""}
    values = class_map(sampled)[pixels_of(points)]
    assert NODATA not in values
    assert set(values) == set(np.unique(class_map(sampled))) - {NODATA}
    kml = pyogrio.read_dataframe(sampled.folder.local("areas/map/points.kml"))
    assert kml["Name"].tolist() == points["point"].tolist()
    assert kml.geometry.force_2d().geom_equals_exact(points.geometry, 1e-9).all()


def test_strata_are_the_sure_and_the_unsure_parts_of_the_classes(sampled: Run) -> None:
    directory = sampled.folder.local("maps/map")
    strata = define_strata(directory, CLASSES, 25)
    class_hw = class_map(sampled)
    with rasterio.open(directory / "scores.tif") as raster:
        confidence_hw = confidence(class_hw, raster.read())
    hectares = pixel_hectares(GRID)
    for stratum in strata:
        levels = (confidence_hw >= stratum.low) & (confidence_hw <= stratum.high)
        inside = (class_hw == stratum.value) & levels
        assert stratum.pixels == inside.sum()
        assert stratum.hectares == pytest.approx(hectares[inside].sum())
    assert sum(s.pixels for s in strata) == (class_hw != NODATA).sum()
    parts = [s for s in strata if s.value == 0]
    assert len(parts) == 2
    assert 0.3 < parts[0].pixels / sum(s.pixels for s in parts) < 0.45
    wanted = np.array([min(40, s.pixels) for s in strata])
    found = draw(directory, strata, wanted, seed=3)
    assert len({(row, col) for row, col, _ in found}) == wanted.sum()
    for row, col, number in found:
        assert class_hw[row, col] == strata[number].value
        assert strata[number].low <= confidence_hw[row, col] <= strata[number].high
    assert np.bincount([number for *_, number in found]).tolist() == wanted.tolist()


def test_confidence_is_the_lead_over_the_other_scores() -> None:
    percent = np.array([[[70, 20, 60, 0]], [[10, 25, 65, 0]]], np.uint8)
    mapped = np.array([[0, BACKGROUND, 0, NODATA]], np.uint8)
    assert confidence(mapped, percent).tolist() == [[60, 75, 0, 0]]


def test_points_that_agree_with_the_map_give_its_hectares(run: Run) -> None:
    summary = estimate_areas(run, points=str(checked(run)))
    rows = rows_of(run, "areas.csv")
    assert list(rows[0]) == [
        *("unit", "class", "mapped_ha", "estimate_ha", "se_ha", "ci95_low", "ci95_high"),
        *("method", "n_reference"),
    ]
    assert [row["class"] for row in rows] == NAMES
    shown = [row for row in rows if float(row["mapped_ha"])]
    assert len(shown) >= 3
    for row in shown:
        assert row["unit"] == "all"
        assert row["method"] == "stratified sample"
        assert int(row["n_reference"]) == summary["n_reference"] == len(points_of(run))
        assert float(row["estimate_ha"]) == pytest.approx(float(row["mapped_ha"]), abs=0.02)
    hectares = pixel_hectares(GRID)[class_map(run) != NODATA].sum()
    assert sum(float(row["estimate_ha"]) for row in shown) == pytest.approx(hectares, abs=0.05)
    accuracies = rows_of(run, "accuracy.csv")
    assert {row["estimate"] for row in accuracies if row["n_reference"] != "0"} == {"1.0000"}
    assert {row["estimate"] for row in accuracies if row["n_reference"] == "0"} <= {""}
    wrong = [row for row in rows_of(run, "confusion.csv") if row["mapped"] != row["reference"]]
    assert {row["n_reference"] for row in wrong} == {"0"}
    item = json.loads(run.folder.read_text("maps/map/item.json"))
    for name in ("areas.csv", "accuracy.csv", "confusion.csv"):
        size = run.folder.local(f"maps/map/{name}").stat().st_size
        assert item["assets"][name]["file:size"] == size


def test_units_have_estimates_of_their_own(run: Run) -> None:
    left, bottom, right, top = GRID.bounds
    middle = (left + right) / 2
    boxes = [shapely.box(left, bottom, middle, top), shapely.box(middle, bottom, right, top)]
    small = [shapely.box(right - 30, bottom, right, bottom + 30), shapely.box(left - 900, 0, left - 800, 10)]
    names = ["West", "East", "Tiny", "Elsewhere"]
    units = gpd.GeoDataFrame({"district": names}, geometry=[*boxes, *small], crs=GRID.crs)
    file = run.folder.local("units.geojson")
    units.to_crs("EPSG:4326").to_file(file)
    crops = ["maize"] * len(points_of(run))
    estimate_areas(run, points=str(checked(run, crops)), units=str(file), unit_field="district")
    rows = {(row["unit"], row["class"]): row for row in rows_of(run, "areas.csv")}
    assert {unit for unit, _ in rows} == {"all", *names}
    mapped = {unit: sum(float(rows[unit, name]["mapped_ha"]) for name in NAMES) for unit, _ in rows}
    assert mapped["West"] + mapped["East"] + mapped["Tiny"] == pytest.approx(mapped["all"], rel=1e-3)
    for unit in ("all", "West", "East"):
        maize = rows[unit, "maize"]
        assert float(maize["ci95_low"]) <= float(maize["estimate_ha"]) <= float(maize["ci95_high"])
        assert float(maize["estimate_ha"]) == pytest.approx(mapped[unit], rel=0.15)
    assert rows["Tiny", "maize"]["estimate_ha"] == rows["Tiny", "maize"]["ci95_low"] == ""
    assert rows["Tiny", "maize"]["method"] == "pixel count"
    assert rows["Elsewhere", "maize"]["mapped_ha"] == "0.00"


def test_a_later_map_of_the_same_land_uses_the_same_points(run: Run) -> None:
    file = checked(run)
    path = run.folder.local("maps/map/map.tif")
    changed = class_map(run)
    here = (changed == 0) & (np.indices(changed.shape)[1] % 3 == 0)
    changed[here] = 1
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
        raster.write(changed[None])
    before = {row["class"]: float(row["mapped_ha"]) for row in rows_of(run, "areas.csv")}
    estimate_areas(run, points=str(file))
    rows = {row["class"]: row for row in rows_of(run, "areas.csv")}
    assert rows["wheat"]["method"] == rows["maize"]["method"] == "sample of an earlier map"
    assert float(rows["wheat"]["mapped_ha"]) < 0.7 * before["wheat"]
    for name in ("wheat", "maize"):
        assert float(rows[name]["ci95_low"]) < before[name] < float(rows[name]["ci95_high"])


def test_the_last_points_may_be_left_out(run: Run) -> None:
    crops = list(pyogrio.read_dataframe(checked(run))["crop"])
    number = len(crops) * 2 // 3
    summary = estimate_areas(run, points=str(checked(run, crops[:number] + [""] * (len(crops) - number))))
    assert summary["n_reference"] == number


def test_names_of_crops_may_differ_in_case_and_spaces(run: Run) -> None:
    crops = ["Sugar_Beet ", "None of the classes"] * len(points_of(run))
    assert estimate_areas(run, points=str(checked(run, crops[: len(points_of(run))])))


def test_a_table_is_as_good_as_a_vector_file(run: Run) -> None:
    frame = pyogrio.read_dataframe(checked(run), read_geometry=False)
    frame.to_csv(run.folder.local("checked.csv"), index=False)
    frame.to_excel(run.folder.local("checked.xlsx"), index=False)
    found = [estimate_areas(run, points=str(run.folder.local(f"checked.{end}"))) for end in ("csv", "xlsx")]
    assert found[0] == found[1] == estimate_areas(run, points=str(run.folder.local("checked.gpkg")))


def spoilt(run: Run, how: str) -> Path:
    path = checked(run)
    points = pyogrio.read_dataframe(path)
    if how == "moved":
        points.loc[4, "geometry"] = shapely.Point(4.0, 50.0)
    elif how == "doubled":
        points.loc[4, "point"] = points.loc[5, "point"]
    elif how == "missing":
        points = points.drop(index=4)
    elif how == "unknown point":
        points.loc[len(points)] = points.loc[0].to_dict() | {"point": "P9999"}
    elif how == "unknown crop":
        points.loc[4, "crop"] = "maiz"
    elif how == "blank":
        points.loc[4, "crop"] = ""
    elif how == "nothing checked":
        points["crop"] = ""
    elif how == "one per stratum":
        points.loc[3:, "crop"] = ""
    elif how == "no column":
        points = points.drop(columns="crop")
    elif how == "another sample":
        points["sample"] = "0123456789ab"
    pyogrio.write_dataframe(points, path)
    return path


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("moved", "P0005"),
        ("doubled", "P0006"),
        ("missing", "P0005"),
        ("unknown point", "P9999"),
        ("unknown crop", "Did you mean 'maize'"),
        ("blank", "P0005"),
        ("nothing checked", "no point was checked"),
        ("one per stratum", "every stratum needs two"),
        ("no column", "'crop'"),
        ("another sample", "0123456789ab"),
    ],
)
def test_points_that_do_not_fit_are_refused_and_nothing_is_written(run: Run, how: str, told: str) -> None:
    before = run.folder.read_text("maps/map/areas.csv")
    with pytest.raises(InputError, match=told):
        estimate_areas(run, points=str(spoilt(run, how)))
    assert run.folder.read_text("maps/map/areas.csv") == before
    assert not run.folder.exists("maps/map/accuracy.csv")


def test_blank_points_are_left_out_on_demand(run: Run) -> None:
    assert estimate_areas(run, points=str(spoilt(run, "blank")), skip_blank=True)


def test_strata_that_were_changed_since_are_refused(run: Run) -> None:
    data = json.loads(run.folder.read_text("areas/map/sample.json"))
    data["strata"][0]["pixels"] += 1
    run.folder.write_text("areas/map/sample.json", json.dumps(data))
    with pytest.raises(InputError, match="was changed"):
        estimate_areas(run, points=str(checked(run)))
    run.folder.write_text("areas/map/sample.json", "{}")
    with pytest.raises(InputError, match="damaged"):
        estimate_areas(run, points=str(checked(run)))


def test_a_map_of_other_land_is_refused(run: Run, tmp_path: Path) -> None:
    file = checked(run)
    path = run.folder.local("maps/map/map.tif")
    changed = class_map(run)
    changed[:40] = NODATA
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
        raster.write(changed[None])
    with pytest.raises(InputError, match="same pixels"):
        estimate_areas(run, points=str(file))
    with rasterio.open(path) as raster:
        east = rasterio.Affine(10, 0, GRID.x0 + 500, 0, -10, GRID.y0)
        profile = raster.profile | {"driver": "GTiff", "transform": east}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(changed[None])
    with pytest.raises(InputError, match="grids"):
        estimate_areas(run, points=str(file))


def test_a_sample_is_not_drawn_over_one_that_may_be_checked(run: Run) -> None:
    before = run.folder.local("areas/map/points.gpkg").read_bytes()
    assert sample_areas(run, interval=12)["points"] == len(points_of(run))
    with pytest.raises(InputError, match="another sample"):
        sample_areas(run, interval=30)
    assert run.folder.local("areas/map/points.gpkg").read_bytes() == before


def test_pictures_show_the_months_around_each_point(tmp_path: Path) -> None:
    run = mapped_run(tmp_path)
    run = Run(run.folder, updated(run.config, {"source.kind": "simulated"}))
    number = sample_areas(run, size=14, pictures=True)["points"]
    folder = run.folder.child("areas/map")
    assert points_of(run)["picture"].tolist() == folder.names(".png")
    assert len(folder.names(".png")) == number
    picture = plt.imread(folder.local("pictures/P0001.png"))
    assert picture.shape[1] > 1000  # six months side by side
    assert picture[..., :3].std() > 0.1


def test_without_a_sample_the_mapped_hectares_are_divided_as_the_val_regions_were(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path))
    classes, folder = run.config.classes, run.folder.child("maps/map")
    grid, place = GRID.window(Window(0, 0, 60, 60)), run.folder.child("models/finetune")
    values = np.random.default_rng(0).choice([0, 1, BACKGROUND, NODATA], grid.shape).astype(np.uint8)
    part = TileResult(values, np.zeros((2, *grid.shape), np.uint8))
    directory = folder.local()
    directory.mkdir(parents=True)
    tile = Window(0, 0, *grid.shape)
    assemble(grid, [tile], lambda _: part, directory, classes=classes, tags={}, scores=False)
    facts = {"as_of": "2022-06-15", "periods": [["2022-05-16", "2022-06-16"]], "model": "m", "version": "1"}
    properties = {f"cropray:{key}": value for key, value in facts.items()}
    properties["cropray:thresholds"] = dict.fromkeys(classes, 0.5)
    item = {"id": "map", "properties": properties, "assets": {}}
    folder.write_text("item.json", json.dumps(item))
    run.finish("predict", {"maps": [{"name": ""}]}, {"model": model_fingerprint(place, None)})
    model_assisted_areas(run)
    scores = paired_scores(run, open_split(run, "val", ""), {"one": load_checkpoint(place)})
    counts = np.array(scores["methods"]["one"]["confusion"], float)
    hectares = pixel_hectares(grid)
    mapped = np.array([hectares[values == value].sum() for value in (0, 1, BACKGROUND)])
    shares = np.array(
        [column / column.sum() if column.sum() else np.eye(3)[k] for k, column in enumerate(counts.T)]
    )
    rows = rows_of(run, "areas.csv")
    np.testing.assert_allclose([float(row["estimate_ha"]) for row in rows], mapped @ shares, atol=0.006)
    assert {row["method"] for row in rows} == {"model-assisted, 2 val blocks"}
    assert {row["n_reference"] for row in rows} == {""}
    save_checkpoint(small_checkpoint((0.4, 0.4)), place)
    with pytest.raises(InputError, match="another model"):
        model_assisted_areas(run)


def test_partly_known_val_regions_allow_no_estimate(tmp_path: Path) -> None:
    run = ready_run(str(tmp_path), with_truth=False)
    place = run.folder.child("models/finetune")
    run.finish("predict", {"maps": [{"name": ""}]}, {"model": model_fingerprint(place, None)})
    with pytest.raises(InputError, match="cropray areas sample"):
        model_assisted_areas(run)


def test_the_size_can_be_given(tmp_path: Path) -> None:
    run = mapped_run(tmp_path)
    assert 90 <= sample_areas(run, size=100)["points"] <= 100
    with pytest.raises(InputError, match="too small"):
        sample_areas(run, size=5)
    with pytest.raises(InputError, match="--interval"):
        sample_areas(run, interval=0.01)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sample", "--crop", "rice"], "rice"),
        (["sample", "--interval", "0"], "--interval"),
        (["estimate", "--units", "nowhere.gpkg"], "nowhere.gpkg"),
        (["estimate", "--points", "nowhere.gpkg"], "nowhere.gpkg"),
        (["estimate", "--model-assisted", "--points", "x.gpkg"], "--model-assisted"),
        (["estimate", "--model-assisted"], "model"),
    ],
)
def test_commands_refuse_what_makes_no_sense(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    if "--units" in arguments:
        arguments = [*arguments, "--points", str(checked(run))]
    with pytest.raises(SystemExit) as exit_:
        main(["areas", *arguments, "--run", run.folder.uri])
    assert exit_.value.code not in (0, None)
    assert told in capsys.readouterr().err


def test_maps_of_rois_and_missing_maps_are_refused(tmp_path: Path) -> None:
    run = Run(Folder(str(tmp_path)), Config(classes=CLASSES))
    with pytest.raises(InputError, match="no finished map"):
        sample_areas(run)
    run.finish("predict", {"maps": [{"name": "a"}, {"name": "b"}]})
    with pytest.raises(InputError, match="one for each ROI"):
        sample_areas(run)


def test_values_of_pixels_are_looked_up_where_they_are() -> None:
    grid = GRID.window(Window(0, 0, 1100, 700))
    rows, cols = np.array([0, 511, 512, 1099]), np.array([699, 0, 513, 3])

    def read(window: Window) -> np.ndarray:
        return np.arange(grid.height * grid.width).reshape(grid.shape)[window.slices]

    assert at_pixels(grid, rows, cols, read).tolist() == (rows * 700 + cols).tolist()

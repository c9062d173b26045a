"""cropray from Python: what runs, composites, models and maps look like, and agree with the stages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import rasterio

import cropray
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.evaluation.evaluate import evaluate
from cropray.models.checkpoint import load_checkpoint
from cropray.models.inference import Predictor
from cropray.pipeline.predict import predict
from cropray.run import Run
from cropray.storage import Folder
from tests.integration.test_predict import random_model, run_in
from tests.lands import CLASSES, LANDS, ready_run

AREA = "4.33,50.44,4.3365,50.4445"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with shards, a model and an evaluation."""
    path = tmp_path_factory.mktemp("run")
    run = ready_run(str(path))
    evaluate(run)
    return path


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run with a map of the built-in world, and its model."""
    from tests.without_ray import work_without_ray

    path = tmp_path_factory.mktemp("map")
    model = random_model(path / "model")
    run = run_in(path / "run", model, area=AREA)
    with pytest.MonkeyPatch.context() as patch:
        work_without_ray(patch)
        predict(run)
    return run, path / "model"


def test_a_run_has_its_stages_and_its_evaluation(folder: Path) -> None:
    run = cropray.open_run(folder)
    assert set(run.stages) >= {"rois", "export", "compact", "evaluate"}
    assert run.stages["evaluate"]["pixels"] == run.evaluation["pixels"]
    assert run.config.classes == CLASSES
    assert "evaluate" in repr(run)


def test_a_sample_has_physical_values_and_the_places_of_its_pixels(folder: Path) -> None:
    run = cropray.open_run(folder)
    (name,) = (name for name in run.sample_ids("test") if name.startswith("test-1"))
    sample, land = run.sample(name), LANDS["test"][1]
    assert sample["s2"].dims == ("s2_band", "time", "y", "x")
    np.testing.assert_allclose(
        sample["s2"].to_numpy(), np.where(land.s2_cthw == -32768, np.nan, land.s2_cthw / 1e4), rtol=1e-6
    )
    np.testing.assert_allclose(
        sample["s1"].sel(s1_band="VH"),
        np.where(land.s1_cthw[1] == -32768, np.nan, land.s1_cthw[1] / 100),
        rtol=1e-6,
    )
    assert (sample["s1"].attrs["units"], sample["s2"].attrs["units"]) == ("dB", "1")
    np.testing.assert_array_equal(sample["label"], land.label_hw)
    np.testing.assert_array_equal(sample["truth"], land.truth_hw)
    assert sample["time"].dt.month.to_numpy().tolist() == [4, 5]
    # The second land lies 5 km east of the first, whose corner is at 500,000 m; centres lie half a pixel in.
    assert (float(sample["x"][0]), float(sample["y"][0])) == (505_005.0, 4_999_995.0)
    assert sample.attrs["crs"] == "EPSG:32632"
    with pytest.raises(InputError, match=r"sample_ids"):
        run.sample("nothing")


def test_an_roi_is_the_land_that_its_samples_were_cut_from(folder: Path) -> None:
    roi, land = cropray.open_run(folder).roi("test-0"), LANDS["test"][0]
    assert roi["label"].shape == (71, 45)
    np.testing.assert_array_equal(roi["label"], land.label_hw)
    np.testing.assert_array_equal(np.isnan(roi["s1"].to_numpy()), land.s1_cthw == -32768)


def test_a_model_scores_what_composites_hold(folder: Path) -> None:
    model = cropray.load_model(str(folder / "models/finetune"))
    assert model.classes == CLASSES
    roi, land = cropray.open_run(folder).roi("test-0"), LANDS["test"][0]
    scores = model.scores(roi)
    assert scores.dims == ("class", "y", "x")
    predictor = Predictor(load_checkpoint(Folder(str(folder / "models/finetune"))))
    expected = predictor.probabilities(land.s1_cthw[None], land.s2_cthw[None])[0]
    np.testing.assert_allclose(scores.to_numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(scores["x"], roi["x"])
    alone = model.scores(roi[["s2"]])  # one sensor: the other is missing
    blind = predictor.probabilities(np.full_like(land.s1_cthw[None], -32768), land.s2_cthw[None])[0]
    np.testing.assert_allclose(alone.to_numpy(), blind, rtol=1e-5)
    with pytest.raises(InputError, match=r"lacks VH"):
        model.scores(roi.sel(s1_band=["VV"]))
    with pytest.raises(InputError, match=r"1 periods.*2"):
        model.scores(roi.isel(time=[0]))


def test_a_map_has_its_rasters_tables_and_a_picture(mapped: tuple[Run, Path]) -> None:
    mpl.use("agg")
    run, _ = mapped
    made = cropray.open_run(run.folder.uri).map()
    with rasterio.open(run.folder.local("maps/map/map.tif")) as source:
        np.testing.assert_array_equal(made.crops, source.read(1))
        x, y = source.xy(0, 0)
    assert (float(made.crops["x"][0]), float(made.crops["y"][0])) == (x, y)
    assert made.crops.attrs["flag_meanings"].split()[: len(made.classes)] == list(made.classes)
    assert made.scores.shape == (len(made.classes), *made.crops.shape)
    assert float(made.scores.max()) <= 1
    crops, scores = made.crops.to_numpy(), made.scores.to_numpy()
    rows, cols = np.nonzero(crops < len(made.classes))
    shown = scores[crops[rows, cols], rows, cols]
    np.testing.assert_allclose(made.confidence.to_numpy()[rows, cols], shown, atol=0.011)
    whole = made.areas[made.areas["unit"] == made.areas["unit"].iloc[0]]
    assert whole["mapped_ha"].sum() == pytest.approx(crops.size * 0.01, rel=0.01)
    assert "2022" in made.plot().get_title()
    with pytest.raises(InputError, match=r"predict\.fields"):
        made.fields  # noqa: B018
    with pytest.raises(InputError, match=r"'mapp'.*'map'"):
        cropray.open_run(run.folder.uri).map("mapp")


@pytest.mark.usefixtures("without_ray")
def test_predict_makes_the_map_of_the_stage(mapped: tuple[Run, Path], tmp_path: Path) -> None:
    run, model = mapped
    as_of = run.config.predict.as_of
    assert as_of is not None
    kept = run.config.model_dump(mode="json", exclude_unset=True)["source"]
    made = cropray.predict(AREA, as_of, str(model), kept, folder=tmp_path / "new")
    np.testing.assert_array_equal(made.crops, cropray.open_run(run.folder.uri).map().crops)
    assert made.areas.equals(cropray.open_run(run.folder.uri).map().areas)


def test_a_composite_is_what_the_network_of_a_prediction_sees(mapped: tuple[Run, Path]) -> None:
    run, model = mapped
    as_of, kept = run.config.predict.as_of, run.config.model_dump(mode="json", exclude_unset=True)["source"]
    assert as_of is not None
    months = load_checkpoint(Folder(str(model))).months
    cube = cropray.composite(AREA, as_of, kept, months=months)
    assert cube["s2"].sizes["time"] == months
    assert cube["s2"].shape[2:] == cropray.open_run(run.folder.uri).map().crops.shape
    assert str(cube["time"].to_numpy()[-1])[:10] == "2022-05-16"
    scores = cropray.load_model(str(model)).scores(cube)
    made = cropray.open_run(run.folder.uri).map()
    apart = np.abs(scores.to_numpy() - made.scores.to_numpy())  # patches of a map reach beyond its edges
    assert np.quantile(apart, 0.75) < 0.02
    with pytest.raises(InputError, match="too many for memory"):
        cropray.composite("4,50,5,51", as_of, kept)


def test_what_is_no_run_or_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml"):
        cropray.open_run(tmp_path)
    with pytest.raises(InputError, match="holds the runs"):
        cropray.open_run(folder.parent)
    new = cropray.open_run(folder.parent / folder.name)
    Run(Folder(str(tmp_path / "new")), updated(new.config, {})).finish("rois", {})
    new = cropray.open_run(tmp_path / "new")
    with pytest.raises(InputError, match="has no evaluation"):
        new.evaluation  # noqa: B018
    with pytest.raises(InputError, match="not a checkpoint folder"):
        cropray.load_model(str(tmp_path))
    with pytest.raises(AttributeError):
        cropray.nothing  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, cropray; print(sorted({'numpy', 'torch', 'xarray', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

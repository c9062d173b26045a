"""Prediction on Ray over the built-in world, with a small network whose weights are random."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from cropray.config import Config
from cropray.config.load import updated
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.simulated import SimulatedSource
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.normalisation import FixedNormalisation
from cropray.pipeline import predict as predict_module
from cropray.pipeline.predict import predict
from cropray.rois.store import write_rois
from cropray.run import Run, Summary
from cropray.storage import Folder
from cropray.types import BACKGROUND, Composite, ImageRequest, Roi
from tests.lands import beside_others

CLASSES = ("wheat", "maize", "pea")
AREA = "4.33,50.44,4.345,50.448"


def random_model(path: Path, classes: tuple[str, ...] = CLASSES) -> str:
    """Random weights and thresholds near the scores, so that several classes occur."""
    folder = Folder(str(path))
    spec = NetworkSpec(n_classes=len(classes), width=4, months=3)
    torch.manual_seed(0)
    network = spec.build()
    with torch.no_grad():
        network.final_conv.weight *= 300
        network.final_conv.weight -= network.final_conv.weight.mean(dim=1, keepdim=True)
    save_checkpoint(
        Checkpoint(
            classes=classes,
            network=spec,
            normalisation=FixedNormalisation(),
            window={"anchor": "as_of", "months": 3, "lead_months": 1, "as_of": "2022-06-10"},
            s1_quantity="gamma0",
            weights=network.state_dict(),
            thresholds=(0.5,) * len(classes),
        ),
        folder,
    )
    return folder.uri


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_model(tmp_path_factory.mktemp("model"))


def run_in(folder: Path, trained: str, **settings: Any) -> Run:
    chosen = {"model": trained, "area": AREA, "as_of": "2022-06-15", "tile_size": 64} | settings
    overrides = {"source.kind": "simulated"} | {f"predict.{key}": v for key, v in chosen.items()}
    return Run(Folder(str(folder)), updated(Config(), overrides))


def classes_of(run: Run, name: str = "maps/map/map.tif") -> np.ndarray:
    with rasterio.open(run.folder.local(name)) as raster:
        return raster.read(1)


@pytest.fixture(scope="module")
def finished(ray_local: None, tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[Run, Summary]:
    run = run_in(tmp_path_factory.mktemp("finished"), model)
    return run, predict(run)


def test_a_prediction_whose_driver_is_killed_goes_on_to_the_same_map(
    ray_local: None, tmp_path: Path, model: str
) -> None:
    area = "4.32,50.43,4.345,50.445"
    run = run_in(tmp_path / "killed", model, area=area)
    run = Run(run.folder, updated(run.config, {"ray.concurrency": 1}))
    (tmp_path / "given.yaml").write_text(run.config.to_yaml())
    command = [sys.executable, "-m", "cropray", "predict", "--config", str(tmp_path / "given.yaml")]
    driver = subprocess.Popen(
        [*command, "--run", run.folder.uri], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parts, deadline = run.folder.child("maps/map/parts"), time.monotonic() + 120
    while len(parts.names(".npz")) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)  # with its Ray and its processes
    _, said = driver.communicate()
    kept = {name: parts.local(name).stat().st_mtime_ns for name in parts.names(".npz")}
    assert len(kept) >= 2, said
    assert not run.folder.exists("maps/map/map.tif")

    undisturbed = Run(Folder(str(tmp_path / "whole")), run.config)
    assert predict(undisturbed)["tiles"] > len(kept)
    predict(run)
    np.testing.assert_array_equal(classes_of(run), classes_of(undisturbed))
    for name in ("areas.csv", "scenes.csv"):
        assert run.folder.read_bytes(f"maps/map/{name}") == undisturbed.folder.read_bytes(f"maps/map/{name}")


@pytest.mark.usefixtures("without_ray")
def test_a_bounding_box_becomes_a_map_that_does_not_depend_on_its_tiles(
    finished: tuple[Run, Summary], tmp_path: Path, model: str
) -> None:
    run, summary = finished
    large = run_in(tmp_path, model, tile_size=256)
    assert (summary["tiles"], predict(large)["tiles"]) == (4, 1)
    values = classes_of(run)
    assert values.shape == Grid.covering((4.33, 50.44, 4.345, 50.448), "EPSG:4326").shape
    assert set(np.unique(values)) <= {0, 1, 2, BACKGROUND}
    assert len(np.unique(values)) > 1
    # Batches of other sizes may round the last bit of a probability otherwise.
    assert (values == classes_of(large)).mean() > 0.9999
    (made,) = summary["maps"]
    assert sum(made["hectares"].values()) == pytest.approx(values.size * 0.01, rel=2e-3)
    assert not run.folder.child("maps/map/parts").names()


def test_a_finished_map_is_reused_and_not_replaced_by_another(
    finished: tuple[Run, Summary], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, summary = finished
    assert predict(run) == summary
    assert "predict: reused" in capsys.readouterr().err
    other = run_in(run.folder.local(), model, as_of="2022-06-16")
    with pytest.raises(InputError, match=r"(?s)as_of: '2022-06-15' there, '2022-06-16' now.*predict\.name"):
        predict(other)


@pytest.mark.usefixtures("without_ray")
def test_a_head_beside_others_draws_the_map_that_it_does_alone(
    finished: tuple[Run, Summary], tmp_path: Path, model: str
) -> None:
    several = Folder(str(tmp_path / "several"))
    save_checkpoint(beside_others(load_checkpoint(Folder(model)), "crops"), several)
    with pytest.raises(InputError, match=r"has no head 'crop'.* main: forest; crops: wheat, maize, pea"):
        predict(run_in(tmp_path, several.uri, head="crop"))
    run = run_in(tmp_path, several.uri, head="crops")
    predict(run)
    np.testing.assert_array_equal(classes_of(run), classes_of(finished[0]))


def test_a_stopped_prediction_goes_on_with_the_tiles_it_has(
    finished: tuple[Run, Summary],
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_in(tmp_path, model)

    def full(*args: Any, **kwargs: Any) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "publish_map", full)
        with pytest.raises(InputError, match="the disk is full"):
            predict(run)
    parts = run.folder.child("maps/map/parts")
    assert len(parts.names()) == 4
    assert not run.folder.exists("maps/map/map.tif")
    parts.delete(parts.names()[1])
    predict(run)
    assert "predict: reused 3 of 4 tiles" in capsys.readouterr().err
    assert np.array_equal(classes_of(run), classes_of(finished[0]))


@pytest.mark.usefixtures("without_ray")
def test_a_map_of_another_model_is_drawn_anew(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path / "run", model, area="4.33,50.44,4.335,50.443")
    predict(run)
    before = classes_of(run)
    checkpoint = load_checkpoint(Folder(model))
    other = Folder(str(tmp_path / "other"))
    save_checkpoint(replace(checkpoint, thresholds=(0.0, 1.0, 1.0)), other)
    predict(run_in(tmp_path / "run", other.uri, area="4.33,50.44,4.335,50.443"))
    assert "predict: runs again: model changed" in capsys.readouterr().err
    assert (classes_of(run) != before).any()


@pytest.mark.usefixtures("without_ray")
def test_a_tile_that_its_source_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    composite, calls = SimulatedSource.composite, iter((False, True, False, False))

    def hang_up(source: SimulatedSource, request: ImageRequest) -> Composite:
        if next(calls):
            raise RuntimeError("the service hung up")
        return composite(source, request)

    monkeypatch.setattr(SimulatedSource, "composite", hang_up)
    run = run_in(tmp_path, model)
    with pytest.raises(InputError, match=r"(?s)1 of 4 tiles failed.*RuntimeError\('the service hung up'\)"):
        predict(run)
    parts = run.folder.child("maps/map/parts").names(".npz")
    assert len(parts) == 3
    (log,) = run.folder.child("events").names(".jsonl")
    events = [json.loads(line) for line in run.folder.read_text(f"events/{log}").splitlines()]
    failed = [event["part"] for event in events if event["error"]]
    assert len(events) == 4
    assert len(failed) == 1
    assert not any(part.endswith(failed[0]) for part in parts)


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(0, 2, None), (1, 1, 1), (1, 4, 0.25), (2, 3, 0.5), (4, 2, 1)]
)
def test_all_processes_find_room_on_the_gpus_there_are(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int, share: float | None
) -> None:
    there = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    assert predict_module.resources_per_process(workers).get("GPU") == share


@pytest.mark.usefixtures("without_ray")
def test_rois_of_a_split_become_a_map_each(tmp_path: Path, model: str) -> None:
    run = run_in(tmp_path, model, area="rois:test", scores=False)
    places = {"one": (4.33, "test"), "two": (4.36, "test"), "again": (4.33, "test"), "other": (4.4, "train")}
    write_rois(
        run.folder,
        [
            Roi(name, "wheat", "", "", "", split, (lon, 50.44, lon + 0.009, 50.446), "EPSG:4326")
            for name, (lon, split) in places.items()
        ],
    )
    summary = predict(run)
    assert {made["name"] for made in summary["maps"]} == {"again", "two"}  # "one" is on the grid of "again"
    assert classes_of(run, "maps/map/two/map.tif").shape[0] >= 64
    assert not run.folder.exists("maps/map/two/scores.tif")
    item = json.loads(run.folder.read_text("maps/map/two/item.json"))
    assert item["properties"]["cropray:as_of"] == "2022-06-15"
    with pytest.raises(InputError, match=r"rois:val\b.*test, train"):
        predict(run_in(tmp_path, model, area="rois:val", name="none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"as_of": None}, "prediction needs an as-of date"),
        ({"model": "nowhere"}, "nowhere"),
        ({"area": "1,2,3"}, "'1,2,3' does not exist"),
        ({"overlap": 40}, r"predict\.overlap is 40.*half of patch\.size"),
    ],
)
def test_an_impossible_prediction_is_refused_before_any_work(
    tmp_path: Path, model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predict(run_in(tmp_path / "run", model, **settings))
    assert not (tmp_path / "run" / "maps").exists()

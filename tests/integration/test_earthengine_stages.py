"""Stages on an Earth Engine that does not answer, and prediction from one that does."""

import json
from collections.abc import Iterator
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
from cropray.models.checkpoint import Checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.normalisation import FixedNormalisation
from cropray.pipeline.cluster_quota import thread_count
from cropray.pipeline.export import export
from cropray.pipeline.predict import predict
from cropray.rois.build import build_rois
from cropray.run import Run
from cropray.shards.ledger import read_ledger
from cropray.storage import Folder
from tests.earthengine_server import Fault, Limits, Serving, serve

CLASSES = ("wheat", "maize", "pea")
LET_IN = Fault("restricted", times=1)  # the pixel that is asked for to try the account
TABLE = "country,harvest_date,min_lon,min_lat,max_lon,max_lat\nhere,2022-07-01,4.30,50.45,4.334,50.466\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve(limits=Limits(per_second=10_000)) as serving:
        yield serving


@pytest.fixture(autouse=True)
def new_book(server: Serving) -> None:
    server.plan()
    server.forget()


def run_in(folder: Path, server: Serving, **changes: Any) -> Run:
    on_earth_engine = {"source.kind": "earthengine", "source.earthengine.url": server.url}
    return Run(Folder(str(folder)), updated(Config(classes=CLASSES), on_earth_engine | changes))


def events_of(run: Run) -> list[dict[str, Any]]:
    names = run.folder.child("events").names(".jsonl")
    return [
        json.loads(line) for name in names for line in run.folder.read_text(f"events/{name}").splitlines()
    ]


def asked(server: Serving) -> int:
    return server.counters()["requests"].get("image:computePixels", 0)


def test_an_export_that_fails_and_fails_stops_and_says_why(
    server: Serving, tmp_path: Path, ray_local: None
) -> None:
    (tmp_path / "rois.csv").write_text(TABLE)
    changes = {
        "rois.kind": "table",
        "rois.data_root": str(tmp_path),
        "rois.table": "rois.csv",
        "rois.split.allow_empty": True,
        "labels.parcels": False,
        "labels.class_map.path": "source:eucropmap",
        "labels.class_map.codes": [211, 216, 222],
        "window.months": 1,
        "patch.tile_patches": 1,
        "ray.concurrency": 1,
        "ray.max_failures": 3,
        "source.earthengine.in_flight": 2,
        "source.earthengine.attempts": 2,
    }
    run = run_in(tmp_path / "run", server, **changes)
    build_rois(run)
    server.plan(LET_IN, Fault("503"))
    with pytest.raises(InputError) as stopped:
        export(run)
    told = str(stopped.value)
    tiles = 15
    assert f"export: 3 of {tiles} tiles failed, and {tiles - 3} were not tried" in told
    assert "3 x 503: The service is currently unavailable (such as here-" in told
    assert "run the same command again" in told
    # Two attempts at each tile that failed, at those that were on their way, and at one more of each thread,
    # which it may begin until the driver has seen the third failure.
    assert asked(server) <= 1 + 2 * (3 + 2 * thread_count(run.config, 1, tiles)) < 2 * tiles
    assert not run.folder.child("parts").names()
    attempts = [event for event in events_of(run) if event.get("outcome") == "unavailable"]
    assert len(attempts) >= 6
    assert {event["error"] for event in attempts} == {"503: The service is currently unavailable"}
    server.plan()
    summary = export(run)
    assert summary["tiles"] == len(read_ledger(run.folder)) == tiles


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    """Random weights and thresholds near the scores, so that several classes occur."""
    spec = NetworkSpec(n_classes=3, width=4, months=3)
    torch.manual_seed(0)
    network = spec.build()
    with torch.no_grad():
        network.final_conv.weight *= 300
        network.final_conv.weight -= network.final_conv.weight.mean(dim=1, keepdim=True)
    return Checkpoint(
        classes=CLASSES,
        network=spec,
        normalisation=FixedNormalisation(),
        window={"anchor": "as_of", "months": 3, "lead_months": 1, "as_of": "2022-06-10"},
        s1_quantity="sigma0",
        weights=network.state_dict(),
        thresholds=(0.5, 0.5, 0.5),
    )


def test_a_map_is_drawn_from_earth_engine_within_the_quota_and_goes_on_where_it_stopped(
    server: Serving, model: Checkpoint, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "predict.model": str(tmp_path / "sigma0"),
        "predict.area": "4.33,50.44,4.345,50.448",
        "predict.as_of": "2022-06-15",
        "predict.tile_size": 64,
    }
    save_checkpoint(model, Folder(str(tmp_path / "sigma0")))
    once = {"source.earthengine.in_flight": 1, "source.earthengine.attempts": 1, "ray.concurrency": 2}
    run = run_in(tmp_path / "run", server, **settings, **once)
    server.plan(LET_IN, Fault("503", times=1))
    with pytest.raises(InputError, match="predict: 1 of 4 tiles failed"):
        predict(run)
    assert asked(server) == 5
    assert server.counters()["in_flight_max"] == 1
    assert [event["error"] for event in events_of(run) if event.get("outcome") == "unavailable"] == [
        "503: The service is currently unavailable"
    ]
    server.forget()
    predict(run)
    assert "predict: reused 3 of 4 tiles" in capsys.readouterr().err
    assert asked(server) == 2  # one pixel, and the tile that was missing
    # The same land without a service: a reflectance may differ by a rounding.
    save_checkpoint(replace(model, s1_quantity="gamma0"), Folder(str(tmp_path / "gamma0")))
    changes = settings | {"predict.model": str(tmp_path / "gamma0"), "source.kind": "simulated"}
    simulated = run_in(tmp_path / "simulated", server, **changes)
    predict(simulated)
    got, wanted = classes_of(run), classes_of(simulated)
    assert len(np.unique(wanted)) > 1
    assert (got == wanted).mean() > 0.98


def classes_of(run: Run) -> np.ndarray:
    with rasterio.open(run.folder.local("maps/map/map.tif")) as raster:
        return raster.read(1)


def test_a_map_on_an_account_that_is_refused_asks_once(
    server: Serving, model: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(model, Folder(str(tmp_path / "model")))
    settings = {"predict.model": str(tmp_path / "model"), "predict.area": "4.33,50.44,4.345,50.448"}
    project = {"predict.as_of": "2022-06-15", "source.earthengine.project": "forbidden"}
    with pytest.raises(InputError, match="needs the roles"):
        predict(run_in(tmp_path / "run", server, **settings, **project))
    assert asked(server) == 0  # refused while connecting

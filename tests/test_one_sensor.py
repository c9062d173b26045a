"""One sensor alone: composites, what the network is told, a training and a map, in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pystac
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from cropray.bands import NODATA as NODATA_STORED
from cropray.config import Config
from cropray.config.imagery import SimulatedConfig
from cropray.config.load import updated
from cropray.config.rois import WindowConfig
from cropray.grid import Grid, Window
from cropray.imagery.simulated import SimulatedSource
from cropray.maps.tiles import NODATA, PredictionSettings, predict_tile
from cropray.models.checkpoint import Checkpoint, save_checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.pipeline.predict import predict
from cropray.rois.build import build_rois
from cropray.rois.calendar import periods_for
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.shards.schema import quantise_composite
from cropray.simulation.landscape import TRUTH_CODES
from cropray.storage import Folder
from cropray.training.plan import make_plan
from cropray.training.recipe import initial_network
from cropray.training.step import Trainer
from cropray.types import CompositeRecipe
from tests.earthengine_server import Serving, serve
from tests.test_stac import s1_item, s2_item, write_tiff

AS_OF = date(2022, 6, 10)
GRID = Grid("EPSG:32631", 590_000, 5_600_000, 10, 64, 64)
SOURCE = SimulatedSource(SimulatedConfig())


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_a_network_learns_and_maps_from_one_sensor(sensor: str) -> None:
    periods = periods_for(WindowConfig(anchor="as_of", as_of=AS_OF, months=3), None)
    settings = PredictionSettings(periods, AS_OF, CompositeRecipe(sensors=(sensor,)), overlap=0)
    composite = SOURCE.composite(settings.request(GRID, Window(0, 0, 64, 64), "all"))
    s1_bcthw, s2_bcthw = (
        torch.from_numpy(np.ascontiguousarray(x))[None] for x in quantise_composite(composite)
    )
    inputs = FixedNormalisation().apply(s1_bcthw, s2_bcthw)
    floats = {"s1": inputs[0], "s2": inputs[1]}
    told = {"s1": inputs[2][:, 1], "s2": inputs[2][:, 0]}
    (other,) = {"s1", "s2"} - {sensor}
    assert told[sensor].float().mean() > 0.5
    assert not told[other].any()
    assert not floats[other].any()

    torch.manual_seed(0)
    spec = NetworkSpec(n_classes=1, width=4, months=3, validity=True)
    network = spec.build()
    wheat = SOURCE.class_map("truth", GRID) == TRUTH_CODES["winter_wheat"]
    target = torch.from_numpy(wheat.astype(np.float32))[None, None]
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(network(*inputs), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]

    window = {"anchor": "as_of", "months": 3, "lead_months": 1, "as_of": str(AS_OF)}
    weights = network.eval().state_dict()
    checkpoint = Checkpoint(("wheat",), spec, FixedNormalisation(), window, "gamma0", weights)
    whole = Window(0, 0, 64, 64)
    result = predict_tile(whole, np.ones((64, 64), np.bool_), GRID, SOURCE, Predictor(checkpoint), settings)
    seen = (composite.s1_valid_thw | composite.s2_valid_thw).any(axis=0)
    np.testing.assert_array_equal(result.class_hw == NODATA, ~seen)
    percent = result.percent_khw[0][seen].astype(float)
    assert percent[wheat[seen]].mean() > percent[~wheat[seen]].mean() + 10


def run_of(folder: Path, sensor: str, **changes: Any) -> Run:
    """A run on 640 m at GRID with small patches."""
    bounds = ",".join(f"{edge:.0f}" for edge in GRID.bounds)
    (folder / "rois.csv").write_text(f'uuid,roi\nhere,"{bounds}"\n')
    settings = {
        "classes": ["a", "b", "c"],
        "rois": {
            "kind": "table",
            "data_root": str(folder),
            "table": "rois.csv",
            "crs": GRID.crs,
            "split": {"allow_empty": True, "named": {"here": "train"}},
        },
        "window": {"anchor": "as_of", "as_of": "2022-05-31", "months": 2},
        "composite": {"sensors": [sensor]},
        "labels": {"parcels": False, "class_map": {"path": "source:eucropmap", "codes": [211, 216, 222]}},
        "patch": {"size": 32, "max_overlap": 0},
        "model": {"width": 4, "stem": 8},
        "pretrain": {"epochs": 1, "batch_size": 2},
        "predict": {"area": "rois:train", "as_of": "2022-05-31"},
    }
    return Run(Folder(str(folder / "run")), updated(Config.model_validate(settings), changes))


def on_stac(folder: Path, sensor: str) -> Run:
    """Two scenes. The catalogue of the other sensor is named, too, but holds what cannot be used."""
    codes = np.kron([[211, 216], [222, 211]], np.ones((32, 32))).astype(np.uint16)
    write_tiff(folder / "labels.tif", codes, GRID)
    baseline = {"s2:processing_baseline": "03.01"}
    noise = np.random.default_rng(0).random((64, 64))
    days = ("2022-04-10", "2022-05-10")
    numbers = (500 + 3000 * noise).astype(np.uint16)
    optical = [s2_item(folder, f"S2-{day}", day, numbers, baseline, grid=GRID) for day in days]
    radar = [s1_item(folder, f"S1-{day}", day, noise / 5 + 0.01, grid=GRID) for day in days]
    raw = s1_item(folder, "raw", "2022-04-10", 100, {}, grid=GRID)  # says neither quantity nor unit
    open_offset = s2_item(folder, "open", "2022-04-10", 100, {}, grid=GRID)
    items = {"s2": optical, "s1": [raw]} if sensor == "s2" else {"s2": [open_offset], "s1": radar}
    for name, of_sensor in items.items():
        (folder / f"{name}.json").write_text(json.dumps(pystac.ItemCollection(of_sensor).to_dict()))
    return run_of(
        folder,
        sensor,
        **{
            "source.kind": "stac",
            "source.stac.s2.items": str(folder / "s2.json"),
            "source.stac.s1.items": str(folder / "s1.json"),
            "labels.class_map.path": str(folder / "labels.tif"),
        },
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve() as serving, mock.patch("ee.deprecation._FetchDataCatalogStac", return_value={}):
        yield serving


@pytest.mark.usefixtures("without_ray", "one_thread")
@pytest.mark.parametrize("sensor", ["s2", "s1"])
@pytest.mark.parametrize("kind", ["stac", "earthengine"])
def test_a_source_of_one_sensor_is_exported_trained_on_and_mapped(
    kind: str, sensor: str, tmp_path: Path, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "stac":
        run = on_stac(tmp_path, sensor)
    else:
        run = run_of(tmp_path, sensor, **{"source.kind": "earthengine", "source.earthengine.url": server.url})
        for stage in ("export", "predict"):  # whose quota is an actor of Ray
            monkeypatch.setattr(f"cropray.pipeline.{stage}.cluster_quota", lambda *_: None)
    build_rois(run)
    assert export(run)["warnings"] == []  # of the sensor that is not read, either
    compact(run)
    quantity = {"s2": "none", "s1": "gamma0" if kind == "stac" else "sigma0"}[sensor]
    plan = make_plan(run, "pretrain")
    assert plan.checkpoint.s1_quantity == quantity

    reader = ShardReader(shard_uris(run.folder, "train"), batch_size=2)
    network = plan.checkpoint.network
    trainer = Trainer(
        initial_network(network, 0),
        plan.checkpoint.normalisation,
        plan.recipe,
        2,
        torch.device("cpu"),
        new_head=True,
    )
    for number, batch in enumerate(reader.epoch(0)):
        arrays = {"s1": batch.s1_bcthw, "s2": batch.s2_bcthw}
        assert (arrays.pop(sensor) != NODATA_STORED).any()
        (other,) = arrays.values()
        assert (other == NODATA_STORED).all()
        (step,) = trainer.step(batch, 0, number)
        assert step.finite
    weights = trainer.network.state_dict()
    save_checkpoint(replace(plan.checkpoint, weights=weights), run.folder.child("models/pretrain"))

    mapped = Run(run.folder, updated(run.config, {"predict.model": "run:models/pretrain"}))
    (made,) = predict(mapped)["maps"]
    assert sum(made["hectares"].values()) == pytest.approx(0.64 * 64, rel=0.02)

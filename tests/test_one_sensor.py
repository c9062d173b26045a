"""One sensor alone: composites, what the network is told, a training and a map, in one process."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from cropray.config.imagery import SimulatedConfig
from cropray.config.rois import WindowConfig
from cropray.grid import Grid, Window
from cropray.imagery.simulated import SimulatedSource
from cropray.maps.tiles import NODATA, PredictionSettings, predict_tile
from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor
from cropray.models.normalisation import FixedNormalisation
from cropray.rois.calendar import periods_for
from cropray.shards.schema import quantise_composite
from cropray.simulation.landscape import TRUTH_CODES
from cropray.types import CompositeRecipe

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

"""A fake imagery source, a fake network, and whole maps made with them, for the tests of maps."""

import dataclasses
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config.rois import WindowConfig
from cropray.grid import Grid
from cropray.maps.request import MapPlan
from cropray.maps.tiles import (
    PredictionSettings,
    TileResult,
    predict_tile,
)
from cropray.models.decision import Decision
from cropray.rois.calendar import periods_for
from cropray.types import Composite, CompositeRecipe, ImageRequest

CLASSES = ("wheat", "maize", "sugar beet")
AS_OF = date(2022, 6, 15)
PERIODS = periods_for(WindowConfig(anchor="as_of", as_of=AS_OF, months=6), None)
GRID = Grid("EPSG:32631", 600_000, 5_600_000, 10, 210, 330)


class FakeSource:
    """A smooth function of place. Sentinel-2 is valid from x = 600,500 on, Sentinel-1 from x = 600,300 on."""

    def __init__(self) -> None:
        self.requests: list[ImageRequest] = []

    def identity(self) -> dict[str, Any]:
        return {"kind": "test", "s1_quantity": "gamma0"}

    def composite(self, request: ImageRequest) -> Composite:
        self.requests.append(request)
        x, y = np.meshgrid(*request.grid.centres())
        waves = np.sin(x / 170) + np.cos(y / 230) * np.sin((x + y) / 90)
        months = len(request.periods)
        steps = np.arange(months)[:, None, None, None]
        s2 = (0.2 + 0.02 * steps + 0.05 * waves + np.zeros((months, 10, 1, 1))).astype(np.float32)
        s1 = (-12 + steps + 3 * waves + np.zeros((months, 2, 1, 1))).astype(np.float32)
        seen = np.ones((months, 1, 1), bool)
        return Composite(request.grid, request.periods, s2, s1, seen & (x > 600_500), seen & (x > 600_300))


class FakeNetwork:
    """Probabilities from a 3 x 3 mean, which is wrong at the edges of a patch, as those of a network are."""

    needs_places = False
    checkpoint = SimpleNamespace(classes=CLASSES, s1_bands=S1_NAMES, s2_bands=S2_NAMES, input_range={})

    def decision(self, months: int) -> Decision:
        assert months == len(PERIODS)
        return Decision((0.3, 0.3, 0.3), quantiles=(0.4, 0.5, 0.6, 0.2))

    def probabilities(self, s1_bcthw: np.ndarray, s2_bcthw: np.ndarray, _places: None) -> np.ndarray:
        signal = s2_bcthw[:, 0].mean(axis=1) / 4000 + s1_bcthw[:, 1].mean(axis=1) / 20000
        padded = np.pad(signal, ((0, 0), (1, 1), (1, 1)))
        mean = sum(padded[:, i : i + 64, j : j + 64] for i in range(3) for j in range(3)) / 9
        return np.stack([np.clip(np.abs(mean * (k + 1)) % 1, 0, 1) for k in range(3)], axis=1).astype(
            np.float32
        )


def settings(**changes: Any) -> PredictionSettings:
    return dataclasses.replace(PredictionSettings(PERIODS, AS_OF, CompositeRecipe()), **changes)


def whole_map(
    tile_size: int, chosen: PredictionSettings, grid: Grid = GRID, plan: MapPlan | None = None
) -> TileResult:
    plan = plan or MapPlan("", grid)
    result = TileResult(np.zeros(grid.shape, np.uint8), np.zeros((3, *grid.shape), np.uint8))
    for tile in grid.blocks(tile_size):
        made = predict_tile(tile, plan.wanted(tile), grid, FakeSource(), FakeNetwork(), chosen)
        result.class_hw[tile.slices] = made.class_hw
        result.percent_khw[(slice(None), *tile.slices)] = made.percent_khw
    return result

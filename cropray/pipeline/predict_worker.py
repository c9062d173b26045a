"""What a process of a prediction does: tile by tile, an error becomes an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cropray.config import Config
from cropray.grid import Window
from cropray.imagery.open import open_source
from cropray.maps.mosaic import encode_tile
from cropray.maps.plan import MapPlan
from cropray.maps.tiles import PredictionSettings, predict_tile
from cropray.models.checkpoint import load_checkpoint
from cropray.models.heads import with_head
from cropray.models.predictor import Predictor
from cropray.pipeline.failures import TILE_FAILURES, told
from cropray.pipeline.quota import ClusterQuota
from cropray.storage import Folder


@dataclass(frozen=True)
class MapTile:
    """A window of one map, and the name of its part. The map is named: its polygons may be many."""

    map_name: str
    window: Window

    @property
    def part(self) -> str:
        return f"{self.map_name or 'map'}/{self.window.row:07d}-{self.window.col:07d}.npz"


@dataclass(frozen=True)
class Outcome:
    """What became of a tile, for the event log; `error` is empty where its part is published."""

    part: str
    error: str


class TilePredictor:
    """Publishes the parts of a map, with one network on the GPU that it was given, else on the CPU."""

    def __init__(
        self,
        config: Config,
        plans: Sequence[MapPlan],
        checkpoint: Folder,
        settings: PredictionSettings,
        parts: Folder,
        quota: ClusterQuota | None,
    ) -> None:
        import torch

        self._plans = {plan.name: plan for plan in plans}
        self._settings, self._parts = settings, parts
        self._source = open_source(config, quota)
        model = with_head(load_checkpoint(checkpoint), config.predict.head, str(checkpoint))
        self._predictor = Predictor(model, "cuda" if torch.cuda.is_available() else "cpu")

    def do(self, tile: MapTile) -> Outcome:
        plan = self._plans[tile.map_name]
        try:
            wanted = plan.wanted(tile.window)
            result = predict_tile(
                tile.window, wanted, plan.grid, self._source, self._predictor, self._settings
            )
            self._parts.write_bytes(tile.part, encode_tile(result))
        except TILE_FAILURES as failure:
            return Outcome(tile.part, told(failure))
        return Outcome(tile.part, "")

"""What a process of an export does: tile by tile, an error becomes an outcome."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cropray.config import Config
from cropray.imagery.memory import Seats, return_large_blocks
from cropray.imagery.open import open_source
from cropray.pipeline.failures import TILE_FAILURES, told
from cropray.pipeline.plan import Tile
from cropray.pipeline.quota import ClusterQuota
from cropray.pipeline.tile import export_tile
from cropray.rois.store import read_parcels
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder

_AT_WORK = 2  # tiles: more would share one interpreter, and each takes some 200 MB at 480 px a side


@dataclass(frozen=True)
class Outcome:
    """What became of a tile, for the event log; `error` is empty where its part is published."""

    tile_id: str
    patches: int
    seconds: float
    error: str


class TileExporter:
    """Publishes parts; several threads may share one, as where the source makes them wait."""

    def __init__(
        self, config: Config, metadata: ShardMetadata, folder: Folder, quota: ClusterQuota | None
    ) -> None:
        self._config, self._metadata, self._folder = config, metadata, folder
        return_large_blocks()
        self._seats = Seats(_AT_WORK)
        self._source = open_source(config, quota, self._seats)
        self._parcels = read_parcels(folder)

    def do(self, tile: Tile) -> Outcome:
        started, error, patches = time.monotonic(), "", 0
        try:
            with self._seats.taken():
                row = export_tile(
                    tile, self._config, self._metadata, self._parcels, self._source, self._folder
                )
            patches = row.patches
        except TILE_FAILURES as failure:
            error = told(failure)
        return Outcome(tile.tile_id, patches, round(time.monotonic() - started, 3), error)

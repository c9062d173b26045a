"""A source whose pixels are plain functions of place and month, and a run to export from it."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from cropray.config import Config
from cropray.config.imagery import PatchConfig
from cropray.config.load import updated
from cropray.config.rois import WindowConfig
from cropray.pipeline.tiles import export_tile, plan_tiles, shard_metadata
from cropray.run import Run
from cropray.shards.ledger import LedgerRow, write_ledger
from cropray.storage import Folder
from cropray.types import Composite, ImageRequest, Roi

# Two and a half by two patches of 16 px at 10 m; its grid starts on the snapping.
BOUNDS = (500_000.0, 4_000_000.0, 500_400.0, 4_000_320.0)
CRS = "EPSG:32639"


def make_roi(roi_id: str = "maize-1", split: str = "train", crop: str = "maize") -> Roi:
    return Roi(roi_id, crop, "spring", "Fars", "Iran", split, BOUNDS, CRS, harvest_start=date(2022, 8, 1))


def make_config(**changes: Any) -> Config:
    config = Config(
        classes=("maize", "pea"),
        window=WindowConfig(months=2),
        patch=PatchConfig(size=16, max_overlap=4, tile_patches=2),
    )
    return updated(config, changes)


@dataclass(frozen=True)
class PlainSource:
    """Reflectance grows with x, backscatter with y; the first month has no Sentinel-1 scene.

    East of `clouded_from` no month has a clear Sentinel-2 view; `blind` sees nothing at all.
    """

    clouded_from: float = 500_200.0
    blind: bool = False

    def identity(self) -> dict[str, Any]:
        return {"kind": "plain", "s1_quantity": "gamma0", "clouded_from": self.clouded_from}

    def composite(self, request: ImageRequest) -> Composite:
        x, y = request.grid.centres()
        months, shape = len(request.periods), request.grid.shape
        s2 = np.empty((months, 10, *shape), np.float32)
        s1 = np.empty((months, 2, *shape), np.float32)
        for month in range(months):
            s2[month] = (x - 500_000) / 1000 + 0.1 * month
            s1[month] = ((y - 4_000_000) / 100 - 20 + month)[:, None]
        s2_valid = np.broadcast_to((x < self.clouded_from) & (not self.blind), (months, *shape)).copy()
        s1_valid = np.full((months, *shape), not self.blind)
        s1_valid[0] = False
        scenes = {"s2": (3,) * months, "s1": (0, *(5,) * (months - 1))}
        return Composite(request.grid, request.periods, s2, s1, s2_valid, s1_valid, scenes)


def make_parcels() -> gpd.GeoDataFrame:
    """Maize in the upper left 50 by 50 m, pea in the last 20 by 20 m at the lower right."""
    boxes = [
        shapely.box(500_000, 4_000_270, 500_050, 4_000_320),
        shapely.box(500_380, 4_000_000, 500_400, 4_000_020),
    ]
    frame = gpd.GeoDataFrame({"parcel_id": ["a", "b"], "crop": ["maize", "pea"]}, geometry=boxes, crs=CRS)
    return frame.to_crs("EPSG:4326")


def export_here(config: Config, rois: list[Roi], source: PlainSource, folder: Folder) -> list[LedgerRow]:
    """All tiles of the ROIs exported in this process, and their ledger written."""
    metadata = shard_metadata(config, source)
    parcels = make_parcels()
    rows = [
        export_tile(tile, config, metadata, parcels, source, folder)
        for roi in rois
        for tile in plan_tiles(roi, config.grid, config.patch)
    ]
    write_ledger(folder, rows)
    return rows


def exported_run(path: Path, rois: list[Roi], **changes: Any) -> Run:
    """A run whose rois and export stages are finished."""
    run = Run(Folder(str(path)), make_config(**changes))
    run.finish("rois", {})
    export_here(run.config, rois, PlainSource(), run.folder)
    run.finish("export", {})
    return run

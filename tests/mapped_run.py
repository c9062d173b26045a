"""A finished run with a real map of its classes, for tests of the map's page."""

import hashlib
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from cropray.config import PredictConfig, ReportConfig
from cropray.config.imagery import SourceConfig
from cropray.grid import Grid
from cropray.maps.catalogue import MapIdentity, publish_beside
from cropray.maps.field_files import write_fields
from cropray.maps.fields import classify_fields
from cropray.maps.observed import Observed, colour_grid
from cropray.maps.products import publish_map
from cropray.maps.request import MapPlan
from cropray.maps.tiles import PredictionSettings, TileResult
from cropray.rois.store import write_rois
from cropray.run import Run
from cropray.types import BACKGROUND, CompositeRecipe, Period, Roi, View
from tests.finished import finished_run
from tests.lands import CLASSES

GRID = Grid("EPSG:32632", 500_000, 5_000_000, 10, 120, 160)
AS_OF = date(2022, 5, 31)
PERIODS = (Period(date(2022, 4, 1), date(2022, 5, 1)), Period(date(2022, 5, 1), date(2022, 6, 1)))


def tile_of(grid: Grid) -> TileResult:
    """Maize in the west, pea in a band of the east, none of the classes elsewhere; a gap in April."""
    class_hw = np.full(grid.shape, BACKGROUND, np.uint8)
    class_hw[:, : grid.width // 2] = 0
    class_hw[: grid.height // 4, grid.width // 2 :] = 1
    percent_khw = np.full((2, *grid.shape), 10, np.uint8)
    for k in range(2):
        percent_khw[k][class_hw == k] = 80
    coarse = colour_grid(grid)
    colour_tchw = np.full((2, 3, *coarse.shape), 120, np.uint8)
    colour_tchw[0, :, : coarse.height // 4] = 0
    months_shw = np.full((2, *grid.shape), 2, np.uint8)
    pixels = grid.height * grid.width
    views = tuple(
        View(sensor, datetime(2022, month, day, 10, tzinfo=UTC), orbit, (), int(share * pixels))
        for sensor, month, day, orbit, share in (
            ("s1", 4, 3, "ascending 88", 1.0),
            ("s2", 4, 6, "", 0.0),
            ("s2", 5, 9, "", 0.75),
        )
    )
    return TileResult(class_hw, percent_khw, (), Observed(months_shw, colour_tchw, views, pixels))


def mapped_run(folder: str, grid: Grid = GRID, **report: Any) -> Run:
    """The map is map/ of the run. `report` are settings of the page."""
    run = finished_run(folder)
    config = run.config.model_copy(
        update={
            "predict": PredictConfig(name="map", as_of=AS_OF),
            "report": ReportConfig(**report),
            "source": SourceConfig(kind="simulated"),
        }
    )
    run = Run(run.folder, config)
    run.folder.delete_folder("maps")
    settings = PredictionSettings(PERIODS, AS_OF, CompositeRecipe())
    identity = MapIdentity("crops of the test", "models/finetune", CLASSES, (0.4, 0.5), settings, "abc")
    output, tile = run.folder.child("maps/map"), tile_of(grid)

    def part(window: Any) -> TileResult:
        return tile

    (window,) = grid.blocks(max(grid.shape))
    publish_map(output, MapPlan("", grid), [window], part, identity, scores=True)
    harvest = {"maize": date(2022, 9, 1), "pea": date(2022, 7, 6)}
    rois = [
        Roi(f"{crop}-{n}", crop, "2022", "", "", split, box(grid, n), grid.crs, harvest_start=harvest[crop])
        for n, (crop, split) in enumerate((("maize", "train"), ("pea", "test"), ("maize", "test")))
    ]
    write_rois(run.folder, rois)
    summary = {
        "as_of": AS_OF.isoformat(),
        "model": "models/finetune",
        "checkpoint": run.inputs("evaluate")["model"],
        "warning": None,
        "maps": [{"name": "", "folder": output.uri, "hectares": {"maize": 96.0, "pea": 24.0}}],
    }
    run.finish("predict", summary)
    return run


def box(grid: Grid, number: int) -> tuple[float, float, float, float]:
    """The bounds of a site: the second lies on the map, the others beside it."""
    west, south, _, _ = grid.bounds
    x = west + 400 if number == 1 else west - 5000 * (number + 1)
    return x, south + 200, x + 640, south + 840


def with_fields(run: Run, *, auto: bool = False) -> gpd.GeoDataFrame:
    """The run's map with three fields beside it; the last is declared otherwise."""
    left, _, _, top = GRID.bounds
    shapes = [shapely.box(left + x, top - 300, left + x + 250, top - 20) for x in (100, 900, 1300)]
    frame = gpd.GeoDataFrame(
        {"field": ["a", "b", 'c <"d">'], "declared": ["maize", "pea", "maize"]}, geometry=shapes, crs=GRID.crs
    )
    folder = run.folder.child("maps/map")
    table = classify_fields(folder.local(), frame, CLASSES)
    files = write_fields(table, CLASSES, AS_OF, "x", Path(run.folder.local()), auto=auto)
    publish_beside(folder, {file.name: file.read_bytes() for file in files})
    return table


def with_estimates(run: Run) -> None:
    """Estimates from checked points in areas.csv, for two units too."""
    head = "unit,class,mapped_ha,estimate_ha,se_ha,ci95_low,ci95_high,method,n_reference\n"
    rows = [
        "all,maize,96.00,90.50,4.00,82.70,98.30,stratified sample,300",
        "all,pea,24.00,27.25,2.00,23.30,31.20,stratified sample,300",
        "all,none of the classes,72.00,74.25,4.00,66.40,82.10,stratified sample,300",
        "north,maize,50.00,48.00,4.00,40.10,55.90,stratified sample,150",
        "north,pea,24.00,,,,,pixel count,150",
        "south,maize,46.00,42.50,4.00,34.70,50.30,stratified sample,150",
    ]
    publish_beside(run.folder.child("maps/map"), {"areas.csv": (head + "\n".join(rows) + "\n").encode()})


def digest(run: Run, name: str) -> str:
    return hashlib.sha256(run.folder.read_bytes(f"maps/map/{name}")).hexdigest()


def item_of(run: Run) -> dict[str, Any]:
    return dict(json.loads(run.folder.read_text("maps/map/item.json")))

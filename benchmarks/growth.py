"""What must not grow faster than its inputs: seconds of the planning of large runs, and their exponents.

    python benchmarks/growth.py [--json]

Each step is timed at a size and at four times as much, in CPU seconds of this process, the best of three. An
exponent of 1 is linear. Steps of the drivers alone: no imagery, no network, no Ray.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import shapely

from cropray.config.imagery import PatchConfig
from cropray.config.rois import GridConfig, SplitConfig
from cropray.evaluation.mosaics import plan_tiles as plan_mosaics
from cropray.grid import Grid
from cropray.maps.request import MapPlan
from cropray.models.blending import patches_over
from cropray.pipeline.export_summary import summarise
from cropray.pipeline.tiles import inputs_of, plan_tiles
from cropray.rois.near import components
from cropray.rois.splits import audit_splits, split_rois
from cropray.shards.ledger import LedgerRow
from cropray.types import Period, Roi

CRS = "EPSG:32631"
BOUND = 1.15
PERIODS = (Period(date(2022, 4, 1), date(2022, 5, 1)), Period(date(2022, 5, 1), date(2022, 6, 1)))


@dataclass(frozen=True)
class Step:
    """What is timed: `prepare` makes the inputs of a size, and gives the work."""

    name: str
    unit: str
    size: int
    prepare: Callable[[int], Callable[[], Any]]


def rois_of(count: int) -> list[Roi]:
    """ROIs of 640 m on a lattice of 3 km."""
    side = math.isqrt(count - 1) + 1
    return [
        Roi(
            f"roi-{n:06d}",
            f"crop{n % 8}",
            "",
            "",
            "",
            "",
            (x, y, x + 640, y + 640),
            CRS,
            harvest_start=date(2022, 8, 1),
        )
        for n in range(count)
        for x, y in [(300_000.0 + 3000 * (n % side), 5_000_000.0 + 3000 * (n // side))]
    ]


def area_of(tiles: int) -> Callable[[], Any]:
    """A map of so many tiles of 256 px, and two polygons a tile."""
    side = math.isqrt(tiles - 1) + 1
    grid = Grid(CRS, 300_000, 6_000_000, 10, 256 * side, 256 * side)
    x, y = np.meshgrid(300_000 + 2560.0 * np.arange(side), 6_000_000 - 2560.0 * np.arange(side))
    boxes = [shapely.box(x + d, y - d - 900, x + d + 900, y - d) for d in (100, 1300)]
    plan = MapPlan("", grid, tuple(np.concatenate([box.ravel() for box in boxes])))
    return lambda: sum(int(plan.wanted(tile).sum()) for tile in grid.blocks(256))


def patches_of(tiles: int) -> Callable[[], Any]:
    side = math.isqrt(tiles - 1) + 1
    grid = Grid(CRS, 300_000, 6_000_000, 10, 512 * side, 512 * side)
    return lambda: sum(len(patches_over(tile, grid.shape, 64, 16)) for tile in grid.blocks(512))


def done_of(tiles: int) -> Callable[[], Any]:
    """The check of what an export has done."""
    rois = rois_of(tiles)
    planned = [tile for roi in rois for tile in plan_tiles(roi, GridConfig(), PatchConfig())]
    fields = shapely.box(*np.array([roi.bounds for roi in rois]).T)
    names = [roi.roi_id for roi in rois]
    parcels = gpd.GeoDataFrame({"parcel_id": names, "crop": "wheat"}, geometry=fields, crs=CRS)
    parcels = parcels.to_crs("EPSG:4326")
    return lambda: [inputs_of(tile, parcels) for tile in planned]


def components_of(count: int) -> Callable[[], Any]:
    rois = rois_of(count)
    return lambda: components(rois, 1000.0)


def same_ground_of(count: int) -> Callable[[], Any]:
    """ROIs over a fixed area: the more, the nearer."""
    rng = np.random.default_rng(0)
    corners = 300_000 + 100_000 * rng.random((count, 2))
    rois = [
        Roi(f"roi-{n}", "wheat", "", "", "", "", (x, 5e6 + y, x + 640, 5e6 + y + 640), CRS)
        for n, (x, y) in enumerate(corners.tolist())
    ]
    return lambda: components(rois, 1000.0)


def splits_of(count: int) -> Callable[[], Any]:
    rois = rois_of(count)

    def work() -> None:
        audit_splits(split_rois(rois, SplitConfig(), 0), 1000.0)

    return work


def summary_of(count: int) -> Callable[[], Any]:
    shares, scenes = [0.5, 1.0], [3, 4]
    rows = [
        LedgerRow(
            *(f"t{n}", f"roi{n // 2}", "wheat", "", "train", "r", "i", 4, "", 1, "c", 0, 0, 64, 64),
            *(shares, shares, scenes, scenes),
        )
        for n in range(count)
    ]
    periods = dict.fromkeys((row.roi_id for row in rows), PERIODS)
    return lambda: summarise(rows, periods)


def evaluation_of(count: int) -> Callable[[], Any]:
    """The stored patches of one ROI: a square of so many, 48 px apart."""
    side = math.isqrt(count)
    row, col = (48 * each.ravel() for each in np.mgrid[:side, :side])
    n, pixels = len(row), 48 * (side - 1) + 64
    columns = {"roi_id": ["roi"] * n, "crop": ["wheat"] * n, "crs": [CRS] * n, "row": row, "col": col}
    numbers = {"x0": 3e5, "y0": 5e6, "resolution": 10.0, "roi_height": pixels, "roi_width": pixels}
    table = pa.table(columns | {name: [value] * n for name, value in numbers.items()})
    reader: Any = SimpleNamespace(table=table, metadata=SimpleNamespace(size=64))
    return lambda: plan_mosaics(reader, 16)


STEPS: Sequence[Step] = (
    Step("area of polygons burnt tile by tile", "tiles", 400, area_of),
    Step("patches of a map", "tiles", 400, patches_of),
    Step("check of what an export has done", "tiles", 1000, done_of),
    Step("components of ROIs", "ROIs", 25_000, components_of),
    Step("components of ROIs on the same ground", "ROIs", 25_000, same_ground_of),
    Step("plan of an evaluation, one ROI", "patches", 10_000, evaluation_of),
    Step("splits and their audit", "ROIs", 25_000, splits_of),
    Step("summary of an export", "tiles", 10_000, summary_of),
)


def cpu_s(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    found = []
    for step in STEPS:
        small, large = (cpu_s(step.prepare(size)) for size in (step.size, 4 * step.size))
        exponent = math.log(large / small) / math.log(4)
        found.append(
            {
                "step": step.name,
                "size": 4 * step.size,
                "unit": step.unit,
                "cpu_s": large,
                "exponent": exponent,
            }
        )
        if not arguments.json:
            print(
                f"{step.name:40}{4 * step.size:9,} {step.unit:6}{large:8.2f} CPU s, exponent {exponent:5.2f}",
                flush=True,
            )
    met = all(step["exponent"] <= BOUND for step in found)
    print(
        json.dumps({"steps": found, "met": met})
        if arguments.json
        else f"\ntarget: at most {BOUND}, {'met' if met else 'missed'}"
    )


if __name__ == "__main__":
    main()

"""Fields classified per second on a finished map, and the memory that takes.

    python benchmarks/fields.py [--fields 100000] [--json]

The map has eight classes and square fields of 4 ha, 20 x 20 pixels each, so 100,000 fields are 4,000 km². The
time is from files read to files written. Peak memory is that of the process, in which the map was made too.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from cropray.grid import Grid, Window
from cropray.maps.field_files import write_fields
from cropray.maps.fields import classify_fields, read_fields
from cropray.maps.mosaic import assemble
from cropray.maps.tiles import TileResult

CLASSES = tuple(f"crop {number}" for number in range(1, 9))
SIDE = 20  # pixels of a field


def make_map(grid: Grid, directory: Path) -> None:
    """A map of random classes by field, with noisy scores."""

    def part(tile: Window) -> TileResult:
        rng = np.random.default_rng([tile.row, tile.col])
        blocks = rng.integers(0, len(CLASSES), (-(-tile.height // SIDE), -(-tile.width // SIDE)))
        class_hw = np.kron(blocks, np.ones((SIDE, SIDE), int))[: tile.height, : tile.width].astype(np.uint8)
        percent = rng.integers(0, 30, (len(CLASSES), tile.height, tile.width)).astype(np.uint8)
        np.put_along_axis(percent, class_hw[None].astype(np.intp), 80, axis=0)
        return TileResult(class_hw, percent)

    tiles = list(grid.blocks(25 * SIDE))
    assemble(grid, tiles, part, directory, classes=CLASSES, tags={}, scores=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fields", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    across = math.isqrt(options.fields)
    down = -(-options.fields // across)
    grid = Grid("EPSG:32631", 500_000, 5_600_000, 10, down * SIDE, across * SIDE)
    with tempfile.TemporaryDirectory(prefix="cropray-fields-") as temporary:
        directory = Path(temporary)
        make_map(grid, directory)
        col, row = (
            index.ravel()[: options.fields] for index in np.meshgrid(np.arange(across), np.arange(down))
        )
        x, y, side_m = grid.x0 + col * SIDE * 10, grid.y0 - row * SIDE * 10, SIDE * 10
        boxes = shapely.box(x, y - side_m, x + side_m, y)
        gpd.GeoDataFrame(geometry=boxes, crs=grid.crs).to_file(directory / "given.gpkg")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        fields = read_fields(str(directory / "given.gpkg"), "", "")
        table = classify_fields(directory, fields, CLASSES)
        write_fields(table, CLASSES, date(2022, 6, 10), "", directory)
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "fields": len(table),
        "seconds": round(took, 1),
        "cpu_seconds": round(cpu, 1),
        "fields_per_cpu_second": round(len(table) / cpu),
        "peak_mb": round(peak / 1024),
        "peak_mb_before": round(before / 1024),
    }
    assert table["agreement"].min() == 1, "a field has pixels of another"
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        return
    print("| fields | s | CPU s | fields per CPU s | peak MB (before) |\n|---|---|---|---|---|")
    memory = f"{result['peak_mb']} ({result['peak_mb_before']})"
    print(
        "| {fields:,} | {seconds} | {cpu_seconds} | {fields_per_cpu_second:,} | ".format(**result)
        + f"{memory} |"
    )


if __name__ == "__main__":
    main()

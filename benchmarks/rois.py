"""ROIs of the whole ISRC set: cropray compared with a plain script of the usual kind.

    python benchmarks/rois.py --data FOLDER [--json]
    python benchmarks/rois.py --generated 100000 1000000

The script loops over clusters. For each one it masks all parcels, tests every province, and overlays the
provinces if none contains the box. Both must find the same ROIs, to a millimetre and a day. cropray also
repairs parcels, splits, audits and writes its files. Imports do not count.

With --generated, parcels of 12 crops in one GeoParquet file are made: groups of ten fields of a crop, 5 km
apart (rois.kind=parcels), and fields that cover the land (rois.kind=grid). Each number runs in a process of
its own. Seconds and peak memory per parcel must not grow with the number: at most by 1.15 in the exponent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import geopandas as gpd
import jdatetime
import numpy as np
import pandas as pd
import shapely
from sklearn.cluster import DBSCAN

from cropray.config import Config
from cropray.config.load import load_config
from cropray.rois.build import build_rois
from cropray.rois.store import read_rois
from cropray.run import Run
from cropray.storage import Folder

ROOT = Path(__file__).parents[1]
TARGET_S = 1.5
CROPS = 12

RoiKey = tuple[str, str, float, float, float, float, str]
"""Crop, season, bounds in millimetres of the CRS, start of the harvest."""


def cropray_rois(config: Config) -> list[RoiKey]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        run = Run(Folder(folder), config)
        build_rois(run)
        rois = read_rois(run.folder)
    return sorted(
        (roi.crop, roi.season, *(round(1000 * x) for x in roi.bounds), str(roi.harvest_start)) for roi in rois
    )


def plain_rois(config: Config) -> list[RoiKey]:
    settings = config.rois
    root = Path(settings.data_root)
    provinces = gpd.read_file(next(root.glob(settings.provinces.path))).to_crs(settings.crs)
    calendar = pd.read_excel(root / settings.calendar.path, sheet_name=None, dtype=str)
    rois: list[RoiKey] = []
    for entry in settings.parcels:
        parcels = gpd.read_file(next(root.glob(entry.path))).to_crs(settings.crs)
        for season in entry.seasons:
            chosen = parcels
            for column, value in season.where.items():
                chosen = chosen[chosen[column] == value]
            centroids = chosen.geometry.centroid
            points = list(zip(centroids.x, centroids.y, strict=True))
            labels = DBSCAN(eps=settings.eps_m, min_samples=1).fit_predict(points)
            for label in sorted(set(labels)):
                members = chosen[labels == label]
                box = plain_box(members, settings.min_size_m)
                harvest = plain_harvest(
                    calendar[season.sheet],
                    plain_province(box, provinces),
                    settings.calendar.agricultural_years,
                )
                if harvest:
                    bounds = (round(1000 * x) for x in box.bounds)
                    rois.append((entry.crop, season.name, *bounds, harvest))
    return sorted(rois)


def plain_box(members: gpd.GeoDataFrame, min_size: float) -> shapely.Polygon:
    min_x, min_y, max_x, max_y = members.total_bounds
    wide, high = max(0, min_size - (max_x - min_x)) / 2, max(0, min_size - (max_y - min_y)) / 2
    return shapely.box(min_x - wide, min_y - high, max_x + wide, max_y + high)


def plain_province(box: shapely.Polygon, provinces: gpd.GeoDataFrame) -> str:
    around = provinces[provinces.contains(box)]
    if len(around):
        return str(around["province"].iloc[0])
    roi = gpd.GeoDataFrame(geometry=[box], crs=provinces.crs)
    pieces = gpd.overlay(roi, provinces, how="intersection")
    return "" if pieces.empty else str(pieces.loc[pieces.area.idxmax(), "province"])


def plain_harvest(sheet: pd.DataFrame, province: str, years: tuple[int, int]) -> str:
    rows = sheet[sheet["Province"] == province]
    if rows.empty or (rows == "-").any(axis=None):
        return ""
    year, last = years[0], 0
    days = []
    for cell in rows.iloc[0].iloc[1:]:
        month, day = (int(part) for part in cell.split("-"))
        year = years[1] if month < last else year
        last = month
        days.append(jdatetime.date(year, month, day).togregorian())
    return str(days[2])


def timed(
    work: Callable[[Config], list[RoiKey]], config: Config, repeats: int
) -> tuple[list[RoiKey], dict[str, float]]:
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        rois = work(config)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    figures = {"median_s": statistics.median(wall), "min_s": min(wall), "max_s": max(wall)}
    return rois, figures | {"median_cpu_s": statistics.median(cpu), "repeats": repeats}


def write_parcels(path: Path, count: int, kind: str) -> None:
    """Fields of 150 m with codes of 12 crops, on a plane that is as wide as it is high."""
    number = np.arange(count)
    group = number // 10 if kind == "parcels" else number
    side, spacing = math.isqrt(int(group[-1])) + 1, 5000.0 if kind == "parcels" else 160.0
    x = spacing * (group % side) + (160.0 * (number % 10) if kind == "parcels" else 0)
    east, north = 3_000_000 + x, 2_000_000 + spacing * (group // side)
    shapes = shapely.box(east, north, east + 150, north + 150)
    codes = 3301010000 + 100 * (np.random.default_rng(0).permutation(group[-1] + 1)[group] % CROPS)
    gpd.GeoDataFrame({"EC_hcat_c": codes}, geometry=shapes, crs="EPSG:3035").to_parquet(path)


def generated(folder: str, kind: str) -> dict[str, float]:
    """Seconds and peak memory of one stage, in this process."""
    names = [f"crop{n}" for n in range(CROPS)]
    with contextlib.redirect_stderr(io.StringIO()):
        codes = {str(3301010000 + 100 * n): name for n, name in enumerate(names)}
        entry = {"path": "parcels.parquet", "crops": {"column": "EC_hcat_c", "map": codes}}
        settings = {"kind": kind, "data_root": folder, "crs": "EPSG:3035", "parcels": [entry]}
        config = Config(classes=tuple(names), rois=settings)
        start, start_cpu = time.perf_counter(), time.process_time()
        summary = build_rois(Run(Folder(f"{folder}/run"), config))
        wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    status = Path("/proc/self/status").read_text()  # getrusage counts the process that started this one, too
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    return {"rois": summary["rois"], "wall_s": wall, "cpu_s": cpu, "peak_kb": peak_kb}


def print_generated(counts: Sequence[int]) -> None:
    print(f"{'kind':8}{'parcels':>10}{'ROIs':>9}{'wall s':>9}{'CPU s':>9}", end="")
    print(f"{'µs/parcel':>11}{'peak MB':>9}{'exponent':>10}")
    for kind in ("parcels", "grid"):
        last: tuple[int, float] | None = None
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                write_parcels(Path(folder) / "parcels.parquet", count, kind)
                command = [sys.executable, __file__, "--child", kind, folder]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            exponent = math.log(found["cpu_s"] / last[1]) / math.log(count / last[0]) if last else math.nan
            last = count, found["cpu_s"]
            print(
                f"{kind:8}{count:10,}{found['rois']:9,}{found['wall_s']:9.1f}{found['cpu_s']:9.1f}"
                f"{1e6 * found['cpu_s'] / count:11.1f}{found['peak_kb'] / 1024:9.0f}{exponent:10.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", default=str(ROOT.parent / "shared/data/isrc"), help="folder of the ISRC set"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--generated", type=int, nargs="+", metavar="PARCELS", help="made parcels instead")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(generated(arguments.child[1], arguments.child[0])))
        return
    if arguments.generated:
        print_generated(arguments.generated)
        return
    config = load_config(ROOT / "configs/iran.yaml", [f"rois.data_root={arguments.data}"])
    ours, ours_s = timed(cropray_rois, config, arguments.repeats)
    plain, plain_s = timed(plain_rois, config, 1)
    result = {
        "rois": len(ours),
        "same_as_plain": ours == plain,
        "cropray": ours_s,
        "plain": plain_s,
        "speedup": plain_s["median_s"] / ours_s["median_s"],
        "target_s": TARGET_S,
        "met": ours_s["median_s"] <= TARGET_S,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{len(ours)} ROIs. The same by both: {result['same_as_plain']}\n")
    print(f"{'':10}{'median s':>10}{'min s':>8}{'max s':>8}{'CPU s':>8}{'times faster':>14}")
    for name, figures, ratio in (("cropray", ours_s, result["speedup"]), ("plain", plain_s, 1.0)):
        cells = [figures[key] for key in ("min_s", "max_s", "median_cpu_s")]
        print(
            f"{name:10}{figures['median_s']:10.2f}" + "".join(f"{x:8.2f}" for x in cells) + f"{ratio:14.1f}"
        )
    print(f"\ntarget: {TARGET_S} s, {'met' if result['met'] else 'missed'}")


if __name__ == "__main__":
    main()

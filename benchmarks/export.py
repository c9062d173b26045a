"""Export from Earth Engine beside the published system's way of asking for it.

    python benchmarks/export.py [--rois 8 32] [--seed-rois 4] [--latency 0.2] [--json]

Both use the real client over HTTP against `tests.earthengine_server`, in a process of its own, which
adds a latency to every request and answers at most 40 at a time. Regions are squares of 128 px, six
months, both sensors, places of their own.

The seed-style exporter asks as the published system does: region by region, month by month, sensor by
sensor; of each month how many scenes there are, how many of each pass contain the region, which orbits
they are of and which bands came out, each with a `getInfo` that is waited for; then the pixels, one
download a sensor. It writes plain arrays. cropray runs its export stage, each time on a local Ray of its
own. Counted is all from the list of regions to the summary: the plan, the small request that tries the
account, the start of worker processes with their imports, requests, parts, ledger and event log. Not
counted are Python's start and the driver's imports, as for the other, and `ray.init()`, which stands
beside ("Ray s"); it makes a process that has imported Ray, and nothing of ours, for every CPU.

Every run is made twice: first the server evaluates what it is asked, then it replays the same answers
for next to no CPU, which is the case where it is not the limit. That the two exporters brought the same
pixels is checked. The server's CPU is that of its process during the run.

There are two worker processes at most, and fewer for few regions; last, the most regions are exported by
1 and by 4. The server counts how many requests are in flight at a time, of which cropray is allowed 20.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import ee
import geopandas as gpd
import numpy as np
import numpy.typing as npt
from google.auth.credentials import AnonymousCredentials

from cropray.bands import NODATA, S1_BANDS, S2_BANDS
from cropray.cluster import ray_session
from cropray.config import Config, RayConfig
from cropray.config.imagery import CompositeConfig, EarthEngineConfig, LabelsConfig, PatchConfig, SourceConfig
from cropray.grid import Grid
from cropray.pipeline.export import export
from cropray.pipeline.tiles import plan_tiles
from cropray.rois.calendar import periods_for
from cropray.rois.store import write_parcels, write_rois
from cropray.run import Run
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import Period, Roi

ROOT = Path(__file__).parents[1]
SIZE_M, HARVEST = 1280.0, date(2022, 8, 1)
IN_FLIGHT = 20
PROCESSES, OTHER_PROCESSES = 2, (1, 4)
PASSES = ("evaluated", "replayed")
TARGETS = {"wall": 50.0, "requests": 35.0}
S2, S1 = "COPERNICUS/S2_SR_HARMONIZED", "COPERNICUS/S1_GRD"
PASS, ORBIT = "orbitProperties_pass", "relativeOrbitNumber_start"


def make_rois(count: int, first: int) -> list[Roi]:
    """Squares on the 20 m lattice, none of them asked for before."""
    rois = []
    for number in range(first, first + count):
        x, y = 560_000.0 + 2000 * (number % 16), 5_580_000.0 + 2000 * (number // 16)
        bounds = (x, y, x + SIZE_M, y + SIZE_M)
        rois.append(
            Roi(f"roi-{number:03d}", "", "", "", "", "train", bounds, "EPSG:32631", harvest_start=HARVEST)
        )
    return rois


def config_for(url: str, processes: int = PROCESSES) -> Config:
    return Config(
        classes=("crop",),
        composite=CompositeConfig(s1_orbit_rule="monthly"),  # as the peer's, so that pixels can be compared
        labels=LabelsConfig(parcels=False),
        patch=PatchConfig(max_overlap=0, tile_patches=2),
        source=SourceConfig(kind="earthengine", earthengine=EarthEngineConfig(url=url, in_flight=IN_FLIGHT)),
        ray=RayConfig(concurrency=processes),
    )


def seed_style(rois: list[Roi], config: Config, folder: Path) -> None:
    """Region by region, month by month, sensor by sensor."""
    for roi in rois:
        (tile,) = plan_tiles(roi, config.grid, config.patch)
        x0, y0, x1, y1 = tile.grid.bounds
        ring = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]
        region = ee.Geometry.Polygon(ring, tile.grid.crs, False)
        for month, period in enumerate(periods_for(config.window, roi.harvest_start)):
            for sensor, image in (("s2", seed_s2), ("s1", seed_s1)):
                pixels = _pixels(image(region, period, config), tile.grid)
                np.save(folder / f"{roi.roi_id}-{sensor}-{month}.npy", pixels)


def seed_s2(region: Any, period: Period, config: Config) -> Any:
    invalid = list(config.composite.scl_invalid)

    def masked(image: Any) -> Any:
        return image.updateMask(image.select("SCL").remap(invalid, [0] * len(invalid), 1))

    scenes = ee.ImageCollection(S2).filterBounds(region).filterDate(str(period.start), str(period.end))
    assert scenes.size().getInfo() > 0
    return scenes.map(masked).select([band.ee for band in S2_BANDS]).median().divide(10_000).toFloat()


def seed_s1(region: Any, period: Period, _: Config) -> Any:
    scenes = (
        ee.ImageCollection(S1)
        .filterBounds(region)
        .filterDate(str(period.start), str(period.end))
        .filter(ee.Filter.eq("instrumentMode", "IW"))
        .filter(ee.Filter.eq("resolution", "H"))
    )
    whole = scenes.filter(ee.Filter.contains(".geo", region))
    passes = {name: whole.filter(ee.Filter.eq(PASS, name)) for name in ("ASCENDING", "DESCENDING")}
    counts = {name: of_pass.size().getInfo() for name, of_pass in passes.items()}
    chosen = next((passes[name] for name, count in counts.items() if count), scenes)
    orbits = chosen.aggregate_array(ORBIT).distinct().getInfo()

    def power(image: Any) -> Any:
        return ee.Image(10).pow(image.select(["VV", "VH"]).divide(10))

    means = [chosen.filter(ee.Filter.eq(ORBIT, orbit)).map(power).mean() for orbit in orbits]
    image = ee.ImageCollection(means).mosaic().log10().multiply(10).toFloat()
    assert image.bandNames().getInfo() == ["VV", "VH"]
    return image


def _pixels(image: Any, grid: Grid) -> npt.NDArray[np.float32]:
    names = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
    request = {
        "expression": image,
        "fileFormat": "NUMPY_NDARRAY",
        "grid": {
            "dimensions": {"width": grid.width, "height": grid.height},
            "affineTransform": dict(zip(names, grid.transform, strict=True)),
            "crsCode": grid.crs,
        },
    }
    table = ee.data.computePixels(request)
    return np.stack([table[name] for name in table.dtype.names])


def by_cropray(rois: list[Roi], config: Config, folder: Path) -> None:
    run = Run(Folder(str(folder)), config)
    write_rois(run.folder, rois)
    write_parcels(run.folder, gpd.GeoDataFrame({"parcel_id": [], "crop": []}, geometry=[], crs="EPSG:4326"))
    run.finish("rois", {})
    export(run)


def check_same(seed: Path, ours: Path, rois: list[Roi]) -> None:
    """Raises AssertionError unless both hold the same pixels, to the rounding of what is stored."""
    parts = [str(path) for path in sorted((ours / "parts").glob("*.parquet"))]
    reader = ShardReader(parts, batch_size=1, shuffle=False)
    samples = reader.take(range(len(reader.table)))
    for at, (roi_id, row, col) in enumerate(
        zip(*(samples.rows[k] for k in ("roi_id", "row", "col")), strict=True)
    ):
        for sensor, stored, scale in (
            ("s2", samples.s2_bcthw[at], S2_BANDS[0].scale),
            ("s1", samples.s1_bcthw[at], S1_BANDS[0].scale),
        ):
            for month in range(stored.shape[1]):
                whole = np.load(seed / f"{roi_id}-{sensor}-{month}.npy")
                values = whole[:, row : row + stored.shape[2], col : col + stored.shape[3]]
                valid = stored[:, month] != NODATA
                apart = np.abs(stored[:, month] - values / scale)
                assert apart[valid].max(initial=0) < 0.51, (roi_id, sensor, month)
                assert not values[~valid].any()
    assert len(samples) == 4 * len(rois)


class Server:
    """The server's process and what it counts."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counters(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/-/counters") as answer:
            counted: dict[str, Any] = json.load(answer)
            return counted

    def forget(self) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/-/forget", b"{}", method="POST")).close()


@contextmanager
def serving(latency: float) -> Iterator[Server]:
    command = [sys.executable, "-m", "tests.earthengine_server", "--replay", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().split()[-1])
        finally:
            process.terminate()


def measured(server: Server, exporter: Any, rois: list[Roi], config: Config, folder: Path) -> dict[str, Any]:
    """One run; figures are of the whole run, `…_an_roi` are divided."""
    folder.mkdir()
    server.forget()
    cpu = server.counters()["process_cpu_seconds"]
    start = time.perf_counter()
    exporter(rois, config, folder)
    wall = time.perf_counter() - start
    counted = server.counters()
    requests = sum(counted["requests"].values())
    return {
        "rois": len(rois),
        "requests": requests,
        "requests_an_roi": requests / len(rois),
        "wall_s": wall,
        "wall_s_an_roi": wall / len(rois),
        "server_cpu_s": counted["process_cpu_seconds"] - cpu,
        "in_flight_max": counted["in_flight_max"],
        "statuses": counted["statuses"],
        "ray_s": 0.0,
    }


def measure(counts: list[int], seed_count: int, latency: float, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures by what was run: each first evaluated by the server, then replayed."""
    results = {}
    with serving(latency) as server:
        config = config_for(server.url)
        seed_rois = make_rois(seed_count, 0)
        ee.Initialize(AnonymousCredentials(), project="any", url=server.url)
        for pass_ in PASSES:
            name = f"seed-style, {pass_}"
            results[name] = measured(server, seed_style, seed_rois, config, folder / name)
        ee.Reset()
        first, chosen = seed_count, seed_rois
        for count in counts:
            chosen = make_rois(count, first)
            for pass_ in PASSES:
                name = f"cropray {count}, {pass_}"
                results[name] = on_ray(server, chosen, config, folder / name)
            first += count
        for processes in OTHER_PROCESSES:
            name = f"cropray {len(chosen)}, {processes} processes, {PASSES[-1]}"
            results[name] = on_ray(server, chosen, config_for(server.url, processes), folder / name)
        on_ray(server, seed_rois, config, folder / "check")
    check_same(folder / "seed-style, evaluated", folder / "check", seed_rois)
    return results


def on_ray(server: Server, rois: list[Roi], config: Config, folder: Path) -> dict[str, Any]:
    """A run of cropray on a Ray of its own, whose start is timed apart."""
    start = time.perf_counter()
    with ray_session(config.ray):
        ray_s = time.perf_counter() - start
        return {**measured(server, by_cropray, rois, config, folder), "ray_s": ray_s}


def with_ratios(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Beside each figure, how many times better it is than the seed-style run of the same pass."""
    for name, result in results.items():
        seed = results[f"seed-style, {name.rsplit(', ', maxsplit=1)[-1]}"]
        result["times_faster"] = seed["wall_s_an_roi"] / result["wall_s_an_roi"]
        result["times_fewer_requests"] = seed["requests_an_roi"] / result["requests_an_roi"]
    return results


def each_more(results: dict[str, dict[str, Any]], counts: list[int], pass_: str) -> dict[str, float]:
    """Wall seconds of each further ROI, between the fewest and the most: without the start of workers."""
    few, many = (results[f"cropray {count}, {pass_}"] for count in (min(counts), max(counts)))
    wall = (many["wall_s"] - few["wall_s"]) / (many["rois"] - few["rois"])
    return {"wall_s": wall, "times_faster": results[f"seed-style, {pass_}"]["wall_s_an_roi"] / wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rois", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seed-rois", type=int, default=4, help="of the seed-style exporter: 20 s each")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds added to each request")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = with_ratios(measure(args.rois, args.seed_rois, args.latency, Path(folder)))
    more = {pass_: each_more(results, args.rois, pass_) for pass_ in PASSES} if len(args.rois) > 1 else {}
    if args.json:
        figures = {"latency_s": args.latency, "runs": results, "each_more": more, "targets": TARGETS}
        print(json.dumps(figures))
        return
    print(f"128 px, 6 months, both sensors; {args.latency:g} s a request; both brought the same pixels\n")
    columns = {
        "requests": "requests",
        "requests_an_roi": "an ROI",
        "times_fewer_requests": "fewer",
        "wall_s": "wall s",
        "wall_s_an_roi": "an ROI",
        "times_faster": "faster",
        "server_cpu_s": "server CPU s",
        "in_flight_max": "in flight",
        "ray_s": "Ray s",
    }
    print(" " * 34 + "".join(f"{title:>13}" for title in columns.values()))
    for name, result in results.items():
        print(f"{name:34}" + "".join(f"{round(result[key], 2):13}" for key in columns))
    for pass_, figure in more.items():
        print(f"each ROI more, {pass_}: {figure['wall_s']:.2f} s, {figure['times_faster']:.0f} times faster")
    print(
        f"\ntargets: {TARGETS['wall']:.0f} times faster where the server is not the limit (replayed), "
        f"{TARGETS['requests']:.0f} times fewer requests, never more than {IN_FLIGHT} in flight"
    )


if __name__ == "__main__":
    main()

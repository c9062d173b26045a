"""Bytes of shards by codec beside GeoTIFFs, on real scenes; speed and memory of compaction.

    python benchmarks/shards.py [--data FOLDER] [--gigabytes N] [--json]

Sizes: monthly composites of two real sites (WorldCereal's patch in Flanders, 2018-19, and its prepared
months in Belgium, 2020-21), six consecutive months each, shifted at random for more samples. Months of
Belgium that are wholly missing are left out. Sentinel-1 is on a 20 m grid at both sites, so every number
occurs four times and compresses more easily than at 10 m. The last column therefore counts Sentinel-1
uncompressed. The peer keeps a sample as 13 uncompressed GeoTIFFs (1.41 MB without their headers).

Compaction: parts of noisy samples of the simulated world (without noise, copies of one sample would compress
too well), compacted by a driver of its own on a running Ray. Reported are the peak memory of the driver and
of all processes that write shards. A fifth of the data is compacted first, to show memory that grows with
them. The limit is a copy of the parts' files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr
import xxhash

from cropray.bands import NODATA, S2_NAMES
from cropray.cluster import ray_session
from cropray.config import Config
from cropray.config.imagery import LabelsConfig, PatchConfig
from cropray.grid import Grid
from cropray.imagery.simulated import SimulatedSource
from cropray.pipeline.compact import compact
from cropray.pipeline.tiles import cut_patches, plan_tiles, shard_metadata
from cropray.rois.calendar import periods_for
from cropray.run import Run
from cropray.shards.ledger import TILE_KEY, LedgerRow, part_name, write_ledger
from cropray.shards.schema import ShardMetadata, encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from cropray.types import UNLABELLED, ByteArray, ImageRequest, IntArray, Patch, Period, Roi

SIZE, MONTHS = 64, 6
TIFF_BYTES = MONTHS * SIZE * SIZE * (10 * 4 + 2 * 8) + SIZE * SIZE * 8
TARGETS = {"lz4": 0.42, "compact": 0.30}
CODECS = ("none", "lz4", "compact")
PERIODS = [Period(date(2019, month, 1), date(2019, month + 1, 1)) for month in range(1, MONTHS + 1)]
EXTENT = Grid("EPSG:32631", 500_000.0, 5_600_000.0, 10.0, SIZE, SIZE)
ROI = Roi("r", "", "", "", "", "train", EXTENT.bounds, EXTENT.crs, harvest_start=date(2022, 8, 1))


@dataclass(frozen=True)
class Site:
    """Monthly composites as they are stored (C, T, H, W), and a label."""

    name: str
    s2_cthw: IntArray
    s1_cthw: IntArray
    label_hw: ByteArray

    def samples(self, rng: np.random.Generator, count: int) -> Iterator[Patch]:
        """Windows of six months at random places; a site of one patch is rolled instead."""
        _, months, height, width = self.s2_cthw.shape
        for number in range(count):
            first = int(rng.integers(months - MONTHS + 1))
            row, col = (
                int(rng.integers(side if side == SIZE else side - SIZE + 1)) for side in (height, width)
            )
            cut = np.s_[..., :SIZE, :SIZE]
            s2, s1, label = (
                np.ascontiguousarray(np.roll(image, (-row, -col), (-2, -1))[cut])
                for image in (
                    self.s2_cthw[:, first : first + MONTHS],
                    self.s1_cthw[:, first : first + MONTHS],
                    self.label_hw,
                )
            )
            yield Patch(f"{self.name}-{number}", row, col, s2, s1, label)


def flanders(folder: Path) -> Site:
    """Medians of clear views (scene classes 4–7) and means of Sentinel-1 power, by month."""

    def opened(part: str) -> xr.Dataset:
        (path,) = folder.glob(f"{part}_*.nc")
        return xr.open_dataset(path, mask_and_scale=False).load()

    fine, coarse, radar = (opened(p) for p in ("S2_L2A_10m", "S2_L2A_20m", "S1_GRD-ASCENDING_20m"))
    s2 = np.stack([fine[n].values if n in fine else _doubled(coarse[n].values) for n in S2_NAMES])
    clear = np.isin(_doubled(coarse["SCL"].values), (4, 5, 6, 7))
    power = 10 ** (_doubled(np.stack([radar["VV"].values, radar["VH"].values])) * 1e-5)
    month2, month1 = (series.timestamp.values.astype("datetime64[M]") for series in (fine, radar))
    optical, backscatter = [], []
    for month in np.unique(month2):
        seen = np.where(clear[month2 == month], s2[:, month2 == month], np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # months in which a pixel is never clear
            median = np.nanmedian(seen, axis=1)
        optical.append(np.where(np.isnan(median), NODATA, np.rint(median)).astype(np.int16))
        backscatter.append(np.rint(1000 * np.log10(power[:, month1 == month].mean(axis=1))).astype(np.int16))
    codes = opened("OUTPUT_POLY-110_10m")["CT"].values
    label = np.unique(codes, return_inverse=True)[1].reshape(codes.shape).astype(np.uint8)
    return Site("flanders", np.stack(optical, 1), np.stack(backscatter, 1), label)


def belgium(folder: Path) -> Site:
    """Its months as they are. It has no B8A: B07 of another place stands in, as hard to compress."""
    (path,) = folder.glob("*.nc")
    data = xr.open_dataset(path, mask_and_scale=False).load()
    bands = {name: data[f"S2-L2A-{name}"].values for name in S2_NAMES if name != "B8A"}
    bands["B8A"] = np.roll(bands["B07"], 37, axis=-1)
    s2 = np.stack([bands[name] for name in S2_NAMES]).astype(np.int16)
    s2[s2 == -1] = NODATA
    numbers = np.stack([data[f"S1-SIGMA0-{name}"].values.astype(np.uint16) for name in ("VV", "VH")])
    s1 = np.rint(100 * (20 * np.log10(np.maximum(numbers, 1)) - 83)).astype(np.int16)
    whole = (s2 != NODATA).any(axis=(0, 2, 3))
    longest = max(np.split(np.arange(len(whole)), np.flatnonzero(~whole)), key=len)
    months = longest[whole[longest]]
    label = np.full(s2.shape[-2:], UNLABELLED, np.uint8)
    return Site("belgium", s2[:, months], s1[:, months], label)


def _doubled(values: np.ndarray) -> np.ndarray:
    return values.repeat(2, axis=-1).repeat(2, axis=-2)


def measure_sizes(data: Path, count: int) -> dict[str, dict[str, float]]:
    """Share of the GeoTIFFs' bytes by site and codec; `… , s1 plain` counts Sentinel-1 uncompressed."""
    rng = np.random.default_rng(0)
    metadata = ShardMetadata(("crop",), SIZE, {"months": MONTHS}, "sigma0", "", {})
    plain_s1 = metadata.tensors["s1"].nbytes
    shares: dict[str, dict[str, float]] = {}
    for site in (flanders(data / "flanders_2019"), belgium(data / "belgium_monthly")):
        rows = [encode_patch(patch, ROI, EXTENT, PERIODS) for patch in site.samples(rng, count)]
        for codec in CODECS:
            with tempfile.TemporaryDirectory() as folder:
                write_shard(Folder(folder), "x.parquet", metadata, [to_table(rows, metadata)], codec=codec)
                stored = (Path(folder) / "x.parquet").stat().st_size / count
                group = pq.ParquetFile(Path(folder) / "x.parquet").metadata.row_group(0)
                columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
                hard = stored - columns["s1"].total_compressed_size / count + plain_s1
            shares.setdefault(codec, {})[site.name] = stored / TIFF_BYTES
            shares[codec][f"{site.name}, s1 plain"] = hard / TIFF_BYTES
    return shares


CONFIG = Config(
    classes=("crop",), labels=LabelsConfig(parcels=False), patch=PatchConfig(max_overlap=0, tile_patches=4)
)


def make_parts(run: Run, gigabytes: float) -> int:
    """Parts of about so many bytes of tensors; how many samples they hold."""
    source = SimulatedSource(run.config.source.simulated)
    metadata = shard_metadata(run.config, source)
    roi = replace(ROI, bounds=(500_000.0, 5_600_000.0, 502_560.0, 5_602_560.0))
    periods = periods_for(run.config.window, roi.harvest_start)
    tile = next(iter(plan_tiles(roi, run.config.grid, run.config.patch)))
    composite = source.composite(ImageRequest(tile.grid, tile.extent, periods))
    label = np.zeros(tile.grid.shape, np.uint8)
    patches = cut_patches(tile, composite, label, np.ones(tile.grid.shape, bool), None)
    sample_bytes = sum(spec.nbytes for spec in metadata.tensors.values())
    ledger = []
    for number in range(max(1, round(gigabytes * 1e9 / sample_bytes / len(patches)))):
        rng = np.random.default_rng(number)
        rows = [
            encode_patch(_noisy(patch, number, rng), replace(roi, roi_id=f"r{number}"), tile.extent, periods)
            for patch in patches
        ]
        ledger.append(_write_part(run.folder, f"r{number}", rows, metadata))
    write_ledger(run.folder, ledger)
    return len(ledger) * len(patches)


def _noisy(patch: Patch, number: int, rng: np.random.Generator) -> Patch:
    """The same with its numbers a few units off, where there are any."""
    s2, s1 = (
        np.where(v == NODATA, NODATA, v + rng.integers(-8, 9, v.shape, np.int16)).astype(np.int16)
        for v in (patch.s2_cthw, patch.s1_cthw)
    )
    return replace(patch, sample_id=f"{number}-{patch.sample_id}", s2_cthw=s2, s1_cthw=s1)


def _write_part(
    folder: Folder, tile_id: str, rows: list[dict[str, Any]], metadata: ShardMetadata
) -> LedgerRow:
    groups = [to_table([row], metadata) for row in rows]
    check = xxhash.xxh3_64(b"".join(np.uint64(row["xxh3"]).tobytes() for row in rows)).hexdigest()
    empty: list[float] = []
    row = LedgerRow(
        tile_id, tile_id, "", "", "train", metadata.recipe, "", len(rows), "", 0, check,
        0, 0, SIZE, SIZE, empty, empty, [], [],
    )  # fmt: skip
    footer = {TILE_KEY: row.to_json()}
    write_shard(folder, part_name(tile_id), metadata, groups, codec="lz4", footer=footer)
    return row


def measure_compaction(gigabytes: float, codec: str) -> dict[str, float]:
    """MB of tensors a second, and the peak memory of the processes."""
    with tempfile.TemporaryDirectory() as folder:
        settings = CONFIG.model_copy(update={"shards": CONFIG.shards.model_copy(update={"codec": codec})})
        run = Run(Folder(folder), settings)
        run.finish("rois", {})
        samples = make_parts(run, gigabytes)
        run.finish("export", {})
        limit = copy_seconds(Path(folder) / "parts")
        command = [sys.executable, __file__, "--compact", folder, "--codec", codec]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        stored = sum(p.stat().st_size for p in (Path(folder) / "shards").rglob("*.parquet"))
    tensors = ShardMetadata(("crop",), SIZE, {"months": MONTHS}, "", "", {}).tensors
    tensor_mb = samples * sum(spec.nbytes for spec in tensors.values()) / 1e6
    return {
        "samples": samples,
        "tensors_mb": tensor_mb,
        "stored_mb": stored / 1e6,
        "mb_per_s": tensor_mb / result["seconds"],
        "copy_mb_per_s": tensor_mb / limit,
        **{name: value for name, value in result.items() if name != "seconds"},
    }


def copy_seconds(parts: Path) -> float:
    """What copying the files of the parts takes: no compaction of as many bytes can take less."""
    with tempfile.TemporaryDirectory(dir=parts.parent) as target:
        os.sync()  # what was written before is not to be waited for meanwhile
        start = time.perf_counter()
        for path in parts.glob("*.parquet"):
            shutil.copyfile(path, Path(target) / path.name)
        seconds = time.perf_counter() - start
    os.sync()
    return seconds


def compact_here(folder: str, codec: str) -> None:
    settings = CONFIG.model_copy(update={"shards": CONFIG.shards.model_copy(update={"codec": codec})})
    run = Run(Folder(folder), settings)
    with ray_session(settings.ray), watched_writers() as peaks:
        before = peak_mb()
        start = time.perf_counter()
        compact(run)
        seconds = time.perf_counter() - start
    memory = {"before_mb": before, "driver_mb": peak_mb(), "writers_mb": sum(peaks.values())}
    print(json.dumps({"seconds": seconds, **memory, "writers": len(peaks)}))


@contextmanager
def watched_writers() -> Iterator[dict[int, float]]:
    """Peak memory (MB) of each process below this one that writes shards, polled ten times a second."""
    peaks: dict[int, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for process in descendants(os.getpid()):
                with suppress(OSError):  # it has ended meanwhile
                    if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::FlatMap"):
                        peaks[process] = peak_mb(process)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def peak_mb(process: int | str = "self") -> float:
    """Most memory that a process had (of `getrusage`, a child's includes what its parent had)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    shared = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CROPRAY_SHARED_DATA", shared)))
    parser.add_argument("--samples", type=int, default=24, help="of each site")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--compact", help=argparse.SUPPRESS)
    parser.add_argument("--codec", default="lz4", help="of compaction")
    args = parser.parse_args()
    if args.compact:
        compact_here(args.compact, args.codec)
        return
    site_data = args.data / "worldcereal"
    sizes = measure_sizes(site_data, args.samples) if site_data.is_dir() else {}
    compactions = [measure_compaction(share * args.gigabytes, args.codec) for share in (0.2, 1.0)]
    if args.json:
        result = {"sizes": sizes, "targets": TARGETS, "codec": args.codec, "compactions": compactions}
        print(json.dumps(result))
        return
    if sizes:
        print(f"bytes of a sample, in those of its GeoTIFFs ({TIFF_BYTES / 1e6:.2f} MB)\n")
        names = list(next(iter(sizes.values())))
        print(f"{'':10}" + "".join(f"{name:>20}" for name in names) + f"{'target':>10}")
        for codec, shares in sizes.items():
            target = f"{TARGETS[codec]:.2f}" if codec in TARGETS else ""
            print(f"{codec:10}" + "".join(f"{shares[name]:20.3f}" for name in names) + f"{target:>10}")
    else:
        print(f"no real scenes at {site_data}: --data names the folder that holds worldcereal/")
    print(f"\ncompaction to {args.codec}; peak memory in MB: the driver's before and after, all writers'")
    print(f"{'samples':>10}{'tensors MB':>12}{'MB/s':>8}{'copy':>8}{'before':>8}{'driver':>8}{'writers':>14}")
    for c in compactions:
        print(f"{c['samples']:10.0f}{c['tensors_mb']:12.0f}{c['mb_per_s']:8.0f}", end="")
        print(f"{c['copy_mb_per_s']:8.0f}", end="")
        print(f"{c['before_mb']:8.0f}{c['driver_mb']:8.0f}", end="")
        print(f"{c['writers']:6.0f} x {c['writers_mb'] / c['writers']:5.0f}")


if __name__ == "__main__":
    main()

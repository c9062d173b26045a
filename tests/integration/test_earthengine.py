"""An export from Earth Engine: the real client in Ray's workers, HTTP, the server, parts on disk."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from cropray.config import Config
from cropray.config.load import load_config, updated
from cropray.errors import InputError
from cropray.pipeline.cluster_quota import process_count
from cropray.pipeline.export import export
from cropray.pipeline.tiles import Tile, plan_tiles
from cropray.rois.build import build_rois
from cropray.rois.store import read_rois
from cropray.run import Run
from cropray.shards.ledger import read_ledger
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import Batch
from tests.earthengine_server import Catalogue, Fault, Limits, Serving, serve
from tests.earthengine_server.catalogue import S1
from tests.earthengine_server.faults import Kind
from tests.integration.test_export import descendants, parts_of, with_pid

CLASSES = (211, 213, 232, 216, 221, 222, 240, 223, 500, 300, 290)
# South and west of the regions' corners, degrees; the last lies across the edge of a swath.
REGIONS = {
    "a": (50.45, 4.30),
    "b": (50.48, 4.33),
    "c": (50.51, 4.30),
    "d": (50.45, 4.38),
    "e": (50.45, 4.465),
}
HEADER = "country,harvest_date,min_lon,min_lat,max_lon,max_lat\n"


def table_of(regions: dict[str, tuple[float, float]], side: float = 0.0112) -> str:
    """Squares of about 1,250 m by 800 m."""
    rows = (f"{n},2022-07-01,{w},{s},{w + side},{s + side}\n" for n, (s, w) in regions.items())
    return HEADER + "".join(rows)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earthengine")
    (folder / "rois.csv").write_text(table_of(REGIONS))
    config = {
        "classes": [str(code) for code in CLASSES],
        "rois": {
            "kind": "table",
            "data_root": str(folder),
            "table": "rois.csv",
            "split": {"named": dict.fromkeys(REGIONS, "train")},
        },
        "window": {"months": 2},
        "labels": {"parcels": False, "class_map": {"path": "source:eucropmap", "codes": list(CLASSES)}},
        "patch": {"tile_patches": 1},
        "ray": {"concurrency": 2},
        "source": {
            "kind": "simulated",
            "earthengine": {"eucropmap_year": 2022, "in_flight": 6, "deadline_s": 20},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve(limits=Limits(per_second=10_000)) as serving:
        yield serving


@pytest.fixture(autouse=True)
def without_faults(server: Serving) -> Iterator[None]:
    server.plan()
    server.service.latency = 0.0
    server.forget()
    return


def new_run(config_path: Path, folder: Path, **changes: Any) -> Run:
    """A run whose regions are there, of a configuration with changes by dotted key."""
    run = Run(Folder(str(folder)), updated(load_config(str(config_path)), changes))
    build_rois(run)
    return run


def on_earth_engine(url: str) -> dict[str, Any]:
    return {"source.kind": "earthengine", "source.earthengine.url": url}


@pytest.fixture(scope="module")
def undisturbed(
    config_path: Path, server: Serving, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Counter[str]]:
    """A finished export by the command line, and how often each grid was asked for."""
    run = new_run(config_path, tmp_path_factory.mktemp("undisturbed"), **on_earth_engine(server.url))
    server.forget()
    options = ["--set", "source.kind=earthengine", "--set", f"source.earthengine.url={server.url}"]
    command = [sys.executable, "-m", "cropray", "export", "--config", str(config_path), *options]
    done = subprocess.run([*command, "--run", run.folder.uri], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return run, Counter(entry.grid for entry in server.service.book)


def tiles_of(run: Run) -> list[Tile]:
    config = run.config
    return [tile for roi in read_rois(run.folder) for tile in plan_tiles(roi, config.grid, config.patch)]


def grid_name(tile: Tile) -> str:
    """As the server's book names a grid."""
    grid = tile.grid
    return f"{grid.crs} {grid.x0} {grid.y0} {grid.width}x{grid.height}"


def samples_of(run: Run) -> Batch:
    uris = [f"{run.folder.uri}/parts/{name}" for name in run.folder.child("parts").names(".parquet")]
    reader = ShardReader(uris, batch_size=1000, shuffle=False)
    return reader.take(range(len(reader.table)))


def assert_ledger_adds_up(run: Run) -> None:
    """One row a tile, and the counts of the summary are those of the parts."""
    rows = read_ledger(run.folder)
    assert Counter(row.tile_id for row in rows) == Counter(tile.tile_id for tile in tiles_of(run))
    samples = samples_of(run)
    assert sum(row.patches for row in rows) == len(samples)
    assert len(set(samples.rows["sample_id"])) == len(samples)
    summary = run.summary("export")
    assert summary is not None
    assert (summary["tiles"], summary["patches"]) == (len(rows), len(samples))


def test_parts_hold_the_tensors_of_the_simulated_source(
    undisturbed: tuple[Run, Counter[str]], config_path: Path, tmp_path: Path, ray_local: None
) -> None:
    run, asked = undisturbed
    # One request a tile, and one pixel to try the account with.
    tiles = Counter(grid_name(tile) for tile in tiles_of(run))
    assert len(tiles) >= 15
    assert Counter({grid: n for grid, n in asked.items() if not grid.endswith(" 1x1")}) == tiles
    assert asked.total() == tiles.total() + 1
    simulated = new_run(config_path, tmp_path)
    export(simulated)
    got, wanted = samples_of(run), samples_of(simulated)
    assert got.rows["sample_id"] == wanted.rows["sample_id"]
    np.testing.assert_array_equal(got.label_bhw, wanted.label_bhw)
    for name, most in (("s2_bcthw", 0.2), ("s1_bcthw", 1e-3)):
        one, two = getattr(got, name).astype(np.int32), getattr(wanted, name).astype(np.int32)
        apart = np.abs(one - two)
        # The service's scenes are integers: a median of an even number of them is rounded twice.
        assert apart.max() == 1
        assert (apart == 1).mean() < most
    assert_ledger_adds_up(run)


def test_requests_that_fail_in_every_way_lose_and_double_nothing(
    undisturbed: tuple[Run, Counter[str]], config_path: Path, server: Serving, tmp_path: Path, ray_local: None
) -> None:
    changes = {**on_earth_engine(server.url), "source.earthengine.deadline_s": 4}
    run = new_run(config_path, tmp_path, **changes)
    # Every kind is met once, at the beginning. Those that split a tile come first, while as many tiles
    # are on their way, so that none is split beyond its months; the first two meet the pixel that is
    # asked for to try the account (of two months, then of one).
    splitting = ("memory", "timeout", "size")
    others = [kind for kind in get_args(Kind) if kind not in splitting]
    server.service.latency = 0.3
    server.plan(
        Fault("memory", times=1),
        *(Fault(kind, times=1, seconds=5 if kind == "delay" else 0) for kind in (*splitting, *others)),
        Fault("503", share=0.1),
    )
    export(run)
    while server.counters()["in_flight"]:  # the answer that came too late is not yet in the book
        time.sleep(0.1)
    counted = server.counters()
    assert set(counted["faults"]) == set(get_args(Kind))
    assert sum(counted["faults"].values()) > 0.1 * sum(counted["requests"].values())
    assert parts_of(run) == parts_of(undisturbed[0])
    assert_ledger_adds_up(run)
    (events,) = run.folder.child("events").names(".jsonl")
    outcomes = Counter(
        json.loads(line).get("outcome") for line in run.folder.read_text(f"events/{events}").splitlines()
    )
    assert outcomes["too_large"] == 2
    assert min(outcomes["rate_limited"], outcomes["unavailable"]) > 0


def test_a_killed_export_goes_on_without_fetching_again(
    undisturbed: tuple[Run, Counter[str]], config_path: Path, server: Serving, tmp_path: Path, ray_local: None
) -> None:
    run = new_run(config_path, tmp_path, **on_earth_engine(server.url))
    server.service.latency = 0.4
    wanted = parts_of(undisturbed[0])
    chance = random.Random(5)
    kills: list[tuple[float, set[str]]] = []
    for least in sorted(chance.sample(range(1, len(wanted) - 6), 3)):
        killed_after(run, least, chance.uniform(0, 0.4))
        kills.append((time.monotonic(), set(parts_of(run))))
    server.service.latency = 0.0
    export(run)
    assert parts_of(run) == wanted
    assert 0 < len(kills[0][1]) < len(kills[-1][1]) < len(wanted)
    grids = {f"{tile.tile_id}.parquet": grid_name(tile) for tile in tiles_of(run)}
    for when, published in kills:
        fetched_later = {entry.grid for entry in server.service.book if entry.started > when}
        assert not fetched_later & {grids[name] for name in published}
    assert_ledger_adds_up(run)
    assert run.folder.read_bytes("ledger.parquet") == undisturbed[0].folder.read_bytes("ledger.parquet")


def killed_after(run: Run, least: int, more_s: float) -> None:
    """Export in a process of its own, with its own Ray; all of it is killed a while after `least` parts."""
    code = (
        "import sys; from cropray.config.load import load_config; from cropray.run import Run;"
        "from cropray.storage import Folder; from cropray.pipeline.export import export;"
        "export(Run(Folder(sys.argv[1]), load_config(sys.argv[1] + '/config.yaml')))"
    )
    log = run.folder.local("driver.log")
    with log.open("wb") as stderr:
        driver = subprocess.Popen([sys.executable, "-c", code, run.folder.uri], stderr=stderr)
    try:
        deadline = time.monotonic() + 100
        while len(run.folder.child("parts").names(".parquet")) < least:
            assert driver.poll() is None, f"ended before it could be killed: {log.read_text()}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(more_s)
    finally:
        orphans = list(descendants(driver.pid)) if driver.poll() is None else []
        driver.kill()
        driver.wait()
        for pid in orphans:
            with_pid(pid, signal.SIGKILL)


@pytest.mark.parametrize(("processes", "size", "side"), [(1, 64, 0.0112), (2, 32, 0.0112), (4, 32, 0.016)])
def test_never_more_in_flight_than_allowed(
    config_path: Path,
    server: Serving,
    tmp_path: Path,
    ray_local: None,
    processes: int,
    size: int,
    side: float,
) -> None:
    # Small patches of large regions are many tiles: no more processes start than these are worth.
    (tmp_path / "rois.csv").write_text(table_of(REGIONS, side))
    changes = {"ray.concurrency": processes, "patch.size": size, "patch.max_overlap": 0}
    changes |= {"rois.data_root": str(tmp_path)}
    run = new_run(config_path, tmp_path / "run", **on_earth_engine(server.url), **changes)
    assert process_count(run.config, len(tiles_of(run))) == processes
    server.service.latency = 0.3
    export(run)
    cap = run.config.source.earthengine.in_flight
    assert cap / 2 <= server.counters()["in_flight_max"] <= cap


def test_what_is_missing_is_kept_counted_and_told(
    config_path: Path, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"a": REGIONS["a"], "overseas": (40.0, -90.0)}
    (tmp_path / "rois.csv").write_text(table_of(small, side=0.0004))  # smaller than a patch
    changes = {"rois.data_root": str(tmp_path), "rois.split.named": dict.fromkeys(small, "train")}
    changes |= {"patch.tile_patches": 2}
    gap = (S1, date(2022, 4, 1), date(2022, 5, 1))
    with serve(Catalogue(gaps=[gap])) as server:
        run = new_run(config_path, tmp_path / "run", **on_earth_engine(server.url), **changes)
        summary = export(run)
        near, far = sorted(read_ledger(run.folder), key=lambda row: row.roi_id)
    assert near.patches > 0
    assert 64 <= min(near.height, near.width) <= max(near.height, near.width) <= 68
    assert near.valid_s1[0] == 0 < near.valid_s1[1] == 1
    assert (far.patches, far.reason) == (0, "no valid pixel in any month of either sensor")
    assert summary["months_without_view"]["s1"] == {"2022-04": 2, "2022-05": 1}
    assert summary["months_without_scene"]["s1"] is None  # the service is not asked for their number
    said = capsys.readouterr().err
    assert f"no valid Sentinel-1: 2022-04 in 2 of 2 ROIs (such as {near.roi_id})" in said
    assert f"2022-05 in 1 of 2 ROIs (such as {far.roi_id})" in said
    assert "1 of 2 tiles have no valid pixel in any month of either sensor" in said


def test_settings_that_cannot_work_are_refused_before_the_first_tile(
    undisturbed: tuple[Run, Counter[str]], config_path: Path, server: Serving, tmp_path: Path, ray_local: None
) -> None:
    def refused(run: Run) -> str:
        with pytest.raises(InputError) as refusal:
            export(run)
        assert not (tmp_path / "parts").exists()
        return str(refusal.value)

    there = on_earth_engine(server.url)
    run = new_run(config_path, tmp_path, **there)

    def changed(**changes: Any) -> Run:
        return Run(run.folder, updated(run.config, {k.replace("__", "."): v for k, v in changes.items()}))

    assert "no map 'cropland'" in refused(changed(labels__class_map__path="source:cropland"))
    assert "project 'missing' exists" in refused(changed(source__earthengine__project="missing"))
    assert "enable the Earth Engine API" in refused(changed(source__earthengine__project="disabled"))
    other = Run(undisturbed[0].folder, updated(run.config, {"composite.cloud_score": 0.6}))
    with pytest.raises(InputError, match=r"composite\.cloud_score"):
        export(other)
    assert isinstance(other.config, Config)

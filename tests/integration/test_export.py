"""Export on Ray: failures become rows, a killed driver loses nothing, and the bytes stay the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import ray
import shapely

from cropray.config import Config
from cropray.config.imagery import LabelsConfig, PatchConfig, SimulatedConfig, SourceConfig
from cropray.config.rois import RoisConfig, SplitConfig, WindowConfig
from cropray.errors import InputError
from cropray.grid import transform_bounds
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.pipeline.tiles import extent_of
from cropray.rois.build import build_rois
from cropray.rois.store import read_parcels, read_rois, write_parcels, write_rois
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.simulation.tables import CROPS
from cropray.storage import Folder

CONFIG = Config(
    classes=CROPS,
    rois=RoisConfig(split=SplitConfig(allow_empty=True)),  # one ROI a crop: all are in train
    window=WindowConfig(months=1),
    source=SourceConfig(kind="simulated", simulated=SimulatedConfig(sites_per_crop=1)),
    labels=LabelsConfig(),
    patch=PatchConfig(tile_patches=1),
)


def new_run(path: Path) -> Run:
    """A run over the first three ROIs of the simulated world."""
    run = Run(Folder(str(path)), CONFIG)
    build_rois(run)
    write_rois(run.folder, read_rois(run.folder)[:3])
    return run


def parts_of(run: Run) -> dict[str, bytes]:
    """All that readers see; beside them a killed process may have left a file of a temporary name."""
    parts = run.folder.child("parts")
    return {name: parts.read_bytes(name) for name in parts.names(".parquet")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Run:
    run = new_run(tmp_path_factory.mktemp("undisturbed"))
    export(run)
    return run


def test_a_finished_export_compacts_to_readable_shards(undisturbed: Run) -> None:
    samples = compact(undisturbed)["samples"]
    tables = [
        ShardReader(shard_uris(undisturbed.folder, split), batch_size=4).table
        for split, count in samples.items()
        if count
    ]
    summary = undisturbed.summary("export")
    assert summary is not None
    assert sum(len(table) for table in tables) == summary["patches"] > 0
    assert {crop for table in tables for crop in table["crop"].to_pylist()} <= set(CROPS)


def test_a_tile_that_fails_is_named_and_the_others_are_kept(
    undisturbed: Run, tmp_path: Path, ray_local: None
) -> None:
    run = new_run(tmp_path)
    rois, parcels = read_rois(run.folder), read_parcels(run.folder)
    box = transform_bounds(extent_of(rois[0], CONFIG.grid, CONFIG.patch).bounds, rois[0].crs, "EPSG:4326")
    other = {"parcel_id": ["other"], "crop": ["of no class"], "geometry": [shapely.box(*box)]}
    write_parcels(run.folder, pd.concat([parcels, gpd.GeoDataFrame(other, crs=parcels.crs)]))
    wanted = parts_of(undisturbed)
    broken = {name for name in wanted if name.startswith(rois[0].roi_id)}
    with pytest.raises(InputError) as failure:
        export(run)
    assert f"{len(broken)} of {len(wanted)} tiles failed" in str(failure.value)
    assert "rois.parcels has of no class" in str(failure.value)
    assert "run the same command again" in str(failure.value)
    assert parts_of(run) == {name: data for name, data in wanted.items() if name not in broken}
    assert run.summary("export") is None
    (events,) = run.folder.child("events").names(".jsonl")
    assert run.folder.read_text(f"events/{events}").count("of no class") == len(broken)

    write_parcels(run.folder, parcels)
    kept = {path.name: path.stat().st_mtime_ns for path in run.folder.local("parts").iterdir()}
    assert export(run) == undisturbed.summary("export")
    assert parts_of(run) == wanted
    assert all(run.folder.local(f"parts/{name}").stat().st_mtime_ns == when for name, when in kept.items())


DRIVER = (
    "import sys; from cropray.config.load import load_config; from cropray.run import Run;"
    "from cropray.storage import Folder; from cropray.pipeline.export import export;"
    "export(Run(Folder(sys.argv[1]), load_config(sys.argv[1] + '/config.yaml')))"
)


def test_two_exports_at_once_come_to_the_same_bytes(
    undisturbed: Run, tmp_path: Path, ray_local: None
) -> None:
    run, wanted = new_run(tmp_path), parts_of(undisturbed)
    joined = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    other = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], env=joined, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not run.folder.child("parts").names(".parquet"):
        assert other.poll() is None, "the export ended before another could begin"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert export(run) == undisturbed.summary("export")
    _, said = other.communicate(timeout=120)
    assert other.returncode == 0, said
    assert parts_of(run) == wanted
    assert [path.name for path in run.folder.local("parts").iterdir() if path.name not in wanted] == []
    assert run.folder.read_bytes("ledger.parquet") == undisturbed.folder.read_bytes("ledger.parquet")


def test_a_killed_driver_goes_on_to_the_same_bytes(undisturbed: Run, tmp_path: Path, ray_local: None) -> None:
    run = new_run(tmp_path)
    wanted = parts_of(undisturbed)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(run.folder.child("parts").names(".parquet")) < 2:
            assert driver.poll() is None, "the export ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        orphans = list(descendants(driver.pid))
        driver.kill()
        driver.wait()
        for pid in orphans:  # the driver's own Ray
            with_pid(pid, signal.SIGKILL)
    done = parts_of(run)
    assert 2 <= len(done) < len(wanted)
    assert not run.folder.exists("ledger.parquet")
    assert export(run) == undisturbed.summary("export")
    assert parts_of(run) == wanted
    assert run.folder.read_bytes("ledger.parquet") == undisturbed.folder.read_bytes("ledger.parquet")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_interrupted_says_so_and_keeps_what_it_published(
    tmp_path: Path, sent: signal.Signals
) -> None:
    run = new_run(tmp_path)
    command = [sys.executable, "-m", "cropray", "export", "--config", "config.yaml", "--run", "."]
    stage = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (published := run.folder.child("parts").names(".parquet")):
        assert stage.poll() is None, "the export ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stage.send_signal(sent)
    _, said = stage.communicate(timeout=60)
    assert stage.returncode == 130
    assert "interrupted" in said.lower()
    assert "same command" in said
    assert "SIGTERM" not in said
    assert "Traceback" not in said
    assert set(published) <= set(run.folder.child("parts").names(".parquet"))
    assert not run.folder.exists("ledger.parquet")


def descendants(pid: int) -> Iterator[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        yield child
        yield from descendants(child)


def with_pid(pid: int, sent: signal.Signals) -> None:
    try:
        os.kill(pid, sent)
    except ProcessLookupError:
        return

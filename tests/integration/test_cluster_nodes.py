"""Stages on three nodes of one machine that share a bucket: one node is killed while it is at work, and
the files are those of one process.

What the nodes upload is held back until all of them have something to upload, so that it is certain that
the node which is then killed leaves work undone.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cropray.config.load import updated
from cropray.imagery import open_source
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export, plan_export
from cropray.pipeline.predict import predict
from cropray.pipeline.tiles import export_tile
from cropray.rois.build import build_rois
from cropray.rois.store import read_rois, write_rois
from cropray.run import Run, Summary
from cropray.storage import Folder
from tests.integration.conftest import Nodes
from tests.integration.test_export import CONFIG
from tests.integration.test_predict import random_model
from tests.s3_server import Bucket, s3_bucket
from tests.without_ray import work_without_ray

AREA = "4.33,50.44,4.36,50.455"  # twelve tiles of 64 px
CPUS = 4  # of all nodes: as many processes leave no room for another
OF_ROIS = ("rois/", "stages/rois.json", "config.yaml")
OF_EXPORT = (*OF_ROIS, "parts/", "ledger.parquet", "stages/export.json")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Parts, shards and a map made one by one in this process, without Ray, on a local disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model = random_model(folder / "model", CONFIG.classes)
    settings = {"model": model, "area": AREA, "as_of": "2022-06-15", "tile_size": 64}
    changes = {"shards.shard_samples": 1} | {f"predict.{key}": value for key, value in settings.items()}
    run = Run(Folder(str(folder / "run")), updated(CONFIG, changes))
    build_rois(run)
    write_rois(run.folder, read_rois(run.folder)[:5])
    source = open_source(run.config)
    plan = plan_export(run, source)
    for tile in plan.tiles:
        export_tile(tile, run.config, plan.metadata, plan.parcels, source, run.folder)
    export(run)  # finds all parts
    with pytest.MonkeyPatch.context() as patch:
        work_without_ray(patch)
        compact(run)
        predict(run)
    return run


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, s3_bucket(patch) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def started(bucket: Bucket) -> Iterator[Nodes]:
    nodes = Nodes()  # their processes take the bucket from the environment
    yield nodes
    nodes.end()


@pytest.fixture
def nodes(started: Nodes) -> Nodes:
    started.make_whole()
    return started


class Uploads:
    """What is uploaded to a folder of a run in the bucket: all but the first `free` wait for release."""

    def __init__(self, bucket: Bucket, run: Run, folder: str, free: int = 0) -> None:
        self._folder, self._free = f"{run.folder.uri.removeprefix('s3:/')}/{folder}/", free
        self._released, self._lock = threading.Event(), threading.Lock()
        self.seen: list[str] = []
        bucket.fault = self._fault

    def _fault(self, method: str, path: str) -> float:
        name = path.split("?", maxsplit=1)[0]
        if method in ("PUT", "POST") and name.startswith(self._folder):
            with self._lock:  # a file may take several requests
                if name not in self.seen:
                    self.seen.append(name)
            if self.seen.index(name) >= self._free:
                self._released.wait(100)
        return 0.0

    def release(self) -> None:
        self._released.set()


def copied(run: Run, name: str, wanted: tuple[str, ...]) -> Run:
    """A run in the bucket that has these files of another."""
    copy = Run(Folder(f"s3://runs/{name}"), run.config)
    for file in run.folder.names():
        if file.startswith(wanted):
            copy.folder.write_bytes(file, run.folder.read_bytes(file))
    return copy


@contextmanager
def stage(name: str, run: Run, nodes: Nodes, **ray: object) -> Iterator["subprocess.Popen[str]"]:
    """A stage as its command, on the nodes; it is killed at the end of the block if it has not ended."""
    options = [part for key, value in ray.items() for part in ("--set", f"ray.{key}={value}")]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(run.config.to_yaml())
        config.flush()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cropray", name, "--config", config.name),
                *("--run", run.folder.uri, *options),
            ],
            env={**os.environ, "RAY_ADDRESS": nodes.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def wait_until(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait for something that comes about while a stage runs."""
    deadline = time.monotonic() + 90
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(process: "subprocess.Popen[str]") -> Summary:
    """What a stage that must succeed says at its end."""
    result, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    summary: Summary = json.loads(result)
    return summary


def files_of(run: Run, folder: str) -> dict[str, bytes]:
    here = run.folder.child(folder)
    return {name: here.read_bytes(name) for name in here.names()}


def test_an_export_outlives_a_node_and_keeps_to_those_that_offer_its_resource(
    undisturbed: Run, bucket: Bucket, nodes: Nodes
) -> None:
    run, offering = copied(undisturbed, "export", OF_ROIS), nodes.offering_ee
    uploads = Uploads(bucket, run, "parts", free=2)
    with stage("export", run, nodes, concurrency=2, export_resources="{ee: 1}") as process:
        wait_until(lambda: len(uploads.seen) == 2 + 2, process)
        assert nodes.at_work("ee") == offering
        nodes.kill_one()
        uploads.release()
        assert finished(process) == run.summary("export") == undisturbed.summary("export")
    assert files_of(run, "parts") == files_of(undisturbed, "parts")


def test_a_compaction_outlives_a_node_where_there_is_room_for_no_other_process(
    undisturbed: Run, bucket: Bucket, nodes: Nodes
) -> None:
    run = copied(undisturbed, "compaction", OF_EXPORT)
    uploads = Uploads(bucket, run, "shards")
    with stage("compact", run, nodes, concurrency=CPUS) as process:
        wait_until(lambda: len(uploads.seen) == 2 * CPUS, process)
        assert nodes.at_work("CPU") > nodes.offering_ee
        nodes.kill_one()
        uploads.release()
        assert finished(process) == undisturbed.summary("compact")
    assert files_of(run, "shards") == files_of(undisturbed, "shards")


def test_a_compaction_whose_driver_is_killed_goes_on_to_the_same_shards(
    undisturbed: Run, bucket: Bucket, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(undisturbed, "goes-on", OF_EXPORT)
    wanted = files_of(undisturbed, "shards")
    uploads = Uploads(bucket, run, "shards", free=3)
    with stage("compact", run, nodes, concurrency=2) as process:
        wait_until(lambda: len(files_of(run, "shards")) == 3, process)
    uploads.release()
    assert len(files_of(run, "shards")) < len(wanted)
    work_without_ray(monkeypatch)
    assert compact(run) == undisturbed.summary("compact")
    assert files_of(run, "shards") == wanted


def test_a_prediction_outlives_a_node(undisturbed: Run, bucket: Bucket, nodes: Nodes) -> None:
    run = Run(Folder("s3://runs/prediction"), undisturbed.config)
    uploads = Uploads(bucket, run, "maps/map/parts", free=2)
    with stage("predict", run, nodes, concurrency=CPUS) as process:
        wait_until(lambda: len(uploads.seen) == 2 + CPUS, process)
        assert nodes.at_work("CPU") > nodes.offering_ee
        nodes.kill_one()
        uploads.release()
        finished(process)
    wanted, made = (files_of(of, "maps/map") for of in (undisturbed, run))
    assert {"map.tif", "scores.tif", "areas.json", "areas.csv"} < made.keys() == wanted.keys()
    # These name the folder, or tell what else the run knows of the place: the undisturbed one has ROIs.
    for name in wanted.keys() - {"summary.json", "item.json", "model.json", "report.html", "summary.pdf"}:
        assert made[name] == wanted[name], name


def test_a_stage_says_for_which_resource_it_waits_and_goes_on_once_a_node_has_it(
    undisturbed: Run, bucket: Bucket, nodes: Nodes
) -> None:
    run = copied(undisturbed, "waits", OF_ROIS)
    with stage("export", run, nodes, concurrency=2, export_resources="{late: 1}") as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "waiting" in line)
        assert "export" in said
        assert "no node has late 1" in said
        assert "ray.export_resources" in said
        nodes.add(late=1)
        assert finished(process) == undisturbed.summary("export")
    assert files_of(run, "parts") == files_of(undisturbed, "parts")

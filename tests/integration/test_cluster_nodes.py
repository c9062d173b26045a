"""Stages on three nodes of one machine, of which one is killed: the files are those of one process."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cropray.imagery.open import open_source
from cropray.overrides import updated
from cropray.pipeline.compact import compact
from cropray.pipeline.export import export
from cropray.pipeline.export_plan import plan_export
from cropray.pipeline.tile import export_tile
from cropray.rois.build import build_rois
from cropray.run import Run
from cropray.storage import Folder
from tests.integration.conftest import Nodes
from tests.integration.test_export import CONFIG, parts_of

EXPORT = ("--set", "ray.concurrency=2", "--set", "ray.export_resources={ee: 1}")


def new_run(folder: Path) -> Run:
    run = Run(Folder(str(folder)), updated(CONFIG, {"shards.shard_samples": 1}))
    build_rois(run)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose parts were made one by one in this process, without Ray."""
    run = new_run(tmp_path_factory.mktemp("undisturbed"))
    source = open_source(run.config)
    plan = plan_export(run, source)
    for tile in plan.tiles:
        export_tile(tile, run.config, plan.metadata, plan.parcels, source, run.folder)
    export(run)  # finds all parts
    return run


@contextmanager
def stage(name: str, run: Run, *options: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A stage as its command, which is killed at the end of the block if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cropray", name, "--config", "config.yaml", "--run", ".", *options],
        cwd=run.folder.local(),
        env={**os.environ, **environment},
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
        time.sleep(0.005)


def test_an_export_outlives_a_node_and_keeps_to_those_that_offer_its_resource(
    undisturbed: Run, nodes: Nodes, tmp_path: Path
) -> None:
    run, wanted, offering = new_run(tmp_path), parts_of(undisturbed), nodes.offering_ee
    with stage("export", run, *EXPORT, RAY_ADDRESS=nodes.address) as process:
        wait_until(lambda: nodes_of(nodes.actors("TileExporter")) == offering, process)
        wait_until(lambda: len(parts_of(run)) >= 2, process)
        nodes.kill_one()
        assert len(parts_of(run)) < len(wanted) / 2
        result, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert parts_of(run) == wanted
    assert json.loads(result) == run.summary("export") == undisturbed.summary("export")
    exporters = nodes.actors("TileExporter")
    # The process that was lost begins anew only where a job of its own, or another, is left for it.
    assert nodes_of([actor for actor in exporters if actor["State"] != "DEAD"]) <= nodes.offering_ee


def nodes_of(actors: list[dict[str, Any]]) -> set[str]:
    return {actor["Address"]["NodeID"] for actor in actors}


def test_a_compaction_killed_with_its_node_goes_on_to_the_same_shards(
    undisturbed: Run, tmp_path: Path
) -> None:
    # It runs in the process that was started, so that node is the only one it can lose.
    run = Run(Folder(str(tmp_path / "run")), undisturbed.config)
    shutil.copytree(undisturbed.folder.local(), run.folder.local())
    summary, wanted = compact(undisturbed), shards_of(undisturbed)
    with stage("compact", run) as process:
        wait_until(lambda: bool(shards_of(run)), process)
    assert 0 < len(shards_of(run)) < len(wanted)
    assert compact(run) == summary
    assert shards_of(run) == wanted


def shards_of(run: Run) -> dict[str, bytes]:
    shards = run.folder.child("shards")
    return {name: shards.read_bytes(name) for name in shards.names(".parquet")}

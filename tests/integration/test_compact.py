"""Compaction by processes on Ray: the shards of one process, and its words where something is wrong."""

import re
from pathlib import Path

import pytest

from cropray.errors import InputError
from cropray.pipeline import compact as compact_module
from cropray.pipeline.compact import compact
from cropray.shards.file import ShardFile
from tests.export_inputs import exported_run
from tests.full_disk import run_on_small_disk
from tests.test_compact import ROIS, again, shard_bytes
from tests.without_ray import work_without_ray

SIZES = {"shards.shard_samples": 5, "shards.row_group_samples": 2}


def test_processes_write_the_shards_that_one_writes_and_only_those_that_are_missing(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, alone = (exported_run(tmp_path / name, ROIS, **SIZES) for name in ("run", "alone"))
    summary = compact(run)
    finished = shard_bytes(run)
    with monkeypatch.context() as patch:
        work_without_ray(patch)
        assert compact(alone) == summary
    assert shard_bytes(alone) == finished
    again(run)
    run.folder.delete("shards/val/00001.parquet")
    compact(run)
    assert "compact: 4 of 5 shards were finished before" in capsys.readouterr().err
    assert shard_bytes(run) == finished


def test_what_is_there_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = exported_run(tmp_path, ROIS, **SIZES)
    with monkeypatch.context() as patch:
        work_without_ray(patch)
        summary = compact(run)
    monkeypatch.setattr(compact_module, "ray_session", None)
    again(run)
    assert compact(run) == summary
    assert compact(run) == summary


def test_a_damaged_sample_is_told_as_by_one_process(ray_local: None, tmp_path: Path) -> None:
    run = exported_run(tmp_path, ROIS, **SIZES)
    part = run.folder.local("parts/b-000-000.parquet")
    start, size = ShardFile.open(str(part)).ranges_gc2[1, 0]  # of the second sample's first tensor
    data = bytearray(part.read_bytes())
    data[start + size // 2] ^= 4
    part.write_bytes(data)
    with pytest.raises(InputError) as refused:
        compact(run)
    # A flipped bit breaks the compressed bytes, or what is made of them.
    damaged = rf"shards/\S+: {part}, row 1(: sample b-\S+ is damaged | is truncated or damaged )"
    assert re.search(damaged, str(refused.value))
    assert len(run.folder.child("shards").names()) == 4
    assert not list(tmp_path.rglob(".tmp-*"))


FILL = """
import sys
from pathlib import Path
from cropray.cluster import ray_session
from cropray.pipeline.compact import compact
from cropray.shards.file import ShardFile
from cropray.errors import InputError
from tests.export_inputs import exported_run
from tests.test_compact import ROIS

run = exported_run(Path(sys.argv[1]) / "run", ROIS, **{"shards.shard_samples": 2})
filler = Path(sys.argv[1]) / "filler"
try:
    with filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 100_000)  # room for some shards
with ray_session(run.config.ray):
    try:
        compact(run)
    except InputError as error:
        said = str(error)
    there = run.folder.child("shards").names()
    assert 0 < len(there) < 9, there
    assert not list(Path(sys.argv[1]).rglob(".tmp-*"))
    filler.unlink()
    assert compact(run)["shards"] == {"train": 6, "val": 3}
print(said)
"""


def test_a_compaction_that_filled_the_disk_goes_on_once_there_is_room(tmp_path: Path) -> None:
    said = run_on_small_disk(tmp_path / "disk", FILL)
    assert f"no space is left for {tmp_path}/disk/run/shards/" in said

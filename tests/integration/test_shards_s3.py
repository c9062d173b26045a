"""Parts and shards on object storage: the same bytes, published whole, read by range."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest

from cropray.config.load import updated
from cropray.errors import InputError
from cropray.models.checkpoint import load_checkpoint
from cropray.pipeline.compact import compact
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.training.state import newest
from tests.export_inputs import PlainSource, export_here, exported_run, make_config, make_roi
from tests.s3_server import Bucket, Fault, s3_bucket
from tests.samples import make_patch, write_samples
from tests.training_data import make_run, write_split

ROIS = [make_roi("a"), make_roi("b", "val")]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def bucket(s3: Bucket) -> str:
    return s3.uri


@pytest.mark.usefixtures("without_ray")
def test_a_run_on_object_storage_gives_the_bytes_of_a_local_one(bucket: str, tmp_path: Path) -> None:
    local = exported_run(tmp_path, ROIS)
    compact(local)
    remote = Run(Folder(bucket), make_config())
    remote.finish("rois", {})
    export_here(remote.config, ROIS, PlainSource(), remote.folder)
    remote.finish("export", {})
    compact(remote)
    names = local.folder.names(".parquet")
    assert remote.folder.names(".parquet") == names
    assert len([name for name in names if name.startswith("shards/")]) == 2
    for name in names:
        assert remote.folder.read_bytes(name) == local.folder.read_bytes(name)
    near, far = (ShardReader(shard_uris(run.folder, "train"), batch_size=2) for run in (local, remote))
    for one, two in zip(near.epoch(0), far.epoch(0), strict=True):
        assert one.rows == two.rows
        assert (one.s2_bcthw == two.s2_bcthw).all()


def test_a_cut_object_is_refused_by_name(bucket: str) -> None:
    folder = Folder(bucket)
    (uri,) = write_samples(folder, range(4))
    folder.write_bytes("00000.parquet", folder.read_bytes("00000.parquet")[:-500])
    with pytest.raises(InputError, match=r"s3://runs/one/00000\.parquet is truncated or damaged"):
        ShardReader([uri], batch_size=2)


def read_all(uris: list[str], count: int = 12) -> None:
    batches = list(ShardReader(uris, batch_size=4, shuffle=False).epoch(0))
    samples = [s2_cthw for batch in batches for s2_cthw in batch.s2_bcthw]
    for number, s2_cthw in enumerate(samples):
        np.testing.assert_array_equal(s2_cthw, make_patch(number).s2_cthw)
    assert len(samples) == count


def fails(status: HTTPStatus, method: str = "", path: str = "") -> Fault:
    return lambda asked, at: status if method in asked and path in at else 0.0


def test_a_store_that_often_says_503_is_asked_again(s3: Bucket) -> None:
    """Every request is refused when it is first made, whatever the upload that it belongs to."""
    asked: set[tuple[str, str]] = set()

    def at_first(method: str, path: str) -> HTTPStatus | float:
        request = method, re.sub("uploadId=.*", "", path)
        known = request in asked
        asked.add(request)
        return 0.0 if known else HTTPStatus.SERVICE_UNAVAILABLE

    Folder(s3.uri).names()  # a store is looked at when a process first uses it
    s3.fault = at_first
    read_all(write_samples(Folder(s3.uri), range(4)), 4)
    assert sum(status == HTTPStatus.SERVICE_UNAVAILABLE for _, _, status in s3.seen) == len(asked) == 5


def test_a_training_on_a_store_that_often_says_503_keeps_its_states_and_publishes_its_model(
    s3: Bucket, tmp_path: Path
) -> None:
    """Shards, lock, states, Ray's checkpoints and the model, from the driver and from the workers."""
    folder, served = Folder(s3.uri), itertools.count()
    for split, samples in (("train", 16), ("val", 6)):
        write_split(folder, split, samples)
    given = make_run(folder, epochs=2, precision="float32")
    run = Run(folder, updated(given.config, {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}))
    s3.seen.clear()
    s3.fault = lambda _method, _path: HTTPStatus.SERVICE_UNAVAILABLE if next(served) % 8 == 3 else 0.0
    (tmp_path / "given.yaml").write_text(run.config.to_yaml())
    command = [sys.executable, "-m", "cropray", "pretrain", "--config", str(tmp_path / "given.yaml")]
    # A process of its own: the Ray that another test may have left here knows no store.
    done = subprocess.run([*command, "--run", s3.uri], capture_output=True, text=True, check=False)
    s3.fault = lambda _method, _path: 0.0
    assert done.returncode == 0, done.stderr
    refused = Counter(method for method, _, status in s3.seen if status == HTTPStatus.SERVICE_UNAVAILABLE)
    assert sum(refused.values()) > 12, refused
    assert refused["PUT"] > 0
    assert refused["GET"] > 0
    assert json.loads(done.stdout)["epochs"] == 2
    assert len(json.loads(folder.read_text("models/pretrain/history.json"))) == 2
    state, damaged = newest(folder.child("checkpoints/pretrain"))
    assert state is not None
    assert (state.name, damaged) == ("epoch-0002", [])
    assert load_checkpoint(folder.child("models/pretrain")).classes == run.config.classes


def test_a_store_that_answers_late_is_waited_for(s3: Bucket) -> None:
    uris = write_samples(Folder(s3.uri), range(12))
    asked = len(s3.seen)
    s3.fault = lambda _method, _path: 0.2
    read_all(uris)
    assert len(s3.seen) > asked  # what was read came late, and not out of a cache


def test_a_request_that_hangs_is_given_up_and_sent_again(s3: Bucket) -> None:
    uris = write_samples(Folder(s3.uri), range(12))
    hangs = iter([6.0])
    s3.fault = lambda method, _path: next(hangs, 0.0) if method == "GET" else 0.0
    read_all(uris)
    assert next(hangs, None) is None  # there was a request that hung


def test_a_store_that_is_down_is_not_taken_for_a_damaged_file(s3: Bucket) -> None:
    (uri,) = write_samples(Folder(s3.uri), range(4))
    s3.fault = fails(HTTPStatus.SERVICE_UNAVAILABLE)
    with pytest.raises(
        InputError, match=re.escape(uri) + r" cannot be read: .*storage.*503.*run the same command"
    ):
        ShardReader([uri], batch_size=2)


def test_an_upload_that_fails_shows_nothing_and_keeps_what_was_there(s3: Bucket) -> None:
    folder = Folder(s3.uri)
    folder.write_bytes("a.bin", b"old")
    s3.fault = fails(HTTPStatus.FORBIDDEN, path="partNumber=2")
    for name in ("a.bin", "b.bin"):
        with pytest.raises(OSError, match=f"one/{name}.* in bucket 'runs'"):
            folder.write_bytes(name, os.urandom(21 * 2**20))  # three parts
    assert folder.names() == ["a.bin"]
    assert folder.read_bytes("a.bin") == b"old"


def test_a_shard_that_cannot_be_published_is_not_there(s3: Bucket) -> None:
    s3.fault = fails(HTTPStatus.FORBIDDEN, "PUT")
    with pytest.raises(OSError, match=r"one/00000\.parquet"):
        write_samples(Folder(s3.uri), range(4))
    s3.fault = fails(HTTPStatus.FORBIDDEN, "NONE")
    assert Folder(s3.uri).names() == []
    read_all(write_samples(Folder(s3.uri), range(12)))


def test_an_object_that_vanishes_during_an_epoch_is_told_apart_from_a_store_that_is_down(s3: Bucket) -> None:
    folder = Folder(s3.uri)
    uris = write_samples(folder, range(40), shard_samples=20)
    batches = ShardReader(uris, batch_size=2, shuffle=False).epoch(0)
    next(batches)
    folder.delete("00001.parquet")
    with pytest.raises(InputError, match=r"there is no shard .*/00001\.parquet; run the stage"):
        list(batches)


def test_a_store_that_goes_down_during_an_epoch_ends_it_with_what_to_do(s3: Bucket) -> None:
    uris = write_samples(Folder(s3.uri), range(160), shard_samples=80)
    batches = ShardReader(uris, batch_size=2, shuffle=False).epoch(0)
    next(batches)
    s3.fault = fails(HTTPStatus.SERVICE_UNAVAILABLE)
    with pytest.raises(InputError, match=r"cannot be read: .*storage.*run the same command again"):
        list(batches)

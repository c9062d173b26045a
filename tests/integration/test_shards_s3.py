"""Parts and shards on object storage: the same bytes, published whole, read by range."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cropray.pipeline.compact import compact
from cropray.run import Run
from cropray.shards.reader import ShardReader
from cropray.shards.store import shard_uris
from cropray.storage import Folder
from cropray.types import InputError
from tests.export_inputs import PlainSource, export_here, exported_run, make_config, make_roi
from tests.samples import write_samples

ROIS = [make_roi("a"), make_roi("b", "val")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="runs")
    yield "s3://runs/one"
    server.stop()


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
    with pytest.raises(InputError, match=r"s3://runs/one/00000\.parquet is cut or damaged"):
        ShardReader([uri], batch_size=2)

"""The cache of object storage: bounded, shared, and never a source of wrong bytes."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from cropray.shards.cache import RangeCache
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from tests.s3_server import s3_bucket
from tests.samples import make_patch, write_samples


def fetched(data: bytes) -> "tuple[list[int], object]":
    calls: list[int] = []

    def fetch() -> pa.Buffer:
        calls.append(1)
        return pa.py_buffer(data)

    return calls, fetch


def test_what_was_read_is_not_fetched_again_even_by_another_process(tmp_path: Path) -> None:
    calls, fetch = fetched(b"x" * 1000)
    cache = RangeCache(str(tmp_path / "cache"), 10_000)
    for one in (cache, cache, pickle.loads(pickle.dumps(cache))):
        assert one.read("a", fetch).to_pybytes() == b"x" * 1000
    assert len(calls) == 1


def test_a_damaged_entry_is_fetched_anew(tmp_path: Path) -> None:
    calls, fetch = fetched(b"x" * 1000)
    cache = RangeCache(str(tmp_path), 10_000)
    cache.read("a", fetch)
    (entry,) = tmp_path.iterdir()
    for damaged in (entry.read_bytes()[:-1], b"", entry.read_bytes().replace(b"x", b"y", 1)):
        entry.write_bytes(damaged)
        assert cache.read("a", fetch).to_pybytes() == b"x" * 1000
    assert len(calls) == 4


def test_the_folder_never_holds_more_than_its_bound(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 3500)
    for number in range(12):
        cache.read(str(number), fetched(bytes([number]) * 1000)[1])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3500
    assert len(list(tmp_path.iterdir())) == 3
    calls, fetch = fetched(bytes([11]) * 1000)
    assert cache.read("11", fetch).to_pybytes() == bytes([11]) * 1000
    assert calls == []
    assert cache.read("large", fetched(b"z" * 9000)[1]).size == 9000
    assert len(list(tmp_path.iterdir())) == 3


def test_a_second_epoch_asks_object_storage_for_no_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_bucket(monkeypatch) as bucket:
        uris = write_samples(Folder(bucket.uri), range(8))
        cache = RangeCache(str(tmp_path), 10**9)
        reader = ShardReader(uris, batch_size=4, cache=cache)
        first = [batch.s2_bcthw.copy() for batch in reader.epoch(0)]
        bucket.seen.clear()
        second = [batch.s2_bcthw for batch in reader.epoch(0)]
        assert bucket.seen == []
        assert all((one == two).all() for one, two in zip(first, second, strict=True))
        # Other content under the same name is not taken for what was there.
        uris = write_samples(Folder(bucket.uri), range(8, 16))
        batch = ShardReader(uris, batch_size=1, cache=cache).take([0])
        assert (batch.s2_bcthw[0] == make_patch(8).s2_cthw).all()

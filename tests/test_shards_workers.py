"""Batches made by processes are those made by threads, whatever the consumer does with them."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cropray.errors import InputError
from cropray.models.normalisation import FixedNormalisation, Normalisation, SeedNormalisation
from cropray.shards.file import ShardFile
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import Batch
from tests.samples import make_patch, write_samples


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_samples(Folder(str(tmp_path_factory.mktemp("shards"))), range(23))


@pytest.fixture(scope="module")
def reader(uris: list[str]) -> ShardReader:
    return ShardReader(uris, batch_size=2, seed=3, processes=2)


def same(one: Batch, two: Batch) -> bool:
    names = ("s1_bcthw", "s2_bcthw", "label_bhw")
    return (
        all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names) and one.rows == two.rows
    )


def test_processes_make_the_batches_that_threads_make(reader: ShardReader, uris: list[str]) -> None:
    by_threads = ShardReader(uris, batch_size=2, seed=3)
    for epoch in range(2):
        # Kept, all of them: more than there is shared memory for.
        batches = list(reader.epoch(epoch))
        assert len(batches) == len(by_threads) == 12
        assert all(same(*pair) for pair in zip(batches, by_threads.epoch(epoch), strict=True))


def test_views_that_are_kept_are_never_written_to_again(reader: ShardReader) -> None:
    order = reader.order(0)
    kept = []
    for batch in reader.epoch(0):
        kept.append(batch.s1_bcthw[-1, :, 1])
        del batch
        gc.collect()
    for view, place in zip(kept, [*order[1::2], order[-1]], strict=True):
        np.testing.assert_array_equal(view, make_patch(int(place)).s1_cthw[:, 1])


def test_an_epoch_left_early_leaves_the_reader_usable(reader: ShardReader, uris: list[str]) -> None:
    batches = iter(reader.epoch(0))
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # the iterator is a generator
    first = next(iter(reader.epoch(1)))
    assert same(first, next(iter(ShardReader(uris, batch_size=2, seed=3).epoch(1))))


def test_two_epochs_at_once_are_refused_and_never_mixed(reader: ShardReader) -> None:
    first = iter(reader.epoch(0))
    next(first)
    with pytest.raises(RuntimeError, match="another epoch of this reader is under way"):
        next(iter(reader.epoch(1)))
    assert len(list(first)) == 11


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("normalisation", [FixedNormalisation(), SeedNormalisation()])
def test_normalised_batches_are_what_a_network_is_given(
    uris: list[str], processes: int, normalisation: Normalisation
) -> None:
    stored = ShardReader(uris, batch_size=8)
    floats = ShardReader(uris, batch_size=8, processes=processes, normalise=normalisation)
    for one, two in zip(stored.epoch(0), floats.epoch(0), strict=True):
        s1, s2, valid = normalisation.apply(torch.from_numpy(one.s1_bcthw), torch.from_numpy(one.s2_bcthw))
        np.testing.assert_array_equal(two.s1_bcthw, s1.numpy())
        np.testing.assert_array_equal(two.s2_bcthw, s2.numpy())
        np.testing.assert_array_equal(two.label_bhw, one.label_bhw)
        assert (two.valid_b2thw is not None) == normalisation.validity
        if two.valid_b2thw is not None:
            assert two.valid_b2thw.dtype == np.int16
            np.testing.assert_array_equal(two.valid_b2thw, valid.numpy())
            assert not two.valid_b2thw[:, 1, 0].any()  # the first month has no Sentinel-1 view
            assert two.valid_b2thw[:, :, 1].all()


def test_damage_is_raised_in_its_turn(tmp_path: Path) -> None:
    (uri,) = write_samples(Folder(str(tmp_path)), range(4), codec="none")
    data = bytearray(Path(uri).read_bytes())
    data[data.find(make_patch(2).label_hw.tobytes())] ^= 1
    Path(uri).write_bytes(data)
    batches = ShardReader([uri], batch_size=1, shuffle=False, processes=2).epoch(0)
    assert [next(batches).rows["row"] for _ in range(2)] == [[0], [16]]
    with pytest.raises(InputError, match=f"{uri}.*sample maize-1-00002 is damaged"):
        next(batches)


def children(pid: int) -> set[int]:
    """Reading processes of a process, as Linux tells."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = int(status.read_text().split("PPid:")[1].split()[0])
            command = (status.parent / "cmdline").read_text()
        except OSError:  # it ended meanwhile
            continue
        if parent == pid and "cropray.shards.workers" in command:
            found.add(int(status.parent.name))
    return found


def test_a_killed_process_is_told_and_none_outlives_its_reader(uris: list[str]) -> None:
    before = children(os.getpid())
    reader = ShardReader(uris, batch_size=1, processes=2)
    batches = reader.epoch(0)
    next(batches)
    mine = children(os.getpid()) - before
    os.kill(min(mine), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"a process that reads shards ended with exit code -9"):
        list(batches)
    del batches, reader
    gc.collect()
    assert not mine & children(os.getpid())


def test_processes_end_with_a_parent_that_is_killed(uris: list[str]) -> None:
    script = (
        "import sys, time\n"
        "from cropray.shards.reader import ShardReader\n"
        "batches = ShardReader(sys.argv[1:], batch_size=1, processes=1).epoch(0)\n"
        "next(batches)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, *uris], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = children(parent.pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_open_shard_pickles_without_its_mapping(uris: list[str]) -> None:
    file = ShardFile.open(uris[0])
    file.row_group(0)
    other = pickle.loads(pickle.dumps(file))
    np.testing.assert_array_equal(other.row_group(0).read(1)["s2"], file.row_group(0).read(1)["s2"])

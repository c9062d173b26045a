import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.errors import InputError
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import Batch
from tests.samples import METADATA, make_patch, write_samples

COUNT = 23  # shards of 8, 8, 7 samples; row groups of 4, 4, 4, 4, 4, 3


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_samples(Folder(str(tmp_path_factory.mktemp("shards"))), range(COUNT))


def ids(batches: list[Batch]) -> list[str]:
    return [sample for batch in batches for sample in batch.rows["sample_id"]]


def number(sample_id: str) -> int:
    return int(sample_id.rsplit("-", 1)[1])


def test_batches_hold_the_samples_that_were_written(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=5, seed=1)
    for batch in reader.epoch(0):
        for i, sample_id in enumerate(batch.rows["sample_id"]):
            patch = make_patch(number(sample_id))
            np.testing.assert_array_equal(batch.s2_bcthw[i], patch.s2_cthw)
            np.testing.assert_array_equal(batch.s1_bcthw[i], patch.s1_cthw)
            np.testing.assert_array_equal(batch.label_bhw[i], patch.label_hw)
            assert batch.rows["row"][i] == patch.row
        assert batch.crop_b.tolist() == [0] * len(batch)
        assert batch.truth_bhw is None


def test_truth_comes_with_data_sets_that_have_it(tmp_path: Path) -> None:
    from cropray.shards.schema import encode_patch, to_table
    from cropray.shards.writer import write_shard
    from tests.samples import EXTENT, PERIODS, ROI

    metadata = replace(METADATA, has_truth=True)
    patch = replace(make_patch(0), truth_hw=make_patch(1).label_hw)
    row = encode_patch(patch, replace(ROI, crop="barley"), EXTENT, PERIODS)
    write_shard(Folder(str(tmp_path)), "x.parquet", metadata, [to_table([row], metadata)], codec="none")
    batch = ShardReader([str(tmp_path / "x.parquet")], batch_size=1).take([0])
    assert batch.truth_bhw is not None
    np.testing.assert_array_equal(batch.truth_bhw[0], make_patch(1).label_hw)
    assert batch.crop_b.tolist() == [-1]  # barley is none of the classes


@given(
    batch_size=st.integers(1, 9), world_size=st.integers(1, 7), shuffle=st.booleans(), epoch=st.integers(0, 3)
)
def test_ranks_share_out_every_sample_once_in_equally_many_batches(
    uris: list[str], batch_size: int, world_size: int, shuffle: bool, epoch: int
) -> None:
    seen, steps = [], []
    for rank in range(world_size):
        reader = ShardReader(uris, batch_size=batch_size, rank=rank, world_size=world_size, shuffle=shuffle)
        batches = list(reader.epoch(epoch))
        assert len(batches) == len(reader)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert all(len(batch) == batch_size for batch in batches[:-2])
        seen += ids(batches)
        steps.append(len(batches))
    numbers = sorted(map(number, seen))
    assert sorted(set(numbers)) == list(range(COUNT))
    assert batch_size == 1 or len(numbers) == COUNT
    assert len(numbers) < COUNT + world_size
    assert len(set(steps)) == 1


def test_the_order_depends_on_seed_and_epoch_alone(uris: list[str]) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        return ids(list(ShardReader(uris, batch_size=4, seed=seed).epoch(epoch)))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_shuffling_goes_beyond_row_groups(uris: list[str]) -> None:
    batch = next(iter(ShardReader(uris, batch_size=4, seed=1).epoch(0)))
    assert len({number(sample) // 4 for sample in batch.rows["sample_id"]}) > 1


def test_without_shuffling_samples_come_in_the_order_of_the_files(uris: list[str]) -> None:
    batches = list(ShardReader(uris, batch_size=4, shuffle=False).epoch(7))
    assert list(map(number, ids(batches))) == list(range(COUNT))


def test_an_epoch_can_start_at_any_batch(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=4, seed=3)
    assert ids(list(reader.epoch(1, start=4))) == ids(list(reader.epoch(1)))[16:]


def test_keep_chooses_rows_by_their_columns(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=4, keep=lambda table: table["row"].to_numpy() % 32 == 0)
    even = list(range(0, COUNT, 2))
    assert list(map(number, reader.table["sample_id"].to_pylist())) == even
    assert sorted(map(number, ids(list(reader.epoch(0))))) == even
    assert len(reader) == 3


def test_keeping_nothing_gives_an_empty_epoch(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=4, keep=lambda table: np.zeros(len(table), bool))
    assert len(reader) == 0
    assert list(reader.epoch(0)) == []


def test_rows_are_taken_by_their_position_in_the_table(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=4, keep=lambda table: table["row"].to_numpy() >= 16)
    batch = reader.take([20, 0, 7, 0])
    assert list(map(number, batch.rows["sample_id"])) == [21, 1, 8, 1]
    np.testing.assert_array_equal(batch.s2_bcthw[3], make_patch(1).s2_cthw)


def test_the_table_has_no_tensors(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=4)
    assert len(reader.table) == COUNT
    assert not set(METADATA.tensors) & set(reader.table.column_names)
    assert isinstance(reader.table, pa.Table)


def test_a_rank_reads_little_more_than_its_share(uris: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cropray.shards.file import ShardFile

    read: list[tuple[str, int]] = []
    original = ShardFile.row_group

    def counted(self: ShardFile, group: int):
        read.append((self.uri, group))
        return original(self, group)

    monkeypatch.setattr(ShardFile, "row_group", counted)
    list(ShardReader(uris, batch_size=2, rank=1, world_size=3).epoch(0))
    assert len(read) == len(set(read)) <= 3  # 23 / 3 samples lie in two or three groups of four


def test_more_ranks_than_samples_are_refused(uris: list[str]) -> None:
    with pytest.raises(InputError, match="23 samples are too few for 24 ranks"):
        ShardReader(uris, batch_size=1, rank=0, world_size=24)


def test_no_shards_are_refused() -> None:
    with pytest.raises(InputError, match="run export and compact first"):
        ShardReader([], batch_size=4)


def test_an_epoch_left_early_ends_its_threads(uris: list[str]) -> None:
    batches = iter(ShardReader(uris, batch_size=1).epoch(0))
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # the iterator is a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shard-reader")]


def test_damage_ahead_of_the_consumer_is_raised_in_its_turn(tmp_path: Path) -> None:
    uris = write_samples(Folder(str(tmp_path)), range(4), codec="none")
    path = Path(uris[0])
    data = bytearray(path.read_bytes())
    place = data.find(make_patch(2).s2_cthw.tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    batches = ShardReader(uris, batch_size=1, shuffle=False, threads=4).epoch(0)
    assert [number(next(batches).rows["sample_id"][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(InputError, match="sample maize-1-00002 is damaged"):
        next(batches)


def test_a_batch_that_is_kept_is_never_written_to_again(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=4)
    kept = [batch.s2_bcthw[:1] for batch in reader.epoch(0)]  # views: their batches are let go
    order = reader.order(0).share(0, 1)
    for view, place in zip(kept, order[::4], strict=True):
        np.testing.assert_array_equal(view[0], make_patch(int(place)).s2_cthw)


@pytest.mark.parametrize("codec", ["lz4", "compact"])
def test_memory_is_that_of_a_few_batches_however_long_the_epoch(tmp_path: Path, codec: str) -> None:
    uris = write_samples(Folder(str(tmp_path)), range(COUNT), codec=codec)
    reader = ShardReader(uris * 40, batch_size=2)
    tensors = sum(spec.nbytes for spec in METADATA.tensors.values()) * COUNT * 40
    reader.take([0])  # imports what decodes
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for batch in reader.epoch(0):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    most += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensors > 11e6
    assert most < 0.1 * tensors


def test_a_shard_that_vanishes_during_an_epoch_is_named(tmp_path: Path) -> None:
    uris = write_samples(Folder(str(tmp_path)), range(60), shard_samples=20)
    batches = ShardReader(uris, batch_size=2, shuffle=False).epoch(0)
    seen = [next(batches)]
    Path(uris[2]).unlink()
    with pytest.raises(InputError, match=r"there is no shard .*/00002\.parquet; run the stage"):
        seen.extend(batches)
    assert list(map(number, ids(seen))) == list(range(40))
    for batch in seen:
        for i, sample_id in enumerate(batch.rows["sample_id"]):
            np.testing.assert_array_equal(batch.s2_bcthw[i], make_patch(number(sample_id)).s2_cthw)


def test_the_columns_of_a_batch_are_those_of_its_rows(uris: list[str]) -> None:
    reader = ShardReader(uris, batch_size=5)
    batch = reader.take([7, 2, 2])
    expected = reader.table.take([7, 2, 2]).to_pydict()
    assert batch.rows == expected
    assert set(batch.rows) == set(reader.table.column_names)
    with pytest.raises(KeyError):
        batch.rows["s2"]

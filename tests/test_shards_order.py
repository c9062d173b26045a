"""Who reads what, when: complete, disjoint, balanced, and resumed with other numbers of ranks."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.shards.order import EpochOrder, EpochSegment, EpochState, balanced_weights, draw_counts
from cropray.shards.reader import ShardReader
from cropray.shards.schema import to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from tests.samples import METADATA, make_rows, write_samples

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def make_order(groups: list[int], epoch: int = 0, *, shuffle: bool = True) -> EpochOrder:
    group_of = np.repeat(np.arange(len(groups)), groups)
    return EpochOrder.make(group_of, len(groups), 5, epoch, shuffle=shuffle, counts=None)


@given(
    groups=sizes,
    shuffle=st.booleans(),
    stretches=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4)), max_size=3),
    ranks=st.integers(1, 6),
    batch_size=st.integers(1, 7),
)
def test_an_epoch_left_anywhere_is_finished_by_any_number_of_ranks(
    groups: list[int],
    shuffle: bool,
    stretches: list[tuple[int, int, int]],
    ranks: int,
    batch_size: int,
) -> None:
    order, seen = make_order(groups, shuffle=shuffle), Counter[int]()
    for world_size, size, steps in [*stretches, (ranks, batch_size, 10**6)]:
        before = set(order.left.tolist())
        read = [order.batches(rank, world_size, size)[:steps] for rank in range(world_size)]
        taken = {int(i) for batches in read for batch in batches for i in batch}
        assert taken <= before
        assert len({len(batches) for batches in read}) == 1
        seen.update(taken)
        order = order.after(EpochSegment(world_size, size, steps))
        assert set(order.left.tolist()) == before - taken
    left = Counter(order.left.tolist())
    assert seen + left == Counter(range(sum(groups)))


def test_a_sample_that_a_short_rank_repeats_is_not_left_once_it_was_read() -> None:
    order = make_order([5], shuffle=False)  # ranks of 2 and 3 samples, of which the first repeats one
    assert order.after(EpochSegment(2, 1, 2)).left.tolist() == [4]


def test_a_state_is_small_plain_json() -> None:
    state = EpochState(3).after(4, 16, 100).after(2, 32, 7)
    text = json.dumps(state.to_dict())
    assert len(text) < 200
    assert EpochState.from_dict(json.loads(text)) == state


def test_a_reader_goes_on_with_what_other_ranks_left(tmp_path: Path) -> None:
    uris = write_samples(Folder(str(tmp_path)), range(23))
    state = EpochState(2).after(3, 2, 2)
    seen = []
    for rank in range(3):
        batches = ShardReader(uris, batch_size=2, rank=rank, world_size=3).epoch(2)
        seen += [row for _ in range(2) for row in next(batches).rows["row"]]
    for rank in range(2):
        reader = ShardReader(uris, batch_size=4, rank=rank, world_size=2)
        seen += [row for batch in reader.epoch(state.epoch, after=state.read) for row in batch.rows["row"]]
    assert sorted(seen) == [16 * number for number in range(23)]


def test_going_on_with_the_same_ranks_reads_little_more_than_each_share() -> None:
    order = make_order([8] * 40).after(EpochSegment(4, 4, 6))
    groups = [len(np.unique(order.place[order.share(rank, 4)])) for rank in range(4)]
    assert max(groups) <= 40 / 4 + 1


# weights


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60), st.integers(0, 9))
def test_counts_are_the_expected_ones_rounded_down_or_up(weights: list[float], epoch: int) -> None:
    expected = np.array(weights) / np.sum(weights) * len(weights)
    counts = draw_counts(np.array(weights), 1, epoch)
    assert counts.sum() == len(weights)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    assert counts.tolist() == draw_counts(np.array(weights), 1, epoch).tolist()


def test_counts_meet_the_weights_over_many_epochs() -> None:
    weights = np.array([1.0, 2.0, 0.1, 4.0, 0.4])
    mean = np.mean([draw_counts(weights, 0, epoch) for epoch in range(4000)], axis=0)
    np.testing.assert_allclose(mean, weights / weights.sum() * 5, atol=0.03)


def table(crops: list[str], labelled: list[float]) -> pa.Table:
    return pa.table({"crop": crops, "labelled_fraction": pa.array(labelled, pa.float32())})


def test_crops_weigh_the_same_and_samples_by_their_labels() -> None:
    samples = table(["a"] * 3 + ["b"], [0.2, 0.7, 0.0, 0.5])
    np.testing.assert_allclose(balanced_weights(samples), [0.2, 0.7, 0.1, 1.0])
    np.testing.assert_allclose(balanced_weights(samples, crop_power=0), [0.6, 2.1, 0.3, 1.0])


@pytest.fixture
def uneven(tmp_path: Path) -> list[str]:
    """Eighteen samples of maize and two of pea."""
    rows = [row | {"crop": "pea" if row["row"] // 16 in (4, 11) else "maize"} for row in make_rows(range(20))]
    groups = [to_table(rows[i : i + 4], METADATA) for i in range(0, 20, 4)]
    write_shard(Folder(str(tmp_path)), "a.parquet", METADATA, groups, codec="none")
    return [str(tmp_path / "a.parquet")]


def test_a_reader_balances_crops_over_ranks_with_equal_steps(uneven: list[str]) -> None:
    readers = [
        ShardReader(uneven, batch_size=3, rank=rank, world_size=2, weigh=balanced_weights)
        for rank in range(2)
    ]
    for epoch in range(3):
        batches = [list(reader.epoch(epoch)) for reader in readers]
        assert [len(some) for some in batches] == [len(reader) for reader in readers] == [4, 4]
        crops = Counter(crop for some in batches for batch in some for crop in batch.rows["crop"])
        assert crops["maize"] == pytest.approx(10, abs=1)
        assert crops["pea"] == pytest.approx(10, abs=1)
        order = readers[0].order(epoch).left.tolist()
        assert order == readers[1].order(epoch).left.tolist() == readers[0].order(epoch).left.tolist()


def test_weights_and_keep_work_together(uneven: list[str]) -> None:
    reader = ShardReader(
        uneven,
        batch_size=3,
        keep=lambda table: table["row"].to_numpy() >= 80,
        weigh=partial(balanced_weights, crop_power=0.5),
    )
    crops = Counter(reader.table["crop"].take(reader.order(0).left).to_pylist())
    assert sum(crops.values()) == 15
    assert crops["pea"] > 1

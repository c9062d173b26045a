"""The data sets of torch.utils.data: every sample once, whatever the workers."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cropray.shards.torch_data import ShardBatches, ShardSamples
from cropray.storage import Folder
from tests.samples import make_patch, write_samples

COUNT = 11


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_samples(Folder(str(tmp_path_factory.mktemp("shards"))), range(COUNT), codec="compact")


def check(sample_id: str, s1: torch.Tensor, s2: torch.Tensor, label: torch.Tensor) -> None:
    patch = make_patch(int(sample_id[-5:]))
    np.testing.assert_array_equal(s1.numpy(), patch.s1_cthw)
    np.testing.assert_array_equal(s2.numpy(), patch.s2_cthw)
    np.testing.assert_array_equal(label.numpy(), patch.label_hw)


def test_samples_by_their_number(uris: list[str]) -> None:
    data = ShardSamples(uris)
    assert len(data) == COUNT
    sample = data[7]
    assert sample["sample_id"] == "maize-1-00007"
    check(sample["sample_id"], sample["s1"], sample["s2"], sample["label"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_shuffles_samples(uris: list[str], workers: int) -> None:
    loader = DataLoader(
        ShardSamples(uris),
        batch_size=4,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    seen = Counter[str]()
    for batch in loader:
        seen.update(batch["sample_id"])
        for values in zip(*(batch[name] for name in ("sample_id", "s1", "s2", "label")), strict=True):
            check(*values)
    assert len(seen) == sum(seen.values()) == COUNT


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_ranks_share_out_every_epoch(uris: list[str], workers: int) -> None:
    orders: list[list[str]] = [[], []]
    for rank in range(2):
        data = ShardBatches(uris, batch_size=2, rank=rank, world_size=2, seed=4)
        loader = DataLoader(
            data,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
        )
        for epoch in range(2):
            data.set_epoch(epoch)
            for batch in loader:
                orders[epoch] += batch["sample_id"]
                check(batch["sample_id"][0], batch["s1"][0], batch["s2"][0], batch["label"][0])
    for order in orders:
        assert len(set(order)) == len(order) == COUNT
    assert orders[0] != orders[1]


def test_each_epoch_has_its_order(uris: list[str]) -> None:
    data = ShardBatches(uris, batch_size=COUNT)

    def order(epoch: int) -> list[str]:
        data.set_epoch(epoch)
        return next(iter(data))["sample_id"]

    assert order(0) == order(0) != order(1)

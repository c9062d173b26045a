"""Shards in Ray Data: the rows that were written, decoded and checked."""

from pathlib import Path

import numpy as np
import pytest

from cropray.pipeline.ray_dataset import to_ray_dataset
from cropray.storage import Folder
from tests.samples import make_patch, write_samples

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.mark.parametrize("codec", ["lz4", "compact"])
def test_batches_of_ray_data_hold_what_was_written(tmp_path: Path, codec: str) -> None:
    uris = write_samples(Folder(str(tmp_path)), range(11), codec=codec)
    seen = []
    for batch in to_ray_dataset(uris).iter_batches(batch_size=4, batch_format="numpy"):
        for i, sample_id in enumerate(batch["sample_id"]):
            patch = make_patch(int(sample_id[-5:]))
            np.testing.assert_array_equal(batch["s2"][i], patch.s2_cthw)
            np.testing.assert_array_equal(batch["label"][i], patch.label_hw)
            assert batch["row"][i] == patch.row
            assert str(batch["period_start"][i][0]).startswith("2022-03-01")
            seen.append(sample_id)
    assert sorted(seen) == [f"maize-1-{number:05d}" for number in range(11)]

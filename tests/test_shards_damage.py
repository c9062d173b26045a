"""Every way in which a shard can be wrong is refused, with a message that names it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cropray.errors import InputError
from cropray.shards import schema
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import Batch
from tests.samples import METADATA, make_patch, write_samples


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_samples(Folder(str(tmp_path)), range(8), codec="none")[0]


def read_all(uri: str) -> list[Batch]:
    return list(ShardReader([uri], batch_size=4, shuffle=False).epoch(0))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_shard_cut_short(uri: str, share: float) -> None:
    data = Path(uri).read_bytes()
    Path(uri).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=re.escape(uri) + ".* is truncated or damaged .*; delete the file"):
        read_all(uri)


@pytest.mark.parametrize("name", ["s2_cthw", "s1_cthw", "label_hw"])
def test_a_flipped_bit_names_the_sample(uri: str, name: str) -> None:
    data = bytearray(Path(uri).read_bytes())
    tensor = getattr(make_patch(5), name).tobytes()
    place = data.find(tensor)
    assert place > 0
    data[place + len(tensor) // 2] ^= 0x10
    Path(uri).write_bytes(data)
    with pytest.raises(InputError, match=re.escape(uri) + ", row 5: sample maize-1-00005 is damaged"):
        read_all(uri)


def test_no_flipped_bit_is_missed_unless_it_changes_nothing(uri: str) -> None:
    """Bits all over the file, densely where the small columns and the footer are."""
    sound = Path(uri).read_bytes()
    expected = read_all(uri)
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(sound), 100), *rng.integers(len(sound) - 20_000, len(sound), 400)]
    messages = []
    for place in places:
        data = bytearray(sound)
        data[place] ^= 1 << rng.integers(8)
        Path(uri).write_bytes(data)
        try:
            batches = read_all(uri)
        except InputError as error:
            messages.append(str(error))
        else:
            assert_same(batches, expected)
    assert len(messages) > 100
    assert all(uri in message for message in messages)


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    for batch, wanted in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch.s2_bcthw, wanted.s2_bcthw)
        np.testing.assert_array_equal(batch.s1_bcthw, wanted.s1_bcthw)
        np.testing.assert_array_equal(batch.label_bhw, wanted.label_bhw)
        assert batch.rows == wanted.rows


def test_another_format_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(schema, "FORMAT_VERSION", 9)
        (uri,) = write_samples(Folder(str(tmp_path)), [0])
    with pytest.raises(InputError, match=re.escape(uri) + " has shard format 9; this cropray reads format 1"):
        ShardReader([uri], batch_size=4)


def test_shards_of_different_data_sets(uri: str, tmp_path: Path) -> None:
    other = replace(METADATA, classes=("pea", "maize"))
    (second,) = write_samples(Folder(str(tmp_path / "other")), [9], metadata=other)
    message = r"are of different data sets \(classes: \('maize', 'pea'\) and \('pea', 'maize'\)\)"
    with pytest.raises(InputError, match=message):
        ShardReader([uri, second], batch_size=4)


def test_a_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no shard .*/gone\.parquet; run the stage"):
        ShardReader([str(tmp_path / "gone.parquet")], batch_size=4)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "notes.parquet"
    path.write_text("these are notes")
    with pytest.raises(InputError, match=r"notes\.parquet is truncated or damaged"):
        ShardReader([str(path)], batch_size=4)

"""The compact codec gives back exactly what was written, in less room, and says itself how to read it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cropray.errors import InputError
from cropray.shards import residuals, writer
from cropray.shards.file import ShardFile
from cropray.shards.reader import ShardReader
from cropray.shards.schema import METADATA_KEY
from cropray.storage import Folder
from tests.samples import make_patch, write_samples

images = npst.arrays(np.int16, npst.array_shapes(min_dims=2, max_dims=4, max_side=6))


@given(images)
def test_every_image_comes_back(values: np.ndarray) -> None:
    data = residuals.encode(values)
    assert len(data) == values.nbytes
    np.testing.assert_array_equal(residuals.decode(data, values.shape), values)


@given(st.integers(-32768, 32767), st.integers(-40, 40), st.integers(-40, 40))
def test_only_the_first_line_and_column_of_a_slope_have_residuals(start: int, down: int, right: int) -> None:
    rows, cols = np.mgrid[:8, :8]
    values = (start + down * rows + right * cols).astype(np.int16)  # wraps around at the ends of int16
    low, high = np.frombuffer(residuals.encode(values), np.uint8).reshape(2, 8, 8)
    assert not low[1:, 1:].any()
    assert not high[1:, 1:].any()


def test_small_numbers_of_either_sign_have_no_high_byte() -> None:
    values = np.array([[0, -1, 0], [1, 1, 3]], np.int16)
    low, high = np.frombuffer(residuals.encode(values), np.uint8).reshape(2, 2, 3)
    # Residuals 0 -1 1 and 1 1 1, each as twice its size, less one where it is negative.
    assert low.tolist() == [[0, 1, 2], [2, 2, 2]]
    assert not high.any()


@pytest.fixture(params=["none", "lz4", "compact"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return write_samples(Folder(str(tmp_path)), range(6), codec=request.param)[0]


def test_a_reader_needs_no_setting(uri: str) -> None:
    batch = next(ShardReader([uri], batch_size=6, shuffle=False).epoch(0))
    for i in range(6):
        patch = make_patch(i)
        np.testing.assert_array_equal(batch.s2_bcthw[i], patch.s2_cthw)
        np.testing.assert_array_equal(batch.s1_bcthw[i], patch.s1_cthw)
        np.testing.assert_array_equal(batch.label_bhw[i], patch.label_hw)


def test_the_metadata_name_the_encoding_of_the_images_alone(tmp_path: Path) -> None:
    (uri,) = write_samples(Folder(str(tmp_path)), range(2), codec="compact")
    tensors = json.loads(pq.read_schema(uri).metadata[METADATA_KEY])["tensors"]
    assert {name: about.get("encoding") for name, about in tensors.items()} == {
        "s1": "residuals",
        "s2": "residuals",
        "label": None,
    }


def test_an_encoding_that_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setitem(writer.CODECS, "none", ("NONE", None, "wavelets"))
        (uri,) = write_samples(Folder(str(tmp_path)), range(2), codec="none")
    with pytest.raises(InputError, match="unknown encoding 'wavelets'"):
        ShardReader([uri], batch_size=2)


def test_the_checksum_is_that_of_the_plain_tensors(tmp_path: Path) -> None:
    plain, compact = (
        ShardFile.open(write_samples(Folder(str(tmp_path / codec)), range(4), codec=codec)[0])
        for codec in ("none", "compact")
    )
    assert plain.checksums.tolist() == compact.checksums.tolist()


def test_a_flipped_bit_in_a_compact_shard_is_never_read(tmp_path: Path) -> None:
    """Where zstd does not notice it, the checksum does."""
    (uri,) = write_samples(Folder(str(tmp_path)), range(8), codec="compact")
    sound = Path(uri).read_bytes()
    column = pq.ParquetFile(uri).metadata.row_group(0).column(21)
    assert column.path_in_schema == "s2"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, column.total_compressed_size, 60) + column.data_page_offset:
        data = bytearray(sound)
        data[place] ^= 1 << rng.integers(8)
        Path(uri).write_bytes(data)
        with pytest.raises(InputError, match=r"00000\.parquet(, row \d)?(: sample| is truncated)"):
            list(ShardReader([uri], batch_size=4).epoch(0))


def test_smooth_images_take_less_room_than_under_lz4(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:64, :64]
    noise = np.random.default_rng(0).normal(0, 4, (6, 64, 64))
    values = (2000 + 8 * rows + 5 * cols + noise).astype(np.int16)
    lz4 = len(pa.compress(values.tobytes(), "lz4_raw", asbytes=True))
    compact = len(pa.Codec("zstd", compression_level=1).compress(residuals.encode(values), asbytes=True))
    assert compact < 0.6 * lz4

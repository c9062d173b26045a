"""Values found in the pages of a file are those that pyarrow reads from it."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropray.shards.columns import ColumnPages, find_chunks


def column_pages(data: bytes) -> ColumnPages:
    file = pq.ParquetFile(io.BytesIO(data)).metadata
    (column,), ranges = find_chunks(file, {"tensor": 48})
    start, size = ranges[0, 0].tolist()
    return ColumnPages(pa.py_buffer(data[start : start + size]), column, file.num_rows)


def written(rows: list[bytes], **options: object) -> bytes:
    schema = pa.schema([pa.field("tensor", pa.binary(48), nullable=False)])
    sink = io.BytesIO()
    pq.write_table(
        pa.table([rows], schema=schema), sink, use_dictionary=False, write_statistics=False, **options
    )
    return sink.getvalue()


@given(
    count=st.integers(1, 40),
    codec=st.sampled_from(["none", "lz4", "zstd"]),
    page_values=st.integers(1, 20),
)
def test_values_are_those_that_were_written(count: int, codec: str, page_values: int) -> None:
    rng = np.random.default_rng(count)
    rows = [rng.integers(0, 5, 48, np.uint8).tobytes() for _ in range(count)]
    data = written(
        rows,
        compression=codec,
        data_page_size=page_values * 48,
        write_batch_size=1,
    )
    pages = column_pages(data)
    assert [bytes(pages.value(row)) for row in range(count)] == rows


def test_uncompressed_values_are_views_of_the_file() -> None:
    rows = [bytes([i]) * 48 for i in range(3)]
    value = column_pages(written(rows, compression="none")).value(1)
    assert not np.frombuffer(value, np.uint8).flags.owndata
    assert value.readonly


@pytest.mark.parametrize("options", [{"data_page_version": "2.0"}, {"column_encoding": "BYTE_STREAM_SPLIT"}])
def test_pages_of_another_kind_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not (a plain data page|part of a page header)"):
        column_pages(written([bytes(48)], compression="none", **options))


def test_a_codec_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="codec SNAPPY of column tensor is not supported"):
        column_pages(written([bytes(48)], compression="snappy"))


def test_every_damage_of_the_headers_is_refused_or_harmless() -> None:
    rows = [bytes([i]) * 48 for i in range(3)]
    sound = written(rows, compression="none", data_page_size=48, write_batch_size=1)
    (column,), ranges = find_chunks(pq.ParquetFile(io.BytesIO(sound)).metadata, {"tensor": 48})
    start, size = ranges[0, 0].tolist()
    refused = 0
    for bit in range(size * 8):
        data = bytearray(sound[start : start + size])
        data[bit // 8] ^= 1 << bit % 8
        try:
            pages = ColumnPages(pa.py_buffer(bytes(data)), column, 3)
        except (ValueError, IndexError):
            refused += 1
        else:
            assert all(len(pages.value(row)) == 48 for row in range(3))
    assert refused > 50

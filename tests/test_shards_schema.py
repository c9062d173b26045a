import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.shards.schema import ShardMetadata, encode_patch, quantise
from cropray.storage import Folder
from tests.samples import EXTENT, METADATA, PERIODS, ROI, SIZE, make_patch, write_samples


def test_values_are_stored_within_half_a_step_of_the_truth() -> None:
    values = np.array([0.0, 0.12341, 1.0, -0.0002], np.float32)
    stored = quantise(values, np.ones(4, bool), 1e-4)
    assert stored.tolist() == [0, 1234, 10_000, -2]


@given(
    npst.arrays(np.float32, 20, elements=st.floats(-1e6, 1e6, width=32)),
    npst.arrays(np.bool_, 20),
)
def test_nodata_stands_exactly_where_there_is_no_view(values: np.ndarray, valid: np.ndarray) -> None:
    assert ((quantise(values, valid, 1e-2) == NODATA) == ~valid).all()


def test_a_value_that_is_not_finite_is_no_view() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert quantise(values, np.ones(4, bool), 1e-2).tolist() == [NODATA, NODATA, NODATA, 100]


def test_a_row_says_where_it_lies_and_what_is_known_of_it() -> None:
    row = encode_patch(make_patch(3), ROI, EXTENT, PERIODS)
    assert (row["row"], row["col"], row["crs"], row["x0"]) == (48, 0, "EPSG:32639", 500_000.0)
    assert row["labelled_fraction"] == 0.75
    assert row["valid_s2"] == [1.0, 1.0]
    assert row["valid_s1"] == [0.0, 1.0]
    assert [day.isoformat() for day in row["period_end"]] == ["2022-04-01", "2022-05-01"]


def test_the_checksum_is_xxh3_of_the_tensors_one_after_the_other() -> None:
    patch = make_patch(3)
    joined = patch.s2_cthw.tobytes() + patch.s1_cthw.tobytes() + patch.label_hw.tobytes()
    assert encode_patch(patch, ROI, EXTENT, PERIODS)["xxh3"] == xxhash.xxh3_64_intdigest(joined)


def test_a_patch_cut_out_of_a_larger_array_is_stored_in_c_order() -> None:
    patch = make_patch(1)
    strided = replace(patch, s2_cthw=np.ascontiguousarray(patch.s2_cthw.swapaxes(0, 1)).swapaxes(0, 1))
    assert encode_patch(strided, ROI, EXTENT, PERIODS) == encode_patch(patch, ROI, EXTENT, PERIODS)


def test_metadata_survives_the_schema() -> None:
    metadata = replace(METADATA, has_truth=True, window={**METADATA.window, "as_of": "2022-06-01"})
    assert ShardMetadata.from_schema(metadata.schema, "here") == metadata


def test_a_shard_can_be_read_by_its_own_metadata_alone(tmp_path: Path) -> None:
    """What docs/format.md promises: Parquet, JSON and numpy are enough."""
    (uri,) = write_samples(Folder(str(tmp_path)), [5])
    table = pq.read_table(uri)
    about = json.loads(table.schema.metadata[b"cropray"])["tensors"]["s2"]
    values = np.frombuffer(table["s2"][0].as_py(), about["dtype"]).reshape(about["shape"])
    np.testing.assert_array_equal(values, make_patch(5).s2_cthw)
    assert about["axes"] == "CTHW"
    assert about["shape"] == [len(about["bands"]), 2, SIZE, SIZE]


def test_a_parquet_file_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"x\.parquet is not a cropray shard"):
        ShardMetadata.from_schema(METADATA.schema.remove_metadata(), "x.parquet")


def test_another_format_version_is_refused_and_named() -> None:
    text = METADATA.to_json().replace('"format": 1', '"format": 2')
    schema = METADATA.schema.with_metadata({b"cropray": text})
    with pytest.raises(InputError, match=r"x\.parquet has shard format 2; this cropray reads format 1"):
        ShardMetadata.from_schema(schema, "x.parquet")


def test_columns_that_contradict_the_metadata_are_refused() -> None:
    schema = METADATA.schema.remove(METADATA.schema.get_field_index("label"))
    with pytest.raises(InputError, match=r"its columns contradict its metadata"):
        ShardMetadata.from_schema(schema, "x.parquet")


@pytest.mark.parametrize(
    ("stored", "other"),
    [('"scale": 0.0001', '"scale": 0.001'), ('"unit": "dB"', '"unit": "linear"'), ("-32768", "0")],
)
def test_numbers_stored_in_another_way_are_refused(stored: str, other: str) -> None:
    text = METADATA.to_json().replace(stored, other)
    assert text != METADATA.to_json()
    with pytest.raises(InputError, match=r"x\.parquet: its metadata is damaged"):
        ShardMetadata.from_schema(METADATA.schema.with_metadata({b"cropray": text}), "x.parquet")

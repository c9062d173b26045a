"""What a registered model takes, and what it refuses by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cropray.bands import NODATA, S2_NAMES
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.inference import Predictor, stored_inputs
from cropray.models.normalisation import FixedNormalisation
from cropray.shards.schema import METADATA_KEY
from cropray.storage import Folder
from tests.samples import METADATA, SIZE, make_patch, write_samples

MONTHS = METADATA.months


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    network = NetworkSpec(2, width=2, months=MONTHS)
    weights = network.build().state_dict()
    return Checkpoint(METADATA.classes, network, FixedNormalisation(), METADATA.window, "gamma0", weights)


def arrays() -> dict[str, np.ndarray]:
    patches = [make_patch(number) for number in range(3)]
    return {
        "s1": np.stack([patch.s1_cthw for patch in patches]),
        "s2": np.stack([patch.s2_cthw for patch in patches]),
    }


def shard(folder: Path, codec: str) -> tuple[dict[str, np.ndarray], str]:
    """Columns s1 and s2 as pyarrow reads them, and the JSON that stands in the schema."""
    (uri,) = write_samples(Folder(str(folder / codec)), range(3), codec=codec)
    read = pq.read_table(uri, columns=["s1", "s2"])
    columns = {name: read[name].to_numpy(zero_copy_only=False) for name in ("s1", "s2")}
    return columns, read.schema.metadata[METADATA_KEY].decode()


def test_arrays_are_taken_as_they_are(checkpoint: Checkpoint) -> None:
    given = arrays()
    s1, s2 = stored_inputs(checkpoint, given)
    np.testing.assert_array_equal(s1, given["s1"])
    np.testing.assert_array_equal(s2, given["s2"])


def test_views_in_any_order_and_arrays_that_may_not_be_written_are_taken(checkpoint: Checkpoint) -> None:
    given = arrays()
    frozen = given["s1"].copy()
    frozen.flags.writeable = False
    views = {"s1": frozen, "s2": given["s2"][:, ::-1, ..., ::-1]}
    taken = stored_inputs(checkpoint, views)
    for values, view in zip(taken, views.values(), strict=True):
        np.testing.assert_array_equal(values, view)
        np.testing.assert_array_equal(torch.from_numpy(values), view)  # without a warning


@pytest.mark.parametrize("codec", ["none", "lz4", "compact"])
def test_rows_of_shards_are_the_arrays_of_which_they_were_made(
    checkpoint: Checkpoint, tmp_path: Path, codec: str
) -> None:
    columns, description = shard(tmp_path, codec)
    s1, s2 = stored_inputs(checkpoint, columns, description)
    np.testing.assert_array_equal(s1, arrays()["s1"])
    np.testing.assert_array_equal(s2, arrays()["s2"])
    assert s1.flags.writeable  # torch warns of others
    assert s2.flags.writeable


def test_rows_without_their_metadata_are_plain_or_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain, _ = shard(tmp_path, "lz4")
    np.testing.assert_array_equal(stored_inputs(checkpoint, plain)[1], arrays()["s2"])
    compact, _ = shard(tmp_path, "compact")
    with pytest.raises(InputError, match=r"s[12] has \d+% of its values outside .*compact shards"):
        stored_inputs(checkpoint, compact)


def test_swapped_missing_and_short_inputs_are_named(checkpoint: Checkpoint) -> None:
    given = arrays()
    for wrong, message in (
        ({"s1": given["s2"], "s2": given["s1"]}, r"s1 is \(3, 10, 2, 16, 16\).*2 bands, 2 months"),
        ({"s1": given["s1"]}, "s2 is missing.*given was s1"),
        (given | {"s2": given["s2"][:, :, :1]}, r"s1 is \(3, 2, 2.*s2 \(3, 10, 1.*months"),
        (given | {"s2": np.repeat(given["s2"], 2, axis=2)}, r"s2 is \(3, 10, 4, 16, 16\).*2 months"),
        (given | {"s2": given["s2"][:, :9]}, r"s2 is \(3, 9, 2, 16, 16\).*10 bands"),
        (given | {"s2": given["s2"][..., :12]}, r"s1 is \(3.*16, 16\).*s2 \(3.*16, 12\)"),
        (given | {"s2": given["s2"][..., :0]}, r"s2 is \(3.*16, 0\)"),
        (given | {"s2": given["s2"][:2]}, r"s1 is \(3.*s2 \(2.*same samples"),
    ):
        with pytest.raises(InputError, match=message):
            stored_inputs(checkpoint, wrong)


def physical(dtype: type = np.float32) -> dict[str, np.ndarray]:
    """The same values in dB and reflectance, NaN where nothing was seen."""
    scales = {"s1": 0.01, "s2": 0.0001}
    return {
        name: np.where(values == NODATA, np.nan, values * scales[name]).astype(dtype)
        for name, values in arrays().items()
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_db_and_reflectance_and_nan_is_no_view(checkpoint: Checkpoint, dtype: type) -> None:
    given, floats = arrays(), physical(dtype)
    given["s2"][0, :, 0, 3] = NODATA
    floats["s2"][0, :, 0, 3] = np.nan
    for taken, expected in zip(stored_inputs(checkpoint, floats), given.values(), strict=True):
        np.testing.assert_array_equal(taken, expected)
    mixed = stored_inputs(checkpoint, {"s1": given["s1"], "s2": floats["s2"]})  # each has its own type
    np.testing.assert_array_equal(mixed[1], given["s2"])


def test_numbers_of_json_are_stored_integers_or_floats(checkpoint: Checkpoint) -> None:
    given = arrays()
    for sent in (given, physical(np.float64)):
        text = json.dumps({name: values.tolist() for name, values in sent.items()}).replace("NaN", "null")
        read = {name: np.array(values, dtype=object) for name, values in json.loads(text).items()}
        for taken, expected in zip(stored_inputs(checkpoint, read), given.values(), strict=True):
            np.testing.assert_array_equal(taken, expected)
    with pytest.raises(InputError, match="s2 holds other values than numbers"):
        stored_inputs(checkpoint, given | {"s2": np.full((1, 10, MONTHS, 16, 16), "x", dtype=object)})


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 16), (17, 40), (1, 1)])
def test_any_size_is_taken_and_the_border_is_repeated(
    checkpoint: Checkpoint, height: int, width: int
) -> None:
    rng = np.random.default_rng(2)
    s1 = rng.integers(-2500, 0, (2, 2, MONTHS, height, width)).astype(np.int16)
    s2 = rng.integers(0, 5000, (2, 10, MONTHS, height, width)).astype(np.int16)
    got = Predictor(checkpoint).probabilities(s1, s2)
    grown = [(0, 0)] * 3 + [(0, -height % 16), (0, -width % 16)]
    whole = Predictor(checkpoint).probabilities(np.pad(s1, grown, "edge"), np.pad(s2, grown, "edge"))
    assert got.shape == (2, 2, height, width)
    np.testing.assert_array_equal(got, whole[..., :height, :width])


def test_an_any_date_model_alone_takes_the_first_months_of_its_window(checkpoint: Checkpoint) -> None:
    first = {name: values[:, :, :1] for name, values in arrays().items()}
    with pytest.raises(InputError, match=f"1 months.*{MONTHS} are needed"):
        stored_inputs(checkpoint, first)
    any_date = replace(checkpoint, recipe={"any_date": True})
    taken = stored_inputs(any_date, first)
    assert [x.shape[2] for x in taken] == [1, 1]
    gap = [(0, 0), (0, 0), (0, MONTHS - 1), (0, 0), (0, 0)]
    whole = [np.pad(x, gap, constant_values=NODATA) for x in taken]
    predictor = Predictor(any_date)
    np.testing.assert_array_equal(predictor.probabilities(*taken), predictor.probabilities(*whole))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.uint8])
def test_other_types_are_refused_with_what_is_stored(checkpoint: Checkpoint, dtype: type) -> None:
    given = arrays()
    given["s2"] = np.abs(given["s2"]).astype(dtype)
    with pytest.raises(InputError, match=rf"s2 is {np.dtype(dtype)}.*int16 .*reflectance / 0\.0001"):
        stored_inputs(checkpoint, given)


def test_values_of_another_scale_are_refused(checkpoint: Checkpoint) -> None:
    given = arrays()
    for name, values, message in (
        ("s2", np.clip(given["s2"] // 100, 0, 99), "s2 lies within 0 and 99"),  # per cent
        ("s2", np.where(given["s2"] > 3000, 30_000, given["s2"]), "s2 has .* of its values outside"),
        ("s2", given["s2"] - 12_000, "s2 has .* of its values outside"),
        ("s1", np.clip(given["s1"] // 100, -25, 5), "s1 lies within -25 and 4"),  # whole dB
        ("s1", given["s1"] - 4000, "s1 has .* of its values outside -5000 to .*0.01"),
    ):
        with pytest.raises(InputError, match=message):
            stored_inputs(checkpoint, given | {name: values.astype(np.int16)})
    floats = physical()
    for name, values, message in (
        ("s2", floats["s2"] * 10_000, "s2 has .* of its values outside"),  # integers as floats
        ("s2", floats["s2"] / 200, "s2 lies within"),
        ("s1", 10 ** (floats["s1"] / 10), "s1 lies within"),  # linear power
    ):
        with pytest.raises(InputError, match=message):
            stored_inputs(checkpoint, floats | {name: values})


def test_a_batch_that_nothing_saw_is_no_other_scale(checkpoint: Checkpoint) -> None:
    nothing = {name: np.full_like(values, NODATA) for name, values in arrays().items()}
    assert (stored_inputs(checkpoint, nothing)[0] == NODATA).all()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"s2": {"bands": [*S2_NAMES[1:], S2_NAMES[0]]}}, "Sentinel-2 bands B03, .*in another order"),
        ({"s2": {"bands": ["red", "nir"]}}, "Sentinel-2 bands red, nir; the model was trained on B02"),
        (
            {"s1": {"bands": ["VH", "VV"]}},
            "Sentinel-1 bands VH, VV in another order; the model was trained on VV, VH",
        ),
        ({"s1": {"quantity": "sigma0"}}, "has sigma0 of Sentinel-1, the model was trained on gamma0"),
        ({"s2": {"scale": 0.001}}, r"s2 has the scale 0\.001, the model expects reflectance / 0\.0001"),
        ({"s2": {"encoding": "wavelets"}}, "s2 has the unknown encoding 'wavelets'"),
    ],
)
def test_what_a_description_says_must_be_what_the_model_wants(
    checkpoint: Checkpoint, tensor: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        stored_inputs(checkpoint, arrays(), json.dumps({"tensors": tensor}))


def test_a_description_of_another_nodata_or_none_at_all_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="nodata is 0, the model expects -32768"):
        stored_inputs(checkpoint, arrays(), '{"nodata": 0}')
    for text in ("{", "[]", '"s2"'):
        with pytest.raises(InputError, match="`metadata` is not JSON like that of a shard"):
            stored_inputs(checkpoint, arrays(), text)


def test_rows_of_another_sensor_or_of_fewer_months_are_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    columns, _ = shard(tmp_path, "lz4")
    short = np.array([value[: len(value) * 3 // 5] for value in columns["s2"]], dtype=object)
    mixed = columns["s2"].copy()
    mixed[1] = mixed[1][:-2]
    for wrong, message in (
        (
            {"s1": columns["s1"], "s2": short},
            rf"s2 has rows of {10 * MONTHS * SIZE**2 * 2 * 3 // 5}; .*2 months",
        ),
        ({"s1": columns["s1"], "s2": mixed}, "s2 has rows of different sizes"),
    ):
        with pytest.raises(InputError, match=message):
            stored_inputs(checkpoint, wrong)

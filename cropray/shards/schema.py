"""The shard format: the columns of a Parquet shard, their metadata and their checksums (docs/format.md).

A tensor is one flat binary value per sample (C order, little endian). What all samples of a shard share is
JSON in the Parquet schema metadata, under the key `cropray`. Axes: C bands, T months (oldest first), H rows,
W columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from cropray.bands import NODATA, S1_BANDS, S1_NAMES, S2_BANDS, S2_NAMES
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.shards import residuals
from cropray.types import UNLABELLED, BoolArray, Composite, IntArray, Patch, Period, Roi

FORMAT_VERSION = 1
METADATA_KEY = b"cropray"
ROWS_KEY = b"cropray.rows"
"""Footer key: `rows_checksum` of the shard."""

_DATES = pa.list_(pa.field("item", pa.date32(), nullable=False))
_FRACTIONS = pa.list_(pa.field("item", pa.float32(), nullable=False))

SCALARS: dict[str, pa.DataType] = {
    "sample_id": pa.string(),
    "roi_id": pa.string(),
    "crop": pa.string(),
    "season": pa.string(),
    "country": pa.string(),
    "province": pa.string(),
    "split": pa.string(),
    "row": pa.int32(),
    "col": pa.int32(),
    "roi_height": pa.int32(),
    "roi_width": pa.int32(),
    "crs": pa.string(),
    "x0": pa.float64(),
    "y0": pa.float64(),
    "resolution": pa.float64(),
    "period_start": _DATES,
    "period_end": _DATES,
    "labelled_fraction": pa.float32(),
    "valid_s2": _FRACTIONS,
    "valid_s1": _FRACTIONS,
    "xxh3": pa.uint64(),
}
"""Columns of one small value per sample. `row` and `col` place the patch in the ROI's grid, which the next
six describe. `valid_*` are shares of clear pixels by month; `labelled_fraction` is the share of pixels whose
label is not UNLABELLED."""

_AS_JSON = ("window", "recipe", "source", "imagery")  # fields that the metadata holds as they are
_STORED = {
    sensor: {"scale": bands[0].scale, "unit": bands[0].unit}
    for sensor, bands in (("s2", S2_BANDS), ("s1", S1_BANDS))
}

WRITE_AGAIN = "delete the file and run the stage that made it again"
PLAIN, RESIDUALS = "plain", "residuals"
"""Encodings of a tensor in its column: its own bytes, or those of `residuals.encode`."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one sample's tensor, and how its column encodes it."""

    shape: tuple[int, ...]
    dtype: str
    encoding: str = PLAIN

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def decode(self, value: bytes | memoryview) -> npt.NDArray[Any]:
        """The tensor of one value of its column; a view of the value if the encoding is plain."""
        if self.encoding == RESIDUALS:
            return residuals.decode(value, self.shape)
        return np.frombuffer(value, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class ShardMetadata:
    """What all samples of a data set share. Physical value = stored integer × `Band.scale`, except NODATA."""

    classes: tuple[str, ...]
    size: int  # side of a patch in pixels
    window: dict[str, Any]  # how the months were chosen: anchor, months, lead_months, as_of
    s1_quantity: str  # "gamma0" or "sigma0"
    recipe: str  # hash of all settings on which the pixels depend
    source: dict[str, Any]  # identity of the imagery source
    imagery: dict[str, Any] = field(default_factory=dict)  # settings of grid and composites
    has_truth: bool = False
    s2_bands: tuple[str, ...] = S2_NAMES
    s1_bands: tuple[str, ...] = S1_NAMES
    encoding: str = PLAIN  # of the 16-bit tensors

    @property
    def months(self) -> int:
        return int(self.window["months"])

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensor columns, in the order in which the checksum covers them."""
        plane = (self.size, self.size)
        tensors = {
            "s2": TensorSpec((len(self.s2_bands), self.months, *plane), "<i2", self.encoding),
            "s1": TensorSpec((len(self.s1_bands), self.months, *plane), "<i2", self.encoding),
            "label": TensorSpec(plane, "|u1"),
        }
        return tensors | ({"truth": TensorSpec(plane, "|u1")} if self.has_truth else {})

    def differences(self, other: ShardMetadata) -> dict[str, tuple[Any, Any]]:
        """Fields that differ, as (this, other) by name. Shards of one data set have none."""
        one, two = asdict(self), asdict(other)
        return {name: (one[name], two[name]) for name in one if one[name] != two[name]}

    @property
    def schema(self) -> pa.Schema:
        columns = SCALARS | {name: pa.binary(spec.nbytes) for name, spec in self.tensors.items()}
        fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
        return pa.schema(fields, metadata={METADATA_KEY: self.to_json()})

    def to_json(self) -> str:
        """Canonical JSON. Its descriptions of the tensors make a shard readable without this code."""
        axes = {"s2": "CTHW", "s1": "CTHW", "label": "HW", "truth": "HW"}
        bands = {
            "s2": {"bands": self.s2_bands} | _STORED["s2"],
            "s1": {"bands": self.s1_bands, "quantity": self.s1_quantity} | _STORED["s1"],
        }
        tensors = {
            name: {"axes": axes[name], "shape": spec.shape, "dtype": spec.dtype}
            | ({} if spec.encoding == PLAIN else {"encoding": spec.encoding})
            | bands.get(name, {})
            for name, spec in self.tensors.items()
        }
        data = {"format": FORMAT_VERSION, "classes": self.classes, "nodata": NODATA, "tensors": tensors}
        data |= {name: getattr(self, name) for name in _AS_JSON}
        return json.dumps(data, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_schema(cls, schema: pa.Schema, where: str) -> ShardMetadata:
        """The metadata of an open shard. Raises InputError, naming the file `where`, for any other file."""
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            raise InputError(f"{where} is not a cropray shard (no {METADATA_KEY.decode()!r} in its metadata)")
        try:
            data = json.loads(text)
            version = data["format"]
            metadata = cls._from_json(data) if version == FORMAT_VERSION else None
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{where}: its metadata is damaged ({error!r}); {WRITE_AGAIN}") from error
        if metadata is None:
            raise InputError(
                f"{where} has shard format {version}; this cropray reads format {FORMAT_VERSION}. "
                "Make the shards again (export, compact) in a new --run folder, or use its version of cropray"
            )
        if not schema.equals(metadata.schema):
            raise InputError(f"{where}: its columns contradict its metadata; {WRITE_AGAIN}")
        return metadata

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> ShardMetadata:
        s2, s1 = data["tensors"]["s2"], data["tensors"]["s1"]
        encoding = s2.get("encoding", PLAIN)
        if encoding not in (PLAIN, RESIDUALS):
            raise ValueError(f"unknown encoding {encoding!r}")
        stored = {name: {key: data["tensors"][name][key] for key in _STORED[name]} for name in _STORED}
        if stored != _STORED or data["nodata"] != NODATA:
            raise ValueError(f"values in {stored} with nodata {data['nodata']}, expected {_STORED}, {NODATA}")
        return cls(
            classes=tuple(data["classes"]),
            size=s2["shape"][-1],
            s1_quantity=s1["quantity"],
            has_truth="truth" in data["tensors"],
            s2_bands=tuple(s2["bands"]),
            s1_bands=tuple(s1["bands"]),
            encoding=encoding,
            **{name: data[name] for name in _AS_JSON},
        )


def quantise(values: npt.NDArray[np.floating], valid: BoolArray, scale: float) -> IntArray:
    """Physical values as int16, clipped to its range; NODATA where not valid or not finite.

    `valid` broadcasts against `values`.
    """
    with np.errstate(invalid="ignore"):
        stored = np.clip(np.rint(values / scale), NODATA + 1, 32767)
    return np.where(valid & np.isfinite(values), stored, NODATA).astype(np.int16)


def quantise_composite(
    composite: Composite, s1_bands: Sequence[str] = S1_NAMES, s2_bands: Sequence[str] = S2_NAMES
) -> tuple[IntArray, IntArray]:
    """s1 and s2 (C, T, H, W) of these bands as stored integers, as in the training data."""
    cubes = []
    for names, bands, values, valid in (
        (S1_NAMES, s1_bands, composite.s1_tchw, composite.s1_valid_thw),
        (S2_NAMES, s2_bands, composite.s2_tchw, composite.s2_valid_thw),
    ):
        chosen = slice(None) if tuple(bands) == names else [names.index(name) for name in bands]
        scale = (S1_BANDS if names is S1_NAMES else S2_BANDS)[0].scale
        cubes.append(quantise(values[:, chosen], valid[:, None], scale).swapaxes(0, 1))
    return cubes[0], cubes[1]


def encode_patch(patch: Patch, roi: Roi, extent: Grid, periods: Sequence[Period]) -> dict[str, Any]:
    """One row of a shard: scalars and tensors. `extent` is the grid of the whole ROI."""
    tensors = {"s2": patch.s2_cthw, "s1": patch.s1_cthw, "label": patch.label_hw}
    if patch.truth_hw is not None:
        tensors["truth"] = patch.truth_hw
    data = {name: np.ascontiguousarray(values).tobytes() for name, values in tensors.items()}
    return {
        "sample_id": patch.sample_id,
        **{name: getattr(roi, name) for name in ("roi_id", "crop", "season", "country", "province", "split")},
        "row": patch.row,
        "col": patch.col,
        "roi_height": extent.height,
        "roi_width": extent.width,
        **{name: getattr(extent, name) for name in ("crs", "x0", "y0", "resolution")},
        "period_start": [period.start for period in periods],
        "period_end": [period.end for period in periods],
        "labelled_fraction": float(np.mean(patch.label_hw != UNLABELLED)),
        "valid_s2": np.mean(patch.s2_cthw[0] != NODATA, axis=(1, 2)).tolist(),
        "valid_s1": np.mean(patch.s1_cthw[0] != NODATA, axis=(1, 2)).tolist(),
        "xxh3": checksum(data.values()),
        **data,
    }


def to_table(rows: Sequence[Mapping[str, Any]], metadata: ShardMetadata) -> pa.Table:
    """Rows of `encode_patch` as a table with the shard's schema."""
    return pa.Table.from_pylist(rows, schema=metadata.schema)


def checksum(buffers: Iterable[Any]) -> int:
    """xxh3 (64 bit) of the plain tensors of one sample, in the order of `ShardMetadata.tensors`."""
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.intdigest()


def rows_checksum(table: pa.Table, metadata_json: bytes) -> str:
    """xxh3 (64 bit, hexadecimal) of the metadata and the scalar columns of a whole shard."""
    digest = xxhash.xxh3_64(metadata_json)
    for name in SCALARS:
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(np.ascontiguousarray(column.value_lengths()).tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update("\n".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()

"""What a registered model is given: arrays or rows of shards, checked by name before the network sees them.

It travels with the model, so it needs numpy and what else travels alone. Shape suffixes: B samples,
C bands, T months (oldest first), H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import SIDE_MULTIPLE
from cropray.shards import residuals
from cropray.types import IntArray

_BANDS = {"s1": S1_BANDS, "s2": S2_BANDS}
_STORED = np.dtype("<i2")
_ENCODINGS = ("plain", "residuals")  # of the tensor columns of shards: docs/format.md

# Atmospheric correction leaves water and shadows a little below 0; further below is another scale.
_BELOW = {"s2": 0.2, "s1": 0.0}
_MOST_OUTSIDE = 0.05
# Stored values; 0.01 of reflectance, 1 dB. Where every value of a batch is nearer to 0 than this, they
# were not stored as the model wants them: no land is as dark in all bands, nor as bright to the radar.
_FAINTEST = 100


def stored_inputs(
    checkpoint: Checkpoint, inputs: Mapping[str, npt.NDArray[Any]], description: str = ""
) -> tuple[IntArray, IntArray]:
    """s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W) as int16, of arrays or of the columns of shards.

    An input is an int16 array of that shape, or an array (B,) of bytes, as a tensor column of shards
    is read. `description` is JSON as in a shard's metadata (docs/format.md), or a part of it: what it
    says of bands, scale, quantity, type, encoding and nodata must be what the model wants. Raises
    InputError that names the input where it is missing, of other bands, months, sides, type or scale.
    """
    told = _described(checkpoint, description)
    arrays = {
        name: _array(name, inputs, len(bands), checkpoint.months, told[name])
        for name, bands in _BANDS.items()
    }
    s1, s2 = arrays["s1"], arrays["s2"]
    if (len(s1), *s1.shape[3:]) != (len(s2), *s2.shape[3:]):
        raise InputError(f"s1 is {s1.shape} and s2 {s2.shape}: wanted the same samples, rows and columns")
    for name, stored in arrays.items():
        _check_scale(name, stored, _BANDS[name])
    return s1, s2


def _described(checkpoint: Checkpoint, description: str) -> dict[str, str]:
    """The encoding of each input, of a description that fits. Raises InputError where it does not."""
    try:
        data = json.loads(description or "{}")
        tensors = {name: data.get("tensors", {}).get(name, {}) for name in _BANDS}
        nodata = data.get("nodata", NODATA)
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"`metadata` is not JSON like that of a shard ({error}); wanted what stands in its Parquet "
            "schema under the key `cropray`"
        ) from error
    if nodata != NODATA:
        raise InputError(f"nodata is {nodata}, the model wants {NODATA}")
    wanted_bands = {"s1": checkpoint.s1_bands, "s2": checkpoint.s2_bands}
    for name, tensor in tensors.items():
        _check_bands(name, tensor.get("bands", wanted_bands[name]), wanted_bands[name])
        band = _BANDS[name][0]
        if tensor.get("scale", band.scale) != band.scale:
            raise InputError(
                f"{name} has the scale {tensor['scale']}, the model wants {band.unit} / {band.scale:g}"
            )
        quantity = tensor.get("quantity", checkpoint.s1_quantity)
        if quantity != checkpoint.s1_quantity:
            raise InputError(f"{name} is {quantity}, the model was trained on {checkpoint.s1_quantity}")
        if tensor.get("encoding", _ENCODINGS[0]) not in _ENCODINGS:
            raise InputError(f"{name} has the encoding {tensor['encoding']!r}, which is not known here")
    return {name: tensor.get("encoding", _ENCODINGS[0]) for name, tensor in tensors.items()}


def _check_bands(name: str, given: Sequence[str], wanted: Sequence[str]) -> None:
    if tuple(given) == tuple(wanted):
        return
    order = ": the same bands in another order" if sorted(given) == sorted(wanted) else ""
    raise InputError(f"{name} has the bands {', '.join(given)}; the model wants {', '.join(wanted)}{order}")


def _array(
    name: str, inputs: Mapping[str, npt.NDArray[Any]], bands: int, months: int, encoding: str
) -> IntArray:
    if name not in inputs:
        raise InputError(f"{name} is missing; wanted s1 and s2, given was {', '.join(inputs) or 'nothing'}")
    values = np.asarray(inputs[name])
    if values.dtype == object:
        values = _decoded(name, values, bands, months, encoding)
    if values.dtype != _STORED:
        raise InputError(
            f"{name} is {values.dtype}, the model wants int16 as stored: {_wanted(_BANDS[name][0])}"
        )
    shape = values.shape
    if len(shape) != 5 or shape[1:3] != (bands, months) or any(n % SIDE_MULTIPLE or not n for n in shape[3:]):
        raise InputError(
            f"{name} is {shape}, the model wants (samples, {bands} bands, {months} months, H, W), H and W "
            f"multiples of {SIDE_MULTIPLE}"
        )
    # torch takes no negative strides, and warns of memory that may not be written.
    return np.require(values, requirements=("C", "W"))


def _decoded(
    name: str, rows: npt.NDArray[np.object_], bands: int, months: int, encoding: str
) -> npt.NDArray[Any]:
    """Square patches (B, C, T, H, W) of the values of a tensor column."""
    sizes = {len(row) if isinstance(row, bytes) else -1 for row in rows}
    size = sizes.pop() if len(sizes) == 1 else -1
    side = isqrt(max(0, size) // (bands * months * _STORED.itemsize))
    if size <= 0 or side * side * bands * months * _STORED.itemsize != size:
        raise InputError(
            f"{name} has rows of {size if size > 0 else 'different sizes or other types'}; the model wants "
            f"{_STORED.itemsize} bytes × {bands} bands × {months} months × the pixels of a square patch, as "
            "a shard's column holds them"
        )
    shape = (bands, months, side, side)
    if encoding == "residuals":
        return np.stack([residuals.decode(row, shape) for row in rows])
    # Of a bytearray, for torch warns of memory that may not be written.
    return np.frombuffer(bytearray().join(rows), _STORED).reshape(len(rows), *shape)


def _check_scale(name: str, stored: IntArray, bands: Sequence[Band]) -> None:
    values = stored[stored != NODATA]
    if not len(values):
        return
    band = bands[0]
    low, high = (band.range[0] - _BELOW[name]) / band.scale, band.range[1] / band.scale
    outside = float(np.mean((values < low) | (values > high)))
    if outside > _MOST_OUTSIDE:
        raise InputError(
            f"{name} has {outside:.0%} of its values outside {low:g} to {high:g}; wanted {_wanted(band)}. "
            "Another sensor's values, another scale, or compact shards without their `metadata`?"
        )
    if max(-int(values.min()), int(values.max())) < _FAINTEST:
        raise InputError(
            f"{name} lies within {values.min()} and {values.max()}, too near to 0; wanted {_wanted(band)}"
        )


def _wanted(band: Band) -> str:
    return f"{band.unit} / {band.scale:g} as int16, {NODATA} where there is no valid view"

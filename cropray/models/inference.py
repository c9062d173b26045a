"""From stored integers to calibrated probabilities: checked inputs, and a network that takes them.

It travels with a registered model, so it imports only what travels too. Shape suffixes: B samples, C bands,
T months (oldest first), H rows, W columns, K classes, N pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cropray.bands import NODATA, S1_BANDS, S2_BANDS, Band
from cropray.errors import InputError
from cropray.models.acceleration import dtype_of, fold_batch_norm
from cropray.models.checkpoint import Checkpoint, check_inputs
from cropray.models.decision import Decision
from cropray.models.dual_unet3d import MAIN, DualUNet3D
from cropray.shards import residuals
from cropray.types import FloatArray, IntArray, Precision

_BANDS = {"s1": S1_BANDS, "s2": S2_BANDS}
_INT16 = np.dtype("<i2")
_INT16_MAX = 32767
_ENCODINGS = ("plain", "residuals")  # of tensor columns of shards: docs/format.md

# Atmospheric correction leaves water and shadows a little below 0. Values further below have another scale.
_BELOW_RANGE = {"s2": 0.2, "s1": 0.0}
_MAX_OUTSIDE = 0.05  # share of values
# Stored values: 0.01 of reflectance, 1 dB. A batch with all values nearer to 0 has another scale: no land is
# as dark in all bands, nor as bright to the radar. Linear power has no value below 0.
_FAINTEST = 100


class StoredNetwork(nn.Module):
    """A checkpoint's network with its normalisation: stored integers in, calibrated probabilities out.

    Calibration is that of the number of months that are seen, all of them if not said.
    """

    month_1t: Tensor
    bias_tk: Tensor
    temperature_t: Tensor
    dtype = torch.float32

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.normalisation = checkpoint.build(), checkpoint.normalisation
        self.multiple = checkpoint.network.side_multiple
        self.register_buffer("month_1t", torch.tensor([checkpoint.calendar]))
        decisions = [checkpoint.decision(seen) for seen in range(1, checkpoint.months + 1)]
        biases = [decision.biases or (0.0,) * len(checkpoint.classes) for decision in decisions]
        self.register_buffer("bias_tk", torch.tensor(biases))
        self.register_buffer("temperature_t", torch.tensor([d.temperature for d in decisions]))

    def accelerate(self, dtype: torch.dtype) -> None:
        """Fold batch norm, and compute the logits of a U-Net in `dtype`. In place; for inference alone.

        A network of single pixels keeps float32: it takes the logarithms of its members' mean.
        """
        self.network.eval()
        fold_batch_norm(self.network)
        if isinstance(self.network, DualUNet3D):
            self.dtype = dtype
            self.network.to(dtype)

    def forward(
        self, s1_bcthw: Tensor, s2_bcthw: Tensor, seen: int = 0, place_b2: Tensor | None = None
    ) -> Tensor:
        """Probabilities (B, K, H, W) of stored integers with any H and W.

        Where a side is not a multiple of what the network needs, the last row or column is repeated up to
        one, and the output is cut back.
        """
        B, _, _, H, W = s1_bcthw.shape
        if torch.compiler.is_compiling() or H % self.multiple or W % self.multiple:
            for dim, length in ((3, H), (4, W)):
                padded = self.multiple * ((length + self.multiple - 1) // self.multiple)
                places = torch.arange(padded, device=s1_bcthw.device).clamp(max=length - 1)
                s1_bcthw, s2_bcthw = s1_bcthw.index_select(dim, places), s2_bcthw.index_select(dim, places)
        s1, s2, valid = self.normalisation.apply(s1_bcthw, s2_bcthw)
        inputs = s1.to(self.dtype), s2.to(self.dtype), valid
        logits_bkhw = self.network(*inputs, MAIN, self.month_1t.expand(B, -1), place_b2).float()
        shifted_bkhw = logits_bkhw - self.bias_tk[seen - 1][:, None, None]
        probabilities_bkhw: Tensor = (shifted_bkhw / self.temperature_t[seen - 1]).sigmoid()
        return probabilities_bkhw[..., :H, :W]


class Predictor:
    """Holds a network on one device. The size of a batch changes results by rounding alone.

    For `precision` see `acceleration.dtype_of`.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: Precision = "float32") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._network = StoredNetwork(checkpoint)
        self._network.accelerate(dtype_of(precision, self.device))
        self._network.to(self.device)

    def decision(self, months: int | None = None) -> Decision:
        """How probabilities become classes, where this many months of the window are seen (None: all)."""
        return self.checkpoint.decision(months)

    @property
    def thresholds(self) -> FloatArray:
        """(K,), with all months; 0.5 for every class if none were chosen."""
        return self.decision().thresholds_k(len(self.checkpoint.classes))

    @property
    def needs_places(self) -> bool:
        return self._network.network.needs_places

    def probabilities(
        self, s1_bcthw: IntArray, s2_bcthw: IntArray, place_b2: npt.NDArray[np.floating] | None = None
    ) -> FloatArray:
        """Calibrated probabilities (B, K, H, W) of int16 patches as stored, with any H and W.

        An any-date network takes the first months of its window alone. `place_b2` are longitudes and
        latitudes of the patches, for networks that need them; None if unknown. Raises ValueError if bands or
        months do not fit the network.
        """
        stored = [torch.as_tensor(x).to(self.device) for x in (s1_bcthw, s2_bcthw)]
        seen = stored[0].shape[2]
        missing = self.checkpoint.months - seen
        if missing > 0 and self.checkpoint.any_date:
            stored = [pad(x, (0, 0, 0, 0, 0, missing), value=NODATA) for x in stored]
        told = None if place_b2 is None else torch.as_tensor(place_b2, dtype=torch.float32).to(self.device)
        with torch.inference_mode():
            return np.asarray(self._network(*stored, min(seen, self.checkpoint.months), told).cpu().numpy())


def stored_inputs(
    checkpoint: Checkpoint, inputs: Mapping[str, npt.NDArray[Any]], description: str = ""
) -> tuple[IntArray, IntArray]:
    """s1 (B, 2, T, H, W) and s2 (B, 10, T, H, W) as int16, from arrays or from the columns of shards.

    The type tells what an input is: int16 as stored, floats in dB and reflectance with NaN where there is no
    valid view, or an array (B,) of bytes as read from a tensor column. An any-date network takes the first
    months of its window alone. `description` is JSON as in a shard's metadata (docs/format.md), or a part of
    it; its bands, scale, quantity, encoding and nodata must be those of the model. Raises InputError that
    names the input if it is missing or has other bands, months, type or scale.
    """
    encodings = _encodings(checkpoint, description)
    arrays = {name: _array(name, inputs, checkpoint, encodings[name]) for name in _BANDS}
    s1, s2 = arrays["s1"], arrays["s2"]
    if (len(s1), *s1.shape[2:]) != (len(s2), *s2.shape[2:]):
        raise InputError(
            f"s1 is {s1.shape} and s2 {s2.shape}: expected the same samples, months, rows and columns"
        )
    for name, stored in arrays.items():
        _check_scale(name, stored)
    if s1.shape[2] < checkpoint.months and not checkpoint.any_date:
        raise InputError(
            f"s1 and s2 have {s1.shape[2]} months, {checkpoint.months} are needed: only a model that was "
            "trained with any_date takes the first months of its window alone"
        )
    # torch takes no negative strides, and warns of read-only memory.
    return np.require(s1, requirements=("C", "W")), np.require(s2, requirements=("C", "W"))


def _encodings(checkpoint: Checkpoint, description: str) -> dict[str, str]:
    """The encoding of each input. Raises InputError if the description does not fit the model."""
    try:
        data = json.loads(description or "{}")
        tensors = {name: data.get("tensors", {}).get(name, {}) for name in _BANDS}
        nodata = data.get("nodata", NODATA)
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"`metadata` is not JSON like that of a shard ({error}); expected the value of the key `cropray` "
            "of its Parquet schema"
        ) from error
    if nodata != NODATA:
        raise InputError(f"nodata is {nodata}, the model expects {NODATA}")
    check_inputs(
        checkpoint,
        s2_bands=tensors["s2"].get("bands", checkpoint.s2_bands),
        s1_bands=tensors["s1"].get("bands", checkpoint.s1_bands),
        s1_quantity=tensors["s1"].get("quantity", checkpoint.s1_quantity),
        where="the input",
    )
    for name, tensor in tensors.items():
        band = _BANDS[name][0]
        if tensor.get("scale", band.scale) != band.scale:
            raise InputError(
                f"{name} has the scale {tensor['scale']}, the model expects {band.unit} / {band.scale:g}"
            )
        if tensor.setdefault("encoding", _ENCODINGS[0]) not in _ENCODINGS:
            raise InputError(f"{name} has the unknown encoding {tensor['encoding']!r}")
    return {name: tensor["encoding"] for name, tensor in tensors.items()}


def _array(
    name: str, inputs: Mapping[str, npt.NDArray[Any]], checkpoint: Checkpoint, encoding: str
) -> IntArray:
    if name not in inputs:
        raise InputError(f"{name} is missing; expected s1 and s2, given was {', '.join(inputs) or 'nothing'}")
    values, band, months = np.asarray(inputs[name]), _BANDS[name][0], checkpoint.months
    bands = len(checkpoint.s1_bands if name == "s1" else checkpoint.s2_bands)
    if values.dtype == object and values.ndim == 1:
        values = _decoded(name, values, bands, months, encoding)
    elif values.dtype == object:
        values = _numbers(name, values)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            stored = np.clip(np.rint(values / band.scale), NODATA + 1, _INT16_MAX)
        values = np.where(np.isfinite(values), stored, NODATA).astype(_INT16)
    if values.dtype != _INT16:
        raise InputError(f"{name} is {values.dtype}, the model expects {_expected(band)}")
    shape = values.shape
    if len(shape) != 5 or shape[1] != bands or not 1 <= shape[2] <= months or not all(shape):
        raise InputError(
            f"{name} is {shape}, the model expects (samples, {bands} bands, {months} months, H, W)"
        )
    return values


def _numbers(name: str, values: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
    """Numbers of JSON: int16 if all of them are integers, else float64 with NaN for null."""
    try:
        numbers = np.array(values.tolist())
        if numbers.dtype.kind in "iu" and np.abs(numbers).max(initial=0) <= -NODATA:
            return numbers.astype(_INT16)
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} holds other values than numbers: {error}") from error


def _decoded(
    name: str, rows: npt.NDArray[np.object_], bands: int, months: int, encoding: str
) -> npt.NDArray[Any]:
    """Square patches (B, C, T, H, W) from the values of a tensor column."""
    sizes = {len(row) if isinstance(row, bytes) else -1 for row in rows}
    size = sizes.pop() if len(sizes) == 1 else -1
    side = isqrt(max(0, size) // (bands * months * _INT16.itemsize))
    if size <= 0 or side * side * bands * months * _INT16.itemsize != size:
        raise InputError(
            f"{name} has rows of {size if size > 0 else 'different sizes or other types'}; the model expects "
            f"{_INT16.itemsize} bytes × {bands} bands × {months} months × the pixels of a square patch"
        )
    shape = (bands, months, side, side)
    if encoding == "residuals":
        return np.stack([residuals.decode(row, shape) for row in rows])
    return np.frombuffer(b"".join(rows), _INT16).reshape(len(rows), *shape)


def _check_scale(name: str, stored: IntArray) -> None:
    values = stored[stored != NODATA]
    if not len(values):
        return
    band = _BANDS[name][0]
    low, high = (band.range[0] - _BELOW_RANGE[name]) / band.scale, band.range[1] / band.scale
    outside = float(np.mean((values < low) | (values > high)))
    if outside > _MAX_OUTSIDE:
        raise InputError(
            f"{name} has {outside:.0%} of its values outside {low:g} to {high:g} as stored, expected "
            f"{_expected(band)}. "
            "Another sensor's values, another scale, or compact shards without their `metadata`?"
        )
    low, high = int(values.min()), int(values.max())
    if max(-low, high) < _FAINTEST or (name == "s1" and low >= 0):
        raise InputError(
            f"{name} lies within {low} and {high} as stored, as no land does. Expected {_expected(band)}"
        )


def _expected(band: Band) -> str:
    return f"int16 of {band.unit} / {band.scale:g} ({NODATA} if invalid), or floats in {band.unit} (or NaN)"

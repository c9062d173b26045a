"""From stored integers to classes: checked inputs, probabilities, decisions, and thresholds for them.

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
from cropray.models.checkpoint import Checkpoint, check_inputs
from cropray.models.dual_unet3d import MAIN
from cropray.shards import residuals
from cropray.types import BACKGROUND, ByteArray, FloatArray, IntArray

DEFAULT_THRESHOLD = 0.5

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
    """A checkpoint's network with its normalisation: stored integers in, probabilities out."""

    month_1t: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.normalisation = checkpoint.build(), checkpoint.normalisation
        self.multiple = checkpoint.network.side_multiple
        self.register_buffer("month_1t", torch.tensor([checkpoint.calendar]))

    def forward(self, s1_bcthw: Tensor, s2_bcthw: Tensor) -> Tensor:
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
        inputs = self.normalisation.apply(s1_bcthw, s2_bcthw)
        logits_bkhw = self.network(*inputs, MAIN, self.month_1t.expand(B, -1))
        probabilities_bkhw: Tensor = logits_bkhw.sigmoid()
        return probabilities_bkhw[..., :H, :W]


class Predictor:
    """Holds a network on one device. Results do not depend on the size or order of batches."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._network = StoredNetwork(checkpoint).to(self.device)

    @property
    def thresholds(self) -> FloatArray:
        """(K,); 0.5 for every class if none were chosen."""
        chosen = self.checkpoint.thresholds or (DEFAULT_THRESHOLD,) * len(self.checkpoint.classes)
        return np.array(chosen, np.float32)

    def probabilities(self, s1_bcthw: IntArray, s2_bcthw: IntArray) -> FloatArray:
        """Probabilities (B, K, H, W) of int16 patches as stored, with any H and W.

        An any-date network takes the first months of its window alone. Raises ValueError if bands or months
        do not fit the network.
        """
        stored = [torch.as_tensor(x).to(self.device) for x in (s1_bcthw, s2_bcthw)]
        missing = self.checkpoint.months - stored[0].shape[2]
        if missing > 0 and self.checkpoint.any_date:
            stored = [pad(x, (0, 0, 0, 0, 0, missing), value=NODATA) for x in stored]
        with torch.inference_mode():
            return np.asarray(self._network(*stored).cpu().numpy())


def decide(probabilities_khw: npt.NDArray[np.floating], thresholds_k: npt.NDArray[np.floating]) -> ByteArray:
    """The class (…, H, W) of probabilities (…, K, H, W), or BACKGROUND if none reaches its threshold.

    Among the classes with p_c >= t_c, the one with the largest excess in odds wins: argmax of
    logit(p_c) - logit(t_c). Thresholds differ by class, since the sigmoids are calibrated differently (rare
    classes have low scores and low thresholds). Comparing p_c alone would let a frequent class win wherever
    it barely passes; the ratio p_c / t_c would favour low thresholds without bound. Ties go to the lower
    index. NaN (no view at all) is BACKGROUND. Raises ValueError unless the thresholds are (K,).
    """
    probabilities = np.asarray(probabilities_khw, dtype=np.float32)
    thresholds = np.asarray(thresholds_k, dtype=np.float32)
    if thresholds.shape != (probabilities.shape[-3],):
        raise ValueError(f"thresholds are {thresholds.shape} for probabilities {probabilities.shape}")
    excess = _logit(probabilities) - _logit(thresholds)[:, None, None]
    passing = probabilities >= thresholds[:, None, None]
    best = np.argmax(np.where(passing, excess, -np.inf), axis=-3).astype(np.uint8)
    return np.where(passing.any(axis=-3), best, np.uint8(BACKGROUND))


def _logit(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)


def choose_thresholds(scores_nk: npt.NDArray[np.floating], labels_n: ByteArray) -> npt.NDArray[np.float32]:
    """Thresholds (K,) that maximise each class's F1 on known pixels.

    `labels_n` holds class indices or BACKGROUND (a negative of every class), without unlabelled pixels. Of
    equally good thresholds, the middle of the gap below the lowest accepted score is chosen, so that chance
    does not decide about scores in the gap. A class without a positive pixel keeps 0.5. Raises ValueError for
    other labels.
    """
    scores = np.asarray(scores_nk, dtype=np.float32)
    n_classes = scores.shape[1]
    if np.any((labels_n >= n_classes) & (labels_n != BACKGROUND)):
        raise ValueError(f"labels must be 0..{n_classes - 1} or {BACKGROUND}, got {np.unique(labels_n)}")
    return np.array([_best_threshold(scores[:, k], labels_n == k) for k in range(n_classes)], np.float32)


def _best_threshold(scores_n: npt.NDArray[np.float32], positive_n: npt.NDArray[np.bool_]) -> float:
    positives = int(positive_n.sum())
    if not positives:
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores_n, kind="stable")
    ranked = scores_n[order]
    true_positives = np.cumsum(positive_n[order])
    accepted = np.arange(1, len(ranked) + 1)
    f1 = 2 * true_positives / (accepted + positives)
    cuts = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # between different scores only
    best = cuts[np.argmax(f1[cuts])]
    below = ranked[best + 1] if best + 1 < len(ranked) else np.float32(0)
    middle = np.float32((ranked[best] + below) / 2)
    return float(middle if middle > below else ranked[best])  # neighbouring floats have no middle


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

"""The published network by its description, in float64 numpy: names, shapes, preprocessing, forward.

It shares no code with the package: convolutions are sums of shifted products, and nothing here knows
of torch. Shapes have no batch axis: C channels, T months, H rows, W columns.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[Any]]
SENSORS = (("unet3d_s1", 2), ("unet3d_s2", 10))
EPS = 1e-5  # of batch normalisation


def layout(width: int = 64, stem: int = 32, months: int = 6, classes: int = 21) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the pretrained network's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def double(name: str, below: int, channels: int) -> None:
        for conv, inputs in ((0, below), (3, channels)):
            shapes[f"{name}.conv.{conv}.weight"] = (channels, inputs, 3, 3)
            norm(f"{name}.conv.{conv + 1}", channels)

    for sensor, bands in SENSORS:
        for conv, inputs, kernel in ((0, bands, (3, 3, 3)), (3, stem, (months, 1, 1))):
            shapes[f"{sensor}.conv3d.conv.{conv}.weight"] = (stem, inputs, *kernel)
            shapes[f"{sensor}.conv3d.conv.{conv}.bias"] = (stem,)
            norm(f"{sensor}.conv3d.conv.{conv + 1}", stem)
        below = stem
        for level in range(4):
            double(f"{sensor}.unet.downs.{level}", below, width << level)
            below = width << level
        double(f"{sensor}.unet.bottleneck", width * 8, width * 16)
        for step, level in enumerate((3, 2, 1, 0)):
            up = f"{sensor}.unet.ups.{2 * step}"
            shapes[f"{up}.weight"] = (width << (level + 1), width << level, 2, 2)
            shapes[f"{up}.bias"] = (width << level,)
            double(f"{sensor}.unet.ups.{2 * step + 1}", width << (level + 1), width << level)
    return shapes | {"final_conv.weight": (classes, 2 * width, 1, 1), "final_conv.bias": (classes,)}


def finetuned_layout(width: int = 64, stem: int = 32, months: int = 6) -> dict[str, tuple[int, ...]]:
    """Those of the fine-tuned one: the pretrained network, unused head and all, and a new head."""
    norm = {f"final_conv.conv.1.{name}": (32,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {
        "final_conv.conv.0.weight": (32, 2 * width, 3, 3),
        "final_conv.conv.0.bias": (32,),
        **norm,
        "final_conv.conv.1.num_batches_tracked": (),
        "final_conv.conv.3.weight": (8, 32, 1, 1),
        "final_conv.conv.3.bias": (8,),
        **{f"dualunet3d.{name}": shape for name, shape in layout(width, stem, months).items()},
    }


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Weights of a size that keeps signals through all layers; every bias and statistic differs."""
    rng = np.random.default_rng(seed)
    state: State = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7, np.int64)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:
            state[name] = rng.normal(0, 0.3, shape).astype(np.float32)
        else:
            inputs = np.prod(shape[1:])
            state[name] = rng.normal(0, np.sqrt(2 / inputs), shape).astype(np.float32)
    return state


def preprocess(s1_cthw: npt.NDArray[np.int16], s2_cthw: npt.NDArray[np.int16]) -> tuple[Array, Array]:
    """Stored integers (dB × 100, reflectance × 10,000, -32768 where nothing was seen) to inputs."""
    s1 = np.where(s1_cthw == -32768, 0, s1_cthw / 100.0)  # missing pixels 0 before all else
    s2 = np.where(s2_cthw == -32768, 0, s2_cthw / 10_000.0)
    s2 = np.clip(s2, 0.0001, 0.9999)
    s1 = np.clip(s1, -25, 10)
    for month in range(s1.shape[1]):
        low, high = s1[:, month].min(), s1[:, month].max()
        s1[:, month] = np.clip((s1[:, month] - low) / (high - low), 0.0001, 0.9999)
    return s1, s2


def probabilities(state: State, s1_cthw: Array, s2_cthw: Array, *, finetuned: bool) -> Array:
    """(K, H, W) of inputs (2, T, H, W) and (10, T, H, W)."""
    body = "dualunet3d." if finetuned else ""
    branches = []
    for (sensor, _bands), x in zip(SENSORS, (s1_cthw, s2_cthw), strict=True):
        branches.append(_unet(state, f"{body}{sensor}.unet", _stem(state, f"{body}{sensor}.conv3d", x)))
    x = np.concatenate(branches)
    if finetuned:
        x = _conv(x, *_weights(state, "final_conv.conv.0"), padding=1)
        x = np.maximum(_norm(state, "final_conv.conv.1", x), 0)
        logits = _conv(x, *_weights(state, "final_conv.conv.3"))
    else:
        logits = _conv(x, *_weights(state, "final_conv"))
    return 1 / (1 + np.exp(-logits))


def _stem(state: State, name: str, x_cthw: Array) -> Array:
    x = _conv(x_cthw, *_weights(state, f"{name}.conv.0"), padding=1)
    x = np.maximum(_norm(state, f"{name}.conv.1", x), 0)
    x = _conv(x, *_weights(state, f"{name}.conv.3"))
    x = np.maximum(_norm(state, f"{name}.conv.4", x), 0)
    assert x.shape[1] == 1  # one kernel over all months
    return x[:, 0]


def _unet(state: State, name: str, x: Array) -> Array:
    skips = []
    for level in range(4):
        x = _double(state, f"{name}.downs.{level}", x)
        skips.append(x)
        x = np.max([x[:, i::2, j::2] for i, j in product(range(2), repeat=2)], axis=0)
    x = _double(state, f"{name}.bottleneck", x)
    for step in range(4):
        x = _up(x, *_weights(state, f"{name}.ups.{2 * step}"))
        x = _double(state, f"{name}.ups.{2 * step + 1}", np.concatenate([skips.pop(), x]))
    return x


def _double(state: State, name: str, x: Array) -> Array:
    for conv in (0, 3):
        x = _conv(x, *_weights(state, f"{name}.conv.{conv}"), padding=1)
        x = np.maximum(_norm(state, f"{name}.conv.{conv + 1}", x), 0)
    return x


def _weights(state: State, name: str) -> Iterator[Array]:
    yield state[f"{name}.weight"].astype(np.float64)
    if f"{name}.bias" in state:
        yield state[f"{name}.bias"].astype(np.float64)


def _conv(x: Array, kernel: Array, bias: Array | float = 0.0, *, padding: int = 0) -> Array:
    """Cross-correlation over all axes but the first."""
    size = kernel.shape[2:]
    x = np.pad(x, [(0, 0), *[(padding, padding)] * len(size)])
    out = [n - k + 1 for n, k in zip(x.shape[1:], size, strict=True)]
    total = np.zeros((kernel.shape[0], *out))
    for at in product(*(range(k) for k in size)):
        part = x[(slice(None), *(slice(i, i + n) for i, n in zip(at, out, strict=True)))]
        total += np.tensordot(kernel[(slice(None), slice(None), *at)], part, axes=1)
    return total + np.reshape(bias, (-1, *[1] * len(size)))


def _up(x: Array, kernel: Array, bias: Array) -> Array:
    """Transposed convolution of 2 × 2 and stride 2: every pixel becomes a block."""
    _, height, width = x.shape
    total = np.zeros((kernel.shape[1], 2 * height, 2 * width))
    for i, j in product(range(2), repeat=2):
        total[:, i::2, j::2] = np.tensordot(kernel[:, :, i, j].T, x, axes=1)
    return total + bias[:, None, None]


def _norm(state: State, name: str, x: Array) -> Array:
    weight, bias, mean, variance = (
        state[f"{name}.{part}"].astype(np.float64).reshape(-1, *[1] * (x.ndim - 1))
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + EPS) * weight + bias

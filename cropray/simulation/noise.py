"""Random numbers that are a function of place: hashes of cell indices, and smooth fields from them.

Nothing here holds a state, so a tile computed alone equals the same pixels of a larger one.
Shapes: P pixels (any shape), N cells.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

NOISE_BITS = 16
"""Rows of the noise tables: 2^16, so that a table stays in the processor's cache."""


def hashed(seed: int, stream: str, *cells: npt.NDArray[np.integer] | int) -> Hashes:
    """64 random bits for each cell, independent between streams.

    The finalizer of SplitMix64 (Steele, Lea, Flood 2014), applied once for every index.
    """
    state = np.array([(seed * 0x9E3779B97F4A7C15 + _stream(stream)) % (1 << 64)], np.uint64)
    for cell in (0, *cells):
        index = np.atleast_1d(np.asarray(cell, np.int64)).view(np.uint64)
        state = _mixed(state ^ (index * np.uint64(0xD6E8FEB86659FD93) + np.uint64(0x9E3779B97F4A7C15)))
    return state


def uniform(seed: int, stream: str, *cells: npt.NDArray[np.integer] | int) -> Array:
    """In [0, 1), for each cell."""
    return (hashed(seed, stream, *cells) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, stream: str, *cells: npt.NDArray[np.integer] | int) -> Array:
    """Standard normal for each cell (Box and Muller 1958), cut at 2.5 standard deviations."""
    bits = hashed(seed, stream, *cells)
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    deviates: Array = np.clip(radius * np.cos(angle), -2.5, 2.5)
    return deviates


def smooth(seed: int, stream: str, x: Array, y: Array, wavelength: float, *keys: int) -> Array:
    """Value noise (P,) with mean 0 and standard deviation about 1, of one scale.

    `x`, `y` in metres. Values at the corners of a lattice of `wavelength` metres, joined by
    Perlin's quintic (Perlin 2002), so that the first two derivatives are continuous.
    """
    column, row = np.floor(x / wavelength), np.floor(y / wavelength)
    i, j = column.astype(np.int64), row.astype(np.int64)
    u, v = _quintic(x / wavelength - column), _quintic(y / wavelength - row)
    i0, j0 = int(i.min()), int(j.min())
    ii, jj = np.meshgrid(
        np.arange(i0, int(i.max()) + 2), np.arange(j0, int(j.max()) + 2), indexing="ij", sparse=True
    )
    corners = uniform(seed, stream, ii, jj, *keys) - 0.5
    across = corners.shape[1]
    flat, at = corners.ravel(), (i - i0) * across + (j - j0)
    near = flat[at] + (flat[at + 1] - flat[at]) * v
    far = flat[at + across] + (flat[at + across + 1] - flat[at + across]) * v
    # The variance of a uniform corner is 1/12; interpolation keeps a part of it (0.55 on average).
    noise: Array = (near + (far - near) * u) / np.sqrt(0.55 / 12.0)
    return noise


@lru_cache
def normal_rows(columns: int) -> npt.NDArray[np.float32]:
    """Table (2^NOISE_BITS, columns) of standard normal deviates, to be read by hashed index."""
    rows, column = np.arange(1 << NOISE_BITS)[:, None], np.arange(columns)
    return normal(0, "normal rows", rows, column).astype(np.float32)


@lru_cache
def gamma_rows(looks: float) -> npt.NDArray[np.float32]:
    """Table (2^NOISE_BITS, 2) of gamma deviates of mean 1 and variance 1 / looks.

    By Wilson and Hilferty's cube (1931), good to a few per cent from two looks on; the mean is
    set right exactly.
    """
    row, column = np.arange(1 << NOISE_BITS)[:, None], np.arange(2)
    deviate = normal(0, "gamma rows", row, column)
    cube = np.maximum(1 - 1 / (9 * looks) + deviate / np.sqrt(9 * looks), 0.02) ** 3
    rows: npt.NDArray[np.float32] = (cube / cube.mean(axis=0)).astype(np.float32)
    return rows


def scene_rows(pixels: npt.NDArray[np.uint32], seed: int, stream: str, day: int) -> npt.NDArray[np.uint32]:
    """Row of a noise table for each pixel in one scene, from the pixels' own hash (P,)."""
    key = hashed(seed, stream, day)[0] & np.uint64((1 << NOISE_BITS) - 1)
    return pixels ^ np.uint32(key)


@lru_cache
def _stream(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mixed(bits: Hashes) -> Hashes:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _quintic(t: Array) -> Array:
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)

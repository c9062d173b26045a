"""Random numbers that are functions of place: hashes of cell indices, and smooth fields made from them.

Nothing here holds a state, so a tile that is computed alone equals the same pixels of a larger one.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.types import DoubleArray, FloatArray

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Cells = npt.NDArray[np.integer] | int
Array = npt.NDArray[Any]

NOISE_BITS = 16
"""Noise tables have 2^16 rows, so that they stay in the processor's cache."""


def hashed(seed: int, stream: str, *cells: Cells) -> Hashes:
    """64 random bits for each cell, independent between streams.

    The finalizer of SplitMix64 (Steele, Lea, Flood 2014), applied once for every index.
    """
    state = np.array([(seed * 0x9E3779B97F4A7C15 + _stream(stream)) % (1 << 64)], np.uint64)
    for cell in (0, *cells):
        index = np.atleast_1d(np.asarray(cell, np.int64)).view(np.uint64)
        state = _mixed(state ^ (index * np.uint64(0xD6E8FEB86659FD93) + np.uint64(0x9E3779B97F4A7C15)))
    return state


def uniform(seed: int, stream: str, *cells: Cells) -> DoubleArray:
    """A number in [0, 1) for each cell."""
    return (hashed(seed, stream, *cells) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, stream: str, *cells: Cells) -> DoubleArray:
    """A standard normal deviate for each cell (Box and Muller 1958), cut at 2.5 standard deviations."""
    bits = hashed(seed, stream, *cells)
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    deviates: DoubleArray = np.clip(radius * np.cos(angle), -2.5, 2.5)
    return deviates


def smooth(
    seed: int, stream: str, x: DoubleArray, y: DoubleArray, wavelength: float, *keys: int
) -> DoubleArray:
    """Value noise of one scale at `x`, `y` (metres), with mean 0 and standard deviation about 1.

    Perlin's quintic (Perlin 2002) joins values at the corners of a lattice of `wavelength` metres, so
    that the first two derivatives are continuous.
    """
    column, row = np.floor(x / wavelength), np.floor(y / wavelength)
    i, j = column.astype(np.int64), row.astype(np.int64)
    u, v = _quintic(x / wavelength - column), _quintic(y / wavelength - row)
    i0, j0 = int(i.min()), int(j.min())
    ii, jj = np.meshgrid(
        np.arange(i0, int(i.max()) + 2), np.arange(j0, int(j.max()) + 2), indexing="ij", sparse=True
    )
    corners = uniform(seed, stream, ii, jj, *keys) - 0.5
    noise: DoubleArray = bilinear(corners, (i - i0) * corners.shape[1] + (j - j0), u, v)
    noise /= np.sqrt(0.55 / 12.0)  # a uniform corner's variance is 1/12; interpolation keeps 0.55 on average
    return noise


def bilinear(corners: Array, at: Array, u: Array, v: Array) -> Array:
    """Values between the corners (rows, columns) of a lattice, at P places.

    `at` (P,) is the flat index of the corner before each place; `u` and `v` (P,) in [0, 1) are the steps
    from there along rows and along columns.
    """
    across, flat = corners.shape[1], corners.ravel()
    near = flat[at] + (flat[at + 1] - flat[at]) * v
    far = flat[at + across] + (flat[at + across + 1] - flat[at + across]) * v
    between: Array = near + (far - near) * u
    return between


@cache
def normal_rows(columns: int) -> FloatArray:
    """A table (2^NOISE_BITS, columns) of standard normal deviates."""
    rows, column = np.arange(1 << NOISE_BITS)[:, None], np.arange(columns)
    return normal(0, "normal rows", rows, column).astype(np.float32)


@cache
def gamma_rows(looks: float) -> FloatArray:
    """A table (2^NOISE_BITS, 2) of gamma deviates of mean 1 and variance 1 / looks.

    The cube of Wilson and Hilferty (1931), good to a few per cent from two looks on, with an exact mean.
    """
    row, column = np.arange(1 << NOISE_BITS)[:, None], np.arange(2)
    deviate = normal(0, "gamma rows", row, column)
    cube = np.maximum(1 - 1 / (9 * looks) + deviate / np.sqrt(9 * looks), 0.02) ** 3
    rows: FloatArray = (cube / cube.mean(axis=0)).astype(np.float32)
    return rows


def scene_rows(pixels: npt.NDArray[np.uint32], seed: int, stream: str, day: int) -> npt.NDArray[np.uint32]:
    """The row of a noise table for each pixel in one scene, from the pixels' own hashes (P,)."""
    key = hashed(seed, stream, day)[0] & np.uint64((1 << NOISE_BITS) - 1)
    return pixels ^ np.uint32(key)


@cache
def _stream(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mixed(bits: Hashes) -> Hashes:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _quintic(t: DoubleArray) -> DoubleArray:
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)

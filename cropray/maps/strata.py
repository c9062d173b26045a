"""The strata of a map, their pixels and hectares by administrative unit, and random pixels of them.

A stratum is a class of the map, or the sure or the unsure part of one. Maps are read block by block, so
memory does not grow with them. Shape suffixes: U units, H strata, V = 256 values of a class map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.figures.crops import class_names
from cropray.grid import Grid, Window
from cropray.maps.mosaic import MAP, SCORES, pixel_hectares
from cropray.maps.tables import WHOLE
from cropray.maps.tiles import NODATA
from cropray.rasters import burn, read_grid, read_window
from cropray.types import BACKGROUND, ByteArray, DoubleArray, IndexArray

_BLOCK = 512  # pixels a side of what is read at once
_LEVELS = 101  # of the confidence, in per cent
_UNSURE_SHARE = 1 / 3  # of the pixels of a class
_MOST_UNITS = 254  # that fit a byte


@dataclass(frozen=True)
class Stratum:
    """A part of a map: the pixels of a class whose confidence is in [low, high], in per cent."""

    value: int
    low: int
    high: int
    pixels: int
    hectares: float


@dataclass(frozen=True)
class Units:
    """Administrative units: names, and geometries with their index, in the CRS of the map."""

    names: tuple[str, ...] = ()
    shapes: tuple[tuple[Any, int], ...] = field(default=(), repr=False)

    def at(self, grid: Grid) -> ByteArray:
        """(H, W): the number of the unit, from 1, that contains the centre of a pixel; 0 for none."""
        return burn(((shape, index + 1) for shape, index in self.shapes), grid, 0)


def read_units(file: str, name_field: str, crs: str) -> Units:
    """The units of a vector file of polygons. Features with the same name are one unit.

    Raises InputError for an unusable file or column, and for more than 254 units.
    """
    from cropray.rois.shapes import mend, reproject
    from cropray.rois.vectors import read_features

    path = Path(file).expanduser()
    if not path.exists():
        raise InputError(f"--units {file!r} does not exist. Give a vector file of polygons.")
    frame = reproject(read_features(path, [name_field], layer_setting=""), crs, path)
    names = frame[name_field].astype(str).str.strip()
    unique = tuple(dict.fromkeys(names))
    if len(unique) > _MOST_UNITS:
        raise InputError(
            f"{path} has {len(unique)} units in {name_field!r}; at most {_MOST_UNITS} are possible. Name a "
            "column of larger units, or divide the file."
        )
    if WHOLE in unique:
        raise InputError(f"{path} has a unit named {WHOLE!r}, which stands for the whole map. Rename it.")
    geometries, _ = mend(frame.geometry.to_numpy())
    numbers = names.map({name: index for index, name in enumerate(unique)})
    shapes = zip(geometries, numbers, strict=True)
    return Units(unique, tuple((shape, int(n)) for shape, n in shapes if shape is not None))


def mapped(path: str, units: Units) -> tuple[IndexArray, DoubleArray]:
    """Pixels and hectares (U + 1, V) of the values of a class map, by unit; row 0 is the whole map."""
    grid, size = read_grid(path), 256 * (len(units.names) + 1)
    pixels, hectares = np.zeros(size, np.intp), np.zeros(size)
    for block in grid.blocks(_BLOCK):
        class_hw = read_window(path, block)[0]
        if (class_hw == NODATA).all():
            continue
        part = grid.window(block)
        cell = (units.at(part).astype(np.intp) * 256 + class_hw).ravel()
        pixels += np.bincount(cell, minlength=size)
        hectares += np.bincount(cell, pixel_hectares(part).ravel(), minlength=size)
    pixels_uv, hectares_uv = pixels.reshape(-1, 256), hectares.reshape(-1, 256)
    pixels_uv[0], hectares_uv[0] = pixels_uv.sum(axis=0), hectares_uv.sum(axis=0)  # with what is in no unit
    return pixels_uv, hectares_uv


def define_strata(folder: Path, classes: Sequence[str], least: int) -> list[Stratum]:
    """The strata of a map: of each class the least confident third of the pixels, and the rest.

    A class with fewer than 2 x `least` pixels in either part is one stratum, and so is every class if the map
    has no probabilities. Raises InputError for a map without pixels.
    """
    size = 256 * _LEVELS
    pixels, hectares = np.zeros(size, np.intp), np.zeros(size)
    for part, class_hw, percent_hw in _blocks(folder):
        cell = (class_hw.astype(np.intp) * _LEVELS + percent_hw).ravel()
        pixels += np.bincount(cell, minlength=size)
        hectares += np.bincount(cell, pixel_hectares(part).ravel(), minlength=size)
    pixels_vl, hectares_vl = pixels.reshape(256, -1), hectares.reshape(256, -1)
    strata = []
    for value in class_names(classes):
        cumulative = np.cumsum(pixels_vl[value])
        total = int(cumulative[-1])
        if not total:
            continue
        cut = int(np.searchsorted(cumulative, _UNSURE_SHARE * total))
        unsure = int(cumulative[cut])
        split = min(unsure, total - unsure) >= 2 * least
        for low, high in ((0, cut), (cut + 1, _LEVELS - 1)) if split else ((0, _LEVELS - 1),):
            levels = slice(low, high + 1)
            counts = int(pixels_vl[value, levels].sum()), float(hectares_vl[value, levels].sum())
            strata.append(Stratum(value, low, high, *counts))
    if not strata:
        raise InputError(f"{folder / MAP} has no mapped pixel: there is nothing to sample.")
    return strata


def draw(
    folder: Path, strata: Sequence[Stratum], points_h: IndexArray, seed: int
) -> list[tuple[int, int, int]]:
    """Row, column and stratum of random pixels, `points_h` of each stratum, without replacement, shuffled."""
    rng = np.random.default_rng(seed)
    wanted = [
        np.sort(rng.choice(stratum.pixels, number, replace=False))
        for stratum, number in zip(strata, points_h, strict=True)
    ]
    grid, passed = read_grid(str(folder / MAP)), [0] * len(strata)
    found: list[tuple[int, int, int]] = []
    for part, class_hw, percent_hw in _blocks(folder):
        row0, col0 = (
            round((grid.y0 - part.y0) / grid.resolution),
            round((part.x0 - grid.x0) / grid.resolution),
        )
        for number, stratum in enumerate(strata):
            levels = (percent_hw >= stratum.low) & (percent_hw <= stratum.high)
            rows, cols = np.nonzero((class_hw == stratum.value) & levels)
            first, last = np.searchsorted(wanted[number], (passed[number], passed[number] + len(rows)))
            picked = wanted[number][first:last] - passed[number]
            places = zip(rows[picked] + row0, cols[picked] + col0, strict=True)
            found += [(int(row), int(col), number) for row, col in places]
            passed[number] += len(rows)
    order = rng.permutation(len(found))
    return [found[index] for index in order]


def class_index(classes: Sequence[str]) -> npt.NDArray[np.intp]:
    """(V,): the number of the class of a value of a map; "none" is the last, and nodata has -1."""
    index = np.full(256, -1, np.intp)
    index[: len(classes)] = np.arange(len(classes))
    index[BACKGROUND] = len(classes)
    return index


def _blocks(folder: Path) -> Iterator[tuple[Grid, ByteArray, ByteArray]]:
    """Grid, classes (H, W) and confidence (H, W) of the parts of a map that hold a pixel."""
    path, probabilities = str(folder / MAP), folder / SCORES
    grid = read_grid(path)
    for block in grid.blocks(_BLOCK):
        class_hw: ByteArray = read_window(path, block)[0]
        if (class_hw == NODATA).all():
            continue
        confidence_hw = np.full(class_hw.shape, _LEVELS - 1, np.uint8)
        if probabilities.exists():
            confidence_hw = confidence(class_hw, read_window(str(probabilities), block))
        yield grid.window(block), class_hw, confidence_hw


def confidence(class_hw: ByteArray, percent_khw: ByteArray) -> ByteArray:
    """(H, W), 0..100: by how much the score of the mapped class is ahead of the others' best.

    For "none of the classes" it is what the best score lacks to 100. Nodata has 0.
    """
    scores_khw = percent_khw.astype(np.int16)
    own_hw = np.where(class_hw < len(scores_khw), class_hw, 0).astype(np.intp)[None]
    own = np.take_along_axis(scores_khw, own_hw, axis=0)[0]
    others_khw = scores_khw.copy()
    np.put_along_axis(others_khw, own_hw, -1, axis=0)
    ahead_hw = np.where(class_hw == BACKGROUND, 100 - scores_khw.max(axis=0), own - others_khw.max(axis=0))
    return np.where(class_hw == NODATA, 0, np.clip(ahead_hw, 0, 100)).astype(np.uint8)


def at_pixels(
    grid: Grid, rows: IndexArray, cols: IndexArray, read: Callable[[Window], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Values (N,) of pixels, from a function that gives those (H, W) of a window."""
    blocks = rows // _BLOCK, cols // _BLOCK
    values: dict[int, Any] = {}
    for row, col in sorted(set(zip(*(block.tolist() for block in blocks), strict=True))):
        top, left = row * _BLOCK, col * _BLOCK
        block = Window(top, left, min(_BLOCK, grid.height - top), min(_BLOCK, grid.width - left))
        value_hw = read(block)
        for number in np.flatnonzero((blocks[0] == row) & (blocks[1] == col)).tolist():
            values[number] = value_hw[rows[number] - top, cols[number] - left]
    return np.array([values[number] for number in range(len(rows))])

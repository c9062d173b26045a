"""Pixel grids and the windows in them. Imagery and labels of an ROI share one grid: nothing is resized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError

if TYPE_CHECKING:
    from pyproj import Transformer

Bounds = tuple[float, float, float, float]
_LARGEST_DEG = 0.1  # of a pixel: 11 km


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels of a grid."""

    row: int
    col: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row below the last row."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """The column to the right of the last column."""
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.row, self.bottom), slice(self.col, self.right)

    def within(self, outer: Window) -> Window:
        """The same window, its position relative to the upper-left pixel of `outer`."""
        return Window(self.row - outer.row, self.col - outer.col, self.height, self.width)

    def beyond(self, outer: Window) -> Window:
        """The inverse of `within`."""
        return Window(self.row + outer.row, self.col + outer.col, self.height, self.width)

    def overlaps(self, other: Window) -> bool:
        """Whether the windows have a pixel in common."""
        rows = self.row < other.bottom and other.row < self.bottom
        return rows and self.col < other.right and other.col < self.right

    def shared(self, other: Window) -> Window:
        """The common pixels of two windows that overlap."""
        assert self.overlaps(other)
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(row, col, min(self.bottom, other.bottom) - row, min(self.right, other.right) - col)

    @staticmethod
    def around(windows: Iterable[Window]) -> Window:
        """The smallest window that contains all of these."""
        rows, cols, bottoms, rights = zip(*((w.row, w.col, w.bottom, w.right) for w in windows), strict=True)
        return Window(min(rows), min(cols), max(bottoms) - min(rows), max(rights) - min(cols))


@dataclass(frozen=True)
class Grid:
    """North-up square pixels. `x0`, `y0` is the upper-left corner. Lengths are in units of `crs`."""

    crs: str
    x0: float
    y0: float
    resolution: float
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or not self.resolution > 0:
            raise InputError(f"a grid needs a positive size and a positive resolution, got {self}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def bounds(self) -> Bounds:
        min_y = self.y0 - self.height * self.resolution
        return self.x0, min_y, self.x0 + self.width * self.resolution, self.y0

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f): x = a·col + b·row + c, y = d·col + e·row + f."""
        return self.resolution, 0.0, self.x0, 0.0, -self.resolution, self.y0

    def window(self, window: Window) -> Grid:
        """The grid of `window`, which may reach beyond the edges of this grid."""
        return replace(
            self,
            x0=self.x0 + window.col * self.resolution,
            y0=self.y0 - window.row * self.resolution,
            height=window.height,
            width=window.width,
        )

    def centres(self) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """x (W,) and y (H,) of the pixel centres."""
        x = self.x0 + (np.arange(self.width) + 0.5) * self.resolution
        y = self.y0 - (np.arange(self.height) + 0.5) * self.resolution
        return x, y

    def blocks(self, size: int) -> Iterator[Window]:
        """Windows of at most `size` x `size` pixels that cover each pixel once, row by row."""
        for row in range(0, self.height, size):
            for col in range(0, self.width, size):
                yield Window(row, col, min(size, self.height - row), min(size, self.width - col))

    def outline_in(self, crs: str, per_side: int = 16) -> npt.NDArray[np.floating]:
        """The closed outline (N, 2) in another CRS, each side divided into `per_side` straight steps."""
        min_x, min_y, max_x, max_y = self.bounds
        along = np.linspace(0, 1, per_side, endpoint=False)
        x = np.concatenate([along, np.ones(per_side), 1 - along, np.zeros(per_side), [0]])
        y = np.concatenate([np.zeros(per_side), along, np.ones(per_side), 1 - along, [0]])
        to_crs = transformer(self.crs, crs)
        return np.column_stack(to_crs.transform(min_x + x * (max_x - min_x), min_y + y * (max_y - min_y)))

    @classmethod
    def covering(
        cls,
        bounds: Bounds,
        bounds_crs: str,
        *,
        crs: str = "utm",
        resolution: float = 10.0,
        snap: float = 20.0,
        min_size: int = 1,
    ) -> Grid:
        """The smallest grid that covers `bounds` and has its corners at multiples of `snap`.

        `crs="utm"` means the UTM zone of the centre. A snap of 20 m makes the 20 m bands of Sentinel-2
        nest exactly in the 10 m bands. A side shorter than `min_size` pixels grows evenly at both ends.
        Raises InputError for pixels of whole degrees: metres are meant.
        """
        if crs == "utm":
            crs = utm_crs(bounds, bounds_crs)
        if resolution > _LARGEST_DEG and is_geographic(crs):
            raise InputError(
                f"grid.resolution is {resolution:g}: degrees, as grid.crs is {crs}. Set grid.crs=utm, "
                "or grid.resolution and grid.snap in degrees, such as 0.0001."
            )
        min_x, min_y, max_x, max_y = transform_bounds(bounds, bounds_crs, crs)
        x0, width = _snapped(min_x, max_x, snap, resolution, min_size)
        y1, height = _snapped(min_y, max_y, snap, resolution, min_size)
        return cls(crs, x0, y1 + height * resolution, resolution, height, width)


def _snapped(low: float, high: float, snap: float, resolution: float, min_size: int) -> tuple[float, int]:
    """The snapped lower edge and the number of pixels of one axis."""
    missing = min_size * resolution - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    # A millionth of a pixel of slack keeps bounds that were exact before a reprojection.
    slack = 1e-6 * resolution
    first = math.floor((low + slack) / snap) * snap
    last = math.ceil((high - slack) / snap) * snap
    return first, max(min_size, round((last - first) / resolution))


def transform_bounds(bounds: Bounds, src_crs: str, dst_crs: str) -> Bounds:
    """Bounds in another CRS. Edges are densified, since they may bend there.

    Longitudes of bounds that cross 180° run past it: west < east always.
    """
    if src_crs == dst_crs:
        return bounds
    min_x, min_y, max_x, max_y = transformer(src_crs, dst_crs).transform_bounds(*bounds, densify_pts=21)
    return min_x, min_y, max_x + 360 * (max_x < min_x), max_y


def lonlat(
    crs: Sequence[str], x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Longitude and latitude (N, 2) of points, each in its own system."""
    out = np.empty((len(crs), 2))
    names = np.array(crs)
    for name in np.unique(names).tolist():
        mine = names == name
        out[mine] = np.stack(transformer(name, "EPSG:4326").transform(x[mine], y[mine]), axis=1)
    return out


@lru_cache(maxsize=64)
def transformer(src_crs: str, dst_crs: str) -> Transformer:
    """Takes x, y and longitude, latitude. Making one takes as long as a million pixels; threads share it."""
    from pyproj import Transformer

    return Transformer.from_crs(src_crs, dst_crs, always_xy=True)


@lru_cache(maxsize=64)
def is_geographic(crs: str) -> bool:
    """Whether its coordinates are degrees."""
    from pyproj import CRS

    return bool(CRS.from_user_input(crs).is_geographic)


def utm_crs(bounds: Bounds, crs: str) -> str:
    """EPSG code of the UTM zone of the centre of the bounds.

    Zones are 6 degrees wide everywhere: the exceptions around Norway and Svalbard are ignored.
    """
    west, south, east, north = transform_bounds(bounds, crs, "EPSG:4326")
    zone = int(((west + east) / 2 + 180) % 360 // 6) + 1
    return f"EPSG:{(32600 if south + north >= 0 else 32700) + zone}"


def choose_overlap(length: int, size: int, max_overlap: int) -> int:
    """The smallest overlap of 0..max_overlap pixels that leaves the fewest pixels uncovered.

    Windows of `size` pixels lie along `length` pixels at a stride of `size - overlap`.
    """
    return min(range(max_overlap + 1), key=lambda overlap: (length - size) % (size - overlap))


def regular_end(length: int, size: int, max_overlap: int) -> int:
    """How many of `length` pixels the windows of `choose_overlap` cover."""
    return length - (length - size) % (size - choose_overlap(length, size, max_overlap))


def plan_starts(length: int, size: int, max_overlap: int) -> list[int]:
    """First pixels, ascending, of windows of `size` pixels that cover every pixel of an axis.

    The windows follow `choose_overlap`. If they leave pixels uncovered, one more window ends at the
    far edge; it may overlap its neighbour by more than `max_overlap`. Without it, an ROI of one and a
    half patches would lose a third of its labels along that axis. Needs `max_overlap` < `size` <= `length`.
    """
    assert 0 <= max_overlap < size <= length, (length, size, max_overlap)
    stride = size - choose_overlap(length, size, max_overlap)
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] + size == length else [*starts, length - size]


def mosaic(
    values_nkhw: npt.NDArray[np.floating],
    windows: Sequence[Window],
    shape: tuple[int, int],
    weights_hw: npt.NDArray[np.floating] | float = 1.0,
) -> npt.NDArray[np.float32]:
    """Patches (N, K, h, w) merged into a raster (K, *shape): their weighted mean where they overlap.

    `weights_hw` are those of the pixels of a patch. Pixels outside all windows are NaN, and so is a
    pixel that is NaN in any patch. Raises ValueError unless there is one window per patch.
    """
    if len(values_nkhw) != len(windows):
        raise ValueError(f"{len(values_nkhw)} patches for {len(windows)} windows")
    total = np.zeros((values_nkhw.shape[1], *shape), np.float32)
    weight = np.zeros(shape, np.float32)
    for values_khw, window in zip(values_nkhw, windows, strict=True):
        rows, cols = window.slices
        total[:, rows, cols] += values_khw * weights_hw
        weight[rows, cols] += weights_hw
    weight[weight == 0] = np.nan
    return total / weight

"""Grid: the one pixel grid that an ROI's imagery and labels share, so nothing is ever resized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels of a grid."""

    row: int
    col: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row below the last."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """The column beyond the last."""
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.row, self.bottom), slice(self.col, self.right)

    def within(self, outer: Window) -> Window:
        """The window reckoned from the upper-left pixel of `outer`."""
        return Window(self.row - outer.row, self.col - outer.col, self.height, self.width)

    def overlaps(self, other: Window) -> bool:
        """Whether a pixel lies in both."""
        rows = self.row < other.bottom and other.row < self.bottom
        return rows and self.col < other.right and other.col < self.right

    def shared(self, other: Window) -> Window:
        """The pixels that lie in both, of which there must be one."""
        assert self.overlaps(other)
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(row, col, min(self.bottom, other.bottom) - row, min(self.right, other.right) - col)

    @staticmethod
    def around(windows: Iterable[Window]) -> Window:
        """The smallest window that holds all of these."""
        rows, cols, bottoms, rights = zip(*((w.row, w.col, w.bottom, w.right) for w in windows), strict=True)
        row, col = min(rows), min(cols)
        return Window(row, col, max(bottoms) - row, max(rights) - col)


@dataclass(frozen=True)
class Grid:
    """North-up square pixels: `x0`, `y0` is the upper-left corner, lengths in units of `crs`."""

    crs: str
    x0: float
    y0: float
    resolution: float
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or not self.resolution > 0:
            raise InputError(f"a grid needs a positive size and resolution, got {self}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def bounds(self) -> Bounds:
        return (
            self.x0,
            self.y0 - self.height * self.resolution,
            self.x0 + self.width * self.resolution,
            self.y0,
        )

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f): x = a·col + b·row + c, y = d·col + e·row + f."""
        return self.resolution, 0.0, self.x0, 0.0, -self.resolution, self.y0

    def window(self, window: Window) -> Grid:
        """The part of this grid that `window` covers (it may reach beyond the edges)."""
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
        """Windows of at most `size` pixels a side that cover the grid once, row by row."""
        for row in range(0, self.height, size):
            for col in range(0, self.width, size):
                yield Window(row, col, min(size, self.height - row), min(size, self.width - col))

    def bounds_in(self, crs: str) -> Bounds:
        """The bounds in another CRS, edges densified."""
        return transform_bounds(self.bounds, self.crs, crs)

    def outline_in(self, crs: str, per_side: int = 16) -> npt.NDArray[np.floating]:
        """The closed outline (N, 2) in another CRS; each side is `per_side` straight steps there."""
        from pyproj import Transformer

        min_x, min_y, max_x, max_y = self.bounds
        along = np.linspace(0, 1, per_side, endpoint=False)
        x = np.concatenate([along, np.ones(per_side), 1 - along, np.zeros(per_side), [0]])
        y = np.concatenate([np.zeros(per_side), along, np.ones(per_side), 1 - along, [0]])
        to_crs = Transformer.from_crs(self.crs, crs, always_xy=True)
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
        """The smallest grid over `bounds` whose corners are multiples of `snap`.

        `crs="utm"` takes the UTM zone of the centre. Snapping to 20 m makes the 20 m bands of
        Sentinel-2 nest exactly in the 10 m ones. A side shorter than `min_size` pixels is widened
        evenly.
        """
        if crs == "utm":
            crs = utm_crs(bounds, bounds_crs)
        min_x, min_y, max_x, max_y = transform_bounds(bounds, bounds_crs, crs)
        x0, width = _snapped(min_x, max_x, snap, resolution, min_size)
        y1, height = _snapped(min_y, max_y, snap, resolution, min_size)
        return cls(crs, x0, y1 + height * resolution, resolution, height, width)


def _snapped(low: float, high: float, snap: float, resolution: float, min_size: int) -> tuple[float, int]:
    """Snapped lower edge and pixel count of one axis."""
    missing = min_size * resolution - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    # A millionth of a pixel of slack: bounds that were exact before a reprojection stay so.
    slack = 1e-6 * resolution
    first = math.floor((low + slack) / snap) * snap
    last = math.ceil((high - slack) / snap) * snap
    return first, max(min_size, round((last - first) / resolution))


def transform_bounds(bounds: Bounds, src_crs: str, dst_crs: str) -> Bounds:
    """Bounds in another CRS (pyproj densifies the edges)."""
    from pyproj import Transformer

    if src_crs == dst_crs:
        return bounds
    transformer = Transformer.from_crs(src_crs, dst_crs, always_xy=True)
    min_x, min_y, max_x, max_y = transformer.transform_bounds(*bounds, densify_pts=21)
    return min_x, min_y, max_x, max_y


def utm_crs(bounds: Bounds, crs: str) -> str:
    """EPSG code of the UTM zone in which the centre of the bounds lies.

    Plain zones of 6 degrees, without the exceptions around Norway and Svalbard.
    """
    west, south, east, north = transform_bounds(bounds, crs, "EPSG:4326")
    zone = min(60, int(((west + east) / 2 + 180) // 6) + 1)
    return f"EPSG:{(32600 if south + north >= 0 else 32700) + zone}"


def choose_overlap(length: int, size: int, max_overlap: int) -> int:
    """The overlap of 0..max_overlap pixels that leaves the fewest pixels over, the first such.

    Windows of `size` are laid along `length` pixels at a stride of `size - overlap`.
    """
    return min(range(max_overlap + 1), key=lambda overlap: (length - size) % (size - overlap))


def regular_end(length: int, size: int, max_overlap: int) -> int:
    """How many of `length` pixels the windows of `choose_overlap` cover; the rest is the remainder."""
    return length - (length - size) % (size - choose_overlap(length, size, max_overlap))


def plan_starts(length: int, size: int, max_overlap: int) -> list[int]:
    """First pixels of the windows along one axis, ascending; together they cover every pixel.

    The windows are those of `choose_overlap`; where these leave pixels over, one more window lies
    flush with the far edge (it may overlap its neighbour by more than `max_overlap`). Leaving the
    remainder out instead would lose its labels: up to half a patch a side, which of an ROI of one
    and a half patches is a third of the area. Raises InputError for a length below `size`.
    """
    if length < size:
        raise InputError(f"{length} pixels are too few for a patch of {size}; widen the ROI's grid")
    if not 0 <= max_overlap < size:
        raise InputError(f"patches of {size} can overlap by 0 to {size - 1} pixels, got {max_overlap}")
    stride = size - choose_overlap(length, size, max_overlap)
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] + size == length else [*starts, length - size]


def mosaic(
    values_nkhw: npt.NDArray[np.floating], windows: Sequence[Window], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Patches laid at their windows on a raster (K, *shape): the mean where they overlap.

    Pixels under no window are NaN; a NaN in one patch makes the pixel NaN.
    """
    if len(values_nkhw) != len(windows):
        raise ValueError(f"{len(values_nkhw)} patches for {len(windows)} windows")
    total = np.zeros((values_nkhw.shape[1], *shape), np.float32)
    count = np.zeros(shape, np.float32)
    for values_khw, window in zip(values_nkhw, windows, strict=True):
        rows, cols = window.slices
        total[:, rows, cols] += values_khw
        count[rows, cols] += 1
    count[count == 0] = np.nan
    return total / count

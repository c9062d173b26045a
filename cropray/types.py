"""The frozen types that travel between the stages; data flows downward through them only.

Shape suffixes: T months (oldest first), C bands, H rows (north to south), W columns (west to east),
B samples. A mask's True always means valid. Importing this module needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.grid import Grid

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int16]
ByteArray = npt.NDArray[np.uint8]

BACKGROUND = 254
"""Label of a pixel known to be none of the classes: a negative of every class."""

UNLABELLED = 255
"""Label of a pixel of which nothing is known; what a loss does with it is the recipe's choice."""


@dataclass(frozen=True)
class Period:
    """A half-open interval of days [start, end)."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise InputError(f"a period must end after it starts, got {self.start} to {self.end}")

    def __contains__(self, when: datetime | date) -> bool:
        day = when.date() if isinstance(when, datetime) else when
        return self.start <= day < self.end


@dataclass(frozen=True)
class Roi:
    """A region of interest: where to look, for which crop, in which season.

    `crop` is empty for regions whose every pixel is labelled (pretraining). `bounds` is
    (min x, min y, max x, max y) in `crs`. Dates are None where they are not known.
    """

    roi_id: str
    crop: str
    season: str
    province: str
    country: str
    split: str
    bounds: tuple[float, float, float, float]
    crs: str
    planting_start: date | None = None
    planting_end: date | None = None
    harvest_start: date | None = None
    harvest_end: date | None = None


@dataclass(frozen=True)
class CompositeRecipe:
    """How scenes become one image a period. Field meanings stand in `config.CompositeConfig`."""

    scl_invalid: tuple[int, ...] = (0, 1, 3, 8, 9, 10, 11)
    s1_passes: tuple[str, ...] = ("ascending", "descending")
    cloud_score: float | None = None


@dataclass(frozen=True)
class ImageRequest:
    """What a source is asked for: composites of `periods` on `grid`.

    `extent` is the grid of the whole ROI. Decisions that must not differ between the tiles of one
    ROI (which pass, which orbit first) are taken on it, so that tile borders never show.
    `not_after` is the as-of date: no scene later than that day may be used. `maps` are maps of
    codes that the source offers by name, such as "eucropmap". `name` stands in messages only.
    """

    grid: Grid
    extent: Grid
    periods: tuple[Period, ...]
    recipe: CompositeRecipe = CompositeRecipe()
    not_after: date | None = None
    maps: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        latest = self.periods[-1].end
        if self.not_after is not None and latest.toordinal() - 1 > self.not_after.toordinal():
            raise InputError(
                f"the last period ends on {latest} (exclusive), after the as-of date {self.not_after}"
            )


@dataclass(frozen=True)
class Composite:
    """One image a period and sensor, on one grid. Values under an invalid pixel mean nothing.

    `scenes` counts what went in, by sensor and period (keys "s2", "s1"), for the ledger; a source
    that does not know leaves it empty. `maps` are the codes (H, W) of the maps of the request,
    nearest neighbour, 0 where a map says nothing.
    """

    grid: Grid
    periods: tuple[Period, ...]
    s2_tchw: FloatArray  # surface reflectance, 0..1 (a little more over bright targets)
    s1_tchw: FloatArray  # backscatter, dB
    s2_valid_thw: BoolArray
    s1_valid_thw: BoolArray
    scenes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    maps: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = (len(self.periods), self.grid.height, self.grid.width)
        for name, values, valid in (
            ("s2", self.s2_tchw, self.s2_valid_thw),
            ("s1", self.s1_tchw, self.s1_valid_thw),
        ):
            if valid.shape != size or (values.shape[0], *values.shape[2:]) != size:
                raise ValueError(
                    f"{name} is {values.shape} with mask {valid.shape}; wanted (T, C, H, W) and (T, H, W) "
                    f"with T, H, W = {size}"
                )


@dataclass(frozen=True)
class Patch:
    """One sample as it is stored: scaled integers, `bands.NODATA` where there is no valid view."""

    sample_id: str
    row: int  # upper-left pixel in the ROI's grid
    col: int
    s2_cthw: IntArray
    s1_cthw: IntArray
    label_hw: ByteArray  # class index, BACKGROUND or UNLABELLED
    truth_hw: ByteArray | None = None  # the same where every pixel is known, for evaluation only


@dataclass(frozen=True)
class Batch:
    """What a reader yields: stored integers and the scalar columns of their rows.

    Arrays are numpy; `models.normalisation` turns them into float tensors on a device, together with
    their validity. Of a reader that normalises itself, s1 and s2 are float32.
    """

    s1_bcthw: IntArray
    s2_bcthw: IntArray
    label_bhw: ByteArray
    truth_bhw: ByteArray | None
    crop_b: npt.NDArray[np.int64]  # class index of the ROI's own crop, -1 for none
    rows: Mapping[str, list[Any]]  # scalar columns by name, one value a sample
    valid_b2thw: IntArray | None = None  # of normalised batches: 1 where s2 (channel 0), s1 (1) is valid

    def __len__(self) -> int:
        return len(self.label_bhw)

"""The frozen types that stages pass to each other.

Shape suffixes: T months (oldest first), C bands, H rows (north to south), W columns (west to east),
B samples. True in a mask always means valid. Importing this module needs numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cropray.errors import InputError
from cropray.grid import Grid, lonlat

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int16]
ByteArray = npt.NDArray[np.uint8]

Precision = Literal["auto", "float32", "bfloat16"]
"""Number format of a network in prediction (`predict.precision`)."""

BACKGROUND = 254
"""Label of a pixel known to be none of the classes: a negative for every class."""

UNSURE = 253
"""Value in a map that shows what is sure alone: of a pixel that may be of several classes, or of none."""

UNLABELLED = 255
"""Label of a pixel about which nothing is known. The training recipe decides what its loss does with it."""


@dataclass(frozen=True)
class Period:
    """A half-open interval of days [start, end)."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise InputError(f"a period runs from {self.start} to {self.end}. It must end after it starts.")

    def __contains__(self, when: datetime | date) -> bool:
        day = when.date() if isinstance(when, datetime) else when
        return self.start <= day < self.end


@dataclass(frozen=True)
class Roi:
    """A region of interest: where to look, for which crop, in which season.

    `crop` is empty for a densely labelled ROI (pretraining). `bounds` is (min x, min y, max x, max y)
    in `crs`. Unknown dates are None.
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
    """How scenes become one image per period. `config.CompositeConfig` documents the fields."""

    scl_invalid: tuple[int, ...] = (0, 1, 3, 8, 9, 10, 11)
    s1_passes: tuple[str, ...] = ("ascending", "descending")
    cloud_score: float | None = None
    s1_orbit_rule: str = "season"
    sensors: tuple[str, ...] = ("s2", "s1")
    max_impossible: float = 0.5
    max_lost: float = 0.5


@dataclass(frozen=True)
class ImageRequest:
    """A request to an imagery source: composites of `periods` on `grid`.

    `extent` is the grid of the whole ROI. Choices that all tiles of an ROI must share (orbit pass,
    order of orbits) depend on `extent` only, so tile borders never show. `not_after` is the as-of
    date, the last day from which a scene may come. `maps` names maps of codes that the source
    offers, such as "eucropmap". Messages show `name`. Raises InputError if a period ends after
    `not_after`.
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
                f"the last period ends before {latest}, after the as-of date {self.not_after}. "
                "Give a later as-of date or earlier periods."
            )


class View(NamedTuple):
    """One acquisition of a sensor over a grid."""

    sensor: str  # "s2" or "s1"
    when: datetime  # UTC
    orbit: str  # of the radar, as in `Composite.orbits_s1`; empty for Sentinel-2
    scenes: tuple[str, ...]  # names in the catalogue; empty if they have none
    clear: int  # pixels: without cloud, or with backscatter


@dataclass(frozen=True)
class Composite:
    """One image per period and sensor, on one grid. Values of invalid pixels mean nothing.

    `scenes` counts the scenes of each period by sensor (keys "s2", "s1") for the ledger. It is empty
    if the source does not know. `maps` holds the codes (H, W) of the requested maps, sampled by
    nearest neighbour, 0 where a map has no data. `orbits_s1` names the radar orbits of the season, the
    topmost first ("ascending 88"); it is empty if they were chosen month by month. `lost` names scenes
    that could not be used, with the reason. `impossible` is, by sensor and period, the share of values
    outside the range of their band, of the band that has most. `views` are the acquisitions, if the source
    knows them. Raises ValueError for shapes that do not
    match.
    """

    grid: Grid
    periods: tuple[Period, ...]
    s2_tchw: FloatArray  # surface reflectance, 0..1 (slightly above 1 over bright targets)
    s1_tchw: FloatArray  # backscatter, dB
    s2_valid_thw: BoolArray
    s1_valid_thw: BoolArray
    scenes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    maps: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    orbits_s1: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    impossible: dict[str, tuple[float, ...]] = field(default_factory=dict)
    views: tuple[View, ...] = ()

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
    """One sample as stored: scaled integers, `bands.NODATA` where no view is valid."""

    sample_id: str
    row: int  # upper-left pixel in the ROI's grid
    col: int
    s2_cthw: IntArray
    s1_cthw: IntArray
    label_hw: ByteArray  # class index, BACKGROUND or UNLABELLED
    truth_hw: ByteArray | None = None  # labels of every pixel, for evaluation only


_TO_MIDDLE = timedelta(days=14)  # from the first day of a month


@dataclass(frozen=True)
class Batch:
    """Samples from a reader: stored integers, and the scalar columns of their rows.

    `models.normalisation` turns the arrays into float tensors on a device, with their validity.
    """

    s1_bcthw: IntArray
    s2_bcthw: IntArray
    label_bhw: ByteArray
    truth_bhw: ByteArray | None
    crop_b: npt.NDArray[np.int64]  # class index of the ROI's own crop, -1 for none
    rows: Mapping[str, list[Any]]  # scalar columns by name, one value per sample

    @property
    def month_bt(self) -> npt.NDArray[np.int64]:
        """The calendar month (B, T), 1 to 12, of the middle of each period."""
        middle = np.array(self.rows["period_start"], "datetime64[D]") + _TO_MIDDLE.days
        months: npt.NDArray[np.int64] = middle.astype("datetime64[M]").astype(np.int64) % 12 + 1
        return months

    @property
    def place_b2(self) -> npt.NDArray[np.float32]:
        """Longitude and latitude (B, 2) of the centres of the patches."""
        return patch_places(self.rows, self.label_bhw.shape[-1])

    def __len__(self) -> int:
        return len(self.label_bhw)


def patch_places(rows: Mapping[str, Sequence[Any]], size: int) -> npt.NDArray[np.float32]:
    """Longitude and latitude (N, 2) of the centres of patches of `size` pixels, by the columns of shards."""
    x0, y0, pixel, row, col = (np.array(rows[n]) for n in ("x0", "y0", "resolution", "row", "col"))
    x, y = x0 + (col + size / 2) * pixel, y0 - (row + size / 2) * pixel
    return lonlat(rows["crs"], x, y).astype(np.float32)


def calendar_months(starts: Iterable[date]) -> list[int]:
    """The calendar months, 1 to 12, of the middle of months that begin on these days."""
    return [(start + _TO_MIDDLE).month for start in starts]

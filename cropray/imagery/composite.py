"""Scenes to one image a period. Pure numpy, the same for every source that offers scenes.

`choose_orbits` selects radar scenes; `median_reflectance` and `mosaic_backscatter` reduce scenes.
Shape suffixes: N scenes, C bands, H rows, W columns, T periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.errors import InputError
from cropray.types import (
    BoolArray,
    ByteArray,
    Composite,
    CompositeRecipe,
    DoubleArray,
    FloatArray,
    ImageRequest,
    Period,
)

_BLOCK_VALUES = 1 << 19  # floats that are sorted at once: 2 MiB stay in the cache
_FAR = np.float32(1e30)  # beyond every reflectance, but finite, so that sums stay defined


@dataclass(frozen=True)
class S2Scene:
    """One Sentinel-2 L2A acquisition on the grid of a request."""

    when: datetime  # UTC, aware
    reflectance_chw: FloatArray  # surface reflectance in the order of S2_BANDS, NaN = nodata
    scl_hw: ByteArray  # scene classification, 0 = nodata

    def __post_init__(self) -> None:
        _check_utc(self.when)
        wanted = (len(S2_BANDS), *self.scl_hw.shape)
        if self.reflectance_chw.shape != wanted:
            raise ValueError(f"reflectance is {self.reflectance_chw.shape}, wanted (C, H, W) = {wanted}")


@dataclass(frozen=True)
class S1Scene:
    """One Sentinel-1 acquisition on the grid of a request."""

    when: datetime  # UTC, aware
    relative_orbit: int
    orbit_pass: Literal["ascending", "descending"]
    contains_extent: bool  # the footprint contains the extent of the request (not only its grid)
    power_chw: FloatArray  # linear backscatter in the order of S1_BANDS, NaN = nodata

    def __post_init__(self) -> None:
        _check_utc(self.when)
        if self.power_chw.ndim != 3 or len(self.power_chw) != len(S1_BANDS):
            raise ValueError(f"power is {self.power_chw.shape}, wanted (C, H, W), C = {len(S1_BANDS)}")


_Scene = TypeVar("_Scene", S1Scene, S2Scene)


def composite_scenes(
    request: ImageRequest,
    s2: Callable[[Period], Iterable[S2Scene]],
    s1: Callable[[Period], Iterable[S1Scene]],
) -> Composite:
    """Reduce the scenes of each period to one image a sensor.

    Periods are taken one after the other, so that at most the Sentinel-2 scenes of one period are held at
    once. `s1` must offer every scene that touches `request.extent`, also those without a pixel on
    `request.grid`: orbits are chosen by them, and so equally in all tiles of an ROI. A period without
    scenes is all invalid. `Composite.scenes` counts the scenes offered (Sentinel-2) and used (Sentinel-1).

    Raises InputError for a recipe with `cloud_score`, which scenes do not carry, and ValueError for a scene
    outside its period, later than `request.not_after`, or of another shape than the grid.
    """
    if request.recipe.cloud_score is not None:
        raise InputError(
            "composite.cloud_score needs Cloud Score+, which only source.kind: earthengine has; leave it "
            "out and list the classes to mask in composite.scl_invalid"
        )
    size = (len(request.periods), *request.grid.shape)
    s2_tchw = np.full((size[0], len(S2_BANDS), *size[1:]), np.nan, np.float32)
    s1_tchw = np.full((size[0], len(S1_BANDS), *size[1:]), np.nan, np.float32)
    s2_valid_thw, s1_valid_thw = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    s2_counts, s1_counts = [], []
    for t, period in enumerate(request.periods):
        optical = list(_checked(s2(period), request, period))
        s2_valid_thw[t] = median_reflectance(optical, request.recipe, out_chw=s2_tchw[t])
        s2_counts.append(len(optical))
        del optical  # before radar is read: memory is bounded by one sensor of one period
        radar = _checked(s1(period), request, period)
        s1_valid_thw[t], used = mosaic_backscatter(radar, request.recipe, out_chw=s1_tchw[t])
        s1_counts.append(used)
    return Composite(
        grid=request.grid,
        periods=request.periods,
        s2_tchw=s2_tchw,
        s1_tchw=s1_tchw,
        s2_valid_thw=s2_valid_thw,
        s1_valid_thw=s1_valid_thw,
        scenes={"s2": tuple(s2_counts), "s1": tuple(s1_counts)},
    )


def median_reflectance(scenes: Sequence[S2Scene], recipe: CompositeRecipe, out_chw: FloatArray) -> BoolArray:
    """The median of each band over the clear views of a pixel, written to `out_chw`; returns where (H, W).

    A view is clear where its SCL class is not in `recipe.scl_invalid` and all bands are finite, so that
    every band of a pixel is the median over the same dates. For an even number of views it is the mean of
    the middle two, as in `numpy.median`. Pixels without a clear view keep the values of `out_chw`.
    """
    clear_classes = ~np.isin(np.arange(256), recipe.scl_invalid)
    views = [(scene.reflectance_chw, _clear(scene, clear_classes)) for scene in scenes]
    views = [(values, clear) for values, clear in views if clear.any()]
    C, H, W = out_chw.shape
    valid_hw = np.zeros((H, W), np.bool_)
    if not views:
        return valid_hw
    rows = min(H, max(1, _BLOCK_VALUES // (len(views) * C * W)))
    stack = np.empty((len(views) + 1, C, rows, W), np.float32)  # one plane to spare for the sort
    for start in range(0, H, rows):
        block = np.s_[start : start + rows]
        planes = [plane[:, : H - start] for plane in stack]
        median = _median([(values[:, block], clear[block]) for values, clear in views], planes)
        valid_hw[block] = np.any([clear[block] for _, clear in views], axis=0)
        np.copyto(out_chw[:, block], median, where=valid_hw[block])
    return valid_hw


class Orbit(NamedTuple):
    """Scenes that see a place under one angle, and either all contain the extent or all do not."""

    orbit_pass: str
    contains_extent: bool
    relative_orbit: int


def choose_orbits(scenes: Mapping[Orbit, int], passes: Sequence[str]) -> list[Orbit]:
    """The orbits that a mosaic uses, topmost first; `scenes` counts the scenes of each.

    1. The first of `passes` with a scene whose footprint contains the extent is taken, and only the scenes
       that contain it. Where no pass has one, all scenes of these passes are taken.
    2. The order is by pass as in `passes`, then most scenes first, then the lower relative orbit number.

    This is the rule of the published recipe, with the order of the mosaic, which it left to chance, made
    explicit.
    """
    containing = [name for name in passes if any(o.orbit_pass == name and o.contains_extent for o in scenes)]
    used = containing[:1] or list(passes)
    chosen = [o for o in scenes if o.orbit_pass in used and o.contains_extent == bool(containing)]
    return sorted(chosen, key=lambda o: (used.index(o.orbit_pass), -scenes[o], o.relative_orbit))


def mosaic_backscatter(
    scenes: Iterable[S1Scene], recipe: CompositeRecipe, out_chw: FloatArray
) -> tuple[BoolArray, int]:
    """One image in dB from the scenes of a period, written to `out_chw`.

    Scenes of one orbit are averaged in linear power; a pixel counts where both polarisations are finite and
    above zero. The orbits of `choose_orbits` are laid over one another: the first valid pixel stays. Pixels
    that no orbit sees keep the values of `out_chw`. Returns where it is valid (H, W) and the number of
    scenes used.
    """
    sums = _orbit_sums(scenes, out_chw.shape)
    chosen = choose_orbits({orbit: total.scenes for orbit, total in sums.items()}, recipe.s1_passes)
    valid_hw = np.zeros(out_chw.shape[1:], np.bool_)
    for orbit in chosen:
        total = sums[orbit]
        new_hw = (total.count_hw > 0) & ~valid_hw
        out_chw[:, new_hw] = 10 * np.log10(total.sum_chw[:, new_hw] / total.count_hw[new_hw])
        valid_hw |= new_hw
    return valid_hw, sum(sums[orbit].scenes for orbit in chosen)


@dataclass
class _Sum:
    """The views of one orbit, in float64, so that the order of scenes does not matter."""

    sum_chw: DoubleArray
    count_hw: npt.NDArray[np.int32]
    scenes: int = 0


def _orbit_sums(scenes: Iterable[S1Scene], shape: tuple[int, ...]) -> dict[Orbit, _Sum]:
    sums: dict[Orbit, _Sum] = {}
    for scene in scenes:
        key = Orbit(scene.orbit_pass, scene.contains_extent, scene.relative_orbit)
        if key not in sums:
            sums[key] = _Sum(np.zeros(shape), np.zeros(shape[1:], np.int32))
        total = sums[key]
        good_hw: BoolArray = np.logical_and.reduce((scene.power_chw > 0) & (scene.power_chw < np.inf))
        total.sum_chw += np.where(good_hw, scene.power_chw, np.float32(0))
        total.count_hw += good_hw
        total.scenes += 1
    return sums


def _clear(scene: S2Scene, clear_classes: BoolArray) -> BoolArray:
    clear: BoolArray = np.logical_and.reduce(np.isfinite(scene.reflectance_chw))
    clear &= clear_classes[scene.scl_hw]
    return clear


def _median(views: list[tuple[FloatArray, BoolArray]], planes: list[FloatArray]) -> FloatArray:
    """Median (C, H, W) of the clear ones of n views; `planes` are n + 1 buffers that are overwritten.

    Views that are not clear are put alternately above and below all reflectances, so that the middle of all
    views is the middle of the clear ones: exactly for an even number of unclear ones, else one place lower.
    """
    odd_hw = np.zeros(views[0][1].shape, np.bool_)
    for plane, (values, clear) in zip(planes, views, strict=False):
        above, below = ~clear & ~odd_hw, ~clear & odd_hw
        np.fmax(values, np.where(above, _FAR, -_FAR), out=plane)  # fmax: a NaN is never clear
        np.minimum(plane, np.where(below, -_FAR, _FAR), out=plane)
        odd_hw ^= ~clear
    n = len(views)
    ascending = _sorted_planes(planes)
    low, mid, high = ascending[max(0, (n - 2) // 2)], ascending[(n - 1) // 2], ascending[n // 2]
    median = np.where(odd_hw, low, mid)
    median += np.where(odd_hw, mid, high)
    median *= np.float32(0.5)
    return median


def _sorted_planes(planes: list[FloatArray]) -> list[FloatArray]:
    """All planes but the last, each pixel's values in ascending order, in the same buffers.

    A sorting network of whole-plane minima and maxima: each step is one vectorised pass over contiguous
    memory, an order of magnitude faster than sorting many short columns. The last plane takes the minima,
    so that nothing is copied.
    """
    *planes, spare = planes
    for low, high in _network(len(planes)):
        np.minimum(planes[low], planes[high], out=spare)
        np.maximum(planes[low], planes[high], out=planes[high])
        planes[low], spare = spare, planes[low]
    return planes


@lru_cache
def _network(n: int) -> tuple[tuple[int, int], ...]:
    """Comparators (low, high) of Batcher's merge-exchange sort for any n (Knuth, TAOCP 3, 5.2.2 M)."""
    pairs = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs) if n > 1 else ()


def _checked(scenes: Iterable[_Scene], request: ImageRequest, period: Period) -> Iterator[_Scene]:
    """The scenes as they come. Raises ValueError for the first that the request does not allow."""
    for scene in scenes:
        values = scene.reflectance_chw if isinstance(scene, S2Scene) else scene.power_chw
        if scene.when not in period:
            raise ValueError(f"a scene of {scene.when} was offered for {period.start} to {period.end}")
        if request.not_after is not None and scene.when.date() > request.not_after:
            raise ValueError(f"a scene of {scene.when} is later than the as-of date {request.not_after}")
        if values.shape[1:] != request.grid.shape:
            raise ValueError(f"a scene of {values.shape} was offered for a grid of {request.grid.shape}")
        yield scene


def _check_utc(when: datetime) -> None:
    if when.utcoffset() != timedelta(0):
        raise ValueError(f"the time of a scene must be an aware datetime in UTC, got {when!r}")

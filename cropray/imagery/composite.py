"""Scenes to one image a period: pure numpy, the same for every source that offers scenes.

Shape suffixes: N scenes, C bands, H rows, W columns, T periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.types import BoolArray, ByteArray, Composite, CompositeRecipe, FloatArray, ImageRequest, Period

_BLOCK_VALUES = 1 << 18  # floats of a stack that is sorted at once: 1 MiB stays in the cache


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
    contains_extent: bool  # the footprint contains the request's extent (not only its grid)
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

    Sentinel-2: see `median_reflectance`; Sentinel-1: see `mosaic_backscatter`. Periods are taken
    one after the other, so at most the Sentinel-2 scenes of one period are held at once. `s1` must
    offer every scene that touches `request.extent`, also those without a pixel on `request.grid`:
    the choice of passes and the order of orbits are counted on them and so equal in all tiles of
    an ROI. A period without scenes is all invalid. `Composite.scenes` counts the scenes offered
    (Sentinel-2) and chosen (Sentinel-1).

    Raises ValueError for a scene outside its period, later than `request.not_after`, or of another
    shape than the grid.
    """
    size = (len(request.periods), *request.grid.shape)
    s2_tchw = np.full((size[0], len(S2_BANDS), *size[1:]), np.nan, np.float32)
    s1_tchw = np.full((size[0], len(S1_BANDS), *size[1:]), np.nan, np.float32)
    s2_valid_thw, s1_valid_thw = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    s2_counts, s1_counts = [], []
    for t, period in enumerate(request.periods):
        optical = list(_checked(s2(period), request, period))
        s2_valid_thw[t] = median_reflectance(optical, request.recipe, out_chw=s2_tchw[t])
        s2_counts.append(len(optical))
        del optical  # before the radar is read: memory is bounded by one sensor of one period
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
    """Per band the median of the clear views of each pixel, written to `out_chw`; returns where (H, W).

    A view is clear where its SCL class is not in `recipe.scl_invalid` and all bands are finite, so
    that every band of a pixel is the median over the same dates. Of an even number of views it is
    the mean of the two in the middle, as `numpy.median`. Pixels without a clear view keep what
    `out_chw` held.
    """
    clear_classes = ~np.isin(np.arange(256), recipe.scl_invalid)
    views = [(scene.reflectance_chw, _clear(scene, clear_classes)) for scene in scenes]
    views = [(values, clear) for values, clear in views if clear.any()]
    valid_hw = np.zeros(out_chw.shape[1:], np.bool_)
    if not views:
        return valid_hw
    row_values = len(views) * out_chw.shape[0] * out_chw.shape[2]
    rows = max(1, _BLOCK_VALUES // row_values)
    for start in range(0, out_chw.shape[1], rows):
        block = np.s_[start : start + rows]
        # Not clear: +inf, which sorts behind every reflectance.
        planes = [np.where(clear[block], values[:, block], np.float32(np.inf)) for values, clear in views]
        count_hw = np.sum([clear[block] for _, clear in views], axis=0, dtype=np.int16)
        valid_hw[block] = count_hw > 0
        out_chw[:, block] = np.where(
            valid_hw[block], _middle(_sorted_planes(planes), count_hw), out_chw[:, block]
        )
    return valid_hw


def mosaic_backscatter(
    scenes: Iterable[S1Scene], recipe: CompositeRecipe, out_chw: FloatArray
) -> tuple[BoolArray, int]:
    """One image of dB from the scenes of a period, written to `out_chw`; returns where and how many used.

    1. The passes are tried in the order of `recipe.s1_passes`: the first that has a scene whose
       footprint contains the extent is taken, and of it those containing scenes only. Where no pass
       has one, all scenes of these passes are taken.
    2. Scenes of one relative orbit (and pass) are averaged in linear power: they see a place under
       one angle. A pixel counts where both polarisations are finite and above zero.
    3. The orbits are laid over one another: by pass in the order of `recipe.s1_passes`, then those
       of most scenes first, then the lower relative orbit number; the first valid pixel stays.
    4. The result is 10·log10 of the power.

    This is the rule of the published recipe with the order of the mosaic, which it left to chance,
    made explicit. Pixels that no orbit sees keep what `out_chw` held.
    """
    means = _orbit_means(scenes, out_chw.shape)
    containing = [p for p in recipe.s1_passes if any(o.orbit_pass == p and o.contains for o in means)]
    passes = containing[:1] or list(recipe.s1_passes)
    chosen = [o for o in means if o.orbit_pass in passes and o.contains == bool(containing)]
    chosen.sort(key=lambda o: (passes.index(o.orbit_pass), -means[o].scenes, o.relative_orbit))
    valid_hw = np.zeros(out_chw.shape[1:], np.bool_)
    for orbit in chosen:
        mean = means[orbit]
        new_hw = (mean.count_hw > 0) & ~valid_hw
        out_chw[:, new_hw] = 10 * np.log10(mean.sum_chw[:, new_hw] / mean.count_hw[new_hw])
        valid_hw |= new_hw
    return valid_hw, sum(means[orbit].scenes for orbit in chosen)


class _Orbit(NamedTuple):
    orbit_pass: str
    contains: bool
    relative_orbit: int


@dataclass
class _Sum:
    """What has been seen of one orbit: float64, so that the order of scenes does not show."""

    sum_chw: npt.NDArray[np.float64]
    count_hw: npt.NDArray[np.int32]
    scenes: int = 0


def _orbit_means(scenes: Iterable[S1Scene], shape: tuple[int, ...]) -> dict[_Orbit, _Sum]:
    sums: dict[_Orbit, _Sum] = {}
    for scene in scenes:
        key = _Orbit(scene.orbit_pass, scene.contains_extent, scene.relative_orbit)
        if key not in sums:
            sums[key] = _Sum(np.zeros(shape), np.zeros(shape[1:], np.int32))
        total = sums[key]
        good_hw = (np.isfinite(scene.power_chw) & (scene.power_chw > 0)).all(axis=0)
        np.add(total.sum_chw, scene.power_chw, out=total.sum_chw, where=good_hw)
        total.count_hw += good_hw
        total.scenes += 1
    return sums


def _clear(scene: S2Scene, clear_classes: BoolArray) -> BoolArray:
    finite: BoolArray = np.isfinite(scene.reflectance_chw).all(axis=0)
    return finite & clear_classes[scene.scl_hw]


def _sorted_planes(planes: list[FloatArray]) -> list[FloatArray]:
    """The planes with every pixel's values in ascending order; the input planes are used up.

    A sorting network of whole-plane minima and maxima: every step is one vectorised pass over
    contiguous memory, an order of magnitude faster than sorting short columns.
    """
    spare = np.empty_like(planes[0])
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


def _middle(planes: list[FloatArray], count_hw: npt.NDArray[np.int16]) -> FloatArray:
    """The median of the first `count_hw` of the ascending planes; +inf where there are none."""
    out = planes[0].copy()
    for count in range(2, len(planes) + 1):
        here = count_hw == count
        if here.any():
            low, high = planes[(count - 1) // 2], planes[count // 2]
            np.copyto(out, (low + high) * np.float32(0.5), where=here)
    return out


def _checked(scenes: Iterable[_Scene], request: ImageRequest, period: Period) -> Iterator[_Scene]:
    """The scenes as they come; ValueError for the first that the request does not allow."""
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

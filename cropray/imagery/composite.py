"""Scenes to one image a period. Pure numpy, the same for every source that offers scenes.

`median_reflectance` and `mosaic_backscatter` reduce the acquisitions of a period. Shape suffixes: N scenes,
C bands, H rows, W columns, T periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.errors import InputError
from cropray.imagery.orbits import Orbit, Season, by_orbit, monthly_order
from cropray.imagery.scenes import (
    LostScene,
    S1Scene,
    S2Scene,
    SceneLog,
    acquisitions,
    check_plausible,
)
from cropray.types import BoolArray, Composite, CompositeRecipe, FloatArray, ImageRequest, Period, View

_BLOCK_VALUES = 1 << 19  # floats that are sorted at once: 2 MiB stay in the cache
_FAR = np.float32(1e30)  # beyond every reflectance, but finite, so that sums stay defined


def composite_scenes(
    request: ImageRequest,
    s2: Callable[[Period], Iterable[S2Scene | LostScene]],
    s1: Callable[[Period, Sequence[Orbit] | None], Iterable[S1Scene | LostScene]],
    season: Callable[[ImageRequest], Season],
) -> Composite:
    """Reduce the scenes of each period to one image a sensor.

    Periods are taken one after the other, so that the scenes of one sensor and period are held at a time.
    `s2` and `s1` offer the scenes of a period on `request.grid`, `s1` those of some orbits (pass and number)
    or, for None, all that touch `request.extent`, also those without a pixel on the grid: the monthly rule
    looks at their footprints. `season` gives `choose_season` of the request's ROI. A period without scenes is
    all invalid. `Composite.scenes` counts acquisitions, of Sentinel-1 those of the orbits used.

    Raises InputError for a recipe with `cloud_score`, which scenes do not carry, if more than
    `recipe.max_lost` of a sensor's scenes cannot be used, and if a composite is impossible; ValueError for a
    scene outside its period or later than `request.not_after`.
    """
    recipe, size = request.recipe, (len(request.periods), *request.grid.shape)
    if recipe.cloud_score is not None:
        raise InputError(
            "composite.cloud_score needs Cloud Score+, which only source.kind: earthengine has; leave it "
            "out and list the classes to mask in composite.scl_invalid"
        )
    s2_tchw = np.full((size[0], len(S2_BANDS), *size[1:]), np.nan, np.float32)
    s1_tchw = np.full((size[0], len(S1_BANDS), *size[1:]), np.nan, np.float32)
    s2_valid_thw, s1_valid_thw = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    counts: dict[str, list[int]] = {"s2": [], "s1": []}
    views: list[View] = []
    logs = {sensor: SceneLog(sensor, request) for sensor in recipe.sensors}
    orbits: tuple[Orbit, ...] | None = None
    if "s1" in logs and recipe.s1_orbit_rule == "season":
        orbits, survey = season(request)
        logs["s1"].include(survey)
    for t, period in enumerate(request.periods):
        if "s2" in logs:
            optical = acquisitions(logs["s2"].usable(s2(period), period))
            s2_valid_thw[t] = median_reflectance(optical, recipe, out_chw=s2_tchw[t])
            counts["s2"].append(len(optical))
            views += [_optical_view(scene, recipe) for scene in optical]
            del optical  # before radar is read: memory is bounded by one sensor of one period
        if "s1" in logs:
            radar = by_orbit(logs["s1"].usable(s1(period, orbits), period), request)
            acquired = {orbit: len(scenes) for orbit, scenes in radar.items()}
            order = monthly_order(acquired, recipe.s1_passes) if orbits is None else orbits
            s1_valid_thw[t] = mosaic_backscatter(radar, order, out_chw=s1_tchw[t])
            counts["s1"].append(sum(acquired.get(orbit, 0) for orbit in order))
            views += [_radar_view(scene, orbit) for orbit in order for scene in radar.get(orbit, ())]
    composite = Composite(
        grid=request.grid,
        periods=request.periods,
        s2_tchw=s2_tchw,
        s1_tchw=s1_tchw,
        s2_valid_thw=s2_valid_thw,
        s1_valid_thw=s1_valid_thw,
        scenes={sensor: tuple(each) or (0,) * size[0] for sensor, each in counts.items()},
        orbits_s1=tuple(map(str, orbits or ())),
        lost=tuple(line for log in logs.values() for line in log.names()),
        views=tuple(sorted(views)),
    )
    return replace(composite, impossible=check_plausible(composite, request))


def median_reflectance(scenes: Sequence[S2Scene], recipe: CompositeRecipe, out_chw: FloatArray) -> BoolArray:
    """The median of each band over the clear views of a pixel, written to `out_chw`; returns where (H, W).

    A view is clear where its SCL class is not in `recipe.scl_invalid` and all bands are finite, so that
    every band of a pixel is the median over the same dates. For an even number of views it is the mean of
    the middle two, as in `numpy.median`. Pixels without a clear view keep the values of `out_chw`.
    """
    views = [(scene.reflectance_chw, _clear(scene, recipe)) for scene in scenes]
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


def _clear(scene: S2Scene, recipe: CompositeRecipe) -> BoolArray:
    """(H, W): where a scene shows the ground."""
    clear_classes = ~np.isin(np.arange(256), recipe.scl_invalid)
    return np.asarray(scene.data_hw & clear_classes[scene.scl_hw])


def _optical_view(scene: S2Scene, recipe: CompositeRecipe) -> View:
    return View("s2", scene.when, "", scene.parts, int(_clear(scene, recipe).sum()))


def _radar_view(scene: S1Scene, orbit: Orbit) -> View:
    return View("s1", scene.when, str(orbit), scene.parts, int(scene.data_hw.sum()))


def mosaic_backscatter(
    acquired: Mapping[Orbit, Sequence[S1Scene]], order: Sequence[Orbit], out_chw: FloatArray
) -> BoolArray:
    """One image in dB from the acquisitions of a period, written to `out_chw`; returns where it is valid.

    The acquisitions of an orbit are averaged in linear power, in float64, so that their order does not
    matter. A pixel counts where both polarisations are finite and above zero. Orbits are laid over one
    another in `order`: the first valid pixel stays. Pixels that no orbit sees keep the values of `out_chw`.
    """
    valid_hw = np.zeros(out_chw.shape[1:], np.bool_)
    for orbit in order:
        sum_chw, count_hw = np.zeros(out_chw.shape), np.zeros(out_chw.shape[1:], np.int32)
        for scene in acquired.get(orbit, ()):
            sum_chw += np.where(scene.data_hw, scene.power_chw, np.float32(0))
            count_hw += scene.data_hw
        new_hw = (count_hw > 0) & ~valid_hw
        out_chw[:, new_hw] = 10 * np.log10(sum_chw[:, new_hw] / count_hw[new_hw])
        valid_hw |= new_hw
    return valid_hw


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

"""Scenes of both sensors: what a source offers, which of them can be used, and one view an acquisition.

Pure numpy, the same for every source that offers scenes. Shape suffixes: C bands, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from cropray.bands import S1_BANDS, S2_BANDS, S2_NAMES, Band
from cropray.errors import InputError
from cropray.types import BoolArray, ByteArray, Composite, CompositeRecipe, FloatArray, ImageRequest, Period

SENSORS = {"s2": "Sentinel-2", "s1": "Sentinel-1"}
_ONE_PASS = timedelta(minutes=10)  # an orbit takes 98 minutes, and a platform passes a place in seconds
_VEGETATION, _WATER = 4, 6  # of SCL; water's reflectance in the infrared is 0 within the noise
# Leaves absorb blue and red light. Of 41 real scenes of Flanders the darkest 5 % of the vegetation had blue
# reflectances of 0.003 to 0.069, so with an offset of 0.1 that was left in they would have at least 0.103.
_LEAVES_NIR_OVER_RED, _LEAVES_DARKEST, _LEAVES_BLUE = 0.15, 0.05, 0.1
_FEWEST, _LEAVES_SHARE = 100, 0.1  # pixels, and the share of the clear ones
_BLACK = 0.001  # no land is so dark in any band; reflectances of 0..1 that are scaled by 1e-4 are


@dataclass(frozen=True)
class S2Scene:
    """Sentinel-2 L2A pixels of one acquisition on the grid of a request: all, or those of one tile."""

    when: datetime  # UTC, aware
    reflectance_chw: FloatArray  # surface reflectance in the order of S2_BANDS, NaN = nodata
    scl_hw: ByteArray  # scene classification, 0 = nodata
    name: str = ""
    platform: str = ""  # empty if unknown
    revision: tuple[float, str] = (0.0, "")  # processing baseline, time of processing
    parts: tuple[str, ...] = ()  # names of the scenes that an acquisition was merged from

    @cached_property
    def data_hw(self) -> BoolArray:
        """Where all bands are finite."""
        has_data: BoolArray = np.logical_and.reduce(np.isfinite(self.reflectance_chw))
        return has_data

    def over(self, below: S2Scene) -> S2Scene:
        """Laid over another: `below` shows where this one has no data."""
        scl_hw = np.where(self.data_hw, self.scl_hw, below.scl_hw)
        values_chw = np.where(self.data_hw, self.reflectance_chw, below.reflectance_chw)
        return replace(self, reflectance_chw=values_chw, scl_hw=scl_hw)


@dataclass(frozen=True)
class S1Scene:
    """Sentinel-1 pixels of one acquisition on the grid of a request: all, or those of one slice."""

    when: datetime  # UTC, aware
    relative_orbit: int
    orbit_pass: Literal["ascending", "descending"]
    contains_extent: bool  # the footprint contains the extent of the request (not only its grid)
    power_chw: FloatArray  # linear backscatter in the order of S1_BANDS, NaN = nodata
    name: str = ""
    platform: str = ""
    revision: tuple[float, str] = (0.0, "")
    parts: tuple[str, ...] = ()

    @cached_property
    def data_hw(self) -> BoolArray:
        """Where both polarisations are finite and above zero."""
        has_data: BoolArray = np.logical_and.reduce((self.power_chw > 0) & (self.power_chw < np.inf))
        return has_data

    def over(self, below: S1Scene) -> S1Scene:
        """Laid over another: `below` shows where this one has no data."""
        return replace(self, power_chw=np.where(self.data_hw, self.power_chw, below.power_chw))


class LostScene(NamedTuple):
    """A scene of the catalogue that cannot be read, for good."""

    name: str
    reason: str


def scene_of(line: str) -> str:
    """The name of the scene in a line of `Composite.lost`. Tiles may have other reasons for one scene."""
    return line.partition(": ")[0]


Scene = TypeVar("Scene", S1Scene, S2Scene)


class SceneLog:
    """The scenes of one sensor that a request was offered, and those that are left out."""

    def __init__(self, sensor: str, request: ImageRequest) -> None:
        self.sensor, self.request = sensor, request
        self._offered: set[str] = set()
        self.lost: dict[str, str] = {}  # reason by name

    def usable(self, scenes: Iterable[Scene | LostScene], period: Period) -> Iterator[Scene]:
        """The scenes without those that were lost or hold impossible values.

        Raises ValueError for a scene that the request does not allow.
        """
        for scene in scenes:
            if isinstance(scene, LostScene):
                self._offered.add(scene.name)
                self.lost[scene.name] = scene.reason
                continue
            _check_time(scene.when, self.request, period)
            name = scene.name or str(scene.when)
            self._offered.add(name)
            reason = _impossible(scene, self.request.recipe)
            if reason:
                self.lost[name] = reason
            else:
                yield scene

    def include(self, other: SceneLog) -> None:
        """Count what another log of the same sensor and ROI counted."""
        self._offered |= other._offered
        self.lost |= other.lost

    def names(self) -> Iterator[str]:
        """Each scene that was left out, with its reason. Raises InputError if they are too many."""
        share = len(self.lost) / max(1, len(self._offered))
        lines = [f"{name}: {reason}" for name, reason in sorted(self.lost.items())]
        if share > self.request.recipe.max_lost:
            raise InputError(
                f"{len(lines)} of {len(self._offered)} {SENSORS[self.sensor]} scenes cannot be used "
                f"(source.max_lost is {self.request.recipe.max_lost:g}), such as {lines[0]}"
            )
        yield from lines


def acquisitions(scenes: Iterable[Scene]) -> list[Scene]:
    """One scene for each acquisition, in order of time.

    Scenes of one platform within ten minutes are one acquisition: tiles or slices of one datatake, or the
    same scene in two processing baselines or from two searches. A pixel has the values of the newest that
    has data there (baseline, then time of processing), so an acquisition counts once.
    """
    passes: list[list[Scene]] = []
    for scene in sorted(scenes, key=lambda scene: scene.when):
        for parts in reversed(passes):
            if scene.when - parts[-1].when > _ONE_PASS:
                continue
            if not scene.platform or not parts[0].platform or scene.platform == parts[0].platform:
                parts.append(scene)
                break
        else:
            passes.append([scene])
    return [_merged(parts) for parts in passes]


def _merged(parts: list[Scene]) -> Scene:
    newest_last = sorted(parts, key=lambda scene: (scene.revision, scene.name))
    merged = newest_last[-1]
    for below in newest_last[-2::-1]:
        merged = merged.over(below)
    return replace(merged, parts=tuple(sorted(part.name for part in parts if part.name)))


def _check_time(when: datetime, request: ImageRequest, period: Period) -> None:
    if when.utcoffset() != timedelta(0):
        raise ValueError(f"the time of a scene must be an aware datetime in UTC, got {when!r}")
    if when not in period:
        raise ValueError(f"a scene of {when} was offered for {period.start} to {period.end}")
    if request.not_after is not None and when.date() > request.not_after:
        raise ValueError(f"a scene of {when} is later than the as-of date {request.not_after}")


# --- plausibility ---------------------------------------------------------------------------------------


def _impossible(scene: S1Scene | S2Scene, recipe: CompositeRecipe) -> str:
    """Why a scene is left out: a band with too many values outside its range. Empty if there is none.

    Of Sentinel-2 the clear views of land count, and land must look like land: an offset that was left in, or
    a scale that is much too small, leaves all values in their range. Power below 0 is what dB taken for
    power looks like.
    """
    if isinstance(scene, S2Scene):
        counted_hw = scene.data_hw & ~np.isin(scene.scl_hw, (*recipe.scl_invalid, _WATER))
        shares = _shares(S2_BANDS, scene.reflectance_chw, counted_hw)
        reason = _too_many(S2_BANDS, shares, recipe.max_impossible)
        return reason or (_wrong_scaling(scene, counted_hw) if recipe.max_impossible < 1 else "")
    power_chw = scene.power_chw
    counted_hw = np.logical_and.reduce(np.isfinite(power_chw) & (power_chw != 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        db_chw = np.where(power_chw > 0, 10 * np.log10(power_chw), np.float32(-np.inf))
    return _too_many(S1_BANDS, _shares(S1_BANDS, db_chw, counted_hw), recipe.max_impossible)


def _wrong_scaling(scene: S2Scene, counted_hw: BoolArray) -> str:
    """Why clear land is too dark, or vegetation too bright in blue light. Empty if it is neither."""
    count = int(np.count_nonzero(counted_hw))
    if count >= _FEWEST and np.max(scene.reflectance_chw, where=counted_hw, initial=0) < _BLACK:
        return f"no reflectance is above {_BLACK:g}: a wrong scale (raster:scale)"
    blue_hw, red_hw, nir_hw = (scene.reflectance_chw[S2_NAMES.index(name)] for name in ("B02", "B04", "B08"))
    leaves_hw = counted_hw & (scene.scl_hw == _VEGETATION) & (nir_hw - red_hw > _LEAVES_NIR_OVER_RED)
    if np.count_nonzero(leaves_hw) < max(_FEWEST, _LEAVES_SHARE * count):
        return ""
    darkest = float(np.quantile(blue_hw[leaves_hw], _LEAVES_DARKEST))
    if darkest < _LEAVES_BLUE:
        return ""
    return (
        f"the darkest {_LEAVES_DARKEST:.0%} of its vegetation have a B02 of {darkest:.2f}: haze over all, "
        "or, if many scenes are like this, an offset of -0.1 that was not applied "
        "(source.stac.s2.offset; composite.max_impossible=1 skips this check)"
    )


def _shares(bands: Sequence[Band], values_chw: FloatArray, counted_hw: BoolArray) -> list[float]:
    """By band, the share of the values that count that lie outside its range."""
    total = max(1, int(np.count_nonzero(counted_hw)))
    shares = []
    for band, values_hw in zip(bands, values_chw, strict=True):
        outside_hw = (values_hw < band.range[0]) | (values_hw > band.range[1])
        shares.append(int(np.count_nonzero(outside_hw & counted_hw)) / total)
    return shares


def _too_many(bands: Sequence[Band], shares: Sequence[float], limit: float) -> str:
    share, band = max(zip(shares, bands, strict=True), key=lambda found: found[0])
    if share <= limit:
        return ""
    low, high = band.range
    return (
        f"{share:.0%} of {band.name} lies outside {low:g} to {high:g} {band.unit} "
        f"(composite.max_impossible is {limit:g})"
    )


def check_plausible(composite: Composite, request: ImageRequest) -> dict[str, tuple[float, ...]]:
    """`Composite.impossible`. Raises InputError if a month's share exceeds `recipe.max_impossible`."""
    found: dict[str, tuple[float, ...]] = {}
    for sensor, bands, values_tchw, valid_thw in (
        ("s2", S2_BANDS, composite.s2_tchw, composite.s2_valid_thw),
        ("s1", S1_BANDS, composite.s1_tchw, composite.s1_valid_thw),
    ):
        months = [_shares(bands, *month) for month in zip(values_tchw, valid_thw, strict=True)]
        for period, shares in zip(composite.periods, months, strict=True):
            if reason := _too_many(bands, shares, request.recipe.max_impossible):
                raise InputError(
                    f"{request.name}: the {SENSORS[sensor]} composite of {period.start:%Y-%m} is impossible: "
                    f"{reason}. Are the scale, offset and unit of the source right?"
                )
        found[sensor] = tuple(map(max, months))
    return found

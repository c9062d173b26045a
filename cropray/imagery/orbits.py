"""Which radar orbits a composite is made of, and which of them lies on top.

Backscatter depends on the angle of view: another orbit on top moves the mean of a region by a dB or two. So
pass and orbits are chosen once for the whole ROI and all its months. Shape suffixes: T periods, H rows,
W columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cropray.grid import Grid
from cropray.imagery.scenes import LostScene, S1Scene, SceneLog, acquisitions
from cropray.types import BoolArray, ImageRequest, Period

NEARLY_ALL = 0.99  # of the pixels that any pass sees: then a pass is used alone
_SURVEY_SIDE = 32  # pixels of a survey a side


class Orbit(NamedTuple):
    """Scenes that see a place under one angle.

    `contains_extent` is for the monthly rule, which tells the scenes that contain the extent from others.
    """

    orbit_pass: str
    relative_orbit: int
    contains_extent: bool = False

    def __str__(self) -> str:
        return f"{self.orbit_pass} {self.relative_orbit}"


class Season(NamedTuple):
    """The orbits of an ROI's season, topmost first, and the log of the scenes that they were chosen from."""

    orbits: tuple[Orbit, ...]
    log: SceneLog


Survey = Callable[[Period, Grid], Iterable[S1Scene | LostScene]]
"""The radar scenes of a period on a grid. Only where they have valid pixels matters."""


def survey_grid(extent: Grid) -> Grid:
    """The pixels of an ROI at which a season's orbits are compared: at most 32 a side, evenly spaced."""
    step = -(-max(extent.shape) // _SURVEY_SIDE)
    height, width = (-(-length // step) for length in extent.shape)
    return Grid(extent.crs, extent.x0, extent.y0, extent.resolution * step, height, width)


def choose_season(request: ImageRequest, survey: Survey) -> Season:
    """The orbits for all months and tiles of the request's ROI, by the pixels that they see.

    1. A pass sees a pixel in a month if one of its scenes is valid there. The first of `s1_passes` that sees
       99 % of the pixels and months that any pass sees is used alone. Otherwise all are used, the one that
       sees most on top.
    2. Within a pass the order is by the pixels and months that an orbit sees, then by its acquisitions, then
       the lower number.

    Where the topmost orbit has no scene in a month, the next one shows.
    """
    log, grid = SceneLog("s1", request), survey_grid(request.extent)
    seen: dict[Orbit, BoolArray] = {}
    counts: Counter[Orbit] = Counter()
    for t, period in enumerate(request.periods):
        for orbit, scenes in by_orbit(log.usable(survey(period, grid), period), request).items():
            if orbit not in seen:
                seen[orbit] = np.zeros((len(request.periods), *grid.shape), np.bool_)
            for scene in scenes:
                seen[orbit][t] |= scene.data_hw
                counts[orbit] += 1
    return Season(tuple(season_order(seen, counts, request.recipe.s1_passes)), log)


def by_orbit(scenes: Iterable[S1Scene], request: ImageRequest) -> dict[Orbit, list[S1Scene]]:
    """The acquisitions of each orbit of the recipe's passes."""
    monthly = request.recipe.s1_orbit_rule == "monthly"
    orbits: dict[Orbit, list[S1Scene]] = {}
    for scene in scenes:
        if scene.orbit_pass in request.recipe.s1_passes:
            orbit = Orbit(scene.orbit_pass, scene.relative_orbit, monthly and scene.contains_extent)
            orbits.setdefault(orbit, []).append(scene)
    return {orbit: acquisitions(of_orbit) for orbit, of_orbit in orbits.items()}


def season_order(
    seen_thw: Mapping[Orbit, BoolArray], acquired: Mapping[Orbit, int], passes: Sequence[str]
) -> list[Orbit]:
    """The rule of `choose_season`: the orbits that are used, topmost first.

    `seen_thw` is where and when each orbit sees, `acquired` its number of acquisitions.
    """
    if not seen_thw:
        return []
    nothing = np.zeros_like(next(iter(seen_thw.values())))
    by_pass = {
        name: np.logical_or.reduce([nothing, *(s for o, s in seen_thw.items() if o.orbit_pass == name)])
        for name in passes
    }
    total = int(np.logical_or.reduce(list(by_pass.values())).sum())
    pixels = {name: int(seen.sum()) for name, seen in by_pass.items()}
    alone = [name for name in passes if total and pixels[name] >= NEARLY_ALL * total]
    used = alone[:1] or sorted(passes, key=lambda name: -pixels[name])
    return sorted(
        (orbit for orbit in seen_thw if orbit.orbit_pass in used),
        key=lambda o: (used.index(o.orbit_pass), -int(seen_thw[o].sum()), -acquired[o], o.relative_orbit),
    )


def monthly_order(acquired: Mapping[Orbit, int], passes: Sequence[str]) -> list[Orbit]:
    """The orbits of one month by the published recipe, topmost first.

    1. The first of `passes` with a scene whose footprint contains the extent is taken, and only the scenes
       that contain it. Where no pass has one, all scenes of these passes are taken.
    2. The order is by pass as in `passes`, then most acquisitions first, then the lower relative orbit
       number: the order of the mosaic, which the recipe left to chance, made explicit.
    """
    whole = {orbit.orbit_pass for orbit in acquired if orbit.contains_extent}
    containing = [name for name in passes if name in whole]
    used = containing[:1] or list(passes)
    chosen = [o for o in acquired if o.orbit_pass in used and o.contains_extent == bool(containing)]
    return sorted(chosen, key=lambda o: (used.index(o.orbit_pass), -acquired[o], o.relative_orbit))

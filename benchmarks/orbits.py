"""What the rule of Sentinel-1's orbits does to a season.

    python benchmarks/orbits.py [--regions 48] [--json]

Regions of the simulated world, seen by one satellite on two ascending and two descending orbits, each every
twelve days. An orbit sees a region under its own angle of incidence, and backscatter falls by 0.13 dB a
degree. A month has two or three scenes of an orbit, by turns. For each rule: regions whose composites change
their topmost orbit within six months, and the jumps from month to month that come from the angle alone: the
composite less that of the same scenes without the effect of the angle.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any, Literal, NamedTuple

import numpy as np

from cropray.grid import Grid
from cropray.imagery.composite import composite_scenes
from cropray.imagery.orbits import choose_season
from cropray.imagery.scenes import S1Scene
from cropray.imagery.simulated import PlaceScenes
from cropray.simulation.radar import ORBITS
from cropray.types import Composite, CompositeRecipe, DoubleArray, ImageRequest, Period

REPEAT_DAYS, DB_PER_DEGREE, MIDDLE_DEG = 12, -0.13, 39.0
MONTHS = tuple(Period(date(2022, month, 1), date(2022, month + 1, 1)) for month in range(2, 8))


class View(NamedTuple):
    """An orbit over a region."""

    orbit_pass: Literal["ascending", "descending"]
    number: int
    first_day: int  # ordinal modulo REPEAT_DAYS
    angle_deg: float  # of incidence


def plan(rng: np.random.Generator) -> list[View]:
    """Of each pass two neighbours: one sees the region from near, the other from far."""
    views = []
    for first in (View("ascending", 15, 0, 0), View("descending", 37, 0, 0)):
        near = float(rng.uniform(30.5, 37.0))
        for number, angle in ((first.number, near), (first.number + 73, near + float(rng.uniform(6.0, 9.0)))):
            views.append(View(first.orbit_pass, number, int(rng.integers(REPEAT_DAYS)), angle))
    return views


def compose(request: ImageRequest, views: Iterable[View], slope: float) -> Composite:
    """The composite of scenes that differ by the angle of incidence alone, `slope` dB a degree."""
    place = PlaceScenes.on(request.grid, 0)

    def scenes(period: Period, *_: Any) -> Iterator[S1Scene]:
        for view in views:
            factor = np.float32(10 ** (slope * (view.angle_deg - MIDDLE_DEG) / 10))
            known = {"relative_orbit": view.number, "orbit_pass": view.orbit_pass}
            for day in range(period.start.toordinal(), period.end.toordinal()):
                if day % REPEAT_DAYS == view.first_day:
                    scene = place.s1_scene(ORBITS[-1], date.fromordinal(day), contains=True)
                    yield replace(scene, power_chw=scene.power_chw * factor, **known)

    return composite_scenes(request, lambda _: [], scenes, lambda asked: choose_season(asked, scenes))


def effect_db(request: ImageRequest, views: list[View]) -> DoubleArray:
    """Mean dB in VV of each month that the angle of incidence adds."""
    seen, flat = (compose(request, views, slope).s1_tchw[:, 0] for slope in (DB_PER_DEGREE, 0.0))
    return (seen - flat).astype(np.float64).mean(axis=(1, 2))


def measure(regions: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    effects: dict[str, list[DoubleArray]] = {"monthly": [], "season": []}
    for _ in range(regions):
        lon, lat = rng.uniform(3.7, 5.0), rng.uniform(50.1, 50.8)
        grid = Grid.covering((lon, lat, lon + 0.002, lat + 0.0013), "EPSG:4326")
        views = plan(rng)
        for rule, found in effects.items():
            request = ImageRequest(grid, grid, MONTHS, CompositeRecipe(s1_orbit_rule=rule, sensors=("s1",)))
            found.append(effect_db(request, views))
    jumps = {rule: np.abs(np.diff(found, axis=1)) for rule, found in effects.items()}
    return {
        rule: {
            "regions": regions,
            "change_orbit": int((each.max(axis=1) > 0.01).sum()),
            "mean_jump_db": float(each.mean()),
            "largest_jump_db_mean": float(each.max(axis=1).mean()),
            "largest_jump_db": float(each.max()),
        }
        for rule, each in jumps.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regions", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.regions)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print("| rule | regions that change orbit | mean jump, dB | largest jump: mean, dB | most, dB |")
    print("|---|---|---|---|---|")
    for rule, row in found.items():
        print(
            f"| {rule} | {row['change_orbit']} of {row['regions']} | {row['mean_jump_db']:.2f} "
            f"| {row['largest_jump_db_mean']:.2f} | {row['largest_jump_db']:.2f} |"
        )


if __name__ == "__main__":
    main()

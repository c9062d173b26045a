"""The built-in world as a source of imagery and of maps.

A deterministic function of place, date and seed: any grid, tile or CRS sees the same world. Its
science stands in the other modules of this room: geography (`fields`), `phenology`, `optics`, `radar`
and `sky`; what a user would bring along is made by `inputs`, maps with errors by `maps`.

The parameters are FROZEN as version 1: figures made with this world hold only for its version. A
change of any constant that touches a pixel raises VERSION, and every figure is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cropray.config.imagery import SimulatedConfig
from cropray.grid import Grid
from cropray.imagery.composite import S1Scene, S2Scene, composite_scenes
from cropray.simulation import optics, phenology, radar
from cropray.simulation import sky as clouds
from cropray.simulation.fields import LANDS, Place, land_of, to_world
from cropray.simulation.maps import class_map
from cropray.simulation.noise import Array, normal, normal_rows, scene_rows
from cropray.types import BoolArray, Composite, FloatArray, ImageRequest, Period

VERSION = 1

_MIXED_M = 7.0  # within this distance of an edge a pixel also sees the field beyond
_NOISE, _NOISE_SHARE = 0.0035, 0.02  # of each pixel and date: floor, and share of the reflectance
# Atmospheric correction of each date: what stays, added to the bands and as a factor.
_HAZE = np.array((9, 8, 6, 5, 4, 3, 3, 3, 2, 2), np.float32) * np.float32(1e-3)
_GAIN, _GAIN_BAND = 0.05, 0.02


class SimulatedSource:
    """Scenes of the simulated world, composited as those of any other source."""

    def __init__(self, config: SimulatedConfig) -> None:
        self.config = config

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "simulated",
            "version": VERSION,
            "seed": self.config.seed,
            "year": self.config.year,
            "s1_quantity": "gamma0",
        }

    def composite(self, request: ImageRequest) -> Composite:
        tile = _Tile(request.grid, request.extent, self.config.seed)
        maps = {name: self.class_map(name, request.grid) for name in request.maps}
        return replace(composite_scenes(request, tile.s2_scenes, tile.s1_scenes), maps=maps)

    def s2_scenes(self, grid: Grid, period: Period) -> Iterator[S2Scene]:
        """The Sentinel-2 scenes of a period, oldest first."""
        return _Tile(grid, grid, self.config.seed).s2_scenes(period)

    def s1_scenes(self, grid: Grid, period: Period) -> Iterator[S1Scene]:
        """The Sentinel-1 scenes of a period, orbit by orbit."""
        return _Tile(grid, grid, self.config.seed).s1_scenes(period)

    def class_map(self, name: str, grid: Grid) -> npt.NDArray[np.int32]:
        """Codes (H, W) of "truth", "eucropmap" or "land_cover" (see `maps`). Raises InputError."""
        return class_map(name, grid, self.config.seed, self.config.year)


class _Season(NamedTuple):
    """What each field of a tile is in one harvest year, and how it grows."""

    land: npt.NDArray[np.uint8]
    habits: phenology.Habits
    leaf: optics.Leaf
    surface: radar.Surface
    texture: FloatArray  # (P, 2) factors of power


class PlaceScenes:
    """The scenes of a place, its pixels laid out as `shape`: what is per place is worked out once."""

    def __init__(self, place: Place, shape: tuple[int, int]) -> None:
        self.place, self.shape, self.seed = place, shape, place.seed
        self.sky = clouds.SkyLattice(place)
        self._seasons: dict[int, _Season] = {}

    def s2_scene(self, day: date) -> S2Scene:
        """The Sentinel-2 scene of a day, whether or not there was an acquisition."""
        season = self._season(day)
        canopy = phenology.canopy_on(season.habits, day)
        wet = optics.wetness(self.seed, self.place.fields, day)
        fields_f3c = optics.signatures(season.leaf, canopy, wet)
        sky = self.sky.at(day)
        gain, haze = _correction(self.seed, day)
        # What is hidden altogether costs nothing: most scenes are mostly cloud.
        seen_pc = np.repeat((clouds.CLOUD * gain + haze)[None], len(self.place.x), axis=0)
        open_p = np.flatnonzero(sky.cloud < 1)
        if len(open_p):
            ground = self._ground(fields_f3c, open_p)
            seen = clouds.through(ground, sky.cloud[open_p], sky.shadow[open_p])
            rows = scene_rows(self.place.cells[0][open_p], self.seed, "s2", day.toordinal())
            seen_pc[open_p] = _sensed(seen, normal_rows(10)[rows], gain, haze)
        mean_fc = fields_f3c[:, 0]
        green = (mean_fc[:, 6] - mean_fc[:, 2]) / (mean_fc[:, 6] + mean_fc[:, 2])
        classes = np.where(green > 0.4, clouds.SCL_VEGETATION, clouds.SCL_BARE).astype(np.uint8)
        classes[season.land == LANDS.index("water")] = clouds.SCL_WATER
        scl = clouds.scene_classes(self.place, sky, classes[self.place.field], day)
        return S2Scene(
            datetime.combine(day, time(10, 50), UTC),
            np.ascontiguousarray(seen_pc.T).reshape(10, *self.shape),
            scl.reshape(self.shape),
        )

    def _ground(self, fields_f3c: FloatArray, at: npt.NDArray[np.intp]) -> FloatArray:
        """Reflectance (len(at), C) of the ground: the field's, its pixels' own, mixed at edges."""
        vigour, soil = (texture[at, None] for texture in self.place.textures)
        rows = fields_f3c[self.place.field[at]]
        ground: FloatArray = rows[:, 0] + rows[:, 1] * vigour
        ground += rows[:, 2] * soil
        share, mixed = self._mixed_pixels
        here = np.flatnonzero(mixed[at])
        pixels = at[here]
        beyond = fields_f3c[self.place.neighbour[pixels], 0]
        ground[here] += share[pixels, None] * (beyond - ground[here])
        return ground

    def s1_scene(self, orbit: radar.Orbit, day: date, contains: bool) -> S1Scene:
        """The Sentinel-1 scene of an orbit and day, whether or not there was an acquisition."""
        season, place = self._season(day), self.place
        canopy = phenology.canopy_on(season.habits, day)
        shift = season.habits.shift_days
        db = radar.backscatter_db(self.seed, place.fields, season.land, season.surface, canopy, shift, day)
        power_f2 = np.power(10.0, db / 10).astype(np.float32)
        power = power_f2.take(place.field, axis=0)
        power *= season.texture
        share, mixed = self._mixed_pixels
        here = np.flatnonzero(mixed)
        power[here] += share[here, None] * (power_f2[place.neighbour[here]] - power[here])
        power *= radar.speckle(place, orbit, day)
        power[self._uncovered[orbit.number]] = np.nan
        return S1Scene(
            datetime.combine(day, time(orbit.hour, 30), UTC),
            orbit.number,
            orbit.orbit_pass,
            contains,
            np.ascontiguousarray(power.T).reshape(2, *self.shape),
        )

    @cached_property
    def _mixed_pixels(self) -> tuple[FloatArray, BoolArray]:
        """Share of the field beyond in each pixel (P,): half at the edge; and where there is any."""
        place = self.place
        share = np.maximum(0.5 - 0.5 * place.edge_m / np.float32(_MIXED_M), 0).astype(np.float32)
        return share, (share > 0) & (place.field != place.neighbour)

    @cached_property
    def _uncovered(self) -> dict[int, npt.NDArray[np.intp]]:
        """By relative orbit: the pixels outside of its swath."""
        place = self.place
        return {o.number: np.flatnonzero(~o.covers(place.x, place.y)) for o in radar.ORBITS}

    def _season(self, day: date) -> _Season:
        year = phenology.season_of(day)
        if year not in self._seasons:
            fields = self.place.fields
            land = land_of(self.seed, fields, year)
            surface = radar.surfaces(self.seed, fields, land, year)
            self._seasons[year] = _Season(
                land,
                phenology.habits(self.seed, fields, land, year),
                optics.leaves(self.seed, fields, land, year),
                surface,
                radar.within_field(self.place, surface),
            )
        return self._seasons[year]


class _Tile(PlaceScenes):
    """The scenes of a grid; coverage is decided on the extent of the whole ROI."""

    def __init__(self, grid: Grid, extent: Grid, seed: int) -> None:
        super().__init__(Place.on(grid, seed), grid.shape)
        self.extent = extent

    def s2_scenes(self, period: Period) -> Iterator[S2Scene]:
        for day in clouds.s2_days(self.seed, period):
            yield self.s2_scene(day)

    def s1_scenes(self, period: Period) -> Iterator[S1Scene]:
        for orbit in radar.ORBITS:
            touches, contains = self._coverage(orbit)
            if touches:
                for day in orbit.days(self.seed, period):
                    yield self.s1_scene(orbit, day, contains)

    def _coverage(self, orbit: radar.Orbit) -> tuple[bool, bool]:
        """Whether the swath touches, and whether it contains, the extent (by its edge's pixels)."""
        x, y = _outline(self.extent)
        covered = orbit.covers(*to_world(x, y, self.extent.crs))
        return bool(covered.any()), bool(covered.all())


def _correction(seed: int, day: date) -> tuple[FloatArray, FloatArray]:
    """Factor and offset by band (C,) that the atmospheric correction of a date leaves."""
    bands, at = np.arange(10), day.toordinal()
    gain = 1 + _GAIN * normal(seed, "gain", at) + _GAIN_BAND * normal(seed, "gains", bands, at)
    return gain.astype(np.float32), _HAZE * np.float32(normal(seed, "haze", at)[0])


def _sensed(seen_pc: FloatArray, noise_pc: FloatArray, gain: FloatArray, haze: FloatArray) -> FloatArray:
    """With the noise of pixels, in place; level 2A holds nothing below a digital number of 1."""
    factor = noise_pc * np.float32(_NOISE_SHARE)
    factor += gain
    seen_pc *= factor
    noise_pc *= np.float32(_NOISE)
    seen_pc += noise_pc
    seen_pc += haze
    return np.maximum(seen_pc, np.float32(1e-4), out=seen_pc)


def _outline(grid: Grid) -> tuple[Array, Array]:
    min_x, min_y, max_x, max_y = grid.bounds
    x, y = np.linspace(min_x, max_x, 33), np.linspace(min_y, max_y, 33)
    return (
        np.concatenate([x, x, np.full(33, min_x), np.full(33, max_x)]),
        np.concatenate([np.full(33, min_y), np.full(33, max_y), y, y]),
    )

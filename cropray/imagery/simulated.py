"""The built-in simulation as a source of imagery and of maps.

It is a deterministic function of place, date and seed: any grid, tile or CRS sees the same landscape. Its
science is in `cropray.simulation`.

The parameters are FROZEN as version 1: figures made with the simulation hold for its version only. A change
of any constant that touches a pixel raises VERSION, and every figure is made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cropray.config.imagery import SimulatedConfig
from cropray.grid import Grid
from cropray.imagery.composite import composite_scenes
from cropray.imagery.orbits import Orbit, Season, choose_season
from cropray.imagery.scenes import S1Scene, S2Scene
from cropray.simulation import radar, vegetation
from cropray.simulation import sky as clouds
from cropray.simulation.landscape import PLANE_CRS, Place, codes_at, land_of
from cropray.simulation.noise import normal, normal_rows, scene_rows
from cropray.simulation.tables import LANDS
from cropray.types import BoolArray, ByteArray, Composite, FloatArray, ImageRequest, IndexArray, Period

VERSION = 1

_MIXED_M = 7.0  # within this distance of an edge a pixel also sees the field beyond
_NOISE, _NOISE_SHARE = 0.0035, 0.02  # of each pixel and date: floor, and share of the reflectance
# Error of the atmospheric correction of a date: added by band, and as a factor on all bands and on each.
_HAZE = np.array((9, 8, 6, 5, 4, 3, 3, 3, 2, 2), np.float32) * np.float32(1e-3)
_GAIN, _GAIN_BAND = 0.05, 0.02


class SimulatedSource:
    """Scenes of the simulation, composited as those of any other source."""

    def __init__(self, config: SimulatedConfig) -> None:
        self.config = config

    def identity(self) -> dict[str, Any]:
        chosen = {"seed": self.config.seed, "year": self.config.year}
        return {"kind": "simulated", "version": VERSION, **chosen, "s1_quantity": "gamma0"}

    def composite(self, request: ImageRequest) -> Composite:
        scenes = PlaceScenes.on(request.grid, self.config.seed)
        s1 = partial(scenes.s1_scenes, request.extent)
        season = partial(_season, self.config.seed)
        maps = {name: self.class_map(name, request.grid) for name in request.maps}
        return replace(composite_scenes(request, scenes.s2_scenes, s1, season), maps=maps)

    def class_map(self, name: str, grid: Grid) -> npt.NDArray[np.int32]:
        """Codes (H, W) of "truth", "eucropmap" or "land_cover" (see `landscape`). Raises InputError."""
        return codes_at(name, Place.on(grid, self.config.seed), self.config.year).reshape(grid.shape)


class _Season(NamedTuple):
    """What each field of a place is in one harvest year, and how it grows and looks."""

    land: ByteArray
    growth: vegetation.Growth
    spectra: vegetation.FieldSpectra
    backscatter: radar.FieldBackscatter
    texture: FloatArray  # (P, 2) factors of power


class PlaceScenes:
    """The scenes of a place, whose pixels are laid out as `shape` (H, W).

    What does not depend on the date is computed once.
    """

    def __init__(self, place: Place, shape: tuple[int, int]) -> None:
        self.place, self.shape, self.seed = place, shape, place.seed
        self._seasons: dict[int, _Season] = {}

    @classmethod
    def on(cls, grid: Grid, seed: int) -> PlaceScenes:
        return cls(Place.on(grid, seed), grid.shape)

    def s2_scenes(self, period: Period) -> Iterator[S2Scene]:
        """The Sentinel-2 scenes of a period, oldest first."""
        return map(self.s2_scene, clouds.s2_days(self.seed, period))

    def s1_scenes(
        self, extent: Grid, period: Period, orbits: Sequence[Orbit] | None = None
    ) -> Iterator[S1Scene]:
        """The Sentinel-1 scenes of a period that touch `extent`, the grid of the ROI, orbit by orbit.

        `orbits` are those to take, None: all.
        """
        for orbit in radar.ORBITS:
            covered = orbit.covers(*_outline(extent))
            wanted = orbits is None or Orbit(orbit.orbit_pass, orbit.number) in orbits
            if wanted and covered.any():
                for day in orbit.days(self.seed, period):
                    yield self.s1_scene(orbit, day, contains=bool(covered.all()))

    @cached_property
    def sky(self) -> clouds.CloudLattice:
        return clouds.CloudLattice(self.place)

    def s2_scene(self, day: date) -> S2Scene:
        """The Sentinel-2 scene of a day, whether or not it was acquired."""
        season, place = self._season(day), self.place
        canopy = vegetation.canopy_on(season.growth, day)
        wet = vegetation.wetness(place.nearest.fields, day)
        fields_f3c = vegetation.reflectance(season.spectra, canopy, wet)
        sky = self.sky.at(day)
        gain, haze = _correction_error(self.seed, day)
        # Pixels under opaque cloud, most of them in most scenes, cost nothing.
        seen_pc = np.repeat((clouds.CLOUD * gain + haze)[None], len(place.x), axis=0)
        open_p = np.flatnonzero(sky.cloud < 1)
        if len(open_p):
            seen = clouds.through(self._ground(fields_f3c, open_p), sky.cloud[open_p], sky.shadow[open_p])
            rows = scene_rows(place.cells[0][open_p], self.seed, "s2", day.toordinal())
            seen_pc[open_p] = _measured(seen, normal_rows(10)[rows], gain, haze)
        mean_fc = fields_f3c[:, 0]
        ndvi = (mean_fc[:, 6] - mean_fc[:, 2]) / (mean_fc[:, 6] + mean_fc[:, 2])
        classes = np.where(ndvi > 0.4, clouds.SCL_VEGETATION, clouds.SCL_BARE).astype(np.uint8)
        classes[season.land == LANDS.index("water")] = clouds.SCL_WATER
        scl = clouds.scene_classes(place, sky, classes[place.nearest.field], day)
        when = datetime.combine(day, time(10, 50), UTC)
        return S2Scene(when, self._planes(seen_pc), scl.reshape(self.shape))

    def _ground(self, fields_f3c: FloatArray, at: IndexArray) -> FloatArray:
        """Reflectance (len(at), C) of the ground at some pixels: the field's, their own, mixed at edges."""
        vigour, soil = (texture[at, None] for texture in self.place.textures)
        rows = fields_f3c[self.place.nearest.field[at]]
        ground: FloatArray = rows[:, 0] + rows[:, 1] * vigour
        ground += rows[:, 2] * soil
        share, mixed = self._mixed_pixels
        here = np.flatnonzero(mixed[at])
        pixels = at[here]
        beyond = fields_f3c[self.place.nearest.neighbour[pixels], 0]
        ground[here] += share[pixels, None] * (beyond - ground[here])
        return ground

    def s1_scene(self, orbit: radar.Orbit, day: date, contains: bool) -> S1Scene:
        """The Sentinel-1 scene of an orbit and day, whether or not it was acquired."""
        season, (fields, field, neighbour, _) = self._season(day), self.place.nearest
        canopy, shift = vegetation.canopy_on(season.growth, day), season.growth.shift_days
        db = radar.backscatter_db(fields, season.land, season.backscatter, canopy, shift, day)
        power_f2 = np.power(10.0, db / 10).astype(np.float32)
        power = power_f2.take(field, axis=0)
        power *= season.texture
        share, mixed = self._mixed_pixels
        here = np.flatnonzero(mixed)
        power[here] += share[here, None] * (power_f2[neighbour[here]] - power[here])
        power *= radar.speckle(self.place, orbit, day)
        power[self._uncovered[orbit.number]] = np.nan
        when = datetime.combine(day, time(orbit.hour, 30), UTC)
        return S1Scene(when, orbit.number, orbit.orbit_pass, contains, self._planes(power))

    def _planes(self, values_pc: FloatArray) -> FloatArray:
        """(C, H, W) from (P, C)."""
        return np.ascontiguousarray(values_pc.T).reshape(-1, *self.shape)

    @cached_property
    def _mixed_pixels(self) -> tuple[FloatArray, BoolArray]:
        """Share of the field beyond in each pixel (P,), half at the edge; and where it is not 0."""
        _, field, neighbour, edge_m = self.place.nearest
        share = np.maximum(0.5 - 0.5 * edge_m / np.float32(_MIXED_M), 0).astype(np.float32)
        return share, (share > 0) & (field != neighbour)

    @cached_property
    def _uncovered(self) -> dict[int, IndexArray]:
        """By relative orbit: the pixels outside its swath."""
        place = self.place
        return {o.number: np.flatnonzero(~o.covers(place.x, place.y)) for o in radar.ORBITS}

    def _season(self, day: date) -> _Season:
        year = vegetation.season_of(day)
        if year not in self._seasons:
            fields = self.place.nearest.fields
            land = land_of(fields, year)
            backscatter = radar.draw_backscatter(fields, land, year)
            self._seasons[year] = _Season(
                land,
                vegetation.draw_growth(fields, land, year),
                vegetation.draw_spectra(fields, land, year),
                backscatter,
                radar.within_field(self.place, backscatter),
            )
        return self._seasons[year]


def _season(seed: int, request: ImageRequest) -> Season:
    return _season_of(seed, replace(request, grid=request.extent, maps=(), name=""))


@lru_cache(64)
def _season_of(seed: int, request: ImageRequest) -> Season:
    def survey(period: Period, grid: Grid) -> Iterator[S1Scene]:
        """Scenes as wide as those of `PlaceScenes.s1_scenes`, all of 0 dB."""
        place = Place.on(grid, seed)
        for orbit in radar.ORBITS:
            seen = np.where(orbit.covers(place.x, place.y), np.float32(1), np.float32(np.nan))
            power = np.broadcast_to(seen.reshape(grid.shape), (2, *grid.shape))
            for day in orbit.days(seed, period):
                when = datetime.combine(day, time(orbit.hour, 30), UTC)
                yield S1Scene(when, orbit.number, orbit.orbit_pass, False, power)

    return choose_season(request, survey)


@lru_cache(64)
def _outline(grid: Grid) -> npt.NDArray[np.floating]:
    """Points (2, N) along the edge of a grid, on the plane."""
    return grid.outline_in(PLANE_CRS, per_side=32).T


def _correction_error(seed: int, day: date) -> tuple[FloatArray, FloatArray]:
    """Factor and offset by band (C,) that the atmospheric correction of a date leaves."""
    bands, at = np.arange(10), day.toordinal()
    gain = 1 + _GAIN * normal(seed, "gain", at) + _GAIN_BAND * normal(seed, "gains", bands, at)
    return gain.astype(np.float32), _HAZE * np.float32(normal(seed, "haze", at)[0])


def _measured(seen_pc: FloatArray, noise_pc: FloatArray, gain: FloatArray, haze: FloatArray) -> FloatArray:
    """With the noise of pixels, in place. Level 2A holds nothing below a digital number of 1."""
    factor = noise_pc * np.float32(_NOISE_SHARE)
    factor += gain
    seen_pc *= factor
    noise_pc *= np.float32(_NOISE)
    seen_pc += noise_pc
    seen_pc += haze
    return np.maximum(seen_pc, np.float32(1e-4), out=seen_pc)

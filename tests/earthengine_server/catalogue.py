"""The data sets that the server offers: scenes and maps of the simulated world.

Sentinel-2 is served as digital numbers (reflectance times 10,000, rounded), Sentinel-1 as dB in
double precision, one scene an acquisition with the swath as its footprint. Every pixel of a request is
the world at the pixel's centre. Scenes that were made for a grid are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
import shapely

from cropray.bands import S1_BANDS, S2_BANDS
from cropray.imagery.simulated import PlaceScenes
from cropray.simulation import radar
from cropray.simulation.landscape import codes_at
from cropray.simulation.radar import Orbit
from cropray.simulation.sky import s2_days
from cropray.types import Period
from tests.earthengine_server.values import (
    BYTE,
    DOUBLE,
    UINT16,
    Band,
    Collection,
    Image,
    Pixels,
    PixelType,
    ServiceError,
    View,
)

S2, S1 = "COPERNICUS/S2_SR_HARMONIZED", "COPERNICUS/S1_GRD"
CLOUD_SCORE = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"
EUCROPMAP, WORLD_COVER = "JRC/D5/EUCROPMAP/V1", "ESA/WorldCover/v200"

S2_PERIOD = Period(date(2017, 3, 28), date(2026, 1, 1))
S1_PERIOD = Period(date(2014, 10, 3), date(2026, 1, 1))
MAP_YEARS = {EUCROPMAP: (2018, 2022), WORLD_COVER: (2021,)}

# On the plane of the world (EPSG:3035): where there are scenes, and where EUCROPMAP is.
WORLD = shapely.box(-500_000, -1_500_000, 9_500_000, 8_500_000)
EUROPE = shapely.box(2_600_000, 1_400_000, 6_500_000, 5_400_000)
_KEPT_PLACES = 48

EAST = shapely.box(3_900_000, -1_500_000, 9_500_000, 8_500_000)  # beyond some 4.3° E at 50° N

Gap = tuple[str, date, date]
"""A collection without scenes from a day to another (exclusive)."""
Change = Callable[[Any], Any]
"""Of the values of a band."""


class Catalogue:
    """`gaps` are left out of the collections; `keep_bytes` bounds the scenes that are kept.

    With `copies`, each scene is there twice: as an older processing too, with other values, and Sentinel-2
    as a tile of the east that overlaps. `changed` is applied to the values of all scenes of a collection.
    """

    def __init__(
        self,
        seed: int = 0,
        gaps: Sequence[Gap] = (),
        keep_bytes: int = 1 << 30,
        *,
        copies: bool = False,
        changed: Mapping[str, Change] | None = None,
    ) -> None:
        self.seed, self._gaps, self._copies = seed, tuple(gaps), copies
        self._changed = dict(changed or {})
        self._lock = RLock()
        self._collections: dict[str, Collection] = {}
        self._places: OrderedDict[Hashable, PlaceScenes] = OrderedDict()
        self._scenes: OrderedDict[Hashable, list[Pixels]] = OrderedDict()
        self._bytes, self._keep_bytes = 0, keep_bytes

    def collection(self, name: str) -> Collection:
        makers = {
            S2: self._s2,
            S1: self._s1,
            CLOUD_SCORE: self._cloud_scores,
            EUCROPMAP: partial(self._maps, EUCROPMAP, "eucropmap", ("classification", UINT16), EUROPE),
            WORLD_COVER: partial(self._maps, WORLD_COVER, "land_cover", ("Map", BYTE), WORLD),
        }
        if name not in makers:
            raise ServiceError(
                f"ImageCollection.load: ImageCollection asset '{name}' not found "
                "(does not exist or caller does not have access)."
            )
        with self._lock:
            if name not in self._collections:
                elements = (image for image in makers[name]() if not self._is_missing(name, image))
                self._collections[name] = Collection(tuple(elements), name)
            return self._collections[name]

    def image(self, name: str) -> Image:
        parent = name.rpartition("/")[0]
        if parent in (S2, S1, CLOUD_SCORE, *MAP_YEARS):
            for image in self.collection(parent).elements:
                if image.id == name:
                    return image
        raise ServiceError(
            f"Image.load: Image asset '{name}' not found (does not exist or caller does not have access)."
        )

    def _is_missing(self, name: str, image: Image) -> bool:
        day = datetime.fromtimestamp(image.properties["system:time_start"] / 1000, UTC).date()
        return any(name == gap and start <= day < end for gap, start, end in self._gaps)

    def _s2(self) -> Iterator[Image]:
        for day in s2_days(self.seed, S2_PERIOD):
            types = [*((band.ee, UINT16) for band in S2_BANDS), ("SCL", BYTE)]
            image = partial(self._image, S2, day=day, at=time(10, 50), types=types)
            read, baseline = partial(_s2_pixels, day), "PROCESSING_BASELINE"
            index = _s2_index(day)
            yield image(index, make=read, covered=WORLD, properties={baseline: "05.09"})
            if self._copies:
                older = partial(_changed, read, lambda number: number + 500)
                yield image(f"{index}_OLD", make=older, covered=WORLD, properties={baseline: "02.14"})
                yield image(f"{index}_EAST", make=read, covered=EAST, properties={baseline: "05.09"})

    def _cloud_scores(self) -> Iterator[Image]:
        for day in s2_days(self.seed, S2_PERIOD):
            read = partial(_score_pixels, day)
            for copy in ("", "_OLD", "_EAST") if self._copies else ("",):
                index = _s2_index(day) + copy
                yield self._image(CLOUD_SCORE, index, day, time(10, 50), [("cs_cdf", DOUBLE)], read, WORLD)

    def _s1(self) -> Iterator[Image]:
        for orbit in radar.ORBITS:
            swath = footprint(orbit)
            properties = {
                "instrumentMode": "IW",
                "resolution": "H",
                "resolution_meters": 10,
                "transmitterReceiverPolarisation": [band.ee for band in S1_BANDS],
                "orbitProperties_pass": orbit.orbit_pass.upper(),
                "relativeOrbitNumber_start": float(orbit.number),
            }
            for day in orbit.days(self.seed, S1_PERIOD):
                index = f"S1A_IW_GRDH_1SDV_{day:%Y%m%d}T{orbit.hour:02d}3000_{orbit.number:03d}"
                types = [(band.ee, DOUBLE) for band in S1_BANDS]
                image = partial(self._image, S1, day=day, at=time(orbit.hour, 30), types=types, covered=swath)
                read, number = partial(_s1_pixels, orbit, day), 15 * day.toordinal() + orbit.number % 15
                own = {**properties, "platform_number": "A", "orbitNumber_start": number}
                processed = "GRD_Post_Processing_start"
                yield image(index, make=read, properties=own | {processed: 2.0})
                if self._copies:
                    older = partial(_changed, read, lambda db: db + 3)
                    yield image(f"{index}_OLD", make=older, properties=own | {processed: 1.0})

    def _maps(
        self, name: str, of_world: str, band: tuple[str, PixelType], covered: shapely.Geometry
    ) -> Iterator[Image]:
        for year in MAP_YEARS[name]:
            read = partial(_map_pixels, of_world, year)
            yield self._image(name, str(year), date(year, 1, 1), time(0), [band], read, covered)

    def _image(
        self,
        collection: str,
        index: str,
        day: date,
        at: time,
        types: Sequence[tuple[str, Any]],
        make: Callable[[View, PlaceScenes], list[Pixels]],
        covered: shapely.Geometry,
        properties: dict[str, Any] | None = None,
    ) -> Image:
        asset = f"{collection}/{index}"
        if collection in self._changed:
            make = partial(_changed, make, self._changed[collection])

        def read(number: int, view: View) -> Pixels:
            return self._scene(asset, view, make, covered)[number]

        bands = (Band(name, held, partial(read, i), covered) for i, (name, held) in enumerate(types))
        millis = datetime.combine(day, at, UTC).timestamp() * 1000
        own = {"system:index": index, "system:time_start": millis, **(properties or {})}
        return Image(tuple(bands), own, covered, asset)

    def _scene(
        self,
        asset: str,
        view: View,
        make: Callable[[View, PlaceScenes], list[Pixels]],
        covered: shapely.Geometry,
    ) -> list[Pixels]:
        key = (asset, view.key)
        with self._lock:
            if key in self._scenes:
                self._scenes.move_to_end(key)
                return self._scenes[key]
        inside = view.inside(covered)
        made = make(view, self._place(view)) if inside.any() else None
        if made is None:
            return [view.filled(0, valid=False)] * (len(S2_BANDS) + 1)
        bands = [Pixels(values, valid & inside) for values, valid in made]
        with self._lock:
            if key not in self._scenes:
                self._scenes[key] = bands
                self._bytes += _size(bands)
                while self._bytes > self._keep_bytes:
                    self._bytes -= _size(self._scenes.popitem(last=False)[1])
        return bands

    def _place(self, view: View) -> PlaceScenes:
        with self._lock:
            if view.key not in self._places:
                self._places[view.key] = PlaceScenes(view.place(self.seed), view.shape)
            self._places.move_to_end(view.key)
            while len(self._places) > _KEPT_PLACES:
                self._places.popitem(last=False)
            return self._places[view.key]


def footprint(orbit: Orbit) -> shapely.Geometry:
    """The swaths of an orbit on the plane of the world: `Orbit.covers` as a geometry."""
    if orbit.swath_m >= orbit.spacing_m:
        return WORLD
    heading = np.deg2rad(orbit.heading_deg)
    to_plane = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
    reach = 20_000_000.0  # along and across: beyond the world
    first = orbit.edge_m - orbit.spacing_m * np.ceil(reach / orbit.spacing_m)
    swaths = [
        shapely.transform(
            shapely.box(left, -reach, left + orbit.swath_m, reach),
            lambda across_along: across_along @ to_plane.T,
        )
        for left in np.arange(first, reach, orbit.spacing_m)
    ]
    return shapely.intersection(shapely.multipolygons(swaths), WORLD)


def _s2_pixels(day: date, view: View, place: PlaceScenes) -> list[Pixels]:
    scene = place.s2_scene(day)
    reflectance_chw = scene.reflectance_chw.astype(np.float64)
    valid = np.isfinite(reflectance_chw).all(axis=0) & (scene.scl_hw > 0)
    dn_chw = np.rint(np.nan_to_num(reflectance_chw) * 10_000).clip(0, 65_535).astype(np.uint16)
    return [*(Pixels(dn_hw, valid) for dn_hw in dn_chw), Pixels(scene.scl_hw, valid)]


def _score_pixels(day: date, view: View, place: PlaceScenes) -> list[Pixels]:
    """cs_cdf: 1 for a clear view, less the thicker the cloud and the deeper its shadow."""
    sky = place.sky.at(day)
    score = np.round(1 - np.maximum(sky.cloud, 0.6 * sky.shadow).astype(np.float64), 2)
    return [Pixels(score.reshape(view.shape), view.filled(0).mask)]


def _s1_pixels(orbit: Orbit, day: date, view: View, place: PlaceScenes) -> list[Pixels]:
    power_chw = place.s1_scene(orbit, day, contains=False).power_chw.astype(np.float64)
    seen_chw = power_chw > 0  # false for NaN
    db_chw = 10 * np.log10(np.where(seen_chw, power_chw, 1.0))
    return [Pixels(db, seen) for db, seen in zip(db_chw, seen_chw, strict=True)]


def _map_pixels(name: str, year: int, view: View, place: PlaceScenes) -> list[Pixels]:
    codes = codes_at(name, place.place, year).reshape(view.shape)
    return [Pixels(codes.astype(np.uint16), codes > 0)]


def _changed(
    make: Callable[[View, PlaceScenes], list[Pixels]], change: Change, view: View, place: PlaceScenes
) -> list[Pixels]:
    """The bands of a scene with other values. SCL, which comes last of eleven, stays."""
    bands = make(view, place)
    changed = [Pixels(change(values.astype(np.float64)), valid) for values, valid in bands]
    return [*changed[:10], *bands[10:]]


def _s2_index(day: date) -> str:
    return f"{day:%Y%m%d}T105000_{day:%Y%m%d}T105000_T00WLD"


def _size(bands: Sequence[Pixels]) -> int:
    return sum(values.nbytes + valid.nbytes for values, valid in bands)

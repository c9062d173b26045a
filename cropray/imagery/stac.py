"""Sentinel-1 and Sentinel-2 scenes of any STAC ItemCollection or API, on the grid of a request.

Resampling is nearest for SCL, and for bands whose item says that they are in the CRS of the grid: the grid is
snapped to 20 m, so their pixels nest exactly. Other bands are resampled bilinearly, without missing pixels.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from cropray.bands import S1_BANDS, S2_BANDS, SCL_ALIASES
from cropray.config.imagery import StacCollectionConfig, StacConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery import stac_items
from cropray.imagery.composite import composite_scenes
from cropray.imagery.longitudes import search_boxes, within_180
from cropray.imagery.orbits import Orbit, Season, choose_season
from cropray.imagery.scenes import LostScene, S1Scene, S2Scene, Scene, SceneLog
from cropray.imagery.stac_access import Access, DeadAssetError
from cropray.imagery.stac_items import Backscatter, find_asset, footprint, item_time
from cropray.storage import Folder
from cropray.types import Composite, ImageRequest, Period

_READERS = 8  # scenes read at a time: remote files are latency, not bandwidth
# What pystac raises for JSON of another form.
_NOT_STAC = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
    *(pystac.STACError, pystac.STACTypeError),
)
_SEARCH_S = (10, 120)  # to connect, and to wait for an answer


@dataclass(frozen=True)
class FileCatalogue:
    """A STAC ItemCollection at a path or URI. Relative paths of assets start from its folder."""

    uri: str
    collection: str

    def identity(self) -> dict[str, Any]:
        """Depends on the content, wherever the file lies."""
        return {"items_sha256": hashlib.sha256(self._bytes).hexdigest(), "collection": self.collection}

    def sample(self) -> list[pystac.Item]:
        """Items that show what the collection holds."""
        return self._items

    def candidates(self, _area: BaseGeometry, _start: date, _end: date) -> list[pystac.Item]:
        """At least all items that touch `area` (lon, lat) in [start, end)."""
        return self._items

    @cached_property
    def _bytes(self) -> bytes:
        parent, slash, name = self.uri.rpartition("/")
        return Folder(parent + slash or ".").read_bytes(name)

    @cached_property
    def _items(self) -> list[pystac.Item]:
        try:
            content = json.loads(self._bytes)
            if not isinstance(content, dict) or content.get("type") != "FeatureCollection":
                kind = content.get("type") if isinstance(content, dict) else type(content).__name__
                raise InputError(
                    f"{self.uri} is not a STAC ItemCollection, but of type {kind!r}. Collect the items in "
                    "one file: pystac.ItemCollection(items).save_object(FILE)"
                )
            items = list(pystac.ItemCollection.from_dict(content, preserve_dict=False))
            for item in items:
                item.set_self_href(self.uri)
                item.make_asset_hrefs_absolute()
        except InputError:
            raise
        except _NOT_STAC as error:
            raise InputError(f"{self.uri} is not a STAC ItemCollection (JSON): {error}") from error
        if not items:
            raise InputError(f"{self.uri} has no items. Search again: another place or time?")
        found = [item for item in items if self.collection in ("", item.collection_id)]
        if not found:
            collections = sorted({item.collection_id or "(no collection)" for item in items})
            raise InputError(
                f"{self.uri} has no items of the collection {self.collection!r}; it has those of "
                f"{', '.join(collections) or 'none'}"
            )
        return found


@dataclass(frozen=True)
class ApiCatalogue:
    """A collection of a STAC API with item search."""

    url: str
    collection: str

    def identity(self) -> dict[str, Any]:
        return {"api": self.url, "collection": self.collection}

    def sample(self) -> list[pystac.Item]:
        return self._query(max_items=1)

    def candidates(self, area: BaseGeometry, start: date, end: date) -> list[pystac.Item]:
        window = f"{start}T00:00:00Z/{end - timedelta(days=1)}T23:59:59.999999Z"
        found: dict[str, pystac.Item] = {}
        for box in search_boxes(area):
            found |= {item.id: item for item in self._query(bbox=box, datetime=window)}
        return list(found.values())

    def _query(self, **query: Any) -> list[pystac.Item]:
        from pystac_client import Client
        from pystac_client.exceptions import APIError
        from pystac_client.warnings import DoesNotConformTo

        try:
            client = Client.open(self.url, timeout=_SEARCH_S)
            items = list(client.search(collections=[self.collection], **query).items())
            # No items are no error, unless the collection does not exist.
            exists = bool(items) or client.get_collection(self.collection) is not None
        except (APIError, DoesNotConformTo, *_NOT_STAC) as error:
            raise InputError(f"the STAC API {self.url} cannot be searched: {error}") from error
        if not exists:
            raise InputError(f"the STAC API {self.url} has no collection {self.collection!r}")
        return items


Catalogue = FileCatalogue | ApiCatalogue


def search(catalogue: Catalogue, area: BaseGeometry, start: date, end: date) -> list[pystac.Item]:
    """The items that touch `area` (lon, lat) in [start, end), by time and id."""
    candidates = catalogue.candidates(area, start, end)
    in_time = [item for item in candidates if start <= item_time(item).date() < end]
    found = [item for item in in_time if footprint(item).intersects(area)]
    return sorted(found, key=lambda item: (item_time(item), item.id))


def open_catalogue(config: StacCollectionConfig, key: str) -> Catalogue | None:
    """The catalogue of the settings under `key`, None where they name none. Raises InputError for two."""
    if config.items and config.api:
        raise InputError(
            f"set either {key}.items (a file of STAC items) or {key}.api (the URL of a STAC API), not both"
        )
    if not config.items and not config.api:
        return None
    if config.items:
        return FileCatalogue(config.items, config.collection)
    if not config.collection:
        raise InputError(f"{key}.api needs {key}.collection, the id of a collection at {config.api}")
    return ApiCatalogue(config.api, config.collection)


class StacSource:
    """An ImagerySource over the STAC items that the settings name, of one sensor or both."""

    def __init__(self, config: StacConfig) -> None:
        """Raises InputError where the settings do not name a catalogue."""
        self._config = config
        self._s2 = open_catalogue(config.s2, "source.stac.s2")
        self._s1 = open_catalogue(config.s1, "source.stac.s1")
        if self._s2 is None and self._s1 is None:
            raise InputError(
                "source.kind: stac has no catalogue. Set source.stac.s2.items (a file of STAC items) or "
                "source.stac.s2.api (the URL of a STAC API), and likewise source.stac.s1"
            )
        self._season = lru_cache(64)(self._choose_season)
        self._s2_access = Access(config.s2.items or config.s2.api, "source.stac.s2", config.s2)
        self._s1_access = Access(config.s1.items or config.s1.api, "source.stac.s1", config.s1)

    def __reduce__(self) -> tuple[type[StacSource], tuple[StacConfig]]:
        return StacSource, (self._config,)  # without the items, which are read again

    def identity(self) -> dict[str, Any]:
        s2, s1 = self._config.s2, self._config.s1
        return {
            "kind": "stac",
            "s2": self._s2 and {**self._s2.identity(), "offset": s2.offset, **_assets(s2)},
            "s1": self._s1 and {**self._s1.identity(), "unit": s1.unit, **_assets(s1)},
            "s1_quantity": self._quantity,
        }

    def composite(self, request: ImageRequest) -> Composite:
        """See ImagerySource. The scenes of one period are held at a time."""
        if request.maps:
            raise InputError(
                f"source.kind: stac offers no maps, so source:{request.maps[0]} cannot be read; give a "
                "raster file instead"
            )
        s2_items = self._items(self._s2, "s2", request.grid, request)
        s1_items = self._items(self._s1, "s1", request.extent, request)
        read_s2 = partial(self._read_s2, grid=request.grid)
        read_s1 = partial(self._read_s1, grid=request.grid, extent=request.extent)
        with warnings.catch_warnings():
            # GDAL gives it at random, of the buffers that it warps into; `read_scene` checks the files.
            warnings.filterwarnings("ignore", "Dataset has no geotransform")
            return composite_scenes(
                request,
                lambda period: _scenes(s2_items, period, read_s2),
                lambda period, orbits: _scenes(_of_orbits(s1_items, orbits), period, read_s1),
                lambda request: self._season(replace(request, grid=request.extent, name="")),
            )

    def _choose_season(self, request: ImageRequest) -> Season:
        items = self._items(self._s1, "s1", request.extent, request)
        found = {Orbit(*stac_items.orbit(item)) for item in items}
        orbits = [orbit for orbit in found if orbit.orbit_pass in request.recipe.s1_passes]
        if len(orbits) < 2:  # nothing to choose, nothing to read
            return Season(tuple(orbits), SceneLog("s1", request))
        items = _of_orbits(items, orbits)

        def survey(period: Period, grid: Grid) -> Iterator[S1Scene | LostScene]:
            return _scenes(items, period, partial(self._read_s1, grid=grid, extent=request.extent))

        return choose_season(request, survey)

    def _items(
        self, catalogue: Catalogue | None, sensor: str, grid: Grid, request: ImageRequest
    ) -> list[pystac.Item]:
        if catalogue is None or sensor not in request.recipe.sensors:
            return []
        return search(catalogue, _outline(grid), request.periods[0].start, request.periods[-1].end)

    @cached_property
    def _quantity(self) -> str:
        """gamma0 or sigma0, which are never mixed; "none" without Sentinel-1."""
        if self._s1 is None:
            return "none"
        found = {self._backscatter(item).quantity for item in self._s1.sample()}
        if len(found) != 1:
            quantities = " and ".join(sorted(found)) or "nothing"
            raise InputError(f"source.stac.s1 holds {quantities}; wanted either gamma0 or sigma0")
        return found.pop()

    def _backscatter(self, item: pystac.Item) -> Backscatter:
        keys = self._config.s1.assets
        assets = [find_asset(item, band.aliases, keys.get(band.name, "")) for band in S1_BANDS]
        kinds = {stac_items.backscatter(item, asset, self._config.s1) for asset in assets}
        if len(kinds) != 1:
            raise InputError(f"the STAC item {item.id} holds VV and VH of different kinds: {kinds}")
        return kinds.pop()

    def _read_s2(self, item: pystac.Item, grid: Grid) -> S2Scene:
        keys = self._config.s2.assets
        read = partial(self._s2_access.read, item, grid=grid, nodata=0)  # 0 in every L2A product
        reflectance_chw = np.empty((len(S2_BANDS), *grid.shape), np.float32)
        for c, band in enumerate(S2_BANDS):
            asset = find_asset(item, band.aliases, keys.get(band.name, ""))
            scale, offset = stac_items.reflectance_scaling(item, asset, self._config.s2)
            number_hw = read(asset, bilinear=not stac_items.is_in_crs(item, asset, grid.crs))
            reflectance_chw[c] = (number_hw + np.float32(offset / scale)) * np.float32(scale)
        scl_hw = read(find_asset(item, SCL_ALIASES, keys.get("SCL", "")), bilinear=False)
        classes = np.nan_to_num(scl_hw, nan=0).astype(np.uint8)
        return S2Scene(item_time(item), reflectance_chw, classes, **stac_items.provenance(item))

    def _read_s1(self, item: pystac.Item, grid: Grid, extent: Grid) -> S1Scene:
        kind = self._backscatter(item)
        if kind.quantity != self._quantity:
            raise InputError(f"the STAC item {item.id} holds {kind.quantity}, other items {self._quantity}")
        power_chw = np.empty((len(S1_BANDS), *grid.shape), np.float32)
        for c, band in enumerate(S1_BANDS):
            asset = find_asset(item, band.aliases, self._config.s1.assets.get(band.name, ""))
            scale, offset = stac_items.backscatter_scaling(item, asset)
            value_hw = self._s1_access.read(
                item,
                asset,
                grid,
                bilinear=not stac_items.is_in_crs(item, asset, grid.crs),
                nodata=stac_items.nodata(item, asset),
            )
            value_hw = value_hw * np.float32(scale) + np.float32(offset)
            power_chw[c] = value_hw if kind.unit == "linear" else 10 ** (value_hw / 10)
        orbit_pass, relative_orbit = stac_items.orbit(item)
        contains = bool(footprint(item).covers(_outline(extent)))
        provenance = stac_items.provenance(item)
        return S1Scene(item_time(item), relative_orbit, orbit_pass, contains, power_chw, **provenance)


def _of_orbits(items: list[pystac.Item], orbits: Sequence[Orbit] | None) -> list[pystac.Item]:
    return [item for item in items if orbits is None or Orbit(*stac_items.orbit(item)) in orbits]


def _assets(config: StacCollectionConfig) -> dict[str, Any]:
    """What the pixels depend on, only if it is set: older parts stay valid."""
    return {"assets": config.assets} if config.assets else {}


def _scenes(
    items: list[pystac.Item], period: Period, read: Callable[[pystac.Item], Scene]
) -> Iterator[Scene | LostScene]:
    """The scenes of a period in the order of the items, read ahead. A dead asset costs its scene."""

    def attempt(item: pystac.Item) -> Scene | LostScene:
        try:
            return read(item)
        except DeadAssetError as error:
            return LostScene(item.id, str(error))

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(attempt, [item for item in items if item_time(item) in period])


def _outline(grid: Grid) -> BaseGeometry:
    """The outline of a grid in longitude and latitude, with densified edges; see `within_180`."""
    return within_180(shapely.Polygon(grid.outline_in("EPSG:4326")))

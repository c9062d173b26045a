"""Where STAC items come from: a file that holds them all, or an API that is searched."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any, Protocol

import pystac
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from cropray.config.imagery import StacCollectionConfig
from cropray.imagery.stac_items import item_time
from cropray.storage import Folder
from cropray.types import InputError


class Catalogue(Protocol):
    """Items of one collection."""

    def identity(self) -> dict[str, Any]: ...

    def sample(self) -> list[pystac.Item]:
        """Items to learn from what the collection holds: all of a file, one of an API."""
        ...

    def search(self, area: BaseGeometry, start: date, end: date) -> list[pystac.Item]:
        """Items that touch `area` (lon, lat) in [start, end), by time and id."""
        ...


@dataclass(frozen=True)
class FileCatalogue:
    """A STAC ItemCollection at a path or URI; relative asset paths are taken from its place."""

    uri: str
    collection: str

    def identity(self) -> dict[str, Any]:
        """The content decides, wherever the file lies."""
        return {"items_sha256": hashlib.sha256(self._bytes).hexdigest(), "collection": self.collection}

    def sample(self) -> list[pystac.Item]:
        return self._items

    def search(self, area: BaseGeometry, start: date, end: date) -> list[pystac.Item]:
        return _ordered(
            item for item in self._items if start <= item_time(item).date() < end and _touches(item, area)
        )

    @cached_property
    def _bytes(self) -> bytes:
        parent, slash, name = self.uri.rpartition("/")
        return Folder(parent + slash or ".").read_bytes(name)

    @cached_property
    def _items(self) -> list[pystac.Item]:
        try:
            read = json.loads(self._bytes)
            if not isinstance(read, dict):
                raise InputError(f"{self.uri} is no STAC ItemCollection: it holds no JSON object")
            items = list(pystac.ItemCollection.from_dict(read, preserve_dict=False))
        except (ValueError, KeyError, pystac.STACError, pystac.STACTypeError) as error:
            raise InputError(f"{self.uri} is no STAC ItemCollection (JSON): {error}") from error
        for item in items:
            item.set_self_href(self.uri)
            item.make_asset_hrefs_absolute()
        found = [item for item in items if self.collection in ("", item.collection_id)]
        if not found:
            there = sorted({item.collection_id or "(no collection)" for item in items})
            raise InputError(
                f"{self.uri} has no items of the collection {self.collection!r}; "
                f"there is {', '.join(there) or 'nothing'}"
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
        return self._search(max_items=1)

    def search(self, area: BaseGeometry, start: date, end: date) -> list[pystac.Item]:
        last = end - timedelta(days=1)
        items = self._search(bbox=area.bounds, datetime=f"{start}T00:00:00Z/{last}T23:59:59.999999Z")
        # The box is coarser than the area, and servers differ at the ends of an interval.
        return _ordered(i for i in items if start <= item_time(i).date() < end and _touches(i, area))

    def _search(self, **query: Any) -> list[pystac.Item]:
        from pystac_client import Client
        from pystac_client.exceptions import APIError
        from pystac_client.warnings import DoesNotConformTo

        try:
            client = Client.open(self.url)
            items = list(client.search(collections=[self.collection], **query).items())
            # Nothing found, or nothing to find it in?
            known = bool(items) or client.get_collection(self.collection) is not None
        except (APIError, DoesNotConformTo, pystac.STACError, pystac.STACTypeError) as error:
            raise InputError(f"the STAC API {self.url} cannot be searched: {error}") from error
        if not known:
            raise InputError(f"the STAC API {self.url} has no collection {self.collection!r}")
        return items


def open_catalogue(config: StacCollectionConfig, key: str) -> Catalogue:
    """The catalogue of the settings under `key`. Raises InputError where they do not name one."""
    if bool(config.items) == bool(config.api):
        raise InputError(f"{key} needs one of items (a file of STAC items) and api (the URL of a STAC API)")
    if config.items:
        return FileCatalogue(config.items, config.collection)
    if not config.collection:
        raise InputError(f"{key}.api needs {key}.collection, the id of a collection at {config.api}")
    return ApiCatalogue(config.api, config.collection)


def footprint(item: pystac.Item) -> BaseGeometry:
    """The item's geometry (lon, lat). Raises InputError where it has none."""
    if item.geometry is None:
        raise InputError(f"the STAC item {item.id} has no geometry")
    return shape(item.geometry)


def _touches(item: pystac.Item, area: BaseGeometry) -> bool:
    return bool(footprint(item).intersects(area))


def _ordered(items: Any) -> list[pystac.Item]:
    return sorted(items, key=lambda item: (item_time(item), item.id))

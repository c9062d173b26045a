"""The STAC documents of a prediction: an item for each map, and the collection of the maps and their model.

https://github.com/radiantearth/stac-spec 1.1.0. All links to files are relative, so a run can move.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pystac
import shapely
from pystac.utils import make_relative_href

from cropray import __version__
from cropray.errors import InputError
from cropray.figures.crops import UNSURE_COLOUR, class_names, colour_table, shown
from cropray.grid import Grid
from cropray.imagery.longitudes import geojson_bbox, within_180
from cropray.maps.mosaic import CONFIDENCE, MAP, MONTHS, OBSERVATIONS, SCORES, SURE
from cropray.maps.request import MapPlan
from cropray.maps.tiles import NODATA, PredictionSettings
from cropray.models.checkpoint import WEIGHTS, Checkpoint
from cropray.storage import Folder
from cropray.tracking.documents import model_item
from cropray.types import UNSURE

ITEM = "item.json"
COLLECTION = "collection.json"
MODEL_ITEM = "model.json"

_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    _PROCESSING,
]
_MEDIA_AND_ROLE = {
    ".tif": (pystac.MediaType.COG, "data"),
    ".png": (pystac.MediaType.PNG, "thumbnail"),
    ".json": (pystac.MediaType.JSON, "metadata"),
    ".csv": ("text/csv", "metadata"),
    ".xml": (pystac.MediaType.XML, "metadata"),
    ".qml": (pystac.MediaType.XML, "style"),
    ".sld": ("application/vnd.ogc.sld+xml", "style"),
    ".html": (pystac.MediaType.HTML, "overview"),
    ".pdf": (pystac.MediaType.PDF, "overview"),
    ".parquet": ("application/vnd.apache.parquet", "data"),
    ".gpkg": (pystac.MediaType.GEOPACKAGE, "data"),
}
_PROCESSOR: dict[str, Any] = {"name": "cropray", "roles": ["processor"]}
_COPERNICUS: dict[str, Any] = {
    "name": "Copernicus Sentinel data",
    "roles": ["licensor"],
    "url": "https://sentinels.copernicus.eu/web/sentinel/terms-conditions",
}


@dataclass(frozen=True)
class MapIdentity:
    """What the files of a map state. `key` is the hash of everything on which its pixels depend.

    `provisional` is the day on which it was made, as ISO date, if its months were not over then.
    `scene_roots` are the addresses of the catalogues of scenes by sensor, where they are known.
    """

    title: str
    model: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    settings: PredictionSettings
    key: str
    provisional: str = ""
    scene_roots: Mapping[str, str] = field(default_factory=dict)


def collection_id(identity: MapIdentity) -> str:
    """The STAC collection of the maps of a prediction."""
    return f"maps-{identity.settings.as_of.isoformat()}-{identity.key}"


def map_item(
    plan: MapPlan,
    identity: MapIdentity,
    files: Iterable[Path],
    scenes: Iterable[str] = (),
    lost: Sequence[str] = (),
) -> dict[str, Any]:
    """The STAC item of a map as JSON, with the `files` beside it and the addresses of its scenes.

    `lost` names the scenes that could not be used.
    Its datetime is the end of the as-of day: the date of the knowledge, not of the drawing.
    """
    grid, settings = plan.grid, identity.settings
    as_of = settings.as_of.isoformat()
    footprint = within_180(shapely.Polygon(grid.outline_in("EPSG:4326", per_side=8)))
    end = datetime.combine(settings.as_of, time(23, 59, 59), UTC)
    item = pystac.Item(
        id=f"{plan.name or 'map'}-{as_of}-{identity.key}",
        geometry=shapely.geometry.mapping(footprint),
        bbox=list(geojson_bbox(footprint)),
        datetime=end,
        start_datetime=datetime.combine(settings.periods[0].start, time(), UTC),
        end_datetime=end,
        properties={
            "proj:code": grid.crs,
            "proj:shape": list(grid.shape),
            "proj:transform": list(grid.transform),
            "proj:bbox": list(grid.bounds),
            "title": identity.title,
            "processing:level": "L4",
            "processing:software": {"cropray": __version__},
            "cropray:version": __version__,
            "cropray:model": identity.model,
            "cropray:as_of": as_of,
            "cropray:periods": [[p.start.isoformat(), p.end.isoformat()] for p in settings.periods],
            "cropray:thresholds": dict(zip(identity.classes, identity.thresholds, strict=True)),
            "cropray:key": identity.key,
            "cropray:scenes_lost": list(lost),
            **({"cropray:provisional": identity.provisional} if identity.provisional else {}),
        },
        stac_extensions=_EXTENSIONS,
    )
    for file in files:
        key = file.stem if file.suffix == ".tif" else file.name
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        asset = _asset(plain_asset(file.name, file.stat().st_size, digest), grid, identity)
        item.add_asset(key, pystac.Asset.from_dict(asset))
    beside = "../" if plan.name else "./"
    for relation, name, kind in (
        ("collection", COLLECTION, pystac.MediaType.JSON),
        ("derived_from", MODEL_ITEM, pystac.MediaType.GEOJSON),
    ):
        item.add_link(pystac.Link(relation, f"{beside}{name}", kind))
    for scene in scenes:
        item.add_link(pystac.Link("derived_from", scene, pystac.MediaType.GEOJSON))
    item.collection_id = collection_id(identity)
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def _asset(asset: dict[str, Any], grid: Grid, identity: MapIdentity) -> dict[str, Any]:
    """The asset of a file with what its bands hold."""
    classes, periods, name = identity.classes, identity.settings.periods, asset["href"].removeprefix("./")
    raster = {"data_type": "uint8", "nodata": NODATA, "raster:spatial_resolution": grid.resolution}
    scale = {"raster:scale": 0.01}
    if name == MAP:
        asset |= raster | {"classification:classes": _classification(classes)}
    if name == SURE:
        unsure = {"value": UNSURE, "name": "unsure", "color_hint": bytes(UNSURE_COLOUR).hex().upper()}
        asset |= raster | {"classification:classes": [*_classification(classes), unsure]}
    if name == CONFIDENCE:
        asset |= raster | scale
    if name == SCORES:
        asset |= raster | {"bands": [{"name": shown(label)} | scale for label in classes]}
    if name == OBSERVATIONS:
        asset |= raster | {"bands": [{"name": "Sentinel-2"}, {"name": "Sentinel-1"}], "unit": "months"}
    if name == MONTHS:
        months = [{"name": f"{p.start} {colour}"} for p in periods for colour in ("red", "green", "blue")]
        asset |= {"data_type": "uint8", "nodata": 0, "bands": months, "roles": ["visual"]}
    return asset


def plain_asset(name: str, size: int, sha256: str) -> dict[str, Any]:
    """The asset of a file of any kind. Its checksum is a multihash, which begins with 12 20 for SHA-256."""
    media_type, role = _MEDIA_AND_ROLE[Path(name).suffix]
    known = {"file:size": size, "file:checksum": f"1220{sha256}"}
    return {"href": f"./{name}", "type": str(media_type), "roles": [role], **known}


def _classification(classes: Sequence[str]) -> list[dict[str, Any]]:
    table = colour_table(classes)
    return [
        {
            "value": value,
            "name": re.sub(r"[^a-zA-Z0-9_-]", "_", name),  # the extension allows these characters
            "title": shown(name),
            "color_hint": bytes(table[value]).hex().upper(),
        }
        | ({"nodata": True} if value == NODATA else {})
        for value, name in (class_names(classes) | {NODATA: "nodata"}).items()
    ]


def read_item(folder: Folder) -> dict[str, Any]:
    """The STAC item of a map. Raises InputError if it is damaged or missing."""
    try:
        item: dict[str, Any] = json.loads(folder.read_text(ITEM))
    except ValueError as error:
        raise InputError(f"{folder}/{ITEM} is damaged ({error}). Run cropray predict again.") from error
    return item


def publish_beside(folder: Folder, files: Mapping[str, bytes]) -> None:
    """Write files beside a map and note them in its STAC item, which is written last.

    Files that are there already are left alone.
    """
    item = read_item(folder)
    for name, data in files.items():
        asset = plain_asset(name, len(data), hashlib.sha256(data).hexdigest())
        if item["assets"].get(name) != asset or not folder.exists(name):
            item["assets"][name] = asset
            folder.write_bytes(name, data)
    _write(folder, ITEM, item)


def publish_collection(
    output: Folder, names: Sequence[str], identity: MapIdentity, checkpoint: Checkpoint, model: Folder
) -> None:
    """Write collection.json and model.json beside the maps of these names, whose items exist.

    `model` is the folder of the checkpoint.
    """
    data = _model(checkpoint, identity, make_relative_href(f"{model.uri}/{WEIGHTS}", output.uri, True))
    _write(output, MODEL_ITEM, data)
    files = [f"{name}/{ITEM}" if name else ITEM for name in names]
    items = [pystac.Item.from_dict(json.loads(output.read_text(file))) for file in files]
    collection = pystac.Collection(
        id=collection_id(identity),
        title=identity.title,
        description=f"{identity.title}, as of {identity.settings.as_of}, by the model {identity.model}",
        extent=pystac.Extent.from_items(items),
        license="other",
        providers=[pystac.Provider.from_dict(_PROCESSOR)],
        summaries=pystac.Summaries({"processing:level": ["L4"]}),
        stac_extensions=[_PROCESSING],
    )
    for file in [*files, MODEL_ITEM]:
        collection.add_link(pystac.Link(pystac.RelType.ITEM, f"./{file}", pystac.MediaType.GEOJSON))
    _write(output, COLLECTION, collection.to_dict(include_self_link=False, transform_hrefs=False))


def state_makers(
    output: Folder, names: Sequence[str], *, producer: str, licence: str, copernicus: bool
) -> None:
    """State in the documents of maps who made them, and under which licence they may be used.

    `licence` is an SPDX identifier, "other" if empty. `copernicus`: they are made of Sentinel data.
    """
    makers = [_PROCESSOR]
    if producer:
        makers.insert(0, {"name": producer, "roles": ["producer", "licensor"]})
    if copernicus:
        makers.append(_COPERNICUS)
    stated = {"license": licence or "other", "providers": makers}
    for folder in [output.child(name) if name else output for name in names]:
        item = read_item(folder)
        item["properties"] |= stated
        _write(folder, ITEM, item)
    if output.exists(COLLECTION):
        _write(output, COLLECTION, json.loads(output.read_text(COLLECTION)) | stated)


def _model(checkpoint: Checkpoint, identity: MapIdentity, weights: str) -> dict[str, Any]:
    """The item of the model, whose time is the end of its last training data, or else the as-of date."""
    known = date.fromisoformat(checkpoint.periods[-1][1]) if checkpoint.periods else identity.settings.as_of
    item = model_item(checkpoint, identity.model, datetime.combine(known, time(), UTC))
    own, stored = item["assets"].pop("model"), item["assets"]["weights"]
    stored |= {key: own[key] for key in ("bands", "mlm:artifact_type")}
    stored |= {"href": weights, "roles": [*own["roles"], *stored["roles"]]}
    stored["mlm:artifact_type"] = "safetensors"
    collection = {"rel": "collection", "href": f"./{COLLECTION}", "type": str(pystac.MediaType.JSON)}
    return item | {"collection": collection_id(identity), "links": [collection]}


def _write(folder: Folder, name: str, document: Mapping[str, Any]) -> None:
    """Write a document, unless it is there already."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if not folder.exists(name) or folder.read_text(name) != text:
        folder.write_text(name, text)

"""The files of a finished map: rasters, areas, picture and STAC item, published together."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pystac
import shapely

from cropray import __version__
from cropray.errors import InputError
from cropray.figures.crops import class_names, colour_table, shown
from cropray.figures.pictures import map_picture
from cropray.grid import Grid, Window
from cropray.imagery.longitudes import geojson_bbox, within_180
from cropray.imagery.scenes import scene_of
from cropray.maps.mosaic import MAP, PROBABILITIES, assemble, class_areas
from cropray.maps.request import MapPlan
from cropray.maps.tables import AREAS_TABLE, ITEM, WHOLE, areas_csv
from cropray.maps.tiles import NODATA, PredictionSettings, TileResult
from cropray.rasters import read_reduced
from cropray.storage import Folder

AREAS = "areas.json"
COLLECTION = "collection.json"
MODEL_ITEM = "model.json"
PICTURE = "picture.png"
_PICTURE_PIXELS = 1200  # a side, at most

_EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
]
_MEDIA_AND_ROLE = {
    ".tif": (pystac.MediaType.COG, "data"),
    ".png": (pystac.MediaType.PNG, "thumbnail"),
    ".json": (pystac.MediaType.JSON, "metadata"),
    ".csv": ("text/csv", "metadata"),
}


@dataclass(frozen=True)
class MapIdentity:
    """What the files of a map state. `key` is the hash of everything on which its pixels depend.

    `provisional` is the day on which it was made, as ISO date, if its months were not over then.
    """

    title: str
    model: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    settings: PredictionSettings
    key: str
    provisional: str = ""


class PublishedMap(NamedTuple):
    """The areas of a map by class, and the names of the scenes that its tiles could not use."""

    areas: dict[str, Any]
    lost: list[str]


def publish_map(
    folder: Folder,
    plan: MapPlan,
    tiles: Iterable[Window],
    read_tile: Callable[[Window], TileResult],
    identity: MapIdentity,
    *,
    probabilities: bool,
) -> PublishedMap:
    """Make the files of a map in a temporary folder and publish them, the item last.

    Each file replaces an older one whole. Raises InputError if the disk is full.
    """
    lost: set[str] = set()

    def read(tile: Window) -> TileResult:
        result = read_tile(tile)
        lost.update(map(scene_of, result.lost))
        return result

    classes, as_of = identity.classes, identity.settings.as_of.isoformat()
    tags = {"AS_OF": as_of, "MODEL": identity.model, "SOFTWARE": f"cropray {__version__}"}
    try:
        with tempfile.TemporaryDirectory(prefix="cropray-") as temporary:
            directory = Path(temporary)
            made = assemble(
                plan.grid,
                tiles,
                read,
                directory,
                classes=classes,
                tags=tags,
                probabilities=probabilities,
            )
            made += [directory / name for name in (AREAS, AREAS_TABLE, PICTURE)]
            areas = class_areas(str(directory / MAP), classes)
            record = {"as_of": as_of, "model": identity.model, "classes": areas}
            (directory / AREAS).write_text(json.dumps(record, indent=1))
            hectares_uk = np.array([[row["hectares"] for row in areas.values()]])
            (directory / AREAS_TABLE).write_text(areas_csv([WHOLE], list(areas), hectares_uk))
            title = f"{identity.title}\nas of {as_of}, model {identity.model}"
            values, grid = read_reduced(str(directory / MAP), _PICTURE_PIXELS)
            (directory / PICTURE).write_bytes(map_picture(values[0], grid, classes, title))
            item = stac_item(plan, identity, {path.name: path.stat().st_size for path in made}, sorted(lost))
            for path in made:
                folder.publish(path, path.name)
            folder.write_text(ITEM, json.dumps(item, indent=1, ensure_ascii=False))
    except OSError as error:
        raise InputError(
            f"cannot write the map to {folder} (it is made in {tempfile.gettempdir()} first): {error}. "
            "Free some space or set TMPDIR, and run the same command again. Finished tiles are kept."
        ) from error
    return PublishedMap(areas, sorted(lost))


def collection_id(identity: MapIdentity) -> str:
    """The STAC collection of the maps of a prediction."""
    return f"maps-{identity.settings.as_of.isoformat()}-{identity.key}"


def stac_item(
    plan: MapPlan, identity: MapIdentity, sizes: dict[str, int], lost: Sequence[str] = ()
) -> dict[str, Any]:
    """The STAC item of a map as JSON. `sizes` are the bytes of the files beside it, by name.

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
    for name, size in sizes.items():
        key = Path(name).stem if name.endswith(".tif") else name
        item.add_asset(key, _asset(name, size, grid, identity.classes))
    beside = "../" if plan.name else "./"
    for relation, name, kind in (
        ("collection", COLLECTION, pystac.MediaType.JSON),
        ("derived_from", MODEL_ITEM, pystac.MediaType.GEOJSON),
    ):
        item.add_link(pystac.Link(relation, f"{beside}{name}", kind))
    item.collection_id = collection_id(identity)
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def _asset(name: str, size: int, grid: Grid, classes: Sequence[str]) -> pystac.Asset:
    media_type, role = _MEDIA_AND_ROLE[Path(name).suffix]
    extra: dict[str, Any] = {"file:size": size}
    raster = {"data_type": "uint8", "nodata": NODATA}
    if name == MAP:
        extra |= raster | {"raster:spatial_resolution": grid.resolution}
        extra |= {"classification:classes": _classification(classes)}
    if name == PROBABILITIES:
        extra |= {"bands": [{"name": label} | raster | {"raster:scale": 0.01} for label in classes]}
    return pystac.Asset(f"./{name}", media_type=media_type, roles=[role], extra_fields=extra)


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

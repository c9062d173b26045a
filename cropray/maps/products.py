"""One finished map as a set of files: rasters, areas, picture and STAC item, published together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pystac
import shapely
from pyproj import Transformer

from cropray import __version__
from cropray.errors import InputError
from cropray.figures.pictures import colour_table
from cropray.grid import Grid, Window
from cropray.maps.areas import areas_csv, class_areas
from cropray.maps.cartography import map_picture
from cropray.maps.mosaic import MAP, PROBABILITIES, assemble
from cropray.maps.plan import MapPlan
from cropray.maps.tiles import NODATA, PredictionSettings, TileResult
from cropray.storage import Folder
from cropray.types import BACKGROUND, Period

AREAS = "areas.json"
AREAS_TABLE = "areas.csv"
PICTURE = "picture.png"
ITEM = "item.json"


@dataclass(frozen=True)
class MapIdentity:
    """What a map says of itself. `key` is the hash of everything that its pixels depend on."""

    title: str
    model: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    settings: PredictionSettings
    key: str


def publish_map(
    folder: Folder,
    plan: MapPlan,
    tiles: Iterable[Window],
    read_tile: Callable[[Window], TileResult],
    identity: MapIdentity,
    *,
    probabilities: bool,
) -> dict[str, Any]:
    """Make the files of a map in a scratch folder, publish them, the item last; returns its areas.

    Raises InputError where the disk is full; a file that is there already stays until it is
    replaced whole.
    """
    settings, classes = identity.settings, identity.classes
    as_of = settings.as_of.isoformat()
    tags = {"AS_OF": as_of, "MODEL": identity.model, "SOFTWARE": f"cropray {__version__}"}
    try:
        with tempfile.TemporaryDirectory(prefix="cropray-") as scratch:
            directory = Path(scratch)
            made = assemble(
                plan, tiles, read_tile, directory, classes=classes, tags=tags, probabilities=probabilities
            )
            areas = class_areas(str(directory / MAP), classes)
            title = f"{identity.title}\nas of {as_of}, model {identity.model}"
            texts = {
                AREAS: json.dumps({"as_of": as_of, "model": identity.model, "classes": areas}, indent=1),
                AREAS_TABLE: areas_csv(areas),
            }
            for name, text in texts.items():
                (directory / name).write_text(text)
            (directory / PICTURE).write_bytes(map_picture(str(directory / MAP), classes, title))
            made += [directory / name for name in (AREAS, AREAS_TABLE, PICTURE)]
            item = _item(plan, identity, made)
            for path in made:
                folder.publish(path, path.name)
            folder.write_text(ITEM, json.dumps(item, indent=1, ensure_ascii=False))
    except OSError as error:
        raise InputError(
            f"cannot write the map to {folder} (it is made under {tempfile.gettempdir()} first): {error}; "
            "make room, or set TMPDIR, and run the same command again: finished tiles are kept"
        ) from error
    return areas


def _item(plan: MapPlan, identity: MapIdentity, files: Sequence[Path]) -> dict[str, Any]:
    settings = identity.settings
    return stac_item(
        f"{plan.name or 'map'}-{settings.as_of.isoformat()}-{identity.key}",
        plan.grid,
        identity.classes,
        settings.periods,
        settings.as_of,
        {path.name: path.stat().st_size for path in files},
        {
            "title": identity.title,
            "cropray:version": __version__,
            "cropray:model": identity.model,
            "cropray:as_of": settings.as_of.isoformat(),
            "cropray:periods": [[p.start.isoformat(), p.end.isoformat()] for p in settings.periods],
            "cropray:thresholds": dict(zip(identity.classes, identity.thresholds, strict=True)),
            "cropray:key": identity.key,
        },
    )


_EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
]
_ROLES = {".tif": "data", ".png": "thumbnail", ".json": "metadata", ".csv": "metadata"}
_MEDIA = {
    ".tif": pystac.MediaType.COG,
    ".png": pystac.MediaType.PNG,
    ".json": pystac.MediaType.JSON,
    ".csv": "text/csv",
}


def stac_item(
    item_id: str,
    grid: Grid,
    classes: Sequence[str],
    periods: Sequence[Period],
    as_of: date,
    files: Mapping[str, int],
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    """The item of a map as JSON. `files` are names beside the item with their sizes in bytes.

    Its datetime is the end of the as-of day: what the map knew, not when it was drawn.
    """
    footprint = _footprint(grid)
    end = datetime.combine(as_of, time(23, 59, 59), UTC)
    item = pystac.Item(
        id=item_id,
        geometry=shapely.geometry.mapping(footprint),
        bbox=list(footprint.bounds),
        datetime=end,
        start_datetime=datetime.combine(periods[0].start, time(), UTC),
        end_datetime=end,
        properties={
            "proj:code": grid.crs,
            "proj:shape": list(grid.shape),
            "proj:transform": list(grid.transform),
            "proj:bbox": list(grid.bounds),
            **properties,
        },
        stac_extensions=_EXTENSIONS,
    )
    for name, size in files.items():
        item.add_asset(Path(name).stem if name.endswith(".tif") else name, _asset(name, size, grid, classes))
    return item.to_dict(include_self_link=False)


def _asset(name: str, size: int, grid: Grid, classes: Sequence[str]) -> pystac.Asset:
    suffix = Path(name).suffix
    extra: dict[str, Any] = {"file:size": size}
    raster = {"data_type": "uint8", "nodata": NODATA, "raster:spatial_resolution": grid.resolution}
    if name == MAP:
        extra |= raster | {"classification:classes": _classification(classes)}
    if name == PROBABILITIES:
        scaled = {"data_type": "uint8", "nodata": NODATA, "raster:scale": 0.01}
        extra |= {"bands": [{"name": label} | scaled for label in classes]}
    return pystac.Asset(f"./{name}", media_type=_MEDIA[suffix], roles=[_ROLES[suffix]], extra_fields=extra)


def _classification(classes: Sequence[str]) -> list[dict[str, Any]]:
    table = colour_table(len(classes))
    names = dict(enumerate(classes)) | {BACKGROUND: "none of the classes", NODATA: "nodata"}
    return [
        {
            "value": value,
            "name": _identifier(name),
            "title": name,
            "color_hint": bytes(table[value]).hex().upper(),
        }
        | ({"nodata": True} if value == NODATA else {})
        for value, name in names.items()
    ]


def _identifier(name: str) -> str:
    """The extension allows letters, digits, - and _ in names."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)


def _footprint(grid: Grid) -> shapely.Polygon:
    """The grid's outline in degrees, its edges densified: straight in its CRS, bent in degrees."""
    outline = shapely.segmentize(shapely.box(*grid.bounds), max(grid.shape) * grid.resolution / 8)
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    return shapely.transform(outline, to_degrees.transform, interleaved=False)

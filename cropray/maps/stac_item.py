"""A STAC item beside each map, so that catalogues and GIS find it and know what its values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pystac
import shapely
from pyproj import Transformer

from cropray.figures.palette import colour_table
from cropray.grid import Grid
from cropray.maps.mosaic import MAP, PROBABILITIES
from cropray.maps.tiles import NODATA
from cropray.types import BACKGROUND, Period

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

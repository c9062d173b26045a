"""Where a map comes from, its files, and its surroundings: what a page lists at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from cropray.config import Config
from cropray.grid import Grid, transform_bounds
from cropray.report.language import Language, sentence
from cropray.report.place import Place, frame_of
from cropray.types import Period

# Who reads a file, and what it holds, in the order of the page.
_FILES = {
    "map.tif": (sentence("GIS"), sentence("class of each pixel, with colours and overviews")),
    "map.qml": (sentence("GIS"), sentence("style for QGIS")),
    "map.sld": (sentence("map servers"), sentence("style")),
    "confidence.tif": (sentence("GIS"), sentence("score of the class that is mapped, in per cent")),
    "sure.tif": (sentence("GIS"), sentence("the map with what is unsure left open")),
    "scores.tif": (sentence("analysts"), sentence("score of each class, in per cent")),
    "observations.tif": (sentence("analysts"), sentence("clear months of each sensor")),
    "fields.gpkg": (sentence("inspectors, GIS"), sentence("fields with crop, score and what to check")),
    "fields.parquet": (sentence("analysts"), sentence("the same fields as GeoParquet")),
    "areas.csv": (sentence("statistics"), sentence("hectares by unit and class")),
    "accuracy.csv": (sentence("statistics"), sentence("accuracy from checked points")),
    "confusion.csv": (sentence("statistics"), sentence("confusion from checked points")),
    "scenes.csv": (sentence("analysts"), sentence("each pass with its clear share")),
    "item.json": (sentence("catalogues"), sentence("STAC item: checksums, licence, origin")),
    "thumbnail.png": (sentence("slides"), sentence("the map as a picture")),
    "summary.pdf": (sentence("minister's office"), sentence("the first page of this report")),
}


def origin_rows(
    lang: Language, config: Config, item: Mapping[str, Any], grid: Grid, periods: Sequence[Period], as_of: str
) -> list[tuple[str, str]]:
    """Terms and texts of where a map comes from; what is not known is left out."""
    properties, report = item["properties"], config.report
    west, south, east, north = transform_bounds(grid.bounds, grid.crs, "EPSG:4326")
    first, last = periods[0].start.year, periods[-1].end.year
    source = lang("Simulated Sentinel-1 and Sentinel-2.")
    if config.source.kind != "simulated":
        years = str(last) if first == last else f"{first}–{last}"
        source = lang("Contains modified Copernicus Sentinel data %(years)s.", years=years)
    thresholds = [f"{lang.crop(n)} {lang.number(t, 2)}" for n, t in properties["cropray:thresholds"].items()]
    area = lang(
        "%(first)s to %(last)s; %(pixels)s pixels of %(metres)s m, %(crs)s",
        first=position(lang, south, west),
        last=position(lang, north, east),
        pixels=f"{lang.number(grid.width)} × {lang.number(grid.height)}",
        metres=lang.number(grid.resolution),
        crs=grid.crs,
    )
    lost = properties.get("cropray:scenes_lost", [])
    rows = [
        (lang("Area"), area),
        (lang("As of"), lang("%(day)s: no later scene was used", day=as_of)),
        (lang("Imagery"), f"{source} {lang('%(n)s monthly composites.', n=lang.number(len(periods)))}"),
        (lang("Scenes that could not be used"), lang.number(len(lost)) if lost else ""),
        (lang("Model"), f"{properties['cropray:model']}, cropray {properties['cropray:version']}"),
        (lang("Map"), str(item["id"])),
        (lang("Decision"), lang("score at least: %(scores)s; else none", scores=lang.listed(thresholds))),
        (lang("Producer"), report.producer),
        (lang("Licence"), report.licence),
        (lang("Cite as"), report.citation),
    ]
    return [(term, text) for term, text in rows if text]


def file_rows(lang: Language, item: Mapping[str, Any]) -> list[dict[str, str]]:
    """The files beside a page: name, who reads it, what it holds, and its size."""
    assets = {asset["href"].removeprefix("./"): asset for asset in item["assets"].values()} | {
        "item.json": {}
    }
    found = []
    for name, (readers, holds) in _FILES.items():
        if name in assets:
            size = assets[name].get("file:size")
            text = "–" if size is None else f"{lang.number(size / 1000, 1 if size < 1e5 else 0)} kB"
            found.append({"name": name, "readers": lang(readers), "holds": lang(holds), "size": text})
    return found


def locator(lang: Language, place: Place, grid: Grid) -> dict[str, Any] | None:
    """The sites and units around a map, in a square of 200; None where none are known."""
    if not place.sites and not place.units:
        return None
    box = transform_bounds(grid.bounds, grid.crs, "EPSG:4326")
    west, south, east, north = frame_of(box, place.sites)
    narrow = np.cos(np.radians((south + north) / 2))
    scale = 200 / max((east - west) * narrow, north - south)

    def at(lon: float, lat: float) -> tuple[float, float]:
        x, y = (lon - (west + east) / 2) * narrow * scale, (lat - (south + north) / 2) * scale
        return round(100 + float(x), 1), round(100 - float(y), 1)

    lines, names = [], []
    for unit in place.units:
        for part in shapely.get_parts(unit.outline):
            points = [at(lon, lat) for lon, lat in shapely.simplify(part, (north - south) / 400).coords]
            lines.append(" ".join(f"{x},{y}" for x, y in points))
        x, y = at(*unit.point)
        names.append({"name": unit.name, "x": min(max(x, 30), 170), "y": min(max(y, 10), 195)})
    sites = []
    for site in place.sites:
        x, y = at((site.bounds[0] + site.bounds[2]) / 2, (site.bounds[1] + site.bounds[3]) / 2)
        sites.append({"x": x, "y": y, "test": site.split == "test"})
    (left, bottom), (right, top) = at(box[0], box[1]), at(box[2], box[3])
    text, tests = lang("▢ this map"), sum(bool(site["test"]) for site in sites)
    if sites:
        counted = {"test": lang.number(tests), "others": lang.number(len(sites) - tests)}
        text += " · " + lang("● %(test)s test sites · ○ %(others)s others", **counted)
    side = {"width": max(right - left, 4), "height": max(bottom - top, 4)}
    return {"units": lines, "names": names, "sites": sites, "x": left, "y": top, "text": text, **side}


def position(lang: Language, lat: float, lon: float) -> str:
    """A place in degrees."""
    sides = lang("N") if lat >= 0 else lang("S"), lang("E") if lon >= 0 else lang("W")
    return f"{lang.number(abs(lat), 3)}° {sides[0]}, {lang.number(abs(lon), 3)}° {sides[1]}"

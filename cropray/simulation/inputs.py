"""The inputs that a user of the simulation would bring, written as files.

Parcels of each crop in sites of their own, provinces, a crop calendar, and a table of regions for
pretraining. The same configuration writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cropray.config.imagery import SimulatedConfig
from cropray.config.rois import RoisConfig
from cropray.grid import Bounds, transform_bounds, utm_crs
from cropray.simulation.landscape import PLANE_CRS, Fields, from_lattice, land_of, project, to_lattice
from cropray.simulation.noise import uniform
from cropray.simulation.tables import CALENDAR, CROPS, read_yaml
from cropray.storage import Folder
from cropray.types import DoubleArray

LONLAT = "EPSG:4326"
_SITES_AT = (4.35, 50.45)  # longitude, latitude of the middle of the sites
_ROAM_M = 1000.0  # how far a site moves to where its crop grows
_APART_M = 3400.0 + 2 * _ROAM_M  # distance between sites before they move
_BORDER_M = 6.0  # parcels are drawn inside the edge of their field
_LEAST_PARCELS = 3
_REGIONS_IN = (-0.5, 48.2, 8.5, 52.6)
_APART_DEG = 0.55

_Feature = tuple[dict[str, Any], shapely.Geometry]  # properties, geometry


def write_inputs(config: SimulatedConfig, directory: Path) -> RoisConfig:
    """Write the inputs below `directory` and return the `rois` section that names them.

    Files: parcels/<crop>.geojson, provinces.geojson, calendar.csv, regions.csv. A file that has the right
    content is left alone; others appear whole. `split.named` puts the regions `*_valid` and `*_test` into
    val and test.
    """
    for crop, features in _parcels(config).items():
        _publish(directory / f"parcels/{crop}.geojson", _geojson(features))
    provinces = read_yaml("provinces.yaml")
    outlines = [({"province": name}, shapely.Polygon(row["outline"])) for name, row in provinces.items()]
    _publish(directory / "provinces.geojson", _geojson(outlines))
    later_days = {name: row["later_days"] for name, row in provinces.items()}
    _publish(directory / "calendar.csv", _calendar(config.year, later_days))
    regions = _regions(config)
    _publish(directory / "regions.csv", _region_table(config, regions))
    parcels = [{"crop": c, "path": f"parcels/{c}.geojson", "seasons": [{"sheet": c}]} for c in CROPS]
    splits = {"valid": "val", "test": "test"}
    return RoisConfig.model_validate(
        {
            "data_root": str(directory),
            "parcels": parcels,
            "table": "regions.csv",
            "calendar": {"path": "calendar.csv", "agricultural_years": (config.year - 1, config.year)},
            "provinces": {"path": "provinces.geojson", "name_field": "province"},
            "split": {"named": {name: splits.get(name.rpartition("_")[2], "train") for name in regions}},
        }
    )


def sites(config: SimulatedConfig) -> list[tuple[str, Bounds]]:
    """Crop and square (bounds in PLANE_CRS) of each site, at least 3.4 km apart."""
    count = config.sites_per_crop * len(CROPS)
    columns = int(np.ceil(np.sqrt(count)))
    middle = np.array(transform_bounds((*_SITES_AT, *_SITES_AT), LONLAT, PLANE_CRS)[:2])
    # Crops are dealt to the sites in an order that depends on the seed alone.
    crops = [CROPS[i % len(CROPS)] for i in np.argsort(uniform(config.seed, "site order", np.arange(count)))]
    steps = np.array([divmod(i, columns)[::-1] for i in range(count)]) - (columns - 1) / 2
    places = middle + steps * (config.site_size_m + _APART_M)
    return [(crop, _where_grown(config, crop, place)) for crop, place in zip(crops, places, strict=True)]


def _where_grown(config: SimulatedConfig, crop: str, middle: DoubleArray) -> Bounds:
    """The square near `middle` with the most fields of the crop: surveys go where a crop is grown."""
    half = config.site_size_m / 2
    reach = half + _ROAM_M
    fields = _cells_in(_bounds(np.concatenate([middle - reach, middle + reach])), config.seed)
    grown = (land_of(fields, config.year) == CROPS.index(crop)) & (fields.owner_i == fields.i)
    centres = middle + _ROAM_M * np.array(list(product((0, -0.5, 0.5, -1, 1), repeat=2)))
    inside = (np.abs(np.stack(fields.xy) - centres[..., None]) < half - 100.0).all(axis=1)
    best = centres[np.argmax((inside & grown).sum(axis=1))]  # the first of equals, the nearest to `middle`
    return _bounds(np.concatenate([best - half, best + half]))


def _parcels(config: SimulatedConfig) -> dict[str, list[_Feature]]:
    """The annotated parcels (EPSG:4326) by crop."""
    parcels: dict[str, list[_Feature]] = {crop: [] for crop in CROPS}
    for site, (crop, bounds) in enumerate(sites(config)):
        grown = _fields_of_crop(config, bounds, crop)
        wanted = max(_LEAST_PARCELS, round(config.annotated_fraction * len(grown)))
        parcels[crop] += [({"crop": crop, "site": site}, _as_drawn(shape)) for shape in grown[:wanted]]
    return parcels


def _fields_of_crop(config: SimulatedConfig, bounds: Bounds, crop: str) -> list[shapely.Geometry]:
    """Polygons (PLANE_CRS) of the crop's fields inside `bounds`, in random order.

    They are the Voronoi cells of the lattice, warped back: to the centimetre, the edges that the pixels see.
    """
    fields = _cells_in(bounds, config.seed)
    i, j, owner_i = fields.i, fields.j, fields.owner_i
    # Seeds outside are left out early, because drawing a field is slow.
    wanted = (land_of(fields, config.year) == CROPS.index(crop)) & (owner_i == i)
    wanted &= shapely.contains_xy(shapely.box(*bounds), *fields.xy)
    if not wanted.any():
        return []
    points = shapely.multipoints(np.stack(fields.uv, axis=-1))
    shapes = shapely.get_parts(shapely.voronoi_polygons(points, ordered=True))
    flat = [shapely.union_all(shapes[(owner_i == i[at]) & (j == j[at])]) for at in np.flatnonzero(wanted)]
    # The warps bend an edge: a corner every 0.08 cells, some 15 m.
    dense = shapely.segmentize(flat, 0.08)
    bent = shapely.transform(dense, lambda u, v: from_lattice(config.seed, u, v), interleaved=False)
    drawn = fields.uniform("annotated", config.year)[wanted]
    inside = shapely.contains(shapely.box(*bounds), bent)
    return list(bent[inside][np.argsort(drawn[inside], kind="stable")])


def _as_drawn(shape: shapely.Geometry) -> shapely.Geometry:
    """As an annotator draws it: inside the edge, corners cut a little, degrees with seven decimals."""
    inner = shapely.simplify(shapely.buffer(shape, -_BORDER_M), 1.0)
    lonlat = shapely.transform(inner, lambda x, y: project(x, y, PLANE_CRS, LONLAT), interleaved=False)
    return shapely.transform(lonlat, lambda degrees: np.round(degrees, 7))


def _cells_in(bounds: Bounds, seed: int) -> Fields:
    """The lattice cells whose fields may lie in `bounds`, with three cells around them."""
    x, y = np.meshgrid(np.linspace(bounds[0], bounds[2], 25), np.linspace(bounds[1], bounds[3], 25))
    u, v = to_lattice(seed, x.ravel(), y.ravel())
    i = np.arange(int(u.min()) - 3, int(u.max()) + 4)
    j = np.arange(int(v.min()) - 3, int(v.max()) + 4)
    ii, jj = np.meshgrid(i, j, indexing="ij")
    return Fields(seed, ii.ravel(), jj.ravel())


def _calendar(harvest_year: int, later_days: dict[str, int]) -> str:
    """Full dates: what is sown in a later month than it is harvested in was sown the year before."""
    lines = ["sheet,province,planting_start,planting_end,harvest_start,harvest_end"]
    for crop, dates in CALENDAR.items():
        days = [date.fromisoformat(f"{harvest_year - (text > dates[-1])}-{text}") for text in dates]
        for province, later in later_days.items():
            lines.append(",".join([crop, province, *(str(day + timedelta(later)) for day in days)]))
    return "\n".join(lines) + "\n"


def _regions(config: SimulatedConfig) -> dict[str, tuple[float, float]]:
    """By name, longitude and latitude of the middle of each region, far from sites and other regions."""
    west, south, east, north = _REGIONS_IN
    tries = np.arange(2000)
    lon = west + (east - west) * uniform(config.seed, "region lon", tries)
    lat = south + (north - south) * uniform(config.seed, "region lat", tries)
    # A region lies well within its UTM zone.
    lon = np.where(np.abs(lon - np.round(lon / 6) * 6) < 0.2, lon + 0.4, lon)
    # Sites may fill a square of this half-width around their middle.
    half_sites = 0.5 * np.sqrt(config.sites_per_crop * len(CROPS)) * (config.site_size_m + _APART_M) / 70_000
    chosen: list[tuple[float, float]] = []
    for place in zip(lon.tolist(), lat.tolist(), strict=True):
        from_sites = max(abs(place[0] - _SITES_AT[0]), abs(place[1] - _SITES_AT[1]))
        others = (max(abs(place[0] - a), abs(place[1] - b)) for a, b in chosen)
        if from_sites > half_sites + 0.2 and all(apart > _APART_DEG for apart in others):
            chosen.append(place)
        if len(chosen) == config.regions:
            break
    ends = {config.regions - 2: "_valid", config.regions - 1: "_test"} if config.regions >= 3 else {}
    return {f"region_{n + 1:02d}{ends.get(n, '')}": place for n, place in enumerate(chosen)}


def _region_table(config: SimulatedConfig, regions: dict[str, tuple[float, float]]) -> str:
    """Every region has the harvest of the earliest crop, so that windows end before any harvest."""
    harvest = f"{config.year}-{min(dates[2] for dates in CALENDAR.values())}"
    lines = ["country,main_type,harvest_date,min_lon,min_lat,max_lon,max_lat"]
    for name, middle in regions.items():
        box = _box_of(middle, config.region_size_m)
        lines.append(",".join([name, "all crops", harvest, *(f"{degrees:.8f}" for degrees in box)]))
    return "\n".join(lines) + "\n"


def _box_of(middle: tuple[float, float], size_m: float) -> Bounds:
    """Degrees of a box whose grid, at 10 m in UTM and snapped to 20 m, has sides of `size_m`.

    In UTM the bounds of a box of degrees are wider than the box. So it is fitted step by step to be 4 m
    smaller on every side than a snapped square.
    """
    lonlat = (*middle, *middle)
    crs = utm_crs(lonlat, LONLAT)
    low = np.floor((np.array(transform_bounds(lonlat, LONLAT, crs)[:2]) - size_m / 2) / 20) * 20
    goal = np.concatenate([low + 4, low + size_m - 4])
    metres = np.array((71_500.0 * np.cos(np.deg2rad(middle[1])) / np.cos(np.deg2rad(50)), 111_200.0))
    box = transform_bounds(_bounds(goal), crs, LONLAT)
    for _ in range(8):
        missing = goal - np.array(transform_bounds(box, LONLAT, crs))
        box = _bounds(np.array(box) + missing / np.tile(metres, 2))
    return box


def _bounds(values: DoubleArray) -> Bounds:
    min_x, min_y, max_x, max_y = values.tolist()
    return min_x, min_y, max_x, max_y


def _geojson(rows: Iterable[_Feature]) -> str:
    features = [
        {"type": "Feature", "properties": properties, "geometry": json.loads(shapely.to_geojson(shape))}
        for properties, shape in rows
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def _publish(path: Path, text: str) -> None:
    if not (path.is_file() and path.read_text() == text):
        Folder(str(path.parent)).write_text(path.name, text)

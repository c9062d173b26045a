"""What a user of the simulated world would bring along, written as files.

Parcels of each crop in sites of their own, provinces, a crop calendar, and a table of regions for
pretraining. The same configuration writes the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from cropray.config.imagery import SimulatedConfig
from cropray.config.rois import (
    CalendarConfig,
    CropConfig,
    ProvincesConfig,
    RoisConfig,
    SeasonConfig,
    SplitConfig,
)
from cropray.grid import Bounds, transform_bounds, utm_crs
from cropray.simulation.fields import (
    CROPS,
    LANDS,
    field_uniform,
    fields_of,
    from_lattice,
    from_world,
    land_of,
    lattice,
    owners,
    seeds,
    to_world,
)
from cropray.simulation.noise import uniform
from cropray.storage import Folder

LONLAT = "EPSG:4326"

# Planting and harvest of each crop, as for Belgium and northern France: see `phenology`.
CALENDAR = {
    "winter_wheat": ("10-10", "11-05", "07-28", "08-18"),
    "winter_barley": ("09-25", "10-12", "07-13", "07-26"),
    "rapeseed": ("08-22", "09-08", "07-24", "08-08"),
    "maize": ("04-22", "05-14", "09-15", "10-12"),
    "potato": ("04-08", "05-04", "08-28", "10-05"),
    "sugar_beet": ("03-25", "04-16", "09-15", "11-20"),
    "pea": ("03-05", "04-05", "07-20", "08-08"),
    "onion": ("03-10", "04-08", "08-10", "09-05"),
}
# Provinces tile the land where sites and regions lie; each is later than the first by some days.
_PROVINCES: dict[str, tuple[int, tuple[tuple[float, float], ...]]] = {
    "Southmark": (0, ((-12, 34), (32, 34), (32, 50.2), (9, 50.4), (4.9, 50.3), (4.4, 50.48), (-12, 50.3))),
    "Northmark": (4, ((-12, 50.3), (4.4, 50.48), (4.6, 50.9), (5.2, 63), (-12, 63))),
    "Eastmark": (2, ((4.4, 50.48), (4.9, 50.3), (9, 50.4), (32, 50.2), (32, 63), (5.2, 63), (4.6, 50.9))),
}
_SITES_AT = (4.35, 50.45)  # longitude, latitude of the middle of the sites
_GAP_M, _ROAM_M = 3400.0, 1000.0  # between sites at least; a site moves to where its crop is grown
_BORDER_M = 6.0  # parcels are drawn inside the edge of their field
_LEAST_PARCELS = 3
_REGIONS_IN = (-0.5, 48.2, 8.5, 52.6)
_APART_DEG = 0.55


def write_inputs(config: SimulatedConfig, directory: Path) -> RoisConfig:
    """Write the inputs below `directory` and return the `rois` section that names them.

    Files: parcels/<crop>.geojson, provinces.geojson, calendar.csv, regions.csv. A file that holds
    what it should is left alone; others appear whole. `split.named` sends the regions `*_valid`
    and `*_test` to val and test.
    """
    for crop, parcels in _parcels(config).items():
        rows = [({"crop": crop, "site": site}, shape) for site, shape in parcels]
        _publish(directory / "parcels" / f"{crop}.geojson", _geojson(rows))
    provinces = [({"province": name}, shapely.Polygon(ring)) for name, (_, ring) in _PROVINCES.items()]
    _publish(directory / "provinces.geojson", _geojson(provinces))
    _publish(directory / "calendar.csv", _csv(_calendar_rows(config.year)))
    regions = _regions(config)
    _publish(directory / "regions.csv", _csv(_region_rows(config, regions)))
    return RoisConfig(
        data_root=str(directory),
        parcels=tuple(
            CropConfig(crop=crop, path=f"parcels/{crop}.geojson", seasons=(SeasonConfig(sheet=crop),))
            for crop in CROPS
        ),
        table="regions.csv",
        calendar=CalendarConfig(path="calendar.csv", agricultural_years=(config.year - 1, config.year)),
        provinces=ProvincesConfig(path="provinces.geojson", name_field="province"),
        split=SplitConfig(named={name: _split_of(name) for name in regions}),
    )


def sites(config: SimulatedConfig) -> list[tuple[str, Bounds]]:
    """Crop and square (bounds in WORLD_CRS) of each site, at least 3.4 km from one another."""
    count = config.sites_per_crop * len(CROPS)
    columns = int(np.ceil(np.sqrt(count)))
    spacing = config.site_size_m + _GAP_M + 2 * _ROAM_M
    lon, lat = _SITES_AT
    middle = np.concatenate(to_world(np.array([lon]), np.array([lat]), LONLAT))
    # Crops are dealt to the lattice in an order that only the seed knows.
    order = np.argsort(uniform(config.seed, "site order", np.arange(count)))
    found = []
    for position, number in enumerate(order):
        step = np.array(divmod(position, columns)[::-1]) - (columns - 1) / 2
        crop = CROPS[number % len(CROPS)]
        found.append((crop, _where_grown(config, crop, middle + step * spacing)))
    return found


def _where_grown(config: SimulatedConfig, crop: str, middle: npt.NDArray[np.float64]) -> Bounds:
    """The square near `middle` with the most fields of the crop: surveys go where a crop is grown."""
    half = config.site_size_m / 2
    reach = half + _ROAM_M
    i, j = _cells_in(
        (middle[0] - reach, middle[1] - reach, middle[0] + reach, middle[1] + reach), config.seed
    )
    fields = fields_of(config.seed, i, j)
    grown = land_of(config.seed, fields, config.year) == CROPS.index(crop)
    grown &= owners(config.seed, i, j) == i
    best, most = middle, -1
    for east, north in product(_ROAM_M * np.array((0, -0.5, 0.5, -1, 1)), repeat=2):
        x, y = middle[0] + east, middle[1] + north
        inner = half - 100.0
        inside = (np.abs(fields.x - x) < inner) & (np.abs(fields.y - y) < inner)
        if (count := int((grown & inside).sum())) > most:
            best, most = np.array((x, y)), count
    return best[0] - half, best[1] - half, best[0] + half, best[1] + half


def field_shapes(
    seed: int, bounds: Bounds, year: int, lands: tuple[str, ...]
) -> list[tuple[float, shapely.Geometry]]:
    """Of each field of `lands` inside `bounds` (WORLD_CRS): a number in [0, 1) drawn for it, and its
    polygon (WORLD_CRS).

    The shapes are the cells of the fields' plane, warped back: the edges that the pixels see, to
    the centimetre.
    """
    i, j = _cells_in(bounds, seed)
    owner = owners(seed, i, j)
    fields = fields_of(seed, i, j)
    wanted = np.isin(land_of(seed, fields, year), [LANDS.index(name) for name in lands]) & (owner == i)
    # A look at the seeds saves drawing fields that lie elsewhere.
    wanted &= shapely.contains_xy(shapely.box(*bounds), fields.x, fields.y)
    points = np.stack(seeds(seed, i, j), axis=-1)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points)))
    cell, point = shapely.STRtree(shapely.points(points)).query(cells, predicate="contains")
    shapes = np.empty(len(points), object)
    shapes[point] = cells[cell]
    flat = [
        shapely.union_all(shapes[(owner == i[index]) & (j == j[index])]) for index in np.flatnonzero(wanted)
    ]
    if not flat:
        return []
    # An edge is bent by the warps: a corner every 0.08 cells, some 15 m.
    bent = shapely.transform(
        shapely.segmentize(flat, 0.08), lambda uv: np.stack(from_lattice(seed, uv[:, 0], uv[:, 1]), axis=-1)
    )
    inside = shapely.contains(shapely.box(*bounds), bent)
    drawn = field_uniform(seed, fields, "annotated", year)[wanted]
    return list(zip(drawn[inside].tolist(), bent[inside], strict=True))


def _parcels(config: SimulatedConfig) -> dict[str, list[tuple[int, shapely.Geometry]]]:
    """By crop: number of the site and polygon (EPSG:4326) of the annotated parcels."""
    parcels: dict[str, list[tuple[int, shapely.Geometry]]] = {crop: [] for crop in CROPS}
    for number, (crop, bounds) in enumerate(sites(config)):
        grown = field_shapes(config.seed, bounds, config.year, (crop,))
        grown.sort(key=lambda field: field[0])
        wanted = max(_LEAST_PARCELS, round(config.annotated_fraction * len(grown)))
        parcels[crop] += [(number, _drawn(shape)) for _, shape in grown[:wanted]]
    return parcels


def _drawn(shape: shapely.Geometry) -> shapely.Geometry:
    """As an annotator draws it: inside the edge, corners cut a little, degrees of seven decimals."""
    inner = shapely.simplify(shapely.buffer(shape, -_BORDER_M), 1.0)
    lonlat = shapely.transform(inner, lambda xy: np.stack(from_world(xy[:, 0], xy[:, 1], LONLAT), axis=-1))
    return shapely.transform(lonlat, lambda degrees: np.round(degrees, 7))


def _cells_in(bounds: Bounds, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The lattice cells whose fields may lie in `bounds`, with three around them."""
    x, y = np.meshgrid(np.linspace(bounds[0], bounds[2], 25), np.linspace(bounds[1], bounds[3], 25))
    u, v = lattice(seed, x.ravel(), y.ravel())
    i = np.arange(int(u.min()) - 3, int(u.max()) + 4)
    j = np.arange(int(v.min()) - 3, int(v.max()) + 4)
    ii, jj = np.meshgrid(i, j, indexing="ij")
    return ii.ravel(), jj.ravel()


def _calendar_rows(harvest_year: int) -> list[Sequence[object]]:
    """Full dates: what is sown in a later month than it is harvested in was sown the year before."""
    rows: list[Sequence[object]] = [
        ("sheet", "province", "planting_start", "planting_end", "harvest_start", "harvest_end")
    ]
    for crop, dates in CALENDAR.items():
        years = [harvest_year - (text > dates[-1]) for text in dates]
        days = [date.fromisoformat(f"{year}-{text}") for year, text in zip(years, dates, strict=True)]
        for province, (later, _) in _PROVINCES.items():
            rows.append((crop, province, *(day + timedelta(later) for day in days)))
    return rows


def _regions(config: SimulatedConfig) -> dict[str, tuple[float, float]]:
    """Longitude and latitude of the middle of each region by name, far from sites and one another."""
    west, south, east, north = _REGIONS_IN
    tries = np.arange(2000)
    lon = west + (east - west) * uniform(config.seed, "region lon", tries)
    lat = south + (north - south) * uniform(config.seed, "region lat", tries)
    # A region lies well within its UTM zone.
    lon = np.where(np.abs(lon - np.round(lon / 6) * 6) < 0.2, lon + 0.4, lon)
    # Sites may fill a square of this half-width around their middle.
    half_sites = (
        0.5
        * np.sqrt(config.sites_per_crop * len(CROPS))
        * (config.site_size_m + _GAP_M + 2 * _ROAM_M)
        / 70_000
    )
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


def _region_rows(config: SimulatedConfig, regions: dict[str, tuple[float, float]]) -> list[Sequence[object]]:
    """The table: the harvest is that of the earliest crop, so that a window ends before any."""
    harvest = min(dates[2] for dates in CALENDAR.values())
    rows: list[Sequence[object]] = [
        ("country", "main_type", "harvest_date", "min_lon", "min_lat", "max_lon", "max_lat")
    ]
    for name, middle in regions.items():
        box = _box_of(middle, config.region_size_m)
        rows.append((name, "all crops", f"{config.year}-{harvest}", *(f"{degrees:.8f}" for degrees in box)))
    return rows


def _box_of(middle: tuple[float, float], size_m: float) -> Bounds:
    """Degrees of a box whose grid, at 10 m in UTM and snapped to 20 m, has sides of `size_m`.

    The bounds of a box of degrees are wider in UTM than the box, so it is fitted step by step to
    be 4 m smaller all around than a snapped square.
    """
    lonlat = (*middle, *middle)
    crs = utm_crs(lonlat, LONLAT)
    x, y, _, _ = transform_bounds(lonlat, LONLAT, crs)
    low = np.floor((np.array((x, y)) - size_m / 2) / 20) * 20
    goal = np.concatenate([low + 4, low + size_m - 4])
    box = np.array(transform_bounds((goal[0], goal[1], goal[2], goal[3]), crs, LONLAT))
    for _ in range(8):
        is_now = np.array(transform_bounds((box[0], box[1], box[2], box[3]), LONLAT, crs))
        metres = np.array((71_500.0 * np.cos(np.deg2rad(middle[1])) / np.cos(np.deg2rad(50)), 111_200.0))
        box = box + (goal - is_now) / np.tile(metres, 2)
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _split_of(name: str) -> Any:
    ending = name.rpartition("_")[2]
    return {"valid": "val", "test": "test"}.get(ending, "train")


def _geojson(rows: Iterable[tuple[dict[str, Any], shapely.Geometry]]) -> str:
    features = [
        {"type": "Feature", "properties": properties, "geometry": json.loads(shapely.to_geojson(shape))}
        for properties, shape in rows
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _publish(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    Folder(str(path.parent)).write_text(path.name, text)

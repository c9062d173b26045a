"""A small invented region for the tests of ROIs: two provinces, two crops, a calendar."""

import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import openpyxl
import pandas as pd
import pyogrio
import shapely

from cropray.config import Config

UTM = "EPSG:32631"
EAST, NORTH = 500_000.0, 5_400_000.0  # a corner in the middle of zone 31
HEADER = ("Province", "Planting Start Date", "Planting End Date", "Harvest Start Date", "Harvest End Date")


def field(x: float, y: float, size: float = 100.0) -> shapely.Polygon:
    """A square field with its lower left corner x, y metres from the corner of the region."""
    return shapely.box(EAST + x, NORTH + y, EAST + x + size, NORTH + y + size)


def write_fields(
    path: Path, fields: Sequence[shapely.Geometry], crs: str | None = UTM, **columns: list
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = gpd.GeoDataFrame({"number": range(len(fields)), **columns}, geometry=list(fields), crs=UTM)
    if crs is None:
        frame = gpd.GeoDataFrame(frame.drop(columns="geometry"), geometry=frame.geometry.to_numpy())
    else:
        frame = frame.to_crs(crs)
    frame.to_file(path)
    return path


def write_calendar(path: Path, **sheets: Sequence[Sequence[str]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in (HEADER, *rows):
            sheet.append(row)
    book.save(path)
    return path


def write_region(folder: Path) -> None:
    """Wheat at two places of West and one of East, beet at one of West; provinces of 50 km."""
    wheat = [field(1000, 1000), field(1200, 1000), field(20_000, 1000), field(70_000, 1000)]
    write_fields(folder / "wheat.gpkg", wheat)
    write_fields(folder / "beet.geojson", [field(1000, 1400)], crs="EPSG:4326")
    provinces = [field(0, -10_000, 50_000), field(50_000, -10_000, 50_000)]
    write_fields(folder / "provinces.gpkg", provinces, province=["West", "East"])
    dates = ("10-01", "11-15", "07-01", "08-01")
    write_calendar(
        folder / "calendar.xlsx",
        Wheat=[("West", *dates), ("East", *dates)],
        Beet=[("West", "03-01", "04-01", "09-01", "11-01")],
    )


def config(folder: Path, **rois: object) -> Config:
    settings = {
        "data_root": str(folder),
        "parcels": [
            {"crop": "wheat", "path": "wheat.gpkg", "seasons": [{"sheet": "Wheat"}]},
            {"crop": "beet", "path": "beet.geojson", "seasons": [{"sheet": "Beet"}]},
        ],
        "calendar": {"path": "calendar.xlsx", "agricultural_years": [2021, 2022]},
        "provinces": {"path": "provinces.gpkg"},
        "country": "Nowhere",
        "crs": UTM,
    }
    return Config(classes=("wheat", "beet"), rois=settings | rois)


def circle_wkb(x: float, y: float, radius: float) -> bytes:
    """A MULTISURFACE (ISO WKB) of one circle, as GIS programs draw it: two arcs through five points."""
    points = [(x - radius, y), (x, y + radius), (x + radius, y), (x, y - radius), (x - radius, y)]
    arcs = struct.pack("<BII", 1, 8, len(points)) + b"".join(struct.pack("<dd", *point) for point in points)
    return struct.pack("<BII", 1, 12, 1) + struct.pack("<BII", 1, 10, 1) + arcs


def write_circle(path: Path, radius: float = 100.0) -> Path:
    """A GeoPackage whose only parcel is a curve, which shapely cannot hold."""
    frame = gpd.GeoDataFrame({"code": ["115"]}, geometry=[shapely.MultiPolygon([field(0, 0)])], crs=UTM)
    frame.to_file(path, layer="parcels", SPATIAL_INDEX="NO")
    header = b"GP\0\1" + struct.pack("<i", 32631)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE parcels SET geom = ?", [header + circle_wkb(EAST + 1000, NORTH + 1000, radius)]
        )
    return path


def write_styles(path: Path) -> None:
    """The table that QGIS adds to a GeoPackage with the styles of its layers."""
    pyogrio.write_dataframe(pd.DataFrame({"styleQML": ["<qgis/>"]}), path, layer="layer_styles", append=True)

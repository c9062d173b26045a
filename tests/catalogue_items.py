"""Scenes as public catalogues publish them: items in their shapes, with small files that hold known numbers.

The keys, fields, media types and units are those that the catalogues served between 2022 and 2026; the text
is our own. Every scene covers GRID and holds REFLECTANCE or POWER.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.transform import Affine

from cropray.bands import S2_BANDS, S2_NAMES
from cropray.grid import Grid

GRID = Grid("EPSG:32633", 600_000, 5_300_000, 10, 16, 24)
WHEN = "2022-05-04T10:00:31.024000Z"
REFLECTANCE = {name: 0.05 + 0.03 * c for c, name in enumerate(S2_NAMES)}
POWER = {"VV": 0.11, "VH": 0.02}
VEGETATION = 4

Item = dict[str, Any]
Href = Callable[[str], str]
"""The href of the file of this name below the folder that the server offers."""

COMMON_NAMES = {
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1",
    "B06": "rededge2",
    "B07": "rededge3",
    "B08": "nir",
    "B8A": "nir08",
    "B11": "swir16",
    "B12": "swir22",
    "SCL": "scl",
}
RESOLUTIONS = {**{band.name: band.resolution_m for band in S2_BANDS}, "SCL": 20}


def write(
    path: Path,
    value: float | np.ndarray,
    resolution_m: int,
    dtype: str,
    nodata: float | None,
    *,
    grid: Grid = GRID,
    **options: Any,
) -> None:
    """A raster over a grid, of one value or of values (H, W); its first pixel becomes `nodata`."""
    factor = resolution_m // 10
    values = np.broadcast_to(value, (grid.height // factor, grid.width // factor)).astype(dtype)
    if nodata is not None:
        values[0, 0] = nodata
    driver = "JP2OpenJPEG" if path.suffix == ".jp2" else "GTiff"
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        **{
            "driver": driver,
            "count": 1,
            "height": values.shape[0],
            "width": values.shape[1],
            "dtype": dtype,
            "crs": grid.crs,
            "transform": Affine(resolution_m, 0, grid.x0, 0, -resolution_m, grid.y0),
            **lossless,
            **options,
        },
    ) as file:
        file.write(values, 1)


def write_s2(folder: Path, suffix: str, offset: int) -> None:
    """Files B02.tif … SCL.tif with the numbers of REFLECTANCE, `offset` added."""
    for band, reflectance in REFLECTANCE.items():
        number = round(reflectance * 10_000) + offset
        write(folder / f"{band}.{suffix}", number, RESOLUTIONS[band], "uint16", 0)
    write(folder / f"SCL.{suffix}", VEGETATION, 20, "uint8", 0)


def write_s1(folder: Path, nodata: float, *, stated: bool) -> None:
    for name, power in POWER.items():
        path = folder / f"{name}.tif"
        write(path, power, 10, "float32", nodata)
        if stated:
            with rasterio.open(path, "r+") as file:
                file.nodata = nodata


def _item(
    name: str, version: str, collection: str, properties: Item, assets: Item, **fields: Any
) -> dict[str, Any]:
    to_degrees = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True)
    scene = shapely.segmentize(shapely.box(*GRID.bounds).buffer(20_000, join_style="mitre"), 5_000)
    footprint = shapely.transform(scene, to_degrees.transform, interleaved=False)
    return {
        "type": "Feature",
        "stac_version": version,
        "stac_extensions": [],
        "id": name,
        "collection": collection,
        "geometry": shapely.geometry.mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": {"datetime": WHEN, **properties},
        "links": [],
        "assets": assets,
        **fields,
    }


_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def earth_search_v1(folder: Path, href: Href) -> Item:
    """STAC 1.0: keys are common names. The pixels are shifted; the metadata keep the product's offset."""
    write_s2(folder, "tif", offset=0)
    assets: Item = {}
    for band, key in COMMON_NAMES.items():
        raster = {"nodata": 0, "data_type": "uint16", "spatial_resolution": RESOLUTIONS[band]}
        scale = {} if band == "SCL" else {"scale": 0.0001, "offset": -0.1}
        eo = [{"name": key, "common_name": key.rstrip("123")}]
        for suffix, kind, where in (
            ("", _COG, href(f"{band}.tif")),
            ("-jp2", "image/jp2", f"s3://sentinel-s2-l2a/tiles/33/U/WP/2022/5/4/0/{band}.jp2"),
        ):
            assets[key + suffix] = {"href": where, "type": kind, "raster:bands": [raster | scale]}
            if band != "SCL":
                assets[key + suffix] |= {"eo:bands": eo, "gsd": RESOLUTIONS[band]}
    assets["visual"] = {"href": href("TCI.tif"), "eo:bands": [{"name": n} for n in ("red", "green", "blue")]}
    return _item(
        "S2A_33UWP_20220504_0_L2A",
        "1.0.0",
        "sentinel-2-l2a",
        {
            "platform": "sentinel-2a",
            "proj:epsg": 32633,
            "grid:code": "MGRS-33UWP",
            "s2:processing_baseline": "04.00",
            "s2:product_uri": "S2A_MSIL2A_20220504T100031_N0400_R122_T33UWP_20220504T140011.SAFE",
            "earthsearch:boa_offset_applied": True,
        },
        assets,
    )


def earth_search_v0(folder: Path, href: Href) -> Item:
    """STAC 1.0.0-beta.2: keys are band names, fields of its own for the offset and the baseline."""
    write_s2(folder, "tif", offset=0)
    assets: Item = {
        band: {"title": f"Band {band}", "type": _COG, "href": href(f"{band}.tif")} for band in COMMON_NAMES
    }
    assets["visual"] = {"href": href("TCI.tif"), "eo:bands": [{"name": n} for n in ("B04", "B03", "B02")]}
    return _item(
        "S2A_33UWP_20220504_0_L2A",
        "1.0.0-beta.2",
        "sentinel-s2-l2a-cogs",
        {
            "platform": "sentinel-2a",
            "proj:epsg": 32633,
            "sentinel:product_id": "S2A_MSIL2A_20220504T100031_N0400_R122_T33UWP_20220504T140011",
            "sentinel:processing_baseline": "04.00",
            "sentinel:boa_offset_applied": True,
        },
        assets,
    )


def planetary_computer_s2(folder: Path, href: Href) -> Item:
    """Band names as keys, the baseline alone tells the offset; several bands are called `rededge`."""
    write_s2(folder, "tif", offset=1000)
    assets: Item = {}
    for band, key in COMMON_NAMES.items():
        eo = [{"name": band, "common_name": "rededge" if band == "B8A" else key.rstrip("123")}]
        bands = {} if band == "SCL" else {"eo:bands": eo}
        gsd = RESOLUTIONS[band]
        assets[band] = {"href": href(f"{band}.tif"), "type": _COG, "gsd": gsd, "roles": ["data"], **bands}
    assets["visual"] = {"href": href("TCI.tif"), "gsd": 10, "eo:bands": [{"name": "B04"}, {"name": "B03"}]}
    return _item(
        "S2A_MSIL2A_20220504T100031_R122_T33UWP_20220504T161240",
        "1.0.0",
        "sentinel-2-l2a",
        {
            "platform": "Sentinel-2A",
            "proj:epsg": 32633,
            "s2:mgrs_tile": "33UWP",
            "s2:processing_baseline": "04.00",
            "s2:product_uri": "S2A_MSIL2A_20220504T100031_N0400_R122_T33UWP_20220504T161240.SAFE",
            "sat:relative_orbit": 122,
        },
        assets,
    )


def planetary_computer_s1_rtc(folder: Path, href: Href) -> Item:
    """Linear gamma0 of the GRD product; what the numbers are stands in the collection's description alone."""
    write_s1(folder, -32768, stated=True)
    raster = {"nodata": -32768, "data_type": "float32", "spatial_resolution": 10.0}
    assets: Item = {
        key.lower(): {"href": href(f"{key}.tif"), "type": _COG, "roles": ["data"], "raster:bands": [raster]}
        for key in POWER
    }
    return _item(
        "S1A_IW_GRDH_1SDV_20220504T051234_20220504T051259_043058_05243A_rtc",
        "1.0.0",
        "sentinel-1-rtc",
        {
            "platform": "SENTINEL-1A",
            "proj:epsg": 32633,
            "sar:product_type": "GRD",
            "sar:polarizations": ["VV", "VH"],
            "s1:processing_level": "1",
            "sat:orbit_state": "descending",
            "sat:relative_orbit": 22,
        },
        assets,
    )


def copernicus_s2(folder: Path, href: Href) -> Item:
    """STAC 1.1: a key for each resolution, fields of the bands at the asset, JPEG 2000 on S3."""
    write_s2(folder, "jp2", offset=1000)
    assets: Item = {
        "TCI_10m": {"href": href("TCI.jp2"), "gsd": 10, "bands": [{"name": "B04"}, {"name": "B03"}]}
    }
    for band in COMMON_NAMES:
        for resolution in (60, 20, 10):
            if resolution < RESOLUTIONS[band]:
                continue
            name = f"{band}.jp2" if resolution == RESOLUTIONS[band] else f"{band}_{resolution}m.jp2"
            scale = {"raster:scale": 0.0001, "raster:offset": -0.1, "bands": [{"name": band}]}
            assets[f"{band}_{resolution}m"] = {
                "href": href(name),
                "type": "image/jp2",
                "gsd": resolution,
                "nodata": 0,
                "data_type": "uint8" if band == "SCL" else "uint16",
                "proj:code": "EPSG:32633",
                "alternate": {
                    "https": {"href": "https://zipper.dataspace.copernicus.eu/odata/v1/Products(1)"}
                },
                **({} if band == "SCL" else scale),
            }
    return _item(
        "S2A_MSIL2A_20220504T100031_N0510_R122_T33UWP_20240601T120000",
        "1.1.0",
        "sentinel-2-l2a",
        {
            "platform": "sentinel-2a",
            "grid:code": "MGRS-33UWP",
            "processing:version": "05.10",
            "sat:relative_orbit": 122,
            "start_datetime": WHEN,
            "end_datetime": WHEN,
        },
        assets,
    )


def aws_s1_rtc(folder: Path, href: Href) -> Item:
    """Gamma0 of the conterminous United States, 0 where there is none; unit not stated."""
    write_s1(folder, 0, stated=False)
    raster = {"nodata": 0, "data_type": "float32", "sampling": "area"}
    assets: Item = {
        f"gamma0_{key.lower()}": {
            "href": href(f"{key}.tif"),
            "type": _COG,
            "roles": ["data", "gamma0"],
            "raster:bands": [raster],
        }
        for key in POWER
    }
    assets["incidence"] = {"href": href("angle.tif"), "raster:bands": [{"unit": "degrees", "scale": 0.01}]}
    return _item(
        "S1A_20220504_33UWP_DSC",
        "1.0.0",
        "sentinel1-rtc-aws",
        {
            "start_datetime": WHEN,
            "end_datetime": WHEN,
            "proj:epsg": 32633,
            "sar:product_type": "RTC",
            "sat:orbit_state": "descending",
            "sat:relative_orbit": 22,
        },
        assets,
    )


def raw_grd(folder: Path, href: Href) -> Item:
    """Digital numbers in radar geometry, as Earth Search, Planetary Computer and Copernicus offer them."""
    for key in POWER:
        write(folder / f"{key}.tif", 300, 10, "uint16", 0)
    assets: Item = {key.lower(): {"href": href(f"{key}.tif"), "type": _COG} for key in POWER}
    return _item(
        "S1A_IW_GRDH_1SDV_20220504T051234_20220504T051259_043058_05243A",
        "1.0.0",
        "sentinel-1-grd",
        {"sar:product_type": "GRD", "sat:orbit_state": "descending", "sat:relative_orbit": 22},
        assets,
    )

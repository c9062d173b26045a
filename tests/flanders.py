"""The real Flanders series as GeoTIFFs, STAC items and labels, if the data are available.

`python -m tests.flanders DIR` writes them, with two configurations:
  flanders.yaml  labels from a raster, blocks of the patch as train, val and test: the whole path;
  parcels.yaml   one ROI for each crop from the outlines of its fields (one place, so one split).
Both are for I/O and plausibility: one patch of 640 m tells nothing about accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import rasterio
import rasterio.features
import shapely
import xarray as xr
from rasterio.transform import Affine

EPSG = 32631
X0, Y0 = 574_680, 5_622_440  # upper-left corner; 640 m a side
CROPS = {
    "winter wheat": (1110,),
    "maize": (1200,),
    "barley": (1500, 1510),
    "potato": (5100,),
    "sugar beet": (8100,),
    "grass": (9120,),
}
BLOCKS = {"train": (0, 0, 64, 32), "val": (0, 36, 28, 28), "test": (32, 36, 32, 28)}
"""Row, column, height, width in pixels of 10 m: a few pixels apart, so that none is in two."""

_SHARED = Path(__file__).parents[2] / "shared" / "data"


def open_series(data: Path, part: str) -> xr.Dataset:
    """Raw numbers of `S2_L2A_10m`, `S2_L2A_20m`, `S1_GRD-ASCENDING_20m` or `OUTPUT_POLY-110_10m`."""
    (path,) = (data / "worldcereal" / "flanders_2019").glob(f"{part}_*.nc")
    with xr.open_dataset(path, mask_and_scale=False) as dataset:
        return dataset.load()


def build(directory: Path, data: Path | None = None) -> dict[str, Path]:
    """Write everything under `directory`.

    Returns the paths of s2 and s1 (ItemCollections), labels (GeoTIFF of class index + 1, 0 = none),
    parcels, rois (table of BLOCKS), area (outline of the whole patch), config and parcels_config.
    """
    data = data or Path(os.environ.get("CROPRAY_SHARED_DATA", _SHARED))
    directory.mkdir(parents=True, exist_ok=True)
    paths = {
        "s2": _write_items(directory / "s2.json", _s2_items(directory, data)),
        "s1": _write_items(directory / "s1.json", _s1_items(directory, data)),
        "labels": directory / "labels.tif",
        "parcels": directory / "parcels.gpkg",
        "rois": directory / "rois.csv",
        "area": directory / "area.gpkg",
        "config": directory / "flanders.yaml",
        "parcels_config": directory / "parcels.yaml",
    }
    crop_type = open_series(data, "OUTPUT_POLY-110_10m")["CT"].values
    _write_labels(crop_type, paths["labels"], paths["parcels"])
    outline = gpd.GeoSeries([shapely.box(*_bounds(0, 0, 64, 64))], crs=EPSG)
    outline.to_file(paths["area"], driver="GPKG")
    rows = [f'{name},"{",".join(map(str, _bounds(*block)))}"\n' for name, block in BLOCKS.items()]
    paths["rois"].write_text("uuid,roi\n" + "".join(rows))
    paths["config"].write_text(_COMMON.format(**_fields(paths)) + _BLOCKS.format(**_fields(paths)))
    paths["parcels_config"].write_text(_COMMON.format(**_fields(paths)) + _parcels_text(paths))
    return paths


def _bounds(row: int, col: int, height: int, width: int) -> tuple[int, int, int, int]:
    return X0 + col * 10, Y0 - (row + height) * 10, X0 + (col + width) * 10, Y0 - row * 10


def _s2_items(directory: Path, data: Path) -> Iterator[pystac.Item]:
    fine, coarse = open_series(data, "S2_L2A_10m"), open_series(data, "S2_L2A_20m")
    for t, time in enumerate(fine.timestamp.values):
        item = _item("S2", time, {"platform": "sentinel-2", "proj:code": f"EPSG:{EPSG}"})
        for series, resolution in ((fine, 10), (coarse, 20)):
            for band in (name for name in series.data_vars if series[name].ndim == 3):
                scale = {} if band == "SCL" else {"scale": 1e-4, "offset": 0}
                _add(item, str(band), series[band].values[t], resolution, directory, scale)
        yield item


def _s1_items(directory: Path, data: Path) -> Iterator[pystac.Item]:
    series = open_series(data, "S1_GRD-ASCENDING_20m")
    for t, time in enumerate(series.timestamp.values):
        # One track, seen every six days; its number is not in the data.
        properties = {"sat:orbit_state": "ascending", "sat:relative_orbit": 161, "proj:code": f"EPSG:{EPSG}"}
        item = _item("S1", time, properties)
        for band in ("VV", "VH"):
            _add(item, band, series[band].values[t], 20, directory, {"scale": 1e-4, "unit": "dB"})
        yield item


def _item(prefix: str, time: np.datetime64, properties: dict[str, Any]) -> pystac.Item:
    # Real scenes reach far beyond the patch.
    corners = gpd.GeoSeries([shapely.box(*_bounds(0, 0, 64, 64)).buffer(500)], crs=EPSG)
    footprint = corners.to_crs(4326).iloc[0]
    when = time.astype("datetime64[s]").item()
    return pystac.Item(
        id=f"{prefix}_{when:%Y%m%dT%H%M%S}",
        geometry=shapely.geometry.mapping(footprint),
        bbox=list(footprint.bounds),
        datetime=when,
        properties=properties,
        collection=f"flanders-{prefix.lower()}",
    )


def _add(
    item: pystac.Item, band: str, values: np.ndarray, resolution: int, directory: Path, scale: dict[str, Any]
) -> None:
    name = f"{item.id}/{band}.tif"
    _write_tiff(directory / name, values, resolution)
    fields = {"raster:bands": [{"data_type": str(values.dtype), "nodata": 0, **scale}], "gsd": resolution}
    item.add_asset(band, pystac.Asset(href=f"./{name}", extra_fields=fields))


def _write_tiff(path: Path, values: np.ndarray, resolution: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "height": values.shape[0],
        "width": values.shape[1],
        "count": 1,
        "dtype": values.dtype,
        "crs": EPSG,
        "transform": Affine(resolution, 0, X0, 0, -resolution, Y0),
        "nodata": 0,
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)


def _write_items(path: Path, items: Iterator[pystac.Item]) -> Path:
    path.write_text(json.dumps(pystac.ItemCollection(items).to_dict()))
    return path


def _write_labels(crop_type: np.ndarray, raster: Path, parcels: Path) -> None:
    index = np.zeros(crop_type.shape, np.uint8)
    for number, codes in enumerate(CROPS.values(), start=1):
        index[np.isin(crop_type, codes)] = number
    _write_tiff(raster, index, 10)
    fields = rasterio.features.shapes(index, mask=index > 0, transform=Affine(10, 0, X0, 0, -10, Y0))
    rows = [(list(CROPS)[int(value) - 1], shapely.geometry.shape(outline)) for outline, value in fields]
    frame = gpd.GeoDataFrame({"crop": [c for c, _ in rows]}, geometry=[g for _, g in rows], crs=EPSG)
    frame.to_file(parcels, driver="GPKG")


def _fields(paths: dict[str, Path]) -> dict[str, str]:
    names = {name: json.dumps(str(path)) for name, path in paths.items()}
    return names | {
        "root": json.dumps(str(paths["rois"].parent)),
        "classes": json.dumps(list(CROPS)),
        "codes": json.dumps(list(range(1, len(CROPS) + 1))),
        "splits": json.dumps({name: name for name in BLOCKS}),
    }


_COMMON = """\
classes: {classes}
window: {{anchor: as_of, as_of: 2019-06-30, months: 6}}
grid: {{crs: "EPSG:32631"}}
source:
  kind: stac
  stac:
    s2: {{items: {s2}}}
    s1: {{items: {s1}, quantity: sigma0}}
model: {{width: 8}}
predict: {{as_of: 2019-06-30, area: {area}, tile_size: 64, overlap: 8}}
"""

_BLOCKS = """\
rois:
  kind: table
  data_root: {root}
  table: rois.csv
  crs: "EPSG:32631"
  split: {{buffer_m: 0, named: {splits}}}
patch: {{size: 16, max_overlap: 8}}
labels:
  parcels: false
  class_map: {{path: {labels}, codes: {codes}, nodata: 0}}
pretrain: {{epochs: 20, batch_size: 2, lr: 0.01}}
"""


def _parcels_text(paths: dict[str, Path]) -> str:
    lines = ["rois:", f"  data_root: {_fields(paths)['root']}", '  crs: "EPSG:32631"', "  parcels:"]
    lines += [
        f"    - {{crop: {crop}, path: parcels.gpkg, seasons: [{{where: {{crop: {crop}}}}}]}}"
        for crop in CROPS
    ]
    return "\n".join([*lines, "  split: {allow_empty: true}"]) + "\n"  # the ROIs share one place


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    for name, path in build(parser.parse_args().directory).items():
        sys.stdout.write(f"{name:15} {path}\n")


if __name__ == "__main__":
    main()

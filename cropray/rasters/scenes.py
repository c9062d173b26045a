"""Scenes of catalogues: files of others, anywhere, read onto a grid."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import rasterio
from rasterio.dtypes import in_dtype_range
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from cropray.errors import InputError
from cropray.grid import Grid
from cropray.rasters import CACHE_MB, check_georeference, warp_options
from cropray.types import FloatArray

# The formats of scenes. Other drivers may open whatever a file names: a VRT any path or URL.
_SCENE_DRIVERS = ("GTiff", "JP2OpenJPEG", "JP2KAK")
# A request is tried again after connection errors and HTTP 429 and 5xx. These are defaults: a variable of
# the same name in the environment comes first.
_SCENE_OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",  # bytes per second, for this long:
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # doubled after each attempt
    "GDAL_HTTP_TIMEOUT": "120",
}


def read_scene(
    path: str, grid: Grid, *, bilinear: bool, nodata: float | None, options: Mapping[str, str]
) -> FloatArray:
    """(H, W) float32: the first band of an untrusted GeoTIFF or JPEG 2000 file on a grid, NaN without data.

    Without `bilinear`, pixels are taken by nearest neighbour. Interpolation leaves out pixels without data:
    those of the value `nodata`, or if that is None, of the value that the file states. `options` are GDAL's
    for this file (credentials, endpoints); `path` may begin with /vsicurl/ and the like. Raises InputError
    for a file that cannot be read, is of another format, has no georeference or names further files; it says
    whether GDAL could not "open" the file or "read the pixels of" it. A coarse grid is read from overviews.
    """
    configuration = {name: value for name, value in _SCENE_OPTIONS.items() if name not in os.environ}
    configuration["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"  # and open no file that lies beside it
    doing = "open"
    name, mark, query = path.partition("?")  # the query may be a signature, so no message shows it
    with rasterio.Env(_Options({**configuration, **options}), GDAL_CACHEMAX=CACHE_MB):
        try:
            with DatasetReader(path, driver=list(_SCENE_DRIVERS), sharing=False) as source:
                doing = "read the pixels of"
                _check_scene(source, name)
                level = _overview(source, grid)
                if level is None:
                    return _read(source, grid, bilinear, nodata)
            with DatasetReader(
                path, driver=list(_SCENE_DRIVERS), sharing=False, overview_level=level
            ) as overview:
                return _read(overview, grid, bilinear, nodata)
        except RasterioError as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            reason = str(first).replace(mark + query, "").strip()
            raise InputError(f"cannot {doing} {name}: {reason}") from error


def _read(source: Any, grid: Grid, bilinear: bool, nodata: float | None) -> FloatArray:
    if nodata is None or not in_dtype_range(nodata, source.dtypes[0]):
        nodata = source.nodata
    with WarpedVRT(
        source,
        **warp_options(grid),
        src_nodata=nodata,
        nodata=np.nan,
        dtype="float32",
        resampling=Resampling.bilinear if bilinear else Resampling.nearest,
    ) as warped:
        values: FloatArray = warped.read(1)
    return values


def _overview(source: Any, grid: Grid) -> int | None:
    """The coarsest overview whose pixels are no larger than those of the grid: no more needs to be read."""
    factors = source.overviews(1)
    if not factors:
        return None
    west, south, east, north = source.bounds
    x, y = (west + east) / 2, (south + north) / 2
    (x0, x1), (y0, y1) = transform(source.crs, grid.crs, [x, x + source.res[0]], [y, y])
    pixel = math.hypot(x1 - x0, y1 - y0)  # in the middle of the source
    fitting = [level for level, factor in enumerate(factors) if factor * pixel <= grid.resolution * 1.01]
    return fitting[-1] if fitting else None


def _check_scene(source: Any, name: str) -> None:
    if source.gcps[0]:
        raise InputError(
            f"{name} is in the geometry of the sensor (ground control points), like raw GRD. Use "
            "terrain-corrected backscatter."
        )
    check_georeference(source, name)
    if source.tags(ns="OVERVIEWS"):  # GDAL would read the file that it names, of any format
        raise InputError(f"{name} names another file as its overview. Write the raster without it.")


class _Options(DummySession):  # type: ignore[misc]  # rasterio has no types
    """GDAL options as a session: rasterio takes no AWS keys otherwise, not even to leave them out."""

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__()
        self._options = dict(options)

    def get_credential_options(self) -> dict[str, str]:
        return self._options

"""Rasters: burn shapes, read onto a grid, write by windows, make Cloud-Optimized GeoTIFFs.

The only package that imports rasterio. Axes: B bands, H rows (north to south), W columns.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from cropray.errors import InputError, free_space
from cropray.grid import Grid, Window
from cropray.types import ByteArray, FloatArray

_BLOCK = 512  # pixels a side of the blocks in a TIFF
# Tolerance of GDAL's interpolation of positions, in pixels. With the default of 0.125 the same pixel could
# differ between tiles. GDAL does not accept 0.
_TOLERANCE = 1e-6
CACHE_MB = 64  # GDAL's block cache; the default is 5 % of the machine's memory


def burn(shapes: Iterable[tuple[Any, int]], grid: Grid, fill: int) -> ByteArray:
    """(H, W): the value of the shape that contains a pixel's centre, `fill` outside all shapes.

    `shapes` are pairs of a shapely geometry in the CRS of the grid and a value. The last of several
    overlapping shapes wins.
    """
    return np.asarray(_burnt(shapes, grid, fill, "uint8"))


def burn_numbers(shapes: Iterable[tuple[Any, int]], grid: Grid) -> npt.NDArray[np.int32]:
    """(H, W): as `burn`, for values up to 2**31 - 1, and 0 outside all shapes."""
    return np.asarray(_burnt(shapes, grid, 0, "int32"))


def _burnt(shapes: Iterable[tuple[Any, int]], grid: Grid, fill: int, dtype: str) -> npt.NDArray[Any]:
    pairs = [(geometry, value) for geometry, value in shapes if not geometry.is_empty]
    if not pairs:  # rasterio raises an error for none
        return np.full(grid.shape, fill, dtype)
    burnt: npt.NDArray[Any] = rasterio.features.rasterize(
        pairs,
        out_shape=grid.shape,
        fill=fill,
        transform=rasterio.Affine(*grid.transform),
        all_touched=False,
        dtype=dtype,
    )
    return burnt


def outlines(number_hw: npt.NDArray[np.int32], grid: Grid) -> list[Any]:
    """The polygon of each number but 0, in the CRS of the grid; parts that touch in corners make one."""
    import shapely.geometry  # not where a registered model reads files

    parts: dict[int, list[Any]] = defaultdict(list)
    transform = rasterio.Affine(*grid.transform)
    for polygon, number in rasterio.features.shapes(number_hw, mask=number_hw != 0, transform=transform):
        parts[int(number)].append(shapely.geometry.shape(polygon))
    return [shapely.multipolygons(each) if len(each) > 1 else each[0] for _, each in sorted(parts.items())]


def warp_options(grid: Grid) -> dict[str, Any]:
    """Options of a WarpedVRT on a grid."""
    return {
        "crs": grid.crs,
        "transform": rasterio.Affine(*grid.transform),
        "height": grid.height,
        "width": grid.width,
        "tolerance": _TOLERANCE,
    }


def read_nearest(path: str, grid: Grid, nodata: float, values: Sequence[float] = ()) -> npt.NDArray[Any]:
    """(H, W): the first band sampled on a grid by nearest neighbour, in the raster's own dtype.

    Pixels outside the raster, and pixels with the nodata value that the raster states, become
    `nodata`. Raises InputError for a raster that is missing, unreadable or without georeference, and for
    one that states one of the meaningful `values` as its nodata value.
    """
    with _opened(path) as source:
        if source.nodata in values:
            raise InputError(
                f"{path} states {source.nodata:g} as its nodata value, which is one of the codes. Correct "
                f"the codes, or the file: rio edit-info --unset-nodata {path}"
            )
        with WarpedVRT(
            source,
            **warp_options(grid),
            nodata=nodata,
            resampling=Resampling.nearest,
        ) as warped:
            read: npt.NDArray[Any] = warped.read(1)
    return read


def read_window(path: str, window: Window) -> npt.NDArray[Any]:
    """(B, H, W) of a window inside the raster. Raises InputError for an unreadable raster."""
    with _opened(path) as source:
        values: npt.NDArray[Any] = source.read(window=window.slices)
    return values


def read_physical(path: str) -> tuple[FloatArray, Grid]:
    """(B, H, W) in physical units, NaN where masked, and the grid. Raises InputError if it is unreadable."""
    with _opened(path) as source:
        values = source.read(masked=True, out_dtype=np.float64)
        scales, offsets = (np.array(x)[:, None, None] for x in (source.scales, source.offsets))
        return np.ma.filled(values * scales + offsets, np.nan).astype(np.float32), _grid_of(source, path)


def read_reduced(path: str, max_size: int) -> tuple[npt.NDArray[Any], Grid]:
    """(B, H, W) of the whole raster at no more than `max_size` pixels a side, and its full grid.

    GDAL reads from overviews if the raster has them, so memory does not grow with the raster. Raises
    InputError for an unreadable raster.
    """
    with _opened(path) as source:
        grid = _grid_of(source, path)
        factor = max(1.0, max(grid.shape) / max_size)
        shape = tuple(max(1, round(side / factor)) for side in grid.shape)
        values: npt.NDArray[Any] = source.read(
            out_shape=(source.count, *shape), resampling=Resampling.nearest
        )
    return values, grid


def read_pages(path: str) -> tuple[npt.NDArray[Any], Grid | None]:
    """(B, H, W) of a small raster, and its grid or None if it has no georeference.

    Array libraries write one page per band: the pages of a multi-page TIFF count as its bands. Raises
    InputError for a raster that is missing or unreadable and for pages of different sizes.
    """
    with _readable(path) as source:
        grid = _grid_of(source, path) if source.crs and not source.transform.is_identity else None
        if not source.subdatasets:
            values: npt.NDArray[Any] = source.read()
            return values, grid
        pages = []
        for number in range(1, len(source.subdatasets) + 1):  # subdatasets lists page 10 before 2
            with rasterio.open(f"GTIFF_DIR:{number}:{path}") as opened:
                pages.append(opened.read(1))
        if len({values.shape for values in pages}) > 1:
            raise InputError(
                f"{path} has pages of different sizes. Every page must be one band of one image."
            )
        return np.stack(pages), grid


def read_grid(path: str) -> Grid:
    """The grid of a raster. Raises InputError unless its pixels are square and north-up."""
    with _opened(path) as source:
        return _grid_of(source, path)


Write = Callable[[npt.NDArray[Any], Window], None]
"""Writes values (B, H, W) to a window of a new raster."""


@contextmanager
def create_tiled(
    path: Path,
    grid: Grid,
    *,
    count: int,
    dtype: str,
    nodata: float,
    descriptions: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
    scale: float | None = None,
) -> Iterator[Write]:
    """A function that fills a tiled (Big)TIFF by windows, in any order. Unwritten windows are `nodata`.

    Memory stays at GDAL's block cache for any size. `colours` is the colour table of a single uint8
    band, `scale` the factor from stored to true values. Bands are quantities, never red, green and blue. An
    error in the block removes the file. Raises InputError if the disk is full or the folder
    not writable.
    """
    with _writing(path), rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=count,
            dtype=dtype,
            nodata=nodata,
            crs=grid.crs,
            transform=rasterio.Affine(*grid.transform),
            tiled=True,
            blockxsize=_BLOCK,
            blockysize=_BLOCK,
            compress="deflate",
            bigtiff="if_safer",
            sparse_ok=True,
            interleave="band",
            photometric="minisblack",  # GDAL would take three bands for red, green and blue
            alpha="unspecified",
        ) as dataset:
            if scale is not None:
                dataset.scales = (scale,) * count
            for index, text in enumerate(descriptions, start=1):
                dataset.set_band_description(index, text)
            dataset.update_tags(**(tags or {}))
            if colours is not None:
                dataset.write_colormap(1, {value: (*rgb, 255) for value, rgb in colours.items()})
            yield lambda values_bhw, window: dataset.write(values_bhw, window=window.slices)
        _check_blocks(path)


def write_cog(src: Path, dst: Path, *, overviews: Literal["mode", "nearest", "average"]) -> None:
    """Rewrite a GeoTIFF as a Cloud-Optimized GeoTIFF, block by block.

    Overviews halve the raster until it fits one block: by `mode` for classes, whose mean has no meaning,
    by `average` for quantities. Raises InputError if the disk is full.
    """
    with _writing(dst), rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        rasterio.shutil.copy(
            src,
            dst,
            driver="COG",
            blocksize=_BLOCK,
            compress="deflate",
            overviews="ignore_existing",
            overview_resampling=overviews,
            bigtiff="if_safer",
        )
        _check_blocks(dst)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Remove the file after an error. Raises InputError for a full disk or a folder that is not writable."""
    try:
        yield
    except BaseException as error:
        if path.exists():
            path.unlink()
        if isinstance(error, OSError | CPLE_BaseError):  # RasterioIOError is an OSError too
            reason = error.__cause__ or error
            raise InputError(
                f"cannot write {path}: {reason} ({free_space(path)}). "
                "Free some space, or choose a folder that you may write to."
            ) from error
        raise


def _check_blocks(path: Path) -> None:
    """Raises OSError if the file ends before its last block: GDAL can miss a failed write when it closes."""
    size = path.stat().st_size
    with rasterio.open(path) as dataset:
        for index, (height, width) in zip(dataset.indexes, dataset.block_shapes, strict=True):
            for row in range(-(-dataset.height // height)):
                for col in range(-(-dataset.width // width)):
                    offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index)
                    length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=index)
                    if offset is not None and int(offset) + int(length) > size:
                        raise OSError(f"the file ends before block {row}, {col} of band {index}")


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """An open raster that has a georeference."""
    with _readable(path) as dataset:
        check_georeference(dataset, path)
        yield dataset


def check_georeference(dataset: Any, path: str) -> None:
    """Raises InputError for an open raster without a CRS or a transform."""
    if dataset.crs is None or dataset.transform.is_identity:
        raise InputError(
            f"{path} has no georeference (CRS {dataset.crs}, transform {dataset.transform[:6]}). Add it: "
            f"rio edit-info --crs EPSG:CODE --transform '[SIZE, 0, MIN_X, 0, -SIZE, MAX_Y]' {path}"
        )


@contextmanager
def _readable(path: str) -> Iterator[Any]:
    """An open raster, with or without a georeference."""
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # callers check it
        try:
            with rasterio.open(path) as dataset:
                yield dataset
        except RasterioError as error:
            raise InputError(f"cannot read the raster {path}: {error}") from error


def _grid_of(dataset: Any, path: str) -> Grid:
    a, b, c, d, e, f = dataset.transform[:6]
    if b or d or not np.isclose(a, -e):
        raise InputError(
            f"{path}: pixels are not square and north-up (transform {dataset.transform[:6]}). "
            f"Resample it: rio warp --res SIZE {path} NEW.tif"
        )
    return Grid(dataset.crs.to_string(), c, f, a, dataset.height, dataset.width)

"""Rasters on disk: burn shapes, read onto a grid, write by windows, make Cloud-Optimized GeoTIFFs.

The only importer of rasterio. Array axes: B bands, H rows (north to south), W columns.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import rasterio.shutil
import rasterio.windows
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from cropray.errors import InputError
from cropray.grid import Grid, Window
from cropray.types import ByteArray

_BLOCK = 512  # pixels a side of the blocks inside a TIFF
# How far a position may be interpolated from its neighbours' exact ones. GDAL's default of 0.125 pixels
# would let the same pixel differ between tiles; it takes no 0.
_EXACT_PIXELS = 1e-6
_CACHE_MB = 64  # GDAL's block cache; its own default is 5 % of the machine's memory


def burn(shapes: Iterable[tuple[Any, int]], grid: Grid, fill: int) -> ByteArray:
    """(H, W) with the value of each shape where a pixel's centre lies inside it, else `fill`.

    Geometries are shapely's, in the CRS of the grid; where they overlap the later one wins.
    """
    pairs = [(geometry, value) for geometry, value in shapes if not geometry.is_empty]
    if not pairs:  # which rasterio refuses
        return np.full(grid.shape, fill, np.uint8)
    burnt: ByteArray = rasterio.features.rasterize(
        pairs,
        out_shape=grid.shape,
        fill=fill,
        transform=rasterio.Affine(*grid.transform),
        all_touched=False,
        dtype="uint8",
    )
    return burnt


def read_nearest(path: str, grid: Grid, band: int = 1, nodata: float | None = None) -> npt.NDArray[Any]:
    """(H, W) of one band on a grid, in the raster's own dtype, nearest neighbour.

    Pixels that the raster does not cover, or that hold its nodata value, become `nodata` (default:
    the raster's own value). Raises InputError for a raster that is missing, unreadable or without
    georeference, and where there is no nodata value to mark what it does not cover.
    """
    with _opened(path) as source:
        fill = source.nodata if nodata is None else nodata
        if fill is None:
            raise InputError(f"{path} states no nodata value; say which value marks its missing pixels")
        with WarpedVRT(
            source,
            crs=grid.crs,
            transform=rasterio.Affine(*grid.transform),
            height=grid.height,
            width=grid.width,
            nodata=fill,
            resampling=Resampling.nearest,
            tolerance=_EXACT_PIXELS,
        ) as warped:
            values: npt.NDArray[Any] = warped.read(band)
    return values


def read_window(path: str, window: Window) -> npt.NDArray[Any]:
    """(B, H, W) of a window of pixels; it must lie inside the raster. Raises InputError."""
    with _opened(path) as source:
        values: npt.NDArray[Any] = source.read(window=_rasterio_window(window))
    return values


def read_reduced(path: str, max_size: int) -> tuple[npt.NDArray[Any], Grid]:
    """(B, H, W) of the whole raster thinned to at most `max_size` pixels a side, and its full grid.

    Overviews serve the read where there are any, so memory does not grow with the raster.
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
    """(B, H, W) of a small raster and its grid, None where it states none.

    The pages of a TIFF of several pages (of one size) are its bands: writers of arrays who know nothing
    of bands make such. Raises InputError for a raster that is missing or unreadable.
    """
    with _readable(path) as source:
        grid = _grid_of(source, path) if source.crs and not source.transform.is_identity else None
        if not source.subdatasets:
            values: npt.NDArray[Any] = source.read()
            return values, grid
        pages = []
        for number in range(1, len(source.subdatasets) + 1):  # the list itself has 10 before 2
            with rasterio.open(f"GTIFF_DIR:{number}:{path}") as opened:
                pages.append(opened.read(1))
        if len({values.shape for values in pages}) > 1:
            raise InputError(f"{path} has pages of different sizes; wanted the bands of one image")
        return np.stack(pages), grid


def read_grid(path: str) -> Grid:
    """The grid of a raster of square, north-up pixels. Raises InputError."""
    with _opened(path) as source:
        return _grid_of(source, path)


@dataclass(frozen=True)
class TiledWriter:
    """Takes windows of a raster that is being written, in any order."""

    _dataset: Any

    def write(self, values_bhw: npt.NDArray[Any], window: Window) -> None:
        self._dataset.write(values_bhw, window=_rasterio_window(window))


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
) -> Iterator[TiledWriter]:
    """A tiled (Big)TIFF to fill window by window; windows never written hold `nodata`.

    Memory is GDAL's block cache, whatever the size of the raster. `colours` is the table of a
    single uint8 band. The file is removed if the block fails. Raises InputError where the disk is
    full or the folder may not be written.
    """
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": count,
        "dtype": dtype,
        "nodata": nodata,
        "crs": grid.crs,
        "transform": rasterio.Affine(*grid.transform),
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "bigtiff": "if_safer",
        "sparse_ok": True,
        "interleave": "band",
    }
    with _writing(path), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        with rasterio.open(path, "w", **profile) as dataset:
            for index, text in enumerate(descriptions, start=1):
                dataset.set_band_description(index, text)
            dataset.update_tags(**(tags or {}))
            if colours is not None:
                dataset.write_colormap(1, {value: (*rgb, 255) for value, rgb in colours.items()})
            yield TiledWriter(dataset)
        _check_blocks(path)


def write_cog(src: Path, dst: Path, *, overviews: Literal["nearest", "average"]) -> None:
    """Rewrite a GeoTIFF as a Cloud-Optimized one by GDAL's COG driver, block by block.

    Overviews halve until one block holds the raster: `nearest` for classes (a mean of codes means
    nothing), `average` for quantities. Raises InputError where the disk is full.
    """
    with _writing(dst), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
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
    """Turns a full disk or a forbidden folder into an InputError, and removes what was begun."""
    try:
        yield
    except BaseException as error:
        if path.exists():
            path.unlink()
        if isinstance(error, OSError | CPLE_BaseError):  # RasterioIOError is an OSError too
            raise InputError(_unwritten(path, error)) from error
        raise


def _unwritten(path: Path, error: BaseException) -> str:
    there = next(folder for folder in path.parents if folder.exists())
    free_mb = shutil.disk_usage(there).free / 1e6
    reason = error.__cause__ or error
    return (
        f"cannot write {path}: {reason}; {free_mb:.0f} MB are free there. "
        "Make room, or give a folder that may be written"
    )


def _check_blocks(path: Path) -> None:
    """A write that fails while a TIFF is closed can pass unsaid: every block must lie in the file."""
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
    with _readable(path) as dataset:
        if dataset.crs is None or dataset.transform.is_identity:
            raise InputError(
                f"{path} has no georeference (CRS {dataset.crs}, transform {dataset.transform[:6]}); "
                "wanted a raster that says where it lies: gdal_edit.py -a_srs … -a_ullr …"
            )
        yield dataset


@contextmanager
def _readable(path: str) -> Iterator[Any]:
    """An open raster, with a georeference or without."""
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # for the caller to judge
        try:
            dataset = rasterio.open(path)
        except RasterioError as error:
            raise InputError(f"cannot open the raster {path}: {error}") from error
        with dataset:
            try:
                yield dataset
            except RasterioError as error:
                raise InputError(f"cannot read the raster {path}: {error}") from error


def _grid_of(dataset: Any, path: str) -> Grid:
    a, b, c, d, e, f = dataset.transform[:6]
    if b or d or not np.isclose(a, -e):
        raise InputError(f"{path} has no square, north-up pixels: transform {dataset.transform[:6]}")
    return Grid(dataset.crs.to_string(), c, f, a, dataset.height, dataset.width)


def _rasterio_window(window: Window) -> rasterio.windows.Window:
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)

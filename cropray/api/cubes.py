"""Imagery as xarray data sets, with names, units and coordinates.

A data set has `s2` (s2_band, time, y, x) in reflectance and `s1` (s1_band, time, y, x) in dB, NaN where there
is no valid view; `y` and `x` are the centres of pixels in the CRS of the attribute `crs`, and `time` is the
first day of each period. Shape suffixes: C bands, T periods, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cropray.bands import NODATA, S1_BANDS, S1_NAMES, S2_BANDS, S2_NAMES
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.shards.schema import quantise
from cropray.types import BACKGROUND, UNLABELLED, ByteArray, FloatArray, IntArray, Period

if TYPE_CHECKING:
    import xarray as xr

_UNITS = {"s2": ("1", "surface reflectance"), "s1": ("dB", "backscatter")}
_BANDS = {"s2": (S2_BANDS[0].scale, S2_NAMES), "s1": (S1_BANDS[0].scale, S1_NAMES)}


def import_xarray() -> Any:
    """The package xarray. Raises InputError if it is not installed: the stages do without it."""
    try:
        import xarray
    except ImportError as error:
        raise InputError("this needs xarray: pip install 'cropray[xarray]'") from error
    return xarray


def raster(
    values: FloatArray | ByteArray, grid: Grid, dims: Sequence[str] = (), **coords: object
) -> xr.DataArray:
    """An array (…, H, W) on a grid, with `dims` before its rows and columns."""
    half = grid.resolution / 2
    places = {
        "y": ("y", grid.y0 - half - grid.resolution * np.arange(grid.height), {"units": "m"}),
        "x": ("x", grid.x0 + half + grid.resolution * np.arange(grid.width), {"units": "m"}),
    }
    array: xr.DataArray = import_xarray().DataArray(
        values, dims=(*dims, "y", "x"), coords={**coords, **places}
    )
    return array.assign_attrs(crs=grid.crs)


def classes_raster(class_hw: ByteArray, grid: Grid, classes: Sequence[str], name: str) -> xr.DataArray:
    """Class indices (H, W), with their meanings as flags of the CF conventions."""
    meanings = [*classes, "none_of_the_classes", "unknown"]
    return (
        raster(class_hw, grid)
        .rename(name)
        .assign_attrs(
            flag_values=[*range(len(classes)), BACKGROUND, UNLABELLED],
            flag_meanings=" ".join(meaning.replace(" ", "_") for meaning in meanings),
        )
    )


def cube(
    values: Mapping[str, FloatArray],
    grid: Grid,
    periods: Sequence[Period],
    bands: Mapping[str, Sequence[str]],
) -> xr.Dataset:
    """Physical values (C, T, H, W) of the sensors as a data set."""
    days = np.array([period.start for period in periods], "datetime64[ns]")
    arrays = {}
    for sensor, values_cthw in values.items():
        units, title = _UNITS[sensor]
        dims = (f"{sensor}_band", "time")
        arrays[sensor] = raster(values_cthw, grid, dims, **{dims[0]: list(bands[sensor]), "time": days})
        arrays[sensor].attrs |= {"units": units, "long_name": title}
    data: xr.Dataset = import_xarray().Dataset(arrays, attrs={"crs": grid.crs})
    return data


def physical(stored: IntArray, sensor: str) -> FloatArray:
    """Stored integers as reflectance or dB, NaN for missing."""
    scale, _ = _BANDS[sensor]
    return np.where(stored == NODATA, np.nan, stored * np.float32(scale)).astype(np.float32)


def stored(data: xr.Dataset, sensor: str, names: Sequence[str], months: int) -> IntArray:
    """The integers (C, T, H, W) of a sensor's bands `names`. Missing without the sensor.

    Raises InputError for a data set without one of the bands, or with more than `months` periods.
    """
    if sensor not in data:
        other = next(iter(data.data_vars.values()))
        return np.full((len(names), other.sizes["time"], *other.shape[-2:]), NODATA, np.int16)
    array, dim = data[sensor], f"{sensor}_band"
    missing = [name for name in names if name not in array[dim].values]
    if missing:
        raise InputError(
            f"{sensor} of the data set lacks {', '.join(missing)}; it has "
            f"{', '.join(map(str, array[dim].values))}. Make it with cropray.composite, or name its bands so."
        )
    if array.sizes["time"] > months:
        raise InputError(
            f"the data set has {array.sizes['time']} periods, the model sees {months}. Select its own."
        )
    values = array.sel({dim: list(names)}).transpose(dim, "time", "y", "x").to_numpy()
    return quantise(values, np.ones(1, np.bool_), _BANDS[sensor][0])

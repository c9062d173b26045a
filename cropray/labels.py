"""Labels on a grid: class index 0..n-1, BACKGROUND (254) or UNLABELLED (255), never interpolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cropray.config import Config
from cropray.config.imagery import ClassMapConfig, LabelsConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.types import BACKGROUND, UNLABELLED, BoolArray, ByteArray

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_FROM_SOURCE = "source:"


def source_maps(labels: LabelsConfig) -> tuple[str, ...]:
    """Names of the maps that the imagery source must supply: those set as `source:NAME`."""
    maps = (labels.class_map, labels.land_cover, labels.truth)
    paths = [one.path for one in maps if one is not None and one.path.startswith(_FROM_SOURCE)]
    return tuple(dict.fromkeys(path.removeprefix(_FROM_SOURCE) for path in paths))


def make_labels(
    grid: Grid, parcels: GeoDataFrame, config: Config, maps: Mapping[str, npt.NDArray[np.int32]]
) -> tuple[ByteArray, ByteArray | None]:
    """The labels (H, W) of a grid, and the truth (H, W), which is None unless `labels.truth` is set.

    `parcels` (columns crop, geometry; any CRS) are the parcels of every crop near the grid. Parcels
    come first. The class map labels the pixels outside them, and land cover then marks background
    among the pixels that are still unlabelled. `maps` holds the codes (H, W) of all `source_maps`.

    Raises InputError for a parcel whose crop is not a class, and for a map that cannot be read.
    """
    labels = config.labels
    label_hw = np.full(grid.shape, UNLABELLED, np.uint8)
    open_hw = np.ones(grid.shape, bool)
    if labels.parcels:
        label_hw, open_hw = burn_parcels(grid, parcels, config.classes)
    if labels.class_map is not None:
        dense_hw = _encoded(labels.class_map, grid, maps)
        label_hw = np.where(open_hw, dense_hw, label_hw)
        open_hw = open_hw & (label_hw == UNLABELLED)
    if labels.land_cover is not None:
        codes_hw = _codes(labels.land_cover, grid, maps)
        label_hw[open_hw & np.isin(codes_hw, labels.land_cover.codes)] = BACKGROUND
    truth_hw = None if labels.truth is None else _encoded(labels.truth, grid, maps)
    return label_hw, truth_hw


def burn_parcels(grid: Grid, parcels: GeoDataFrame, classes: Sequence[str]) -> tuple[ByteArray, BoolArray]:
    """The class index (H, W) of the parcel that contains a pixel's centre; True outside all parcels.

    A pixel inside parcels of different crops is UNLABELLED, and no other source labels it, since its
    annotations contradict each other. Raises InputError for a crop that is not a class.
    """
    from cropray.rasters import burn

    unknown = sorted(set(parcels["crop"]) - set(classes))
    if unknown:
        raise InputError(
            f"rois.parcels has {', '.join(unknown)}, but `classes` are {', '.join(classes) or 'not set'}. "
            "Add every crop of rois.parcels to `classes`."
        )
    label_hw = np.full(grid.shape, UNLABELLED, np.uint8)
    open_hw = np.ones(grid.shape, bool)
    for crop, group in parcels.to_crs(grid.crs).groupby("crop"):
        inside_hw = burn(((geometry, 1) for geometry in group.geometry), grid, 0) == 1
        label_hw[inside_hw & open_hw] = classes.index(str(crop))
        label_hw[inside_hw & ~open_hw] = UNLABELLED
        open_hw &= ~inside_hw
    return label_hw, open_hw


def encode_classes(codes_hw: npt.NDArray[Any], codes: Sequence[int], nodata: int) -> ByteArray:
    """Class indices of the codes of a map. `nodata` becomes UNLABELLED, any other code BACKGROUND."""
    label_hw = np.full(codes_hw.shape, BACKGROUND, np.uint8)
    label_hw[codes_hw == nodata] = UNLABELLED
    for index, code in enumerate(codes):
        label_hw[codes_hw == code] = index
    return label_hw


def _encoded(source: ClassMapConfig, grid: Grid, maps: Mapping[str, npt.NDArray[np.int32]]) -> ByteArray:
    return encode_classes(_codes(source, grid, maps), source.codes, source.nodata)


def _codes(source: ClassMapConfig, grid: Grid, maps: Mapping[str, npt.NDArray[np.int32]]) -> npt.NDArray[Any]:
    if source.path.startswith(_FROM_SOURCE):
        return maps[source.path.removeprefix(_FROM_SOURCE)]
    from cropray.rasters import read_nearest

    return read_nearest(source.path, grid, nodata=source.nodata, values=source.codes)

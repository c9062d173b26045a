"""Labels of a grid: class index 0..n-1, BACKGROUND (254) or UNLABELLED (255), never interpolated."""

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
    """The maps that the imagery source has to bring along: those written `source:NAME`."""
    chosen = (labels.class_map, labels.land_cover, labels.truth)
    paths = [one.path for one in chosen if one is not None and one.path.startswith(_FROM_SOURCE)]
    return tuple(dict.fromkeys(path.removeprefix(_FROM_SOURCE) for path in paths))


def make_labels(
    grid: Grid, parcels: GeoDataFrame, config: Config, maps: Mapping[str, npt.NDArray[np.int32]]
) -> tuple[ByteArray, ByteArray | None]:
    """The label (H, W) of a grid, and the truth (H, W) where `labels.truth` names one, else None.

    `parcels` (columns crop, geometry; any CRS) are those near the grid, of every crop. They are
    burnt first; the class map labels what they leave open; land cover marks as background what is
    open still. `maps` holds the codes (H, W) of all `source_maps`.

    Raises InputError for a parcel of a crop that is no class and for a map that cannot be read.
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
    """The class index (H, W) of the parcel in which a pixel's centre lies, and where none does.

    A pixel whose centre lies in parcels of different crops is UNLABELLED, and not open to other
    sources of labels either: what is known of it is contradictory. Raises InputError for a crop
    that is none of the classes.
    """
    from cropray.rasters import burn

    unknown = sorted(set(parcels["crop"]) - set(classes))
    if unknown:
        raise InputError(
            f"parcels of {', '.join(unknown)}, but the classes are {', '.join(classes) or 'not set'}; "
            "name every crop of rois.parcels in `classes`"
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
    """Codes of a map as class indices: nodata becomes UNLABELLED, a code not listed BACKGROUND."""
    label_hw = np.full(codes_hw.shape, BACKGROUND, np.uint8)
    label_hw[codes_hw == nodata] = UNLABELLED
    for index, code in enumerate(codes):
        label_hw[codes_hw == code] = index
    return label_hw


def _encoded(chosen: ClassMapConfig, grid: Grid, maps: Mapping[str, npt.NDArray[np.int32]]) -> ByteArray:
    return encode_classes(_codes(chosen, grid, maps), chosen.codes, chosen.nodata)


def _codes(chosen: ClassMapConfig, grid: Grid, maps: Mapping[str, npt.NDArray[np.int32]]) -> npt.NDArray[Any]:
    if chosen.path.startswith(_FROM_SOURCE):
        return maps[chosen.path.removeprefix(_FROM_SOURCE)]
    from cropray.rasters import read_nearest

    return read_nearest(chosen.path, grid, nodata=chosen.nodata)

"""Fields of a vector file on a finished map: what grows on each, how sure that is, and what to look at.

The pixels whose centres lie in a field vote with their classes. Rasters are read block by block: memory grows
with the number of fields alone. Shape suffixes: F fields, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import Geod

from cropray.errors import InputError
from cropray.figures.crops import class_names
from cropray.maps.mosaic import MAP, SCORES
from cropray.maps.strata import class_index
from cropray.maps.tables import plain
from cropray.maps.tiles import NODATA
from cropray.rasters import burn_numbers, read_grid, read_window
from cropray.types import DoubleArray, IndexArray

_BLOCK = 512  # pixels a side of what is read at once
_SMALL_PIXELS = 10
_CLOSE = 0.5  # of the score of the class: a runner-up with more of it is close
_OTHER_SHARE = 0.25  # of the pixels of a field: another class on more of them is a crop of its own
_M2_PER_HECTARE = 1e4


@dataclass(frozen=True)
class Votes:
    """What fields show: pixels without data (F,), pixels by class (F, K + 1), sums of scores (F, K)."""

    nodata_f: IndexArray
    pixels_fk: IndexArray
    scores_fk: DoubleArray


def read_fields(file: str, name: str, declared: str, layer: str = "") -> gpd.GeoDataFrame:
    """The fields of a vector file: columns `field` (that of the file, or a number), `declared` and geometry.

    Geometries are mended. Raises InputError for an unusable file or column, and for names that occur twice.
    """
    from cropray.rois.shapes import mend
    from cropray.rois.vectors import read_features

    path = Path(file).expanduser()
    if not path.exists():
        raise InputError(f"predict.fields {file!r} does not exist. Give a vector file of polygons.")
    columns = [column for column in (name, declared) if column]
    frame = read_features(path, columns, layer=layer, layer_setting="predict.fields_layer")
    geometry, _ = mend(frame.geometry.to_numpy())
    numbers = pd.Series(range(1, len(frame) + 1))
    names = (frame[name] if name else numbers).astype(str).str.strip()
    if names.duplicated().any():
        twice = names[names.duplicated()].iloc[0]
        raise InputError(f"{path}: {name} {twice!r} occurs twice. Set predict.field_id to a unique column.")
    crops = frame[declared].fillna("").astype(str).str.strip() if declared else ""
    fields = gpd.GeoDataFrame({"field": names, "declared": crops}, geometry=geometry, crs=frame.crs)
    return fields[~(fields.geometry.isna() | fields.geometry.is_empty)].reset_index(drop=True)


def classify_fields(directory: Path, fields: gpd.GeoDataFrame, classes: Sequence[str]) -> gpd.GeoDataFrame:
    """The fields that touch a map, in degrees, with class, score, runner-up, agreement, hectares and flags.

    The class is the one that most pixels are mapped as, and `agreement` is their share. `score` is its mean
    score, and the runner-up is the crop with the best mean score but for it. A field without a pixel's centre
    has no class. Flags, separated by commas: "edge" (it reaches beyond the map), "no pixel", "small" (fewer
    than 10 pixels), "close call" (the runner-up has more than half of the score), "several crops" (another
    class is mapped on more than a quarter of it) and "declared otherwise".
    """
    grid = read_grid(str(directory / MAP))
    inside = fields.to_crs(grid.crs)
    inside = inside[inside.intersects(shapely.box(*grid.bounds))]
    votes = _count(directory, inside.geometry.to_numpy(), len(classes))
    mapped_f = votes.pixels_fk.sum(axis=1)
    some_f = np.maximum(mapped_f, 1)
    mean_fk = votes.scores_fk / some_f[:, None]
    index_f = votes.pixels_fk.argmax(axis=1)
    names = np.array([*class_names(classes).values()], object)
    rows = np.arange(len(inside))
    others_fk = mean_fk.copy()
    crops = np.flatnonzero(index_f < len(classes))
    others_fk[crops, index_f[crops]] = -1
    second_f = others_fk.argmax(axis=1)
    best_f = np.where(index_f < len(classes), mean_fk[rows, np.minimum(index_f, len(classes) - 1)], np.nan)
    known = mapped_f > 0
    share_fk = votes.pixels_fk / some_f[:, None]
    other_f = share_fk.copy()
    other_f[rows, index_f] = 0
    outside_f = ~shapely.contains_properly(shapely.box(*grid.bounds), inside.geometry.to_numpy())
    lonlat = inside.to_crs("EPSG:4326")
    table = gpd.GeoDataFrame(
        {
            "field": inside["field"].to_numpy(),
            "class": np.where(known, names[index_f], None),
            "score": np.where(known, best_f, np.nan).round(3),
            "runner_up": np.where(known, names[second_f], None),
            "runner_up_score": np.where(known, others_fk[rows, second_f], np.nan).round(3),
            "agreement": np.where(known, share_fk[rows, index_f], np.nan).round(3),
            "hectares": _hectares(lonlat.geometry.to_numpy()).round(4),
            "pixels": mapped_f,
            "declared": inside["declared"].to_numpy(),
        },
        geometry=lonlat.geometry.to_numpy(),
        crs="EPSG:4326",
    )
    flags = {
        "edge": outside_f | (votes.nodata_f > 0),
        "no pixel": ~known,
        "small": known & (mapped_f < _SMALL_PIXELS),
        "close call": known & (table["runner_up_score"] > _CLOSE * table["score"]).to_numpy(),
        "several crops": known & (other_f.max(axis=1) > _OTHER_SHARE),
        "declared otherwise": known & _otherwise(table, classes),
    }
    table["flags"] = [", ".join(each for each, flag in flags.items() if flag[row]) for row in rows]
    return table


def _count(directory: Path, shapes: npt.NDArray[np.object_], n_classes: int) -> Votes:
    """The votes of fields in the CRS of the map. Where fields overlap, the last one has the pixel."""
    path, probabilities = str(directory / MAP), str(directory / SCORES)
    grid, tree = read_grid(path), shapely.STRtree(shapes)
    nodata_f, index_v = np.zeros(len(shapes), np.intp), class_index(tuple("x" * n_classes))
    pixels_fk = np.zeros((len(shapes), n_classes + 1), np.intp)
    scores_fk = np.zeros((len(shapes), n_classes))
    for block in grid.blocks(_BLOCK):
        part = grid.window(block)
        here = np.sort(tree.query(shapely.box(*part.bounds)))
        if not len(here):
            continue
        number_hw = burn_numbers(zip(shapes[here], range(1, len(here) + 1), strict=True), part)
        class_hw = read_window(path, block)[0]
        nodata = (number_hw > 0) & (class_hw == NODATA)
        seen = (number_hw > 0) & ~nodata
        nodata_f[here] += np.bincount(number_hw[nodata], minlength=len(here) + 1)[1:]
        if not seen.any():
            continue
        field_n = number_hw[seen] - 1
        cell_n = field_n * (n_classes + 1) + index_v[class_hw[seen]]
        counts = np.bincount(cell_n, minlength=len(here) * (n_classes + 1))
        pixels_fk[here] += counts.reshape(len(here), -1)
        for k, percent_hw in enumerate(read_window(probabilities, block)):
            scores_fk[here, k] += np.bincount(field_n, percent_hw[seen] / 100, len(here))
    return Votes(nodata_f, pixels_fk, scores_fk)


def _hectares(lonlat: npt.NDArray[np.object_]) -> DoubleArray:
    """Areas (F,) of polygons in degrees, on the ellipsoid."""
    geod = Geod(ellps="WGS84")
    oriented = shapely.orient_polygons(lonlat)
    return np.array([abs(geod.geometry_area_perimeter(each)[0]) for each in oriented]) / _M2_PER_HECTARE


def _otherwise(table: pd.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether another crop is declared than the map shows; "none of the classes" fits what is no class."""
    known = {plain(name) for name in classes}
    declared, shown = table["declared"].map(plain), table["class"].fillna("").map(plain)
    expected = declared.where(declared.isin(known), plain("none of the classes"))
    return np.asarray((declared != "") & (expected != shown))

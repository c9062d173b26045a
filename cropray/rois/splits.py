"""Train, val and test, made on ROIs before anything is cut. Pure.

Neighbours go together: parcels recur in several seasons, and fields side by side look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import shapely
import xxhash
from pyproj import Transformer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cropray.config.rois import SplitConfig
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.types import DoubleArray, IndexArray, Roi

SPLITS = ("train", "val", "test")

_METRES_A_DEGREE = 110_574.0
"""Of latitude at the equator on WGS 84: the shortest degree there is, so no distance is overrated."""


_SLIVER = 1e-3
"""Share of a pixel that projecting an edge and back may be off."""


def near_pairs(rois: Sequence[Roi], buffer_m: float) -> npt.NDArray[np.intp]:
    """(2, P) positions i < j of ROIs nearer to each other on the ground than `buffer_m`.

    The buffer is a box in longitude and latitude around each ROI, a little too large rather than
    too small: at corners a pair up to √2 · `buffer_m` apart counts as near.
    """
    bounds = _lonlat_bounds(rois)
    boxes = shapely.box(*bounds.T)
    lat_margin = buffer_m / _METRES_A_DEGREE
    highest = np.minimum(np.abs(bounds[:, [1, 3]]).max(axis=1) + lat_margin, 89.0)
    lon_margin = lat_margin / np.cos(np.radians(highest))
    reach = bounds + np.stack([-lon_margin, np.full(len(rois), -lat_margin)] * 2, axis=1) * [1, 1, -1, -1]
    one, other = shapely.STRtree(boxes).query(shapely.box(*reach.T), predicate="intersects")
    pairs = np.sort(np.stack([one, other]), axis=0)
    return np.unique(pairs[:, pairs[0] < pairs[1]], axis=1)


def components(rois: Sequence[Roi], buffer_m: float) -> IndexArray:
    """(N,) number, from 0, of the connected component of near ROIs that each one is in."""
    pairs = near_pairs(rois, buffer_m)
    links = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(len(rois), len(rois)))
    numbers: IndexArray = connected_components(links, directed=False)[1]
    return numbers


def split_rois(rois: Sequence[Roi], config: SplitConfig, seed: int) -> list[Roi]:
    """The ROIs with their splits.

    Components of near ROIs are dealt whole, crop by crop, the rarest first (Sechidis, Tsoumakas and
    Vlahavas 2011, iterative stratification, with components in place of examples). The outcome
    depends on the seed and the ROIs, not on their order.
    """
    component = components(rois, config.buffer_m)
    names = _component_names(rois, component)
    order = np.argsort([xxhash.xxh3_64_hexdigest(f"{seed} {name}".encode()) for name in names])
    crops, crop = np.unique([roi.crop for roi in rois], return_inverse=True)
    counts = np.zeros((len(names), len(crops)))
    np.add.at(counts, (component, crop), 1)
    dealt = np.empty(len(names), dtype=np.intp)
    dealt[order] = _deal(counts[order], (1 - config.val - config.test, config.val, config.test))
    return [replace(roi, split=SPLITS[dealt[number]]) for roi, number in zip(rois, component, strict=True)]


def _deal(counts: DoubleArray, shares: tuple[float, float, float]) -> IndexArray:
    """The split of each of (N, K) components with so many ROIs of K crops; ties go by position."""
    demand = _demand(counts, shares)
    dealt = np.full(len(counts), -1, dtype=np.intp)
    while (open_ := dealt < 0).any():
        left = counts[open_].sum(axis=0)
        crop = int(np.where(left > 0, left, np.inf).argmin())
        mine = np.flatnonzero(open_ & (counts[:, crop] > 0))
        # Those too large for the small splits go first, where most is wanted; the others as they come.
        smallest = min(demand[split, crop] for split, share in enumerate(shares) if share > 0)
        too_large = counts[mine, crop] > smallest
        for number in [*mine[too_large], *mine[~too_large]]:
            total = demand.sum(axis=1)
            split = max(range(3), key=lambda s: (demand[s, crop], total[s], -s))
            dealt[number] = split
            demand[split] -= counts[number]
    return dealt


def _demand(counts: DoubleArray, shares: tuple[float, float, float]) -> DoubleArray:
    """(3, K) ROIs wanted; a crop of three components or more is wanted in every split."""
    total = counts.sum(axis=0)
    demand = np.outer(shares, total)
    spread = (counts > 0).sum(axis=0) >= len(SPLITS)
    for split in (1, 2):
        if shares[split] > 0:
            demand[split, spread] = np.maximum(demand[split, spread], 1)
    demand[0] = total - demand[1:].sum(axis=0)
    return demand


def audit_splits(rois: Sequence[Roi], buffer_m: float) -> None:
    """Raises InputError that names ROIs of different splits nearer to each other than `buffer_m`."""
    clashes = [
        f"  {rois[one].roi_id} ({rois[one].split}) and {rois[other].roi_id} ({rois[other].split})"
        for one, other in near_pairs(rois, buffer_m).T
        if rois[one].split != rois[other].split
    ]
    if clashes:
        raise InputError(
            f"{len(clashes)} pairs of ROIs of different splits are nearer than {buffer_m:g} m, so one would "
            "leak into the other:\n"
            + _first(clashes)
            + "\nput both of a pair into one split in rois.split.named, or lower rois.split.buffer_m"
        )


def audit_grids(rois: Sequence[Roi], grids: Sequence[Grid]) -> None:
    """Raises InputError that names ROIs of different splits whose grids share ground.

    Grids are the ROIs' bounds snapped outwards, widened to a patch where they are smaller: apart as
    bounds, ROIs may overlap as pixels.
    """
    snapped = [replace(roi, bounds=grid.bounds, crs=grid.crs) for roi, grid in zip(rois, grids, strict=True)]
    clashes = [
        f"  {rois[one].roi_id} ({rois[one].split}) and {rois[other].roi_id} ({rois[other].split})"
        for one, other in near_pairs(snapped, 0.0).T
        if rois[one].split != rois[other].split and _share_ground(grids[one], grids[other])
    ]
    if clashes:
        raise InputError(
            f"the pixels of {len(clashes)} pairs of ROIs of different splits overlap once snapped to the "
            "grid, so one would leak into the other:\n"
            + _first(clashes)
            + "\nraise rois.split.buffer_m, or put both of a pair into one split in rois.split.named, and "
            "start again from rois in a new --run folder"
        )


def _share_ground(one: Grid, other: Grid) -> bool:
    """Whether two grids overlap by more than their edges; of different CRSs, in that of `one`."""
    shape = shapely.box(*other.bounds)
    if other.crs != one.crs:
        to_one = Transformer.from_crs(other.crs, one.crs, always_xy=True)
        dense = shapely.segmentize(shape, max(other.shape) * other.resolution / 20)
        shape = shapely.transform(dense, to_one.transform, interleaved=False)
    shared = shapely.intersection(shapely.box(*one.bounds), shape)
    return bool(shared.area > _SLIVER * one.resolution**2)


def _first(lines: Sequence[str], most: int = 8) -> str:
    more = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])


def missing_crops(rois: Sequence[Roi]) -> dict[str, list[str]]:
    """The crops that a split has no ROI of, by split; a split that lacks none is left out."""
    crops = {roi.crop for roi in rois}
    lacking = {split: sorted(crops - {roi.crop for roi in rois if roi.split == split}) for split in SPLITS}
    return {split: names for split, names in lacking.items() if names}


def _component_names(rois: Sequence[Roi], component: IndexArray) -> list[str]:
    """The first roi_id of each component: a name that does not depend on the order of the ROIs."""
    names = [""] * (int(component.max()) + 1)
    for position in sorted(range(len(rois)), key=lambda i: rois[i].roi_id, reverse=True):
        names[component[position]] = rois[position].roi_id
    return names


def _lonlat_bounds(rois: Sequence[Roi]) -> DoubleArray:
    """(N, 4) west, south, east, north of the ROIs, from the corners and middles of their sides."""
    lonlat = np.empty((len(rois), 4))
    for crs in {roi.crs for roi in rois}:
        mine = np.array([position for position, roi in enumerate(rois) if roi.crs == crs])
        min_x, min_y, max_x, max_y = np.array([rois[position].bounds for position in mine]).T
        mid_x, mid_y = (min_x + max_x) / 2, (min_y + max_y) / 2
        x = np.stack([min_x, mid_x, max_x, max_x, max_x, mid_x, min_x, min_x])
        y = np.stack([min_y, min_y, min_y, mid_y, max_y, max_y, max_y, mid_y])
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        lonlat[mine] = np.stack([lon.min(axis=0), lat.min(axis=0), lon.max(axis=0), lat.max(axis=0)], axis=1)
    return lonlat

"""Which ROIs are near each other on the ground, and the groups that they form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer

from cropray.types import BoolArray, DoubleArray, IndexArray, Roi

# A degree of latitude at the equator on WGS 84. It is the shortest one, so no distance is overestimated.
_METRES_PER_DEGREE = 110_574.0

Pairs = npt.NDArray[np.intp]
"""(2, P) positions."""


def near_pairs(rois: Sequence[Roi], buffer_m: float) -> Pairs:
    """(2, P) positions i < j of pairs of ROIs that are less than `buffer_m` apart on the ground.

    The buffer is a box in longitude and latitude around each ROI. It errs on the large side: at its
    corners, a pair up to √2 · `buffer_m` apart counts as near.
    """
    bounds = _lonlat_bounds(rois)
    return _sorted_pairs(_query(bounds, _reach(bounds, buffer_m)))


def near_across(rois: Sequence[Roi], buffer_m: float) -> Pairs:
    """The `near_pairs` of ROIs in different splits. Takes no time for those within a split."""
    bounds = _lonlat_bounds(rois)
    reach = _reach(bounds, buffer_m)
    splits = np.array([roi.split for roi in rois])
    found = [np.empty((2, 0), np.intp)]
    for mine, theirs in permutations(np.unique(splits), 2):
        here, there = np.flatnonzero(splits == mine), np.flatnonzero(splits == theirs)
        first, second = _query(bounds[here], reach[there])
        found.append(np.stack([there[first], here[second]]))
    return _sorted_pairs(np.hstack(found))


def components(rois: Sequence[Roi], buffer_m: float) -> IndexArray:
    """(N,) number, from 0, of the connected component of near ROIs that contains each ROI.

    ROIs whose middles share a cell that is as large as the smallest ROI and the buffer are near each other.
    So cells are compared, not all ROIs: many ROIs on the same ground take little more time than few.
    """
    bounds = _lonlat_bounds(rois)
    reach = _reach(bounds, buffer_m)
    smallest = (bounds[:, 2:] - bounds[:, :2]).min(axis=0) + buffer_m / _METRES_PER_DEGREE
    middles = (bounds[:, :2] + bounds[:, 2:]) / 2
    cells = np.floor(middles / np.maximum(smallest, 1e-9))
    _, cell_of = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(cell_of, kind="stable")
    starts = np.flatnonzero(np.diff(cell_of[order], prepend=-1))
    members = np.split(order, starts[1:])
    low, high = np.minimum.reduceat(bounds[order], starts), np.maximum.reduceat(bounds[order], starts)
    hulls = np.hstack([low[:, :2], high[:, 2:]])
    one, other = _sorted_pairs(_query(hulls, _reach(hulls, buffer_m)))
    # A hull may be near where no ROI in it is. The ROIs at its four sides decide nearly all cases.
    sides = np.stack([_extreme(bounds[:, side] * sign, order, starts) for side, sign in _SIDES])
    sure = np.zeros(len(one), bool)
    for mine, theirs in product(sides, repeat=2):
        sure |= _are_near(bounds, reach, mine[one], theirs[other])
    group = _connected(np.stack([one, other])[:, sure], len(starts))
    for first, second in zip(one[~sure], other[~sure], strict=True):
        if group[first] != group[second]:
            pairs = np.array(list(product(members[first], members[second])))
            if _are_near(bounds, reach, *pairs.T).any():
                group[group == group[second]] = group[first]
    numbers: IndexArray = np.unique(group, return_inverse=True)[1][cell_of]
    return numbers


_SIDES = ((0, 1), (1, 1), (2, -1), (3, -1))  # westernmost, southernmost, easternmost, northernmost


def _extreme(values: DoubleArray, order: IndexArray, starts: IndexArray) -> IndexArray:
    """The position of the smallest value in each group of `order`."""
    group = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    first: IndexArray = order[np.lexsort((values[order], group))][starts]
    return first


def _are_near(bounds: DoubleArray, reach: DoubleArray, one: IndexArray, other: IndexArray) -> BoolArray:
    """(P,) whether the box of either ROI touches the reach of the other."""
    turn = 360 * np.round((bounds[one, 0] - bounds[other, 0]) / 360)
    shift = np.stack([turn, np.zeros_like(turn)], axis=1)

    def touches(first: DoubleArray, second: DoubleArray) -> BoolArray:
        starts_before = first[:, :2] <= second[:, 2:] + shift
        ends_after = first[:, 2:] >= second[:, :2] + shift
        found: BoolArray = (starts_before & ends_after).all(axis=1)
        return found

    return touches(reach[one], bounds[other]) | touches(bounds[one], reach[other])


def _connected(pairs: Pairs, count: int) -> IndexArray:
    from scipy.sparse import coo_array  # half a second, which each process of an export would pay
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(count, count))
    numbers: IndexArray = connected_components(links, directed=False)[1]
    return numbers


def _reach(bounds: DoubleArray, buffer_m: float) -> DoubleArray:
    """(N, 4) bounds in degrees, widened by the buffer."""
    lat_margin = buffer_m / _METRES_PER_DEGREE
    highest = np.minimum(np.abs(bounds[:, [1, 3]]).max(axis=1) + lat_margin, 89.0)
    lon_margin = lat_margin / np.cos(np.radians(highest))
    margins = np.stack([-lon_margin, np.full(len(bounds), -lat_margin)] * 2, axis=1)
    widened: DoubleArray = bounds + margins * [1, 1, -1, -1]
    return widened


def _query(bounds: DoubleArray, reach: DoubleArray) -> Pairs:
    """(2, P) positions in `reach` and in `bounds` of those that touch."""
    tree = shapely.STRtree(shapely.box(*bounds.T))
    west, south, east, north = reach.T
    # Longitudes are a circle: a box that ends at 180° is near one that begins at -180°.
    turns = (0, 360, -360) if np.abs(reach[:, [0, 2]]).max(initial=0) > 180 else (0,)
    return np.hstack(
        [
            # A tree of boxes compares boxes: no predicate is needed.
            tree.query(shapely.box(west + turn, south, east + turn, north))
            for turn in turns
        ]
    )


def _sorted_pairs(pairs: Pairs) -> Pairs:
    """Each pair once, with i < j, in order."""
    ordered = np.sort(pairs, axis=0)
    return np.unique(ordered[:, ordered[0] < ordered[1]], axis=1)


def _lonlat_bounds(rois: Sequence[Roi]) -> DoubleArray:
    """(N, 4) west, south, east, north of the ROIs, from the corners and midpoints of their sides.

    Those of an ROI across 180° run past it.
    """
    lonlat = np.empty((len(rois), 4))
    for crs in {roi.crs for roi in rois}:
        mine = np.array([position for position, roi in enumerate(rois) if roi.crs == crs])
        min_x, min_y, max_x, max_y = np.array([rois[position].bounds for position in mine]).T
        mid_x, mid_y = (min_x + max_x) / 2, (min_y + max_y) / 2
        x = np.stack([min_x, mid_x, max_x, max_x, max_x, mid_x, min_x, min_x])
        y = np.stack([min_y, min_y, min_y, mid_y, max_y, max_y, max_y, mid_y])
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        lon = lon[0] + (lon - lon[0] + 180) % 360 - 180  # in one piece across 180°
        lonlat[mine] = np.stack([lon.min(axis=0), lat.min(axis=0), lon.max(axis=0), lat.max(axis=0)], axis=1)
    return lonlat

"""Train, val and test splits of ROIs, made before any patch is cut.

Neighbouring ROIs go together: parcels recur in several seasons, and adjacent fields look alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import shapely
import xxhash
from pyproj import Transformer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cropray.config.rois import SplitConfig
from cropray.errors import InputError, listed
from cropray.grid import Grid
from cropray.progress import say
from cropray.types import DoubleArray, IndexArray, Roi

SPLITS = ("train", "val", "test")

# A degree of latitude at the equator on WGS 84. It is the shortest one, so no distance is overestimated.
_METRES_PER_DEGREE = 110_574.0
_SLIVER = 1e-3  # share of a pixel by which a reprojected edge may be off


def near_pairs(rois: Sequence[Roi], buffer_m: float) -> npt.NDArray[np.intp]:
    """(2, P) positions i < j of pairs of ROIs that are less than `buffer_m` apart on the ground.

    The buffer is a box in longitude and latitude around each ROI. It errs on the large side: at its
    corners, a pair up to √2 · `buffer_m` apart counts as near.
    """
    bounds = _lonlat_bounds(rois)
    lat_margin = buffer_m / _METRES_PER_DEGREE
    highest = np.minimum(np.abs(bounds[:, [1, 3]]).max(axis=1) + lat_margin, 89.0)
    lon_margin = lat_margin / np.cos(np.radians(highest))
    reach = bounds + np.stack([-lon_margin, np.full(len(rois), -lat_margin)] * 2, axis=1) * [1, 1, -1, -1]
    tree = shapely.STRtree(shapely.box(*bounds.T))
    # Longitudes are a circle: a box that ends at 180° is near one that begins at -180°.
    turns = (0, 360, -360) if np.abs(reach[:, [0, 2]]).max() > 180 else (0,)
    west, south, east, north = reach.T
    found = [
        tree.query(shapely.box(west + turn, south, east + turn, north), predicate="intersects")
        for turn in turns
    ]
    pairs = np.sort(np.hstack(found), axis=0)
    return np.unique(pairs[:, pairs[0] < pairs[1]], axis=1)


def components(rois: Sequence[Roi], buffer_m: float) -> IndexArray:
    """(N,) number, from 0, of the connected component of near ROIs that contains each ROI."""
    pairs = near_pairs(rois, buffer_m)
    links = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(len(rois), len(rois)))
    numbers: IndexArray = connected_components(links, directed=False)[1]
    return numbers


def split_rois(
    rois: Sequence[Roi], config: SplitConfig, seed: int, groups: IndexArray | None = None
) -> list[Roi]:
    """The ROIs with their splits, `groups` (N,) of them together, by default components of near ones.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, doi:10.1007/978-3-642-23808-6_10)
    deals out whole groups, crop by crop, the rarest crop first. The result depends on the seed and on the
    ROIs, but not on their order.
    """
    component = components(rois, config.buffer_m) if groups is None else groups
    names = _component_names(rois, component)
    crops, crop = np.unique([roi.crop for roi in rois], return_inverse=True)
    counts = np.zeros((len(names), len(crops)))
    np.add.at(counts, (component, crop), 1)
    dealt = deal(names, counts, config, seed)
    return [replace(roi, split=SPLITS[dealt[number]]) for roi, number in zip(rois, component, strict=True)]


def check_components(rois: Sequence[Roi], component: IndexArray, config: SplitConfig) -> None:
    """Raises InputError for an empty val or test, and warns of a component that is larger than train."""
    counts = np.bincount(component)
    most = counts.max() / len(rois)
    held_together = (
        f"ROIs less than {config.buffer_m:g} m apart stay together: {len(rois)} ROIs form {len(counts)} "
        f"components, and the largest has {most:.0%} of them"
    )
    remedy = "For parcels that cover the land set rois.kind=grid. Or lower rois.eps_m or rois.split.buffer_m"
    check_not_empty(rois, config, f"{held_together}. {remedy}")
    if most > 1 - config.val - config.test:
        say(f"rois: warning: {held_together}, so val and test are smaller than asked for. {remedy}")


def check_not_empty(rois: Sequence[Roi], config: SplitConfig, remedy: str) -> None:
    """Raises InputError if val or test has no ROI, unless its share is 0 or `allow_empty` is set."""
    for split, share in (("val", config.val), ("test", config.test)):
        if share > 0 and not config.allow_empty and not any(roi.split == split for roi in rois):
            raise InputError(
                f"no ROI is left for {split}: {remedy}. Or set rois.split.{split}=0, or "
                "rois.split.allow_empty=true."
            )


def deal(names: Sequence[str], counts: DoubleArray, config: SplitConfig, seed: int) -> IndexArray:
    """(N,) position in SPLITS of named groups, from (N, K) numbers of their members of each crop."""
    order = np.argsort([xxhash.xxh3_64_hexdigest(f"{seed} {name}".encode()) for name in names])
    dealt = np.empty(len(names), dtype=np.intp)
    dealt[order] = _deal(counts[order], (1 - config.val - config.test, config.val, config.test))
    return dealt


def _deal(counts: DoubleArray, shares: tuple[float, float, float]) -> IndexArray:
    """(N,) split of components, from (N, K) numbers of their ROIs of each crop. Ties go by position."""
    demand = _demand(counts, shares)
    dealt = np.full(len(counts), -1, dtype=np.intp)
    while (open_ := dealt < 0).any():
        left = counts[open_].sum(axis=0)
        crop = int(np.where(left > 0, left, np.inf).argmin())
        mine = np.flatnonzero(open_ & (counts[:, crop] > 0))
        # Components that are too large for the smallest split go first, to the split that lacks most.
        smallest = min(demand[split, crop] for split, share in enumerate(shares) if share > 0)
        too_large = counts[mine, crop] > smallest
        for number in [*mine[too_large], *mine[~too_large]]:
            total = demand.sum(axis=1)
            split = max(range(3), key=lambda s: (demand[s, crop], total[s], -s))
            dealt[number] = split
            demand[split] -= counts[number]
    return dealt


def _demand(counts: DoubleArray, shares: tuple[float, float, float]) -> DoubleArray:
    """(3, K) wanted numbers of ROIs. Every split wants a crop that has at least three components."""
    total = counts.sum(axis=0)
    demand = np.outer(shares, total)
    spread = (counts > 0).sum(axis=0) >= len(SPLITS)
    for split in (1, 2):
        if shares[split] > 0:
            demand[split, spread] = np.maximum(demand[split, spread], 1)
    demand[0] = total - demand[1:].sum(axis=0)
    return demand


def audit_splits(rois: Sequence[Roi], buffer_m: float) -> None:
    """Raises InputError that names ROIs of different splits less than `buffer_m` apart."""
    pairs = near_across(rois, buffer_m)
    if pairs:
        raise InputError(
            f"{len(pairs)} pairs of ROIs of different splits are less than {buffer_m:g} m apart, so one "
            f"would leak into the other:\n{_names(rois, pairs)}\nPut both of a pair into the same split in "
            "rois.split.named, or lower rois.split.buffer_m."
        )


def audit_grids(rois: Sequence[Roi], grids: Sequence[Grid]) -> None:
    """Raises InputError that names ROIs of different splits whose grids share ground.

    A grid is the bounds of an ROI snapped outwards, and at least as large as a patch. So the pixels of
    ROIs can overlap even if their bounds do not.
    """
    snapped = [replace(roi, bounds=grid.bounds, crs=grid.crs) for roi, grid in zip(rois, grids, strict=True)]
    near = near_across(snapped, 0.0)
    pairs = [(one, other) for one, other in near if _share_ground(grids[one], grids[other])]
    if pairs:
        raise InputError(
            f"the pixels of {len(pairs)} pairs of ROIs of different splits overlap on the grid, so one would "
            f"leak into the other:\n{_names(rois, pairs)}\nRaise rois.split.buffer_m (of a table with "
            "rois.split.named: put both of a pair into the same split), and start again from rois in a new "
            "--run folder."
        )


def near_across(rois: Sequence[Roi], buffer_m: float) -> list[tuple[int, int]]:
    """The near pairs of ROIs that are in different splits."""
    pairs = near_pairs(rois, buffer_m).T.tolist()
    return [(one, other) for one, other in pairs if rois[one].split != rois[other].split]


def _names(rois: Sequence[Roi], pairs: Sequence[tuple[int, int]]) -> str:
    return listed([" and ".join(f"{rois[i].roi_id} ({rois[i].split})" for i in pair) for pair in pairs])


def _share_ground(one: Grid, other: Grid) -> bool:
    """Whether two grids overlap by more than their edges, compared in the CRS of `one`."""
    shared = shapely.intersection(shapely.box(*one.bounds), shapely.Polygon(other.outline_in(one.crs)))
    return bool(shared.area > _SLIVER * one.resolution**2)


def missing_crops(
    rois: Sequence[Roi], crops: Mapping[str, Collection[str]] | None = None
) -> dict[str, list[str]]:
    """The crops without an ROI in a split, by split. `crops` are those of each ROI, where it has several."""
    present: dict[str, set[str]] = {split: set() for split in SPLITS}
    for roi in rois:
        present[roi.split].update(crops[roi.roi_id] if crops else (roi.crop,))
    lacking = {split: sorted(set().union(*present.values()) - own) for split, own in present.items()}
    return {split: names for split, names in lacking.items() if names}


def _component_names(rois: Sequence[Roi], component: IndexArray) -> list[str]:
    """The first roi_id of each component: a name independent of the order of the ROIs."""
    names = [""] * (int(component.max()) + 1)
    for position in sorted(range(len(rois)), key=lambda i: rois[i].roi_id, reverse=True):
        names[component[position]] = rois[position].roi_id
    return names


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

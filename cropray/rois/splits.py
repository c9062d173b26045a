"""Train, val and test splits of ROIs, made before any patch is cut.

Neighbouring ROIs go together: parcels recur in several seasons, and adjacent fields look alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import shapely
import xxhash

from cropray.config.rois import SplitConfig
from cropray.errors import InputError, listed, nearest
from cropray.grid import Grid
from cropray.progress import say
from cropray.rois.near import Pairs, components, near_across
from cropray.types import BoolArray, DoubleArray, IndexArray, Roi

SPLITS = ("train", "val", "test")

_SLIVER = 1e-3  # share of a pixel by which a reprojected edge may be off


def split_rois(
    rois: Sequence[Roi], config: SplitConfig, seed: int, groups: IndexArray | None = None
) -> list[Roi]:
    """The ROIs with their splits, `groups` (N,) of them together, by default components of near ones.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, doi:10.1007/978-3-642-23808-6_10)
    deals out whole groups, crop by crop, the rarest crop first. The result depends on the seed and on the
    ROIs, but not on their order. With `config.left_out` train and val alone are dealt out.
    """
    component = components(rois, config.buffer_m) if groups is None else groups
    held = held_out(rois, config)
    if held.any():
        others = np.flatnonzero(~held)
        rest = config.model_copy(update={"left_out": (), "test": 0.0})
        regrouped = np.unique(component[others], return_inverse=True)[1]
        given = iter(split_rois([rois[n] for n in others.tolist()], rest, seed, regrouped))
        return [replace(roi, split="test") if held[n] else next(given) for n, roi in enumerate(rois)]
    names = _component_names(rois, component)
    crops, crop = np.unique([roi.crop for roi in rois], return_inverse=True)
    counts = np.zeros((len(names), len(crops)))
    np.add.at(counts, (component, crop), 1)
    dealt = deal(names, counts, config, seed)
    return [replace(roi, split=SPLITS[dealt[number]]) for roi, number in zip(rois, component, strict=True)]


def held_out(rois: Sequence[Roi], config: SplitConfig) -> BoolArray:
    """(N,) whether the province, country, season or harvest year of an ROI is in `config.left_out`.

    Raises InputError for a name that no ROI has, and if none is left for train.
    """
    wanted = {str(name) for name in config.left_out}
    years = [str(roi.harvest_end.year) if roi.harvest_end else "" for roi in rois]
    names = [{roi.province, roi.country, roi.season, year} for roi, year in zip(rois, years, strict=True)]
    if unknown := sorted(wanted - set().union(*names)):
        raise InputError(
            f"rois.split.left_out: {unknown[0]!r} is no province, country, season or harvest year of an ROI."
            f"{nearest(unknown[0], set().union(*names))}"
        )
    held: BoolArray = np.array([bool(own & wanted) for own in names])
    if held.all():
        raise InputError(f"rois.split.left_out names all ROIs ({', '.join(wanted)}). Leave some for train.")
    return held


def apart(rois: Sequence[Roi], config: SplitConfig) -> tuple[list[Roi], list[Roi]]:
    """The ROIs that are at least `config.buffer_m` from all others of another split that stay, and the rest.

    Train gives way to val and test, and of these the one that has more ROIs, or val if test is left out.
    """
    sizes = Counter(roi.split for roi in rois)
    order = list(SPLITS) if config.left_out or sizes["val"] >= sizes["test"] else ["train", "test", "val"]
    lost: set[int] = set()
    pairs = [
        sorted(pair, key=lambda n: order.index(rois[n].split))
        for pair in near_across(rois, config.buffer_m).T
    ]
    # Pairs with train first: a held-out ROI must not be lost to one that is.
    for first, other in sorted(pairs, key=lambda pair: order.index(rois[pair[0]].split), reverse=True):
        if other not in lost:
            lost.add(first)
    return [roi for n, roi in enumerate(rois) if n not in lost], [rois[n] for n in sorted(lost)]


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
    if most > 1 - config.val - config.test and not config.left_out:
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
    """(N,) position in SPLITS of named groups, from (N, K) numbers of their members of each crop.

    None of them is test if `config.left_out` names the test split.
    """
    test = 0.0 if config.left_out else config.test
    order = np.argsort([xxhash.xxh3_64_hexdigest(f"{seed} {name}".encode()) for name in names])
    dealt = np.empty(len(names), dtype=np.intp)
    dealt[order] = _deal(counts[order], (1 - config.val - test, config.val, test))
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
    if pairs.size:
        raise InputError(
            f"{pairs.shape[1]} pairs of ROIs of different splits are less than {buffer_m:g} m apart, so one "
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
    pairs = near[:, [_share_ground(grids[one], grids[other]) for one, other in near.T]]
    if pairs.size:
        raise InputError(
            f"the pixels of {pairs.shape[1]} pairs of ROIs of different splits overlap on the grid, so one "
            f"would leak into the other:\n{_names(rois, pairs)}\nRaise rois.split.buffer_m (of a table with "
            "rois.split.named: put both of a pair into the same split), and start again from rois in a new "
            "--run folder."
        )


def _names(rois: Sequence[Roi], pairs: Pairs) -> str:
    return listed([" and ".join(f"{rois[i].roi_id} ({rois[i].split})" for i in pair) for pair in pairs.T])


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

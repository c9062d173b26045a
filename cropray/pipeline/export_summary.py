"""What an export says of its ledger: counts, gaps by month, and what to look into before training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cropray.errors import counted
from cropray.imagery.scenes import scene_of
from cropray.run import Summary
from cropray.shards.ledger import LedgerRow
from cropray.types import Period

_PARTLY = 0.9  # of what Sentinel-1 sees of an ROI in its best month


def summarise(
    rows: Sequence[LedgerRow],
    periods_by_roi: Mapping[str, Sequence[Period]],
    sensors: Sequence[str] = ("s2", "s1"),
) -> Summary:
    """Counts over the ledger, of the sensors that were read.

    Tiles without a scene or a valid pixel are counted by the month, such as "2022-04", in which the period
    begins. Scenes are None if the source does not count them.
    """
    months = {roi_id: [f"{p.start:%Y-%m}" for p in periods] for roi_id, periods in periods_by_roi.items()}
    patches_by_split: Counter[str] = Counter()
    for row in rows:
        patches_by_split[row.split] += row.patches
    return {
        "tiles": len(rows),
        "patches": sum(row.patches for row in rows),
        "patches_by_split": dict(sorted(patches_by_split.items())),
        "nbytes": sum(row.nbytes for row in rows),
        "provisional_tiles": sum(bool(row.provisional) for row in rows),
        "empty_tiles": dict(Counter(row.reason for row in rows if row.reason)),
        "months_without_scene": {sensor: _gaps(rows, months, f"scenes_{sensor}") for sensor in sensors},
        "months_without_view": {sensor: _gaps(rows, months, f"valid_{sensor}") for sensor in sensors},
        "scenes_lost": len({scene_of(line) for row in rows for line in row.lost}),
        "warnings": [*_warnings(rows, months, sensors), *_scene_warnings(rows)],
    }


def _gaps(rows: Sequence[LedgerRow], months: Mapping[str, list[str]], column: str) -> dict[str, int] | None:
    """In how many tiles `column` is 0, by month; None if some tile does not know."""
    if not all(getattr(row, column) for row in rows):
        return None
    gaps = Counter(
        month
        for row in rows
        for month, amount in zip(months[row.roi_id], getattr(row, column), strict=True)
        if amount == 0
    )
    return dict(sorted(gaps.items()))


def saw_anything(row: LedgerRow) -> bool:
    """Whether a sensor has a valid pixel in any month of a tile."""
    return any((*row.valid_s2, *row.valid_s1))


def _warnings(
    rows: Sequence[LedgerRow], months: Mapping[str, list[str]], sensors: Sequence[str]
) -> Iterator[str]:
    """What a person should look into before training.

    Tiles whose months are not over; tiles in which nothing was seen; months in which a sensor saw nothing of
    an ROI; and months in which Sentinel-1 saw less of it than in others. Clouds hide nothing from Sentinel-1:
    such a month is a gap of the archive or of the search, for instance because an orbit is missing.
    """
    if early := sum(bool(row.provisional) for row in rows):
        yield f"{early} of {len(rows)} tiles are provisional: their months are not over. Run export again"
    if blind := sum(not saw_anything(row) for row in rows):
        yield (
            f"{blind} of {len(rows)} tiles have no valid pixel in any month of either sensor; does the "
            "source cover their place and time?"
        )
    for sensor, name, reason in (
        ("s2", "Sentinel-2", "Are these clouds, or are scenes missing?"),
        ("s1", "Sentinel-1", "Clouds do not hide land from it: are scenes or an orbit missing?"),
    ):
        if sensor not in sensors:
            continue
        shares = _shares(rows, f"valid_{sensor}")
        if not any(map(any, shares.values())):
            yield f"no tile has a valid pixel of {name} in any month"
            continue
        nothing, less = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for roi_id, by_month in shares.items():
            best = max(by_month)
            for month, share in zip(months[roi_id], by_month, strict=True):
                if share == 0:
                    nothing[month].append(roi_id)
                elif share < _PARTLY * best and sensor == "s1":
                    less[month].append(f"{roi_id}: {share:.0%} of it, at best {best:.0%}")
        for what, rois_by_month in ((f"no valid {name}", nothing), (f"less {name} than others", less)):
            counts = [
                f"{month} in {len(rois)} of {len(shares)} ROIs (such as {rois[0]})"
                for month, rois in sorted(rois_by_month.items())
            ]
            if counts:
                yield f"months with {what}: {', '.join(counts)}. {reason} The ledger has each tile"


def _shares(rows: Sequence[LedgerRow], column: str) -> dict[str, list[float]]:
    """The valid share of each ROI by month, weighted by the area of its tiles."""
    pixels, seen = Counter[str](), dict[str, Any]()
    for row in rows:
        area = row.height * row.width
        pixels[row.roi_id] += area
        seen[row.roi_id] = seen.get(row.roi_id, 0) + area * np.array(getattr(row, column))
    return {roi_id: (areas / pixels[roi_id]).tolist() for roi_id, areas in seen.items()}


def _scene_warnings(rows: Sequence[LedgerRow]) -> Iterator[str]:
    """Scenes that were left out, and ROIs whose tiles were made from different radar orbits."""
    if lost := {scene_of(line): line for row in rows for line in row.lost}:
        tiles, example = sum(bool(row.lost) for row in rows), min(lost.values())
        were = "was" if len(lost) == 1 else "were"
        yield (
            f"{counted(len(lost), 'scene')} {were} left out of {counted(tiles, 'tile')}, such as {example}. "
            "The ledger has each"
        )
    orbits = defaultdict[str, set[tuple[str, ...]]](set)
    for row in rows:
        orbits[row.roi_id].add(tuple(row.orbits_s1))
    if mixed := [roi_id for roi_id, chosen in orbits.items() if len(chosen) > 1]:
        yield (
            f"{len(mixed)} ROIs have tiles of different Sentinel-1 orbits, such as {mixed[0]}: the catalogue "
            "changed during the export. Delete their parts and export again"
        )

"""ROIs of clustered parcels of one crop and season, each with its province and dates."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.cluster import DBSCAN

from cropray.config.rois import RoisConfig
from cropray.errors import InputError, listed, nearest
from cropray.rois.calendar import Dates, Sheet, read_calendar
from cropray.rois.parcels import Parcels, Season
from cropray.rois.provinces import provinces_of
from cropray.rois.shapes import parcels_crs, places_of
from cropray.rois.sheets import folded
from cropray.rois.store import Dropped, identity
from cropray.types import DoubleArray, IndexArray, Roi


def rois_of_clusters(parcels: Parcels, config: RoisConfig) -> tuple[list[Roi], list[Dropped]]:
    """An ROI without a split for each cluster with a province and dates, and what gives no ROI.

    The province is that of the padded box. Raises InputError if no cluster gives an ROI.
    """
    crs = parcels_crs(parcels.frame, config.crs)
    clusters, dropped = _clusters(parcels, crs, config)
    boxes = np.array([each.box for each in clusters]).reshape(-1, 4)
    calendar = {}
    if config.calendar.path:
        wanted = {(season.sheet, season.crop) for season in parcels.seasons}
        calendar = read_calendar(config.data_root, config.calendar, wanted)
    rois: list[Roi] = []
    for each, province in zip(clusters, provinces_of(boxes, config, crs), strict=True):
        season = [each.season.name.encode(), each.season.sheet.encode()]
        roi_id = identity(each.season.crop, [*season, *sorted(each.parcel_ids.tolist())])
        dates = _dates(calendar, each.season, province, config)
        if isinstance(dates, str):
            dropped.append(_dropped(each, f"cluster {roi_id} of {len(each.parcel_ids)} parcels", dates))
            continue
        min_x, min_y, max_x, max_y = each.box.tolist()
        rois.append(
            Roi(
                roi_id=roi_id,
                crop=each.season.crop,
                season=each.season.name,
                province=province,
                country=config.country,
                split="",
                bounds=(min_x, min_y, max_x, max_y),
                crs=crs,
                **vars(dates),
            )
        )
    if not rois:
        reasons = Counter(row.reason for row in dropped).most_common()
        raise InputError(
            "no cluster of parcels gives an ROI:\n"
            + listed([f"{count} × {reason}" for reason, count in reasons])
            + "\nCorrect rois.provinces, rois.calendar, rois.crs or rois.min_samples."
        )
    return rois, dropped


def cluster(centroids: DoubleArray, eps_m: float, min_samples: int) -> IndexArray:
    """The cluster of each of (N, 2) points by DBSCAN (Ester et al. 1996), -1 for points in none."""
    labels: IndexArray = DBSCAN(eps=eps_m, min_samples=min_samples).fit_predict(centroids)
    return labels


def padded(bounds: DoubleArray, min_size_m: float) -> DoubleArray:
    """(K, 4) bounds whose sides are widened evenly at both ends to at least `min_size_m`."""
    lower, upper = bounds[:, :2], bounds[:, 2:]
    missing = np.maximum(min_size_m - (upper - lower), 0) / 2
    return np.hstack([lower - missing, upper + missing])


class _Cluster(NamedTuple):
    """Neighbouring parcels of one season: their padded box (4,), and (N,) their ids and files."""

    season: Season
    box: DoubleArray
    parcel_ids: npt.NDArray[np.bytes_]
    files: npt.NDArray[np.object_]


def _clusters(parcels: Parcels, crs: str, config: RoisConfig) -> tuple[list[_Cluster], list[Dropped]]:
    """The clusters of every season, and the parcels that are in none."""
    centroids, bounds = places_of(parcels.frame, crs)
    ids = parcels.frame["parcel_id"].to_numpy("S")  # names are ASCII: a third of the memory of texts
    file_of, names = pd.factorize(parcels.frame["file"])
    files = np.array(names, object)[file_of]  # a text for each file, not for each parcel
    reason = f"fewer than {config.min_samples} parcels within {config.eps_m:g} m"
    clusters: list[_Cluster] = []
    dropped: list[Dropped] = []
    for season, rows in parcels.seasons.items():
        labels = cluster(centroids[rows], config.eps_m, config.min_samples)
        groups = pd.DataFrame(bounds[rows]).groupby(labels)
        boxes = padded(groups.agg({0: "min", 1: "min", 2: "max", 3: "max"}).to_numpy(), config.min_size_m)
        for label, box in zip(np.unique(labels), boxes, strict=True):
            members = rows[groups.indices[label]]
            if label >= 0:
                clusters.append(_Cluster(season, box, ids[members], files[members]))
                continue
            alone = (_Cluster(season, box, ids[[row]], files[[row]]) for row in members)
            dropped += [_dropped(each, f"parcel {each.parcel_ids[0].decode()}", reason) for each in alone]
    return clusters, dropped


def _dropped(each: _Cluster, item: str, reason: str) -> Dropped:
    return Dropped("; ".join(sorted(set(each.files))), each.season.crop, each.season.name, item, reason)


def _dates(
    calendar: dict[tuple[str, str], Sheet], season: Season, province: str, config: RoisConfig
) -> Dates | str:
    """The dates of a season in a province, or the reason why there are none."""
    if config.provinces.path and not province:
        return f"in no province of {config.provinces.path}"
    if not config.calendar.path:
        return Dates()
    name, sheet = season.sheet or season.crop, calendar[season.sheet, season.crop]
    if not config.provinces.path and len(sheet) != 1:
        raise InputError(
            f"{config.calendar.path}, sheet {name!r} has {len(sheet)} rows, but rois.provinces.path "
            "is not set. Set it, or leave one row."
        )
    key = folded(province) if config.provinces.path else next(iter(sheet))
    if key not in sheet:
        return f"sheet {name!r} of the calendar has no row for {province}.{nearest(key, sheet)}"
    return sheet[key] or f"sheet {name!r} of the calendar lacks a date for {province or key}"

"""Parcels to boxes: neighbours are clustered, and every cluster gets a box of a least size. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import shapely
from sklearn.cluster import DBSCAN

from cropray.config.rois import RoisConfig
from cropray.errors import InputError
from cropray.grid import utm_crs
from cropray.rois.calendar import Dates, Sheet, read_calendar
from cropray.rois.parcels import Parcels, Season
from cropray.rois.store import Dropped, identity
from cropray.rois.vectors import LONLAT, metric_crs, read_provinces, reproject
from cropray.types import DoubleArray, IndexArray, Roi


def cluster(centroids: DoubleArray, eps_m: float, min_samples: int) -> IndexArray:
    """Cluster number of each of (N, 2) points by DBSCAN (Ester et al. 1996); -1 for points of none."""
    labels: IndexArray = DBSCAN(eps=eps_m, min_samples=min_samples).fit_predict(centroids)
    return labels


def cluster_bounds(bounds: DoubleArray, labels: IndexArray) -> DoubleArray:
    """(K, 4) min x, min y, max x, max y of each cluster over (N, 4) bounds of its members."""
    members = labels >= 0
    lower = np.full((labels.max(initial=-1) + 1, 2), np.inf)
    upper = -lower
    np.minimum.at(lower, labels[members], bounds[members, :2])
    np.maximum.at(upper, labels[members], bounds[members, 2:])
    return np.hstack([lower, upper])


def padded(bounds: DoubleArray, min_size_m: float) -> DoubleArray:
    """(K, 4) bounds, each side widened evenly on both ends to `min_size_m` at least."""
    lower, upper = bounds[:, :2], bounds[:, 2:]
    missing = np.maximum(min_size_m - (upper - lower), 0) / 2
    return np.hstack([lower - missing, upper + missing])


_WIDEST_UTM_DEG = 30.0
"""Span of longitude over which one UTM zone still measures: 15° from its middle, lengths are 3.5 % too
large at the equator and less elsewhere."""


@dataclass(frozen=True)
class _Cluster:
    """Neighbouring parcels of one season: their padded box, and their rows in the frame."""

    season: Season
    box: DoubleArray
    rows: IndexArray


def regions_of(parcels: Parcels, config: RoisConfig) -> tuple[list[Roi], list[Dropped]]:
    """One ROI, without a split yet, for each cluster that has a province and dates; and the others.

    The province is that of the padded box. Raises InputError where no cluster gives an ROI.
    """
    crs = metric_crs(config.crs) if config.crs != "utm" else _one_zone(parcels.frame)
    projected = reproject(parcels.frame, crs, "the parcels")
    clusters, dropped = _clusters(parcels, projected, config)
    provinces = _provinces(clusters, config, crs)
    calendar = _calendar(parcels, config)
    rois: list[Roi] = []
    for each, province in zip(clusters, provinces, strict=True):
        members = parcels.ids[each.rows]
        parts = [each.season.name, each.season.sheet, *sorted(members)]
        roi_id = identity(each.season.crop, [part.encode() for part in parts])
        found = _dates(calendar, each.season, province, config)
        if isinstance(found, str):
            item = f"cluster {roi_id} of {len(members)} parcels"
            dropped.append(_drop(parcels, each.season, each.rows, item, found))
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
                **vars(found),
            )
        )
    if not rois:
        reasons = Counter(row.reason for row in dropped).most_common()
        raise InputError(
            "no cluster of parcels gives an ROI:\n"
            + "\n".join(f"  {count} × {reason}" for reason, count in reasons)
            + "\ncorrect rois.provinces, rois.calendar or rois.crs"
        )
    return rois, dropped


def _one_zone(frame: gpd.GeoDataFrame) -> str:
    """The UTM zone of the middle of all parcels, so that neighbours across a zone border stay together."""
    west, south, east, north = frame.total_bounds
    if east - west > _WIDEST_UTM_DEG:
        raise InputError(
            f"the parcels span {east - west:.0f} degrees of longitude, too wide for one UTM zone; "
            "set rois.crs to a projected CRS of the region (Europe: EPSG:3035)"
        )
    return utm_crs((west, south, east, north), LONLAT)


def _clusters(
    parcels: Parcels, projected: gpd.GeoDataFrame, config: RoisConfig
) -> tuple[list[_Cluster], list[Dropped]]:
    """The clusters of every season, and the parcels that are in none."""
    geometry = projected.geometry.to_numpy()
    centroids, bounds = shapely.get_coordinates(shapely.centroid(geometry)), shapely.bounds(geometry)
    clusters: list[_Cluster] = []
    dropped: list[Dropped] = []
    for season, rows in parcels.seasons.items():
        labels = cluster(centroids[rows], config.eps_m, config.min_samples)
        boxes = padded(cluster_bounds(bounds[rows], labels), config.min_size_m)
        by_label = rows[np.argsort(labels, kind="stable")]
        ends = np.cumsum(np.bincount(labels + 1, minlength=len(boxes) + 1))
        alone, *members = np.split(by_label, ends[:-1])
        clusters += [_Cluster(season, box, mine) for box, mine in zip(boxes, members, strict=True)]
        reason = f"fewer than {config.min_samples} parcels within {config.eps_m:g} m"
        dropped += [
            _drop(parcels, season, np.array([row]), f"parcel {parcels.ids[row]}", reason) for row in alone
        ]
    return clusters, dropped


def _provinces(clusters: list[_Cluster], config: RoisConfig, crs: str) -> list[str]:
    """The province of each cluster; "" where none overlaps, or where no provinces are set."""
    if not config.provinces.path:
        return [""] * len(clusters)
    provinces = read_provinces(config.data_root, config.provinces, crs)
    return provinces.of(np.array([each.box for each in clusters]).reshape(-1, 4))


def _calendar(parcels: Parcels, config: RoisConfig) -> dict[str, Sheet]:
    """The sheets of all seasons; none where no calendar is set."""
    if not config.calendar.path:
        return {}
    sheets = {season.sheet for season in parcels.seasons}
    calendar = read_calendar(config.data_root, config.calendar, sheets)
    for name, sheet in calendar.items():
        if not config.provinces.path and len(sheet) != 1:
            raise InputError(
                f"{config.calendar.path}, sheet {name!r} has {len(sheet)} rows, but rois.provinces.path is "
                "not set to choose one by; set it, or leave one row"
            )
    return calendar


def _dates(calendar: dict[str, Sheet], season: Season, province: str, config: RoisConfig) -> Dates | str:
    """The dates of a season in a province, or the reason why there are none."""
    if config.provinces.path and not province:
        return f"in no province of {config.provinces.path}"
    if not config.calendar.path:
        return Dates()
    sheet = calendar[season.sheet]
    key = province if config.provinces.path else next(iter(sheet))
    if key not in sheet:
        return f"sheet {season.sheet!r} of the calendar has no row for {key}"
    return sheet[key] or f"sheet {season.sheet!r} of the calendar lacks a date for {key}"


def _drop(parcels: Parcels, season: Season, rows: IndexArray, item: str, reason: str) -> Dropped:
    files = sorted(set(parcels.files[rows]))
    return Dropped("; ".join(files), season.crop, season.name, item, reason)

"""The stage `rois`: clusters of parcels, or the rows of a table, become ROIs with dates and splits."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from sklearn.cluster import DBSCAN

from cropray.config import Config
from cropray.config.rois import RoisConfig
from cropray.errors import InputError, listed, nearest
from cropray.grid import utm_crs
from cropray.progress import say
from cropray.rois.calendar import Dates, Sheet, read_calendar
from cropray.rois.parcels import Parcels, Season, fingerprints, read_parcels
from cropray.rois.splits import SPLITS, audit_splits, components, missing_crops, split_rois
from cropray.rois.store import PARCELS, ROIS, Dropped, identity, write_dropped, write_parcels, write_rois
from cropray.rois.table import read_table
from cropray.rois.vectors import LONLAT, metric_crs, read_provinces, reproject
from cropray.run import Run, Summary
from cropray.types import DoubleArray, IndexArray, Roi

_WIDEST_UTM_DEG = 30.0
"""Widest span of longitudes for one UTM zone. At 15° from the central meridian lengths are 3.5 % too
large at the equator, and less elsewhere."""


def build_rois(run: Run) -> Summary:
    """Write `rois/` in the run folder. Raises InputError for unusable input and then writes nothing."""
    run.begin("rois")
    inputs = {} if run.config.simulates_inputs else fingerprints(run.config.rois)
    finished = run.finished("rois", inputs, (ROIS, PARCELS))
    if finished is not None:
        say(f"rois: reused {finished['rois']} ROIs in {run.folder}")
        return finished
    with _inputs(run) as config:
        rois, parcels, dropped = make_rois(run.config, config)
    unique = parcels.frame.drop_duplicates("parcel_id")
    run.claim("rois", inputs)
    write_parcels(run.folder, unique)
    write_dropped(run.folder, dropped)
    write_rois(run.folder, rois)
    summary = {
        "rois": len(rois),
        "crs": rois[0].crs,
        "by_crop": dict(sorted(Counter(roi.crop for roi in rois).items())),
        "by_split": {split: sum(roi.split == split for roi in rois) for split in SPLITS},
        "missing": missing_crops(rois),
        "components": int(components(rois, run.config.rois.split.buffer_m).max()) + 1,
        "parcels": len(unique),
        "mended": parcels.mended,
        "repeated": len(parcels.frame) - len(unique),
        "dropped": dict(sorted(Counter(row.reason for row in dropped).items())),
    }
    run.finish("rois", summary, inputs)
    say(_text(summary))
    return summary


def make_rois(config: Config, rois_config: RoisConfig) -> tuple[list[Roi], Parcels, list[Dropped]]:
    """The ROIs, all parcels, and what gives no ROI, from the inputs that `rois_config` names.

    There are no parcels for ROIs from a table. Raises InputError for unusable input.
    """
    parcels, dropped = Parcels.none(), list[Dropped]()
    if rois_config.kind == "table":
        rois = read_table(rois_config, config.classes)
    else:
        _check_settings(config, rois_config)
        parcels = read_parcels(rois_config.data_root, rois_config.parcels)
        rois, dropped = rois_of_clusters(parcels, rois_config)
    if not rois_config.split.named:
        rois = split_rois(rois, rois_config.split, config.seed)
    audit_splits(rois, rois_config.split.buffer_m)
    return rois, parcels, [*parcels.dropped, *dropped]


def rois_of_clusters(parcels: Parcels, config: RoisConfig) -> tuple[list[Roi], list[Dropped]]:
    """An ROI without a split for each cluster with a province and dates, and what gives no ROI.

    The province is that of the padded box. Raises InputError if no cluster gives an ROI.
    """
    crs = metric_crs(config.crs) if config.crs != "utm" else _utm_zone(parcels.frame)
    clusters, dropped = _clusters(parcels, crs, config)
    provinces = [""] * len(clusters)
    if config.provinces.path:
        boxes = np.array([each.box for each in clusters]).reshape(-1, 4)
        provinces = read_provinces(config.data_root, config.provinces, crs).of(boxes)
    calendar = {}
    if config.calendar.path:
        sheets = {season.sheet for season in parcels.seasons}
        calendar = read_calendar(config.data_root, config.calendar, sheets)
    rois: list[Roi] = []
    for each, province in zip(clusters, provinces, strict=True):
        parts = [each.season.name, each.season.sheet, *sorted(each.parcel_ids)]
        roi_id = identity(each.season.crop, [part.encode() for part in parts])
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
    parcel_ids: npt.NDArray[np.object_]
    files: npt.NDArray[np.object_]


def _clusters(parcels: Parcels, crs: str, config: RoisConfig) -> tuple[list[_Cluster], list[Dropped]]:
    """The clusters of every season, and the parcels that are in none."""
    geometry = reproject(parcels.frame, crs, "the parcels").geometry.to_numpy()
    centroids, bounds = shapely.get_coordinates(shapely.centroid(geometry)), shapely.bounds(geometry)
    ids, files = (np.array(parcels.frame[name].tolist(), object) for name in ("parcel_id", "file"))
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
            dropped += [_dropped(each, f"parcel {each.parcel_ids[0]}", reason) for each in alone]
    return clusters, dropped


def _dropped(each: _Cluster, item: str, reason: str) -> Dropped:
    return Dropped("; ".join(sorted(set(each.files))), each.season.crop, each.season.name, item, reason)


def _utm_zone(frame: gpd.GeoDataFrame) -> str:
    """The UTM zone of the middle of all parcels: neighbours across the border of a zone stay together."""
    west, south, east, north = frame.total_bounds
    if east - west > _WIDEST_UTM_DEG:
        raise InputError(
            f"the parcels span {east - west:.0f} degrees of longitude, too wide for one UTM zone. "
            "Set rois.crs to a projected CRS of the area (Europe: EPSG:3035)."
        )
    return utm_crs((west, south, east, north), LONLAT)


def _dates(calendar: dict[str, Sheet], season: Season, province: str, config: RoisConfig) -> Dates | str:
    """The dates of a season in a province, or the reason why there are none."""
    if config.provinces.path and not province:
        return f"in no province of {config.provinces.path}"
    if not config.calendar.path:
        return Dates()
    sheet = calendar[season.sheet]
    if not config.provinces.path and len(sheet) != 1:
        raise InputError(
            f"{config.calendar.path}, sheet {season.sheet!r} has {len(sheet)} rows, but rois.provinces.path "
            "is not set. Set it, or leave one row."
        )
    key = province if config.provinces.path else next(iter(sheet))
    if key not in sheet:
        return f"sheet {season.sheet!r} of the calendar has no row for {key}"
    return sheet[key] or f"sheet {season.sheet!r} of the calendar lacks a date for {key}"


@contextmanager
def _inputs(run: Run) -> Iterator[RoisConfig]:
    """The settings with the paths of the inputs. The simulated world writes its own."""
    config = run.config.rois
    if not run.config.simulates_inputs:
        yield config
        return
    from cropray.simulation.inputs import write_inputs

    with tempfile.TemporaryDirectory() as temporary:
        directory = run.folder.local("world") if run.folder.is_local else Path(temporary)
        world = write_inputs(run.config.source.simulated, directory)
        fields = ("data_root", "parcels", "table", "calendar", "provinces")
        update = {name: getattr(world, name) for name in fields}
        update["country"] = config.country or world.country
        if config.kind == "table" and not config.split.named:
            update["split"] = config.split.model_copy(update={"named": world.split.named})
        yield config.model_copy(update=update)


def _check_settings(config: Config, rois_config: RoisConfig) -> None:
    if not rois_config.parcels:
        raise InputError("rois.parcels is not set. Add an entry (crop, path) for each crop.")
    if rois_config.split.named:
        raise InputError(
            "rois.split.named is for the rows of a table, but rois.kind is parcels. Remove rois.split.named."
        )
    if not config.labels.parcels:  # then they only say where to look, and any crop will do
        return
    unknown = {i: entry for i, entry in enumerate(rois_config.parcels) if entry.crop not in config.classes}
    if unknown and config.simulates_inputs:
        crops = ", ".join(entry.crop for entry in unknown.values())
        raise InputError(f"the built-in world has parcels of {crops}. Add them to `classes`.")
    problems = [
        f"rois.parcels.{index}.crop is {entry.crop!r} ({entry.path}), which is none of the classes."
        f"{nearest(entry.crop, config.classes)}"
        for index, entry in unknown.items()
    ]
    if problems:
        raise InputError("\n".join(problems))


def _text(summary: Summary) -> str:
    """The summary for a person."""
    splits = ", ".join(f"{split} {count}" for split, count in summary["by_split"].items())
    lines = [f"rois: {summary['rois']} ROIs ({splits})"]
    if summary["parcels"]:
        lines[0] += f" from {summary['parcels']} parcels, {summary['mended']} of them repaired"
    if summary["dropped"]:
        count = sum(summary["dropped"].values())
        lines.append(f"rois: {count} parcels or clusters gave no ROI (reasons in rois/dropped.csv)")
    for split, crops in summary["missing"].items():
        lines.append(f"rois: {split} has no ROI of {', '.join(filter(None, crops)) or 'any crop'}")
    return "\n".join(lines)

"""The stage `rois`: parcels or a table in, regions of interest with dates and splits out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd

from cropray.config import Config
from cropray.config.rois import RoisConfig
from cropray.errors import InputError, nearest
from cropray.progress import say
from cropray.rois.clusters import regions_of
from cropray.rois.parcels import fingerprints, read_parcels
from cropray.rois.splits import SPLITS, audit_splits, components, missing_crops, split_rois
from cropray.rois.store import Dropped, write_dropped, write_parcels, write_rois
from cropray.rois.table import read_table
from cropray.rois.vectors import LONLAT
from cropray.run import Run, Summary
from cropray.types import Roi


@dataclass(frozen=True)
class Regions:
    """What the stage makes, before it is written; fields of `parcels` as `store.read_parcels` says."""

    rois: list[Roi]
    parcels: gpd.GeoDataFrame
    dropped: list[Dropped]
    mended: int = 0
    repeated: int = 0


def build_rois(run: Run) -> Summary:
    """Write `rois/` of the run folder. Raises InputError, with nothing written, for unusable input."""
    run.begin("rois")
    inputs = {} if _is_simulated(run.config) else fingerprints(run.config.rois)
    finished = run.finished("rois", inputs)
    if finished is not None:
        say(f"rois: reused {finished['rois']} ROIs in {run.folder}")
        return finished
    with _inputs(run) as config:
        regions = make_regions(run.config, config)
    run.claim("rois", inputs)
    write_parcels(run.folder, regions.parcels)
    write_dropped(run.folder, regions.dropped)
    write_rois(run.folder, regions.rois)
    summary = _summary(regions, run.config.rois.split.buffer_m)
    run.finish("rois", summary, inputs)
    say(_line(summary))
    return summary


def make_regions(config: Config, rois_config: RoisConfig) -> Regions:
    """Everything of the stage but its files, from the inputs that `rois_config` names."""
    empty = gpd.GeoDataFrame({"parcel_id": [], "crop": []}, geometry=[], crs=LONLAT)
    if rois_config.kind == "table":
        rois = read_table(rois_config, config.classes)
        if not rois_config.split.named:
            rois = split_rois(rois, rois_config.split, config.seed)
        regions = Regions(rois, empty, [])
    else:
        _check_settings(config, rois_config)
        parcels = read_parcels(rois_config.data_root, rois_config.parcels)
        rois, lost = regions_of(parcels, rois_config)
        rois = split_rois(rois, rois_config.split, config.seed)
        unique = parcels.frame.drop_duplicates("parcel_id")
        regions = Regions(
            rois,
            unique,
            [*parcels.dropped, *lost],
            mended=parcels.mended,
            repeated=len(parcels.frame) - len(unique),
        )
    audit_splits(regions.rois, rois_config.split.buffer_m)
    return regions


def _is_simulated(config: Config) -> bool:
    """Whether the simulated world gives the inputs: then they are its settings."""
    return config.source.kind == "simulated" and not (config.rois.parcels or config.rois.table)


@contextmanager
def _inputs(run: Run) -> Iterator[RoisConfig]:
    """The settings with paths of inputs that exist: the simulated world's are made where none are set."""
    config = run.config.rois
    if not _is_simulated(run.config):
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
        raise InputError("rois.parcels is not set; wanted one entry (crop, path) for each crop")
    if rois_config.split.named:
        raise InputError(
            "rois.split.named is for the rows of a table, but rois.kind is parcels: leave it out"
        )
    for index, entry in enumerate(rois_config.parcels):
        # Without labels from parcels, they only say where to look, and may be of any crop.
        if config.labels.parcels and entry.crop not in config.classes:
            raise InputError(
                f"rois.parcels.{index}.crop is {entry.crop!r} ({entry.path}), which is none of the classes"
                f".{nearest(entry.crop, config.classes)}"
            )


def _summary(regions: Regions, buffer_m: float) -> Summary:
    rois = regions.rois
    return {
        "rois": len(rois),
        "crs": rois[0].crs,
        "by_crop": dict(sorted(Counter(roi.crop for roi in rois).items())),
        "by_split": {split: sum(roi.split == split for roi in rois) for split in SPLITS},
        "missing": missing_crops(rois),
        "components": int(components(rois, buffer_m).max()) + 1,
        "parcels": len(regions.parcels),
        "mended": regions.mended,
        "repeated": regions.repeated,
        "dropped": dict(sorted(Counter(row.reason for row in regions.dropped).items())),
    }


def _line(summary: Summary) -> str:
    """The summary for a person."""
    splits = ", ".join(f"{split} {count}" for split, count in summary["by_split"].items())
    lines = [f"rois: {summary['rois']} ROIs ({splits})"]
    if summary["parcels"]:
        lines[0] += (
            f" of {summary['parcels']} parcels, {summary['mended']} mended, "
            f"{sum(summary['dropped'].values())} parcels or clusters dropped"
        )
    for split, crops in summary["missing"].items():
        lines.append(f"rois: {split} has no ROI of {', '.join(filter(None, crops)) or 'any crop'}")
    return "\n".join(lines)

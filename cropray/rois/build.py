"""The stage `rois`: clusters or cells of parcels, or the rows of a table, become ROIs with splits."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

from cropray.config import Config
from cropray.config.rois import RoisConfig
from cropray.errors import InputError, counted, nearest
from cropray.progress import say
from cropray.rois.cells import rois_of_cells
from cropray.rois.clusters import rois_of_clusters
from cropray.rois.near import components
from cropray.rois.parcels import Parcels, read_parcels
from cropray.rois.splits import (
    SPLITS,
    apart,
    audit_splits,
    check_components,
    check_not_empty,
    missing_crops,
    split_rois,
)
from cropray.rois.store import DROPPED, PARCELS, ROIS, Dropped, write_dropped, write_parcels, write_rois
from cropray.rois.table import read_table
from cropray.rois.vectors import matching
from cropray.run import Inputs, Run, Summary
from cropray.types import Roi


def build_rois(run: Run) -> Summary:
    """Write `rois/` in the run folder. Raises InputError for unusable input and then writes nothing."""
    run.begin("rois")
    inputs = {} if run.config.simulates_inputs else fingerprints(run.config.rois)
    finished = run.finished("rois", inputs, (ROIS, PARCELS, DROPPED))
    if finished is not None:
        say(f"rois: reused {finished['rois']} ROIs in {run.folder}")
        return finished
    with _inputs(run) as config:
        rois, crops, groups, parcels, dropped = make_rois(run.config, config)
    unique = parcels.unique
    run.claim("rois", inputs)
    write_parcels(run.folder, unique)
    write_dropped(run.folder, dropped)
    write_rois(run.folder, rois)
    summary = {
        "rois": len(rois),
        "crs": rois[0].crs,
        "by_crop": dict(sorted(Counter(crop for own in crops.values() for crop in own).items())),
        "by_split": {split: sum(roi.split == split for roi in rois) for split in SPLITS},
        "missing": missing_crops(rois, crops),
        "components": groups,
        "parcels": len(unique),
        "mended": parcels.mended,
        "repeated": len(parcels.frame) - len(unique),
        "dropped": dict(sorted(Counter(row.reason for row in dropped).items())),
    }
    run.finish("rois", summary, inputs)
    say(_text(summary))
    return summary


def fingerprints(config: RoisConfig) -> Inputs:
    """One hash of the content for each path or glob in the settings.

    A path without a file has none: a finished stage stays valid after its inputs are gone.
    """
    if config.kind == "table":
        paths = [config.table]
    else:
        paths = [*(crop.path for crop in config.parcels), config.provinces.path, config.calendar.path]
    files = {path: matching(config.data_root, path) for path in paths if path}
    return {path: _content(found) for path, found in files.items() if found}


def _content(files: Iterable[Path]) -> str:
    """One hash of files and of their namesakes, such as the .dbf and .prj of a shapefile."""
    names = {(file.parent, file.stem) for file in files}
    folders = {folder for folder, _ in names}
    found = [path for folder in folders for path in folder.iterdir() if (folder, path.stem) in names]
    whole = xxhash.xxh3_64()
    for path in sorted(found):
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                whole.update(part.name.encode())
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        whole.update(block)
    return whole.hexdigest()


class Rois(NamedTuple):
    """The ROIs, the crops of each by roi_id, the number of components of near ROIs, all parcels (none for a
    table), and what gives no ROI.
    """

    rois: list[Roi]
    crops: Mapping[str, Collection[str]]
    components: int
    parcels: Parcels
    dropped: list[Dropped]


def make_rois(config: Config, rois_config: RoisConfig) -> Rois:
    """The ROIs from the inputs that `rois_config` names. Raises InputError for unusable input."""
    parcels, dropped, split = Parcels.none(), list[Dropped](), rois_config.split
    crops: Mapping[str, Collection[str]] = {}
    if rois_config.kind == "table":
        rois = read_table(rois_config, config.classes)
    else:
        _check_settings(config, rois_config)
        parcels = read_parcels(rois_config.data_root, rois_config.parcels, rois_config.max_parcel_km2)
    if rois_config.kind == "grid":
        rois, crops, dropped = rois_of_cells(parcels, rois_config, config.seed)
    elif rois_config.kind == "parcels":
        rois, dropped = rois_of_clusters(parcels, rois_config)
    component = components(rois, split.buffer_m)
    if rois_config.kind != "grid" and not split.named:
        rois = split_rois(rois, split, config.seed, component)
        check_components(rois, component, split)
        if split.left_out:
            rois, near = apart(rois, split)
            reason = f"less than {split.buffer_m:g} m from an ROI of another split (rois.split.left_out)"
            dropped = [
                *dropped,
                *(Dropped("", roi.crop, roi.season, f"cluster {roi.roi_id}", reason) for roi in near),
            ]
            check_not_empty(rois, split, reason)
    audit_splits(rois, split.buffer_m)
    crops = crops or {roi.roi_id: (roi.crop,) for roi in rois}
    return Rois(rois, crops, int(component.max()) + 1, parcels, [*parcels.dropped, *dropped])


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
        if config.kind == "grid":
            update["calendar"] = config.calendar
        if config.kind == "table" and not config.split.named:
            update["split"] = config.split.model_copy(update={"named": world.split.named})
        yield config.model_copy(update=update)


def _check_settings(config: Config, rois_config: RoisConfig) -> None:
    if not rois_config.parcels:
        raise InputError("rois.parcels is not set. Add an entry (crop, path) for each crop.")
    if rois_config.split.named:
        raise InputError(
            f"rois.split.named is for the rows of a table, but rois.kind is {rois_config.kind}. Remove it."
        )
    if rois_config.kind == "grid" and rois_config.calendar.path:
        raise InputError(
            "rois.calendar is set, but a cell of rois.kind=grid has many crops and no harvest of its own. "
            "Remove rois.calendar.path, and set window.anchor=as_of and window.as_of."
        )
    smallest = 0.75 * config.grid.resolution  # any larger circle contains the centre of a pixel
    problems, strangers = list[str](), list[str]()
    for index, entry in enumerate(rois_config.parcels):
        if 0 < entry.radius_m < smallest:
            problems.append(
                f"rois.parcels.{index}.radius_m is {entry.radius_m:g}: such a circle may contain no pixel's "
                f"centre. Set 0 for the pixel of each point, or at least {smallest:g}."
            )
        for crop in [entry.crop] if entry.crops is None else dict.fromkeys(entry.crops.map.values()):
            # If parcels are no labels, they only say where to look, and any crop will do.
            if config.labels.parcels and crop not in config.classes:
                key = "crop" if entry.crops is None else "crops.map"
                strangers.append(crop)
                problems.append(
                    f"rois.parcels.{index}.{key} has {crop!r} ({entry.path}), which is none of the classes."
                    f"{nearest(crop, config.classes)}"
                )
    if strangers and config.simulates_inputs:
        raise InputError(f"the built-in world has parcels of {', '.join(strangers)}. Add them to `classes`.")
    if problems:
        raise InputError("\n".join(problems))


def _text(summary: Summary) -> str:
    """The summary for a person."""
    splits = ", ".join(f"{split} {count}" for split, count in summary["by_split"].items())
    lines = [f"rois: {counted(summary['rois'], 'ROI')} ({splits})"]
    if summary["parcels"]:
        lines[0] += f" from {counted(summary['parcels'], 'parcel')}, {summary['mended']:,} of them repaired"
    if summary["dropped"]:
        count = sum(summary["dropped"].values())
        lines.append(f"rois: {count} parcels or clusters gave no ROI (reasons in rois/dropped.csv)")
    for split, crops in summary["missing"].items():
        lines.append(f"rois: {split} has no ROI of {', '.join(filter(None, crops)) or 'any crop'}")
    return "\n".join(lines)

"""Import of labelled point series as the shards of a run: samples of one pixel, split by spatial blocks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from cropray.bands import NODATA
from cropray.config import Config
from cropray.config.rois import WindowConfig
from cropray.errors import InputError
from cropray.grid import Grid, transformer, utm_crs
from cropray.pipeline.compact import plan_order
from cropray.pipeline.series import Series, format_codes, match_codes, read_series
from cropray.pipeline.tiles import part_metadata
from cropray.progress import say
from cropray.rois.calendar import periods_for
from cropray.rois.splits import SPLITS, missing_crops, split_rois
from cropray.run import Run, Summary
from cropray.shards.file import shard_name
from cropray.shards.schema import encode_patch, to_table
from cropray.shards.writer import write_shard
from cropray.types import BACKGROUND, UNLABELLED, IndexArray, Patch, Period, Roi

_STAGE = {"imported": "point series"}
_EQUAL_AREA = "EPSG:6933"
_EARTH_M = 6_371_000.0


def import_series(files: Sequence[str], run: Run, split: str = "") -> Summary:
    """Write `shards/<split>/` from tables of point series, whose settings are `series`.

    Without a `split`, blocks of `series.block_m` are dealt out by the shares of `rois.split`, and samples
    nearer than `rois.split.buffer_m` to one of a later split (train, val, test) are left out. Raises
    InputError for tables that cannot be used, and if a split would be empty.
    """
    config = run.config
    _check_settings(config, split)
    if (run.summary("rois") or _STAGE).get("imported") != _STAGE["imported"]:
        raise InputError(f"{run.folder} has regions of its own; import into a new --run folder")
    settings = config.series.model_dump(mode="json")
    described = json.dumps([settings, split, config.rois.split.model_dump(mode="json"), config.seed])
    inputs = {
        "tables": hashlib.sha256(b"".join(map(_digest, files))).hexdigest()[:16],
        "settings": hashlib.sha256(described.encode()).hexdigest()[:16],
    }
    finished = run.finished("compact", inputs)
    if finished is not None:
        say(f"import-series: reused {run.folder}/shards")
        return finished
    assert config.window.as_of is not None  # _check_settings
    series = read_series(files, config.series, pd.Timestamp(config.window.as_of), config.window.months)
    chosen, labels, summary = _labelled(series, config)
    rois, extents = _places(series.samples.iloc[chosen], labels, config)
    rois = [replace(roi, split=split) for roi in rois] if split else _split(rois, config)
    near = [] if split else _near_later_split(rois, config.rois.split.buffer_m)
    kept = sorted(set(range(len(rois))) - set(near))
    summary |= {
        "left_out_in_the_buffer": len(near),
        "missing_classes": missing_crops([rois[i] for i in kept if rois[i].crop]),
    }
    counts = Counter(rois[i].split for i in kept)
    _check_counts(counts, split, config)
    dropped = {
        "no label": summary["unlabelled"],
        "a code of no class": 0
        if config.series.others == "background"
        else sum(summary["other_codes"].values()),
        "no view in any month": summary["without_a_view"],
        "too near to another split": len(near),
    }
    places: Summary = {  # as of regions, for the report
        **_STAGE,
        "rois": len(kept),
        "parcels": len(series.samples),
        "mended": 0,
        "dropped": {reason: number for reason, number in dropped.items() if number},
        "by_split": {name: counts[name] for name in SPLITS},
        "by_crop": dict(sorted(Counter(rois[i].crop for i in kept).items())),
        "missing": summary["missing_classes"],
    }
    run.finish("rois", places)
    run.finish("export", _STAGE)
    run.claim("compact", inputs)
    run.folder.delete_folder("shards")
    written = _write(series, chosen[kept], labels[kept], [(rois[i], extents[i]) for i in kept], run)
    summary = {"samples": dict(sorted(counts.items())), "shards": written, **_STAGE, **summary}
    run.finish("compact", summary, inputs)
    return summary


def _digest(file: str) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _check_settings(config: Config, split: str) -> None:
    """Raise InputError if settings and option do not say what the samples mean."""
    if split not in ("", *SPLITS):
        raise InputError(f"split {split!r} does not exist. Choose from {', '.join(SPLITS)}.")
    window, classes = config.window, config.series.codes.keys()
    if not config.classes or set(config.classes) != classes:
        raise InputError(
            f"series.codes has codes of {', '.join(classes) or 'no class'}, but classes are "
            f"{', '.join(config.classes) or 'not set'}. Give each class its codes, as in configs/canada.yaml."
        )
    if window.as_of is None or window.anchor != "as_of":
        raise InputError(
            "point series have no harvest to anchor a window on: set window.anchor to as_of, and "
            "window.as_of to the last day of the season's last month"
        )
    if not pd.Timestamp(window.as_of).is_month_end:
        raise InputError(f"window.as_of is {window.as_of}: tables have whole months. Give a last day of one.")


def _labelled(series: Series, config: Config) -> tuple[IndexArray, npt.NDArray[np.uint8], Summary]:
    """Positions (M,) of the samples to keep, their labels (M,), and what was left out."""
    names, unknown = match_codes(series.samples["label"].tolist(), config.series)
    seen = (series.s2_nct != NODATA).any(axis=(1, 2)) | (series.s1_nct != NODATA).any(axis=(1, 2))
    others = config.series.others == "background"
    number = {name: i for i, name in enumerate(config.classes)} | ({None: BACKGROUND} if others else {})
    number |= {"": UNLABELLED} if config.series.keep_unlabelled else {}
    chosen = np.array([i for i, name in enumerate(names) if name in number and seen[i]], np.intp)
    labels = np.array([number[names[i]] for i in chosen], np.uint8)
    if unknown:
        said = "are none of the classes" if others else "are left out (series.others)"
        say(f"import-series: {unknown.total()} samples of {len(unknown)} other codes {said}:")
        say(format_codes(unknown))
    if not (labels < len(config.classes)).any():
        raise InputError(
            f"no sample has a code of the classes (series.codes). The codes of the tables:\n"
            f"{format_codes(Counter(series.samples['label']))}"
        )
    if series.impossible:
        counts = ", ".join(f"{band} {count}" for band, count in series.impossible.items())
        say(f"import-series: impossible values count as missing: {counts}")
    months = (series.s2_nct[:, 0] != NODATA) | (series.s1_nct[:, 0] != NODATA)
    if empty := [t + 1 for t in np.flatnonzero(~months[chosen].any(axis=0)).tolist()]:
        say(f"import-series: no sample has the months {', '.join(map(str, empty))} of the window")
    return (
        chosen,
        labels,
        {
            "unlabelled": 0 if config.series.keep_unlabelled else names.count(""),
            "other_codes": dict(unknown.most_common()),
            "without_a_view": int((~seen).sum()),
            "missing_months": round(float(1 - months[chosen].mean()), 4),
            "impossible_values": series.impossible,
        },
    )


def _places(
    samples: pd.DataFrame, labels: npt.NDArray[np.uint8], config: Config
) -> tuple[list[Roi], list[Grid]]:
    """An ROI and a grid of one pixel for each sample: the pixel of its UTM zone that contains it."""
    lon, lat = samples["lon"].to_numpy(), samples["lat"].to_numpy()
    crs = np.array([utm_crs((x, y, x, y), "EPSG:4326") for x, y in zip(lon, lat, strict=True)])
    x, y = np.empty(len(lon)), np.empty(len(lat))
    for zone in np.unique(crs).tolist():
        mine = crs == zone
        x[mine], y[mine] = transformer("EPSG:4326", zone).transform(lon[mine], lat[mine])
    size = config.grid.resolution
    x0, y0 = np.floor(x / size) * size, np.floor(y / size) * size + size
    extents = [Grid(str(c), float(a), float(b), size, 1, 1) for c, a, b in zip(crs, x0, y0, strict=True)]
    rois = [
        Roi(name, crop, str(year), region, config.rois.country, "", grid.bounds, grid.crs)
        for name, year, region, crop, grid in zip(
            *(samples[column].tolist() for column in ("sample_id", "year", "region")),
            (config.classes[label] if label < len(config.classes) else "" for label in labels),
            extents,
            strict=True,
        )
    ]
    return rois, extents


def _lonlat(rois: Sequence[Roi]) -> npt.NDArray[np.float64]:
    """(N, 2) longitude and latitude of the centres."""
    out = np.empty((len(rois), 2))
    for crs in {roi.crs for roi in rois}:
        mine = [i for i, roi in enumerate(rois) if roi.crs == crs]
        boxes = np.array([rois[i].bounds for i in mine])
        centre = (boxes[:, :2] + boxes[:, 2:]).T / 2
        out[mine] = np.stack(transformer(crs, "EPSG:4326").transform(*centre), axis=1)
    return out


def _split(rois: Sequence[Roi], config: Config) -> list[Roi]:
    """The ROIs with the splits of their blocks: squares of an equal-area projection."""
    side = config.series.block_m
    x, y = transformer("EPSG:4326", _EQUAL_AREA).transform(*_lonlat(rois).T)
    cells = np.stack([np.floor(x / side), np.floor(y / side)], axis=1)
    _, blocks = np.unique(cells, axis=0, return_inverse=True)
    return split_rois(rois, config.rois.split, config.seed, blocks.ravel())


def _near_later_split(rois: Sequence[Roi], buffer_m: float) -> list[int]:
    """Positions of ROIs of train or val that are nearer than `buffer_m` to one of a later split."""
    lon, lat = np.radians(_lonlat(rois)).T
    xyz = _EARTH_M * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    order = np.array([SPLITS.index(roi.split) for roi in rois])
    near = np.zeros(len(rois), bool)
    for number in (1, 2):
        earlier, later = np.flatnonzero(order < number), np.flatnonzero(order == number)
        if len(later) and len(earlier) and buffer_m:
            distance, _ = cKDTree(xyz[later]).query(xyz[earlier], distance_upper_bound=buffer_m)
            near[earlier] |= np.isfinite(distance)
    return [int(i) for i in np.flatnonzero(near)]


def _check_counts(counts: Mapping[str, int], split: str, config: Config) -> None:
    shares = config.rois.split
    wanted = (split,) if split else ("train", *(n for n in ("val", "test") if getattr(shares, n) > 0))
    if empty := [name for name in wanted if not counts.get(name)]:
        raise InputError(
            f"{' and '.join(empty)} would have no sample (blocks of {config.series.block_m:g} m, "
            f"{shares.buffer_m:g} m between splits). Lower series.block_m or rois.split.buffer_m, set "
            "rois.split.val or rois.split.test to 0, or give all samples one split: --split"
        )


def _write(
    series: Series,
    chosen: IndexArray,
    labels: npt.NDArray[np.uint8],
    places: Sequence[tuple[Roi, Grid]],
    run: Run,
) -> dict[str, int]:
    """Write the shards; their number by split."""
    config = run.config
    identity = {"kind": "point series", "s1_quantity": config.series.s1_quantity}
    # The label of a point is its truth, so figures need not spare the land around it.
    bands: dict[str, Any] = {"s2_bands": series.s2_bands, "s1_bands": series.s1_bands, "has_truth": True}
    metadata = replace(part_metadata(config, identity, {"classes", "window", "series"}, **bands), size=1)
    rows = []
    for i, label, (roi, extent) in zip(chosen.tolist(), labels.tolist(), places, strict=True):
        s2, s1 = series.s2_nct[i, :, :, None, None], series.s1_nct[i, :, :, None, None]
        label_hw = np.full((1, 1), label, np.uint8)
        patch = Patch(roi.roi_id, 0, 0, s2, s1, label_hw, label_hw)
        rows.append(encode_patch(patch, roi, extent, _periods(config.window, int(roi.season))))
    rows.sort(key=lambda row: plan_order(config.seed, row["sample_id"]))
    written, size = {}, config.shards.row_group_samples
    for name in SPLITS:
        own = [row for row in rows if row["split"] == name]
        bounds = np.linspace(0, len(own), -(-len(own) // config.shards.shard_samples) + 1).astype(int)
        for index, (first, end) in enumerate(pairwise(bounds.tolist())):
            groups = (to_table(own[k : min(k + size, end)], metadata) for k in range(first, end, size))
            write_shard(run.folder, shard_name(name, index), metadata, groups, codec=config.shards.codec)
            written[name] = index + 1
    return written


def _periods(window: WindowConfig, year: int) -> tuple[Period, ...]:
    """The months of the window in a year."""
    assert window.as_of is not None
    last = pd.Timestamp(year, window.as_of.month, 1) + pd.offsets.MonthEnd(0)
    return periods_for(window.model_copy(update={"as_of": last.date()}), None)

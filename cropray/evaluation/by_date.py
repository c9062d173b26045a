"""Scores as of several dates of a season, from one checkpoint: how early the crops are told apart.

A network of any date sees the months that are over on a date. Baselines are fitted anew for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from cropray.config.rois import WindowConfig
from cropray.errors import InputError
from cropray.evaluation.classifiers import Classifier, Network
from cropray.evaluation.metrics import Counts, Scope, score_table
from cropray.evaluation.reliability import Reliability
from cropray.models.checkpoint import Checkpoint
from cropray.models.decision import confidence
from cropray.rois.calendar import season_so_far
from cropray.types import UNLABELLED, ByteArray, FloatArray, Precision, Roi

NETWORK = "network"
_MOST_LEADS = 6


def months_as_of(checkpoint: Checkpoint, dates: Sequence[date]) -> dict[str, int]:
    """By date (ISO), in order: the months that are over then, in the season of each sample.

    Raises InputError for a network of one date, and for dates that it does not serve.
    """
    if dates and not checkpoint.any_date:
        raise InputError(
            "evaluate.as_of needs a model that serves any date of its window: any_date in training"
        )
    window, fewest = WindowConfig.model_validate(checkpoint.window), checkpoint.recipe.get("min_months", 1)
    return {day.isoformat(): len(season_so_far(window, day, fewest)) for day in sorted(set(dates))}


def dated(name: str, day: str) -> str:
    return f"{name} as of {day}"


def dated_classifiers(
    checkpoint: Checkpoint,
    months: Mapping[str, int],
    baselines: Mapping[str, Mapping[int, Classifier]],
    precision: Precision,
) -> dict[str, Classifier]:
    """The network and the baselines as of each date, by `dated` name, date by date."""
    found: dict[str, Classifier] = {}
    for day, seen in months.items():
        found[dated(NETWORK, day)] = Network(checkpoint, seen, precision)
        found |= {dated(name, day): versions[seen] for name, versions in baselines.items()}
    return found


@dataclass
class DecidedLand:
    """From which date on a pixel's class stays to the end of the dates, with at least this confidence."""

    dates: Sequence[str]
    least: float
    pixels: int = 0
    _maps: list[tuple[ByteArray, FloatArray]] = field(default_factory=list)
    _decided: list[int] = field(default_factory=list)
    _right: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decided, self._right = [0] * len(self.dates), [0] * len(self.dates)

    def add(self, truth_hw: ByteArray, values_khw: FloatArray, map_hw: ByteArray) -> None:
        """A tile as of the next date; after the last one, the pixels of known truth are counted."""
        self._maps.append((map_hw, confidence(values_khw, map_hw)))
        if len(self._maps) < len(self.dates):
            return
        known = truth_hw != UNLABELLED
        last_hw = self._maps[-1][0]
        stays = np.ones(last_hw.shape, np.bool_)
        for number in reversed(range(len(self.dates))):
            class_hw, confidence_hw = self._maps[number]
            stays &= (class_hw == last_hw) & (confidence_hw >= self.least)
            self._decided[number] += int((stays & known).sum())
            self._right[number] += int((stays & known & (last_hw == truth_hw)).sum())
        self.pixels += int(known.sum())
        self._maps.clear()

    def table(self) -> dict[str, Any] | None:
        """Share of the land that is decided by each date, and how much of it is right; None without any."""
        if not self.pixels:
            return None
        rows = zip(self.dates, self._decided, self._right, strict=True)
        return {
            "confidence": self.least,
            "dates": [
                {"date": day, "share": n / self.pixels, "accuracy": right / n if n else None}
                for day, n, right in rows
            ],
        }


def rows_by_date(
    scope: Scope,
    classes: Sequence[str],
    counts: Mapping[str, Counts],
    months: Mapping[str, int],
    reliability: Mapping[str, Reliability],
    *,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One row a date (`by_as_of` of evaluation.json), from confusions by `dated` name."""
    rows = []
    for day, seen in months.items():
        suffix = dated("", day)
        mine = {name.removesuffix(suffix): c for name, c in counts.items() if name.endswith(suffix)}
        found = score_table(scope, classes, mine, draws=draws, seed=seed)
        network = found["methods"].pop(NETWORK)
        rows.append(
            {
                "date": day,
                "months": seen,
                found["score"]: network["score"],
                "interval": network["interval"],
                **reliability[dated(NETWORK, day)].figures,
                "per_class": network["per_class"],
                "confusion": network["confusion"],
                "baselines": {
                    name: {found["score"]: row["score"], "per_class": row["per_class"]}
                    for name, row in found["methods"].items()
                },
            }
        )
    return rows


def by_lead(rows: Sequence[Mapping[str, Any]], rois: Sequence[Roi]) -> list[dict[str, Any]]:
    """F1 (or recall) of each crop by whole months before its own harvest, the median start over the ROIs.

    Of the dates within a month, the last one counts. A crop without a known harvest is left out.
    """
    starts: dict[str, list[int]] = {}
    for roi in rois:
        if roi.harvest_start is not None:
            starts.setdefault(roi.crop, []).append(roi.harvest_start.timetuple().tm_yday)
    table = []
    for lead in range(_MOST_LEADS + 1):
        reached: dict[str, float | None] = {}
        for row in rows:
            figures = {entry["class"]: entry.get("f1", entry.get("recall")) for entry in row["per_class"]}
            for crop, days in starts.items():
                if _months_until(date.fromisoformat(row["date"]), float(np.median(days))) == lead:
                    reached[crop] = figures.get(crop)
        known = [value for value in reached.values() if value is not None]
        if known:
            table.append({"months": lead, "mean": float(np.mean(known)), "per_class": reached})
    return table


def _months_until(as_of: date, harvest_day: float) -> int:
    """Whole months from the end of a day to the next time of this day of the year."""
    end = pd.Timestamp(as_of) + pd.Timedelta(days=1)
    harvests = (
        pd.Timestamp(year, 1, 1) + pd.Timedelta(days=round(harvest_day) - 1)
        for year in (end.year, end.year + 1)
    )
    harvest = next(day for day in harvests if day >= end)
    return max(months for months in range(13) if end + pd.DateOffset(months=months) <= harvest)

"""What the satellites saw of a map, month by month and pass by pass."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from cropray.maps.finished import FinishedMap
from cropray.maps.mosaic import MONTHS
from cropray.maps.observed import SCENES_TABLE
from cropray.rasters import read_reduced
from cropray.types import Period

_PIXELS = 768  # a side of the true colour that is read
_ENOUGH = 0.95  # of a map, seen clearly in a month: less is a gap


@dataclass(frozen=True)
class Pass:
    """An acquisition: where it lies in the whole time (0..1), and its clear share of the imagery."""

    sensor: str
    when: datetime
    orbit: str
    clear: float
    place: float


@dataclass(frozen=True)
class Month:
    """A month of the window, its place and length in the whole time, and what was seen in it.

    `clear` is the share of the map that Sentinel-2 saw without cloud, None if it is unknown.
    """

    first: date
    last: date
    place: float
    width: float
    clear: float | None
    optical: int
    radar: int

    @property
    def has_gap(self) -> bool:
        return self.clear is not None and self.clear < _ENOUGH


@dataclass(frozen=True)
class Seen:
    months: tuple[Month, ...]
    passes: tuple[Pass, ...]  # empty if the source does not know them

    @property
    def worst(self) -> Month | None:
        """The month with the largest gap."""
        gaps = [month for month in self.months if month.has_gap]
        return min(gaps, key=lambda month: month.clear or 0.0) if gaps else None


def read_seen(source: FinishedMap, periods: Sequence[Period]) -> Seen:
    """From the scenes.csv and the true colour of a map.

    The clear share of a month is that of the land that was ever seen.
    """
    folder, colour = source.folder, source.directory / MONTHS
    shares: list[float | None] = [None] * len(periods)
    if colour.exists():
        values_xhw, _ = read_reduced(str(colour), _PIXELS)
        seen_thw = values_xhw[::3] > 0
        ever_hw = seen_thw.any(axis=0)
        if ever_hw.any():
            shares = [float(seen_hw[ever_hw].mean()) for seen_hw in seen_thw]
    start, end = periods[0].start, periods[-1].end
    days = (end - start).days
    passes = []
    if folder.exists(SCENES_TABLE):
        for row in csv.DictReader(folder.read_text(SCENES_TABLE).splitlines()):
            when = datetime.fromisoformat(row["time"])
            place = ((when.date() - start).days + 0.5) / days
            passes.append(Pass(row["sensor"], when, row["orbit"], float(row["clear_share"]), place))
    months = []
    for index, period in enumerate(periods):
        within = [each for each in passes if each.when in period]
        months.append(
            Month(
                period.start,
                period.end - timedelta(days=1),
                (period.start - start).days / days,
                (period.end - period.start).days / days,
                shares[index],
                sum(each.sensor == "s2" for each in within),
                sum(each.sensor == "s1" for each in within),
            )
        )
    return Seen(tuple(months), tuple(passes))

"""Tables of the simulation. They are text files in `data/`, which also state their sources."""

from __future__ import annotations

from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from cropray.types import DoubleArray


def read_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(_text(name))
    return content


@cache
def read_csv(name: str) -> npt.NDArray[Any]:
    """A structured array with one record a row and the columns as fields."""
    lines = [line for line in _text(name).splitlines() if not line.startswith("#")]
    return np.genfromtxt(lines, delimiter=",", names=True, dtype=None, autostrip=True, encoding="utf-8")


def _text(name: str) -> str:
    return files("cropray.simulation").joinpath("data", name).read_text(encoding="utf-8")


_FILE = read_yaml("lands.yaml")
ARABLE_SHARE: float = _FILE["arable_share"]
LANDS: tuple[str, ...] = tuple(_FILE["lands"])
"""Everything that land can be. A land is an index into this."""
CALENDAR: dict[str, list[str]] = {
    name: land["calendar"] for name, land in _FILE["lands"].items() if "calendar" in land
}
"""By crop: first and last day of planting, first and last day of harvest, as "month-day"."""
CROPS: tuple[str, ...] = tuple(CALENDAR)


@cache
def land_values(key: str) -> npt.NDArray[Any]:
    """The values (L, ...) of a key of lands.yaml, in the order of LANDS."""
    return np.array([(_FILE["defaults"] | _FILE["lands"][name])[key] for name in LANDS])


@cache
def spectrum(kind: str, name: str) -> DoubleArray:
    """A row (C,) of spectra.csv; C are the ten bands in the order of `bands.S2_BANDS`."""
    table = read_csv("spectra.csv")
    (row,) = table[(table["kind"] == kind) & (table["name"] == name)]
    return np.array(row.tolist()[2:])


def monthly(column: str, day: date) -> float:
    """A column of months.csv on a day, interpolated between the middles of the months."""
    values = read_csv("months.csv")[column]
    year_part = (day - date(day.year, 1, 1)).days / 365.25
    return float(np.interp(year_part, (np.arange(-1, 13) + 0.5) / 12, [values[-1], *values, values[0]]))

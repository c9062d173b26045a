"""The hectares of a map as a page tells them: by class and by unit, with intervals where there are any."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from cropray.figures.crops import NONE_OF_THEM, by_area, class_names, colour_table, hexadecimal
from cropray.maps.tables import AREAS_TABLE, COUNT, WHOLE
from cropray.storage import Folder


@dataclass(frozen=True)
class Row:
    """A class in a unit. Without an estimate, the last three are None."""

    name: str
    colour: str
    mapped: float
    share: float  # of what is mapped in the unit
    estimate: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def best(self) -> float:
        """The estimate, or else the mapped hectares."""
        return self.mapped if self.estimate is None else self.estimate


@dataclass(frozen=True)
class Unit:
    """A unit, or the whole map, with its classes from the largest to the smallest; none of them is last."""

    name: str
    rows: tuple[Row, ...]
    reference: int | None  # checked points

    @property
    def crops(self) -> tuple[Row, ...]:
        """The crops that occur."""
        return tuple(row for row in self.rows if row.name != NONE_OF_THEM and row.best > 0)

    @property
    def mapped(self) -> float:
        return sum(row.mapped for row in self.rows)

    @property
    def under_crops(self) -> float:
        return sum(row.best for row in self.crops)


@dataclass(frozen=True)
class Hectares:
    """`method` is that of the estimates, empty without any."""

    whole: Unit
    units: tuple[Unit, ...]
    method: str

    @property
    def by_sample(self) -> bool:
        """Whether checked points of this land, and not of the model's sites, give the estimates."""
        return bool(self.method) and not self.method.startswith("model-assisted")


def read_hectares(folder: Folder, classes: Sequence[str]) -> Hectares:
    """The areas.csv of a map."""
    table = list(csv.DictReader(folder.read_text(AREAS_TABLE).splitlines()))
    names = list(dict.fromkeys(row["unit"] for row in table))
    whole, *units = (_unit(name, [row for row in table if row["unit"] == name], classes) for name in names)
    methods = {row["method"] for row in table if row["unit"] == WHOLE} - {COUNT}
    return Hectares(whole, tuple(units), next(iter(methods), ""))


def _unit(name: str, table: Sequence[dict[str, str]], classes: Sequence[str]) -> Unit:
    colours = colour_table(classes)
    colour_of = {label: hexadecimal(colours[value]) for value, label in class_names(classes).items()}
    total = sum(float(row["mapped_ha"]) for row in table)
    found = {}
    for row in table:
        mapped = float(row["mapped_ha"])
        figures = [_number(row[key]) for key in ("estimate_ha", "ci95_low", "ci95_high")]
        share = mapped / total if total else 0.0
        found[row["class"]] = Row(row["class"], colour_of[row["class"]], mapped, share, *figures)
    order = by_area([*found], {label: row.best for label, row in found.items()})
    reference = table[0]["n_reference"]
    return Unit(name, tuple(found[label] for label in order), int(reference) if reference else None)


def _number(text: str) -> float | None:
    return float(text) if text else None

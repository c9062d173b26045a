"""The tables of a map: hectares, accuracy and confusion as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np

from cropray.maps.estimation import Estimate
from cropray.types import BoolArray, DoubleArray, IndexArray

AREAS_TABLE = "areas.csv"
ACCURACY_TABLE = "accuracy.csv"
CONFUSION_TABLE = "confusion.csv"
WHOLE = "all"
"""The name of the whole map among its units."""

COUNT = "pixel count"
"""Method of a row without an estimate: the hectares of the pixels that are mapped as the class."""

_AREAS_HEAD = (
    *("unit", "class", "mapped_ha", "estimate_ha", "se_ha", "ci95_low", "ci95_high"),
    *("method", "n_reference"),
)
_ACCURACY_HEAD = ("measure", "class", "estimate", "se", "ci95_low", "ci95_high", "n_reference")


def areas_csv(
    units: Sequence[str],
    names: Sequence[str],
    mapped_uk: DoubleArray,
    *,
    method: str = COUNT,
    estimate: Estimate | None = None,
    enough_uk: BoolArray | None = None,
    points_u: IndexArray | None = None,
) -> str:
    """Hectares of each class in each unit, without an estimate where too few pixels were checked."""
    rows = []
    for u, unit in enumerate(units):
        for k, name in enumerate(names):
            figures: list[str] = [""] * 4
            told = estimate is not None and (enough_uk is None or bool(enough_uk[u, k]))
            if estimate is not None and told:
                parts = (estimate.value, estimate.se, estimate.low, estimate.high)
                figures = [_number(part[u, k], 2) for part in parts]
            points = "" if points_u is None else int(points_u[u])
            chosen = method if told else COUNT
            rows.append([unit, name, _number(mapped_uk[u, k], 2), *figures, chosen, points])
    return _csv(_AREAS_HEAD, rows)


def accuracy_csv(names: Sequence[str], accuracy: dict[str, Estimate], points: dict[str, IndexArray]) -> str:
    """Overall, users' and producers' accuracy, each in 0..1; blank where a class has no checked pixel."""
    rows = []
    for measure, found in accuracy.items():
        for k in range(len(found.value)):
            name = names[k] if len(found.value) > 1 else WHOLE
            parts = (found.value, found.se, found.low, found.high)
            figures = [_number(part[k], 4) for part in parts]
            rows.append([measure, name, *figures, int(points[measure][k])])
    return _csv(_ACCURACY_HEAD, rows)


def confusion_csv(names: Sequence[str], hectares_kk: DoubleArray, points_kk: IndexArray) -> str:
    """Checked pixels, and the hectares and share of the land they stand for, by mapped and true class."""
    shares_kk = hectares_kk / hectares_kk.sum()
    rows = [
        [mapped, true, int(points_kk[i, j]), _number(hectares_kk[i, j], 2), _number(shares_kk[i, j], 6)]
        for i, mapped in enumerate(names)
        for j, true in enumerate(names)
    ]
    return _csv(("mapped", "reference", "n_reference", "estimate_ha", "share"), rows)


def plain(name: str) -> str:
    """A name of a crop without differences of case, spaces and _."""
    return name.strip().casefold().replace("_", " ")


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(head)
    table.writerows(rows)
    return buffer.getvalue()


def counts(*values_n: IndexArray, n_classes: int) -> IndexArray:
    """How often each class, or each pair of classes, occurs (K,) or (K, K)."""
    table = np.zeros((n_classes,) * len(values_n), np.intp)
    np.add.at(table, values_n, 1)
    return table

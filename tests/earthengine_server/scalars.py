"""Functions of numbers, strings, lists, dictionaries, dates and geometries."""

from __future__ import annotations

import math
import operator
from datetime import UTC, datetime, timedelta
from typing import Any

import shapely
from dateutil.relativedelta import relativedelta

from tests.earthengine_server.functions import function
from tests.earthengine_server.values import (
    Algorithm,
    Date,
    DateRange,
    ServiceError,
    geometry_in_world,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"year", "month", "week", "day", "hour", "minute", "second"}

for _name, _operate in {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": lambda a, b: a / b if b else 0,
    "min": lambda a, b: a if a < b else b,
    "max": lambda a, b: a if a > b else b,
    "mod": lambda a, b: math.fmod(a, b) if b else 0,
    "eq": lambda a, b: int(a == b),
    "neq": lambda a, b: int(a != b),
    "gt": lambda a, b: int(a > b),
    "gte": lambda a, b: int(a >= b),
    "lt": lambda a, b: int(a < b),
    "lte": lambda a, b: int(a <= b),
    "and": lambda a, b: int(bool(a) and bool(b)),
    "or": lambda a, b: int(bool(a) or bool(b)),
}.items():
    function(f"Number.{_name}")(_operate)


@function("Number.not")
def negated(value: float) -> int:
    return int(not value)


@function("Number.round")
def rounded(value: float) -> int:
    return math.floor(value + 0.5)


@function("Number.floor")
def floored(value: float) -> int:
    return math.floor(value)


@function("Number.format")
def formatted(value: float, pattern: str | None) -> str:
    """Of printf's patterns those of whole numbers, which take no others (assumed, as in Java)."""
    if pattern != "%d" or not isinstance(value, int):
        raise ServiceError(f"Number.format: {value!r} by {pattern!r} is not evaluated by this server.")
    return str(value)


@function("Number.toInt", "Number.int")
def whole(value: float) -> int:
    return int(value)


@function("String")
def string(value: Any) -> str:
    return str(value)


@function("String.cat")
def joined(one: str, two: str) -> str:
    return one + two


@function("String.slice")
def sliced(text: str, start: float, end: float | None) -> str:
    return text[int(start) : None if end is None else int(end)]


@function("If")
def choose(condition: Any, yes: Any, no: Any) -> Any:
    """True is what is neither null, false, 0 nor the empty string."""
    return yes if condition not in (None, False, 0, "") else no


@function("List.get")
def list_get(values: list[Any], index: float) -> Any:
    return values[int(index)]


@function("List.map")
def list_map(values: list[Any], algorithm: Algorithm, drop_nulls: bool) -> list[Any]:
    mapped = [algorithm.apply(value) for value in values]
    return [value for value in mapped if value is not None] if drop_nulls else mapped


@function("List.iterate")
def list_iterate(values: list[Any], algorithm: Algorithm, first: Any) -> Any:
    for value in values:
        first = algorithm.apply(value, first)
    return first


@function("List.distinct")
def list_distinct(values: list[Any]) -> list[Any]:
    return list({repr(value): value for value in values}.values())


@function("List.sort")
def list_sort(values: list[Any], keys: list[Any] | None) -> list[Any]:
    """By the keys, where there are some. The sort is stable."""
    if keys is None:
        return sorted(values)
    return [value for _, value in sorted(zip(keys, values, strict=True), key=lambda pair: pair[0])]


@function("List.join")
def list_join(values: list[Any], separator: str | None) -> str:
    return (separator or "").join(map(str, values))


@function("List.cat")
def list_cat(one: list[Any], two: list[Any]) -> list[Any]:
    return [*one, *two]


@function("List.add")
def list_add(values: list[Any], value: Any) -> list[Any]:
    return [*values, value]


@function("List.contains")
def list_contains(values: list[Any], value: Any) -> bool:
    return value in values


@function("List.size", "List.length")
def list_size(values: list[Any]) -> int:
    return len(values)


@function("List.reverse")
def list_reverse(values: list[Any]) -> list[Any]:
    return values[::-1]


@function("List.indexOf")
def list_index(values: list[Any], value: Any) -> int:
    return values.index(value) if value in values else -1


@function("List.sequence")
def list_sequence(start: float, end: float | None, step: float, count: int | None) -> list[float]:
    if count is None and end is not None:
        count = math.floor((end - start) / step) + 1
    return [start + i * step for i in range(int(count or 0))]


@function("Dictionary.get")
def dictionary_get(values: dict[str, Any], key: str, default: Any) -> Any:
    return values.get(key, default)


@function("Date")
def date(value: Any) -> Date:
    """Of milliseconds, or of ISO text in UTC."""
    if isinstance(value, str):
        when = datetime.fromisoformat(value)
        return _millis(when.replace(tzinfo=UTC) if when.tzinfo is None else when)
    return value if isinstance(value, Date) else Date(float(value))


@function("Date.millis")
def date_millis(when: Any) -> float:
    return date(when).millis


@function("Date.advance")
def date_advance(when: Any, delta: float, unit: str) -> Date:
    unit = unit.rstrip("s")
    if unit not in _UNITS or (unit in ("year", "month") and delta % 1):
        raise ServiceError(f"Date.advance: {delta} {unit} is not evaluated by this server.")
    step = relativedelta(**{f"{unit}s": int(delta) if unit in ("year", "month") else delta})
    return _millis(_EPOCH + timedelta(milliseconds=date(when).millis) + step)


@function("DateRange")
def date_range(start: Any, end: Any) -> DateRange:
    """Without an end: one millisecond."""
    first = date(start)
    last = Date(first.millis + 1) if end is None else date(end)
    if last <= first:
        raise ServiceError("DateRange: Empty date ranges not supported for the current operation.")
    return DateRange(first, last)


def _millis(when: datetime) -> Date:
    return Date((when - _EPOCH) / timedelta(milliseconds=1))


@function("GeometryConstructors.Polygon")
def polygon(coordinates: list[Any], crs: Any, geodesic: bool | None) -> shapely.Geometry:
    """Rings of [x, y], or flat. Geodesic edges are taken as straight in longitude and latitude: the
    outlines of this project are dense enough for that not to matter.
    """
    rings = coordinates if isinstance(coordinates[0], list) else [coordinates]
    shell, *holes = (_ring(ring) for ring in rings)
    return geometry_in_world(shapely.Polygon(shell, holes), crs or "EPSG:4326")


@function("GeometryConstructors.Rectangle")
def rectangle(coordinates: list[Any], crs: Any, geodesic: bool | None) -> shapely.Geometry:
    """Geodesic edges as in `polygon`."""
    corners = _ring(coordinates)
    (x0, y0), (x1, y1) = corners[0], corners[-1]
    return geometry_in_world(shapely.box(x0, y0, x1, y1), crs or "EPSG:4326")


@function("GeometryConstructors.BBox")
def bbox(west: float, south: float, east: float, north: float) -> shapely.Geometry:
    return geometry_in_world(shapely.box(west, south, east, north), "EPSG:4326")


@function("Projection")
def projection(crs: str) -> str:
    return crs


def _ring(coordinates: list[Any]) -> list[tuple[float, float]]:
    if isinstance(coordinates[0], list):
        return [(x, y) for x, y in coordinates]
    return list(zip(coordinates[::2], coordinates[1::2], strict=True))

"""Filters: a field of an element, or a value, on either side of a comparison."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import shapely

from tests.earthengine_server.functions import function
from tests.earthengine_server.values import Date, DateRange, Filter, Image, related

_GEOMETRY_FIELDS = (".all", ".geo")


def _field(element: Any, name: str) -> Any:
    if name in _GEOMETRY_FIELDS:
        return element.geometry
    return element.properties.get(name)


def _compared(compare: Callable[[Any, Any], bool]) -> Callable[..., Filter]:
    """The filter of a comparison; an element that lacks a field does not pass."""

    def body(left_field: str | None, right: Any, right_field: str | None, left: Any) -> Filter:
        def passes(element: Any) -> bool:
            a = left if left_field is None else _field(element, left_field)
            b = right if right_field is None else _field(element, right_field)
            return a is not None and b is not None and compare(a, b)

        return passes

    return body


def shape_of(value: Any) -> shapely.Geometry:
    return value.geometry if isinstance(value, Image) else value


def _in_range(dates: DateRange, when: Any) -> bool:
    millis = when.millis if isinstance(when, Date) else when
    return dates.start.millis <= millis < dates.end.millis


for _names, _compare in {
    ("equals", "eq"): operator.eq,
    ("notEquals", "neq"): operator.ne,
    ("greaterThan", "gt"): operator.gt,
    ("greaterThanOrEquals", "gte"): operator.ge,
    ("lessThan", "lt"): operator.lt,
    ("lessThanOrEquals", "lte"): operator.le,
    ("listContains",): lambda values, value: value in values,
    ("inList",): lambda value, values: value in values,
    ("stringContains",): lambda text, part: part in text,
    ("dateRangeContains",): _in_range,
    ("intersects",): lambda a, b: related(shapely.intersects, shape_of(a), shape_of(b)),
    ("contains",): lambda a, b: related(shapely.covers, shape_of(a), shape_of(b)),
    ("isContained",): lambda a, b: related(shapely.covers, shape_of(b), shape_of(a)),
}.items():
    function(*(f"Filter.{_name}" for _name in _names))(_compared(_compare))


@function("Filter.and")
def all_of(filters: list[Filter]) -> Filter:
    return lambda element: all(passes(element) for passes in filters)


@function("Filter.or")
def any_of(filters: list[Filter]) -> Filter:
    return lambda element: any(passes(element) for passes in filters)


@function("Filter.not")
def none_of(passes: Filter) -> Filter:
    return lambda element: not passes(element)

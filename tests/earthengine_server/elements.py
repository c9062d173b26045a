"""Functions of collections and of the properties of their elements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import shapely

from tests.earthengine_server.functions import function
from tests.earthengine_server.values import Algorithm, Collection, Filter, Image, ServiceError, related


@function("Collection.filter")
def filtered(collection: Collection, passes: Filter) -> Collection:
    return replace(collection, elements=tuple(filter(passes, collection.elements)))


@function("Collection.map")
def mapped(collection: Collection, algorithm: Algorithm, drop_nulls: bool) -> Collection:
    """An element keeps its index, whatever the function makes of it."""
    elements = []
    for element in collection.elements:
        result = algorithm.apply(element)
        if result is None and drop_nulls:
            continue
        if not isinstance(result, Image):
            raise ServiceError("Collection.map: A mapped algorithm must return a Feature or Image.")
        index = element.properties.get("system:index")
        elements.append(replace(result, properties={**result.properties, "system:index": index}))
    return replace(collection, elements=tuple(elements))


@function("Collection.iterate")
def iterated(collection: Collection, algorithm: Algorithm, first: Any) -> Any:
    for element in collection.elements:
        first = algorithm.apply(element, first)
    return first


@function("Collection.limit")
def limited(collection: Collection, limit: int | None, key: str | None, ascending: bool | None) -> Collection:
    """The sort is stable, descending too."""
    elements = list(collection.elements)
    if key is not None:
        down = ascending is False
        elements = sorted(elements, key=lambda element: element.properties[key], reverse=down)
    return replace(collection, elements=tuple(elements[: None if limit is None else int(limit)]))


@function("Collection.distinct")
def distinct(collection: Collection, names: Any) -> Collection:
    """The first element of each value of the properties is kept."""
    names = [names] if isinstance(names, str) else names
    kept: dict[str, Image] = {}
    for element in collection.elements:
        kept.setdefault(repr([element.properties.get(name) for name in names]), element)
    return replace(collection, elements=tuple(kept.values()))


@function("Collection.merge", "ImageCollection.merge")
def merged(one: Collection, two: Collection) -> Collection:
    """Indices get a prefix that tells which collection an element came from."""
    return Collection(
        tuple(
            replace(e, properties={**e.properties, "system:index": f"{n}_{e.properties.get('system:index')}"})
            for n, collection in enumerate((one, two), start=1)
            for e in collection.elements
        )
    )


@function("ImageCollection.fromImages")
def from_images(images: list[Image]) -> Collection:
    return Collection(
        tuple(replace(e, properties={**e.properties, "system:index": str(i)}) for i, e in enumerate(images))
    )


@function("ImageCollection.toBands")
def to_bands(collection: Collection) -> Image:
    return Image(
        tuple(
            band.named(f"{image.properties['system:index']}_{band.name}")
            for image in collection.elements
            for band in image.bands
        )
    )


@function("Collection.size")
def size(collection: Collection) -> int:
    return len(collection.elements)


@function("Collection.first")
def first(collection: Collection) -> Image | None:
    return collection.elements[0] if collection.elements else None


@function("Collection.toList")
def to_list(collection: Collection, count: int, offset: float) -> list[Image]:
    return list(collection.elements[int(offset) : int(offset) + int(count)])


@function("Collection.geometry")
def geometry(collection: Collection) -> shapely.Geometry:
    return related(shapely.union_all, [e.geometry for e in collection.elements if e.geometry is not None])


@function("AggregateFeatureCollection.array")
def aggregate_array(collection: Collection, name: str) -> list[Any]:
    return [e.properties[name] for e in collection.elements if name in e.properties]


@function("AggregateFeatureCollection.count_distinct")
def aggregate_count_distinct(collection: Collection, name: str) -> int:
    return len(set(aggregate_array(collection, name)))


@function("Element.get")
def get(element: Image, name: str) -> Any:
    return element.properties.get(name)


@function("Element.getNumber")
def get_number(element: Image, name: str) -> float | None:
    value: float | None = element.properties.get(name)
    return value


@function("Element.set")
def set_property(element: Image, name: str, value: Any) -> Image:
    return element.with_properties({**element.properties, name: value})


@function("Element.setMulti")
def set_properties(element: Image, properties: dict[str, Any]) -> Image:
    return element.with_properties({**element.properties, **properties})


@function("Element.copyProperties", "Image.copyProperties")
def copy_properties(element: Image, source: Image, names: list[str] | None) -> Image:
    """Without names: all but those of the system."""
    if names is None:
        copied = {k: v for k, v in source.properties.items() if not k.startswith("system:")}
    else:
        copied = {name: source.properties[name] for name in names if name in source.properties}
    return element.with_properties({**element.properties, **copied})


@function("Feature")
def feature(shape: shapely.Geometry | None, properties: dict[str, Any] | None) -> Image:
    """A feature is an element without bands."""
    return Image((), properties or {}, shape)

"""Expressions: a table of nodes evaluated from its result, each node once in its scope.

https://developers.google.com/earth-engine/reference/rest/v1/Expression
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.earthengine_server import arithmetic, elements, filters, images, reducers, scalars
from tests.earthengine_server.catalogue import Catalogue
from tests.earthengine_server.functions import call
from tests.earthengine_server.values import Algorithm, ServiceError

assert all(
    (arithmetic, elements, filters, images, reducers, scalars)
)  # imported for the functions they register


@dataclass(frozen=True, eq=False)
class _Scope:
    """The arguments of a function being applied, and what was evaluated of its body so far."""

    arguments: dict[str, Any]
    parent: _Scope | None
    memo: dict[str, Any] = field(default_factory=dict)


class Graph:
    """One expression; its `load` functions read the catalogue."""

    def __init__(self, expression: dict[str, Any], catalogue: Catalogue) -> None:
        self._loaders: dict[str, Callable[[str], Any]] = {
            "ImageCollection.load": catalogue.collection,
            "Image.load": catalogue.image,
        }
        try:
            self._nodes, self._result = expression["values"], expression["result"]
        except (KeyError, TypeError) as error:
            raise ServiceError("Expression: wanted an object of 'values' and 'result'.") from error
        self._free: dict[str, frozenset[str]] = {}

    def value(self) -> Any:
        """The value of the result. Raises ServiceError."""
        return self._refer(self._result, _Scope({}, None))

    def _refer(self, key: str, scope: _Scope) -> Any:
        if key not in self._nodes:
            raise ServiceError(f"Expression: no value {key!r}.")
        # What does not hang on a scope's arguments is evaluated once outside of it.
        home = scope
        while home.parent is not None and not self._free_of(key) & home.arguments.keys():
            home = home.parent
        if key not in home.memo:
            home.memo[key] = self._evaluate(self._nodes[key], home)
        return home.memo[key]

    def _evaluate(self, node: dict[str, Any], scope: _Scope) -> Any:
        ((kind, content),) = node.items()
        match kind:
            case "constantValue":
                return content
            case "integerValue":
                return int(content)
            case "valueReference":
                return self._refer(content, scope)
            case "argumentReference":
                return _lookup(content, scope)
            case "arrayValue":
                return [self._evaluate(item, scope) for item in content.get("values", [])]
            case "dictionaryValue":
                return {k: self._evaluate(item, scope) for k, item in content.get("values", {}).items()}
            case "functionDefinitionValue":
                return self._definition(content, scope)
            case "functionInvocationValue":
                return self._invocation(content, scope)
        raise ServiceError(f"Expression: a node {kind!r} is not known.")

    def _definition(self, content: dict[str, Any], scope: _Scope) -> Algorithm:
        names = content["argumentNames"]

        def apply(*values: Any) -> Any:
            return self._refer(content["body"], _Scope(dict(zip(names, values, strict=True)), scope))

        return Algorithm(len(names), apply)

    def _invocation(self, content: dict[str, Any], scope: _Scope) -> Any:
        arguments = {k: self._evaluate(v, scope) for k, v in content.get("arguments", {}).items()}
        if "functionReference" in content:
            algorithm: Algorithm = self._refer(content["functionReference"], scope)
            return algorithm.apply(*arguments.values())
        name = content["functionName"]
        return call(name, arguments, self._loaders.get(name))

    def _free_of(self, key: str) -> frozenset[str]:
        """The arguments that a node needs from outside."""
        if key not in self._free:
            self._free[key] = frozenset()  # a cycle would be an error of the client
            self._free[key] = self._free_in(self._nodes[key])
        return self._free[key]

    def _free_in(self, node: Any) -> frozenset[str]:
        found: set[str] = set()
        for kind, content in node.items():
            if kind == "argumentReference":
                found.add(content)
            elif kind == "valueReference":
                found |= self._free_of(content)
            elif kind in ("arrayValue", "dictionaryValue"):
                values = content.get("values", [])
                for item in values.values() if isinstance(values, dict) else values:
                    found |= self._free_in(item)
            elif kind == "functionDefinitionValue":
                found |= self._free_of(content["body"]) - set(content["argumentNames"])
            elif kind == "functionInvocationValue":
                if "functionReference" in content:
                    found |= self._free_of(content["functionReference"])
                for item in content.get("arguments", {}).values():
                    found |= self._free_in(item)
        return frozenset(found)


def _lookup(name: str, scope: _Scope | None) -> Any:
    while scope is not None:
        if name in scope.arguments:
            return scope.arguments[name]
        scope = scope.parent
    raise ServiceError(f"Expression: no argument {name!r} in scope.")

"""The table of functions: signatures are the service's own, as the client ships them for its tests."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from tests.earthengine_server.values import ServiceError

_BODIES: dict[str, Callable[..., Any]] = {}


def function(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function's body under its names; it takes the arguments in the signature's order.

    An argument that the signature has and the body has not is an error where it is given.
    """

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name in signatures(), name
            assert name not in _BODIES, name
            _BODIES[name] = body
        return body

    return register


def call(name: str, arguments: Mapping[str, Any], body: Callable[..., Any] | None = None) -> Any:
    """The value of a function, of the table's body unless one is given.

    Raises ServiceError that names what is not known or not given.
    """
    if name not in signatures():
        raise ServiceError(f"No such function: {name!r}.")
    signature = signatures()[name]
    known = [argument["argumentName"] for argument in signature]
    for given in arguments:
        if given not in known:
            raise ServiceError(f"{name}: no argument {given!r}; it takes {', '.join(known) or 'none'}.")
    for argument in signature:
        if not argument.get("optional") and argument["argumentName"] not in arguments:
            raise ServiceError(f"{name}: required argument {argument['argumentName']!r} is missing.")
    body = body or _BODIES.get(name)
    if body is None:
        raise ServiceError(f"{name} is not evaluated by this server.")
    wanted = len(inspect.signature(body).parameters)
    for argument in known[wanted:]:
        if arguments.get(argument) is not None and not argument.startswith("maxError"):
            raise ServiceError(f"{name}: argument {argument!r} is not evaluated by this server.")
    values = [arguments.get(a["argumentName"], a.get("defaultValue")) for a in signature[:wanted]]
    try:
        return body(*values)
    except (TypeError, AttributeError, ValueError, IndexError, KeyError) as error:
        # As the service does with an argument of a wrong type; bodies check no types themselves.
        raise ServiceError(f"{name}: {type(error).__name__}: {error}") from error


@cache
def document(name: str) -> dict[str, Any]:
    """A JSON document out of the client's own tests."""
    text = files("ee").joinpath("tests", name).read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def signatures() -> dict[str, list[dict[str, Any]]]:
    algorithms = document("algorithms.json")["algorithms"]
    return {a["name"].removeprefix("algorithms/"): a.get("arguments", []) for a in algorithms}

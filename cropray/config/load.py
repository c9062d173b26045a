"""YAML files and dotted overrides to a checked configuration.

An unknown or mistyped key is an error that names the key and the nearest right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cropray.config import Config
from cropray.config.section import Section
from cropray.errors import InputError

# ValueError: what looks like a date and is none, 2022-13-01.
_UNREADABLE = (yaml.YAMLError, ValueError)

# What pydantic calls by the names of Python's types.
_WANTED = {
    "tuple_type": "wanted a list, [a, b]",
    "model_type": "wanted settings below it, key: value",
    "dict_type": "wanted settings below it, key: value",
    "string_type": "wanted text",
}


def updated(config: Config, overrides: Mapping[str, Any], where: str = "the overrides") -> Config:
    """A copy with values replaced by dotted key, checked anew. Raises InputError, by `where` they stand.

    What was not set is left out, so that defaults and values of a recipe follow the replaced ones.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    for key, value in overrides.items():
        _assign(data, key, value)
    return _validated(data, where)


def load_config(
    path: str | Path | None, settings: Collection[str] = (), *, base: Config | None = None
) -> Config:
    """The configuration of a YAML file with `a.b=c` settings on top (values are read as YAML).

    What neither of them sets is as in `base`, else as by default. Raises InputError for a missing or
    malformed file, an unknown key, or a value of a wrong type.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = _mapping(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    if base is not None:
        data = _laid_over(base, data)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting!r} is not of the form key.subkey=value")
        try:
            _assign(data, key.strip(), yaml.safe_load(value))
        except _UNREADABLE as error:
            raise InputError(f"--set {setting!r}: the value is not valid YAML: {error}") from error
    if path is None:
        return _validated(data, "the settings")
    return _validated(data, f"{path} and the settings over it" if settings else str(path))


def parse_config(text: bytes, where: str) -> Config:
    """The configuration that a YAML file holds; `where` it stands is for messages. Raises InputError."""
    return _validated(_mapping(text, where), where)


def _mapping(text: bytes, where: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(text) or {}
    except _UNREADABLE as error:
        raise InputError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{where} must hold a mapping of settings, got {type(loaded).__name__}")
    return loaded


def _laid_over(base: Section, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, with what it leaves out as in `base`. Mappings of a user's own keys are replaced whole."""
    merged = base.model_dump(mode="json")
    for name, value in given.items():
        below: Any = getattr(base, name, None)
        nested = isinstance(below, Section) and isinstance(value, dict)
        merged[name] = _laid_over(below, value) if nested else value
    return merged


def _assign(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b=c` or, in a list, `a.0.b=c`. Raises InputError for an entry that the list lacks."""
    here: Any = data
    *parents, last = dotted.split(".")
    for parent in parents:
        key = _entry(here, parent, dotted)
        if isinstance(here, dict) and not isinstance(here.get(key), dict | list):
            here[key] = {}
        here = here[key]
    here[_entry(here, last, dotted)] = value


def _entry(container: Any, part: str, dotted: str) -> Any:
    if not isinstance(container, list):
        return part
    if not part.isdecimal() or int(part) >= len(container):
        raise InputError(
            f"{dotted}: {part!r} is no entry of the list, which has {len(container)}, counted from 0"
        )
    return int(part)


def _validated(data: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = [_explained(dict(problem)) for problem in error.errors()]
        raise InputError(f"the configuration in {where} is not valid:\n" + "\n".join(problems)) from error


def _explained(problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(location)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.4)
        hint = (
            f"did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else f"known: {', '.join(known)}"
        )
        return f"  {key}: unknown key; {hint}"
    if problem["type"] == "value_error":  # of a check over several settings, whose text names them
        return f"  {key}: {problem['ctx']['error']}"
    return f"  {key}: {_WANTED.get(problem['type'], problem['msg'])}, got {problem['input']!r}"


def _keys_beside(location: list[str]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        if part not in model.model_fields:  # an index, or a key of a mapping
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return sorted(model.model_fields)

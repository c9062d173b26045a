"""YAML files and dotted overrides to a checked configuration, and what is wrong with one in plain words."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from cropray.config import Config
from cropray.config.section import Section, settings_of
from cropray.config.training import RECIPES
from cropray.errors import InputError

_ONE_READER = "one process feeds a worker's GPU with stored batches. Delete it"
REMOVED = {"finetune.processes": _ONE_READER, "pretrain.processes": _ONE_READER}
REMOVED["predict.probabilities"] = "set predict.scores"
"""Settings of earlier versions, and what to do instead. Records of older runs may still hold them."""

_YAML_ERRORS = (yaml.YAMLError, ValueError)  # ValueError: a date that does not exist, 2022-13-01


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML reads otherwise in silence: a key that stands twice, and numbers of other bases."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and counts[key.value] > 1:
                problem = f"the key {key.value!r} occurs twice; delete one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuses 0110 and 1:30, which YAML 1.1 takes for 72 and 90: codes and times need quotes."""
        number = super().construct_yaml_int(node)
        if ":" in node.value or re.fullmatch(r"[+-]?0[0-9_]+", node.value):
            problem = f"{node.value} is read as {number}; write '{node.value}' in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return int(number)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


# Better words for pydantic's names of Python's types.
_EXPECTED = {
    "tuple_type": "should be a list, [a, b]",
    "model_type": "should hold settings, key: value",
    "dict_type": "should hold settings, key: value",
    "string_type": "should be text",
}


def updated(config: Config, overrides: Mapping[str, Any], where: str = "the overrides") -> Config:
    """A checked copy with values replaced by dotted key. Raises InputError that names `where` they stand.

    Settings that were not set are left out, so defaults and values of a recipe follow the new ones.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    for key, value in overrides.items():
        _assign(data, key, value)
    return _validated(data, where)


def load_config(
    path: str | Path | None, settings: Collection[str] = (), *, base: Config | None = None
) -> Config:
    """The configuration of a YAML file, else of `base`, with `a.b=c` settings (values are YAML) over it.

    Other settings are the defaults. Raises InputError for a missing or malformed file and for all malformed
    overrides, unknown settings and unusable values at once.
    """
    data = {} if base is None else base.model_dump(mode="json", exclude_unset=True)
    if path is not None:
        try:
            data = _mapping(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    problems = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        try:
            if not equals or not key:
                raise InputError("expected the form key.subkey=value")
            _assign(data, key.strip(), _Loader(value).get_single_data() if value.strip() else "")
        except _YAML_ERRORS as error:
            kind = "" if isinstance(error, InputError) else "the value is not valid YAML: "
            problems.append(f"--set {setting}: {kind}{getattr(error, 'problem', error)}")
    given = [str(path)] * (path is not None) + ["--set"] * bool(settings)
    return _validated(data, " and ".join(given) or "the defaults", problems)


def parse_config(text: bytes, where: str) -> Config:
    """The configuration that a run wrote, without settings that were removed since. Raises InputError.

    A run writes all settings. Those with the value of their default or recipe count as not set.
    """
    data = _mapping(text, where)
    for key in REMOVED:
        section, _, name = key.rpartition(".")
        if isinstance(data.get(section), dict):
            data[section].pop(name, None)
    config = _validated(data, where)
    recipes = {stage: {"recipe": getattr(config, stage).recipe} for stage in next(iter(RECIPES.values()))}
    plain = Config.model_validate(recipes).model_dump(mode="json")
    given = _differences(config.model_dump(mode="json"), plain)
    return Config.model_validate({**given, **{s: recipe | given.get(s, {}) for s, recipe in recipes.items()}})


def _differences(data: dict[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `data` that differs from `plain`, mapping by mapping."""
    changed = {name: value for name, value in data.items() if value != plain.get(name)}
    for name, value in changed.items():
        if isinstance(value, dict) and isinstance(plain.get(name), dict):
            changed[name] = _differences(value, plain[name])
    return changed


def _mapping(text: bytes, where: str) -> dict[str, Any]:
    try:
        loaded = _Loader(text).get_single_data() or {}
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        reason = str(error) if mark is None else f"line {mark.line + 1}: {getattr(error, 'problem', '')}"
        raise InputError(f"{where} is not valid YAML: {reason}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{where} should hold settings, key: value, but holds a {type(loaded).__name__}")
    return loaded


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
        entries = f"its entries are 0 to {len(container) - 1}" if container else "it has no entries"
        raise InputError(f"{dotted}: the list has no entry {part}; {entries}")
    return int(part)


def _validated(data: dict[str, Any], where: str, problems: Sequence[str] = ()) -> Config:
    """The configuration. Raises InputError with these problems and those of its values."""
    cause = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems, cause = [*problems, *map(_format_problem, map(dict, error.errors()))], error
    if problems:
        lines = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        raise InputError(f"the configuration in {where} is not valid:\n{lines}") from cause
    return config


def _format_problem(problem: dict[str, Any]) -> str:
    unknown = problem["type"] == "extra_forbidden"
    parts, model = _located(problem["loc"], keep_last=unknown)
    key = ".".join(parts)
    if unknown:
        if key in REMOVED:
            return f"Setting {key} was removed: {REMOVED[key]}."
        return f"Unknown setting {key}. {_suggestion(parts, model)}"
    if problem["type"] == "value_error":  # a check of our own, whose text says it all
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"{key} is required"
    subject, should, rest = problem["msg"].partition(" should ")  # "Input should be greater than 0"
    expected = _EXPECTED.get(problem["type"]) or (f"should {rest}" if should else f"is not valid: {subject}")
    return f"{key} {expected.partition(', unable')[0]}, got {problem['input']!r}"


def _located(location: Sequence[str | int], *, keep_last: bool) -> tuple[list[str], type[Section]]:
    """The dotted key, in parts, at a place of pydantic's, and the section that should know it.

    What is neither a setting, an index nor a user's own key is the name of a union's option, and left out.
    """
    parts: list[str] = []
    model: type[Section] = Config
    in_mapping = False
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            options = [field.annotation, *get_args(field.annotation)]
            model = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), model)
            in_mapping = get_origin(field.annotation) is dict
        elif isinstance(part, str) and not in_mapping and not (keep_last and part is location[-1]):
            continue
        parts.append(str(part))
    return parts, model


def _suggestion(parts: Sequence[str], model: type[Section]) -> str:
    """The nearest setting by name; else one with all words in its description; else that name elsewhere."""
    *parents, wrong = parts
    known = {name: (field.description or "").lower() for name, field in model.model_fields.items()}
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.7)
    near += [name for name, text in known.items() if all(word in text for word in wrong.lower().split("_"))]
    found = [".".join([*parents, name]) for name in near[:1]]
    found = found or [one.key for one in settings_of(Config) if one.key.rpartition(".")[2] == wrong]
    return f"Did you mean {' or '.join(found)}?" if found else f"Known: {', '.join(sorted(known))}."

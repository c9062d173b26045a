"""The base of all sections of the configuration, and what a section says about its settings."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

from cropray.errors import check_name, check_no_password

Name = Annotated[str, AfterValidator(check_name)]
"""A name that becomes part of a path."""


class Section(BaseModel):
    """Frozen; an unknown key or a password is an error. A docstring below a field describes it for users."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _check_no_password(cls, value: Any) -> Any:
        for text in value.values() if isinstance(value, dict) else (value,):
            if isinstance(text, str):
                check_no_password(text)
        return value


@dataclass(frozen=True)
class Setting:
    """One setting for users. In `key`, N is an index of a list and NAME a key of the user's own."""

    key: str
    type: str
    default: str
    description: str


def settings_of(model: type[Section]) -> Iterator[Setting]:
    """All settings of a section and of the sections below it, in the order of their definition."""
    schema = model.model_json_schema()

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[Setting]:
        for name, field in node["properties"].items():
            below, path = _section_below(field, prefix + name)
            if below is None or path != prefix + name:  # a list or mapping of sections is a setting too
                default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""
                yield Setting(prefix + name, _type(field), default, field.get("description", ""))
            if below is not None:
                yield from walk(schema["$defs"][below], f"{path}.")

    return walk(schema, "")


def _section_below(field: Mapping[str, Any], path: str) -> tuple[str | None, str]:
    """The name of the section that a setting holds, None if it holds plain values; and where it is."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2], path
    if "items" in field:
        return _section_below(field["items"], f"{path}.N")
    if isinstance(field.get("additionalProperties"), dict):
        return _section_below(field["additionalProperties"], f"{path}.NAME")
    found = (_section_below(option, path) for option in field.get("anyOf", ()))
    return next((pair for pair in found if pair[0]), (None, path))


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"string": "text", "boolean": "true or false"}


def _type(field: Mapping[str, Any]) -> str:
    """The type of a setting in words, from its JSON schema."""
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return " | ".join(str(value) or '""' for value in field["enum"])
    if "prefixItems" in field:
        return f"[{', '.join(_type(item) for item in field['prefixItems'])}]"
    kind = field.get("type", "settings" if "$ref" in field else "any value")
    if kind == "array":
        return f"[{_type(field['items'])}, …]"
    if kind == "object":
        inner = field["additionalProperties"]  # True: of any value
        return f"{{name: {'any value' if inner is True else _type(inner)}}}"
    bounds = [f"{sign} {field[name]}" for name, sign in _BOUNDS.items() if name in field]
    return ", ".join([field.get("format") or _TYPES.get(kind, kind), *bounds])


def commented_yaml(section: Section, indent: str = "") -> str:
    """A section as YAML, with the description of each setting and section above it."""
    lines = []
    data = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        nested = isinstance(value, Section)
        text = field.description or inspect.cleandoc(type(value).__doc__ or "")
        lines += textwrap.wrap(text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if nested:
            lines += [f"{indent}{name}:", commented_yaml(value, f"{indent}  ")]
        else:
            dumped = yaml.safe_dump({name: data[name]}, sort_keys=False, allow_unicode=True)
            lines.append(textwrap.indent(dumped, indent).rstrip())
    return "\n".join(lines)

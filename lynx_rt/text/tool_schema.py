"""Makes JSON schemas of Python functions for `tools`, like transformers: from type hints and a docstring in Google's style."""

from __future__ import annotations

import contextlib
import enum
import inspect
import json
import re
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lynx_rt.errors import ValidationError, shown

_TYPE_NAMES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_SCALARS = (int, float, str, bool, type(None))
_SECTION = re.compile(r"\s*(Args|Returns|Raises):.*")
_ARGUMENT = re.compile(r"([ \t]*)(\w+)\s*(?:\([^)]*\))?:\s*(.*)")  # "name: text" or "name (type): text"
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def schema_of_function(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Returns {"type": "function", "function": {"name", "description", "parameters"[, "return"]}}.

    name: of the function in error texts.  Every argument needs a type hint and an entry under "Args:"; an entry may end in
    (choices: [...]), a JSON list. Raises ValidationError that names the argument.
    """
    name = f"{name} ({function.__name__})"
    doc = inspect.getdoc(function)
    if not doc or not doc.strip():
        raise ValidationError(f"{name} has no docstring, which would say what it does", "tools")
    description, texts, returns = _read_docstring(doc.strip())
    try:
        hints = get_type_hints(function)
    except Exception as error:  # a hint may be any expression
        raise ValidationError(f"{name}: its type hints cannot be read: {error}", "tools") from None
    properties: dict[str, Any] = {}
    required: list[str] = []
    for place, (argument, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if argument not in hints:
            if place == 0 and argument in ("self", "cls"):
                continue
            raise ValidationError(f"{name}: its argument {argument!r} has no type hint", "tools")
        if argument not in texts:
            raise ValidationError(
                f"{name}: its docstring has no entry for the argument {argument!r} under Args:", "tools"
            )
        schema = _schema_of_type(hints[argument], f"{name}: its argument {argument!r}")
        properties[argument] = _described(schema, texts[argument], f"{name}: its argument {argument!r}")
        if parameter.default is inspect.Parameter.empty:
            required.append(argument)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    result: dict[str, Any] = {"name": function.__name__, "description": description, "parameters": parameters}
    if "return" in hints:
        with contextlib.suppress(ValidationError):  # a model does not write the result, so it may be of any type
            result["return"] = _schema_of_type(hints["return"], name) | ({"description": returns} if returns else {})
    return {"type": "function", "function": result}


def _described(schema: dict[str, Any], text: str, name: str) -> dict[str, Any]:
    if (choices := _CHOICES.search(text)) is not None:
        try:
            values = json.loads(choices.group(1))
        except ValueError:
            values = None
        if not isinstance(values, list):
            raise ValidationError(f"{name}: its choices must be a JSON list, got {shown(choices.group(1))}", "tools")
        schema = schema | {"enum": [value.strip() if isinstance(value, str) else value for value in values]}
        text = text[: choices.start()].strip()
    return schema | {"description": text}


def _schema_of_type(hint: Any, name: str) -> dict[str, Any]:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return {}
    if kind is Literal:
        return _enumerated(list(args), name)
    if kind in (Union, types.UnionType):
        return _union([_schema_of_type(arg, name) for arg in args if arg is not type(None)], type(None) in args)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enumerated([member.value for member in kind], name)
    if not args and isinstance(kind, type) and kind in _TYPE_NAMES:
        return {"type": _TYPE_NAMES[kind]}
    if kind is list:
        return {"type": "array", "items": _schema_of_type(args[0], name)}
    if kind is tuple and len(args) > 1 and ... not in args:
        return {"type": "array", "prefixItems": [_schema_of_type(arg, name) for arg in args]}
    if kind is dict:
        return {"type": "object", "additionalProperties": _schema_of_type(args[1], name)}
    raise ValidationError(
        f"{name} has the type {hint!r}, which has no JSON schema; use int, float, str, bool, an enum, Literal, or list, "
        "tuple, dict and unions of these, or pass the schema as a dict",
        "tools",
    )


def _enumerated(values: list[Any], name: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise ValidationError(
            f"{name} must be one of int, float, str, bool or None values, got {shown(values)}", "tools"
        )
    kinds = list(dict.fromkeys(_TYPE_NAMES[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _union(members: list[dict[str, Any]], nullable: bool) -> dict[str, Any]:
    if len(members) == 1:
        schema = members[0]
    elif all(set(member) == {"type"} and isinstance(member["type"], str) for member in members):
        kinds = sorted({member["type"] for member in members})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        schema = {"anyOf": members}
    return schema | ({"nullable": True} if nullable else {})


def _read_docstring(doc: str) -> tuple[str, dict[str, str], str]:
    """Returns the description, the text per argument, and the text on the result."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in doc.splitlines():
        if (found := _SECTION.fullmatch(line)) is not None:
            current = found.group(1)
            sections[current] = []  # transformers ignores text on the heading's own line
        else:
            sections[current].append(line)
    returns = "\n".join(sections.get("Returns", [])).strip()
    return "\n".join(sections[""]).strip(), _read_arguments(sections.get("Args", [])), returns


def _read_arguments(lines: list[str]) -> dict[str, str]:
    """Returns the entries "name: text". Lines that are indented deeper, or that begin no entry, continue the one before."""
    entries: dict[str, list[str]] = {}
    name = indent = None
    for line in lines:
        if not line.strip():
            continue
        found = _ARGUMENT.fullmatch(line)
        deeper = indent is not None and line.startswith((indent + " ", indent + "\t"))
        if found is not None and not deeper:
            indent, name = found.group(1), found.group(2)
            entries[name] = [found.group(3)]
        elif name is not None:
            entries[name].append(line)
    return {name: " ".join(part.strip() for part in parts if part.strip()) for name, parts in entries.items()}

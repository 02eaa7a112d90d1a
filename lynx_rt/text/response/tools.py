"""The tools of a request: their names, and the types of their arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lynx_rt.text.response.reader import MalformedError

_TYPE_OF_VALUE = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class Tools:
    """tools: as OpenAI's API has them, {"type": "function", "function": {"name", "parameters"}}, or the inner dicts."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self._schemas: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
                parameters = function.get("parameters")
                self._schemas[name] = parameters if isinstance(parameters, Mapping) else {}

    def __contains__(self, name: object) -> bool:
        return name in self._schemas

    def types(self, function: str, argument: str) -> tuple[str, ...]:
        """Returns the JSON types that the argument's schema allows, in its order; () where it says nothing."""
        root = self._schemas.get(function, {})
        properties = root.get("properties")
        schema = properties.get(argument) if isinstance(properties, Mapping) else None
        try:
            return tuple(dict.fromkeys(_types(schema, root, set())))
        except RecursionError:  # nested deeper than anyone means it
            return ()


def _types(schema: Any, root: Mapping[str, Any], seen: set[int]) -> list[str]:
    """seen: ids of the schemas that were looked at. Each is once: references can go in circles."""
    if not isinstance(schema, Mapping) or id(schema) in seen:
        return []
    seen.add(id(schema))
    declared = schema.get("type")
    found = [declared] if isinstance(declared, str) else []
    if isinstance(declared, list):
        found += [kind for kind in declared if isinstance(kind, str)]
    if isinstance(reference := schema.get("$ref"), str):
        found += _types(_referenced(reference, root), root, seen)
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(members := schema.get(union), list):
            found += [kind for member in members for kind in _types(member, root, seen)]
    if not found:
        values = (
            schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
        )
        found += [_TYPE_OF_VALUE[type(value)] for value in values if type(value) in _TYPE_OF_VALUE]
    return [*found, "null"] if schema.get("nullable") else found


def _referenced(reference: str, root: Mapping[str, Any]) -> Any:
    """Returns what "#/$defs/Name" stands for; None where it is nowhere."""
    place: Any = root
    for key in reference.removeprefix("#/").split("/"):
        place = place.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def cast(text: str, types: Sequence[str]) -> Any:
    """Returns the value that a text stands for: the first of the JSON types that fits; the text itself where none does."""
    for kind in types:
        try:
            fits, value = _cast(text, kind)
        except (ValueError, OverflowError, RecursionError):
            continue
        if fits:
            return value
    return text


def cast_texts(value: Any, types: Sequence[str]) -> Any:
    """Returns cast() of a text, or of the texts in a list where an array does not fit; other values as they are."""
    if isinstance(value, str):
        return cast(value, types)
    if isinstance(value, list) and types and "array" not in types:
        return [cast(item, types) if isinstance(item, str) else item for item in value]
    return value


def _cast(text: str, kind: str) -> tuple[bool, Any]:
    word = text.strip()
    if kind == "integer":
        try:
            return True, int(word)
        except ValueError:
            number = float(word)
            return number.is_integer(), int(number)  # "3.0" is an integer for JSON schemas
    if kind == "number":
        number = float(word)
        whole = number.is_integer() and "." not in word
        return math.isfinite(number), int(number) if whole else number
    if kind == "boolean":
        return word.lower() in ("true", "1", "false", "0"), word.lower() in ("true", "1")
    if kind == "null":
        return word in ("null", "None"), None
    if kind in ("object", "array"):
        value = load_json(text)
        return isinstance(value, dict if kind == "object" else list), value
    return False, None


def load_json(text: str) -> Any:
    """Returns the value of a JSON text. Raises ValueError, also for NaN and infinity, or RecursionError."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def load_object(text: str) -> dict[str, Any]:
    """Returns the object of a JSON text. Raises MalformedError for anything else."""
    try:
        value = load_json(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None
    if not isinstance(value, dict):
        raise MalformedError("not an object")
    return value

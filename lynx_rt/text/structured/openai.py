"""Structured outputs of OpenAI's fields: response_format, and tools that must be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.structured.spec import FIELD, StructuredOutputs

_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
# JSON Schema's keywords: those whose values are objects of schemas, and those whose values are data.
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"enum", "const", "default", "examples"})


def from_response_format(value: Mapping[str, Any] | None) -> StructuredOutputs | None:
    """Returns what OpenAI's response_format asks for; None where that is plain text.

    value: {"type": "text"}, {"type": "json_object"} (also with llama-server's "schema"), {"type": "json_schema", "json_schema":
    {"name", "schema", "strict"}}, whose schema counts whether it is strict or not, or {"type": "structural_tag", ...} as in
    StructuredOutputs. Raises ValidationError whose field is "response_format".
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _fault(f"expected an object, got {shown(value)}")
    kind = value.get("type")
    if kind not in _FORMATS:
        raise _fault(f"type must be one of {', '.join(_FORMATS)}, got {shown(kind)}")
    if kind == "text":
        return None
    try:
        if kind == "structural_tag":
            return StructuredOutputs(structural_tag=value)
        if kind == "json_object":
            schema = value.get("schema")
            return StructuredOutputs(json_object=True) if schema is None else StructuredOutputs(json=schema)
        named = value.get("json_schema")
        if not isinstance(named, Mapping):
            raise _fault(f"json_schema must be an object, got {shown(named)}")
        if not isinstance(named.get("schema"), Mapping):
            raise _fault(f"json_schema.schema must be a JSON schema, got {shown(named.get('schema'))}")
        return StructuredOutputs(json=named["schema"])
    except ValidationError as error:
        raise _fault(str(error).removeprefix(f"{FIELD}: ").removeprefix("response_format: ")) from None


def tool_call_grammar(
    tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any], parallel: bool = True
) -> StructuredOutputs:
    """Returns the form of an answer that must call tools.

    tools: as OpenAI's API has them, {"type": "function", "function": {"name", "parameters"}}.
    choice: "required" = a JSON list of {"name", "parameters"}, one or more calls of any tools; {"type": "function", "function":
    {"name"}} = the arguments of that tool, a JSON object.  parallel: whether there may be several calls.
    Raises ValidationError whose field is "tools" or "tool_choice".
    """
    functions = [_function(tool, place) for place, tool in enumerate(tools)]
    if choice != "required":
        named = choice.get("function") if isinstance(choice, Mapping) else None
        name = named.get("name") if isinstance(named, Mapping) else None
        for function in functions:
            if function["name"] == name:
                return StructuredOutputs(json=_parameters(function))
        raise ValidationError(
            f'tool_choice: expected "required" or one of the tools, got {shown(choice)}', "tool_choice"
        )
    if not functions:
        raise ValidationError('tools: tool_choice "required" needs at least one', "tools")
    definitions = {}
    for place, function in enumerate(functions):
        try:
            definitions[f"tool_{place}"] = _moved(_parameters(function), f"#/$defs/tool_{place}")
        except RecursionError:
            name = function["name"]
            raise ValidationError(f"tools: the parameters of {name} are nested too deeply", "tools") from None
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "parameters": {"$ref": f"#/$defs/{place}"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for function, place in zip(functions, definitions, strict=True)
    ]
    limits = {"minItems": 1} if parallel else {"minItems": 1, "maxItems": 1}
    return StructuredOutputs(json={"type": "array", "items": {"anyOf": calls}, **limits, "$defs": definitions})


def _function(tool: Any, place: int) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValidationError(f"tools[{place}]: expected a function with a name, got {shown(tool)}", "tools")
    return function


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a tool's arguments; a tool without one takes any object."""
    schema = function.get("parameters")
    if schema is None:
        return {"type": "object"}
    if not isinstance(schema, Mapping):
        name = function["name"]
        raise ValidationError(f"tools: the parameters of {name} must be a JSON schema, got {shown(schema)}", "tools")
    return dict(schema)


def _moved(schema: Any, root: str) -> Any:
    """Returns a schema that stands at `root` in another one: its references to places in itself go there."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = root + value[1:]
        elif key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            moved[key] = {name: _moved(item, root) for name, item in value.items()}
        else:
            moved[key] = value if key in _DATA else _moved(value, root)
    return moved


def _fault(text: str) -> ValidationError:
    return ValidationError(f"response_format: {text}", "response_format")

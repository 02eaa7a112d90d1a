"""OpenAI's response_format and tools as structured outputs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from lynx_rt import Engine, SamplingParams, StructuredOutputs, ValidationError
from lynx_rt.text.structured.openai import from_response_format, tool_call_grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"type": "structural_tag", "structures": [], "triggers": []}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, StructuredOutputs(json_object=True)),
        ({"type": "json_object", "schema": None}, StructuredOutputs(json_object=True)),
        ({"type": "json_object", "schema": SCHEMA}, StructuredOutputs(json=SCHEMA)),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, StructuredOutputs(json=SCHEMA)),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": False, "schema": SCHEMA}},
            StructuredOutputs(json=SCHEMA),
        ),
        (TAG, StructuredOutputs(structural_tag=TAG)),
    ],
)
def test_response_format(value: Any, expected: StructuredOutputs | None) -> None:
    assert from_response_format(value) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("json", "expected an object, got 'json'"),
        ({}, "type must be one of .*, got None"),
        ({"type": "yaml"}, "type must be one of .*, got 'yaml'"),
        ({"type": []}, "type must be one of"),
        ({"type": "json_schema"}, "json_schema must be an object, got None"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "json_schema.schema must be a JSON schema, got None"),
        ({"type": "json_object", "schema": 3}, "json must be a JSON object, got 3"),
    ],
)
def test_what_response_format_refuses(value: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text) as caught:
        from_response_format(value)
    assert caught.value.field == "response_format" and str(caught.value).count("response_format") == 1


CITY = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "$ref": {"type": "boolean"},
        "enum": {"enum": [{"$ref": "#"}]},
        "near": {"type": "array", "maxItems": 1, "items": {"$ref": "#"}},
    },
    "required": ["city", "enum"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {
        "type": "function",
        "function": {
            "name": "roll",
            "parameters": {
                "$defs": {"city": {"type": "null"}},
                "type": "object",
                "properties": {"die": {"$ref": "#/$defs/city"}},
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
ROME = {"city": "Rome", "enum": {"$ref": "#"}}


def test_tools_that_must_be_called() -> None:
    """Each tool's references stay in its own schema."""
    several, single = tool_call_grammar(TOOLS, "required"), tool_call_grammar(TOOLS, "required", parallel=False)
    good = [
        [{"name": "weather", "parameters": ROME}],
        [{"name": "weather", "parameters": ROME | {"near": [ROME], "$ref": True}}],
        [{"name": "roll", "parameters": {"die": None}}],
        [{"name": "now", "parameters": {"any": 1}}],
    ]
    bad: list[Any] = [
        [],
        [{"name": "weather", "parameters": {"die": None}}],
        [{"name": "roll", "parameters": {"die": "Rome"}}],
        [{"name": "weather", "parameters": ROME | {"enum": {"$ref": "#/$defs/tool_0"}}}],
        [{"name": "other", "parameters": {}}],
        [{"name": "now"}],
    ]
    for grammar in (several, single):
        valid = jsonschema.Draft202012Validator(grammar.json).is_valid
        assert all(map(valid, good)) and not any(map(valid, bad))
    two = good[0] + good[2]
    assert jsonschema.Draft202012Validator(several.json).is_valid(two)
    assert not jsonschema.Draft202012Validator(single.json).is_valid(two)


def test_a_named_tool() -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    assert tool_call_grammar(TOOLS, choice) == StructuredOutputs(json=CITY)
    assert tool_call_grammar(TOOLS[2:], choice | {"function": {"name": "now"}}).json == {"type": "object"}


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        (TOOLS, "auto", "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "none"}}, "tool_choice"),
        (TOOLS, {"function": "weather"}, "tool_choice"),
        ([], "required", "tools"),
        ([{"type": "function"}], "required", "tools"),
        ([{"type": "function", "function": {"name": "a", "parameters": 3}}], "required", "tools"),
    ],
)
def test_what_tools_refuse(tools: list[Any], choice: Any, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        tool_call_grammar(tools, choice)
    assert caught.value.field == field


def test_a_schema_that_is_too_deep() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    tools = [{"type": "function", "function": {"name": "a", "parameters": schema}}]
    with pytest.raises(ValidationError, match="nested too deeply"):
        tool_call_grammar(tools, "required")
    with pytest.raises(ValidationError, match="json must be JSON"):
        StructuredOutputs(json=schema)


def test_calls_of_a_model(nano: Engine) -> None:
    grammar = dataclasses.replace(tool_call_grammar(TOOLS, "required", parallel=False), disable_any_whitespace=True)
    params = SamplingParams(temperature=1.0, seed=2, n=6, max_tokens=120, structured_outputs=grammar)
    texts = [out.text for out in nano.generate("Call a tool.", params)[0].outputs if out.finish_reason == "stop"]
    assert len(texts) > 2
    for text in texts:
        jsonschema.validate(json.loads(text), grammar.json)

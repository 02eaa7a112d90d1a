"""Structured output and tools that must be called, over HTTP."""

from __future__ import annotations

import json
import re

import pytest
from live_server import LiveServer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": PERSON}},
    {
        "type": "function",
        "function": {"name": "noop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]


@pytest.mark.parametrize("seed", range(3))
def test_a_schema(server: LiveServer, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = server.chat(response_format=form, temperature=1, seed=seed, max_tokens=200)
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert set(value) == {"name", "age"} and 0 <= value["age"] <= 99


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-c]+"}, r"[0-9]{3}-[a-c]+"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "x" /[yz]{2}/'}, "x[yz]{2}"),
    ],
)
def test_other_forms(server: LiveServer, given: dict, pattern: str) -> None:
    answer = server.complete(prompt="The", structured_outputs=given, temperature=1, seed=1, max_tokens=60)
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length" or re.fullmatch(pattern, choice["text"])
    events = server.events("/v1/completions", {"prompt": "The", "structured_outputs": given, "max_tokens": 60})
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": {"json": {"not": {}}}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"nothing": 1}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"uniqueItems": True, "type": "array"}},
            }
        },
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "nothing"}}, "tools": TOOLS},
        {"tool_choice": 7, "tools": TOOLS},
        {"tools": []},
    ],
    ids=str,
)
def test_what_is_refused(server: LiveServer, body: dict) -> None:
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] in body


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called(server: LiveServer, stream: bool) -> None:
    for choice, names in (("required", {"add", "noop"}), ({"type": "function", "function": {"name": "add"}}, {"add"})):
        body = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "tool_choice": choice}
        body |= {"temperature": 1, "seed": 5, "max_tokens": 400, "parallel_tool_calls": False}
        if stream:
            events = server.events("/v1/chat/completions", body)
            parts = [call for event in events[:-1] for call in event["choices"][0]["delta"].get("tool_calls", ())]
            reason = events[-2]["choices"][0]["finish_reason"]
            assert parts[0]["id"].startswith("call_") and all("id" not in part for part in parts[1:])
            name, arguments = parts[0]["function"]["name"], "".join(part["function"]["arguments"] for part in parts)
        else:
            [answer] = server.post("/v1/chat/completions", body).json()["choices"]
            [call] = answer["message"]["tool_calls"]
            name, arguments, reason = call["function"]["name"], call["function"]["arguments"], answer["finish_reason"]
            assert answer["message"]["content"] is None
        assert name in names and reason == ("tool_calls" if choice == "required" else "stop")
        assert isinstance(json.loads(arguments), dict)

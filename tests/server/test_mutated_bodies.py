"""Bodies with parts of another type: a 400 that says why, or an answer."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer

RESPONSE: dict[str, Any] = {
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}]},
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "3"}]},
    ],
    "instructions": "a",
    "max_output_tokens": 2,
    "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "metadata": {},
    "stop": ["a"],
    "stream": False,
    "max_tokens": 2,  # not a field of this API
    "chat_template": "a",
}
MESSAGE: dict[str, Any] = {
    "max_tokens": 2,
    "system": [{"type": "text", "text": "a"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "a", "signature": "a"},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}]},
                {"type": "text", "text": "a"},
            ],
        },
    ],
    "tools": [{"type": "custom", "name": "add", "input_schema": {"type": "object"}, "description": "a"}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["a"],
    "top_k": 4,
    "stream": False,
}
VALUES: list[Any] = [None, 0, -1, 1.5, 10**30, True, "", "\ud800", [], {}, [None], [[]], [{}], {"type": {}}, "a" * 300]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places(item, (*place, key))


def mutated(body: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    target: Any = body
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = copy.deepcopy(value)
    return body


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)])
def test_no_body_fails_inside(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    assert server.post(path, body).status_code == 200
    draw = random.Random(1)
    for place in places(body):
        for value in draw.sample(VALUES, 2):
            content = json.dumps(mutated(body, place, value))
            answer = server.client.post(path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400), (place, value, answer.text)
            assert "server_error" not in answer.text and "api_error" not in answer.text, (place, value)

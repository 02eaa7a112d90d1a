"""What coding agents send: the shapes of Codex 0.171 and of Claude Code 2.1, shortened."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from live_server import LiveServer

PARAMETERS = {"type": "object", "properties": {"message": {"type": "string"}}, "additionalProperties": False}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": "Does.", "strict": False, "parameters": PARAMETERS}


def said(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "role": role, "content": [{"type": "input_text", "text": text}]}


AGENTS = {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [function("spawn_agent")]}
CODEX = {
    "model": "parrot",
    "stream": True,
    "tools": [function("exec_command"), AGENTS, {"type": "web_search", "external_web_access": False}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a225c8-708a-70c2-a856-7a6215532d4a",
    "client_metadata": {"turn_id": "01a225c7", "x-codex-turn-metadata": "{}"},
}
CALL = '<think>Hm.</think><tool_call>\n{"name": "%s", "arguments": {"message": "hi"}}\n</tool_call>'

BASH = {"name": "Bash", "description": "Runs.", "input_schema": {**PARAMETERS, "$schema": "https://json-schema.org/"}}
CLAUDE = {
    "model": "parrot",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [BASH],
    "metadata": {"user_id": '{"device_id": "a"}'},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
}


def events(url: str, body: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    answer = httpx.post(url, json=body, timeout=60, **options)
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def codex_turn(parrot: str, *items: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the output items of a turn of Codex."""
    start = [said("developer", "You are Codex."), said("developer", "Skills."), said("user", "<environment_context>")]
    found = events(f"{parrot}/v1/responses", {**CODEX, "input": [*start, *items]})
    assert found[-1]["type"] == "response.completed"
    assert found[-1]["response"]["tools"] == CODEX["tools"][:2]  # type: ignore[index]
    return [event["item"] for event in found if event["type"] == "response.output_item.done"]


def test_codex_calls_functions_of_namespaces(parrot: str) -> None:
    """It knows a function by the names of both; a search that the server cannot make is not offered to the model."""
    for flat, names in (
        ("exec_command", {"name": "exec_command"}),
        ("multi_agent_v1__spawn_agent", {"name": "spawn_agent", "namespace": "multi_agent_v1"}),
    ):
        question = said("user", CALL % flat)
        reasoning, call = codex_turn(parrot, question)
        assert reasoning["content"][0]["text"] == "Hm."
        assert {key: call.get(key) for key in names} == names and ("namespace" in call) == ("namespace" in names)
        assert json.loads(call["arguments"]) == {"message": "hi"}
        result = {"type": "function_call_output", "id": "fco_1", "call_id": call["call_id"], "output": "done"}
        thought = {**reasoning, "encrypted_content": None}
        [answer] = codex_turn(parrot, question, thought, call, result)
        assert answer["content"][0]["text"] == "done"


def test_a_choice_names_a_function_of_a_namespace(parrot: str) -> None:
    spawn = {"type": "function", "name": "spawn_agent", "namespace": "multi_agent_v1"}
    body = {**CODEX, "stream": False, "tool_choice": spawn, "input": "{}"}
    [call] = httpx.post(f"{parrot}/v1/responses", json=body).json()["output"]
    assert (call["name"], call["namespace"], call["arguments"]) == ("spawn_agent", "multi_agent_v1", "{}")
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [spawn]}
    body.update(tool_choice=allowed, input='[{"name": "multi_agent_v1__spawn_agent", "parameters": {}}]')
    [call] = httpx.post(f"{parrot}/v1/responses", json=body).json()["output"]
    assert (call["name"], call["namespace"]) == ("spawn_agent", "multi_agent_v1")


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "namespace", "name": "a"}, "tools[0].tools"),
        ({"type": "namespace", "name": "a", "tools": [{"type": "custom", "name": "b"}]}, "tools[0].tools[0].type"),
        ({"type": "namespace", "tools": []}, "tools[0].name"),
        ({"type": "namespace", "name": "a", "tools": ["b"]}, "tools[0].tools[0]"),
        ({"type": "file_search"}, "tools[0].type"),
        ({"name": "b"}, "tools[0].type"),
    ],
)
def test_other_tools_are_refused(parrot: str, tool: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{parrot}/v1/responses", json={"input": "x", "tools": [tool]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_claude_code(parrot: str) -> None:
    """Instructions in the middle of a conversation, thinking without a signature, and tools."""
    assert httpx.head(parrot).status_code == 200
    models = httpx.get(f"{parrot}/v1/models", headers={"x-api-key": "dummy"}).json()
    assert [model["id"] for model in models["data"]] == ["parrot"]
    asked = {"type": "text", "text": CALL % "Bash", "cache_control": {"type": "ephemeral"}}
    turn: list[dict[str, Any]] = [{"role": "user", "content": [asked]}]
    found = events(f"{parrot}/v1/messages?beta=true", {**CLAUDE, "messages": turn})
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["thinking", "tool_use"] and starts[1]["name"] == "Bash"
    assert found[-2]["delta"]["stop_reason"] == "tool_use" and found[-1]["type"] == "message_stop"
    use = {"type": "tool_use", "id": starts[1]["id"], "name": "Bash", "input": {"message": "hi"}}
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "done", "is_error": False}
    turn += [
        {"role": "system", "content": "Available agents: none."},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, use]},
        {"role": "user", "content": [{**result, "cache_control": {"type": "ephemeral"}}]},
    ]
    found = events(f"{parrot}/v1/messages?beta=true", {**CLAUDE, "messages": turn})
    texts = [event["delta"].get("text") for event in found if event["type"] == "content_block_delta"]
    assert "".join(texts) == "done"


def test_agents_recognise_a_full_context(server: LiveServer) -> None:
    """Codex looks for the code, Claude Code for its API's text with both numbers."""
    answer = server.post("/v1/responses", {"input": "word " * 1500})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "word " * 1500}]}
    answer = server.post("/v1/messages", body)
    assert answer.status_code == 400
    text = answer.json()["error"]["message"]
    assert text.startswith(f"prompt is too long: {error['n_prompt_tokens']} tokens > {error['n_ctx'] - 1} maximum. ")

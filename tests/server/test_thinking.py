"""Thinking budgets over HTTP, on a server whose chat template begins the reasoning. lynx-nano itself never ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from live_server import LiveServer, serving

BUDGET = 5
TAG = 4  # tokens of "</think>"
BODY = {"temperature": 1, "seed": 3, "max_tokens": 30}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    template = tmp_path_factory.mktemp("template") / "think.jinja"
    Path(template).write_text("{{ bos_token }}{{ messages[0].content }}<think>\n")
    with serving("--reasoning-parser", "think", "--chat-template", str(template)) as live:
        yield live


@pytest.mark.parametrize("budget", [0, 1, BUDGET])
def test_chats(thinker: LiveServer, budget: int) -> None:
    answer = thinker.chat(**BODY, n=3, thinking_token_budget=budget, return_token_ids=True)
    for choice in answer["choices"]:
        ids = choice["token_ids"][: budget + TAG]
        assert "</think>" in thinker.post("/detokenize", {"tokens": ids}).json()["prompt"]
        assert choice["message"]["content"]
        assert bool(choice["message"].get("reasoning")) == (budget > 0)
    (free,) = thinker.chat(**BODY)["choices"]
    assert not free["message"]["content"] and free["finish_reason"] == "length"


def test_streams(thinker: LiveServer) -> None:
    whole = thinker.chat(**BODY, thinking_token_budget=BUDGET)["choices"][0]["message"]
    messages = [{"role": "user", "content": "12 times 22 = ?"}]
    body = {"messages": messages, **BODY, "thinking_token_budget": BUDGET}
    deltas = [event["choices"][0]["delta"] for event in thinker.events("/v1/chat/completions", body)[:-1]]
    for name in ("reasoning", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == whole[name]


def test_the_form_comes_after_the_thought(thinker: LiveServer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = thinker.chat(**BODY, thinking_token_budget=BUDGET, response_format=form)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop" and json.loads(choice["message"]["content"])["a"] in (1, 2)
    assert choice["message"]["reasoning"]


def test_completions(thinker: LiveServer) -> None:
    body = {"prompt": ["12 times 22 = ?<think>", "no thought"], **BODY, "thinking_token_budget": 0}
    first, second = thinker.complete(**body)["choices"]
    assert first["text"].startswith("</think>") and not second["text"].startswith("</think>")


def test_anthropic(thinker: LiveServer) -> None:
    client = anthropic.Anthropic(base_url=thinker.url, api_key="none")
    asked: dict[str, Any] = {
        "model": "",
        "max_tokens": 30,
        "messages": [{"role": "user", "content": "12 times 22 = ?"}],
    }
    thinking = {"type": "enabled", "budget_tokens": BUDGET}
    message = client.messages.create(**asked, extra_body={"seed": 3, "temperature": 1}, thinking=thinking)
    assert [block.type for block in message.content] == ["thinking", "text"]
    chat = thinker.chat(**BODY, thinking_token_budget=BUDGET)["choices"][0]["message"]
    assert [message.content[0].thinking, message.content[1].text] == [chat["reasoning"], chat["content"]]
    for unlimited in ({"type": "disabled"}, {"type": "adaptive", "budget_tokens": 0}):
        blocks = thinker.post("/v1/messages", {**asked, "thinking": unlimited}).json()["content"]
        assert [block["type"] for block in blocks] == ["thinking"]


def test_responses(thinker: LiveServer) -> None:
    body = {"input": "12 times 22 = ?", **BODY, "max_output_tokens": 30, "thinking_token_budget": BUDGET}
    items = thinker.post("/v1/responses", body).json()["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]


@pytest.mark.parametrize("value", [-2, "4", 1.5, True, [4]])
def test_wrong_values(thinker: LiveServer, value: object) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
    ):
        answer = thinker.post(path, {**body, "thinking_token_budget": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "thinking_token_budget"), answer.text
    body = {"messages": messages, "max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": value}}
    answer = thinker.post("/v1/messages", body)
    assert answer.status_code == 400 and "thinking.budget_tokens" in answer.json()["error"]["message"]


def test_a_budget_for_all_requests(tmp_path: Path) -> None:
    template = tmp_path / "think.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}<think>\n")
    options = ("--chat-template", str(template), "--thinking-token-budget", str(BUDGET))
    with serving("--reasoning-parser", "think", *options) as live:
        for more, expected in (({}, BUDGET), ({"thinking_token_budget": 2}, 2), ({"thinking_token_budget": -1}, 30)):
            details = live.chat(**{**BODY, **more})["usage"]["completion_tokens_details"]
            assert details["reasoning_tokens"] == expected
    with serving("--thinking-token-budget", "4", wait=False) as live:
        assert live.process.wait(60) != 0
        assert "--thinking-token-budget needs a model whose reasoning ends with a tag" in live.log()


def test_a_model_that_does_not_reason(server: LiveServer) -> None:
    """A budget that would not act is refused. Anthropic's clients send one to any model."""
    messages = [{"role": "user", "content": "Hi"}]
    answer = server.post("/v1/chat/completions", {"messages": messages, "thinking_token_budget": 4})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "thinking_token_budget")
    assert "Traceback" not in server.log()
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = server.post("/v1/messages", {"messages": messages, "max_tokens": 4, "thinking": thinking})
    assert answer.status_code == 200
    assert server.chat(thinking_token_budget=-1, max_tokens=2)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_tokens_are_counted_exactly(thinker: LiveServer, stream: bool) -> None:
    """Also where a client reads several tokens at once, and where the reasoning is not shown."""
    body = {**BODY, "seed": 5, "n": 2, "messages": [{"role": "user", "content": "12 times 22 = ?"}]}
    for more, expected in (
        ({"thinking_token_budget": BUDGET}, 2 * BUDGET),
        ({"thinking_token_budget": BUDGET, "include_reasoning": False}, 2 * BUDGET),
        ({"thinking_token_budget": BUDGET, "separate_reasoning": False}, 2 * BUDGET),
        ({"thinking_token_budget": 0}, 0),
        ({}, 2 * 30),
    ):
        if stream:
            options = {"include_usage": True}
            answer = thinker.events("/v1/chat/completions", {**body, **more, "stream_options": options})[-2]
        else:
            answer = thinker.post("/v1/chat/completions", {**body, **more}).json()
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == expected

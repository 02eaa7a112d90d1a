"""A server with a chat template and a tokenizer other than the model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, serving

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def other(nano_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("other")
    for file in Path(nano_path).glob("token*"):
        shutil.copy(file, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<|eos|>"}))
    template = folder / "template.jinja"
    template.write_text("{{ messages[0].content }}{% for tool in tools or [] %}|{{ tool.function.name }}{% endfor %}")
    with serving("--tokenizer", str(folder), "--chat-template", str(template)) as live:
        yield live


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "Hi"),
        ({"tools": TOOLS}, "Hi|add"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "Hi|add"),
        ({"tools": TOOLS, "tool_choice": "none"}, "Hi"),
    ],
)
def test_render_shows_what_the_model_gets(other: LiveServer, fields: dict, prompt: str) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True, **fields}
    rendered = other.post("/v1/chat/completions/render", body).json()
    assert rendered["prompt"] == prompt
    assert other.post("/v1/chat/completions", body).json()["prompt_token_ids"] == rendered["prompt_token_ids"]


def test_the_tokenizer_that_was_given(other: LiveServer, server: LiveServer) -> None:
    assert other.client.get("/tokenizer_info").json()["pad_token"] == "<|eos|>"
    assert server.client.get("/tokenizer_info").json().get("pad_token") != "<|eos|>"
    assert other.complete(prompt="Q: 1 + 2 = ?\nA:", temperature=0)["choices"][0]["text"] == " 3"


def test_values_in_errors_are_cut(server: LiveServer) -> None:
    answer = server.post("/v1/completions", {"prompt": "a", "stop": {"x" * 5000: 1}})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and "characters)" in message and len(message) < 1000

"""A server of a model that reads images: the answers of transformers, by each API."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, serving
from tiny_vision import GREEDY, MAX_NEW, PICTURES, answers, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vl")
    write_model(path)
    return path


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[LiveServer]:
    options = ["--dtype", "float32", "--max-model-len", "1024", "--allowed-media-domains", "*", "--media-timeout", "3"]
    with serving(str(folder), *options, "--limit-mm-per-prompt", '{"image": 2}') as started:
        yield started


def test_answers_are_those_of_transformers(live: LiveServer, folder: Path) -> None:
    file = io.BytesIO()
    PICTURES[0].save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    url = f"data:image/png;base64,{data}"
    prompt, answer = answers(folder)[1]
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    body = {
        "max_tokens": MAX_NEW,
        "temperature": 0,
        "allowed_token_ids": GREEDY["allowed_token_ids"],
        "return_token_ids": True,
    }
    for count in range(2):
        found = live.post("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": parts}]})
        assert found.status_code == 200, found.text
        assert found.json()["prompt_token_ids"] == prompt and found.json()["choices"][0]["token_ids"] == answer
        cached = found.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0 if count else cached == 0  # the image's pages are found again, and those of no other
    text = found.json()["choices"][0]["message"]["content"]
    parts[0] = {"type": "input_image", "image_url": url}
    items = [{"role": "user", "content": [parts[0], {"type": "input_text", "text": "What is this?"}]}]
    responses = live.post(
        "/v1/responses",
        {
            "input": items,
            "max_output_tokens": MAX_NEW,
            "temperature": 0,
            "allowed_token_ids": GREEDY["allowed_token_ids"],
        },
    )
    assert responses.json()["output"][0]["content"][0]["text"] == text
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    messages = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_NEW,
        "temperature": 0,
        "allowed_token_ids": GREEDY["allowed_token_ids"],
    }
    assert live.post("/v1/messages", messages).json()["content"][0]["text"] == text


def test_what_the_server_says_of_itself(live: LiveServer) -> None:
    assert live.client.get("/v1/models").json()["data"][0]["input_modalities"] == ["text", "image"]
    bad = live.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|image_pad|>"}]})
    assert bad.status_code == 400 and "got 1 for 0 images" in bad.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254", "2130706433", "[::ffff:10.0.0.1]"]
)
def test_this_machine_and_its_network_are_not_asked(live: LiveServer, host: str) -> None:
    """With the system's own resolver, and any host allowed."""
    part = {"type": "image_url", "image_url": {"url": f"http://{host}/latest/meta-data/"}}
    answer = live.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
    assert "has no public address" in answer.text or "is not known" in answer.text


def test_limits_of_the_command_line(live: LiveServer) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}] * 3
    answer = live.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert answer.status_code == 400 and "at most 2 images" in answer.text

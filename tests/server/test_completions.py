"""POST /v1/completions and /v1/chat/completions: the shapes of answers, streams and errors, against a live server."""

from __future__ import annotations

import json

import pytest
from live_server import LiveServer

from lynx_rt import Engine, SamplingParams

SUM = "Q: 12 times 22 = ?\nA:"


def joined(events: list, pick: str = "text") -> str:
    parts = [choice for event in events[:-1] for choice in event["choices"]]
    return "".join(part["text"] if pick == "text" else part["delta"].get("content") or "" for part in parts)


def test_a_completion(server: LiveServer) -> None:
    answer = server.complete(prompt=SUM, temperature=0)
    assert answer["id"].startswith("cmpl-") and answer["object"] == "text_completion"
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (" 264", "stop", None)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_a_chat(server: LiveServer) -> None:
    answer = server.chat(temperature=0)
    [choice] = answer["choices"]
    assert answer["id"].startswith("chatcmpl-") and answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == " 264"
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_http_equals_the_engine(server: LiveServer, nano: Engine, temperature: float) -> None:
    """The same bits, streamed or not, and several prompts at once."""
    prompts = [SUM, "The", "Q: 345 + 678 = ?\nA:"]
    params = SamplingParams(temperature=temperature, seed=7, max_tokens=24, ignore_eos=True)
    expected = [output.outputs[0].token_ids for output in nano.generate(prompts, params)]
    body = {"temperature": temperature, "seed": 7, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
    whole = server.complete(prompt=prompts, **body)
    assert [choice["token_ids"] for choice in whole["choices"]] == expected
    for prompt, ids in zip(prompts, expected):
        events = server.events("/v1/completions", {"prompt": prompt, **body})
        assert [token for event in events[:-1] for token in event["choices"][0]["token_ids"]] == ids
    events = server.events("/v1/completions", {"prompt": prompts, **body})
    for index, ids in enumerate(expected):
        parts = [c for event in events[:-1] for c in event["choices"] if c["index"] == index]
        assert [token for part in parts for token in part["token_ids"]] == ids


def test_stream_of_a_chat(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "12 times 22 = ?"}], "temperature": 0}
    events = server.events("/v1/chat/completions", body)
    assert events[-1] == "[DONE]" and joined(events, "chat") == " 264"
    first, last = events[0]["choices"][0], events[-2]["choices"][0]
    assert first["delta"]["role"] == "assistant" and first["delta"]["content"]
    assert all("role" not in event["choices"][0]["delta"] for event in events[1:-1])
    assert last["finish_reason"] == "stop" and all(event["choices"] for event in events[:-1])
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_usage_in_a_stream(server: LiveServer, path: str) -> None:
    body: dict = {"prompt": SUM} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    body |= {"max_tokens": 5, "ignore_eos": True}
    events = server.events(path, {**body, "stream_options": {"include_usage": True}})
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 5
    assert all(event["usage"] is None for event in events[:-2])
    events = server.events(path, {**body, "stream_options": {"continuous_usage_stats": True}})
    assert [event["usage"]["completion_tokens"] for event in events[:-1]][-1] == 5


def test_echo_and_logprobs(server: LiveServer, nano: Engine) -> None:
    """What lm-eval asks for: an entry per prompt token and one more, the first one null."""
    ids = nano.encode(SUM)
    answer = server.complete(prompt=[ids, ids[:5]], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    for choice, prompt in zip(answer["choices"], [ids, ids[:5]]):
        logprobs = choice["logprobs"]
        assert all(len(values) == len(prompt) + 1 for values in logprobs.values())
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        assert "".join(logprobs["tokens"]) == choice["text"]
        for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:]):
            assert value in top.values() and value <= max(top.values())
    score = nano.score([{"prompt_token_ids": ids[:5]}], [{"prompt_token_ids": ids[5:]}])[0]
    assert sum(answer["choices"][0]["logprobs"]["token_logprobs"][5 : len(ids)]) == pytest.approx(score, abs=1e-5)


def test_echo_without_new_tokens(server: LiveServer) -> None:
    answer = server.complete(prompt=SUM, max_tokens=0, echo=True, logprobs=0)
    [choice] = answer["choices"]
    assert choice["text"] == SUM and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]


def test_logprobs_of_a_chat(server: LiveServer) -> None:
    answer = server.chat(temperature=0, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    text = answer["choices"][0]["message"]["content"]
    assert "".join(bytes(entry["bytes"]).decode() for entry in content).startswith(text)
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] >= entry["top_logprobs"][1]["logprob"]
        assert entry["token"] == entry["top_logprobs"][0]["token"]  # greedy


def test_several_answers(server: LiveServer) -> None:
    answer = server.complete(prompt=["The", SUM], n=3, temperature=1, seed=1, max_tokens=4, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["completion_tokens"] == 24
    events = server.events(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2, "temperature": 1}
    )
    assert sum(c["finish_reason"] is not None for e in events[:-1] for c in e["choices"]) == 2


WRONG = [
    ({"prompt": 12}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": SUM, "temperature": "hot"}, "temperature"),
    ({"prompt": SUM, "temperature": -1}, "temperature"),
    ({"prompt": SUM, "temperature": True}, "temperature"),
    ({"prompt": SUM, "max_tokens": "7"}, "max_tokens"),
    ({"prompt": SUM, "max_tokens": -1}, "max_tokens"),
    ({"prompt": SUM, "max_tokens": 0}, "max_tokens"),
    ({"prompt": SUM, "max_tokens": 10**6}, "max_tokens"),
    ({"prompt": SUM, "max_tokens": 1.5}, "max_tokens"),
    ({"prompt": SUM, "n": 0}, "n"),
    ({"prompt": SUM, "n": 10**9, "temperature": 1}, "n"),
    ({"prompt": SUM, "logprobs": 10**4}, "logprobs"),
    ({"prompt": SUM, "stop": ["a"] * 65}, "stop"),
    ({"prompt": SUM, "stop": [""]}, "stop"),
    ({"prompt": SUM, "stop": "a" * 1025}, "stop"),
    ({"prompt": SUM, "bad_words": ["a" * 1025]}, "bad_words"),
    ({"prompt": SUM, "seed": 2**64}, "seed"),
    ({"prompt": SUM, "best_of": 3}, "best_of"),
    ({"prompt": SUM, "suffix": "x"}, "suffix"),
    ({"prompt": SUM, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": SUM, "guided_json": {}}, "guided_json"),
    ({"prompt": SUM, "expert_selection": "lynx"}, "expert_selection"),
    ({"prompt": SUM, "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": [4096]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "The " * 3000}, "input_tokens"),
    ({}, "prompt"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(body)[:60] for body, _ in WRONG])
def test_wrong_fields_are_named(server: LiveServer, body: dict, param: str, stream: bool) -> None:
    body = body if "stream_options" in body else {**body, "stream": stream}
    content = json.dumps(body)  # httpx would refuse some of them
    answer = server.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert (error["param"] or "").split(".")[0] == param or (error["param"] or "").startswith(param), error
    assert len(error["message"]) < 2200


UNREADABLE = [b'{"prompt": "\xff"}', b'{"prompt": ' + b"[" * 10**5, b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}"]


@pytest.mark.parametrize("content", UNREADABLE, ids=["not UTF-8", "too deep", "too long a number"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_bodies_that_cannot_be_read(server: LiveServer, path: str, content: bytes) -> None:
    answer = server.client.post(path, content=content, headers={"content-type": "application/json"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and message.startswith("the body cannot be read as JSON: "), message


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}], ids=["none", "curl's"])
def test_bodies_of_another_type(server: LiveServer, headers: dict[str, str]) -> None:
    """A browser sends such bodies for any page, without asking the server first."""
    answer = server.client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]


def test_unknown_routes_are_named(server: LiveServer) -> None:
    answer = server.client.get("/v1/embeddings/x")
    assert answer.status_code == 404 and answer.json()["error"]["message"] == "GET /v1/embeddings/x: Not Found"


def test_the_context(server: LiveServer, nano: Engine) -> None:
    answer = server.post("/v1/completions", {"prompt": "The " * 3000})
    error = answer.json()["error"]
    assert "maximum context length is 1024 tokens" in error["message"] and error["code"] == "context_length_exceeded"
    assert error["n_ctx"] == 1024 and error["n_prompt_tokens"] > 1024
    cut = server.complete(prompt="The " * 3000, truncate_prompt_tokens=-1, max_tokens=16)
    assert cut["usage"]["prompt_tokens"] == 1023 and cut["usage"]["completion_tokens"] == 1
    ids = [5] * 1000
    assert server.complete(prompt=ids, max_tokens=1024, ignore_eos=True)["usage"]["completion_tokens"] == 24


def test_streams_have_no_prompt_logprobs(server: LiveServer) -> None:
    answer = server.post("/v1/completions", {"prompt": SUM, "prompt_logprobs": 1, "stream": True})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt_logprobs"


def test_null_is_the_default_and_unknown_fields_pass(server: LiveServer) -> None:
    names = [
        "stop",
        "n",
        "temperature",
        "max_tokens",
        "logprobs",
        "seed",
        "stream",
        "stream_options",
        "logit_bias",
        "user",
    ]
    body = {"prompt": SUM, **dict.fromkeys(names), "never_heard_of": {"a": [1]}, "store": True}
    assert server.post("/v1/completions", body).status_code == 200
    names = [
        "tools",
        "tool_choice",
        "top_logprobs",
        "logprobs",
        "max_tokens",
        "max_completion_tokens",
        "response_format",
    ]
    body = {"messages": [{"role": "user", "content": "Hi"}], **dict.fromkeys(names), "metadata": {}, "max_tokens": 3}
    assert server.post("/v1/chat/completions", body).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"\xff\xfe", b"[" * 100000])
def test_bodies_that_are_no_json(server: LiveServer, content: bytes) -> None:
    answer = server.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error", answer.text


def test_unknown_paths_methods_and_models(server: LiveServer) -> None:
    for answer, status in [
        (server.client.get("/v1/nothing"), 404),
        (server.client.get("/v1/completions"), 405),
        (server.post("/v1/embeddings", {"input": "x"}), 404),
        (server.post("/v1/completions", {"prompt": SUM, "model": "gpt-9"}), 404),
        (server.client.get("/v1/models/gpt-9"), 404),
    ]:
        assert answer.status_code == status and set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert "`gpt-9` does not exist" in answer.json()["error"]["message"]


def test_text_routes(server: LiveServer, nano: Engine) -> None:
    ids = server.post("/tokenize", {"prompt": SUM, "return_token_strs": True}).json()
    assert ids["tokens"] == nano.encode(SUM) and ids["count"] == len(ids["tokens"]) and ids["max_model_len"] == 1024
    assert len(ids["token_strs"]) == ids["count"]
    assert server.post("/detokenize", {"tokens": ids["tokens"]}).json()["prompt"].endswith(SUM)
    messages = [{"role": "user", "content": "12 times 22 = ?"}]
    rendered = server.post("/v1/chat/completions/render", {"messages": messages}).json()
    assert rendered["prompt_token_ids"] == nano.render_chat(messages)["prompt_token_ids"]
    assert server.post("/tokenize", {"messages": messages}).json()["tokens"] == rendered["prompt_token_ids"]
    assert server.post("/detokenize", {"tokens": [99999]}).status_code == 400
    info = server.client.get("/tokenizer_info").json()
    assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= set(info)


def test_operation_routes(server: LiveServer) -> None:
    assert server.client.get("/health").status_code == server.client.get("/ping").status_code == 200
    assert server.client.get("/ready").json()["phase"] == "ready"
    assert server.client.get("/version").json()["version"]
    [model] = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "lynx-nano" and model["max_model_len"] == 1024
    assert server.client.get("/v1/models/lynx-nano").json() == model
    answer = server.post("/v1/completions", {"prompt": SUM}, headers={"X-Request-Id": "mine-7"})
    assert answer.headers["x-request-id"] == "mine-7"

"""OpenAI's Python client on chats and completions: answers, streams and errors, as its users see them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pydantic
import pytest
from live_server import LiveServer, serving
from parrot import CALLS, Parrot

from lynx_rt import Engine
from lynx_rt.engine.outputs import CompletionDelta

SUM: list[Any] = [{"role": "user", "content": "12 times 22 = ?"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "sub")
]
GREEDY: dict[str, Any] = {"model": "lynx-nano", "messages": SUM, "temperature": 0}
ENDLESS: dict[str, Any] = {"model": "lynx-nano", "messages": SUM, "extra_body": {"ignore_eos": True}}


class Answer(pydantic.BaseModel):
    result: int


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


@pytest.fixture(scope="module")
def tool_client(parrot: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{parrot}/v1", api_key="EMPTY", max_retries=0)


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    [choice] = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (" 264", "assistant", "stop")
    assert choice.message.tool_calls is None and choice.message.refusal is None
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content).startswith(" 264")
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list()
    assert client.models.retrieve(model.id).id == model.id == "lynx-nano"


def test_fields_of_lynx_in_and_out(client: openai.OpenAI) -> None:
    """Fields that the client does not know go through it, and unknown ones never fail."""
    extra = {"expert_selection": "topk", "top_k": 5, "field_of_tomorrow": [1]}
    answer = client.chat.completions.create(**GREEDY, extra_body=extra)
    assert answer.choices[0].message.content == " 264"
    assert answer.model_extra is not None and answer.model_extra["lynx"]["policy"] == "topk"


def test_null_means_the_default(client: openai.OpenAI) -> None:
    nothing: dict[str, Any] = {
        "stop": None,
        "tools": None,
        "logprobs": None,
        "max_tokens": None,
        "response_format": None,
    }
    assert client.chat.completions.create(**GREEDY, extra_body=nothing).choices[0].message.content == " 264"


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " 264"
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_where_it_is_asked_for(client: openai.OpenAI) -> None:
    *chunks, last = client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage is not None
    assert last.usage.completion_tokens > 0
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == " 264"


def test_parse_helper(client: openai.OpenAI) -> None:
    """The answer is the object that was asked for, however little the model knows of JSON."""
    answer = client.chat.completions.parse(**GREEDY, response_format=Answer, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Answer)


def test_parse_helper_of_an_answer_that_was_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**GREEDY, response_format=Answer, max_tokens=2)


def with_tools(text: str) -> dict[str, Any]:
    return {"model": "parrot", "messages": [{"role": "user", "content": text}], "tools": TOOLS}


EXPECTED = [("add", {"a": 1, "b": "x y"}), ("sub", {})]


def test_tools(tool_client: openai.OpenAI) -> None:
    answer = tool_client.chat.completions.create(**with_tools(CALLS))
    [choice] = answer.choices
    calls: list[Any] = choice.message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == EXPECTED
    assert choice.finish_reason == "tool_calls" and len({call.id for call in calls}) == 2
    results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in calls]
    history: Any = [{"role": "user", "content": "x"}, choice.message, *results, {"role": "user", "content": "done"}]
    answer = tool_client.chat.completions.create(model="parrot", messages=history)
    assert answer.choices[0].message.content == "done"


def test_stream_of_tools(tool_client: openai.OpenAI) -> None:
    calls: dict[int, list[str]] = {}
    for chunk in tool_client.chat.completions.create(**with_tools(CALLS), stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.index not in calls:
                assert call.id and call.type == "function" and call.function.name
                calls[call.index] = [call.function.name, ""]
            else:
                assert call.id is None and call.function.name is None
            calls[call.index][1] += call.function.arguments or ""
    assert list(calls) == [0, 1]
    assert [(name, json.loads(arguments)) for name, arguments in calls.values()] == EXPECTED


def test_stream_helper_of_tools(tool_client: openai.OpenAI) -> None:
    with tool_client.chat.completions.stream(**with_tools(CALLS)) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        [choice] = stream.get_final_completion().choices
    assert [(event.name, json.loads(event.arguments)) for event in done] == EXPECTED
    assert choice.finish_reason == "tool_calls"


# --- errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_fields(client: openai.OpenAI, fields: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="lynx-nano", messages=SUM, stream=stream, extra_body=fields)
    assert caught.value.param == param and param in caught.value.message and caught.value.request_id
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024 tokens") as caught:
        client.completions.create(model="lynx-nano", prompt=[5] * 3000)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="`gpt-9` does not exist"):
        client.chat.completions.create(model="gpt-9", messages=SUM)
    with pytest.raises(openai.NotFoundError, match="`gpt-9` does not exist"):
        client.models.retrieve("gpt-9")


def test_a_wrong_key() -> None:
    with serving("--api-key", "right") as live:
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert caught.value.type == "authentication_error" and caught.value.message
        assert openai.OpenAI(base_url=f"{live.url}/v1", api_key="right").models.list().data[0].id == "lynx-nano"


def test_a_full_queue_is_tried_again() -> None:
    """The client waits as long as the server says, and then has its answer."""
    statuses: list[int] = []
    hooks: dict[str, Any] = {"response": [lambda response: statuses.append(response.status_code)]}
    with serving("--max-num-seqs", "1", "--max-num-queued-reqs", "1") as live, httpx.Client(event_hooks=hooks) as http:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="EMPTY", http_client=http, max_retries=0)
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(live.chat, ignore_eos=True, max_tokens=600) for _ in range(2)]
            while live.num_sequences() < 2:
                assert not any(other.done() for other in others)
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(**GREEDY)
            assert caught.value.status_code == 503 and caught.value.type == "overloaded_error"
            waits = int(caught.value.response.headers["retry-after"])
            assert 1 <= waits <= 60
            before = time.monotonic()
            answer = client.with_options(max_retries=10).chat.completions.create(**GREEDY)
            assert answer.choices[0].message.content == " 264"
            assert statuses[:2] == [503, 503] and statuses[-1] == 200 and time.monotonic() - before >= 1


def test_what_must_fail_again_is_not_tried_again(server: LiveServer) -> None:
    statuses: list[int] = []
    hooks: dict[str, Any] = {"response": [lambda response: statuses.append(response.status_code)]}
    with httpx.Client(event_hooks=hooks) as http:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", http_client=http, max_retries=2)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="lynx-nano", messages=SUM, max_tokens=-1)
    assert statuses == [400]


def test_a_stream_that_dies(tool_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client gets an exception, and not a text that looks complete."""

    async def deltas(self: Parrot) -> AsyncIterator[tuple[int, CompletionDelta]]:
        yield 0, CompletionDelta(0, "Half a", [7], None, None, None, None)
        raise RuntimeError("the engine broke")

    monkeypatch.setattr(Parrot, "deltas", deltas)
    texts = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in tool_client.chat.completions.create(model="parrot", messages=SUM, stream=True):
            texts.append(chunk.choices[0].delta.content or "")
    assert "".join(texts) == "Half a" and caught.value.body is not None
    assert type(caught.value) is openai.APIError and caught.value.type == "server_error"


@pytest.mark.parametrize("timeout", [None, 0.2])
def test_a_stream_that_is_ended_early(server: LiveServer, client: openai.OpenAI, timeout: float | None) -> None:
    """By an abort, or by the request's own time limit, which is a field of the body: an error, for the text is not complete."""
    options: Any = {**ENDLESS, "extra_body": {"ignore_eos": True, "timeout": timeout}}
    stream = client.chat.completions.create(**options, stream=True)
    first = next(stream)
    if timeout is None:
        assert server.post("/v1/lynx/abort", {"request_id": first.id}).status_code == 200
    with pytest.raises(openai.APIError, match="aborted" if timeout is None else "timeout"):
        list(stream)


# --- completions


def test_completions_of_several_prompts(client: openai.OpenAI, nano: Engine) -> None:
    answer = client.completions.create(model="lynx-nano", prompt=["a", "b"], n=2, max_tokens=3, seed=1, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    ids = [nano.encode(text) for text in ("a", "b")]
    same = client.completions.create(model="lynx-nano", prompt=ids, n=2, max_tokens=3, seed=1, temperature=1)
    assert [choice.text for choice in same.choices] == [choice.text for choice in answer.choices]


def test_echo_scores_the_prompt(client: openai.OpenAI, nano: Engine) -> None:
    """max_tokens=0 with echo returns the log-probabilities of the prompt, those of Engine.score."""
    text = "Q: 12 times 22 = ?\nA: 264"
    answer = client.completions.create(model="lynx-nano", prompt=text, echo=True, logprobs=1, max_tokens=0)
    [choice] = answer.choices
    assert choice.text == text and choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert choice.logprobs.text_offset is not None and choice.logprobs.text_offset[0] == 0
    assert choice.logprobs.token_logprobs[0] is None
    [score] = nano.score([text[:1]], [text[1:]])  # of what follows begin-of-text and "Q"
    assert sum(choice.logprobs.token_logprobs[2:]) == pytest.approx(score, abs=1e-4)

"""/v1/responses, with OpenAI's client against a live server."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import openai
import pydantic
import pytest
from live_server import LiveServer
from parrot import CALLS, ENDLESS

from lynx_rt import Engine
from lynx_rt.engine.outputs import Logprob
from lynx_rt.server.errors import ApiError
from lynx_rt.server.responses_api import _Answer
from lynx_rt.server.responses_body import ResponsesBody, chat_of_response

SUM = "12 times 22 = ?"
TOOL = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="lynx-nano", input=SUM, temperature=0, metadata={"a": "b"}, store=True)
    assert answer.id.startswith("resp_") and answer.object == "response" and answer.status == "completed"
    assert answer.output_text == " 264" and answer.model == "lynx-nano"
    [item] = answer.output
    assert item.type == "message" and item.id.startswith("msg_") and item.status == "completed"
    assert (answer.temperature, answer.metadata, answer.store) == (0, {"a": "b"}, False)
    usage = answer.usage
    assert usage is not None and usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens == 5 and usage.output_tokens_details.reasoning_tokens == 0
    assert answer.error is None and answer.incomplete_details is None


def test_its_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="lynx-nano", input=SUM, temperature=0, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == " 264"  # in as many parts as the server came to send between the engine's steps
    before = ["created", "in_progress", "output_item.added", "content_part.added"]
    after = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds == [*before, *["output_text.delta"] * len(deltas), *after]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(model="lynx-nano", input=SUM, temperature=0) as stream:
        final = stream.get_final_response()
    assert final.output_text == " 264" and final.usage is not None and final.usage.output_tokens == 5
    whole = client.responses.create(model="lynx-nano", input=SUM, temperature=0)
    last = events[-1]
    assert last.type == "response.completed"
    differing = {"id", "created_at", "completed_at", "output", "lynx", "usage"}
    assert last.response.model_dump(exclude=differing) == whole.model_dump(exclude=differing)


def test_the_stream_has_names_and_no_done(server: LiveServer) -> None:
    answer = server.post("/v1/responses", {"input": SUM, "stream": True})
    assert answer.text.startswith("event: response.created\ndata: {") and "[DONE]" not in answer.text


def test_a_response_that_was_cut(client: openai.OpenAI) -> None:
    options: dict[str, Any] = dict(
        model="lynx-nano", input="Hi", max_output_tokens=3, temperature=0, extra_body={"ignore_eos": True}
    )
    answer = client.responses.create(**options)
    assert answer.status == "incomplete" and answer.output[0].status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(**options, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text == answer.output_text


def test_logprobs(client: openai.OpenAI) -> None:
    options: dict[str, Any] = dict(
        model="lynx-nano", input=SUM, temperature=0, include=["message.output_text.logprobs"], top_logprobs=2
    )
    [part] = client.responses.create(**options).output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text == " 264"
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token for entry in part.logprobs)
    events = list(client.responses.create(**options, stream=True))
    streamed = [entry for e in events if e.type == "response.output_text.delta" for entry in e.logprobs]
    assert [entry.token for entry in streamed] == [entry.token for entry in part.logprobs]
    assert client.responses.create(model="lynx-nano", input=SUM, top_logprobs=2).output[0].content[0].logprobs == []


def test_the_token_that_ends_an_output_is_not_of_its_text() -> None:
    """Under load it comes together with tokens that are."""
    entries = [{5: Logprob(-0.1, 1, " 264")}, {2: Logprob(-0.2, 1, "<|eos|>")}]
    answer = SimpleNamespace(_body=ResponsesBody(model="m", input="", include=["message.output_text.logprobs"]))
    for reason, stop, shown in [
        ("stop", None, 1),
        ("stop", 2, 1),
        ("stop", "x", 2),
        ("length", None, 2),
        (None, None, 2),
    ]:
        delta = SimpleNamespace(token_ids=[5, 2], logprobs=entries, finish_reason=reason, stop_reason=stop)
        assert len(_Answer._logprobs(answer, delta)) == shown  # type: ignore[arg-type]


def test_history_goes_through_the_template(client: openai.OpenAI, nano: Engine) -> None:
    """An answer's items are valid input of the next request."""
    first = client.responses.create(model="lynx-nano", input=SUM, temperature=0)
    history = [{"role": "user", "content": SUM}, *first.output, {"role": "user", "content": "1 + 1 = ?"}]
    answer = client.responses.create(model="lynx-nano", input=history, instructions="Be brief.", temperature=0)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": SUM},
        {"role": "assistant", "content": " 264"},
        {"role": "user", "content": "1 + 1 = ?"},
    ]
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(nano.render_chat(messages)["prompt_token_ids"])
    assert answer.output_text == nano.chat(messages, {"temperature": 0})[0].outputs[0].text


def test_input_items() -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Use tools."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I will."}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}', "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "sub", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "3"}]},
        {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "So."}]},
        {"type": "function_call", "call_id": "c3", "name": "add", "arguments": "{}"},
    ]
    chat = chat_of_response(ResponsesBody(input=items, instructions="Be brief."))

    def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    assert chat.messages == [
        {"role": "system", "content": "Be brief.\n\nUse tools."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "reasoning": "Hm.",
            "content": "I will.",
            "tool_calls": [call("c1", "add", '{"a": 1}'), call("c2", "sub", "{}")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2", "name": "add"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "3"}], "name": "sub"},
        {"role": "assistant", "reasoning": "So.", "tool_calls": [call("c3", "add", "{}")]},
    ]


def test_fields_of_a_chat() -> None:
    schema = {"type": "object"}
    body = ResponsesBody(
        input="Hi",
        max_output_tokens=7,
        tools=[TOOL, {**TOOL, "name": "sub"}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        reasoning={"effort": "low"},
        seed=3,
        top_k=5,
        expert_selection="exact",
    )
    chat = chat_of_response(body)
    assert chat.tools is not None and [tool["function"]["name"] for tool in chat.tools] == ["sub"]
    assert chat.tools[0]["function"]["parameters"] == TOOL["parameters"]
    assert (chat.tool_choice, chat.parallel_tool_calls, chat.max_completion_tokens) == ("required", False, 7)
    assert chat.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema, "strict": True},
    }
    assert (chat.reasoning_effort, chat.seed, chat.top_k, chat.expert_selection) == ("low", 3, 5, "exact")
    named = chat_of_response(body.model_copy(update={"tool_choice": {"type": "function", "name": "add"}}))
    assert named.tool_choice == {"type": "function", "function": {"name": "add"}}


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_a_schema(client: openai.OpenAI) -> None:
    options: dict[str, Any] = dict(model="lynx-nano", input="Who?", text_format=Person, max_output_tokens=200)
    options["extra_body"] = {"seed": 1, "temperature": 1}
    answer = client.responses.parse(**options)
    assert answer.status == "incomplete" or isinstance(answer.output_parsed, Person)
    with client.responses.stream(**options) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add"}], ids=str)
def test_a_tool_that_must_be_called(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    schema = {**TOOL["parameters"], "additionalProperties": False}
    options = {"model": "lynx-nano", "input": SUM, "tools": [{**TOOL, "parameters": schema}], "tool_choice": choice}
    options |= {"parallel_tool_calls": False, "extra_body": {"seed": 1}}
    if stream:
        with client.responses.stream(**options) as events:
            answer: Any = events.get_final_response()
    else:
        answer = client.responses.create(**options)
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "add") and isinstance(json.loads(call.arguments)["a"], int)
    assert answer.status == "completed" and answer.tool_choice is not None


@pytest.fixture(scope="module")
def tool_client(parrot: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{parrot}/v1", api_key="EMPTY", max_retries=0)


def with_tools(text: str, **more: Any) -> dict[str, Any]:
    """Returns arguments of create() with which the parrot says `text`."""
    return {"model": "parrot", "input": text, "tools": [TOOL, {**TOOL, "name": "sub"}], **more}


def shown(output: list[Any]) -> list[tuple[str, ...]]:
    """Returns what output items say."""
    parts = {"reasoning": "content", "message": "content"}
    return [
        (item.type, item.status, *(part.text for part in item.content))
        if item.type in parts
        else (item.type, item.status, item.name, item.arguments)
        for item in output
    ]


ITEMS = [
    ("reasoning", "completed", "Hm, 2."),
    ("message", "completed", "I call."),
    ("function_call", "completed", "add", '{"a": 1, "b": "x y"}'),
    ("function_call", "completed", "sub", "{}"),
]


def test_reasoning_and_calls(tool_client: openai.OpenAI, nano: Engine) -> None:
    answer = tool_client.responses.create(**with_tools(CALLS))
    assert shown(answer.output) == ITEMS and answer.status == "completed" and answer.output_text == "I call."
    assert answer.usage is not None
    thought = nano.encode("<think>Hm, 2.</think>", add_special_tokens=False)
    tags = nano.encode("<think></think>", add_special_tokens=False)
    assert answer.usage.output_tokens_details.reasoning_tokens == len(thought) - len(tags) > 0
    assert [tool.name for tool in answer.tools] == ["add", "sub"]
    calls = [item for item in answer.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "3"} for call in calls]
    history = [{"role": "user", "content": "x"}, *answer.output, *results]
    assert tool_client.responses.create(model="parrot", input=history).output_text == "3"


def test_their_stream(tool_client: openai.OpenAI) -> None:
    with tool_client.responses.stream(**with_tools(CALLS)) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert shown(final.output) == ITEMS
    for index, (kind, _, *texts) in enumerate(ITEMS):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        fragments = [event.delta for event in own if event.type.endswith(".delta")]
        assert len(fragments) > (texts[-1] != "{}") and "".join(fragments) == texts[-1]
        assert own[0].type == "response.output_item.added" and own[-1].type == "response.output_item.done"
        done = "response.function_call_arguments.done" if kind == "function_call" else "response.content_part.done"
        assert own[-2].type == done


def test_one_call_only(tool_client: openai.OpenAI) -> None:
    answer = tool_client.responses.create(**with_tools(CALLS, parallel_tool_calls=False))
    assert shown(answer.output) == ITEMS[:-1] and answer.parallel_tool_calls is False


@pytest.mark.parametrize(("limit", "status"), [(40, "incomplete"), (600, "completed")])
def test_a_call_that_has_no_end(tool_client: openai.OpenAI, limit: int, status: str) -> None:
    """It is text, not a call that a client could run."""
    options = with_tools(ENDLESS, max_output_tokens=limit)
    answer = tool_client.responses.create(**options)
    assert {item.type for item in answer.output} == {"message"} and answer.status == status
    assert answer.output_text.startswith(ENDLESS[:50])
    *_, last = tool_client.responses.create(**options, stream=True)
    assert last.type == f"response.{status}"
    assert all(item.status == "incomplete" for item in last.response.output if item.type == "function_call")


WRONG = [
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input",
    ),  # the model reads text only
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": None}]}, "input[0].content"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ({"input": "x", "conversation": "conv_1"}, "conversation"),
    ({"input": "x", "background": True}, "background"),
    ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
    ({"input": "x", "truncation": "auto"}, "truncation"),
    ({"input": "x", "tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
    ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
    ({"input": "x", "tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
    ({"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
    ({"input": "x", "tool_choice": "required"}, "tool_choice"),
    ({"input": "x", "reasoning": {"effort": 3}}, "reasoning.effort"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "temperature": -1}, "temperature"),
    ({"input": "x", "temperature": "hot"}, "temperature"),
    ({"input": "x", "n": 2}, "n"),
    ({"input": "The " * 3000}, "input_tokens"),
    ({}, "input"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(body)[:60] for body, _ in WRONG])
def test_wrong_fields_are_named(client: openai.OpenAI, body: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body={**body, "stream": stream}, cast_to=object)
    assert caught.value.param == param and caught.value.type == "invalid_request_error", caught.value.body


def test_null_is_the_default_and_unknown_fields_pass(server: LiveServer) -> None:
    body = {name: None for name in ResponsesBody.model_fields if name != "input"}
    body |= {"service_tier": "auto", "prompt_cache_key": "x", "never_heard_of": {}, "max_output_tokens": 2}
    assert server.post("/v1/responses", {"input": SUM, **body, "background": False}).status_code == 200


def test_fields_of_any_text_are_echoed(server: LiveServer) -> None:
    content = json.dumps({"input": SUM, "max_output_tokens": 1, "metadata": {"a": "\ud800"}})
    answer = server.client.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200 and answer.json()["metadata"] == {"a": "\ud800"}


def test_nothing_is_kept(client: openai.OpenAI) -> None:
    kept = client.responses.create(model="lynx-nano", input=SUM, store=True)
    for fetch in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="keeps no responses"):
            fetch(kept.id)


def test_input_tokens(client: openai.OpenAI, nano: Engine) -> None:
    expected = len(nano.render_chat([{"role": "user", "content": SUM}])["prompt_token_ids"])
    assert client.responses.input_tokens.count(model="lynx-nano", input=SUM).input_tokens == expected


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="`gpt-9` does not exist"):
        client.responses.create(model="gpt-9", input=SUM)


def test_a_stream_that_dies(server: LiveServer, client: openai.OpenAI) -> None:
    """Its client gets the failed response and an exception, and no text that looks complete."""
    kinds = []
    with pytest.raises(openai.APIError, match="aborted before its answer was complete"):
        for event in client.responses.create(
            model="lynx-nano", input="Hi", stream=True, extra_body={"ignore_eos": True}
        ):
            if event.type == "response.created":
                assert server.post("/v1/lynx/abort", {"request_id": event.response.id}).status_code == 200
            kinds.append(event.type)
    assert kinds[0] == "response.created" and kinds[-1] == "response.failed"


def test_a_request_that_takes_too_long(server: LiveServer) -> None:
    answer = server.post("/v1/responses", {"input": "Hi", "ignore_eos": True, "timeout": 0.05})
    assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout_error"


def test_a_client_that_goes_ends_its_request(server: LiveServer, client: openai.OpenAI) -> None:
    stream = client.responses.create(
        model="lynx-nano", input="Hi", stream=True, extra_body={"ignore_eos": True, "temperature": 1}
    )
    next(iter(stream))
    stream.close()
    server.wait_idle(2)


def test_errors_of_items_name_them() -> None:
    with pytest.raises(ApiError, match=r"input\[1\]\.arguments must be a text, got 3"):
        chat_of_response(
            ResponsesBody(
                input=[
                    {"role": "user", "content": "x"},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": 3},
                ]
            )
        )

"""/v1/messages and its count_tokens, with Anthropic's client against a live server."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from live_server import LiveServer, serving
from parrot import CALLS, ENDLESS

from lynx_rt import Engine
from lynx_rt.server.messages_body import MessagesBody, chat_of_messages

SUM = [{"role": "user", "content": "12 times 22 = ?"}]
GREEDY = {"temperature": 0}  # the client has no argument for it
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="EMPTY", max_retries=0)


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="lynx-nano", max_tokens=50, messages=SUM, extra_body=GREEDY)
    assert message.id.startswith("msg_") and (message.type, message.role) == ("message", "assistant")
    [block] = message.content
    assert (block.type, block.text) == ("text", " 264")
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "lynx-nano")
    assert message.usage.output_tokens == 5 and message._request_id


def test_its_stream(server: LiveServer, client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="lynx-nano", max_tokens=50, messages=SUM, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == " 264"
        message = stream.get_final_message()
    whole = client.messages.create(model="lynx-nano", max_tokens=50, messages=SUM, extra_body=GREEDY)
    assert message.content[0].text == whole.content[0].text and message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == 5
    body = {"max_tokens": 50, "messages": SUM, "stream": True, "temperature": 0}
    lines = server.post("/v1/messages", body).text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [value["type"] for value in data] == names
    deltas = names.count("content_block_delta")
    assert names == [
        *("message_start", "ping", "content_block_start"),
        *["content_block_delta"] * deltas,
        *("content_block_stop", "message_delta", "message_stop"),
    ]


def test_why_it_stopped(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(model="lynx-nano", max_tokens=2, messages=SUM, extra_body=GREEDY)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 2
    stopped = client.messages.create(
        model="lynx-nano", max_tokens=50, messages=SUM, stop_sequences=["6"], extra_body=GREEDY
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "6") and stopped.content[0].text == " 2"
    with client.messages.stream(
        model="lynx-nano", max_tokens=50, messages=SUM, stop_sequences=["6"], extra_body=GREEDY
    ) as stream:
        assert stream.get_final_message().stop_sequence == "6"


def test_a_limit_beyond_the_context_is_the_context(client: anthropic.Anthropic) -> None:
    assert client.messages.create(model="lynx-nano", max_tokens=20000, messages=SUM).stop_reason == "end_turn"


def test_count_tokens(client: anthropic.Anthropic, nano: Engine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *SUM]
    expected = len(nano.render_chat(messages)["prompt_token_ids"])
    system = [{"type": "text", "text": "Be brief."}]
    assert client.messages.count_tokens(model="lynx-nano", messages=SUM, system=system).input_tokens == expected
    for _ in range(2):  # the second time, a part may be in the prefix cache
        usage = client.messages.create(model="lynx-nano", max_tokens=1, messages=SUM, system=system).usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected


def test_an_answer_that_the_client_has_begun(client: anthropic.Anthropic, nano: Engine) -> None:
    messages = [*SUM, {"role": "assistant", "content": " 2"}]
    message = client.messages.create(model="lynx-nano", max_tokens=50, messages=messages, extra_body=GREEDY)
    assert message.content[0].text == "64"


def test_history() -> None:
    body = MessagesBody(
        max_tokens=10**6,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I will."},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                    {"type": "tool_use", "id": "t2", "name": "sub", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "2"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "3"}]},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        stop_sequences=["x"],
        top_k=4,
    )
    chat = chat_of_messages(body, 1024, True)

    def call(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    assert chat.thinking_token_budget == 1024
    assert chat.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "reasoning": "Hm.",
            "content": "I will.",
            "tool_calls": [call("t1", "add", {"a": 1}), call("t2", "sub", {})],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "2", "name": "add"},
        {"role": "tool", "tool_call_id": "t2", "content": [{"type": "text", "text": "3"}], "name": "sub"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert chat.tools == [{"type": "function", "function": function}]
    assert (chat.tool_choice, chat.parallel_tool_calls, chat.max_completion_tokens) == ("required", False, 1024)
    assert (chat.chat_template_kwargs, chat.reasoning_effort) == ({"enable_thinking": True}, "low")
    assert (chat.stop, chat.top_k, chat.continue_final_message) == (["x"], 4, None)
    assert chat.response_format is not None
    assert chat.response_format["json_schema"]["schema"] == {"type": "object"}
    for choice, expected in [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
    ]:
        assert chat_of_messages(body.model_copy(update={"tool_choice": choice}), 1024, True).tool_choice == expected


def test_a_schema(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    message = client.messages.create(
        model="lynx-nano",
        max_tokens=200,
        messages=SUM,
        output_config={"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}},
        extra_body={"seed": 1, "temperature": 1},
    )
    assert message.stop_reason == "max_tokens" or isinstance(json.loads(message.content[0].text)["age"], int)


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "add"}]
)
def test_a_tool_that_must_be_called(client: anthropic.Anthropic, choice: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    options: dict[str, Any] = dict(model="lynx-nano", max_tokens=200, messages=SUM, tool_choice=choice)
    options |= {"tools": [{**TOOL, "input_schema": schema}], "extra_body": {"seed": 1}}
    [call] = client.messages.create(**options).content
    assert (call.type, call.name) == ("tool_use", "add") and isinstance(call.input["a"], int)
    with client.messages.stream(**options) as stream:
        final = stream.get_final_message()
    assert final.content[0].input == call.input and final.stop_reason == "tool_use"


@pytest.fixture(scope="module")
def tool_client(parrot: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=parrot, api_key="EMPTY", max_retries=0)


def with_tools(text: str, **more: Any) -> dict[str, Any]:
    """Returns arguments of create() with which the parrot says `text`."""
    messages, tools = [{"role": "user", "content": text}], [TOOL, {**TOOL, "name": "sub"}]
    return {"model": "parrot", "max_tokens": 600, "messages": messages, "tools": tools, **more}


def shown(content: list[Any]) -> list[tuple[Any, ...]]:
    """Returns what the blocks of an answer say."""
    keys = {"thinking": ("thinking", "signature"), "text": ("text",), "tool_use": ("name", "input")}
    return [(block.type, *(getattr(block, key) for key in keys[block.type])) for block in content]


BLOCKS = [
    ("thinking", "Hm, 2.", ""),
    ("text", "I call."),
    ("tool_use", "add", {"a": 1, "b": "x y"}),
    ("tool_use", "sub", {}),
]


def test_thinking_and_calls(tool_client: anthropic.Anthropic) -> None:
    message = tool_client.messages.create(**with_tools(CALLS))
    assert shown(message.content) == BLOCKS and message.stop_reason == "tool_use"
    with tool_client.messages.stream(**with_tools(CALLS)) as stream:
        kinds = [event.delta.type for event in stream if event.type == "content_block_delta"]
        assert shown(stream.get_final_message().content) == BLOCKS
        assert stream.get_final_message().stop_reason == "tool_use"
    assert min(map(kinds.count, ("thinking_delta", "text_delta", "input_json_delta"))) > 1
    ids = [block.id for block in message.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call_id, "content": "3"} for call_id in ids]
    history = [*SUM, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    again = tool_client.messages.create(**with_tools("", messages=history))
    assert shown(again.content) == [("text", "3")] and again.stop_reason == "end_turn"


def test_one_call_only(tool_client: anthropic.Anthropic) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert shown(tool_client.messages.create(**with_tools(CALLS, tool_choice=choice)).content) == BLOCKS[:-1]


@pytest.mark.parametrize(("limit", "reason"), [(40, "max_tokens"), (600, "end_turn")])
def test_a_call_that_has_no_end(tool_client: anthropic.Anthropic, limit: int, reason: str) -> None:
    """It is text, not a call that a client could run."""
    options = with_tools(ENDLESS, max_tokens=limit)
    message = tool_client.messages.create(**options)
    assert {block.type for block in message.content} == {"text"} and message.stop_reason == reason
    text = "".join(block.text for block in message.content if block.type == "text")
    assert text.startswith(ENDLESS[:50])
    with tool_client.messages.stream(**options) as stream:
        assert stream.get_final_message().stop_reason == reason


def image(role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]


WRONG = [
    ({"messages": []}, "messages must hold at least one"),
    ({"messages": image("user")}, r"messages\[0\].content\[0\] is of type 'image'"),
    ({"messages": image("assistant")}, r"messages\[0\].content\[0\] is of type 'image'"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be"),
    ({"messages": [{"role": "king", "content": "x"}]}, r"messages\[0\].role must be"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id must be a text"),
    ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ({"max_tokens": None}, "max_tokens"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, r"tools\[0\] is of type 'bash_20250124'"),
    ({"tools": [{"name": "x"}]}, r"tools\[0\].input_schema must be an object"),
    ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type must be"),
    ({"tools": [TOOL], "tool_choice": {"type": {}}}, "tool_choice.type must be a text"),
    ({"thinking": {"type": "deep"}}, "thinking.type must be"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type must be"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": "x"}, "top_p"),
    ({"system": [{"type": "image"}]}, r"system\[0\] is of type 'image'"),
    ({"messages": [{"role": "user", "content": "The " * 3000}]}, "maximum context length is 1024"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "text"), WRONG, ids=[str(fields)[:60] for fields, _ in WRONG])
def test_wrong_fields_are_named(client: anthropic.Anthropic, fields: dict[str, Any], text: str, stream: bool) -> None:
    body = {"model": "lynx-nano", "max_tokens": 5, "messages": SUM, "stream": stream, **fields}
    with pytest.raises(anthropic.BadRequestError, match=text) as caught:
        client.post("/v1/messages", body=body, cast_to=object)
    assert caught.value.body["type"] == "error" and caught.value.type == "invalid_request_error"  # type: ignore[index]


def test_null_is_the_default_and_unknown_fields_pass(server: LiveServer) -> None:
    body = {name: None for name in MessagesBody.model_fields if name not in ("messages", "max_tokens")}
    body |= {"metadata": {"user_id": "x"}, "service_tier": "auto", "never_heard_of": {}, "max_tokens": 2}
    assert server.post("/v1/messages", {"messages": SUM, **body}).status_code == 200
    assert server.post("/v1/messages/count_tokens", {"messages": SUM, "system": None, "x": 1}).status_code == 200


def test_errors_have_anthropics_form(client: anthropic.Anthropic, server: LiveServer) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="gpt-9", max_tokens=5, messages=SUM)
    assert missing.value.type == "not_found_error"
    answer = server.client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["type"] == "error"
    assert server.client.get("/v1/messages").json()["type"] == "error"


def test_a_stream_that_dies(server: LiveServer, client: anthropic.Anthropic) -> None:
    """Its client gets an exception, and no text that looks complete."""
    kinds = []
    with pytest.raises(anthropic.APIStatusError, match="aborted before its answer was complete") as caught:
        for event in client.messages.create(
            model="lynx-nano", max_tokens=1000, messages=SUM, stream=True, extra_body={"ignore_eos": True}
        ):
            if event.type == "message_start":
                assert server.post("/v1/lynx/abort", {"request_id": event.message.id}).status_code == 200
            kinds.append(event.type)
    assert kinds[0] == "message_start" and "message_stop" not in kinds
    assert caught.value.type == "overloaded_error"


def test_a_client_that_goes_ends_its_request(server: LiveServer, client: anthropic.Anthropic) -> None:
    stream = client.messages.create(
        model="lynx-nano", max_tokens=1000, messages=SUM, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    server.wait_idle(2)


def test_keys_and_pings() -> None:
    """A key comes in a header of its own. Streams with nothing to send have pings."""
    with serving("--api-key", "secret", "--keep-alive", "0.02") as live:
        long = [{"role": "user", "content": "The " * 900}]
        with anthropic.Anthropic(base_url=live.url, api_key="other", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                client.messages.create(model="lynx-nano", max_tokens=1, messages=long)
            assert caught.value.type == "authentication_error"
        with anthropic.Anthropic(base_url=live.url, api_key="secret", max_retries=0) as client:
            answer = client.messages.with_raw_response.create(
                model="lynx-nano", max_tokens=1, messages=long, stream=True
            )
            text = answer.http_response.read().decode()
        assert text.startswith('event: ping\ndata: {"type":"ping"}\n\n') and "event: message_stop" in text

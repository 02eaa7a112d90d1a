"""The body of /v1/responses, and the chat that it stands for."""

from __future__ import annotations

from typing import Any

from lynx_rt.errors import shown
from lynx_rt.server.chat_builder import ChatBuilder, content_parts, field, joined_text, optional_text, shared_fields
from lynx_rt.server.errors import bad_request
from lynx_rt.server.protocol import ChatBody, GenerationFields

_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_REASONING = {"reasoning_text": "text", "summary_text": "text"}
_LOGPROBS = "message.output_text.logprobs"
_NOTHING_KEPT = "this server keeps no responses: send the whole conversation as input"


# Field of a chat -> the field that it comes from.
FIELD_NAMES = {"messages": "input", "response_format": "text.format"}


class ResponsesBody(GenerationFields):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None  # taken, and nothing is kept
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return _LOGPROBS in (self.include or ())


def chat_of_response(body: ResponsesBody) -> ChatBody:
    """Returns the chat that a body asks for. Raises ApiError that names what this server cannot do."""
    _check(body)
    tools, choice = _tools(body), body.tool_choice
    if isinstance(choice, dict):
        choice, tools = _choice(choice, tools)
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise bad_request(f"max_output_tokens must be at least 1, got {body.max_output_tokens}", "max_output_tokens")
    fields = shared_fields(body)
    fields.update(
        messages=_messages(body),
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        max_completion_tokens=body.max_output_tokens,
        response_format=_response_format(body) or body.response_format,
        reasoning_effort=optional_text(body.reasoning, "effort", "reasoning"),
        chat_template_kwargs=body.chat_template_kwargs,
        logprobs=body.wants_logprobs or None,
        top_logprobs=body.top_logprobs if body.wants_logprobs else None,
    )
    return ChatBody.model_construct(**fields)


def _check(body: ResponsesBody) -> None:
    for name in ("previous_response_id", "conversation"):
        if getattr(body, name) is not None:
            raise bad_request(f"{name}: {_NOTHING_KEPT}", name)
    if body.background:
        raise bad_request("background: this server keeps no responses, so that none can be fetched later", "background")
    if body.prompt is not None:
        raise bad_request("prompt: this server has no stored prompts: send instructions and input", "prompt")
    if body.truncation not in (None, "disabled"):
        raise bad_request(
            f'truncation must be "disabled": this server drops no part of a conversation, got {shown(body.truncation)}',
            "truncation",
        )


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    builder = ChatBuilder()
    if body.instructions:
        builder.add_system(body.instructions)
    if isinstance(body.input, str):
        builder.add_user(body.input)
    else:
        for place, item in enumerate(body.input):
            _add(builder, item, f"input[{place}]")
    if not body.input:
        raise bad_request("input is empty: it must have at least one message", "input")
    return builder.messages


def _add(builder: ChatBuilder, item: dict[str, Any], name: str) -> None:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        role, content = field(item, "role", str, name), item.get("content")
        if role == "user":
            builder.add_user(content_parts(content, f"{name}.content", _TEXTS))
        elif role == "assistant":
            builder.add_answer(joined_text(content, f"{name}.content", _TEXTS))
        elif role in ("system", "developer"):
            builder.add_system(joined_text(content, f"{name}.content", _TEXTS, "\n"))
        else:
            raise bad_request(
                f"{name}.role must be user, assistant, system or developer, got {shown(role)}", f"{name}.role"
            )
    elif kind == "reasoning":
        content = item.get("content") or item.get("summary") or ""
        builder.add_reasoning(joined_text(content, f"{name}.content", _REASONING, "\n"))
    elif kind == "function_call":
        call_id, function = (field(item, key, str, name) for key in ("call_id", "name"))
        function = function_name(optional_text(item, "namespace", name), function)
        builder.add_call(call_id, function, field(item, "arguments", str, name))
    elif kind == "function_call_output":
        call_id = field(item, "call_id", str, name)
        builder.add_result(call_id, content_parts(item.get("output"), f"{name}.output", _TEXTS))
    elif kind == "item_reference":
        raise bad_request(f"{name}: an item_reference names nothing, since {_NOTHING_KEPT}", name)
    else:
        raise bad_request(
            f"{name}.type must be message, reasoning, function_call or function_call_output, got {shown(kind)}",
            f"{name}.type",
        )


def _tools(body: ResponsesBody) -> list[dict[str, Any]]:
    """Returns the tools in the form of chats. A search that the model may make is left out, because nobody could make it."""
    tools = []
    for place, tool in enumerate(body.tools or ()):
        name = f"tools[{place}]"
        if tool.get("type") == "namespace":
            space = field(tool, "name", str, name)
            for number, member in enumerate(field(tool, "tools", list, name)):
                tools.append(_function(member, f"{name}.tools[{number}]", space))
        elif not is_search(tool):
            tools.append(_function(tool, name))
    return tools


def is_search(tool: dict[str, Any]) -> bool:
    return str(tool.get("type")).startswith("web_search")  # there are dated ones


def _function(tool: Any, name: str, namespace: str | None = None) -> dict[str, Any]:
    if field(tool, "type", str, name) != "function":
        raise bad_request(
            f"{name} is of type {shown(tool['type'])}: this server has no tools of its own, only functions",
            f"{name}.type",
        )
    function = {"name": function_name(namespace, field(tool, "name", str, name))}
    function |= {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def function_name(namespace: str | None, name: str) -> str:
    """Returns the name by which the model knows a function."""
    return name if not namespace else f"{namespace.removesuffix('__')}__{name}"


def names_in_namespaces(tools: list[dict[str, Any]] | None) -> dict[str, dict[str, str]]:
    """Returns, by the name that the model knows, the fields by which a client knows a function of a namespace."""
    return {
        function_name(space["name"], tool["name"]): {"name": tool["name"], "namespace": space["name"]}
        for space in tools or ()
        if space.get("type") == "namespace"
        for tool in space["tools"]
    }


def _choice(
    choice: dict[str, Any], tools: list[dict[str, Any]]
) -> tuple[str | dict[str, Any] | None, list[dict[str, Any]]]:
    """Returns tool_choice in the form of chats, and the tools that may be called."""
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": _chosen(choice, "tool_choice")}}, tools
    if kind == "allowed_tools":
        allowed = field(choice, "tools", list, "tool_choice")
        names = [_chosen(tool, f"tool_choice.tools[{place}]") for place, tool in enumerate(allowed)]
        return choice.get("mode") or "auto", [tool for tool in tools if tool["function"]["name"] in names]
    raise bad_request(
        f"tool_choice.type must be function or allowed_tools, got {shown(kind)}: this server has no tools of its own",
        "tool_choice.type",
    )


def _chosen(tool: Any, name: str) -> str:
    return function_name(optional_text(tool, "namespace", name), field(tool, "name", str, name))


def _response_format(body: ResponsesBody) -> dict[str, Any] | None:
    """Returns text.format in the form of chats."""
    wanted = (body.text or {}).get("format")
    if wanted is None:
        return None
    kind = field(wanted, "type", str, "text.format")
    if kind == "json_schema":
        schema = {key: wanted[key] for key in ("name", "schema", "strict") if key in wanted}
        field(wanted, "schema", dict, "text.format")
        return {"type": "json_schema", "json_schema": schema}
    if kind in ("text", "json_object"):
        return {"type": kind}
    raise bad_request(
        f"text.format.type must be text, json_object or json_schema, got {shown(kind)}", "text.format.type"
    )

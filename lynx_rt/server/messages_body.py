"""The bodies of /v1/messages and /v1/messages/count_tokens, and the chat that they stand for."""

from __future__ import annotations

from typing import Any

from lynx_rt.errors import shown
from lynx_rt.server.chat_builder import ChatBuilder, content_parts, field, joined_text, optional_text, shared_fields
from lynx_rt.server.errors import bad_request
from lynx_rt.server.protocol import Body, ChatBody, GenerationFields, Messages

_TEXTS = {"text": "text"}
_THINKING = {"enabled": True, "adaptive": True, "disabled": False}


# Field of a chat -> the field that it comes from.
FIELD_NAMES = {"response_format": "output_config.format", "stop": "stop_sequences"}


class MessagesPrompt(Body):
    """What turns messages into a prompt."""

    messages: Messages
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesBody(GenerationFields, MessagesPrompt):
    max_tokens: int
    stop_sequences: list[str] | None = None
    metadata: dict[str, Any] | None = None


class CountTokensBody(MessagesPrompt):
    model: str | None = None


def chat_of_messages(body: MessagesBody, max_model_len: int, can_limit_thinking: bool) -> ChatBody:
    """Returns the chat that a body asks for. Raises ApiError that names what this server cannot do.

    can_limit_thinking: the model's reasoning ends with a tag. Where it does not, thinking.budget_tokens has no effect: clients that
    work with any model send it.
    """
    if body.max_tokens < 1:
        raise bad_request(f"max_tokens must be at least 1, got {body.max_tokens}", "max_tokens")
    fields = {**shared_fields(body), **prompt_fields(body)}
    # Clients must send a limit, and send that of a large model: it is a bound here, not a wish.
    fields["max_completion_tokens"] = min(body.max_tokens, max_model_len)
    budget = _thinking_budget(body.thinking)
    if fields["thinking_token_budget"] is None and can_limit_thinking:
        fields["thinking_token_budget"] = budget
    if body.stop_sequences is not None:
        fields["stop"] = body.stop_sequences
    if (wanted := (body.output_config or {}).get("format")) is not None:
        fields["response_format"] = _response_format(wanted)
    return ChatBody.model_construct(**fields)


def _thinking_budget(thinking: dict[str, Any] | None) -> int | None:
    """Returns the tokens that the model may think for; None = no limit."""
    if thinking is None or thinking.get("type") != "enabled" or (budget := thinking.get("budget_tokens")) is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise bad_request(
            f"thinking.budget_tokens must be an integer of at least 0, got {shown(budget)}", "thinking.budget_tokens"
        )
    return budget


def prompt_fields(body: MessagesPrompt) -> dict[str, Any]:
    """Returns the fields of a chat that make its prompt."""
    builder = ChatBuilder()
    if body.system:
        builder.add_system(joined_text(body.system, "system", _TEXTS, "\n"))
    for place, message in enumerate(body.messages):
        _add(builder, message, f"messages[{place}]")
    if not body.messages:
        raise bad_request("messages must hold at least one message, got none", "messages")
    last = builder.messages[-1]
    fields: dict[str, Any] = {"messages": builder.messages, "tools": _tools(body) or None}
    if last["role"] == "assistant" and "tool_calls" not in last:
        fields["continue_final_message"] = True  # the client has begun the answer
    if body.tool_choice is not None:
        fields["tool_choice"] = _choice(body.tool_choice)
        fields["parallel_tool_calls"] = not body.tool_choice.get("disable_parallel_tool_use")
    variables = dict(body.chat_template_kwargs or {})
    if body.thinking is not None:
        kind = field(body.thinking, "type", str, "thinking")
        if kind not in _THINKING:
            known = ", ".join(_THINKING)
            raise bad_request(f"thinking.type must be one of {known}, got {shown(kind)}", "thinking.type")
        variables = {"enable_thinking": _THINKING[kind], **variables}
    fields["chat_template_kwargs"] = variables
    fields["reasoning_effort"] = optional_text(body.output_config, "effort", "output_config")
    return fields


def _add(builder: ChatBuilder, message: dict[str, Any], name: str) -> None:
    role, content = field(message, "role", str, name), message.get("content")
    name += ".content"
    if role == "system":
        builder.add_system(joined_text(content, name, _TEXTS, "\n"))
    elif role == "user":
        parts = content if isinstance(content, list) else []
        for place, part in enumerate(parts):
            if isinstance(part, dict) and part.get("type") == "tool_result":
                here = f"{name}[{place}]"
                result = content_parts(part.get("content") or "", f"{here}.content", _TEXTS)
                builder.add_result(field(part, "tool_use_id", str, here), result)
        said = [part for part in parts if not (isinstance(part, dict) and part.get("type") == "tool_result")]
        if said or not parts:
            builder.add_user(content_parts(said if parts else content, name, _TEXTS))
    elif role == "assistant":
        _add_answer(builder, content, name)
    else:
        raise bad_request(f"{name.removesuffix('.content')}.role must be user or assistant, got {shown(role)}", name)


def _add_answer(builder: ChatBuilder, content: Any, name: str) -> None:
    if isinstance(content, str):
        builder.add_answer(content)
        return
    if not isinstance(content, list):
        raise bad_request(f"{name} must be a text or a list of parts, got {shown(content)}", name)
    texts = []
    thoughts = []
    calls = []
    for place, part in enumerate(content):
        here = f"{name}[{place}]"
        kind = field(part, "type", str, here)
        if kind == "text":
            texts.append(field(part, "text", str, here))
        elif kind == "thinking":
            thoughts.append(field(part, "thinking", str, here))
        elif kind == "tool_use":
            call_id, function = (field(part, key, str, here) for key in ("id", "name"))
            calls.append((call_id, function, field(part, "input", dict, here)))
        elif kind != "redacted_thinking":
            raise bad_request(
                f"{here} is of type {shown(kind)}: an answer has parts of type text, thinking and tool_use", name
            )
    if thoughts:
        builder.add_reasoning("".join(thoughts))
    if texts or not calls:
        builder.add_answer("".join(texts))
    for call in calls:
        builder.add_call(*call)


def _tools(body: MessagesPrompt) -> list[dict[str, Any]]:
    """Returns the tools in the form of chats."""
    tools = []
    for place, tool in enumerate(body.tools or ()):
        name = f"tools[{place}]"
        if tool.get("type") not in (None, "custom"):
            raise bad_request(
                f"{name} is of type {shown(tool['type'])}: this server has no tools of its own, only the client's",
                f"{name}.type",
            )
        function = {
            "name": field(tool, "name", str, name),
            "parameters": field(tool, "input_schema", dict, name),
        }
        function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
        tools.append({"type": "function", "function": function})
    return tools


def _choice(choice: dict[str, Any]) -> str | dict[str, Any]:
    """Returns tool_choice in the form of chats."""
    kind = field(choice, "type", str, "tool_choice")
    if kind == "tool":
        return {"type": "function", "function": {"name": field(choice, "name", str, "tool_choice")}}
    names = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in names:
        raise bad_request(f"tool_choice.type must be auto, any, tool or none, got {shown(kind)}", "tool_choice.type")
    return names[kind]


def _response_format(wanted: Any) -> dict[str, Any]:
    """Returns output_config.format in the form of chats."""
    kind = field(wanted, "type", str, "output_config.format")
    if kind != "json_schema":
        raise bad_request(f"output_config.format.type must be json_schema, got {shown(kind)}", "output_config")
    schema = field(wanted, "schema", dict, "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

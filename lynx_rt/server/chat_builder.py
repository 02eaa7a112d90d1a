"""Builds the messages of a chat from the items of other APIs, of which several may belong to one message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lynx_rt.errors import shown
from lynx_rt.server.errors import bad_request
from lynx_rt.server.protocol import ChatBody, GenerationFields, Messages

# Fields that mean something else in other APIs under the same name, or have no place in their streams.
_NOT_SHARED = ("stream_options", "return_progress")


class ChatBuilder:
    """Messages that grow by items."""

    def __init__(self) -> None:
        self.messages: Messages = []
        self._functions: dict[str, str] = {}  # id of a tool call -> name of its function

    def add_system(self, text: str) -> None:
        """Adds instructions. Those at the start become one message, because most templates take one."""
        first = self.messages[0] if len(self.messages) == 1 else None
        if first is not None and first["role"] == "system":
            first["content"] += "\n\n" + text
        else:
            self.messages.append({"role": "system", "content": text})

    def add_user(self, content: str | list[dict[str, Any]]) -> None:
        self.messages.append({"role": "user", "content": content})

    def add_reasoning(self, text: str) -> None:
        """Adds what the assistant thought before the items that follow."""
        message = self._assistant(("content", "tool_calls"))
        message["reasoning"] = message.get("reasoning", "") + text

    def add_answer(self, text: str) -> None:
        self._assistant(("content", "tool_calls"))["content"] = text

    def add_call(self, call_id: str, name: str, arguments: Any) -> None:
        """arguments: a dict, or the JSON text of an object."""
        self._functions[call_id] = name
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._assistant(()).setdefault("tool_calls", []).append(call)

    def add_result(self, call_id: str, content: str | list[dict[str, Any]]) -> None:
        """Adds what a tool returned."""
        message = {"role": "tool", "tool_call_id": call_id, "content": content}
        if call_id in self._functions:
            message["name"] = self._functions[call_id]
        self.messages.append(message)

    def _assistant(self, without: tuple[str, ...]) -> dict[str, Any]:
        """Returns the assistant's message at the end, or a new one. without: what it must not have yet."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or any(name in last for name in without):
            last = {"role": "assistant"}
            self.messages.append(last)
        return last


def text_parts(content: Any, name: str, texts: Mapping[str, str]) -> str | list[dict[str, Any]]:
    """Returns a content in the form of chats: a text, or a list of text parts.

    name: of the content, for errors.  texts: type of a part -> the key of its text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{name} must be a text or a list of parts, got {shown(content)}", name)
    parts = []
    for place, item in enumerate(content):
        here = f"{name}[{place}]"
        kind = field(item, "type", str, here)
        if kind not in texts:
            known = " and ".join(texts)
            raise bad_request(f"{here} is of type {shown(kind)}: this server reads text only ({known})", name)
        parts.append({"type": "text", "text": field(item, texts[kind], str, here)})
    return parts


def joined_text(content: Any, name: str, texts: Mapping[str, str], separator: str = "") -> str:
    """Returns a content as one text. The arguments are those of text_parts()."""
    parts = text_parts(content, name, texts)
    return parts if isinstance(parts, str) else separator.join(part["text"] for part in parts)


def field(item: Any, key: str, kind: type, name: str) -> Any:
    """Returns a field that an item must have. Raises ApiError where it is of another type than `kind`."""
    if not isinstance(item, dict):
        raise bad_request(f"{name} must be an object, got {shown(item)}", name)
    value = item.get(key)
    if not isinstance(value, kind):
        names: dict[type, str] = {str: "a text", dict: "an object", list: "a list"}
        expected = names[kind]
        raise bad_request(f"{name}.{key} must be {expected}, got {shown(value)}", f"{name}.{key}")
    return value


def optional_text(item: dict[str, Any] | None, key: str, name: str) -> str | None:
    """Returns a text that an item may have."""
    return None if item is None or item.get(key) is None else str(field(item, key, str, name))


def shared_fields(body: GenerationFields) -> dict[str, Any]:
    """Returns the fields that a body has in common with those of chats, and those that neither knows.

    Raises ApiError for those that its API has no answer to.
    """
    if body.n not in (None, 1):
        raise bad_request(f"n must be 1: this route gives one answer, got {body.n}", "n")
    if body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs is not part of this route's answers: use /v1/completions", "prompt_logprobs")
    fields = {name: getattr(body, name) for name in GenerationFields.model_fields if name not in _NOT_SHARED}
    unknown = {name: value for name, value in (body.model_extra or {}).items() if name not in ChatBody.model_fields}
    return {**unknown, **fields}

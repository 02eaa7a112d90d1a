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


def content_parts(content: Any, name: str, texts: Mapping[str, str], images: bool = True) -> str | list[dict[str, Any]]:
    """Returns a content in the form of chats: a text, or a list of parts.

    name: of the content, for errors.  texts: type of a part -> the key of its text.  images: whether it may have images.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{name} must be a text or a list of parts, got {shown(content)}", name)
    parts = []
    for place, item in enumerate(content):
        here = f"{name}[{place}]"
        kind = field(item, "type", str, here)
        if images and (image := _image_part(item, here)) is not None:
            parts.append(image)
            continue
        if kind not in texts:
            known = " and ".join(texts)
            reads = "text and images" if images else "text"
            raise bad_request(f"{here} is of type {shown(kind)}: this server reads {reads} only ({known})", name)
        parts.append({"type": "text", "text": field(item, texts[kind], str, here)})
    return parts


def _image_part(item: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Returns an image in the form of chats; None for any other item.

    OpenAI's responses have {"type": "input_image", "image_url"}, Anthropic's messages {"type": "image", "source": {"type": "base64",
    "media_type", "data"}} or {"type": "url", "url"}.
    """
    kind = item["type"]
    if kind == "input_image":
        if item.get("image_url") is None and item.get("file_id") is not None:
            raise bad_request(f"{name}.file_id names nothing, since this server keeps no files: send image_url", name)
        return {"type": kind, "image_url": {"url": field(item, "image_url", str, name)}}
    if kind != "image":
        return None
    source, here = field(item, "source", dict, name), f"{name}.source"
    form = field(source, "type", str, here)
    if form == "base64":
        url = f"data:{field(source, 'media_type', str, here)};base64,{field(source, 'data', str, here)}"
    elif form == "url":
        url = field(source, "url", str, here)
    else:
        raise bad_request(f"{here}.type must be base64 or url, got {shown(form)}", f"{here}.type")
    return {"type": kind, "image_url": {"url": url}}


def joined_text(content: Any, name: str, texts: Mapping[str, str], separator: str = "") -> str:
    """Returns a content as one text. The arguments are those of content_parts()."""
    parts = content_parts(content, name, texts, images=False)
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

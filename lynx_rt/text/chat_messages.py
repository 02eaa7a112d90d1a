"""Brings messages and tools of a chat, as OpenAI's clients, transformers and vLLM send them, to plain types."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.image_parts import PLACEHOLDER, ImageSource, image_kind, take_images
from lynx_rt.text.message import is_message
from lynx_rt.text.tool_schema import schema_of_function

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # clients and templates use all three for the same text
_TEXT_OF_PART = {  # type of a content part -> the key of its text
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_MEDIA = ("image", "audio", "video", "file")


def plain_messages(messages: Any, images: list[ImageSource] | None = None) -> list[dict[str, Any]]:
    """Copies messages to plain types; raises ValidationError that names the message and the fault in it.

    messages: dicts, pydantic models or dataclasses.  Keys without a value are left out, and so is an empty list of tool
    calls. Arguments of tool calls become dicts where they are JSON texts. Reasoning is stored under all of its names.
    images: takes the images of all messages, of which {"type": "image"} stays; None = images are refused.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes, bytearray)):
        raise ValidationError(f"messages must be a list of dicts, got {type(messages).__name__}", "messages")
    if not messages:
        raise ValidationError("messages must hold at least one message, got none", "messages")
    try:
        return [_plain_message(message, f"messages[{index}]", images) for index, message in enumerate(messages)]
    except RecursionError:
        raise ValidationError("messages are nested too deeply", "messages") from None


def plain_tools(tools: Any) -> list[Any] | None:
    """Returns tools as JSON schemas; Python functions are turned into theirs."""
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes, bytearray)):
        raise ValidationError(f"tools must be a list of JSON schemas or functions, got {shown(tools)}", "tools")
    return [_plain_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def fit_content(conversation: Sequence[dict[str, Any]], forms: Callable[[str], Set[str]], images: bool = False) -> None:
    """Brings contents to the form that the template takes: lists of parts are joined to one text, or a text becomes a part.

    forms: role -> which of "text" and "parts" the template takes.  images: {"type": "image"} stands for images that were taken.
    """
    for index, message in enumerate(conversation):
        content = message.get("content")
        if isinstance(content, str) and forms(message["role"]) == {"parts"}:
            message["content"] = [{"type": "text", "text": content}]
        if not isinstance(content, (list, tuple)):
            continue
        name = f"messages[{index}].content"
        each = (_part(item, f"{name}[{place}]", images) for place, item in enumerate(content))
        parts = [part for part in each if part is not None]
        if "parts" in forms(message["role"]):
            message["content"] = parts
            continue
        for place, part in enumerate(parts):
            if part["type"] not in ("text", "thinking"):
                raise ValidationError(
                    f"{name}[{place}] is of type {shown(part['type'])}, and this model's chat template takes text only",
                    "messages",
                )
        message["content"] = "\n".join(part.get("text", part.get("thinking", "")) for part in parts)


def _part(item: Any, name: str, images: bool) -> dict[str, Any] | None:
    """Returns one part of a content as {"type", ...}; None for a text part without a value."""
    if isinstance(item, str):
        return {"type": "text", "text": item}
    kind = item.get("type", "text" if "text" in item else None) if isinstance(item, dict) else None
    if not isinstance(kind, str):
        raise ValidationError(f"{name} must be text or a dict with a 'type', got {shown(item)}", "messages")
    if images and item == PLACEHOLDER:
        return dict(PLACEHOLDER)
    if any(medium in kind for medium in _MEDIA):
        reads = "text and images" if images else "text"
        raise ValidationError(f"{name} is of type {kind!r}, but this engine reads {reads} only", "messages")
    if (key := _TEXT_OF_PART.get(kind)) is None:
        return dict(item)
    text = item.get(key)
    if text is not None and not isinstance(text, str):
        raise ValidationError(f"{name}.{key} must be text, got {shown(text)}", "messages")
    if kind == "text":
        return None if text is None else {**item, "type": "text"}
    return None if text is None else {"type": "text", "text": text}


def _plain_message(message: Any, name: str, images: list[ImageSource] | None) -> dict[str, Any]:
    copy = _without_images(message, name, images) if is_message(message) else None
    if not isinstance(copy, dict) or not isinstance(copy.get("role"), str):
        raise ValidationError(f"{name} must be a dict with 'role' and 'content', got {shown(message)}", "messages")
    copy = {key: value for key, value in copy.items() if value is not None}
    if (calls := copy.get("tool_calls")) is not None:
        if not isinstance(calls, (list, tuple)):
            raise ValidationError(f"{name}.tool_calls must be a list, got {shown(calls)}", "messages")
        copy["tool_calls"] = [_plain_call(call, f"{name}.tool_calls[{place}]") for place, call in enumerate(calls)]
        if not calls:
            del copy["tool_calls"]
    reasoning = next((copy[key] for key in REASONING_KEYS if key in copy), None)
    return copy if reasoning is None else {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def _without_images(message: Any, name: str, images: list[ImageSource] | None) -> Any:
    """Returns a message in plain types. Its images, which may be objects of any kind, are taken out before."""
    fields = message if isinstance(message, Mapping) else plain(message, name)
    content = fields.get("content") if isinstance(fields, Mapping) else None
    if images is not None:
        fields = {**fields, "content": take_images(content, f"{name}.content", images, plain)}
    elif isinstance(content, (list, tuple)):
        for place, part in enumerate(content):
            if (kind := image_kind(part)) is not None:
                here = f"{name}.content[{place}]"
                raise ValidationError(f"{here} is of type {kind!r}, but this engine reads text only", "messages")
    return plain(fields, name)


def _plain_call(call: Any, name: str) -> Any:
    """Returns a tool call with its arguments as a dict; OpenAI's API sends them as a JSON text."""
    if not isinstance(call, dict):
        raise ValidationError(f"{name} must be a dict with 'function', got {shown(call)}", "messages")
    if isinstance(function := call.get("function"), dict):
        return {**call, "function": _with_arguments(function, f"{name}.function")}
    return _with_arguments(call, name) if "arguments" in call else call


def _with_arguments(function: dict[str, Any], name: str) -> dict[str, Any]:
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    elif isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValidationError(f"{name}.arguments is not valid JSON: {error}", "messages") from None
    if not isinstance(arguments, dict):
        found = shown(function["arguments"])
        raise ValidationError(f"{name}.arguments must be a dict or the JSON text of an object, got {found}", "messages")
    return {**function, "arguments": arguments}


def _plain_tool(tool: Any, name: str) -> Any:
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        return schema_of_function(tool, name)
    try:
        schema = None if isinstance(tool, (str, type)) else plain(tool, name)
    except (ValidationError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise ValidationError(
            f"{name} must be a dict with a JSON schema or a Python function, got {shown(tool)}", "tools"
        )
    return schema


def plain(value: Any, name: str) -> Any:
    """Returns the value in JSON's types only, because a template could call methods of other objects. Raises ValidationError."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # enums and other subclasses become plain strings
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.generic):
        return plain(value.item(), name)
    if isinstance(value, Mapping):
        return {plain(key, name): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = (plain(item, f"{name}[{index}]") for index, item in enumerate(value))
        return tuple(items) if isinstance(value, tuple) else list(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), name) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic, as in the clients of OpenAI's API
        return plain(dump(), name)
    raise ValidationError(f"{name} must be text, a number, a list or a dict, got {type(value).__name__}", name)

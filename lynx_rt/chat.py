"""Chat templates: messages to prompt text, as transformers 5 does it (same Jinja settings, functions and filters).

A template comes with the checkpoint, so it is kept from Python's internals and from changing the caller's messages. It
is not bounded in time: Jinja only refuses ranges over 100000.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lynx_rt.errors import ValidationError
from lynx_rt.tokenizer import Tokenizer

Message = Mapping[str, Any]
_CONTINUE_MARK = "CONTINUE-THIS-MESSAGE-HERE "  # ends in a space to learn whether the template strips messages
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # names that clients and templates have for one thing
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt")


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` for templates, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` that holds no names with a leading underscore: these would be Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no name for self, which a template may want for a variable
        self, *values = args
        for name in dict(*values, **kwargs):
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, *values, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML characters, which is wrong in a prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    try:
        return environment.from_string(text)
    except Exception as error:  # Jinja's own, and whatever a constant expression raises
        raise ValidationError(f"the chat template does not compile: {error}", "chat_template") from None


def template_text(template: str | Path) -> str:
    """A template given as a path or as its text."""
    if isinstance(template, str) and ("{" in template or "\n" in template):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise ValidationError(
            f"chat_template {str(template)!r} is no template and cannot be read: {error}", "chat_template"
        ) from None


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    chat_template: str | Path | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text of one conversation; special tokens are in the text, so encode it without adding any.

    chat_template: text, path or the name of one of the tokenizer's; None = the tokenizer's ("tool_use" with tools).
    continue_final_message: leave the last message open instead of starting a new one.  tools: JSON schemas.
    template_kwargs: further variables for the template.
    Raises ValidationError for messages or a template that do not fit each other.
    """
    if not isinstance(continue_final_message, bool):
        raise ValidationError(
            f"continue_final_message must be True or False, got {continue_final_message!r}", "continue_final_message"
        )
    if continue_final_message and add_generation_prompt:
        raise ValidationError(
            "continue_final_message goes on with the last message: set add_generation_prompt=False",
            "continue_final_message",
        )
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValidationError(f"messages must be a list of dicts, got {type(messages).__name__}", "messages")
    conversation = [_checked(message, index) for index, message in enumerate(messages)]
    if not conversation:
        raise ValidationError("messages must hold at least one message, got none", "messages")
    schemas = None if tools is None else _checked_tools(tools)
    variables = _plain(template_kwargs or {}, "chat_template_kwargs")
    if taken := [name for name in _OWN_VARIABLES if name in variables]:
        raise ValidationError(f"chat_template_kwargs cannot set {taken[0]!r}, which has its own argument", taken[0])
    final_text = _mark_end(conversation[-1]) if continue_final_message else ""
    template = _compile(_pick_template(chat_template, tokenizer, schemas is not None))
    try:
        rendered = template.render(
            **{"documents": None, **tokenizer.special_tokens, **variables},
            messages=conversation,
            tools=schemas,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # a template may compute anything
        reason = str(error) or type(error).__name__
        raise ValidationError(f"the chat template rejects these messages: {reason}", "messages") from None
    return _cut_at_mark(rendered, final_text) if continue_final_message else rendered


def render_chats(
    conversations: Sequence[Message] | Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    *,
    chat_template: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[str]:
    """render_chat() of one conversation or of several."""
    template = None if chat_template is None else os.fspath(chat_template)
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        raise ValidationError(f"messages must be a list of dicts, got {type(conversations).__name__}", "messages")
    single = len(conversations) == 0 or isinstance(conversations[0], Mapping)
    batch: Any = [conversations] if single else conversations
    return [render_chat(messages, tokenizer, chat_template=template, **options) for messages in batch]


def _mark_end(message: dict[str, Any]) -> str:
    """Puts the mark after the message's text, or after the last of its text parts; returns the text."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        holder = next((part for part in reversed(content) if isinstance(part, dict) and "text" in part), None)
        key = "text"
    else:
        holder, key = message, "content"
    if holder is None or not isinstance(text := holder.get(key), str):
        raise ValidationError("continue_final_message needs a last message with text", "messages")
    holder[key] = text + _CONTINUE_MARK
    return text


def _cut_at_mark(rendered: str, final_text: str) -> str:
    place = rendered.rfind(_CONTINUE_MARK.rstrip())
    if place < 0 or final_text.strip() not in rendered:
        raise ValidationError(
            "the chat template drops the last message or parts of it, so it cannot be continued", "messages"
        )
    # Without the mark's own space the template strips messages, and it would have stripped the message's end as well.
    return rendered[:place] if rendered.startswith(_CONTINUE_MARK, place) else rendered[:place].rstrip()


def _pick_template(chosen: str | Path | None, tokenizer: Tokenizer, with_tools: bool) -> str:
    own = tokenizer.chat_template
    named = own if isinstance(own, Mapping) else {}
    if chosen is not None:
        return named[str(chosen)] if str(chosen) in named else template_text(chosen)
    if isinstance(own, str):
        return own
    for name in ("tool_use", "default") if with_tools else ("default",):
        if name in named:
            return str(named[name])
    if named:
        raise ValidationError(
            f"none of this model's chat templates is the default; pass chat_template= one of {sorted(named)}",
            "chat_template",
        )
    raise ValidationError(
        "this model has no chat template; pass chat_template=..., or use generate() with a plain prompt",
        "chat_template",
    )


def _checked(message: Message, index: int) -> dict[str, Any]:
    """A copy in plain types. Keys without a value are left out, and reasoning goes by all of its names."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValidationError(
            f"messages[{index}] must be a dict with 'role' and 'content', got {message!r}", "messages"
        )
    plain = _plain({key: value for key, value in message.items() if value is not None}, f"messages[{index}]")
    reasoning = next((plain[key] for key in _REASONING_KEYS if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _checked_tools(tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ValidationError(
                f"tools[{index}] must be a dict with a JSON schema, got {type(tool).__name__}", "tools"
            )
    return [_plain(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _plain(value: Any, name: str) -> Any:
    """The value in JSON's types only: a template could call methods of other objects. Raises ValidationError."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # enums and the like lose their class
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.generic):
        return _plain(value.item(), name)
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = (_plain(item, f"{name}[{index}]") for index, item in enumerate(value))
        return tuple(items) if isinstance(value, tuple) else list(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), name) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic, as in the clients of OpenAI's API
        return _plain(dump(), name)
    raise ValidationError(f"{name} must be text, a number, a list or a dict, got {type(value).__name__}", name)

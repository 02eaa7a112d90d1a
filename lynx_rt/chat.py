"""Chat templates: messages to prompt text, as transformers does it (same Jinja settings, functions and filters)."""

from __future__ import annotations

import datetime
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lynx_rt.errors import ValidationError
from lynx_rt.tokenizer import Tokenizer

Message = Mapping[str, Any]
_CONTINUE_MARK = "\x02continue here\x03 "  # ends in a space to learn whether the template strips messages


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


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
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ValidationError(f"the chat template does not compile: {error}", "chat_template") from None


def template_text(template: str | Path) -> str:
    """A template given as a path or as its text."""
    if isinstance(template, str) and ("{" in template or "\n" in template):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except OSError as error:
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

    chat_template: None = the tokenizer's.  continue_final_message: leave the last message open instead of starting a
    new one.  tools: JSON schemas.  template_kwargs: further variables for the template.
    Raises ValidationError for messages or a template that do not fit each other.
    """
    if continue_final_message and add_generation_prompt:
        raise ValidationError(
            "continue_final_message goes on with the last message: set add_generation_prompt=False",
            "continue_final_message",
        )
    conversation = [_checked(message, index) for index, message in enumerate(messages)]
    if not conversation:
        raise ValidationError("messages must hold at least one message, got none", "messages")
    if continue_final_message:
        last = conversation[-1]
        if not isinstance(last.get("content"), str):
            raise ValidationError("continue_final_message needs a last message with text", "messages")
        conversation[-1] = {**last, "content": last["content"] + _CONTINUE_MARK}
    text = template_text(chat_template) if chat_template is not None else _own_template(tokenizer, bool(tools))
    variables = {"tools": list(tools) if tools else None, "documents": None, **tokenizer.special_tokens}
    variables |= dict(template_kwargs or {})
    try:
        rendered = _compile(text).render(
            messages=conversation, add_generation_prompt=add_generation_prompt, **variables
        )
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise ValidationError(f"the chat template rejects these messages: {error}", "messages") from None
    return _cut_at_mark(rendered) if continue_final_message else rendered


def render_chats(
    conversations: Sequence[Message] | Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    *,
    chat_template: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[str]:
    """render_chat() of one conversation or of several."""
    template = None if chat_template is None else os.fspath(chat_template)
    single = len(conversations) == 0 or isinstance(conversations[0], Mapping)
    batch: Any = [conversations] if single else conversations
    return [render_chat(messages, tokenizer, chat_template=template, **options) for messages in batch]


def _cut_at_mark(rendered: str) -> str:
    place = rendered.rfind(_CONTINUE_MARK.rstrip())
    if place < 0:
        raise ValidationError("the chat template drops the last message, so it cannot be continued", "messages")
    # Without the mark's own space the template strips messages, and it would have stripped the message's end as well.
    return rendered[:place] if rendered.startswith(_CONTINUE_MARK, place) else rendered[:place].rstrip()


def _own_template(tokenizer: Tokenizer, with_tools: bool) -> str:
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("tool_use" if with_tools else "default", template.get("default"))
    if template is None:
        raise ValidationError(
            "this model has no chat template; pass chat_template=..., or use generate() with a plain prompt",
            "chat_template",
        )
    return str(template)


def _checked(message: Message, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValidationError(
            f"messages[{index}] must be a dict with 'role' and 'content', got {message!r}", "messages"
        )
    return dict(message)

"""Renders the messages of a chat as prompt text like transformers 5, from what OpenAI's clients and vLLM's users send."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lynx_rt.errors import ValidationError, shown
from lynx_rt.interrupts import comes_from_signal_handler
from lynx_rt.text.chat_messages import REASONING_KEYS, fit_content, plain, plain_messages, plain_tools
from lynx_rt.text.chat_template import compile_template, content_forms, pick_template
from lynx_rt.text.image_parts import ImageSource
from lynx_rt.text.tokenizer import Tokenizer

Message = Mapping[str, Any]  # or an object with such fields: a pydantic model, a dataclass
_CONTINUE_MARK = "CONTINUE-THIS-MESSAGE-HERE "  # the space at its end shows whether the template strips messages
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt")


def render_chat(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    chat_template: str | os.PathLike[str] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    images: list[ImageSource] | None = None,
) -> str:
    """The prompt text of one conversation; special tokens are in the text, so encode it without adding any.

    messages: dicts, pydantic models or dataclasses with "role", "content" (a text or a list of text parts) and other
    fields that the template knows. Arguments of tool calls may be JSON texts.
    chat_template: text, path or the name of one of the tokenizer's; None = the tokenizer's ("tool_use" with tools).
    continue_final_message: leave the last message open instead of starting a new one; a name = this field of it.
    tools: JSON schemas, or functions with type hints and a docstring.  template_kwargs: further variables for the template.
    images: takes the images of the messages, in order; the template writes a placeholder for each. None = they are refused.
    Raises ValidationError for messages or a template that do not fit each other.
    """
    for name, value, kinds in (
        ("add_generation_prompt", add_generation_prompt, "True or False"),
        ("continue_final_message", continue_final_message, "True, False or the name of a field"),
    ):
        if not isinstance(value, bool) and not (isinstance(value, str) and value and name.startswith("continue")):
            raise ValidationError(f"{name} must be {kinds}, got {shown(value)}", name)
    if continue_final_message and add_generation_prompt:
        raise ValidationError(
            "continue_final_message goes on with the last message: set add_generation_prompt=False",
            "continue_final_message",
        )
    if not isinstance(chat_template, (str, os.PathLike, type(None))):
        raise ValidationError(f"chat_template must be a text or a path, got {shown(chat_template)}", "chat_template")
    conversation = plain_messages(messages, images)
    schemas = plain_tools(tools)
    variables = plain({} if template_kwargs is None else template_kwargs, "chat_template_kwargs")
    if not isinstance(variables, dict) or not all(isinstance(name, str) for name in variables):
        raise ValidationError(
            f"chat_template_kwargs must be a dict with names of variables, got {shown(template_kwargs)}",
            "chat_template_kwargs",
        )
    if taken := [name for name in _OWN_VARIABLES if name in variables]:
        raise ValidationError(f"chat_template_kwargs cannot set {taken[0]!r}, which has its own argument", taken[0])
    chosen = None if chat_template is None else os.fspath(chat_template)
    source = pick_template(chosen, tokenizer, schemas is not None)
    template = compile_template(source)
    special = tuple(tokenizer.special_tokens.items())
    fit_content(conversation, lambda role: content_forms(source, role, special), images is not None)
    final_text = ""
    if continue_final_message:
        key = "content" if continue_final_message is True else continue_final_message
        final_text = _mark_end(conversation[-1], key)
    context = {"documents": None, **tokenizer.special_tokens, **variables, "tools": schemas}
    rendered = _render(template, conversation, context | {"add_generation_prompt": add_generation_prompt})
    return _cut_at_mark(rendered, final_text) if continue_final_message else rendered


def render_chats(
    conversations: Sequence[Message] | Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    **options: Any,
) -> list[str]:
    """Renders one conversation or several, each with render_chat()."""
    return [render_chat(messages, tokenizer, **options) for messages in as_conversations(conversations)]


def as_conversations(conversations: Sequence[Any]) -> Sequence[Any]:
    """Returns one conversation as a list of one, and several as they are."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, (str, bytes, bytearray)):
        raise ValidationError(f"messages must be a list of dicts, got {type(conversations).__name__}", "messages")
    single = not conversations or not isinstance(conversations[0], (list, tuple))
    return [conversations] if single else conversations


def _render(template: Any, conversation: list[dict[str, Any]], context: dict[str, Any]) -> str:
    """Returns the rendered text. Where the template fails, an assistant's missing content is tried as None and as "".

    transformers leaves out contents that are None, as most templates expect. Some templates test for None, or add to the
    content.
    """
    silent = [message for message in conversation if message["role"] == "assistant" and "content" not in message]
    fault: Exception | None = None
    for content in (..., None, "") if silent else (...,):
        if content is not ...:
            for message in silent:
                message["content"] = content
        try:
            return str(template.render(**context, messages=conversation))
        except Exception as error:  # a template may raise anything
            if comes_from_signal_handler(error):
                raise
            fault = fault or error
    raise ValidationError(
        f"the chat template rejects these messages: {str(fault) or type(fault).__name__}", "messages"
    ) from None


def _mark_end(message: dict[str, Any], key: str) -> str:
    """Puts the mark after the message's text, or after the last of its text parts; returns the text."""
    content = message.get(key)
    if isinstance(content, (list, tuple)):
        holders = [part for part in content if isinstance(part, dict) and "text" in part][-1:]
        keys = ["text"]
    else:
        # Reasoning has several names, and the template reads one of them: all get the mark.
        holders = [message]
        keys = [name for name in REASONING_KEYS if message.get(name) == content] if key in REASONING_KEYS else [key]
    texts = [text for holder in holders for name in keys if isinstance(text := holder.get(name), str)]
    if not texts:
        raise ValidationError(f"continue_final_message needs a last message with text as its {key!r}", "messages")
    for name in keys:
        holders[0][name] = texts[0] + _CONTINUE_MARK
    return texts[0]


def _cut_at_mark(rendered: str, final_text: str) -> str:
    place = rendered.rfind(_CONTINUE_MARK.rstrip())
    if place < 0 or final_text.strip() not in rendered:
        raise ValidationError(
            "the chat template drops the last message or parts of it, so it cannot be continued", "messages"
        )
    # If the mark has lost its space, the template strips messages, and would have stripped the end of this one as well.
    return rendered[:place] if rendered.startswith(_CONTINUE_MARK, place) else rendered[:place].rstrip()

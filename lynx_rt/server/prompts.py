"""Turns bodies of requests into engine requests. Long texts are tokenized outside of the event loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lynx_rt.engine.engine import Engine
from lynx_rt.errors import ValidationError
from lynx_rt.server.errors import bad_request
from lynx_rt.server.protocol import ChatFields
from lynx_rt.server.sampling import output_limit
from lynx_rt.server.state import ServerState
from lynx_rt.text.prompts import ParsedPrompt

T = TypeVar("T")
_SHORT = 4096  # characters or tokens that are worth no other thread: about a millisecond


async def in_thread(state: ServerState, size: int, work: Callable[[], T], slow: bool = False) -> T:
    """Runs work(), in another thread if the text is long. size: characters or tokens.  slow: it takes long anyway."""
    if size <= _SHORT and not slow:
        return work()
    return await asyncio.get_running_loop().run_in_executor(state.encoders, work)


def parse(
    engine: Engine,
    prompts: Any,
    *,
    name: str = "prompt",
    add_special_tokens: bool | None = None,
    truncate: int | None = None,
) -> list[ParsedPrompt]:
    """Returns prompts with token ids, whatever their length.

    truncate: tokens that are kept of the end; -1 = what leaves room for one token of output.
    """
    limit = engine.max_model_len - 1
    if truncate is not None and (truncate < -1 or truncate == 0):
        raise bad_request(f"truncate_prompt_tokens must be -1 or at least 1, got {truncate}", "truncate_prompt_tokens")
    try:
        parsed = engine.inputs.parse(prompts, name, add_special_tokens, any_length=True)
    except ValidationError as error:
        raise bad_request(str(error), name if error.field == "prompts" else error.field or None) from None
    if truncate is not None:
        if any(prompt.images for prompt in parsed):
            raise bad_request("truncate_prompt_tokens cannot cut a prompt with images", "truncate_prompt_tokens")
        for prompt in parsed:
            prompt.token_ids = prompt.token_ids[-(limit if truncate == -1 else truncate) :]
    return parsed


def chat_prompt(body: ChatFields, state: ServerState) -> dict[str, Any]:
    """Returns the body's conversation as a prompt of Engine. Raises ApiError for a template that may not be given."""
    settings = state.settings
    if body.chat_template is not None and not settings.trust_request_chat_template:
        raise bad_request(
            "chat_template: this server takes its own template only (--trust-request-chat-template)", "chat_template"
        )
    if body.tools is not None and not body.tools:
        raise bad_request("tools must hold at least one tool, or be left out", "tools")
    kwargs: dict[str, Any] = {**settings.default_chat_template_kwargs}
    if body.reasoning_effort is not None:
        kwargs["reasoning_effort"] = body.reasoning_effort
        kwargs["enable_thinking"] = body.reasoning_effort != "none"
    if body.documents is not None:
        kwargs["documents"] = body.documents
    kwargs.update(body.chat_template_kwargs or {})
    prompt: dict[str, Any] = {"messages": body.messages, "chat_template_kwargs": kwargs}
    for name in ("chat_template", "tools", "add_generation_prompt", "continue_final_message", "mm_processor_kwargs"):
        if (value := getattr(body, name)) is not None:
            prompt[name] = value
    if body.continue_final_message and body.add_generation_prompt is None:
        prompt["add_generation_prompt"] = False
    return prompt


def size_of(value: Any) -> int:
    """Returns about how many characters or tokens a body's prompt has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, Sequence):
        return len(value) if value and isinstance(value[0], int) else sum(size_of(item) for item in value)
    return 1


def limits(prompts: Sequence[ParsedPrompt], max_tokens: int | None, engine: Engine) -> list[int | None]:
    """Returns the output limit of each prompt. Raises ApiError for one that fills the context."""
    return [output_limit(len(prompt.token_ids), max_tokens, engine.max_model_len) for prompt in prompts]

"""One answer of a chat, as /v1/responses and /v1/messages need it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any

from lynx_rt.engine.request import Request
from lynx_rt.server.answer import EventAnswer
from lynx_rt.server.caller import Caller
from lynx_rt.server.conversation import Conversation, Part, chat_request, model_prompt
from lynx_rt.server.errors import ApiError
from lynx_rt.server.media import fetch_images
from lynx_rt.server.prompts import in_thread, parse, size_of
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.sampling import may_need_grammar
from lynx_rt.server.state import ServerState
from lynx_rt.server.usage import lynx_object, usage
from lynx_rt.text.response import ResponseDelta, ToolCallDelta


async def begin_turn(
    body: ChatBody, state: ServerState, caller: Caller, answer_id: str, names: Mapping[str, str]
) -> Turn:
    """Checks a chat and returns its answer, which generates in the Turn's `async with` block.

    names: field of a chat -> field of the API's body that it comes from, where that is another, for errors.
    """
    state.ready_engine()
    model = state.model_name(body.model)
    state.check_room(1)
    with _named(names):
        slow = await fetch_images(body.messages, state) or may_need_grammar(body) or bool(body.tools)
        request = await in_thread(state, size_of(body.messages), lambda: chat_request(body, state, caller), slow)
    return Turn(state, model, request, Conversation(body, state, caller, request, answer_id))


async def count_tokens(body: ChatBody, state: ServerState, names: Mapping[str, str]) -> int:
    """Returns the number of tokens of a chat, whatever its length. names: as for begin_turn()."""
    engine = state.ready_engine()
    state.model_name(body.model)
    with _named(names):
        prompt, slow = model_prompt(body, state), await fetch_images(body.messages, state)
        work = functools.partial(parse, engine, prompt, name="messages")
        (parsed,) = await in_thread(state, size_of(body.messages), work, slow)
    return len(parsed.token_ids)


@contextlib.contextmanager
def _named(names: Mapping[str, str]) -> Iterator[None]:
    """Gives errors the field of the API's body."""
    try:
        yield
    except ApiError as error:
        if error.param is not None:
            error.param = names.get(error.param, error.param)
        raise


class Turn:
    """One request, from its first token to its last."""

    def __init__(self, state: ServerState, model: str, request: Request, conversation: Conversation) -> None:
        self.model = model
        self.request = request
        self.finish_reason = ""  # "stop", "tool_calls" or "length", after the last part
        self.stop_reason: int | str | None = None
        self._state = state
        self._conversation = conversation

    async def __aenter__(self) -> Turn:
        await self._conversation.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._conversation.__aexit__(kind, error, trace)

    async def parts(self) -> AsyncIterator[Part]:
        """Yields what is new. Raises ApiError where the engine did not finish the answer."""
        async for part in self._conversation.parts():
            if part.finish_reason is not None:
                self.finish_reason, self.stop_reason = part.finish_reason, part.delta.stop_reason
            yield part

    def usage(self) -> dict[str, Any]:
        return usage([self.request], self._conversation.reasoning_tokens)

    def lynx(self) -> dict[str, Any]:
        return lynx_object([self.request], self._state.policy)


def growth(delta: ResponseDelta) -> Iterator[tuple[str, str | ToolCallDelta]]:
    """Yields what a response grew by, in the order in which it was generated: the rest of a call, texts, further calls.

    The names are "reasoning", "content" and "call".
    """
    calls = delta.tool_calls
    rest = next((place for place, call in enumerate(calls) if call.id is not None), len(calls))
    for call in calls[:rest]:
        yield "call", call
    for name in ("reasoning", "content"):
        if text := getattr(delta, name):
            yield name, text
    for call in calls[rest:]:
        yield "call", call


def is_complete(arguments: str) -> bool:
    """Whether a tool call's arguments are a JSON object. Those of a call in which the output ended are not."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def event_answer(events: AsyncIterator[Any], state: ServerState, **options: Any) -> EventAnswer:
    """Returns a stream without the line [DONE], which only OpenAI's older APIs have. options: of EventAnswer."""
    settings = state.settings
    return EventAnswer(
        events,
        settings,
        done=None,
        **options,
    )

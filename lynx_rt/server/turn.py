"""One answer of a chat, as /v1/responses and /v1/messages need it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.server import chat
from lynx_rt.server.answer import EventAnswer
from lynx_rt.server.caller import Caller
from lynx_rt.server.errors import ApiError
from lynx_rt.server.generation import Generation
from lynx_rt.server.prompts import in_thread, size_of
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.state import ServerState
from lynx_rt.server.usage import usage
from lynx_rt.text.response import ResponseDelta


async def begin_turn(body: ChatBody, state: ServerState, caller: Caller, answer_id: str, prompt_field: str) -> Turn:
    """Checks a chat and returns its answer, which generates in the Turn's `async with` block.

    prompt_field: name of the messages in the API's body, for errors.
    """
    state.ready_engine()
    model = state.model_name(body.model)
    state.check_room(1)
    try:
        chat.check(body)
        request = await in_thread(state, size_of(body.messages), lambda: chat.request_of(body, state, caller))
    except ApiError as error:
        if error.param == "messages":
            error.param = prompt_field
        raise
    return Turn(state, model, request, (answer_id, caller.request_id))


class Turn:
    """One request, from its first token to its last."""

    def __init__(self, state: ServerState, model: str, request: Request, names: tuple[str, str]) -> None:
        """names: the ids by which it can be aborted."""
        self.state = state
        self.model = model
        self.request = request
        self.finish_reason = ""  # "stop" or "length", after the last delta
        self.stop_reason: int | str | None = None
        self._generation = Generation(state, [request], names)

    async def __aenter__(self) -> Turn:
        await self._generation.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._generation.__aexit__(kind, error, trace)

    async def deltas(self) -> AsyncIterator[tuple[ResponseDelta, CompletionDelta]]:
        """Yields what is new: parsed, and its tokens. Raises ApiError where the engine did not finish the answer."""
        async for _, tokens in self._generation.deltas():
            if tokens.finish_reason == "abort":  # these APIs have no such ending
                if tokens.error is not None:
                    raise ApiError(504, tokens.error, code="timeout")
                raise ApiError(503, "the request was ended before its answer was complete", code="aborted")
            if tokens.finish_reason is not None:
                self.finish_reason, self.stop_reason = tokens.finish_reason, tokens.stop_reason
            yield self._parsed(tokens), tokens

    def _parsed(self, tokens: CompletionDelta) -> ResponseDelta:
        return ResponseDelta(tokens.text)

    def usage(self) -> dict[str, Any]:
        return usage([self.request])


def event_answer(events: AsyncIterator[Any], state: ServerState, **options: Any) -> EventAnswer:
    """Returns a stream without the line [DONE], which only OpenAI's older APIs have. options: of EventAnswer."""
    settings = state.settings
    return EventAnswer(
        events,
        keep_alive_seconds=settings.keep_alive_seconds,
        stall_timeout=settings.stall_timeout,
        done=None,
        **options,
    )

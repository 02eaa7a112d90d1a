"""One answer of a chat, as /v1/responses and /v1/messages need it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.server import chat
from lynx_rt.server.answer import EventAnswer
from lynx_rt.server.errors import ApiError
from lynx_rt.server.generation import Generation
from lynx_rt.server.prompts import in_thread, size_of
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.state import ServerState
from lynx_rt.server.usage import usage

_ENDINGS = {"abort": (503, "aborted", "the request was ended before its answer was complete")}


@dataclass
class ToolCallDelta:
    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass
class ResponseDelta:
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


async def begin_turn(body: ChatBody, state: ServerState, prompt_field: str) -> Turn:
    """Checks a chat and returns its answer, which generates in the Turn's `async with` block.

    prompt_field: of the API's body, for errors of the messages.
    """
    state.ready_engine()
    model = state.model_name(body.model)
    state.check_room(1)
    try:
        chat.check(body)
        request = await in_thread(state, size_of(body.messages), lambda: chat.request_of(body, state))
    except ApiError as error:
        if error.param == "messages":
            error.param = prompt_field
        raise
    return Turn(body, state, model, request)


class Turn:
    def __init__(self, body: ChatBody, state: ServerState, model: str, request: Request) -> None:
        self.body = body
        self.state = state
        self.model = model
        self.request = request
        self.finish_reason = ""  # "stop" or "length", after the last delta
        self.stop_reason: int | str | None = None
        self._generation = Generation(state, [request])

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
            if tokens.finish_reason in _ENDINGS:
                status, code, text = _ENDINGS[tokens.finish_reason]
                raise ApiError(status, text, code=code)
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

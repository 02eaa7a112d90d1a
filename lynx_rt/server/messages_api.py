"""/v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lynx_rt.server.answer import JsonAnswer
from lynx_rt.server.caller import caller_of
from lynx_rt.server.errors import ApiError
from lynx_rt.server.messages_body import FIELD_NAMES, CountTokensBody, MessagesBody, chat_of_messages, prompt_fields
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.state import state_of
from lynx_rt.server.turn import Turn, begin_turn, count_tokens, event_answer, growth, is_complete
from lynx_rt.text.response import ResponseDelta, ToolCallDelta

router = APIRouter(prefix="/v1/messages", tags=["generation"])
Event = tuple[str, dict[str, Any]]
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_BLOCK_OF_TEXT = {"content": "text", "reasoning": "thinking"}
_DELTA_OF_BLOCK = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


@router.post("")
async def create_message(body: MessagesBody, request: Request) -> Response:
    """Answers a conversation, as Anthropic's API does."""
    state = state_of(request)
    engine = state.ready_engine()
    chat = chat_of_messages(body, engine.max_model_len, engine.response_format.reasoning_tags is not None)
    answer_id = f"msg_{uuid.uuid4().hex}"
    answer = _Answer(answer_id, await begin_turn(chat, state, caller_of(request), answer_id, FIELD_NAMES))
    if body.stream:
        return event_answer(answer.events(), state, error_event=_error_event, keep_alive=_PING)
    return JsonAnswer(answer.whole)


@router.post("/count_tokens")
async def count_message_tokens(body: CountTokensBody, request: Request) -> dict[str, int]:
    """The number of tokens of a conversation."""
    state = state_of(request)
    chat = ChatBody.model_construct(model=body.model, **prompt_fields(body))
    return {"input_tokens": await count_tokens(chat, state, FIELD_NAMES)}


class _Answer:
    """One request, from its first token to its answer."""

    def __init__(self, answer_id: str, turn: Turn) -> None:
        self._turn = turn
        self._id = answer_id
        self._blocks = ContentBlocks()

    async def whole(self) -> dict[str, Any]:
        async with self._turn as turn:
            async for part in turn.parts():
                for _event in self._blocks.feed(part.response):
                    pass
        for _event in self._blocks.finish():
            pass
        return {**self._message(), **self._ending(), "content": self._blocks.blocks, "lynx": self._turn.lynx()}

    async def events(self) -> AsyncIterator[Event | bytes]:
        begun = False
        async with self._turn as turn:
            async for part in turn.parts():
                if not begun:
                    begun = True
                    yield _event("message_start", message=self._message())
                    yield _PING
                for event in self._blocks.feed(part.response):
                    yield event
        for event in self._blocks.finish():
            yield event
        yield _event("message_delta", delta=self._ending(), usage=self._usage())
        yield _event("message_stop")

    def _message(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._turn.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def _ending(self) -> dict[str, Any]:
        """Returns stop_reason and stop_sequence."""
        turn = self._turn
        sequence = turn.stop_reason if isinstance(turn.stop_reason, str) else None
        if turn.finish_reason == "length":
            reason = "max_tokens"
        elif any(block["type"] == "tool_use" for block in self._blocks.blocks):
            reason = "tool_use"
        else:
            reason = "end_turn" if sequence is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": sequence if reason == "stop_sequence" else None}

    def _usage(self) -> dict[str, Any]:
        """Returns the tokens so far. Those of the prompt that were in the prefix cache are counted apart."""
        counts = self._turn.usage()
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"thinking_tokens": counts["completion_tokens_details"]["reasoning_tokens"]},
        }


class ContentBlocks:
    """The blocks of an answer, and the events of their growth. They grow one at a time."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []  # without calls that the output ended in
        self._count = 0  # blocks so far, with those calls
        self._open: dict[str, Any] | None = None
        self._texts: list[str] = []  # of the open block

    def feed(self, delta: ResponseDelta) -> Iterator[Event]:
        """Adds what is new."""
        for name, value in growth(delta):
            if isinstance(value, ToolCallDelta):
                if value.id is not None:
                    yield from self._begin("tool_use", id=value.id, name=value.name, input={})
                yield from self._grow(value.arguments)
            else:
                kind = _BLOCK_OF_TEXT[name]
                if self._open is None or self._open["type"] != kind:
                    yield from self._begin(kind, **{kind: ""}, **({"signature": ""} if kind == "thinking" else {}))
                yield from self._grow(value)

    def finish(self) -> Iterator[Event]:
        """Ends the last block. An answer without anything becomes an empty text."""
        if not self._count:
            yield from self._begin("text", text="")
        yield from self._close()

    def _begin(self, kind: str, **fields: Any) -> Iterator[Event]:
        yield from self._close()
        self._open = {"type": kind, **fields}
        self._count += 1
        yield self._event("content_block_start", content_block=dict(self._open))

    def _grow(self, text: str) -> Iterator[Event]:
        if text and self._open is not None:
            self._texts.append(text)
            kind, key = _DELTA_OF_BLOCK[self._open["type"]]
            yield self._event("content_block_delta", delta={"type": kind, key: text})

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        block, text = self._open, "".join(self._texts)
        self._open, self._texts = None, []
        if block["type"] == "thinking":
            yield self._event("content_block_delta", delta={"type": "signature_delta", "signature": ""})
        yield self._event("content_block_stop")
        if block["type"] != "tool_use":
            self.blocks.append({**block, block["type"]: text})
        elif is_complete(text):
            self.blocks.append({**block, "input": json.loads(text)})

    def _event(self, name: str, **fields: Any) -> Event:
        return _event(name, index=self._count - 1, **fields)


def _event(name: str, **fields: Any) -> Event:
    return name, {"type": name, **fields}


def _error_event(error: ApiError) -> Event:
    return "error", error.anthropic_body()

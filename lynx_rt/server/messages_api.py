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
from lynx_rt.server.messages_body import CountTokensBody, MessagesBody, chat_of_messages, prompt_fields
from lynx_rt.server.prompts import chat_prompt, in_thread, parse, size_of
from lynx_rt.server.protocol import ChatFields
from lynx_rt.server.state import ServerState
from lynx_rt.server.turn import Turn, begin_turn, event_answer
from lynx_rt.server.usage import lynx_object
from lynx_rt.text.response import ResponseDelta

router = APIRouter(prefix="/v1/messages", tags=["generation"])
Event = tuple[str, dict[str, Any]]
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_DELTA_OF_BLOCK = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


@router.post("")
async def create_message(body: MessagesBody, request: Request) -> Response:
    """Answers a conversation, as Anthropic's API does."""
    state: ServerState = request.app.state.server
    chat = chat_of_messages(body, state.ready_engine().max_model_len)
    answer_id = f"msg_{uuid.uuid4().hex}"
    answer = _Answer(answer_id, await begin_turn(chat, state, caller_of(request), answer_id, "messages"))
    if body.stream:
        return event_answer(answer.events(), state, error_event=_error_event, keep_alive=_PING)
    return JsonAnswer(answer.whole)


@router.post("/count_tokens")
async def count_tokens(body: CountTokensBody, request: Request) -> dict[str, int]:
    """The number of tokens of a conversation."""
    state: ServerState = request.app.state.server
    engine = state.ready_engine()
    state.model_name(body.model)

    def work() -> int:
        prompt = chat_prompt(ChatFields.model_construct(**prompt_fields(body)), state)
        (parsed,) = parse(engine, prompt, name="messages")
        return len(parsed.token_ids)

    return {"input_tokens": await in_thread(state, size_of(body.messages), work)}


class _Answer:
    """One request, from its first token to its answer."""

    def __init__(self, answer_id: str, turn: Turn) -> None:
        self._turn = turn
        self._id = answer_id
        self._blocks = ContentBlocks()

    async def whole(self) -> dict[str, Any]:
        async with self._turn as turn:
            async for delta, _ in turn.deltas():
                for _event in self._blocks.feed(delta):
                    pass
        for _event in self._blocks.finish():
            pass
        lynx = lynx_object(self._turn.request, self._turn.state.policy)
        return {**self._message(), **self._ending(), "content": self._blocks.blocks, "lynx": lynx}

    async def events(self) -> AsyncIterator[Event | bytes]:
        begun = False
        async with self._turn as turn:
            async for delta, _ in turn.deltas():
                if not begun:
                    begun = True
                    yield _event("message_start", message=self._message())
                    yield _PING
                for event in self._blocks.feed(delta):
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
    """The parts of an answer, and the events of their growth. They grow one at a time."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._texts: list[str] = []  # of the open block

    def feed(self, delta: ResponseDelta) -> Iterator[Event]:
        """Adds what is new."""
        for call in delta.tool_calls:
            if call.id is None:
                yield from self._grow("input_json_delta", "partial_json", call.arguments)
        for kind, text in (("thinking", delta.reasoning), ("text", delta.content)):
            if text:
                if self._open is None or self._open["type"] != kind:
                    yield from self._begin(kind, **{kind: ""}, **({"signature": ""} if kind == "thinking" else {}))
                yield from self._grow(*_DELTA_OF_BLOCK[kind], text)
        for call in delta.tool_calls:
            if call.id is not None:
                yield from self._begin("tool_use", id=call.id, name=call.name, input={})
                yield from self._grow("input_json_delta", "partial_json", call.arguments)

    def finish(self) -> Iterator[Event]:
        """Ends the last block. An answer without anything becomes an empty text."""
        if not self.blocks:
            yield from self._begin("text", text="")
        yield from self._close()

    def _begin(self, kind: str, **fields: Any) -> Iterator[Event]:
        yield from self._close()
        self._open = {"type": kind, **fields}
        self.blocks.append(self._open)
        yield self._event("content_block_start", content_block=dict(self._open))

    def _grow(self, delta: str, key: str, text: str) -> Iterator[Event]:
        if text:
            self._texts.append(text)
            yield self._event("content_block_delta", delta={"type": delta, key: text})

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        kind, text = self._open["type"], "".join(self._texts)
        if kind == "tool_use":
            self._open["input"] = _object_of(text)
        else:
            self._open[kind] = text
        if kind == "thinking":
            yield self._event("content_block_delta", delta={"type": "signature_delta", "signature": ""})
        yield self._event("content_block_stop")
        self._open, self._texts = None, []

    def _event(self, name: str, **fields: Any) -> Event:
        return _event(name, index=len(self.blocks) - 1, **fields)


def _object_of(arguments: str) -> dict[str, Any]:
    """Returns a tool's input; {} where the output ended in it."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _event(name: str, **fields: Any) -> Event:
    return name, {"type": name, **fields}


def _error_event(error: ApiError) -> Event:
    return "error", error.anthropic_body()

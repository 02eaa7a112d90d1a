"""/v1/responses: OpenAI's Responses API. Nothing is kept between requests."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.server.answer import JsonAnswer
from lynx_rt.server.caller import caller_of
from lynx_rt.server.errors import ApiError, from_exception
from lynx_rt.server.logprobs import chat_logprobs
from lynx_rt.server.response_items import Event, ResponseItems
from lynx_rt.server.responses_body import FIELD_NAMES, ResponsesBody, chat_of_response, is_search, names_in_namespaces
from lynx_rt.server.state import state_of
from lynx_rt.server.turn import Turn, begin_turn, count_tokens, event_answer

router = APIRouter(tags=["generation"])


@router.post("/v1/responses")
async def create_response(body: ResponsesBody, request: Request) -> Response:
    """Answers a conversation."""
    state = state_of(request)
    answer_id = f"resp_{uuid.uuid4().hex}"
    turn = await begin_turn(chat_of_response(body), state, caller_of(request), answer_id, FIELD_NAMES)
    answer = _Answer(answer_id, body, turn)
    if body.stream:
        return event_answer(answer.events(), state, error_event=answer.error_event)
    return JsonAnswer(answer.whole)


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(body: ResponsesBody, request: Request) -> dict[str, str | int]:
    """The number of tokens of a conversation."""
    state = state_of(request)
    count = await count_tokens(chat_of_response(body), state, FIELD_NAMES)
    return {"object": "response.input_tokens", "input_tokens": count}


@router.api_route("/v1/responses/{path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def kept_response(path: str) -> Response:
    """Nothing is there: responses are not kept."""
    raise ApiError(
        404,
        f"there is no response {path.partition('/')[0]!r}: this server keeps no responses",
        code="response_not_found",
    )


def ends_with_hidden_token(tokens: CompletionDelta) -> bool:
    """Whether the last token is the one that ended the output, which has no text. It may come with tokens that have."""
    return tokens.finish_reason == "stop" and not isinstance(tokens.stop_reason, str) and len(tokens.token_ids) > 0


class _Answer:
    """One request, from its first token to its answer."""

    def __init__(self, answer_id: str, body: ResponsesBody, turn: Turn) -> None:
        self._body = body
        self._turn = turn
        self._id = answer_id
        self._created = int(time.time())
        self._items = ResponseItems(names_in_namespaces(body.tools))
        self._count = 0  # events so far

    async def whole(self) -> dict[str, Any]:
        async with self._turn as turn:
            async for part in turn.parts():
                for _ in self._items.feed(part.response, self._logprobs(part.delta)):
                    pass
        for _ in self._items.finish(self._status):
            pass
        self._items.drop_unfinished_calls()
        return self._object(self._status)

    async def events(self) -> AsyncIterator[Event]:
        begun = False
        try:
            async with self._turn as turn:
                async for part in turn.parts():
                    if not begun:
                        begun = True
                        for name in ("created", "in_progress"):
                            yield self._event(f"response.{name}", {"response": self._object("in_progress")})
                    for event in self._items.feed(part.response, self._logprobs(part.delta)):
                        yield self._event(*event)
            for event in self._items.finish(self._status):
                yield self._event(*event)
            yield self._event(f"response.{self._status}", {"response": self._object(self._status)})
        except Exception as error:
            if begun:
                failed = self._object("failed", from_exception(error))
                yield self._event("response.failed", {"response": failed})
            raise

    def error_event(self, error: ApiError) -> Event:
        """Returns the last event of a stream that dies. Clients raise what its `error` says, others read the fields."""
        body = error.body()["error"]
        fields = {"code": str(body["code"]), "message": body["message"], "param": body["param"]}
        return self._event("error", {**fields, "error": body})

    def _event(self, name: str, fields: dict[str, Any]) -> Event:
        self._count += 1
        return name, {"type": name, "sequence_number": self._count - 1, **fields}

    @property
    def _status(self) -> str:
        return "incomplete" if self._turn.finish_reason == "length" else "completed"

    def _logprobs(self, tokens: CompletionDelta) -> list[dict[str, Any]]:
        body = self._body
        if not body.wants_logprobs:
            return []
        as_ids = bool(body.return_tokens_as_token_ids)
        shown = len(tokens.token_ids) - ends_with_hidden_token(tokens)
        return chat_logprobs(tokens.token_ids[:shown], (tokens.logprobs or [])[:shown], body.top_logprobs or 0, as_ids)

    def _object(self, status: str, error: ApiError | None = None) -> dict[str, Any]:
        body, turn = self._body, self._turn
        params = turn.request.params
        ended = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if ended else None,
            "status": status,
            "error": None if error is None else {"code": "server_error", "message": error.body()["error"]["message"]},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": turn.model,
            "output": self._items.items if status != "in_progress" else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "store": False,
            "background": False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}, **{key: v for key, v in (body.text or {}).items() if v is not None}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_shown(tool) for tool in body.tools or () if not is_search(tool)],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "user": body.user,
            "lynx": turn.lynx() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        counts = self._turn.usage()
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": None, "strict": None, **tool} if tool["type"] == "function" else tool

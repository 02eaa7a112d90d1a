"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.server.answer import EventAnswer, JsonAnswer, json_text, to_json
from lynx_rt.server.caller import Caller, isolation
from lynx_rt.server.completions import check_stream_options
from lynx_rt.server.errors import bad_request
from lynx_rt.server.generation import Generation
from lynx_rt.server.logprobs import chat_logprobs, prompt_logprobs
from lynx_rt.server.prompts import chat_prompt, in_thread, parse, size_of
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.sampling import output_limit, sampling_params
from lynx_rt.server.state import ServerState
from lynx_rt.server.usage import lynx_object, usage


async def create_chat_completion(body: ChatBody, state: ServerState, caller: Caller) -> EventAnswer | JsonAnswer:
    """Checks a request and returns its answer, which generates when it is sent."""
    state.ready_engine()
    model = state.model_name(body.model)
    check(body)
    state.check_room(body.n or 1)
    request = await in_thread(state, size_of(body.messages), lambda: request_of(body, state, caller))
    call = _Chat(body, state, caller, model, request)
    if not body.stream:
        return JsonAnswer(call.whole)
    settings = state.settings
    return EventAnswer(
        call.chunks(), keep_alive_seconds=settings.keep_alive_seconds, stall_timeout=settings.stall_timeout
    )


def check(body: ChatBody) -> None:
    """Raises ApiError for fields that do not go together."""
    check_stream_options(body.stream, body.stream_options)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.stream and body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs needs stream to be false", "prompt_logprobs")
    if body.add_generation_prompt and body.continue_final_message:
        raise bad_request(
            "continue_final_message goes on with the last message: leave out add_generation_prompt",
            "continue_final_message",
        )
    for name in ("functions", "function_call"):
        if (body.model_extra or {}).get(name) is not None:
            raise bad_request(f"{name} is not supported: use tools and tool_choice, which replaced it", name)


def request_of(body: ChatBody, state: ServerState, caller: Caller) -> Request:
    """Returns a chat as a request of the engine. Raises ApiError that names the field at fault."""
    engine = state.ready_engine()
    (parsed,) = parse(
        engine,
        chat_prompt(body, state),
        name="messages",
        add_special_tokens=body.add_special_tokens,
        truncate=body.truncate_prompt_tokens,
    )
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if wanted is not None and wanted < 1:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise bad_request(f"{name} must be at least 1, got {wanted}", name)
    limit = output_limit(len(parsed.token_ids), wanted, engine.max_model_len)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(
        body, engine, state.settings, limit, logprobs=logprobs, **isolation(caller, body, state.settings)
    )
    return engine.inputs.request([parsed], params, None)


class _PlainChunks:
    """Makes the event of most tokens, which differ in the text alone, of ready-made bytes: a third of the encoder's time."""

    def __init__(self, head: dict[str, Any], needs_more: bool) -> None:
        """head: what all chunks have in common.  needs_more: chunks have more than the text."""
        self._head = to_json(head)[:-1]
        self._needs_more = needs_more

    def chunk(self, delta: CompletionDelta) -> bytes | None:
        """Returns the event; None where the chunk has more than the text."""
        if self._needs_more or delta.finish_reason is not None or not delta.text:
            return None
        start = b'data: %b,"choices":[{"index":%d,"delta":{"content":' % (self._head, delta.index)
        return start + json_text(delta.text) + b'},"logprobs":null,"finish_reason":null}]}\n\n'


class _Chat:
    """One request, from its first token to its answer."""

    def __init__(self, body: ChatBody, state: ServerState, caller: Caller, model: str, request: Request) -> None:
        self._body = body
        self._state = state
        self._request = request
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._generation = Generation(state, [request], (self._id, caller.request_id))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    async def whole(self) -> dict[str, Any]:
        deltas: list[list[CompletionDelta]] = [[] for _ in self._request.completions]
        async with self._generation as generation:
            async for _, delta in generation.deltas():
                deltas[delta.index].append(delta)
        answer = {
            **self._head("chat.completion"),
            "choices": [self._choice(index, parts) for index, parts in enumerate(deltas)],
            "usage": usage([self._request]),
            "system_fingerprint": None,
            "lynx": lynx_object(self._request, self._state.policy),
        }
        entries = self._request.completions[0].prompt_logprobs
        if self._body.prompt_logprobs is not None and entries is not None:
            answer["prompt_logprobs"] = prompt_logprobs(entries)
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = self._request.prompt_token_ids
        return answer

    def _choice(self, index: int, parts: list[CompletionDelta]) -> dict[str, Any]:
        text, last = "".join(part.text for part in parts), parts[-1]
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": last.finish_reason,
            "stop_reason": last.stop_reason,
        }
        if self._body.logprobs:
            choice["logprobs"] = {"content": [entry for part in parts for entry in self._logprobs(part)]}
        if self._body.return_token_ids:
            choice["token_ids"] = [token for part in parts for token in part.token_ids]
        return choice

    async def chunks(self) -> AsyncIterator[dict[str, Any] | bytes]:
        options = self._body.stream_options
        running = bool(options and options.continuous_usage_stats)
        asked = running or bool(options and options.include_usage)
        head = self._head("chat.completion.chunk")
        begun = [False] * len(self._request.completions)
        plain = _PlainChunks(head, bool(asked or self._body.logprobs or self._body.return_token_ids))
        async with self._generation as generation:
            async for _, delta in generation.deltas():
                if begun[delta.index] and (fast := plain.chunk(delta)) is not None:
                    yield fast
                    continue
                for choice in self._pieces(delta, first=not begun[delta.index]):
                    begun[delta.index] = True
                    chunk = {**head, "choices": [choice]}
                    if asked:
                        chunk["usage"] = usage([self._request]) if running else None
                    yield chunk
        if options and options.include_usage:
            yield {**head, "choices": [], "usage": usage([self._request])}

    def _pieces(self, delta: CompletionDelta, first: bool) -> list[dict[str, Any]]:
        body = self._body
        if not (delta.text or delta.finish_reason or first or body.logprobs or body.return_token_ids):
            return []  # a part of a character, or of a stop string
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if delta.text or first:
            content["content"] = delta.text
        choice: dict[str, Any] = {
            "index": delta.index,
            "delta": content,
            "logprobs": {"content": self._logprobs(delta)} if body.logprobs else None,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return [choice]

    def _logprobs(self, delta: CompletionDelta) -> list[dict[str, Any]]:
        as_ids = bool(self._body.return_tokens_as_token_ids)
        return chat_logprobs(delta.token_ids, delta.logprobs or [], self._body.top_logprobs or 0, as_ids)

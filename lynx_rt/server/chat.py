"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from lynx_rt.engine.request import Request
from lynx_rt.server.answer import EventAnswer, JsonAnswer, json_text, to_json
from lynx_rt.server.caller import Caller
from lynx_rt.server.completions import check_stream_options
from lynx_rt.server.conversation import Conversation, Part, chat_request, whole_message
from lynx_rt.server.errors import bad_request
from lynx_rt.server.logprobs import chat_logprobs, prompt_logprobs
from lynx_rt.server.media import fetch_images
from lynx_rt.server.prompts import in_thread, size_of
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.sampling import may_need_grammar
from lynx_rt.server.state import ServerState
from lynx_rt.server.usage import lynx_object, progress_object, timings_object, usage
from lynx_rt.text.response import ToolCallDelta


async def create_chat_completion(body: ChatBody, state: ServerState, caller: Caller) -> EventAnswer | JsonAnswer:
    """Checks a request and returns its answer, which generates when it is sent."""
    state.ready_engine()
    model = state.model_name(body.model)
    _check(body)
    state.check_room(body.n or 1)
    slow = await fetch_images(body.messages, state) or may_need_grammar(body) or bool(body.tools)
    request = await in_thread(state, size_of(body.messages), lambda: chat_request(body, state, caller), slow)
    call = _Chat(body, state, caller, model, request)
    if not body.stream:
        return JsonAnswer(call.whole)
    return EventAnswer(call.chunks(), state.settings)


def _check(body: ChatBody) -> None:
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


class _PlainChunks:
    """Makes the event of most tokens, which differ in the text alone, of ready-made bytes: a third of the encoder's time."""

    def __init__(self, head: dict[str, Any], needs_more: bool) -> None:
        """head: what all chunks have in common.  needs_more: chunks have more than the text."""
        self._head = to_json(head)[:-1]
        self._needs_more = needs_more

    def chunk(self, part: Part) -> bytes | None:
        """Returns the event; None where the chunk has more than the content."""
        response = part.response
        if self._needs_more or part.finish_reason or response.reasoning or response.tool_calls or not response.content:
            return None
        start = b'data: %b,"choices":[{"index":%d,"delta":{"content":' % (self._head, part.index)
        return start + json_text(response.content) + b'},"logprobs":null,"finish_reason":null}]}\n\n'


class _Chat:
    """One request, from its first token to its answer."""

    def __init__(self, body: ChatBody, state: ServerState, caller: Caller, model: str, request: Request) -> None:
        self._body = body
        self._state = state
        self._request = request
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._conversation = Conversation(body, state, caller, request, self._id)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    async def whole(self) -> dict[str, Any]:
        parts: list[list[Part]] = [[] for _ in self._request.completions]
        async with self._conversation as conversation:
            async for part in conversation.parts():
                parts[part.index].append(part)
        answer = {
            **self._head("chat.completion"),
            "choices": [self._choice(index, pieces) for index, pieces in enumerate(parts)],
            "usage": self._usage(),
            "system_fingerprint": None,
            "lynx": lynx_object([self._request], self._state.policy),
        }
        if self._body.timings_per_token:
            answer["timings"] = timings_object(self._request.metrics())
        entries = self._request.completions[0].prompt_logprobs
        if self._body.prompt_logprobs is not None and entries is not None:
            answer["prompt_logprobs"] = prompt_logprobs(entries)
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = self._request.prompt_token_ids
        return answer

    def _choice(self, index: int, parts: list[Part]) -> dict[str, Any]:
        message, last = whole_message(parts), parts[-1]
        content: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning is not None:
            content.update(self._reasoning(message.reasoning))
        if message.tool_calls:
            content["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        choice: dict[str, Any] = {
            "index": index,
            "message": content,
            "logprobs": None,
            "finish_reason": last.finish_reason,
            "stop_reason": last.delta.stop_reason,
        }
        if self._body.logprobs:
            choice["logprobs"] = {"content": [entry for part in parts for entry in self._logprobs(part)]}
        if self._body.return_token_ids:
            choice["token_ids"] = [token for part in parts for token in part.delta.token_ids]
        return choice

    async def chunks(self) -> AsyncIterator[dict[str, Any] | bytes]:
        options = self._body.stream_options
        running = bool(options and options.continuous_usage_stats)
        asked = running or bool(options and options.include_usage)
        head = self._head("chat.completion.chunk")
        begun = [False] * len(self._request.completions)
        timed = bool(self._body.timings_per_token)
        plain = _PlainChunks(head, bool(asked or timed or self._body.logprobs or self._body.return_token_ids))

        def chunk_of(choice: dict[str, Any]) -> dict[str, Any]:
            chunk = {**head, "choices": [choice]}
            if asked:
                chunk["usage"] = self._usage() if running else None
            if timed:
                chunk["timings"] = timings_object(self._request.metrics())
            return chunk

        async with self._conversation as conversation:
            async for part in conversation.parts():
                if (progress := part.delta.prompt_progress) is not None:
                    empty = {"index": part.index, "delta": {}, "logprobs": None, "finish_reason": None}
                    yield {**chunk_of(empty), "prompt_progress": progress_object(progress)}
                if begun[part.index] and (fast := plain.chunk(part)) is not None:
                    yield fast
                    continue
                choice = self._piece(part, first=not begun[part.index])
                if choice is None:
                    continue
                begun[part.index] = True
                yield chunk_of(choice)
        if options and options.include_usage:
            lynx = lynx_object([self._request], self._state.policy)
            yield {**head, "choices": [], "usage": self._usage(), "lynx": lynx}

    def _piece(self, part: Part, first: bool) -> dict[str, Any] | None:
        """Returns the choice of a chunk; None where there is nothing to tell: a part of a character, or of a tag."""
        body, delta, response = self._body, part.delta, part.response
        shows_tokens = bool(body.logprobs or body.return_token_ids) and bool(delta.token_ids)
        if not (response or part.finish_reason or shows_tokens):
            return None
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if response.reasoning:
            content.update(self._reasoning(response.reasoning))
        if response.content:
            content["content"] = response.content
        if response.tool_calls:
            content["tool_calls"] = [_call_chunk(call) for call in response.tool_calls]
        if first and len(content) == 1:
            content["content"] = ""
        choice: dict[str, Any] = {
            "index": part.index,
            "delta": content,
            "logprobs": {"content": self._logprobs(part)} if body.logprobs else None,
            "finish_reason": part.finish_reason,
        }
        if part.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _reasoning(self, text: str) -> dict[str, str]:
        """Returns the reasoning under the names that clients read: vLLM's newer one, and that of all others."""
        field = self._state.settings.reasoning_field
        return {name: text for name in ("reasoning", "reasoning_content") if field in ("both", name)}

    def _usage(self) -> dict[str, Any]:
        return usage([self._request], self._conversation.reasoning_tokens)

    def _logprobs(self, part: Part) -> list[dict[str, Any]]:
        as_ids, delta = bool(self._body.return_tokens_as_token_ids), part.delta
        return chat_logprobs(delta.token_ids, delta.logprobs or [], self._body.top_logprobs or 0, as_ids)


def _call_chunk(call: ToolCallDelta) -> dict[str, Any]:
    function = {"arguments": call.arguments} if call.name is None else {"name": call.name, "arguments": call.arguments}
    if call.id is None:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}

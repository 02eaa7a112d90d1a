"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from lynx_rt.engine.outputs import CompletionDelta, TokenLogprobs
from lynx_rt.engine.request import Request
from lynx_rt.server.answer import EventAnswer, JsonAnswer
from lynx_rt.server.caller import Caller, isolation
from lynx_rt.server.errors import ApiError, bad_request
from lynx_rt.server.generation import Generation
from lynx_rt.server.logprobs import CompletionLogprobs, prompt_logprobs
from lynx_rt.server.prompts import in_thread, limits, parse, size_of
from lynx_rt.server.protocol import CompletionBody
from lynx_rt.server.sampling import compile_grammar, form_field, may_need_grammar, sampling_params, structured_outputs
from lynx_rt.server.settings import MAX_PROMPTS
from lynx_rt.server.state import ServerState
from lynx_rt.server.usage import lynx_object, progress_object, timings_object, usage

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create_completion(body: CompletionBody, state: ServerState, caller: Caller) -> EventAnswer | JsonAnswer:
    """Checks a request and returns its answer, which generates when it is sent."""
    state.ready_engine()
    model = state.model_name(body.model)
    _check(body)
    state.check_room(body.n or 1)
    slow = may_need_grammar(body)
    requests = await in_thread(state, size_of(body.prompt), lambda: _requests(body, state, caller), slow)
    call = _Completion(body, state, caller, model, requests)
    if not body.stream:
        return JsonAnswer(call.whole)
    return EventAnswer(call.chunks(), state.settings)


def _check(body: CompletionBody) -> None:
    check_stream_options(body.stream, body.stream_options)
    if body.suffix:
        raise bad_request("suffix is not supported: put the model's own tokens for infilling into the prompt", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request(f"best_of must be n ({body.n or 1}) or left out, got {body.best_of}", "best_of")
    if body.max_tokens == 0 and not body.echo:
        raise bad_request("max_tokens must be at least 1, or 0 with echo, got 0", "max_tokens")
    if body.max_tokens is not None and body.max_tokens < 0:
        raise bad_request(f"max_tokens must be at least 0, got {body.max_tokens}", "max_tokens")
    if body.stream and body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs needs stream to be false", "prompt_logprobs")
    if len(body.prompt) == 0:
        raise bad_request("prompt is empty: it must have at least one token", "prompt")
    several = not isinstance(body.prompt, str) and not isinstance(body.prompt[0], int)
    if several and len(body.prompt) > MAX_PROMPTS:
        raise bad_request(f"prompt may hold {MAX_PROMPTS} prompts, got {len(body.prompt)}", "prompt")


def check_stream_options(stream: bool | None, options: Any) -> None:
    if options is not None and not stream:
        raise bad_request("stream_options needs stream to be true", "stream_options")


def _requests(body: CompletionBody, state: ServerState, caller: Caller) -> list[Request]:
    engine = state.ready_engine()
    parsed = parse(
        engine, body.prompt, add_special_tokens=body.add_special_tokens, truncate=body.truncate_prompt_tokens
    )
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    fields: dict[str, Any] = {"logprobs": body.logprobs}
    if body.echo and body.logprobs is not None:
        fields["prompt_logprobs"] = body.logprobs
    compile_grammar(spec := structured_outputs(body), state, form_field(body))
    fields["structured_outputs"] = spec
    requests = []
    for prompt, limit in zip(parsed, limits(parsed, max_tokens, engine), strict=True):
        params = sampling_params(
            body, engine, state.settings, limit, **fields, **isolation(caller, body, state.settings)
        )
        requests.append(engine.inputs.request([prompt], params, None))
    return requests


class _Completion:
    """One request, from its first token to its answer."""

    def __init__(
        self, body: CompletionBody, state: ServerState, caller: Caller, model: str, requests: list[Request]
    ) -> None:
        self._body = body
        self._state = state
        self._requests = requests
        self._n = requests[0].params.n
        self._tokenizer = requests[0].tokenizer
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._shows_tokens = body.logprobs is not None or bool(body.return_token_ids)
        self._generation = Generation(state, requests, self._head["id"], caller, "text_completion")

    async def whole(self) -> dict[str, Any]:
        deltas: list[list[CompletionDelta]] = [[] for _ in range(len(self._requests) * self._n)]
        async with self._generation as generation:
            async for index, delta in generation.deltas():
                deltas[index * self._n + delta.index].append(delta)
        choices = [self._choice(place, parts) for place, parts in enumerate(deltas)]
        answer = {
            **self._head,
            "choices": choices,
            "usage": usage(self._requests),
            "system_fingerprint": None,
            "lynx": lynx_object(self._requests, self._state.policy),
        }
        if self._body.timings_per_token:
            answer["timings"] = timings_object(self._requests[0].metrics())
        return answer

    def _choice(self, place: int, parts: list[CompletionDelta]) -> dict[str, Any]:
        body, request = self._body, self._requests[place // self._n]
        ids = [token for part in parts for token in part.token_ids]
        entries: list[TokenLogprobs | None] = [entry for part in parts for entry in part.logprobs or ()]
        text, last = "".join(part.text for part in parts), parts[-1]
        prompt_entries = request.completions[0].prompt_logprobs
        if body.max_tokens == 0:  # one token was generated, because the engine makes no fewer
            ids, entries, text = [], [], ""
        if body.echo:
            text = self._prompt_text(request) + text
            ids = [*request.prompt_token_ids, *ids]
            entries = [*(prompt_entries or ()), *entries]
        choice: dict[str, Any] = {"index": place, "text": text, "logprobs": None}
        if body.logprobs is not None:
            choice["logprobs"] = self._collector().object(ids, entries)
        choice["finish_reason"] = "length" if body.max_tokens == 0 else last.finish_reason
        choice["stop_reason"] = None if body.max_tokens == 0 else last.stop_reason
        if body.prompt_logprobs is not None and prompt_entries is not None:
            choice["prompt_logprobs"] = prompt_logprobs(prompt_entries)
        if body.return_token_ids:
            choice["token_ids"] = ids[len(request.prompt_token_ids) :] if body.echo else ids
            choice["prompt_token_ids"] = request.prompt_token_ids
        return choice

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        options = self._body.stream_options
        running = bool(options and options.continuous_usage_stats)
        asked = running or bool(options and options.include_usage)
        collectors = [self._collector() for _ in range(len(self._requests) * self._n)]
        begun = [False] * len(collectors)

        def chunk_of(choice: dict[str, Any]) -> dict[str, Any]:
            chunk = {**self._head, "choices": [choice]}
            if asked:
                chunk["usage"] = usage(self._requests) if running else None
            if self._body.timings_per_token:
                chunk["timings"] = timings_object(self._requests[choice["index"] // self._n].metrics())
            return chunk

        async with self._generation as generation:
            async for index, delta in generation.deltas():
                place = index * self._n + delta.index
                if (progress := delta.prompt_progress) is not None:
                    empty = {"index": place, "text": "", "logprobs": None, "finish_reason": None}
                    yield {**chunk_of(empty), "prompt_progress": progress_object(progress)}
                    if not (delta.token_ids or delta.finish_reason):
                        continue
                if not (delta.text or delta.finish_reason or not begun[place] or self._shows_tokens):
                    continue  # a part of a character, or of a stop string
                choice = self._piece(place, delta, collectors[place], first=not begun[place])
                begun[place] = True
                yield chunk_of(choice)
        if options and options.include_usage:
            lynx = lynx_object(self._requests, self._state.policy)
            yield {**self._head, "choices": [], "usage": usage(self._requests), "lynx": lynx}

    def _piece(self, place: int, delta: CompletionDelta, collector: CompletionLogprobs, first: bool) -> dict[str, Any]:
        body, request = self._body, self._requests[place // self._n]
        ids, text = delta.token_ids, delta.text
        entries: list[TokenLogprobs | None] = list(delta.logprobs or ())
        if body.max_tokens == 0:
            ids, entries, text = [], [], ""
        if first and body.echo:
            text = self._prompt_text(request) + text
            ids = [*request.prompt_token_ids, *ids]
            entries = [*(request.completions[0].prompt_logprobs or ()), *entries]
        choice: dict[str, Any] = {"index": place, "text": text, "logprobs": None}
        if body.logprobs is not None:
            choice["logprobs"] = collector.object(ids, entries)
        choice["finish_reason"], choice["stop_reason"] = delta.finish_reason, delta.stop_reason
        if body.max_tokens == 0 and delta.finish_reason is not None:
            choice["finish_reason"], choice["stop_reason"] = "length", None
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if first:
                choice["prompt_token_ids"] = request.prompt_token_ids
        return choice

    def _collector(self) -> CompletionLogprobs:
        piece = None if self._tokenizer is None else self._tokenizer.piece
        return CompletionLogprobs(self._body.logprobs or 0, bool(self._body.return_tokens_as_token_ids), piece)

    def _prompt_text(self, request: Request) -> str:
        if request.prompt is not None:
            return request.prompt
        if self._tokenizer is None:
            raise ApiError(400, "echo needs a tokenizer, and this server has none", param="echo")
        return self._tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)

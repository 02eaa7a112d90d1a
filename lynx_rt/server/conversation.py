"""A model's turn in a conversation: the request, and its output as reasoning, content and tool calls."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lynx_rt.engine.chat_results import is_json
from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.errors import ValidationError
from lynx_rt.server.caller import Caller, isolation
from lynx_rt.server.errors import bad_request
from lynx_rt.server.generation import Generation
from lynx_rt.server.prompts import chat_prompt, parse
from lynx_rt.server.protocol import ChatBody
from lynx_rt.server.sampling import compile_grammar, form_field, output_limit, sampling_params, structured_outputs
from lynx_rt.server.state import ServerState
from lynx_rt.text.response import ParsedResponse, ResponseDelta, ResponseFormat, ResponseParser
from lynx_rt.text.response.thinking import ReasoningTracker
from lynx_rt.text.structured.openai import tool_call_grammar
from lynx_rt.text.structured.spec import StructuredOutputs


@dataclass(slots=True)
class Part:
    """What a completion grew by: as the engine made it, and as a client reads it."""

    index: int
    delta: CompletionDelta
    response: ResponseDelta
    finish_reason: str | None  # "tool_calls" where the turn ended with calls


def chat_request(body: ChatBody, state: ServerState, caller: Caller) -> Request:
    """Renders, tokenizes and checks a chat. Raises ApiError that names the field at fault."""
    engine = state.ready_engine()
    prompt = model_prompt(body, state)
    choice = tool_choice(body)
    (parsed,) = parse(
        engine,
        prompt,
        name="messages",
        add_special_tokens=body.add_special_tokens,
        truncate=body.truncate_prompt_tokens,
    )
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if wanted is not None and wanted < 1:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise bad_request(f"{name} must be at least 1, got {wanted}", name)
    limit = output_limit(len(parsed.token_ids), wanted, engine.max_model_len)
    fields: dict[str, Any] = {"logprobs": (body.top_logprobs or 0) if body.logprobs else None}
    form = response_format(body, state)
    if form.needs_special_tokens and body.skip_special_tokens is None and (body.tools or form.reasoning_parser):
        fields["skip_special_tokens"] = False
    fields["structured_outputs"] = _form_of_answer(body, state, choice)
    params = sampling_params(body, engine, state.settings, limit, **fields, **isolation(caller, body, state.settings))
    try:
        return engine.inputs.request([parsed], params, None, is_chat=True)
    except ValidationError as error:  # an image that cannot be decoded
        raise bad_request(str(error), error.field or None) from None


def model_prompt(body: ChatBody, state: ServerState) -> dict[str, Any]:
    """Returns the chat as a prompt of Engine. A model that must not call tools does not see them, and cannot be tempted."""
    prompt = chat_prompt(body, state)
    if tool_choice(body) == "none":
        prompt.pop("tools", None)
    return prompt


def _form_of_answer(body: ChatBody, state: ServerState, choice: str) -> StructuredOutputs | None:
    """Returns what the answer is held to: to tool calls that must be made, or to what the body asks for."""
    forced = choice not in ("none", "auto")
    if forced:
        wanted = choice if choice == "required" else {"function": {"name": choice.removeprefix("named:")}}
        spec: StructuredOutputs | None = tool_call_grammar(
            body.tools or [], wanted, body.parallel_tool_calls is not False
        )
    else:
        spec = structured_outputs(body)
    compile_grammar(spec, state, "tools" if forced else form_field(body))
    return spec


def tool_choice(body: ChatBody) -> str:
    """Returns "none", "auto", "required" or "named:NAME". Raises ApiError for a choice that cannot be."""
    choice = body.tool_choice
    if choice is None:
        return "auto" if body.tools else "none"
    if choice in ("none", "auto"):
        return str(choice) if body.tools else "none"
    if not body.tools:
        raise bad_request("tool_choice needs tools", "tool_choice")
    if choice == "required":
        return "required"
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    known = [
        tool.get("function", tool).get("name") for tool in body.tools if isinstance(tool.get("function", tool), dict)
    ]
    if not isinstance(name, str) or name not in known:
        raise bad_request(
            f'tool_choice must be "none", "auto", "required" or a function among {known}, got {choice!r}', "tool_choice"
        )
    return f"named:{name}"


def response_format(body: ChatBody, state: ServerState) -> ResponseFormat:
    """Returns the model's format, without reasoning where the client wants that left in the content."""
    inline = state.settings.reasoning_field == "inline" or body.separate_reasoning is False
    return dataclasses.replace(state.format, reasoning_parser=None) if inline else state.format


class Conversation:
    """Runs the request of a chat, within an `async with` block."""

    def __init__(self, body: ChatBody, state: ServerState, caller: Caller, request: Request, answer_id: str) -> None:
        self._state = state
        self._hides_reasoning = body.include_reasoning is False
        self._generation = Generation(state, [request], answer_id, caller, "chat")
        form, choice = response_format(body, state), tool_choice(body)
        forced = choice if choice not in ("none", "auto") else None
        if forced is None and is_json(request.params):
            forced = "content"
        tokenizer = request.tokenizer
        self._trackers: list[ReasoningTracker] = []
        if forced != "content" and tokenizer is not None:
            made = [state.format.tracker(request.prompt or "", tokenizer.token_bytes) for _ in request.completions]
            self._trackers = [tracker for tracker in made if tracker is not None]
        self._forced_name = choice.startswith("named:")
        self._parsers: list[ResponseParser] | None = None
        if form.reasoning_parser is not None or choice != "none":
            self._parsers = [
                form.parser(
                    tools=body.tools,
                    prompt_tail=request.prompt or "",
                    parallel_tool_calls=body.parallel_tool_calls is not False,
                    tools_allowed=choice != "none",
                    forced=forced,
                )
                for _ in request.completions
            ]

    async def __aenter__(self) -> Conversation:
        await self._generation.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._generation.__aexit__(kind, error, trace)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning so far, of all completions, its tags left out; 0 where they cannot be told from others."""
        return sum(tracker.num_tokens for tracker in self._trackers)

    async def parts(self) -> AsyncIterator[Part]:
        """Yields what each completion grew by. The parts of one completion together are its whole message."""
        async for _, delta in self._generation.deltas():
            reason = delta.finish_reason
            if self._trackers:
                for token_id in delta.token_ids:
                    self._trackers[delta.index].accept(token_id)
            if self._parsers is None:
                yield Part(delta.index, delta, ResponseDelta(delta.text, "", []), reason)
                continue
            parser = self._parsers[delta.index]
            num_calls = parser.num_tool_calls
            response = parser.feed(delta.text, delta.token_ids)
            if parser.num_tool_calls > num_calls and self._trackers:
                self._trackers[delta.index].expect()
            if reason is not None:
                response = ResponseDelta.joined([response, parser.finish(reason)])
                if parser.failed:
                    self._state.metrics.on_tool_parse_failure(self._state.format.tool_parser or "none")
                if reason == "stop" and parser.num_tool_calls and not self._forced_name:
                    reason = "tool_calls"
            if self._hides_reasoning:
                response = ResponseDelta(response.content, "", response.tool_calls)
            yield Part(delta.index, delta, response, reason)


def whole_message(parts: Sequence[Part]) -> ParsedResponse:
    """Returns the message that the parts of one completion make."""
    return ParsedResponse.of(part.response for part in parts)

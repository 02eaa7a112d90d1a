"""Sampling parameters of a request's body."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.errors import ValidationError
from lynx_rt.server.errors import bad_request, context_error
from lynx_rt.server.protocol import GenerationFields
from lynx_rt.server.settings import MAX_BAD_WORDS, MAX_STOP_LENGTH, MAX_STOPS, Settings
from lynx_rt.server.state import ServerState
from lynx_rt.text.structured.openai import from_response_format
from lynx_rt.text.structured.spec import StructuredOutputs

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine

# Fields that SamplingParams takes as they are.
_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
    "thinking_token_budget",
    "expert_selection",
    "priority",
    "timeout",
)
# vLLM ignores these older names of structured_outputs, and answers 200 with text that nothing held to the grammar (vllm#53975).
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding")
_UINT64 = 1 << 64


def sampling_params(
    body: GenerationFields, engine: Engine, settings: Settings, max_tokens: int | None, **fields: Any
) -> SamplingParams:
    """Returns the model's default sampling with the body's fields on top. None in the body is the default.

    max_tokens: None = to the end of the context.  fields: what the kind of request adds, such as logprobs; None = nothing.
    Raises ApiError that names the field.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in _GUIDED:
        if (body.model_extra or {}).get(name) is not None:
            raise bad_request(f"{name} is not supported: use structured_outputs, as in vLLM 0.12 and later", name)
    given = {name: value for name in _FIELDS if (value := getattr(body, name)) is not None}
    _check_texts("stop", given.get("stop"), MAX_STOPS)
    _check_texts("bad_words", given.get("bad_words"), MAX_BAD_WORDS)
    if given.get("n", 1) > settings.max_n:
        raise bad_request(f"n must be at most {settings.max_n}, got {given['n']}", "n")
    for name in ("logprobs", "prompt_logprobs"):
        count = fields.get(name, given.get(name))
        if count is not None and not 0 <= count <= settings.max_logprobs:
            raise bad_request(f"{name} must be from 0 to {settings.max_logprobs}, got {count}", name)
    if body.seed is not None:
        if not -(_UINT64 >> 1) <= body.seed < _UINT64:
            raise bad_request(f"seed must be a 64-bit integer, got {body.seed}", "seed")
        given["seed"] = body.seed % _UINT64
    if settings.thinking_token_budget is not None:
        given.setdefault("thinking_token_budget", settings.thinking_token_budget)
    given["report_progress"] = bool(body.stream and body.return_progress)
    if settings.request_timeout is not None:
        given["timeout"] = min(given.get("timeout", math.inf), settings.request_timeout)
    try:
        return engine.get_default_sampling_params().clone(**given, max_tokens=max_tokens, **fields)
    except ValidationError as error:
        raise bad_request(str(error), error.field or None) from None


def structured_outputs(body: GenerationFields) -> StructuredOutputs | None:
    """Returns the form that the body asks for, by vLLM's field or by OpenAI's."""
    try:
        by_format = from_response_format(body.response_format)
    except ValidationError as error:
        raise bad_request(str(error), error.field or None) from None
    if body.structured_outputs is None:
        return by_format
    if by_format is not None:
        raise bad_request("give one of structured_outputs and response_format", "structured_outputs")
    try:
        return StructuredOutputs.of(body.structured_outputs)
    except ValidationError as error:
        raise bad_request(str(error), error.field or None) from None


def form_field(body: GenerationFields) -> str:
    """Returns the field that structured_outputs() reads."""
    return "response_format" if body.structured_outputs is None else "structured_outputs"


def may_need_grammar(body: GenerationFields) -> bool:
    """Returns whether a grammar may have to be compiled for the body, which takes long."""
    return body.structured_outputs is not None or body.response_format is not None


def compile_grammar(spec: StructuredOutputs | None, state: ServerState, field: str) -> None:
    """Compiles a grammar, which the engine keeps for the request. It may take seconds. field: of the body, that asks for it."""
    if spec is not None:
        try:
            state.ready_engine().inputs.grammar(spec)
        except ValidationError as error:
            raise bad_request(str(error), field) from None


def _check_texts(name: str, value: str | list[str] | None, limit: int) -> None:
    """Refuses too many texts, and long ones: they are tokenized in the event loop's thread, and kept."""
    texts = [value] if isinstance(value, str) else value or []
    if len(texts) > limit:
        raise bad_request(f"{name} may have {limit} entries, got {len(texts)}", name)
    longest = max(map(len, texts), default=0)
    if longest > MAX_STOP_LENGTH:
        raise bad_request(f"{name} may have texts of {MAX_STOP_LENGTH} characters, got one of {longest}", name)


def output_limit(prompt_length: int, max_tokens: int | None, max_model_len: int) -> int | None:
    """Returns the number of tokens that may be generated: max_tokens, cut to what the context holds; None = to its end.

    Raises ApiError where the prompt fills the context, or max_tokens alone is more than it.
    """
    if prompt_length >= max_model_len:
        raise context_error(prompt_length, max_model_len)
    if max_tokens is not None and max_tokens > max_model_len:
        raise bad_request(
            f"max_tokens must be at most the model's context of {max_model_len} tokens, got {max_tokens}",
            "max_tokens",
            "context_length_exceeded",
        )
    return max_tokens if max_tokens is None else min(max_tokens, max_model_len - prompt_length)

"""Results of `Engine.chat`: the reasoning, content and tool calls of each completion."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lynx_rt.engine.outputs import CompletionOutput, RequestOutput
from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.text.response import ResponseFormat
from lynx_rt.text.tokenizer import Tokenizer


def response_format(
    tokenizer: Tokenizer | None,
    chat_template: str | os.PathLike[str] | None,
    tool_parser: str | None,
    reasoning_parser: str | None,
) -> ResponseFormat:
    """Returns how the model writes its responses. Raises ValidationError for a template or a parser that does not exist."""
    text = None
    if chat_template is not None and tokenizer is not None:
        from lynx_rt.text.chat_template import compile_template, pick_template

        text = pick_template(os.fspath(chat_template), tokenizer, with_tools=True)
        compile_template(text)
    return ResponseFormat.of(tool_parser, reasoning_parser, tokenizer=tokenizer, chat_template=text)


def is_json(params: SamplingParams) -> bool:
    """Whether the output is JSON from the first token on. Its texts may have tags in them."""
    spec = params.structured_outputs
    if spec is None or isinstance(spec, Mapping):
        return False
    return spec.start_after is None and (spec.json is not None or bool(spec.json_object))


def fill_in(
    output: RequestOutput,
    params: SamplingParams,
    response_format: ResponseFormat,
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Sets content, reasoning and tool_calls of every completion."""
    for completion in output.outputs:
        text = completion.text
        if response_format.needs_special_tokens:
            text = _with_special_tokens(completion, tokenizer, output.prompt_token_ids)
        forced = "content" if is_json(params) else None
        parser = response_format.parser(tools=tools, prompt_tail=output.prompt or "", forced=forced)
        parsed = parser.parse(text, completion.token_ids, completion.finish_reason)
        completion.content, completion.reasoning = parsed.content, parsed.reasoning
        completion.tool_calls = parsed.tool_calls


def _with_special_tokens(completion: CompletionOutput, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> str:
    """Returns the completion's text with the special tokens in it, but for the one that ended it."""
    stop = completion.stop_reason if isinstance(completion.stop_reason, str) else None
    by_token = completion.finish_reason == "stop" and stop is None
    detokenizer = tokenizer.detokenizer(skip_special_tokens=False, prompt_token_ids=prompt_token_ids)
    token_ids = completion.token_ids[:-1] if by_token else completion.token_ids
    text = "".join(map(detokenizer.add, token_ids)) + detokenizer.finish()
    return text if stop is None else stop.join(text.split(stop)[: completion.text.count(stop) + 1])

"""Makes requests of what callers pass: renders and tokenizes prompts, checks parameters, finds the ends of text."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lynx_rt.engine.constraint import Constraint
from lynx_rt.engine.generation_config import GenerationConfig, eos_token_ids
from lynx_rt.engine.images import ImageInputs
from lynx_rt.engine.request import Request
from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.prompts import ParsedPrompt, Prompt, parse_prompts
from lynx_rt.text.response import ResponseFormat
from lynx_rt.text.response.thinking import ThinkingBudget, ThinkingTags
from lynx_rt.text.structured.compiler import Grammar, GrammarCompiler
from lynx_rt.text.structured.spec import StructuredOutputs
from lynx_rt.text.tokenizer import Tokenizer

Params = SamplingParams | Mapping[str, Any]
ParamsPerPrompt = Params | Sequence[Params] | None
_NO_LIMIT = 1 << 62
_TAIL_TOKENS = 1024  # at the end of a prompt, in which an unfinished thought is looked for


class InputProcessor:
    """Makes the requests of one engine. Thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        generation_config: GenerationConfig,
        chat_template: str | os.PathLike[str] | None,
        response_format: ResponseFormat,
        model_info: Mapping[str, Any],
        images: ImageInputs,
    ) -> None:
        self._tokenizer = tokenizer
        self._generation_config = generation_config
        self._chat_template = chat_template
        self._format = response_format
        self.images = images
        self._vocab_size = int(model_info["vocab_size"])
        self._max_model_len = int(model_info["max_model_len"])
        # The C++ engine reads only the ends of text in config.json; every request carries the others.
        known = frozenset(model_info["eos_token_ids"])
        self._eos_token_ids = known | eos_token_ids(generation_config, tokenizer, self._vocab_size)
        self._extra_eos = tuple(sorted(self._eos_token_ids - known))
        self._grammars = None
        if tokenizer is not None:
            self._grammars = GrammarCompiler(tokenizer, self._vocab_size, self._eos_token_ids)
        self._special_stops = functools.lru_cache(maxsize=256)(self._find_special_stops)

    def grammar(self, structured_outputs: StructuredOutputs | Mapping[str, Any]) -> Grammar:
        """Compiles a grammar, which may take seconds, and keeps it for the requests that ask for the same one."""
        if self._grammars is None:
            raise ValidationError(
                "structured_outputs needs a tokenizer, and this engine was made without one", "structured_outputs"
            )
        return self._grammars.compile(StructuredOutputs.of(structured_outputs))

    def on_grammar_compile(self, hook: Callable[[float], None]) -> None:
        """Has `hook` called with the seconds of each compilation, in its own thread. It must raise nothing."""
        if self._grammars is not None:
            self._grammars.on_compile = hook

    def parse(
        self,
        prompts: Prompt | Iterable[Prompt],
        name: str = "prompt",
        add_special_tokens: bool | None = None,
        any_length: bool = False,
    ) -> list[ParsedPrompt]:
        """Returns one entry per prompt; see `parse_prompts`. any_length: also those that are too long for the context."""
        return parse_prompts(
            prompts,
            self._tokenizer,
            vocab_size=self._vocab_size,
            max_model_len=_NO_LIMIT if any_length else self._max_model_len,
            name=name,
            add_special_tokens=add_special_tokens,
            chat_template=self._chat_template,
            place_images=self.images.place if self.images.reads_images else None,
        )

    def default_sampling_params(self) -> SamplingParams:
        """Returns the parameters of a request that has none."""
        return self._generation_config.default_sampling_params(self._vocab_size, self._tokenizer is not None)

    def requests(
        self,
        prompts: list[ParsedPrompt],
        sampling_params: ParamsPerPrompt,
        is_chat: bool = False,
    ) -> list[Request]:
        """Returns a request per prompt. sampling_params: one for all or one per prompt; None = the defaults.

        is_chat: structured outputs start after the reasoning in which a prompt ends, if it does.
        """
        if sampling_params is None:
            sampling_params = self.default_sampling_params()
        if isinstance(sampling_params, (SamplingParams, Mapping)):
            each = [SamplingParams.of(sampling_params)] * len(prompts)
        elif not isinstance(sampling_params, Sequence) or isinstance(
            sampling_params, (str, bytes, bytearray, memoryview)
        ):
            raise ValidationError(
                f"sampling_params must be SamplingParams, a dict or a list of them, got {shown(sampling_params)}",
                "sampling_params",
            )
        else:
            each = [SamplingParams.of(params) for params in sampling_params]
            if len(each) != len(prompts):
                raise ValidationError(
                    f"{len(prompts)} prompts but {len(each)} sampling_params: give one for all or one per prompt",
                    "sampling_params",
                )
        return [self._request(prompt, params, None, is_chat) for prompt, params in zip(prompts, each, strict=True)]

    def request(
        self,
        prompts: list[ParsedPrompt],
        sampling_params: Params | None,
        request_id: str | None,
        is_chat: bool = False,
    ) -> Request:
        """Returns the request of a single prompt whose caller waits for every change. is_chat: as for `requests`."""
        if len(prompts) != 1:
            raise ValidationError(f"expected one prompt, got {len(prompts)}; generate() takes several", "prompt")
        params = self.default_sampling_params() if sampling_params is None else SamplingParams.of(sampling_params)
        request = self._request(prompts[0], params, request_id, is_chat)
        request.streaming = True
        return request

    def _request(self, prompt: ParsedPrompt, params: SamplingParams, request_id: str | None, is_chat: bool) -> Request:
        if params.stop and self._tokenizer is None:
            raise ValidationError("stop needs a tokenizer, and this engine was made without one", "stop")
        if is_chat and params.structured_outputs is not None:
            params = params.clone(structured_outputs=self._after_reasoning(params.structured_outputs, prompt))
        grammar = None if params.structured_outputs is None else self.grammar(params.structured_outputs)
        make_budget = self._budgets(prompt, params.thinking_token_budget)

        def make_constraint(stop_token_ids: list[int]) -> Constraint | None:
            budget = make_budget()
            if grammar is None and budget is None:
                return None
            return Constraint(self._vocab_size, params, stop_token_ids, grammar, budget)

        stop_of_token = self._special_stops(tuple(params.stop or ()), params.skip_special_tokens)

        def make_native(index: int) -> Any:
            return params.to_native(
                index=index,
                vocab_size=self._vocab_size,
                max_model_len=self._max_model_len,
                eos_token_ids=self._extra_eos,
                tokenizer=self._tokenizer,
                stop_token_ids=stop_of_token,
            )

        shared_by_few = params.cache_salt or params.isolation_group
        return Request(
            request_id,
            prompt,
            params,
            self._tokenizer,
            self._eos_token_ids,
            make_native,
            stop_of_token,
            make_constraint,
            self.images.patches(prompt, repr((params.cache_salt, params.isolation_group)) if shared_by_few else ""),
        )

    def _after_reasoning(
        self, structured_outputs: StructuredOutputs | Mapping[str, Any], prompt: ParsedPrompt
    ) -> StructuredOutputs:
        """Returns a form that starts after the reasoning in which the prompt ends, if it does."""
        spec, tags = StructuredOutputs.of(structured_outputs), self._format.reasoning_tags
        if tags is None or spec.start_after or not self._ends_in_reasoning(prompt):
            return spec
        return replace(spec, start_after=tags[1])

    def _ends_in_reasoning(self, prompt: ParsedPrompt) -> bool:
        text = prompt.text
        if text is None and self._tokenizer is not None:
            text = self._tokenizer.decode(prompt.token_ids[-_TAIL_TOKENS:], skip_special_tokens=False)
        return self._format.begins_inside(text or "")

    def _budgets(self, prompt: ParsedPrompt, limit: int | None) -> Callable[[], ThinkingBudget | None]:
        """Returns a function that makes the thinking budget of a completion. Raises ValidationError where it would not act."""
        if limit is None:
            return lambda: None
        if (tags := self._format.reasoning_tags) is None or self._tokenizer is None:
            raise ValidationError(
                "thinking_token_budget needs a model whose reasoning ends with a tag; this one's reasoning parser is "
                f"{self._format.reasoning_parser or 'none'}",
                "thinking_token_budget",
            )
        thinking, inside = ThinkingTags(tags, self._tokenizer, self._vocab_size), self._ends_in_reasoning(prompt)
        return lambda: thinking.budget(limit, inside)

    def _find_special_stops(self, stops: tuple[str, ...], hidden: bool) -> dict[int, str]:
        """Returns the stop strings that are special tokens, by id. The text mostly hides these, so they are found as tokens.

        hidden: whether the text hides them. A string with such a token among others is then never found: a warning says so.
        """
        found: dict[int, str] = {}
        if self._tokenizer is None:
            return found
        special = self._tokenizer.special_token_ids
        for stop in stops:
            ids = self._tokenizer.encode(stop, add_special_tokens=False)
            if len(ids) == 1 and ids[0] in special:
                found[ids[0]] = stop
            elif hidden and not special.isdisjoint(ids):
                warnings.warn(
                    f"stop: {stop!r} has a special token in it, which the text leaves out: only skip_special_tokens=False "
                    "lets it be found",
                    stacklevel=5,
                )
        return found

"""Sampling parameters of a request. Field names, meanings and limits are vLLM's, except that `max_tokens` defaults to 256."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from lynx_rt.errors import ValidationError, encoding_fault, shown
from lynx_rt.text.structured.spec import StructuredOutputs

if TYPE_CHECKING:
    from lynx_rt import _C
    from lynx_rt.text.tokenizer import Tokenizer

GREEDY_BELOW = 1e-5  # a temperature under this is greedy decoding
_MAX_N = 16384  # vLLM's limit; each completion is a request of its own
_MAX_LABEL_BYTES = 1024
_FLAGS = ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output", "report_progress")
_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1
# C++ samples in float32, in which a value other than 0 must not become 0.
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT32_TINY = 1.1754943508222875e-38
# Names of other engines that differ too much from ours for difflib -> our names.
_ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "random_seed": "seed",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "end_id": "stop_token_ids",
    "bad": "bad_words",
    "num_return_sequences": "n",
    "top_logprobs": "logprobs",
    "top_logprobs_num": "logprobs",
    "do_sample": "temperature",
    "suppress_tokens": "bad_words_ids",
}
_GUIDED = "use structured_outputs={{{0!r}: ...}}"
_NO_BEAMS = "there is no beam search; ask for n completions with logprobs=0 and keep the largest cumulative_logprob"
# Fields of other engines that have no counterpart here: what to use instead, and the values besides None that change nothing and
# are accepted.
_UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "best_of": ("ask for n completions with logprobs=0 and keep the largest cumulative_logprob", (1,)),
    "use_beam_search": (_NO_BEAMS, (False,)),
    "num_beams": (_NO_BEAMS, (1,)),
    "length_penalty": (_NO_BEAMS, (1,)),
    "early_stopping": (_NO_BEAMS, (False,)),
    "logits_processors": ("use logit_bias, allowed_token_ids, bad_words or the penalties", ([],)),
    "logits_processor": ("use logit_bias, allowed_token_ids, bad_words or the penalties", ([],)),
    "guided_decoding": (_GUIDED.format("json"), ()),
    **{f"guided_{kind}": (_GUIDED.format(kind), ()) for kind in ("json", "regex", "choice", "grammar", "json_object")},
    "response_format": (_GUIDED.format("json"), ({"type": "text"},)),
    "lora_request": ("merge the adapter into the checkpoint and load that", ()),
    "truncate_prompt_tokens": ("cut the token ids before passing them: engine.encode(text)[-n:]", ()),
    "no_repeat_ngram_size": ("use repetition_penalty, frequency_penalty or presence_penalty", (0,)),
    "typical_p": ("use top_p, top_k or min_p", (1,)),
    "spaces_between_special_tokens": ("text is what the tokenizer decodes", (True,)),
    "prompt_embeds": ("pass text or token ids", ()),
}


@dataclass(kw_only=True)
class SamplingParams:
    """One request's sampling settings, checked when made and again when used.

    Raises ValidationError that names the field and the value, also for a name that does not exist.
    """

    n: int = 1  # completions per prompt; needs temperature > 0
    presence_penalty: float = 0.0  # [-2, 2], on tokens that were generated
    frequency_penalty: float = 0.0  # [-2, 2], per occurrence among the generated tokens
    repetition_penalty: float = 1.0  # > 0, on prompt and generated tokens; 1 = off
    temperature: float = 1.0  # >= 0; below 1e-5 = greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 or -1 = all
    min_p: float = 0.0  # [0, 1], relative to the most likely token
    seed: int | None = None  # None or -1 = from the engine's seed and the request's number
    # Strings that end the text. One that is a special token ends it also where skip_special_tokens hides that token; special
    # tokens as parts of a longer string are only seen with skip_special_tokens=False.
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None  # tokens that end the text, besides the model's own end of text
    ignore_eos: bool = False  # go on after the model's end of text
    max_tokens: int | None = 256  # new tokens; None = to the end of the context
    min_tokens: int = 0  # no end of any kind before this many tokens
    logprobs: int | None = None  # per new token: its own and those of the n most likely; -1 = all tokens
    prompt_logprobs: int | None = None  # the same per prompt token
    detokenize: bool = True  # False: no text is made
    skip_special_tokens: bool = True  # leave special tokens out of the text
    include_stop_str_in_output: bool = False  # keep the stop string (or stop token) in the text
    logit_bias: Mapping[int, float] | None = None  # token id -> added to its logit, clamped to [-100, 100]
    allowed_token_ids: Sequence[int] | None = None  # only these may be sampled
    bad_words: Sequence[str] | None = None  # strings that must not be generated
    bad_words_ids: Sequence[Sequence[int]] | None = None  # bad_words as token sequences; transformers' name
    # Teacher forcing: exactly these tokens are generated, whatever max_tokens, constraints and their likelihood (see logprobs).
    forced_token_ids: Sequence[int] | None = None
    # A form that the text is held to: JSON, a regex, a list of choices, a grammar. min_tokens does not keep it from ending where
    # nothing else can follow.
    structured_outputs: StructuredOutputs | Mapping[str, Any] | None = None
    # Tokens of reasoning, without its tags, after which its end tag is forced; 0 = at once, None or -1 = no limit. Needs a model
    # whose reasoning ends with a tag.
    thinking_token_budget: int | None = None
    expert_selection: str | None = None  # None = the engine's; "topk" or "exact" = the model's own routing
    # Requests wait in the order of (priority, arrival), lower first; where pages run out, the last one in it is preempted.
    priority: int = 0
    # Seconds from arrival to the end of the request, wherever it is then: finish_reason "abort", with the tokens so far and an
    # `error` that begins with "timeout:". None = no limit.
    timeout: float | None = None
    cache_salt: str | None = None  # only requests with the same one find each other's prompts in the prefix cache
    # Requests of one group have experts selected as if no others were in the batch: their text depends on each other's and on
    # nobody else's. None = the group of all that name none. docs/selection.md says what else may depend on the load.
    isolation_group: str | None = None
    # Outputs without new text while the prompt is computed: metrics.num_computed_prompt_tokens.
    report_progress: bool = False

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every field and brings it to its plain form (lists, Python numbers). Raises ValidationError."""
        self.n = _integer("n", self.n, low=1, high=_MAX_N)
        for name in ("presence_penalty", "frequency_penalty"):
            setattr(self, name, _real(name, getattr(self, name), -2.0, 2.0))
        self.repetition_penalty = _real("repetition_penalty", self.repetition_penalty, 0.0, low_open=True)
        self.temperature = _real("temperature", self.temperature, 0.0)
        self.top_p = _real("top_p", self.top_p, 0.0, 1.0, low_open=True)
        self.top_k = min(_integer("top_k", self.top_k, low=-1), _INT32_MAX)
        self.min_p = _real("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            seed = _integer("seed", self.seed, low=-1, high=_UINT64_MAX)
            self.seed = None if seed == -1 else seed
        self.stop = _strings("stop", self.stop)
        self.stop_token_ids = _token_ids("stop_token_ids", self.stop_token_ids)
        self.bad_words = _strings("bad_words", self.bad_words)
        if self.bad_words_ids is not None:
            self.bad_words_ids = _token_sequences("bad_words_ids", self.bad_words_ids)
        if self.max_tokens is not None:
            self.max_tokens = _integer("max_tokens", self.max_tokens, low=1)
        self.min_tokens = _integer("min_tokens", self.min_tokens, low=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValidationError(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}", "min_tokens"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                setattr(self, name, _integer(name, getattr(self, name), low=-1))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValidationError(f"{name} must be True or False, got {shown(getattr(self, name))}", name)
        self.logit_bias = _logit_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                raise ValidationError("allowed_token_ids must name at least one token, got none", "allowed_token_ids")
        if self.forced_token_ids is not None:
            self.forced_token_ids = _token_ids("forced_token_ids", self.forced_token_ids)
            if not self.forced_token_ids:
                raise ValidationError("forced_token_ids must name at least one token, got none", "forced_token_ids")
            if self.stop:
                raise ValidationError("stop would end forced_token_ids early: give one of the two", "stop")
        if self.structured_outputs is not None:
            self.structured_outputs = StructuredOutputs.of(self.structured_outputs)
            if self.forced_token_ids is not None:
                raise ValidationError(
                    "expected one of structured_outputs and forced_token_ids, got both", "structured_outputs"
                )
        if self.thinking_token_budget is not None:
            budget = _integer("thinking_token_budget", self.thinking_token_budget, low=-1)
            self.thinking_token_budget = None if budget == -1 else budget
            if budget != -1 and self.forced_token_ids is not None:
                raise ValidationError(
                    "expected one of thinking_token_budget and forced_token_ids, got both", "thinking_token_budget"
                )
        if self.stop and not self.detokenize:
            raise ValidationError("stop needs the text: set detokenize=True or use stop_token_ids", "stop")
        self.priority = _integer("priority", self.priority, low=-_INT32_MAX - 1, high=_INT32_MAX)
        if self.timeout is not None:
            self.timeout = _real("timeout", self.timeout, 0.0, low_open=True)
        self.cache_salt = _label("cache_salt", self.cache_salt)
        self.isolation_group = _label("isolation_group", self.isolation_group)
        if self.n > 1 and self.greedy:
            raise ValidationError(f"n must be 1 with temperature 0 (all would be the same), got {self.n}", "n")
        if self.expert_selection not in (None, "topk", "exact"):
            raise ValidationError(
                "expert_selection of a request must be None (as the engine does) or 'topk'/'exact' (the model's own "
                f"routing), got {shown(self.expert_selection)}; other policies are set on the Engine",
                "expert_selection",
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    @classmethod
    def of(cls, value: SamplingParams | Mapping[str, Any]) -> SamplingParams:
        """Returns `value` itself, or SamplingParams of a dict of fields."""
        if isinstance(value, SamplingParams):
            return value
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str)]:
                raise ValidationError(f"sampling_params: names must be strings, got {shown(odd[0])}", "sampling_params")
            return cls(**value)
        raise ValidationError(
            f"sampling_params must be SamplingParams or a dict, got {type(value).__name__}", "sampling_params"
        )

    def clone(self, **changes: Any) -> SamplingParams:
        """Returns a copy with some fields changed."""
        return replace(self, **changes)

    def to_native(
        self,
        *,
        index: int,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: Sequence[int],
        tokenizer: Tokenizer | None,
        stop_token_ids: Iterable[int] = (),
    ) -> _C.SamplingParams:
        """Returns the C++ form for completion `index` of `n`.

        eos_token_ids: ends of text that the C++ engine does not read itself; used unless ignore_eos.
        stop_token_ids: stop tokens beside the field's, for stop strings that are special tokens.
        """
        from lynx_rt import _C

        self.validate()
        native = _C.SamplingParams()
        for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"):
            setattr(native, name, getattr(self, name))
        native.repetition_penalty = self.repetition_penalty
        native.seed = None if self.seed is None else (self.seed + index) % (_UINT64_MAX + 1)
        native.max_tokens = max_model_len if self.max_tokens is None else min(self.max_tokens, _INT32_MAX)
        # A grammar sees to min_tokens itself, since it knows where only the end can follow.
        native.min_tokens = 0 if self.structured_outputs is not None else min(self.min_tokens, _INT32_MAX)
        native.ignore_eos = self.ignore_eos
        native.exact = self.expert_selection is not None
        native.priority = self.priority
        native.timeout = self.timeout or 0.0
        native.cache_salt = self.cache_salt or ""
        native.isolation_group = self.isolation_group or ""
        native.report_progress = self.report_progress
        for name in ("stop_token_ids", "allowed_token_ids", "forced_token_ids", "logit_bias"):
            _inside_vocabulary(name, getattr(self, name) or (), vocab_size)
        hidden = () if self.ignore_eos else eos_token_ids
        native.stop_token_ids = list(dict.fromkeys((*(self.stop_token_ids or ()), *stop_token_ids, *hidden)))
        native.allowed_token_ids = list(self.allowed_token_ids or ())
        native.forced_token_ids = list(self.forced_token_ids or ())
        native.logit_bias = list((self.logit_bias or {}).items())
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and count > vocab_size:
                raise ValidationError(f"{name} must be at most the vocabulary ({vocab_size}), got {count}", name)
            setattr(native, name, -1 if count is None else vocab_size if count == -1 else count)
        for sequence in self.bad_words_ids or ():
            _inside_vocabulary("bad_words_ids", sequence, vocab_size)
        native.bad_words = [*_bad_word_sequences(self.bad_words or (), tokenizer), *map(list, self.bad_words_ids or ())]
        return native


_FIELDS = tuple(field.name for field in fields(SamplingParams))
_generated_init = SamplingParams.__init__


@functools.wraps(_generated_init)
def _checked_init(self: SamplingParams, **given: Any) -> None:
    """Wraps the dataclass's own __init__: an unknown name raises ValidationError instead of TypeError."""
    for name in [name for name in given if name not in _FIELDS]:
        if name in _UNSUPPORTED:
            advice, neutral = _UNSUPPORTED[name]
            if (value := given.pop(name)) is not None and not _is_one_of(value, neutral):
                raise ValidationError(f"{name} is not supported; {advice}", name)
        else:
            near = [_ALIASES[name]] if name in _ALIASES else difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "fields: " + ", ".join(_FIELDS)
            raise ValidationError(f"SamplingParams has no field {name!r}; {hint}", name)
    _generated_init(self, **given)


def _is_one_of(value: Any, items: tuple[Any, ...]) -> bool:
    return any(isinstance(value, (bool, numbers.Real, str, list, dict)) and value == item for item in items)


SamplingParams.__init__ = _checked_init  # type: ignore[method-assign]


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValidationError(f"{name} must be an integer, got {shown(value)}", name)
    number = int(value)
    if number < low or (high is not None and number > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValidationError(f"{name} must be {limits}, got {shown(number)}", name)
    return number


def _real(name: str, value: Any, low: float, high: float = _FLOAT32_MAX, low_open: bool = False) -> float:
    """Checks a number from low to high; with low_open, it must be above low, and not so small that float32 rounds it to low."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValidationError(f"{name} must be a number, got {shown(value)}", name)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    floor = low + _FLOAT32_TINY if low_open else low
    if not floor <= number <= high:  # False for NaN, too
        limits = f"{'>' if low_open else '>='} {low:g} and <= {high:.6g}"
        raise ValidationError(f"{name} must be finite and {limits}, got {shown(value)}", name)
    return number


def _strings(name: str, value: str | Sequence[str] | None) -> list[str]:
    if isinstance(value, str):
        value = [value]
    elif value is None:
        value = []
    elif not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise ValidationError(f"{name} must be a string or a list of strings, got {shown(value)}", name)
    for item in value:
        if not isinstance(item, str) or not item:
            raise ValidationError(f"{name} must hold non-empty strings, got {shown(item)}", name)
        if (fault := encoding_fault(item)) is not None:
            raise ValidationError(f"{name}: {fault}", name)
    return list(value)


def _label(name: str, value: str | None) -> str | None:
    """Checks a text that requests are compared by: None, or 1 to 1024 bytes of UTF-8."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ValidationError(f"{name} must be a string that is not empty, or None, got {shown(value)}", name)
    if (fault := encoding_fault(value)) is not None:
        raise ValidationError(f"{name}: {fault}", name)
    if (size := len(value.encode())) > _MAX_LABEL_BYTES:
        raise ValidationError(f"{name} must have at most {_MAX_LABEL_BYTES} bytes of UTF-8, got {size}", name)
    return value


def _token_ids(name: str, value: Sequence[int] | None) -> list[int]:
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        raise ValidationError(f"{name} must be a list of token ids, got {shown(value)}", name)
    try:
        items = [] if value is None else list(value)
    except TypeError:
        raise ValidationError(f"{name} must be a list of token ids, got {shown(value)}", name) from None
    return [_integer(name, item, low=0, high=_INT32_MAX) for item in items]


def _token_sequences(name: str, value: Sequence[Sequence[int]]) -> list[list[int]]:
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"{name} must be a list of lists of token ids, got {shown(value)}", name)
    sequences = [_token_ids(name, sequence) for sequence in value]
    if not all(sequences):
        raise ValidationError(f"{name} must hold non-empty lists of token ids, got an empty one", name)
    return sequences


def _logit_bias(value: Mapping[int, float] | None) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValidationError(f"logit_bias must map token ids to numbers, got {shown(value)}", "logit_bias")
    clean: dict[int, float] = {}
    for key, bias in value.items():
        # JSON objects have string keys, so "42" is accepted for 42.
        token_id = int(key) if isinstance(key, str) and key.isdecimal() and len(key) <= 10 else key
        if isinstance(bias, bool) or not isinstance(bias, numbers.Real) or bias != bias:
            raise ValidationError(f"logit_bias of token {shown(key)} must be a number, got {shown(bias)}", "logit_bias")
        clean[_integer("logit_bias", token_id, low=0, high=_INT32_MAX)] = float(min(100, max(-100, bias)))
    return clean


def _inside_vocabulary(name: str, ids: Sequence[int] | Mapping[int, float], vocab_size: int) -> None:
    for token_id in ids:
        if token_id >= vocab_size:
            raise ValidationError(f"{name}: token {token_id} is outside the vocabulary of {vocab_size}", name)


def _bad_word_sequences(words: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Returns the token sequences of each word at the start of a text and after a space."""
    if not words:
        return []
    if tokenizer is None:
        raise ValidationError("bad_words needs a tokenizer, and this engine has none", "bad_words")
    variants = [prefix + word.lstrip(" ") for word in words for prefix in ("", " ")]
    sequences = [tokenizer.encode(text, add_special_tokens=False) for text in variants]
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in sequences if ids)]

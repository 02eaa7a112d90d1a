"""What a model's generation_config.json says: its default sampling and its ends of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lynx_rt.sampling_params import SamplingParams
from lynx_rt.tokenizer import Tokenizer

_FIELD_OF_KEY = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}


def default_sampling_params(config: Mapping[str, Any]) -> SamplingParams:
    """The library's defaults with the file's values on top; `do_sample: false` means temperature 0."""
    values = {field: config[key] for key, field in _FIELD_OF_KEY.items() if config.get(key) is not None}
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    return SamplingParams(**values)


def eos_token_ids(config: Mapping[str, Any], tokenizer: Tokenizer | None, vocab_size: int) -> frozenset[int]:
    """The file's ends of text (it may name none, one or several) and the tokenizer's."""
    found = config.get("eos_token_id")
    ids = {found} if isinstance(found, int) else set(found or ())
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(token_id for token_id in ids if 0 <= token_id < vocab_size)

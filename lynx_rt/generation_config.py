"""What a model's generation_config.json says: its default sampling and its ends of text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_rt.errors import CheckpointError, ValidationError
from lynx_rt.sampling_params import SamplingParams
from lynx_rt.tokenizer import Tokenizer
from lynx_rt.tokenizer_config import read_json

_FIELD_OF_KEY = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def load_generation_config(folder: Path) -> dict[str, Any]:
    """The folder's generation_config.json, checked. Under "eos_token_id" is the list of the ends of text that it,
    config.json and the latter's text_config name. Raises CheckpointError that names file and key.
    """
    file = folder / "generation_config.json"
    config = read_json(file)
    for key, field in _FIELD_OF_KEY.items():
        if config.get(key) is not None:
            try:
                SamplingParams(**{field: config[key]})
            except ValidationError as error:
                raise CheckpointError(f"{file}: {key}: {error}", key) from None
    if not isinstance(config.get("do_sample"), bool | None):
        raise CheckpointError(f"{file}: do_sample must be true or false, got {config['do_sample']!r}", "do_sample")
    model_file = folder / "config.json"
    model_config = read_json(model_file)
    text_config = model_config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    ids = _ids(config, file) + _ids(model_config, model_file) + _ids(nested, model_file)
    return config | {"eos_token_id": list(dict.fromkeys(ids))}


def default_sampling_params(config: Mapping[str, Any]) -> SamplingParams:
    """The library's defaults with the file's values on top; `do_sample: false` means temperature 0.

    The keys are those that vLLM takes as defaults. As there, a file that does not say do_sample has its temperature
    used (transformers would decode greedily), and max_length and min_new_tokens are not looked at. Unlike vLLM, which
    does not look at do_sample at all, a model that asks for greedy decoding gets it.
    """
    values = {field: config[key] for key, field in _FIELD_OF_KEY.items() if config.get(key) is not None}
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    return SamplingParams(**values)


def eos_token_ids(config: Mapping[str, Any], tokenizer: Tokenizer | None, vocab_size: int) -> frozenset[int]:
    """The ends of text of load_generation_config() and the tokenizer's, as far as the model has them."""
    ids = set(config["eos_token_id"])
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(token_id for token_id in ids if 0 <= token_id < vocab_size)


def _ids(config: Mapping[str, Any], file: Path) -> list[int]:
    """Its ends of text: none, one or several."""
    found = config.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not all(type(token_id) is int for token_id in ids):
        raise CheckpointError(
            f"{file}: eos_token_id must be a token id or a list of them, got {found!r}", "eos_token_id"
        )
    return ids

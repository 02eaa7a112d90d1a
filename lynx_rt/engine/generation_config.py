"""Reads a model's generation_config.json: its default sampling and its ends of text.

Many tools write such files and none checks them, so a value that cannot be used never keeps a model from loading. It is
left out with a GenerationConfigWarning, when something first depends on it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.errors import CheckpointError, ModelNotFoundError, ValidationError, shown
from lynx_rt.text.tokenizer import Tokenizer
from lynx_rt.text.tokenizer_config import read_json

_NAME = "generation_config.json"
_FIELD_OF_KEY = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "bad_words_ids": "bad_words_ids",
    "suppress_tokens": "bad_words_ids",
}
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")  # these do not affect greedy decoding
# Keys that only transformers' own loop applies -> their values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "renormalize_logits": (),
    "sequence_bias": ({}, []),
    "token_healing": (),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


# Keys of GGUF under "general.sampling.".
_GGUF_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


class GenerationConfigWarning(UserWarning):
    """A value of generation_config.json is not used; the text names file and key."""


class GenerationConfig:
    """Contents of one model's file. Thread-safe.

    eos_token_ids: the ends of text that this file, config.json and the latter's text_config name.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, eos_token_ids: Sequence[int] = ()) -> None:
        self.eos_token_ids = list(eos_token_ids)
        self._values = values
        self._file = file
        self._warned: set[str] = set()
        self._defaults: dict[tuple[int | None, bool], dict[str, Any]] = {}  # arguments -> fields

    def default_sampling_params(self, vocab_size: int | None = None, with_text: bool = True) -> SamplingParams:
        """Returns the library's defaults with the file's values on top; `do_sample: false` means temperature 0.

        vocab_size: number of tokens that exist.  with_text: whether there is a tokenizer for stop strings.

        Temperature, top_k, top_p, min_p, repetition_penalty and max_new_tokens are those that vLLM takes as defaults.
        As in vLLM, the temperature of a file without do_sample is used (transformers would decode greedily). Unlike in
        vLLM, which ignores do_sample, a model that asks for greedy decoding gets it. Of the keys
        that only transformers knows, min_new_tokens, stop_strings, bad_words_ids and suppress_tokens are used as well;
        the others are warned of where they would change the output.
        """
        key = (vocab_size, with_text)
        if key not in self._defaults:
            self._defaults[key] = self._read_defaults(vocab_size, with_text)
        return SamplingParams(**self._defaults[key])

    def _read_defaults(self, vocab_size: int | None, with_text: bool) -> dict[str, Any]:
        greedy = self._do_sample() is False
        fields: dict[str, Any] = {}
        for key, field in _FIELD_OF_KEY.items():
            if (value := self._values.get(key)) is None or value == []:
                continue
            try:
                if field == "stop" and not with_text:
                    raise ValidationError("stop strings need a tokenizer, and there is none")
                value = _plain(key, value, vocab_size)
                SamplingParams(**{field: value} | ({"max_tokens": None} if field == "min_tokens" else {}))
            except ValidationError as error:
                if not (greedy and key in _SAMPLING_ONLY):
                    self._warn(key, str(error))
                continue
            fields[field] = fields.get(field, []) + value if field == "bad_words_ids" else value
        if greedy:
            fields["temperature"] = 0.0
        if "min_tokens" in fields and fields["min_tokens"] > fields.get("max_tokens", SamplingParams.max_tokens):
            self._warn("min_new_tokens", f"{fields.pop('min_tokens')} is more than the most new tokens")
        for key, neutral in _UNSUPPORTED.items():
            if (value := self._values.get(key)) is not None and value is not False and value not in neutral:
                self._warn(key, f"{shown(value)} is not supported")
        if self._values.get("max_length") not in (None, 20) and "max_tokens" not in fields:
            self._warn("max_length", "it counts the prompt as well, set max_tokens")
        return fields

    def _do_sample(self) -> bool | None:
        value = self._values.get("do_sample")
        if value is None or (isinstance(value, (bool, int)) and value in (0, 1)):
            return None if value is None else bool(value)
        self._warn("do_sample", f"must be true or false, got {shown(value)}")
        return None

    def _warn(self, key: str, reason: str) -> None:
        """Warns once per key."""
        if key not in self._warned:
            self._warned.add(key)
            _warn(f"{self._file}: {key} is ignored: {reason}")


def load_generation_config(folder: Path, source: str | os.PathLike[str] | None = "auto") -> GenerationConfig:
    """Returns the configuration for the model in `folder`.

    folder: the model's, or its GGUF file.  source: "auto" = the folder's own file; another folder or file; None or "vllm" = no default sampling, only the ends of
    text of the folder's file. Raises ModelNotFoundError and CheckpointError for a file that the caller named.
    """
    if not isinstance(source, (str, os.PathLike, type(None))):
        raise ValidationError(
            f"generation_config must be 'auto', 'vllm', None or a path, got {shown(source)}", "generation_config"
        )
    if source in ("auto", "vllm", None):
        file = folder if folder.suffix == ".gguf" else folder / _NAME
        values = _read_gguf(file) if file == folder else _read_leniently(file)
    else:
        file = Path(source) if Path(source).suffix == ".json" else Path(source) / _NAME
        if not file.is_file():
            raise ModelNotFoundError(
                f"generation_config: {file} does not exist; 'auto' is the model's own, 'vllm' is none",
                "generation_config",
            )
        values = read_json(file)
    model_file = folder / "config.json"  # C++ reads the ends of text of a GGUF file
    model_config = read_json(model_file)
    text_config = model_config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    ids = _ids(values, file) + _ids(model_config, model_file) + _ids(nested, model_file)
    return GenerationConfig({} if source in ("vllm", None) else values, file, list(dict.fromkeys(ids)))


def eos_token_ids(config: GenerationConfig, tokenizer: Tokenizer | None, vocab_size: int) -> frozenset[int]:
    """Returns the ends of text of the configuration and of the tokenizer, as far as the model has these tokens."""
    ids = set(config.eos_token_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(token_id for token_id in ids if 0 <= token_id < vocab_size)


def _plain(key: str, value: Any, vocab_size: int | None) -> Any:
    """Returns the value in the form of its field: 50.0 becomes an integer, and suppressed tokens become words of one token."""
    if key in ("top_k", "max_new_tokens", "min_new_tokens"):
        return _whole(value)
    if key not in ("bad_words_ids", "suppress_tokens"):
        return value
    items = value if isinstance(value, list) else [value]
    sequences = [[item] for item in items] if key == "suppress_tokens" else items
    checked: list[list[int]] = SamplingParams(
        bad_words_ids=[[_whole(token) for token in words] if isinstance(words, list) else words for words in sequences]
    ).bad_words_ids  # type: ignore[assignment]
    if vocab_size is not None and any(token >= vocab_size for words in checked for token in words):
        raise ValidationError(f"it names tokens outside the vocabulary of {vocab_size}")
    return checked


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_gguf(file: Path) -> dict[str, Any]:
    """Returns the sampling that a GGUF file recommends, under the names of generation_config.json."""
    from lynx_rt import _C

    metadata = _C.gguf_metadata(str(file))
    keys = {key: metadata.get(f"general.sampling.{name}") for key, name in _GGUF_KEYS.items()}
    return {key: value for key, value in keys.items() if value is not None}


def _read_leniently(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except CheckpointError as error:
        _warn(f"{error}; the model's default sampling is not used")
        return {}


def _ids(config: Mapping[str, Any], file: Path) -> list[int]:
    """Returns a file's ends of text: none, one or several. A value that is no token id is left out."""
    found = config.get("eos_token_id")
    ids = [_whole(item) for item in (found if isinstance(found, list) else [] if found is None else [found])]
    if not all(type(token_id) is int for token_id in ids):
        _warn(f"{file}: eos_token_id should be a token id or a list of them, got {shown(found)}")
    return [token_id for token_id in ids if type(token_id) is int]


def _warn(text: str) -> None:
    warnings.warn(text, GenerationConfigWarning, stacklevel=4)

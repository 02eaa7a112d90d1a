"""The types of Engine's arguments. Their ranges are checked where they are used, in C++."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from typing import Any

from lynx_rt.errors import ValidationError, encoding_fault, shown

_NONE = type(None)
_PATHS = (str, os.PathLike)
_BOOL = ((bool,), "True or False")
_INTEGER = ((numbers.Integral,), "an integer")
_INTEGER_OR_NONE = ((numbers.Integral, _NONE), "an integer or None")
_PATH_OR_NONE = ((*_PATHS, _NONE), "a path or None")
_TEXT = ((str,), "a string")
_TEXT_OR_NONE = ((str, _NONE), "a string or None")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "model": (_PATHS, "a path"),
    "skip_tokenizer_init": _BOOL,
    "chat_template": ((*_PATHS, _NONE), "a template's text or path, or None"),
    "generation_config": _PATH_OR_NONE,
    "device": _TEXT,
    "load_format": _TEXT,
    "dtype": _TEXT,
    "quantization": _TEXT_OR_NONE,
    "quantization_cache": _PATH_OR_NONE,
    "max_model_len": _INTEGER_OR_NONE,
    "max_num_seqs": _INTEGER,
    "max_num_batched_tokens": _INTEGER,
    "max_num_queued_reqs": _INTEGER_OR_NONE,
    "block_size": _INTEGER,
    "enable_prefix_caching": _BOOL,
    "enable_mixed_chunk": _BOOL,
    "kv_cache_memory_bytes": _INTEGER_OR_NONE,
    "expert_selection": _TEXT_OR_NONE,
    "num_threads": _INTEGER_OR_NONE,
    "seed": _INTEGER,
    "isa": _TEXT_OR_NONE,
    "enable_return_routed_experts": _BOOL,
    "record_router_logits": _BOOL,
}


def check_options(options: Mapping[str, Any]) -> None:
    """options: Engine's arguments by name; others are not looked at. Raises ValidationError that names the first bad one."""
    for name, (types, expected) in _KINDS.items():
        value = options[name]
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if not fits or (isinstance(value, str) and encoding_fault(value)):
            raise ValidationError(f"{name} must be {expected}, got {shown(value)}", name)

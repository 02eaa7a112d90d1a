"""Checks the types of Engine's arguments by its signature, and selects those of the compiled Engine.

C++ checks ranges where it uses the values.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from typing import Any

from lynx_rt.errors import ValidationError, encoding_fault, shown

_NONE = type(None)
_KIND_OF_ANNOTATION: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "True or False"),
    "int": ((numbers.Integral,), "an integer"),
    "int | None": ((numbers.Integral, _NONE), "an integer or None"),
    "float": ((numbers.Real,), "a number"),
    "float | None": ((numbers.Real, _NONE), "a number or None"),
    "str": ((str,), "a string"),
    "str | None": ((str, _NONE), "a string or None"),
    "int | float | str | None": ((numbers.Real, str, _NONE), "bytes, a share or a text"),
    "str | os.PathLike[str]": ((str, os.PathLike), "a path"),
    "str | os.PathLike[str] | None": ((str, os.PathLike, _NONE), "a path or None"),
}
# Texts for arguments whose type does not say enough.
_EXPECTED = {"chat_template": "a template's text or path, or None"}
_NOT_NATIVE = (
    *("model", "tokenizer", "skip_tokenizer_init", "chat_template", "tool_parser", "reasoning_parser"),
    *(
        "generation_config",
        "on_load_progress",
        "limit_mm_per_prompt",
        "mm_processor_kwargs",
        "allowed_local_media_path",
    ),
)


def check_options(annotations: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Raises ValidationError that names the first of the given arguments whose value is not of its annotated type.

    annotations: those of Engine.__init__, as text; an annotation that is not in the table above is not checked.
    """
    for name, annotation in annotations.items():
        if annotation not in _KIND_OF_ANNOTATION or name == "return":
            continue
        types, expected = _KIND_OF_ANNOTATION[annotation]
        value = given[name]
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if not fits or (isinstance(value, str) and encoding_fault(value)):
            raise ValidationError(f"{name} must be {_EXPECTED.get(name, expected)}, got {shown(value)}", name)


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, got {shown(value)}", name)


def memory_text(value: int | float | str | None) -> str | None:
    """Returns a size as C++ reads it: a whole number is bytes, another number a share."""
    if value is None or isinstance(value, str):
        return value
    return str(value) if isinstance(value, numbers.Integral) else f"{100 * value!r}%"


def native_options(annotations: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of the compiled Engine, without None and "": EngineOptions has the defaults."""
    names = [name for name in annotations if name not in (*_NOT_NATIVE, "return")]
    values = {name: os.fspath(v) if isinstance(v := given[name], os.PathLike) else v for name in names}
    for name in ("memory", "expert_memory"):
        values[name] = memory_text(values[name])
    return {name: value for name, value in values.items() if value is not None and value != ""}

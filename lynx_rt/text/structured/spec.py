"""What a text must look like. Names and shapes are those of vLLM's structured outputs."""

from __future__ import annotations

import difflib
import json as json_library
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lynx_rt.errors import ValidationError, encoding_fault, shown

FIELD = "structured_outputs"
_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_OF_JSON = ("json", "json_object")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """A form that the text is held to, in exactly one of six ways. Checked when made.

    Every token is drawn from those that keep the form, and the text ends where the form does. A text that max_tokens or a stop
    string cuts off is incomplete.
    Raises ValidationError whose field is "structured_outputs" and whose text names the field of this class.
    """

    json: Mapping[str, Any] | str | None = None  # a JSON schema, as a dict or as JSON text
    regex: str | None = None  # Rust's syntax; the whole text matches. No look-around, no back references
    choice: Sequence[str] | None = None  # the text is one of these
    grammar: str | None = None  # Lark with llguidance's extensions, or GBNF
    json_object: bool | None = None  # True: any JSON object
    # {"structures": [{"begin", "schema", "end"}], "triggers": [text]}, as a dict or as JSON text. Text is free until it has a
    # trigger; from there on it goes on as one of the structures that begin with the trigger.
    structural_tag: Mapping[str, Any] | str | None = None
    # A regex, with json and json_object, for the white space between JSON's tokens. None = none, a space, or one or two line ends and
    # an indentation.
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False  # of json and json_object: no white space between JSON's tokens
    start_after: str | None = None  # everything up to this text is free, but does not end: the end tag of reasoning

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise _fault(f"{name} must be True or False, got {shown(getattr(self, name))}")
        set_kinds = [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]
        if len(set_kinds) != 1:
            raise _fault(f"expected one of {', '.join(_KINDS)}, got {' and '.join(set_kinds) or 'none of them'}")
        for name in ("json", "structural_tag"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _json_object(name, value))
        for name in ("regex", "grammar", "whitespace_pattern", "start_after"):
            if (value := getattr(self, name)) is not None:
                _check_text(name, value)
        if self.choice is not None:
            if isinstance(self.choice, str) or not isinstance(self.choice, Sequence) or not self.choice:
                raise _fault(f"choice must be a list of strings that is not empty, got {shown(self.choice)}")
            for item in self.choice:
                _check_text("choice", item, "hold strings that are not empty")
            object.__setattr__(self, "choice", list(self.choice))
        if set_kinds[0] not in _OF_JSON:
            for name in ("whitespace_pattern", "disable_any_whitespace"):
                if getattr(self, name):
                    raise _fault(f"{name} goes with json or json_object, not with {set_kinds[0]}")
        elif self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise _fault("expected one of whitespace_pattern and disable_any_whitespace, got both")

    @classmethod
    def of(cls, value: StructuredOutputs | Mapping[str, Any]) -> StructuredOutputs:
        """Returns `value` itself, or StructuredOutputs of a dict of fields; None is a field's default."""
        if isinstance(value, StructuredOutputs):
            return value
        if not isinstance(value, Mapping):
            raise _fault(f"expected StructuredOutputs or a dict, got {shown(value)}")
        names = [field.name for field in fields(cls)]
        for name in value:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]}?" if near else "fields: " + ", ".join(names)
                raise _fault(f"there is no field {shown(name)}; {hint}")
        return cls(**{name: item for name, item in value.items() if item is not None})

    @property
    def key(self) -> str:
        """A text that two objects have in common where the same grammar, as far as it is compiled, holds for both."""
        names = [field.name for field in fields(self) if field.name != "start_after"]
        return json_library.dumps([getattr(self, name) for name in names])


def _fault(text: str) -> ValidationError:
    return ValidationError(f"{FIELD}: {text}", FIELD)


def _json_object(name: str, value: Any) -> dict[str, Any]:
    """Returns a copy of `value` that holds nothing but JSON."""
    try:
        text = value if isinstance(value, str) else json_library.dumps(value, allow_nan=False)
        parsed = json_library.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise _fault(f"{name} must be JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise _fault(f"{name} must be a JSON object, got {shown(value)}")
    return parsed


def _check_text(name: str, value: Any, expected: str = "be a string that is not empty") -> None:
    if not isinstance(value, str) or not value:
        raise _fault(f"{name} must {expected}, got {shown(value)}")
    if (fault := encoding_fault(value)) is not None:
        raise _fault(f"{name}: {fault}")

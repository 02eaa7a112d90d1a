"""Reads a response template: what tokenizer_config.json of transformers 5 says on the fields of a response."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.response.calls import CallKeys
from lynx_rt.text.response.reader import Anchor, Literals, MalformedError, Pattern
from lynx_rt.text.response.tools import load_json

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the field
_CONTENTS = ("text", "int", "float", "bool", "json", "xml-inline", "kv-lines")
_TEMPLATE_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_FIELD_KEYS = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats", "join", "optional"),
    *("transform", "transform_each"),
}
_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")


@dataclass(frozen=True)
class TemplateField:
    """A part of a response: where it begins and ends, and how its text is read."""

    name: str
    open: Anchor | None  # None = whatever no other field has
    close: Anchor | None  # None = at the end of the output
    content: str
    args: Mapping[str, Any]
    join: str | None
    transform: Any
    transform_each: bool

    @property
    def strips(self) -> bool:
        """Whether white space around the text is dropped."""
        return bool(self.args.get("strip", True))

    @property
    def is_json(self) -> bool:
        """Whether the text is JSON proper."""
        dialect = ("string_delims", "unquoted_keys", "allow_non_json")
        return self.content == "json" and not any(self.args.get(name) for name in dialect)

    @property
    def call_shape(self) -> CallKeys | str | None:
        """How JSON becomes calls: the keys of a call's object; or the group of the pattern that is the name, for an object of
        arguments; None = in another way.
        """
        transform = self.transform
        function = transform.get("function", transform) if isinstance(transform, Mapping) else None
        if function == "{content}" and not self.transform_each:
            return CallKeys(with_types=True)
        if not isinstance(function, Mapping) or set(function) != {"name", "arguments"}:
            return None
        found = [
            _PLACEHOLDER.fullmatch(text) for text in (function["name"], function["arguments"]) if isinstance(text, str)
        ]
        if len(found) < 2 or found[0] is None or found[1] is None:
            return None
        name, arguments = found[0][1], found[1][1]
        prefix = "" if self.transform_each else "content."
        if name.startswith(prefix) and arguments.startswith(prefix):
            name, arguments = name.removeprefix(prefix), arguments.removeprefix(prefix)
            return None if "." in name or "." in arguments else CallKeys(name, (arguments,), with_types=True)
        return name if arguments == "content" and "." not in name and not self.transform_each else None

    def values(self, text: str, captures: Mapping[str, str]) -> list[Any]:
        """Returns what the text stands for, as the transform arranges it. Raises MalformedError."""
        try:
            value = read_content(text, self.content, self.args)
            if self.transform is None:
                return value if isinstance(value, list) else [value]
            if self.transform_each:
                return [arrange(self.transform, {**captures, **item}) for item in value]
            return [arrange(self.transform, {**captures, "content": value})]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MalformedError(str(error)) from None


@dataclass(frozen=True)
class ResponseTemplate:
    """The fields of a response. `start`: what begins an assistant's message in the prompt."""

    fields: tuple[TemplateField, ...]
    start: Anchor
    marks: tuple[str, ...] = field(default=(), compare=False)  # texts and patterns that the fields look for

    @staticmethod
    def of(spec: Any) -> ResponseTemplate:
        """Checks a template. Raises ValidationError that names the fault, also where its patterns need a missing package."""
        if not isinstance(spec, Mapping):
            raise _fault("it", "an object", spec)
        if unknown := set(spec) - _TEMPLATE_KEYS:
            raise _fault("it", f"of the keys {sorted(_TEMPLATE_KEYS)}", sorted(map(str, unknown)))
        if spec.get("version", 1) != 1:
            raise _fault("version", "1", spec["version"])
        fields = spec.get("fields")
        if not isinstance(fields, Mapping) or not fields:
            raise _fault("fields", "an object with at least one field", fields)
        start = _anchor("", spec, "start_anchor")
        if start is None:
            raise _fault("start_anchor", "a text or a pattern", None)
        made = tuple(_field(str(name), value) for name, value in fields.items())
        if len(implicit := [item.name for item in made if item.open is None]) > 1:
            raise _fault("fields", "at most one without an 'open'", implicit)
        keys = ("open", "open_pattern", "close", "close_pattern")
        given = [value[key] for value in fields.values() for key in keys if key in value]
        return ResponseTemplate(made, start, tuple(text for item in given for text in _listed(item)))

    @property
    def think(self) -> tuple[str, str] | None:
        """The tags around reasoning, where they are plain texts."""
        for item in self.fields:
            if item.name in REASONING and isinstance(item.open, Literals) and isinstance(item.close, Literals):
                return item.open.texts[0], item.close.texts[0]
        return None

    def prefix(self, prompt_tail: str) -> str:
        """Returns what the prompt has of the response already; "" where no message of an assistant begins in it."""
        place, end = 0, -1
        while place <= len(prompt_tail) and (found := self.start.find(prompt_tail, place, ended=True)[0]) is not None:
            end = found.end
            place = max(end, place + 1)
        return prompt_tail[end:] if end >= 0 else ""


def _fault(name: str, expected: str, found: Any) -> ValidationError:
    return ValidationError(f"response_template: {name} must be {expected}, got {shown(found)}", "response_template")


def _field(name: str, value: Any) -> TemplateField:
    if not isinstance(value, Mapping):
        raise _fault(name, "an object", value)
    if unknown := set(value) - _FIELD_KEYS:
        raise _fault(name, f"of the keys {sorted(_FIELD_KEYS)}", sorted(map(str, unknown)))
    content, args, join = value.get("content", "text"), value.get("content_args", {}), value.get("join")
    if content not in _CONTENTS:
        raise _fault(f"{name}.content", f"one of {_CONTENTS}", content)
    if not isinstance(args, Mapping):
        raise _fault(f"{name}.content_args", "an object", args)
    if join is not None and not (isinstance(join, str) and value.get("repeats")):
        raise _fault(f"{name}.join", "a text, in a field that repeats", join)
    each = value.get("transform_each", False)
    if not isinstance(each, bool) or (each and value.get("transform") is None):
        raise _fault(f"{name}.transform_each", "true or false, and true only with a transform", each)
    _check_transform(name, value.get("transform"))
    if content == "xml-inline":
        pattern = Pattern(_pattern_text(f"{name}.content_args.tag_pattern", args.get("tag_pattern")))
        args = {**args, "tag_pattern": pattern.compiled}
    opening, closing = (_anchor(f"{name}.", value, key) for key in ("open", "close"))
    return TemplateField(name, opening, closing, content, args, join, value.get("transform"), each)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pattern_text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _fault(name, "a pattern", value)
    return value


def _anchor(scope: str, value: Mapping[str, Any], key: str) -> Anchor | None:
    """Returns what `key` (a text or several) or `key`_pattern (a regular expression) says to look for; None = neither is there."""
    pattern_key = f"{key}_pattern"
    if key in value and pattern_key in value:
        raise _fault(f"{scope}{key}", f"without {pattern_key}", value[pattern_key])
    if pattern_key in value:
        return Pattern(_pattern_text(scope + pattern_key, value[pattern_key]))
    if key not in value:
        return None
    texts = _listed(value[key])
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise _fault(f"{scope}{key}", "a text or several", value[key])
    if any(a != b and b.startswith(a) for a in texts for b in texts):
        return Pattern("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
    return Literals(texts)


def _check_transform(name: str, transform: Any) -> None:
    if isinstance(transform, (Mapping, list)):
        for item in transform.values() if isinstance(transform, Mapping) else transform:
            _check_transform(name, item)
    elif isinstance(transform, str) and _PLACEHOLDER.search(transform) and not _PLACEHOLDER.fullmatch(transform):
        raise _fault(f"{name}.transform", "of plain texts and whole placeholders such as '{content}'", transform)


def arrange(transform: Any, values: Mapping[str, Any]) -> Any:
    """Returns the transform with its placeholders, such as "{content.name}", replaced by values."""
    if isinstance(transform, Mapping):
        return {key: arrange(item, values) for key, item in transform.items()}
    if isinstance(transform, list):
        return [arrange(item, values) for item in transform]
    placeholder = _PLACEHOLDER.fullmatch(transform) if isinstance(transform, str) else None
    if placeholder is None:
        return transform
    found: Any = values
    for key in placeholder[1].split("."):
        found = found[key]  # raises KeyError or TypeError: the model left it out
    return found


def read_content(text: str, kind: str, args: Mapping[str, Any]) -> Any:
    """Returns the value of a field's text. Raises ValueError, and what Python's own conversions raise."""
    if kind == "json":
        return _read_json(text, args)
    if kind == "xml-inline":
        return _read_tags(text, args)
    if kind == "kv-lines":
        return _read_lines(text, args)
    word = text.strip() if args.get("strip", True) else text
    if kind == "bool":
        return word.lower() in ("true", "1")
    return int(word) if kind == "int" else float(word) if kind == "float" else word


def _read_inner(text: str, parser: Mapping[str, Any] | None) -> Any:
    return text if parser is None else read_content(text, parser.get("name", "text"), parser.get("args", {}))


def _read_json(text: str, args: Mapping[str, Any]) -> Any:
    """Reads JSON; also with strings between marks of their own, and with names without quotes, as args say."""
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(json.dumps(found[1]))
        return f"\x01{len(strings) - 1}\x02"

    plain = text
    marks = args.get("string_delims", [])
    if marks and ("\x01" in text or "\x02" in text):
        raise ValueError("control characters 1 and 2 stand for strings")
    for start, end in marks:
        plain = re.sub(f"{re.escape(start)}(.*?){re.escape(end)}", keep, plain, flags=re.DOTALL)
    if args.get("unquoted_keys"):
        plain = re.sub(r"(?<=[{,])(\w+):", r'"\1":', plain)
    plain = re.sub("\x01(\\d+)\x02", lambda found: strings[int(found[1])], plain) if strings else plain
    try:
        return load_json(plain)
    except ValueError:
        if args.get("allow_non_json"):
            return text.strip()
        raise


def _read_tags(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Reads keys and values by the groups of args["tag_pattern"]. A key that comes again replaces, or makes a list."""
    found: dict[str, Any] = {}
    for match in args["tag_pattern"].finditer(text):
        key, value = match["key"], _read_inner(match.groupdict().get("value") or "", args.get("value_parser"))
        if key in found and args.get("merge_duplicates"):
            found[key] = [*_listed(found[key]), value]
        else:
            found[key] = value
    return found


def _read_lines(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    mark = args.get("kv_sep", ":")
    for line in text.split(args.get("line_sep", "\n")):
        key, separator, value = line.strip().partition(mark)
        if separator:
            found[key.strip()] = _read_inner(value.strip(), args.get("value_parser"))
    return found

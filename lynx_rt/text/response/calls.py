# ruff: noqa: RUF001  (DeepSeek's special tokens have full-width bars)
"""What all formats of tool calls have in common: where calls begin, and how a call in JSON is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from lynx_rt.text.response.json_scanner import dump_json
from lynx_rt.text.response.output import Output
from lynx_rt.text.response.reader import Literals, MalformedError, NotACallError, Reader, Reading
from lynx_rt.text.response.tools import Tools, cast_texts, load_json, load_object

MAX_NAME = 256  # characters of a function's name, or of an argument's
_NAME = re.compile(r"[\w.\-/:]+")
_CALL_KEYS = frozenset({"name", "arguments", "parameters", "type", "id"})


@dataclass(frozen=True)
class Context:
    """What a parser reads from, and writes to."""

    reader: Reader
    output: Output
    tools: Tools

    def end_call(self) -> None:
        """Says that a call is complete: a fault that comes later does not concern its text."""
        self.output.end_call()
        self.reader.mark()


class CallFormat(Protocol):
    """How a model writes tool calls. Has no state."""

    @property
    def openers(self) -> tuple[str, ...]:
        """Texts that begin calls wherever they stand."""
        ...

    @property
    def bare(self) -> str:
        """Characters that may begin a call where nothing else comes before."""
        ...

    def read(self, opener: str, context: Context) -> Reading[None]:
        """Reads the calls after an opener that was read; "" = the next character is a bare one. Raises MalformedError."""
        ...


def checked_name(name: str) -> str:
    """Returns a function's name without white space around it. Raises MalformedError for what is no name."""
    name = name.strip()
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise MalformedError("not a function's name")
    return name


def read_string(reader: Reader) -> Reading[str]:
    """Reads a JSON string."""
    parts: list[str] = []
    if (yield from reader.peek()) != '"':
        raise MalformedError("expected a string")
    yield from reader.json(parts.append)
    value = load_json("".join(parts))
    assert isinstance(value, str)
    return value


def read_arguments(context: Context, name: str, given_id: str | None = None, with_types: bool = False) -> Reading[None]:
    """Reads the arguments of a call as JSON, and makes the call. A text that holds the object's JSON, and null, are taken too.

    with_types: texts become what the tool's schema wants.
    """
    reader, output = context.reader, context.output
    if (yield from reader.peek()) == "{":
        output.begin_call(name, given_id)
        if with_types:
            yield from _read_members(context, name)
        else:
            yield from reader.json(output.put_arguments)
        context.end_call()
    else:
        parts: list[str] = []
        yield from reader.json(parts.append)
        _make_call(context, name, checked_arguments("".join(parts)), with_types, given_id)


def _read_members(context: Context, name: str) -> Reading[None]:
    """Reads an object, and puts it with its members as the tool's schema wants them."""
    reader, put = context.reader, context.output.put_arguments
    put((yield from reader.expect("{")))
    yield from reader.space()
    if (yield from reader.accept("}")):
        put("}")
        return
    while True:
        key = yield from read_string(reader)
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        put(f"{dump_json(key)}: ")
        types = context.tools.types(name, key)
        start = yield from reader.peek()
        if (start == '"' and set(types) - {"string"}) or (start == "[" and types and "array" not in types):
            parts: list[str] = []
            yield from reader.json(parts.append)
            put(dump_json(cast_texts(load_json("".join(parts)), types)))
        else:
            yield from reader.json(put)
        yield from reader.space()
        if (yield from reader.expect(",", "}")) == "}":
            put("}")
            return
        put(", ")
        yield from reader.space()


def checked_arguments(text: str) -> str:
    """Returns the text of the object that JSON text stands for: itself, what is inside its string, or {} for null."""
    try:
        value = load_json(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None
    if value is None or value == "":
        return "{}"
    if isinstance(value, str):
        load_object(value)
        return value.strip()
    if not isinstance(value, dict):
        raise MalformedError("arguments are no object")
    return text


@dataclass(frozen=True)
class CallKeys:
    """The keys of a call that is a JSON object. with_types: see read_arguments()."""

    name: str = "name"
    arguments: tuple[str, ...] = ("arguments", "parameters")
    with_types: bool = False


_KEYS = CallKeys()


def read_json_call(context: Context, bare: bool = False, keys: CallKeys = _KEYS) -> Reading[None]:
    """Reads {"name": ..., "arguments": {...}}; other keys are ignored.

    bare: nothing but the object itself says that it is a call, so that it needs the name of a tool and no other keys.
    """
    reader = context.reader
    yield from reader.expect("{")
    yield from reader.space()
    name: str | None = None
    early: str | None = None  # arguments that come before the name
    done = False
    while True:
        key = yield from read_string(reader)
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if key == keys.name and name is None:
            name = checked_name((yield from read_string(reader)))
            if bare and name not in context.tools:
                raise NotACallError(name)
            if early is not None:
                done = _make_call(context, name, early, keys.with_types)
        elif key in keys.arguments and name is not None and not done:
            yield from read_arguments(context, name, None, keys.with_types)
            done = True
        elif bare and key not in _CALL_KEYS:
            raise NotACallError(key)
        else:
            parts: list[str] = []
            yield from reader.json(parts.append)
            if key in keys.arguments and not done:
                early = checked_arguments("".join(parts))
        yield from reader.space()
        if (yield from reader.expect(",", "}")) == "}":
            break
        yield from reader.space()
    if name is None:
        raise MalformedError("a call without a name")
    if not done:
        _make_call(context, name, "{}")


def _make_call(
    context: Context, name: str, arguments: str, with_types: bool = False, given_id: str | None = None
) -> bool:
    if with_types:
        values = load_object(arguments).items()
        arguments = dump_json({key: cast_texts(value, context.tools.types(name, key)) for key, value in values})
    context.output.begin_call(name, given_id)
    context.output.put_arguments(arguments)
    context.end_call()
    return True


def read_json_calls(context: Context, bare: bool = False, keys: CallKeys = _KEYS) -> Reading[None]:
    """Reads one call, or an array of them."""
    reader = context.reader
    if not (yield from reader.accept("[")):
        yield from read_json_call(context, bare, keys)
        return
    yield from reader.space()
    if (yield from reader.accept("]")):
        return
    while True:
        yield from read_json_call(context, bare, keys)
        yield from reader.space()
        if (yield from reader.expect(",", "]")) == "]":
            return
        yield from reader.space()


@dataclass(frozen=True)
class JsonCalls:
    """Calls as JSON, one or an array, between tags or without any."""

    openers: tuple[str, ...]
    closers: tuple[str, ...] = ()
    bare: str = ""
    separator: str = ""  # between calls that one opener begins

    def read(self, opener: str, context: Context) -> Reading[None]:
        reader = context.reader
        bare = opener == ""
        yield from reader.space()
        yield from read_json_calls(context, bare)
        yield from reader.space()
        while self.separator and (yield from reader.skip(self.separator)):
            yield from reader.space()
            yield from read_json_calls(context, bare)
            yield from reader.space()
        if self.closers:
            yield from reader.skip(*self.closers)


class MistralCalls:
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]NAME[ARGS]{...} for each."""

    openers = ("[TOOL_CALLS]",)
    bare = ""
    _ID_CHAR = re.compile(r"[A-Za-z0-9]")
    _NAME_CHAR = re.compile(r"[\w.\-/:]")

    def read(self, opener: str, context: Context) -> Reading[None]:
        reader = context.reader
        yield from reader.space()
        if (yield from reader.peek()) in ("[", "{"):
            yield from read_json_calls(context)
            return
        name = checked_name((yield from reader.word(self._NAME_CHAR)))
        given_id = None
        if (yield from reader.accept("[CALL_ID]")):
            given_id = yield from reader.word(self._ID_CHAR)
        yield from reader.accept("[ARGS]")
        yield from reader.space()
        yield from read_arguments(context, name, given_id if given_id and len(given_id) == 9 else None)


@dataclass(frozen=True)
class DeepSeekCalls:
    """Calls between special tokens, of which each has a header and JSON arguments.

    fenced: the header is the call's type, and the name and a Markdown block follow (DeepSeek V3); else it is the name (V3.1).
    """

    fenced: bool
    openers: tuple[str, ...] = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    bare: str = ""

    def read(self, opener: str, context: Context) -> Reading[None]:
        reader = context.reader
        found: str | None = opener
        if opener == self.openers[0]:
            yield from reader.space()
            found = yield from reader.expect(self.openers[1])
        while found == self.openers[1]:
            name, _ = yield from reader.collect(_SEPARATOR, MAX_NAME)
            if self.fenced:
                name, _ = yield from reader.collect(_LINE_END, MAX_NAME)
                yield from reader.space()
                yield from reader.expect("```json")
            yield from reader.space()
            yield from read_arguments(context, checked_name(name))
            yield from reader.space()
            if self.fenced:
                yield from reader.skip("```")
                yield from reader.space()
            yield from reader.skip("<｜tool▁call▁end｜>")
            yield from reader.space()
            found = yield from reader.skip(self.openers[1], "<｜tool▁calls▁end｜>")


_SEPARATOR = Literals(["<｜tool▁sep｜>"])
_LINE_END = Literals(["\n"])


class KimiCalls:
    """<|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>{...}<|tool_call_end|>, several in a section."""

    openers = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
    bare = ""
    _ARGUMENTS = Literals(["<|tool_call_argument_begin|>"])
    _HEADER = re.compile(r"(?:functions\.)?(.+?)(:\d+)?")

    def read(self, opener: str, context: Context) -> Reading[None]:
        reader = context.reader
        found: str | None = opener
        if opener == self.openers[0]:
            yield from reader.space()
            found = yield from reader.expect(self.openers[1])
        while found == self.openers[1]:
            text, _ = yield from reader.collect(self._ARGUMENTS, MAX_NAME)
            header = self._HEADER.fullmatch(text.strip())
            if header is None:
                raise MalformedError("not a call's header")
            yield from reader.space()
            yield from read_arguments(context, checked_name(header[1]), header[0] if header[2] else None)
            yield from reader.space()
            yield from reader.skip("<|tool_call_end|>")
            yield from reader.space()
            found = yield from reader.skip(self.openers[1], "<|tool_calls_section_end|>")

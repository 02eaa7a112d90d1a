# ruff: noqa: RUF001  (DeepSeek's special tokens have full-width bars)
"""Tool calls whose arguments stand between tags as text. The tool's schema says what type they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from lynx_rt.text.response.calls import MAX_NAME, Context, checked_name
from lynx_rt.text.response.json_scanner import dump_json
from lynx_rt.text.response.reader import Literals, Reader, Reading
from lynx_rt.text.response.tools import cast, load_json

_NAME_CHAR = re.compile(r"[\w.\-/:]")


@dataclass(frozen=True)
class TaggedCalls:
    """Functions and their parameters between tags.

    A value ends at its closing tag only where another parameter or the end of the function follows: a value may have the tag
    in it. The end of the function may be missing before that of the block.
    """

    function: str  # begins a function
    name_end: str
    parameter: str  # begins a parameter
    key_ends: dict[str, bool | None]  # ends of its name -> whether the value is a text; None = the schema says it
    value_end: str
    function_end: str
    value: str = ""  # begins the value
    block: str = ""  # begins a block of functions
    block_end: str = ""
    needs_block: bool = True
    trim: bool = True  # values have a line break before and after them
    bare: str = ""
    _key_ends: Literals = field(init=False, repr=False)
    _value_end: Literals = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key_ends", Literals(self.key_ends))
        object.__setattr__(self, "_value_end", Literals([self.value_end]))

    @property
    def openers(self) -> tuple[str, ...]:
        if not self.block:
            return (self.function,)
        return (self.block,) if self.needs_block else (self.block, self.function)

    def read(self, opener: str, context: Context) -> Reading[None]:
        reader = context.reader
        if opener == self.block:
            yield from reader.space()
            yield from reader.expect(self.function)
        while True:
            ended_by = yield from self._read_function(context)
            if not self.block or ended_by == self.block_end:
                return
            yield from reader.space()
            if (yield from reader.skip(self.function, self.block_end)) != self.function:
                return

    @property
    def _function_ends(self) -> tuple[str, ...]:
        return (self.function_end, self.block_end) if self.block else (self.function_end,)

    def _read_function(self, context: Context) -> Reading[str]:
        """Reads a function's name and parameters; returns the tag that ended it."""
        reader, output = context.reader, context.output
        yield from reader.space()
        name = checked_name((yield from reader.word(_NAME_CHAR, MAX_NAME)))
        if self.name_end:
            yield from reader.expect(self.name_end)
        yield from reader.space()
        found = yield from reader.expect(self.parameter, *self._function_ends)
        output.begin_call(name)
        before = "{"
        while found == self.parameter:
            key, key_end = yield from reader.collect(self._key_ends, MAX_NAME)
            if self.value:
                yield from reader.space()
                yield from reader.expect(self.value)
            key = key.strip()
            output.put_arguments(f"{before}{dump_json(key)}: ")
            found = yield from self._read_value(context, name, key, self.key_ends[key_end])
            before = ", "
        output.put_arguments("{}" if before == "{" else "}")
        context.end_call()
        return found

    def _read_value(self, context: Context, name: str, key: str, is_text: bool | None) -> Reading[str]:
        """Puts the value as JSON; returns what follows, the start of a parameter or the end of the function."""
        put = context.output.put_arguments
        types = ("string",) if is_text else context.tools.types(name, key) if is_text is None else ("any",)
        if set(types) <= {"string"}:
            put('"')
            text = _Trimmed(lambda part: put(json.dumps(part, ensure_ascii=False)[1:-1]), self.trim)
            found = yield from self._until_value_end(context.reader, text)
            put('"')
            return found
        parts: list[str] = []
        found = yield from self._until_value_end(context.reader, _Trimmed(parts.append, self.trim))
        value = "".join(parts)
        put(dump_json(_any(value) if types == ("any",) else cast(value, types)))
        return found

    def _until_value_end(self, reader: Reader, text: _Trimmed) -> Reading[str]:
        while True:
            end = yield from reader.until(self._value_end, text.put)
            if end is None:
                yield from reader.expect(self.value_end)  # raises: the output ends inside the value
            space = yield from reader.space()
            found = yield from reader.accept(self.parameter, *self._function_ends)
            if found is not None:
                return found
            text.put(f"{end}{space}")


class _Trimmed:
    """Passes text on, less one line break at its start and its end."""

    def __init__(self, put: Callable[[str], object], trim: bool) -> None:
        self._put = put
        self._trim = trim
        self._at_start = trim
        self._held = ""

    def put(self, text: str) -> None:
        if self._at_start and text:
            text = text.removeprefix("\n")
            self._at_start = False
        if not text:
            return
        text = self._held + text
        self._held = "\n" if self._trim and text.endswith("\n") else ""
        if body := text.removesuffix(self._held):
            self._put(body)


def _any(text: str) -> object:
    """Returns the value of a JSON text, or the text where it is none."""
    try:
        return load_json(text)
    except (ValueError, RecursionError):
        return text


QWEN3_CODER = TaggedCalls(
    block="<tool_call>",
    function="<function=",
    name_end=">",
    parameter="<parameter=",
    key_ends={">": None},
    value_end="</parameter>",
    function_end="</function>",
    block_end="</tool_call>",
    needs_block=False,
)
SEED_OSS = TaggedCalls(
    block="<seed:tool_call>",
    function="<function=",
    name_end=">",
    parameter="<parameter=",
    key_ends={">": None},
    value_end="</parameter>",
    function_end="</function>",
    block_end="</seed:tool_call>",
)
MINIMAX_M2 = TaggedCalls(
    block="<minimax:tool_call>",
    function='<invoke name="',
    name_end='">',
    parameter='<parameter name="',
    key_ends={'">': None},
    value_end="</parameter>",
    function_end="</invoke>",
    block_end="</minimax:tool_call>",
    trim=False,
)
DEEPSEEK_V32 = TaggedCalls(
    block="<｜DSML｜function_calls>",
    function='<｜DSML｜invoke name="',
    name_end='">',
    parameter='<｜DSML｜parameter name="',
    key_ends={'" string="true">': True, '" string="false">': False},
    value_end="</｜DSML｜parameter>",
    function_end="</｜DSML｜invoke>",
    block_end="</｜DSML｜function_calls>",
    trim=False,
)
GLM45 = TaggedCalls(
    function="<tool_call>",
    name_end="",
    parameter="<arg_key>",
    key_ends={"</arg_key>": None},
    value="<arg_value>",
    value_end="</arg_value>",
    function_end="</tool_call>",
    trim=False,
)

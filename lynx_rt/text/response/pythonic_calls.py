"""Tool calls as a Python list: [f(a=1), g(b="x")]."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from lynx_rt.text.response.calls import Context, checked_name
from lynx_rt.text.response.json_scanner import MAX_DEPTH, dump_json
from lynx_rt.text.response.reader import MalformedError, NotACallError, Reader, Reading

_NAME_CHAR = re.compile(r"[\w.\-]")
_JSON_NAMES = {"true": True, "false": False, "null": None}
_ESCAPES = "\n\\'\"abfnrtvxNuU01234567"
_CLOSERS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class PythonicCalls:
    """openers, closers: tags around the list; it may come without them where the output begins with it."""

    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    bare: str = "["

    def read(self, opener: str, context: Context) -> Reading[None]:
        reader = context.reader
        bare = opener == ""
        yield from reader.space()
        yield from reader.expect("[")
        while True:
            yield from reader.space()
            name = yield from reader.word(_NAME_CHAR)
            if bare and name not in context.tools:
                raise NotACallError(name)
            name = checked_name(name)
            yield from reader.expect("(")
            arguments = _arguments((yield from _until_close(reader)))
            context.output.begin_call(name)
            context.output.put_arguments(arguments)
            context.end_call()
            yield from reader.space()
            if (yield from reader.expect(",", "]")) == "]":
                break
        yield from reader.space()
        if self.closers:
            yield from reader.skip(*self.closers)


def _until_close(reader: Reader) -> Reading[str]:
    """Returns the text up to the parenthesis that closes the one before it."""
    parts: list[str] = []
    expected = [")"]
    quote = ""
    while True:
        if not (char := (yield from reader.peek())):
            raise MalformedError("the call has no end")
        parts.append((yield from reader.expect(char)))
        if quote:
            if char == "\\" and (escaped := (yield from reader.peek())):
                if escaped not in _ESCAPES:  # Python keeps the backslash too, with a warning
                    parts.append("\\")
                parts.append((yield from reader.expect(escaped)))
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in _CLOSERS:
            expected.append(_CLOSERS[char])
            if len(expected) > MAX_DEPTH:
                raise MalformedError("nested too deeply")
        elif char in _CLOSERS.values():
            if char != expected.pop():
                raise MalformedError("brackets do not match")
            if not expected:
                return "".join(parts[:-1])


def _arguments(text: str) -> str:
    """Returns the JSON text of keyword arguments that are literals."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise MalformedError("not keyword arguments")
        return dump_json({str(keyword.arg): _literal(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedError(str(error)) from None


def _literal(node: ast.expr) -> object:
    """Returns the value of an expression of literals; true, false and null are taken as in JSON."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (str, int, float, bool)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if type(value) in (int, float):
            return -value  # type: ignore[operator]
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [_literal(key) if key is not None else None for key in keys]
            if all(isinstance(name, str) for name in names):
                return {name: _literal(value) for name, value in zip(names, values, strict=True)}
    raise MalformedError("an argument is not a literal")

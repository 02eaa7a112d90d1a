"""Reads responses as a response template says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lynx_rt.text.response.calls import (
    CallKeys,
    Context,
    checked_arguments,
    checked_name,
    read_arguments,
    read_json_call,
    read_json_calls,
)
from lynx_rt.text.response.json_scanner import dump_json
from lynx_rt.text.response.output import TrimmedText
from lynx_rt.text.response.reader import Anchor, MalformedError, NotACallError, Reading
from lynx_rt.text.response.template_fields import REASONING, ResponseTemplate, TemplateField
from lynx_rt.text.response.tools import cast_texts

_CALLS = "tool_calls"


@dataclass(frozen=True)
class TemplateMachine:
    """Reads a response. Fields other than content, reasoning and tool calls are left out.

    A call that the template arranges in another way than from a name and an object is handed out when it is complete. Text
    after an end tag goes on as content; transformers would put it in the place of the content before.
    with_calls, with_reasoning: False = they are content too.
    """

    template: ResponseTemplate
    with_calls: bool
    with_reasoning: bool

    def __call__(self, context: Context) -> Reading[None]:
        reader = context.reader
        implicit = next((item for item in self.template.fields if item.open is None), None)
        text = None if implicit is None else self._text_of(context, implicit)
        fields = [
            item
            for item in self.template.fields
            if (self.with_calls or item.name != _CALLS)
            and (self.with_reasoning or item.name not in REASONING or text is None)
        ]
        opening = {item.open: item for item in fields if item.open is not None}
        watched = [*opening] + ([implicit.close] if implicit is not None and implicit.close is not None else [])
        self._begin(implicit, text)
        while True:
            found = yield from reader.until_any(watched, text.put if text is not None else _drop)
            if found is None:
                break
            anchor, captures, matched = found
            if (item := opening.get(anchor)) is None:
                continue
            if item.name != _CALLS:
                yield from self._read_text(context, item)
            elif not (yield from self._read_calls(context, item, matched, captures)):
                continue
            self._begin(implicit, text)
        if implicit is not None and text is not None and not implicit.strips:
            text.flush()

    def _text_of(self, context: Context, item: TemplateField) -> TrimmedText | None:
        """Returns where the text of a field belongs; None = nowhere."""
        if item.name in REASONING:
            return context.output.reasoning if self.with_reasoning else context.output.content
        return context.output.content if item.name == "content" else None

    def _begin(self, item: TemplateField | None, text: TrimmedText | None) -> None:
        if item is not None and text is not None and item.strips:
            text.start("\n" if item.join is None else item.join)

    def _read_text(self, context: Context, item: TemplateField) -> Reading[None]:
        """Reads up to the end. Models may forget to end their reasoning: a whole call of a given tool counts there too."""
        output, text = context.output, self._text_of(context, item)
        self._begin(item, text)
        calls = {
            other.open: other
            for other in self.template.fields
            if self.with_calls and text is output.reasoning and other.name == _CALLS and other.open is not None
        }
        closing = _closing(item)
        put = _drop if text is None else text.put
        while True:
            found = yield from context.reader.until_any([*closing, *calls], put, may_be_empty=closing)
            if found is None or (call := calls.get(found[0])) is None:
                break
            output.known = context.tools
            yield from self._read_calls(context, call, found[2], found[1], text)
            output.known = None
        if text is not None and not item.strips:
            text.flush()

    def _read_calls(
        self,
        context: Context,
        item: TemplateField,
        opener: str,
        captures: Mapping[str, str],
        text: TrimmedText | None = None,
    ) -> Reading[bool]:
        """Returns whether the calls were right. Else they are put as `text`; None = the content."""
        reader, output = context.reader, context.output
        reader.mark(opener)
        try:
            if not (yield from self._read_streamed(context, item, captures)):
                yield from self._read_buffered(context, item, captures)
        except MalformedError as error:
            output.failed = output.failed or not isinstance(error, NotACallError)
            output.give_up_call(reader.unmark(), text)
            return False
        reader.unmark()
        return True

    def _read_streamed(self, context: Context, item: TemplateField, captures: Mapping[str, str]) -> Reading[bool]:
        """Reads calls in JSON while they come; returns False, and reads nothing, where the transform is of another kind."""
        reader = context.reader
        if not item.is_json or (shape := item.call_shape) is None:
            return False
        yield from reader.space()
        if isinstance(shape, CallKeys):
            read = read_json_calls if item.transform_each else read_json_call
            yield from read(context, keys=shape)
        else:
            yield from read_arguments(context, checked_name(captures.get(shape, "")), with_types=True)
        yield from reader.space()
        rest: list[str] = []
        yield from reader.until_any(_closing(item), rest.append, may_be_empty=_closing(item))
        if any(rest):
            raise MalformedError("text after the JSON")
        return True

    def _read_buffered(self, context: Context, item: TemplateField, captures: Mapping[str, str]) -> Reading[None]:
        """Reads calls, and hands them out together."""
        reader, output = context.reader, context.output
        parts: list[str] = []
        if item.is_json:
            yield from reader.space()
            yield from reader.json(parts.append)
        closed = yield from reader.until_any(_closing(item), parts.append, may_be_empty=_closing(item))
        if closed is None and item.close is not None and not item.is_json:
            raise MalformedError("the output ends inside a call")
        for name, arguments in [_call(value, context) for value in item.values("".join(parts), captures)]:
            output.begin_call(name)
            output.put_arguments(arguments)
            context.end_call()


def _closing(item: TemplateField) -> list[Anchor]:
    return [] if item.close is None else [item.close]


def _drop(text: str) -> None:
    """Takes text that belongs to no field of a message."""


def _call(value: Any, context: Context) -> tuple[str, str]:
    """Returns name and arguments of {"name", "arguments"}, or of {"function": {"name", "arguments"}}."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MalformedError("a call without a name")
    name, arguments = checked_name(function["name"]), function.get("arguments", function.get("parameters"))
    if not isinstance(arguments, Mapping):
        return name, checked_arguments(dump_json(arguments))
    return name, dump_json({key: cast_texts(item, context.tools.types(name, key)) for key, item in arguments.items()})

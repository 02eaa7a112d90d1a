"""Reads responses as a response template says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lynx_rt.text.response.calls import Context, checked_arguments, checked_name
from lynx_rt.text.response.json_scanner import dump_json
from lynx_rt.text.response.output import TrimmedText
from lynx_rt.text.response.reader import Anchor, MalformedError, Reading
from lynx_rt.text.response.template_fields import REASONING, ResponseTemplate, TemplateField
from lynx_rt.text.response.tools import cast

_CALLS = "tool_calls"


@dataclass(frozen=True)
class TemplateMachine:
    """Reads a response. Fields other than content, reasoning and tool calls are left out.

    A call is handed out when it is complete. Text after an end tag goes on as content; transformers would put it in the place
    of the content before.
    """

    template: ResponseTemplate
    with_calls: bool

    def __call__(self, context: Context) -> Reading[None]:
        reader = context.reader
        fields = [item for item in self.template.fields if self.with_calls or item.name != _CALLS]
        implicit = next((item for item in fields if item.open is None), None)
        text = None if implicit is None else _text_of(context, implicit)
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

    def _begin(self, item: TemplateField | None, text: TrimmedText | None) -> None:
        if item is not None and text is not None and item.strips:
            text.start("\n" if item.join is None else item.join)

    def _read_text(self, context: Context, item: TemplateField) -> Reading[None]:
        text = _text_of(context, item)
        self._begin(item, text)
        put = _drop if text is None else text.put
        yield from context.reader.until_any(_closing(item), put, may_be_empty=True)
        if text is not None and not item.strips:
            text.flush()

    def _read_calls(
        self, context: Context, item: TemplateField, opener: str, captures: Mapping[str, str]
    ) -> Reading[bool]:
        """Returns whether the calls were right. Else the text is content."""
        reader, output = context.reader, context.output
        parts: list[str] = []
        reader.mark(opener)
        try:
            if item.is_json:
                yield from reader.space()
                yield from reader.json(parts.append)
            closed = yield from reader.until_any(_closing(item), parts.append, may_be_empty=True)
            if closed is None and item.close is not None and not item.is_json:
                raise MalformedError("the output ends inside a call")
            # All are read before the first is handed out, so that they stay together where one is wrong.
            calls = [_call(value, context) for value in item.values("".join(parts), captures)]
        except MalformedError:
            output.failed = True
            output.give_up_call(reader.unmark())
            return False
        for name, arguments in calls:
            output.begin_call(name)
            output.put_arguments(arguments)
            output.end_call()
        reader.unmark()
        return True


def _closing(item: TemplateField) -> list[Anchor]:
    return [] if item.close is None else [item.close]


def _drop(text: str) -> None:
    """Takes text that belongs to no field of a message."""


def _text_of(context: Context, item: TemplateField) -> TrimmedText | None:
    """Returns where the text of a field belongs; None = nowhere."""
    if item.name in REASONING:
        return context.output.reasoning
    return context.output.content if item.name == "content" else None


def _call(value: Any, context: Context) -> tuple[str, str]:
    """Returns name and arguments of {"name", "arguments"}, or of {"function": {"name", "arguments"}}."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MalformedError("a call without a name")
    name, arguments = checked_name(function["name"]), function.get("arguments", function.get("parameters"))
    if not isinstance(arguments, Mapping):
        return name, checked_arguments(dump_json(arguments))
    return name, dump_json({key: _cast(item, context.tools.types(name, key)) for key, item in arguments.items()})


def _cast(value: Any, types: tuple[str, ...]) -> Any:
    """Returns a value that is a text, or a list of texts, as the tool's schema wants it."""
    if isinstance(value, str):
        return cast(value, types)
    if isinstance(value, list) and types and "array" not in types:
        return [cast(item, types) if isinstance(item, str) else item for item in value]
    return value

"""The format of gpt-oss: messages with a channel and a recipient, between special tokens."""

from __future__ import annotations

import re

from lynx_rt.text.response.calls import Context, checked_name, read_arguments
from lynx_rt.text.response.output import TrimmedText
from lynx_rt.text.response.reader import Literals, MalformedError, NotACallError, Reading

START, CHANNEL, MESSAGE, CALL, END = "<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|end|>"
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"  # begins reasoning
_ENDS = (END, "<|return|>", CALL)
_HEADS = (CHANNEL, START, MESSAGE, " to=")  # beginnings of a message's header
_HEADER_END = Literals([MESSAGE])
_BODY_END = Literals([START, CHANNEL, *_ENDS])
_CHANNEL_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([\w.\-/:]+)")
_FUNCTIONS = "functions."
_MAX_HEADER = 500  # characters


def opened(prompt_tail: str) -> str:
    """Returns the part of the answer's message that stands in the prompt already, such as "<|channel|>final<|message|>The"."""
    place = prompt_tail.rfind(START)
    return "" if place < 0 else prompt_tail[place + len(START) :].removeprefix("assistant")


def read_messages(context: Context, with_calls: bool, with_reasoning: bool) -> Reading[None]:
    """Reads messages: what is sent to a function is a call, analysis is reasoning, everything else is content.

    with_calls, with_reasoning: False = they are content too.
    """
    reader, output = context.reader, context.output
    head: str | None = None  # the beginning of a header that was read
    while head or (yield from reader.peek()):
        head = head or (yield from reader.accept(*_HEADS, *_ENDS))
        if head in _ENDS:
            head = None
            continue
        text = output.content
        if head:
            reader.mark(head)
            try:
                found_text = yield from _read_header(context, head, with_calls)
            except MalformedError as error:
                output.failed = output.failed or not isinstance(error, NotACallError)
                output.give_up_call(reader.unmark())
            else:
                reader.unmark()
                head = None
                if found_text is None:
                    continue
                text = found_text if with_reasoning else output.content
                text.start()
        found = yield from reader.until(_BODY_END, text.put)
        head = found if found in _HEADS else None


def _read_header(context: Context, head: str, with_calls: bool) -> Reading[TrimmedText | None]:
    """Reads a header, and the call if it is one. Returns where the message's text belongs; None after a call."""
    reader, output = context.reader, context.output
    header = head
    if head != MESSAGE:
        try:
            rest, _ = yield from reader.collect(_HEADER_END, _MAX_HEADER)
        except MalformedError:
            if reader.is_done:  # the output was cut off before the message had any text
                return None
            raise
        header += rest
    channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
    name = recipient[1] if recipient else ""
    if name.startswith(_FUNCTIONS) or name in context.tools:
        if not with_calls:
            raise NotACallError(name)
        name = checked_name(name.removeprefix(_FUNCTIONS))
        yield from reader.space()
        if (yield from reader.accept(*_ENDS)):
            output.begin_call(name)
            output.put_arguments("{}")
            context.end_call()
            return None
        yield from read_arguments(context, name)
        yield from reader.space()
        yield from reader.skip(*_ENDS)
        return None
    hidden = name or (channel and channel[1] == "analysis")
    return output.reasoning if hidden else output.content

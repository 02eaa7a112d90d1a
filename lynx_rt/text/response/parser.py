"""Splits what a model generates into reasoning, content and tool calls, while it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lynx_rt.text.response.calls import CallFormat, Context, read_arguments, read_json_calls
from lynx_rt.text.response.harmony import read_messages
from lynx_rt.text.response.output import TrimmedText
from lynx_rt.text.response.reader import Literals, MalformedError, NotACallError, Reading
from lynx_rt.text.response.results import ParsedResponse, ResponseDelta

Machine = Callable[[Context], Reading[None]]


class ResponseParser:
    """Parses one response. Every way of cutting an output into pieces gives the same result. Not thread-safe.

    A tool call that is malformed or that the output ends in is passed on as content, as the model wrote it. The start of its
    arguments may have been handed out before that: such a call never becomes a JSON object, and `ParsedResponse` leaves it out.

    prefix: what the prompt has of this response already.
    """

    def __init__(self, machine: Machine, context: Context, prefix: str = "") -> None:
        self._reader = context.reader
        self._output = context.output
        self._machine: Iterator[None] = machine(context)
        if prefix:
            self.feed(prefix)
            self._output.content.forget()
            self._output.reasoning.forget()

    @property
    def failed(self) -> bool:
        """Whether a malformed tool call was passed on as content."""
        return self._output.failed

    @property
    def num_tool_calls(self) -> int:
        """Complete tool calls so far."""
        return self._output.num_calls

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> ResponseDelta:
        """Takes the text that follows, and returns what it adds.

        token_ids: of the text; the formats known so far do without.
        """
        self._reader.add(text)
        return self._advance()

    def finish(self, finish_reason: str | None = None) -> ResponseDelta:
        """Says that the output has ended, and returns the rest.

        finish_reason: None or "stop" = the model ended by itself; else a call that is not complete is no failure.
        """
        failed = self._output.failed
        self._reader.ended = True
        delta = self._advance()
        if finish_reason not in (None, "stop"):
            self._output.failed = failed
        return delta

    def parse(self, text: str, token_ids: Sequence[int] = (), finish_reason: str | None = None) -> ParsedResponse:
        """Parses a whole output: feed() and finish() of a new parser in one."""
        deltas = [self.feed(text, token_ids), self.finish(finish_reason)]
        return ParsedResponse.of(deltas, self.failed)

    def _advance(self) -> ResponseDelta:
        next(self._machine, None)
        return self._output.take()


@dataclass(frozen=True)
class ThinkTags:
    """Tags around reasoning, and around the answer after it."""

    start: str
    end: str
    answer: tuple[str, str] | None = None


@dataclass(frozen=True)
class TextMachine:
    """Reads text with reasoning between tags and with tool calls.

    inside: the prompt has begun the reasoning. Forced JSON may come at once all the same.
    forced: "required" = an array of {"name", "parameters"} follows the reasoning, "named:NAME" = the arguments of one call.
    """

    think: ThinkTags | None
    calls: CallFormat | None
    inside: bool = False
    forced: str | None = None

    def __call__(self, context: Context) -> Reading[None]:
        reader, output = context.reader, context.output
        if self.inside and not (self.forced and (yield from reader.peek()) == self._forced_start):
            yield from self._read_reasoning(context)
        openers = self.calls.openers if self.calls else ()
        answer_end = () if self.think is None or self.think.answer is None else (self.think.answer[1],)
        literals = Literals((*openers, *answer_end))
        at_start = True  # of the output, or after a call
        while True:
            if at_start:
                at_start = yield from self._read_start(context)
            if at_start:
                continue
            found = yield from reader.until(literals, output.content.put)
            if found is None:
                break
            if found in openers:
                at_start = yield from self._read_calls(context, found)
            else:
                output.content.edge()
        output.content.flush()

    @property
    def _forced_start(self) -> str:
        return "[" if self.forced == "required" else "{"

    def _read_start(self, context: Context) -> Reading[bool]:
        """Reads what may only stand at the start: reasoning, forced calls, calls without tags. Returns whether there was any."""
        reader, output, think = context.reader, context.output, self.think
        output.content.put((yield from reader.space()))
        if think is not None and (yield from reader.accept(think.start)):
            yield from self._read_reasoning(context)
            return True
        if think is not None and think.answer is not None and (yield from reader.accept(think.answer[0])):
            output.content.edge()
            return True
        char = yield from reader.peek()
        if self.forced is not None and not output.num_calls and char == self._forced_start:
            return (yield from self._read_calls(context, "", self.forced))
        if self.calls is not None and char and char in self.calls.bare:
            return (yield from self._read_calls(context, ""))
        return False

    def _read_reasoning(self, context: Context) -> Reading[None]:
        """Reads up to the end tag. Models may forget it and go on with a call: a whole call of a given tool counts here too."""
        assert self.think is not None
        reader, output = context.reader, context.output
        output.reasoning.start()
        literals = Literals((self.think.end, *(self.calls.openers if self.calls else ())))
        while True:
            found = yield from reader.until(literals, output.reasoning.put)
            if found is None or found == self.think.end:
                break
            output.known = context.tools
            if (yield from self._read_calls(context, found, text=output.reasoning)):
                output.reasoning.start()
            output.known = None
        output.content.edge()

    def _read_calls(
        self, context: Context, opener: str, forced: str = "", text: TrimmedText | None = None
    ) -> Reading[bool]:
        """Returns whether the calls were right. Else they are put as `text`; None = the content."""
        reader, output = context.reader, context.output
        before = output.num_calls
        reader.mark(opener)
        try:
            if forced == "required":
                yield from read_json_calls(context)
            elif forced:
                yield from read_arguments(context, forced.removeprefix("named:"))
            elif self.calls is not None:
                yield from self.calls.read(opener, context)
        except MalformedError as error:
            # Text that only looked like a call at its first character was none.
            harmless = not opener and not forced and not output.in_call and output.num_calls == before
            output.failed = output.failed or not (harmless or isinstance(error, NotACallError))
            output.give_up_call(reader.unmark(), text)
            return False
        reader.unmark()
        return True


@dataclass(frozen=True)
class HarmonyMachine:
    """Reads the messages of gpt-oss; output that a grammar forced to be JSON is read as that."""

    with_calls: bool
    with_reasoning: bool
    forced: str | None = None

    def __call__(self, context: Context) -> Reading[None]:
        if self.forced is not None and (yield from context.reader.peek()) in ("[", "{"):
            yield from TextMachine(None, None, forced=self.forced)(context)
        else:
            yield from read_messages(context, self.with_calls, self.with_reasoning)
            context.output.content.flush()

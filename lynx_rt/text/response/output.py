"""Gathers what a parser finds, and hands out what is new since the last time."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable

from lynx_rt.text.response.results import ResponseDelta, ToolCall, ToolCallDelta

_ALPHANUMERIC = string.ascii_letters + string.digits


def call_id(name: str, index: int) -> str:
    """Makes an id as OpenAI's API has them."""
    return f"call_{secrets.token_hex(12)}"


def mistral_call_id(name: str, index: int) -> str:
    """Makes an id of nine letters and digits, which Mistral's chat templates insist on."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


def kimi_call_id(name: str, index: int) -> str:
    """Makes an id as Kimi's chat templates show them to the model."""
    return f"functions.{name}:{index}"


class TrimmedText:
    """Text without the white space beside tool calls and tags."""

    def __init__(self) -> None:
        self._new: list[str] = []
        self._join = ""  # comes before the next text
        self._space: list[str] = []  # white space at the end so far
        self._at_edge = False  # white space that comes now is dropped
        self._begun = False

    def put(self, text: str) -> None:
        if self._at_edge:
            text = text.lstrip()
            self._at_edge = not text
        body = text.rstrip()
        if body:
            self._begun = True
            self._new += (self._join, *self._space, body)
            self._join = ""
            self._space.clear()
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def edge(self) -> None:
        """Drops the white space before and after this place."""
        self._space.clear()
        self._at_edge = True

    def start(self, join: str = "\n") -> None:
        """Starts a text of its own, after what is there and `join`."""
        self.edge()
        self._join = join if self._begun else ""

    def flush(self) -> None:
        """Keeps the white space at the end: nothing follows."""
        self._new += self._space
        self._space.clear()

    def forget(self) -> None:
        """Goes on as if nothing had come before, but for what edge() said."""
        self._new.clear()
        self._space.clear()
        self._join, self._begun = "", False

    def take(self) -> str:
        """Returns what is new."""
        text = "".join(self._new)
        self._new.clear()
        return text


class Output:
    """What was found so far. Text that was put is never taken back.

    parallel: False = only the first complete call counts.
    """

    def __init__(self, make_id: Callable[[str, int], str], parallel: bool) -> None:
        self.content = TrimmedText()
        self.reasoning = TrimmedText()
        self.calls: list[ToolCall] = []  # the complete ones
        self.failed = False
        self._make_id = make_id
        self._parallel = parallel
        self._started = 0  # calls that were begun, complete or not
        self._call: ToolCall | None = None
        self._arguments: list[str] = []  # of the current call
        self._deltas: list[ToolCallDelta] = []

    @property
    def in_call(self) -> bool:
        """Whether a call was begun and is not complete."""
        return self._call is not None

    def begin_call(self, name: str, given_id: str | None = None) -> None:
        self._call = ToolCall(given_id or self._make_id(name, self._started), name, "")
        self._arguments = []
        if self._counts:
            self._deltas.append(ToolCallDelta(self._started, self._call.id, name, ""))

    def put_arguments(self, text: str) -> None:
        self._arguments.append(text)
        if not self._counts or not text:
            return
        if not self._deltas or self._deltas[-1].index != self._started:
            self._deltas.append(ToolCallDelta(self._started, None, None, ""))
        self._deltas[-1].arguments += text

    def end_call(self) -> None:
        """Says that the call's arguments are complete."""
        assert self._call is not None
        if self._counts:
            self._call.arguments = "".join(self._arguments)
            self.calls.append(self._call)
            self._started += 1
        self._call = None
        self.content.start()

    def give_up_call(self, raw: str) -> None:
        """Passes on a call that is malformed or unfinished, as the model wrote it."""
        if self._call is not None and self._counts:
            self._started += 1
        self._call = None
        self.content.put(raw)

    def take(self) -> ResponseDelta:
        """Returns what is new."""
        deltas, self._deltas = self._deltas, []
        return ResponseDelta(self.content.take(), self.reasoning.take(), deltas)

    @property
    def _counts(self) -> bool:
        return self._parallel or not self.calls

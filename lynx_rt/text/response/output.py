"""Gathers what a parser finds, and hands out what is new since the last time."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Container

from lynx_rt.text.response.reader import NotACallError
from lynx_rt.text.response.results import ResponseDelta, ToolCallDelta

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
        self.num_calls = 0  # complete ones
        self.failed = False
        self.known: Container[str] | None = None  # the functions that may be called; None = any
        self._make_id = make_id
        self._parallel = parallel
        self._started = 0  # calls that were begun, complete or not
        self.in_call = False  # a call was begun and is not complete
        self._deltas: list[ToolCallDelta] = []

    def begin_call(self, name: str, given_id: str | None = None) -> None:
        """Begins a call. Raises NotACallError for a function that is not among the known ones."""
        if self.known is not None and name not in self.known:
            raise NotACallError(name)
        self.in_call = True
        if self._counts:
            made_id = given_id or self._make_id(name, self._started)
            self._deltas.append(ToolCallDelta(self._started, made_id, name, ""))

    def put_arguments(self, text: str) -> None:
        if not self._counts or not text:
            return
        if not self._deltas or self._deltas[-1].index != self._started:
            self._deltas.append(ToolCallDelta(self._started, None, None, ""))
        self._deltas[-1].arguments += text

    def end_call(self) -> None:
        """Says that the call's arguments are complete."""
        if self._counts:
            self.num_calls += 1
            self._started += 1
        self.in_call = False
        self.content.start()

    def give_up_call(self, raw: str, text: TrimmedText | None = None) -> None:
        """Passes on a call that is malformed or unfinished, as the model wrote it, to a text; None = the content."""
        if self.in_call and self._counts:
            self._started += 1
        self.in_call = False
        (text or self.content).put(raw)

    def take(self) -> ResponseDelta:
        """Returns what is new."""
        deltas, self._deltas = self._deltas, []
        return ResponseDelta(self.content.take(), self.reasoning.take(), deltas)

    @property
    def _counts(self) -> bool:
        return self._parallel or not self.num_calls

"""Reads text that comes piece by piece: parsers are generators, which yield where they need more."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.response.json_scanner import JsonScanner

T = TypeVar("T")
A = TypeVar("A", bound="Anchor")
# A part of a parser: yields where it needs more text, and returns a T.
Reading = Generator[None, None, T]
_SPACE = re.compile(r"\s+")


class MalformedError(Exception):
    """The text is not of the format that its start announced."""


class NotACallError(MalformedError):
    """The text looked like a tool call, but is content: nothing went wrong."""


@dataclass(frozen=True, slots=True)
class Found:
    """A place in a text where something was found. groups: named parts of it."""

    start: int
    end: int
    groups: Mapping[str, str] = field(default_factory=dict)


class Anchor(Protocol):
    """Something to look for."""

    def find(self, text: str, start: int, ended: bool) -> tuple[Found | None, int]:
        """Returns the first place at or after `start`, and where one begins that is not complete; the text's length = none does.

        ended: no more text will come.
        """
        ...


class Literals:
    """Texts to look for. None may be the start of another."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        if any(a != b and b.startswith(a) for a in self.texts for b in self.texts):
            raise ValueError(f"one of {self.texts} is the start of another")
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._starts = frozenset(text[:size] for text in self.texts for size in range(1, len(text)))
        self._longest = max(map(len, self._starts), default=0)

    def find(self, text: str, start: int, ended: bool) -> tuple[Found | None, int]:
        found = self._pattern.search(text, start)
        if found is not None:
            return Found(found.start(), found.end()), len(text)
        for size in range(0 if ended else min(self._longest, len(text) - start), 0, -1):
            if text[-size:] in self._starts:
                return None, len(text) - size
        return None, len(text)


class Pattern:
    """A regular expression to look for. Raises ValidationError where it is none, or the package `regex` is missing."""

    def __init__(self, text: str) -> None:
        try:
            import regex
        except ModuleNotFoundError:
            raise ValidationError(
                "response_template: its patterns need the package regex: pip install regex", "response_template"
            ) from None
        try:
            self.compiled: Any = regex.compile(text, regex.DOTALL)
        except regex.error as error:
            raise ValidationError(
                f"response_template: {shown(text)} is no pattern: {error}", "response_template"
            ) from None

    def find(self, text: str, start: int, ended: bool) -> tuple[Found | None, int]:
        match = self.compiled.search(text, start, partial=not ended)
        if match is None:
            return None, len(text)
        # A match that touches the end of the text could become longer, or be none after all.
        if not ended and (match.partial or match.end() == len(text)):
            return None, match.start()
        groups = {name: value for name, value in match.groupdict().items() if value is not None}
        return Found(match.start(), match.end(), groups), len(text)


class Reader:
    """The text that is not read yet, and what was read since mark()."""

    def __init__(self) -> None:
        self.ended = False  # no more text will come
        self._text = ""
        self._place = 0
        self._raw: list[str] | None = None

    def add(self, text: str) -> None:
        self._text = self._text[self._place :] + text if self._place < len(self._text) else text
        self._place = 0

    @property
    def is_done(self) -> bool:
        """Whether all text has come and was read."""
        return self.ended and self._place >= len(self._text)

    def mark(self, before: str = "") -> None:
        """Starts to keep what is read, after `before`."""
        self._raw = [before]

    def unmark(self) -> str:
        """Stops keeping; returns what was kept."""
        raw, self._raw = "".join(self._raw or ()), None
        return raw

    def _take(self, size: int) -> str:
        taken = self._text[self._place : self._place + size]
        self._place += size
        if self._raw is not None:
            self._raw.append(taken)
        return taken

    def peek(self) -> Reading[str]:
        """Returns the next character, "" at the end."""
        while self._place >= len(self._text) and not self.ended:
            yield
        return self._text[self._place : self._place + 1]

    def until(self, literals: Literals, put: Callable[[str], object]) -> Reading[str | None]:
        """Reads up to the first of the literals, and past it. Returns the literal, None at the end of the text."""
        while True:
            found, held = literals.find(self._text, self._place, self.ended)
            put(self._take((held if found is None else found.start) - self._place))
            if found is not None:
                return self._take(found.end - found.start)
            if self.ended:
                return None
            yield

    def until_any(
        self, anchors: Sequence[A], put: Callable[[str], object], may_be_empty: Sequence[A] = ()
    ) -> Reading[tuple[A, Mapping[str, str], str] | None]:
        """Reads up to the first of several anchors, and past it. Returns it with its named parts and its text.

        The longest of those that begin at the same place counts.  may_be_empty: those that may be a place without text.
        """
        while True:
            best: tuple[int, int, int] | None = None
            groups: Mapping[str, str] = {}
            held = len(self._text)
            for order, anchor in enumerate(anchors):
                found, begun = anchor.find(self._text, self._place, self.ended)
                held = min(held, begun)
                if found is not None and (found.end > found.start or anchor in may_be_empty):
                    key = (found.start, -found.end, order)
                    if best is None or key < best:
                        best, groups = key, found.groups
            if best is not None and (best[0] < held or self.ended):
                put(self._take(best[0] - self._place))
                return anchors[best[2]], groups, self._take(-best[1] - best[0])
            put(self._take(held - self._place))
            if self.ended:
                return None
            yield

    def collect(self, literals: Literals, limit: int) -> Reading[tuple[str, str]]:
        """Returns the text before the first of the literals, and the literal.

        Raises MalformedError at the end of all text, and where more than `limit` characters come before.
        """
        parts: list[str] = []
        while True:
            found, held = literals.find(self._text, self._place, self.ended)
            size = (held if found is None else found.start) - self._place
            parts.append(self._take(min(size, limit)))
            limit -= size
            if limit < 0 or (found is None and self.ended):
                raise MalformedError(f"none of {literals.texts} follows")
            if found is not None:
                return "".join(parts), self._take(found.end - found.start)
            yield

    def accept(self, *texts: str) -> Reading[str | None]:
        """Reads one of the texts if it stands here, and returns it. None = none does."""
        longest = max(map(len, texts))
        while True:
            rest = self._text[self._place : self._place + longest]
            for text in texts:
                if rest.startswith(text):
                    return self._take(len(text))
            if self.ended or not any(text.startswith(rest) for text in texts):
                return None
            yield

    def expect(self, *texts: str) -> Reading[str]:
        """Reads one of the texts. Raises MalformedError where none stands here."""
        found = yield from self.accept(*texts)
        if found is None:
            raise MalformedError(f"expected one of {texts}")
        return found

    def skip(self, *texts: str) -> Reading[str | None]:
        """Reads one of the texts if it stands here, also where all text ends inside it."""
        found = yield from self.accept(*texts)
        rest = self._text[self._place :]
        if found is None and self.ended and rest and any(text.startswith(rest) for text in texts):
            self._take(len(rest))
        return found

    def space(self) -> Reading[str]:
        """Reads white space, and returns it."""
        parts: list[str] = []
        while True:
            if (run := _SPACE.match(self._text, self._place)) is not None:
                parts.append(self._take(run.end() - self._place))
            if self._place < len(self._text) or self.ended:
                return "".join(parts)
            yield

    def word(self, pattern: re.Pattern[str], limit: int = 256) -> Reading[str]:
        """Reads the characters from here on that match the pattern of one character."""
        parts: list[str] = []
        while True:
            while self._place < len(self._text):
                if not pattern.match(self._text, self._place) or len(parts) > limit:
                    return "".join(parts)
                parts.append(self._take(1))
            if self.ended:
                return "".join(parts)
            yield

    def json(self, put: Callable[[str], object]) -> Reading[None]:
        """Reads a JSON value and puts its text. Raises MalformedError, after putting what was right so far."""
        scanner = JsonScanner()
        while not scanner.done:
            if self._place < len(self._text):
                end, scanned = scanner.scan(self._text, self._place)
                self._take(end - self._place)
                if scanned:
                    put(scanned)
            elif self.ended:
                scanner.end()
            else:
                yield
            if scanner.failed:
                raise MalformedError("not JSON")

"""Reads text that comes piece by piece: parsers are generators, which yield where they need more."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from lynx_rt.text.response.json_scanner import JsonScanner

T = TypeVar("T")
# A part of a parser: yields where it needs more text, and returns a T.
Reading = Generator[None, None, T]
_SPACE = re.compile(r"\s+")


class MalformedError(Exception):
    """The text is not of the format that its start announced."""


class NotACallError(MalformedError):
    """The text looked like a tool call, but is content: nothing went wrong."""


class Literals:
    """Texts to look for. None may be the start of another."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        if any(a != b and b.startswith(a) for a in self.texts for b in self.texts):
            raise ValueError(f"one of {self.texts} is the start of another")
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._starts = frozenset(text[:size] for text in self.texts for size in range(1, len(text)))
        self._longest = max(map(len, self._starts), default=0)

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        """Returns the place of the first of them, and which one it is."""
        found = self._pattern.search(text, start)
        return None if found is None else (found.start(), found[0])

    def held(self, text: str, start: int) -> int:
        """Returns how many characters at the end of the text may be the start of one of them."""
        for size in range(min(self._longest, len(text) - start), 0, -1):
            if text[-size:] in self._starts:
                return size
        return 0


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
            if (found := literals.find(self._text, self._place)) is not None:
                put(self._take(found[0] - self._place))
                return self._take(len(found[1]))
            held = 0 if self.ended else literals.held(self._text, self._place)
            put(self._take(len(self._text) - held - self._place))
            if self.ended:
                return None
            yield

    def collect(self, literals: Literals, limit: int) -> Reading[tuple[str, str]]:
        """Returns the text before the first of the literals, and the literal.

        Raises MalformedError at the end of all text, and where more than `limit` characters come before.
        """
        parts: list[str] = []
        while True:
            found = literals.find(self._text, self._place)
            held = 0 if found is not None or self.ended else literals.held(self._text, self._place)
            size = (len(self._text) - held if found is None else found[0]) - self._place
            parts.append(self._take(min(size, limit)))
            limit -= size
            if limit < 0 or (found is None and self.ended):
                raise MalformedError(f"none of {literals.texts} follows")
            if found is not None:
                return "".join(parts), self._take(len(found[1]))
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

    def rest(self, put: Callable[[str], object]) -> Reading[None]:
        """Reads everything that follows."""
        yield from self.until(_NOTHING, put)


_NOTHING = Literals(())

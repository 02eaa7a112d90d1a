"""Finds the end of a JSON value in text that comes piece by piece, looking at each character once."""

from __future__ import annotations

import json
import re

from lynx_rt.errors import encoding_fault

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')  # inside a string
_SPACE = re.compile(r"[ \t\n\r]+")
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")
_CONTROL = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
MAX_DEPTH = 200  # arrays and objects in each other; json.loads() raises RecursionError for deeper ones
_MAX_WORD = 1000  # characters of a number


class JsonScanner:
    """Scans one value. Strict, except that strings may have line breaks and other control characters, which models forget to escape.

    done: the value is complete.  failed: the text is not JSON.
    """

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._open: list[str] = []  # "{" and "[" that are not closed yet
        # What comes next: "value", "value]" (or the end of an array), "key", "key}" (or the end of an object), ":", ",",
        # or the inside of a "string", an "escape", "hex" digits or a "word" (number, true, false, null).
        self._state = "value"
        self._in_key = False
        self._hex_left = 0
        self._word = ""

    def scan(self, text: str, start: int = 0) -> tuple[int, str]:
        """Scans on from `start`; returns where it stopped, and what it scanned with control characters escaped.

        It stops after the value's last character, before the character that is wrong, or at the end of `text`. A number
        ends before the first character that is not of it.
        """
        out: list[str] = []
        place = first = start
        while place < len(text) and not self.done:
            char = text[place]
            if self._state == "string" and char < " ":
                out += (text[first:place], _CONTROL.get(char) or f"\\u{ord(char):04x}")
                place = first = place + 1
                continue
            after = self._step(text, place, char)
            if self.failed:
                break
            place = after
        out.append(text[first:place])
        return place, "".join(out)

    def end(self) -> None:
        """Says that no text follows, which may complete a number."""
        if not self.done and not self.failed:
            if self._state == "word" and not self._open:
                self._end_word()
            self.failed = not self.done

    def _step(self, text: str, place: int, char: str) -> int:
        """Takes the character at `place`, or a run of them; returns the place after it. Sets `failed` where it is wrong."""
        state = self._state
        if state == "string":
            if char == '"':
                self._end_string()
            elif char == "\\":
                self._state = "escape"
            elif (run := _PLAIN.match(text, place)) is not None:
                return run.end()
            return place + 1
        if state == "escape":
            self._state = "hex" if char == "u" else "string"
            self._hex_left = 4
            self.failed = char not in '"\\/bfnrtu'
            return place + 1
        if state == "hex":
            self._hex_left -= 1
            self._state = "hex" if self._hex_left else "string"
            self.failed = char not in _HEX
            return place + 1
        if state == "word":
            if (run := _WORD.match(text, place)) is not None:
                self._word += run[0]
                self.failed = len(self._word) > _MAX_WORD
                return run.end()
            self._end_word()
            return place
        if (run := _SPACE.match(text, place)) is not None:
            return run.end()
        self._punctuation(state, char)
        return place + 1

    def _punctuation(self, state: str, char: str) -> None:
        if char == '"' and state in ("value", "value]", "key", "key}"):
            self._in_key = state.startswith("key")
            self._state = "string"
        elif char == ":" and state == ":":
            self._state = "value"
        elif char == "," and state == ",":
            self._state = "key" if self._open[-1] == "{" else "value"
        elif (char == "}" and state in (",", "key}") and self._open[-1] == "{") or (
            char == "]" and state in (",", "value]") and self._open[-1] == "["
        ):
            self._open.pop()
            self._end_value()
        elif state in ("value", "value]"):
            if char in "{[":
                self._open.append(char)
                self._state = "key}" if char == "{" else "value]"
                self.failed = len(self._open) > MAX_DEPTH
            elif char == "-" or (char.isascii() and char.isalnum()):
                self._word, self._state = char, "word"
            else:
                self.failed = True
        else:
            self.failed = True

    def _end_string(self) -> None:
        if self._in_key:
            self._in_key = False
            self._state = ":"
        else:
            self._end_value()

    def _end_word(self) -> None:
        if self._word in ("true", "false", "null") or _NUMBER.fullmatch(self._word):
            self._end_value()
        else:
            self.failed = True

    def _end_value(self) -> None:
        self._state = ","
        self.done = not self._open


def dump_json(value: object) -> str:
    """Returns JSON text with characters as they are, if they are valid. Raises ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if encoding_fault(text) is None else json.dumps(value, allow_nan=False)  # half of a surrogate pair

"""Turns token ids into text, one token at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import tokenizers

from lynx_rt.text.tokenizer_backend import Backend

_REPLACEMENT = "\ufffd"  # stands for bytes that are not a whole UTF-8 character
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """Turns tokens into text one at a time, in O(1) per token. Not thread-safe."""

    def add(self, token_id: int) -> str:
        """Returns the text that this token completes; "" while a character is incomplete."""
        ...

    def finish(self) -> str:
        """Returns the rest of the text: a replacement character where the tokens end inside a character."""
        ...


class Decoding:
    """A decoder of tokenizer.json that turns each token into bytes, whatever tokens are around it.

    There are two kinds: GPT-2's alphabet (ByteLevel), and the byte fallback of sentencepiece, in which "\u2581" stands for a
    space and "<0x0A>" for a byte, and spaces at the start of the text are dropped.
    """

    def __init__(self, byte_level: bool, replacements: Sequence[tuple[str, str]] = (), strip: int = 0) -> None:
        self._alphabet = bytes_of_char() if byte_level else None
        self._replacements = replacements
        self.strip = strip  # number of spaces dropped at the start of the text

    @staticmethod
    def of(backend: tokenizers.Tokenizer) -> Decoding | None:
        """Returns how this tokenizer decodes; None where it is neither of these ways."""
        if backend.decoder is None:
            return None
        try:
            decoder = json.loads(backend.decoder.__getstate__())
        except Exception:  # a decoder that is written in Python has no state
            return None
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return Decoding(byte_level=True)
        replacing = [step for step in steps if step["type"] == "Replace"]
        if kinds[: len(replacing)] != ["Replace"] * len(replacing):
            return None
        if any("String" not in step["pattern"] for step in replacing):
            return None
        replacements = [(step["pattern"]["String"], step["content"]) for step in replacing]
        rest = steps[len(replacing) :]
        match kinds[len(replacing) :]:
            case ["ByteFallback"] | ["ByteFallback", "Fuse"]:
                return Decoding(False, replacements)
            case ["ByteFallback", "Fuse", "Strip"] if rest[2]["content"] == " " and rest[2]["stop"] == 0:
                return Decoding(False, replacements, strip=rest[2]["start"])
        return None

    def token_bytes(self, token: str) -> bytes:
        if self._alphabet is not None:
            try:
                return bytes(self._alphabet[char] for char in token)
            except KeyError:  # an added token, which stands for itself
                return token.encode()
        for old, new in self._replacements:
            token = token.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.encode()


class ByteDetokenizer:
    """For tokens that are bytes: an incremental UTF-8 decoder turns them into text."""

    def __init__(
        self, token_bytes: Callable[[int], bytes], skip: frozenset[int], strip: int, context: Sequence[int]
    ) -> None:
        self._token_bytes = token_bytes
        self._skip = skip
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._inside = False  # the decoder holds a part of a character
        for token_id in context:  # a prompt may end inside a character
            self.add(token_id)

    def add(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        data = self._token_bytes(token_id)
        try:
            text = None if self._inside else data.decode()  # most tokens are whole characters
        except UnicodeDecodeError:
            text = None
        if text is None:
            text = self._decoder.decode(data)
            self._inside = bool(self._decoder.getstate()[0])
        return self._stripped(text) if self._strip else text

    def finish(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
        self._strip = self._strip - spaces if spaces == len(text) else 0
        return text[spaces:]


class WindowDetokenizer:
    """For any other vocabulary: decodes a short window with and without the new tokens, and shows the difference.

    The window starts with tokens whose text is out already, because a token's text can depend on the one before it
    (spaces between words). Text that ends in a replacement character is held back, because it may be the start of a
    character. After _MAX_PENDING tokens it cannot be (a character has at most four bytes), and is shown.
    """

    _MAX_PENDING = 8

    def __init__(
        self, backend: Backend, skip: frozenset[int], skip_special_tokens: bool, context: Sequence[int]
    ) -> None:
        self._backend = backend
        self._skip = skip
        self._skip_special_tokens = skip_special_tokens
        self._window = list(context)
        while self._decode(self._window).startswith(_REPLACEMENT):  # the window begins inside a character
            self._window.pop(0)
        self._shown = len(self._window)  # tokens of the window whose text is out
        self._shown_text = self._decode(self._window)

    def add(self, token_id: int) -> str:
        if token_id in self._skip or self._backend.token_of(token_id) is None:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        waiting = len(text) <= len(self._shown_text) or text.endswith(_REPLACEMENT)
        if waiting and len(self._window) - self._shown < self._MAX_PENDING:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        new = text[len(self._shown_text) :]
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        self._shown_text = self._decode(self._window)
        return new

    def _decode(self, ids: list[int]) -> str:
        # Some decoders panic where there are no tokens at all.
        return self._backend.decode(ids, self._skip_special_tokens) if ids else ""


def token_bytes_by_decoding(backend: Backend, token_id: int, token: str) -> bytes:
    """Returns the bytes of one token by the whole decoder: what a second such token adds to the text of one.

    A token that is decoded alone may lose the space that it starts with.
    """
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    once, twice = (backend.decode([token_id] * count, skip_special_tokens=False) for count in (1, 2))
    return (twice[len(once) :] if twice.startswith(once) and len(twice) > len(once) else once).encode()


def bytes_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update((chr(0x100 + place), byte) for place, byte in enumerate(others))
    return table

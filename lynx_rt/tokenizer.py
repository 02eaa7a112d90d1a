"""Text to token ids and back, on Hugging Face's `tokenizers`; with detokenizers that work token by token."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from lynx_rt.errors import CheckpointError, ModelNotFoundError, ValidationError
from lynx_rt.tokenizer_config import add_tokens, read_chat_template, read_tokenizer_config

_REPLACEMENT = "\ufffd"  # stands for bytes that are not a whole UTF-8 character
_CONTEXT = 5  # tokens of the prompt that set the scene for detokenization
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """Turns tokens into text one at a time, in O(1) per token. Not thread-safe."""

    def add(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        ...

    def finish(self) -> str:
        """What is left at the end: a replacement character where the tokens end inside a character."""
        ...


class Tokenizer:
    """A tokenizer with its special tokens. Thread-safe.

    source: a model folder, the path of a tokenizer.json, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers.

    tokenizer.json says how text becomes ids; tokens and names that only tokenizer_config.json or special_tokens_map.json
    knows are added as transformers 5 adds them. One thing is as in transformers 4: `add_bos_token: true` is heeded where
    tokenizer.json itself adds no start token, since checkpoints (DeepSeek's) count on it.
    """

    @staticmethod
    def of(tokenizer: Any, model: Path) -> Tokenizer:
        """`tokenizer` as one; None = the model's."""
        return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(model if tokenizer is None else tokenizer)

    def __init__(self, source: str | os.PathLike[str] | tokenizers.Tokenizer | Any) -> None:
        config: dict[str, Any] = {}
        special: Mapping[str, str | tokenizers.AddedToken] = {}
        self.chat_template: str | dict[str, str] | None = None
        if isinstance(source, (str, os.PathLike)):
            self._backend, folder = _load(Path(source))
            config, named = read_tokenizer_config(folder)
            add_tokens(self._backend, config, named, folder / "tokenizer_config.json")
            self._backend.encode_special_tokens = bool(config.get("split_special_tokens"))
            special = named
            self.chat_template = read_chat_template(folder, config)
        elif isinstance(source, tokenizers.Tokenizer):
            self._backend = tokenizers.Tokenizer.from_str(source.to_str())
        elif isinstance(getattr(source, "backend_tokenizer", None), tokenizers.Tokenizer):
            self._backend = tokenizers.Tokenizer.from_str(source.backend_tokenizer.to_str())
            self._backend.encode_special_tokens = source.backend_tokenizer.encode_special_tokens
            special = {name: token for name, token in source.special_tokens_map.items() if isinstance(token, str)}
            self.chat_template = getattr(source, "chat_template", None)
        else:
            raise ValidationError(
                f"tokenizer must be a path or a fast tokenizer, got {type(source).__name__}", "tokenizer"
            )
        # A tokenizer.json may carry the settings of its training; a prompt must never be cut or filled up.
        self._backend.no_truncation()
        self._backend.no_padding()
        # "bos_token", "eos_token", ... -> the token's text, where there is one: what chat templates use.
        self.special_tokens = {name: str(getattr(token, "content", token)) for name, token in special.items()}
        added = self._backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._prepend_bos = self.bos_token_id if config.get("add_bos_token") is True else None
        self._decoding = _Decoding.of(self._backend)
        self._bytes_of_id: dict[int, bytes] = {}
        self._piece_of_id: dict[int, str] = {}

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers.Tokenizer` that does the work."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included; the model's vocabulary may be larger."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._special_id("eos_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises ValidationError for text that is not valid Unicode."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text."""
        for text in texts:
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise ValidationError(f"text cannot be encoded as UTF-8: {error}", "prompt") from None
        encoded = [item.ids for item in self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)]
        if add_special_tokens and self._prepend_bos is not None:
            bos = self._prepend_bos
            encoded = [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]
        return encoded

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids that are not in the vocabulary add nothing."""
        try:
            return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise ValidationError(f"token ids must be integers from 0 on: {error}", "ids") from None

    def piece(self, token_id: int) -> str:
        """The text of one token by itself, special or not."""
        piece = self._piece_of_id.get(token_id)
        if piece is None:
            piece = self._piece_of_id[token_id] = self.decode([token_id], skip_special_tokens=False)
        return piece

    def detokenizer(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for what follows `prompt_token_ids`.

        Its pieces together are decode() of prompt and tokens, less decode() of the prompt. The exception is a run of
        byte tokens that goes wrong (sentencepiece vocabularies): the pieces keep the characters that it completed,
        which decode() replaces.
        """
        skip = self.special_token_ids if skip_special_tokens else frozenset()
        context: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if token_id not in skip and self._backend.id_to_token(token_id) is not None:
                context.insert(0, token_id)
                if len(context) == _CONTEXT:
                    break
        if self._decoding is None:
            return _WindowDetokenizer(self._backend, skip, skip_special_tokens, context)
        return _ByteDetokenizer(self._token_bytes, skip, self._decoding.strip, context)

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return self._backend.token_to_id(token) if token else None

    def _token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, before UTF-8 decoding."""
        found = self._bytes_of_id.get(token_id)
        if found is None:
            assert self._decoding is not None
            token = self._backend.id_to_token(token_id)
            found = self._bytes_of_id[token_id] = self._decoding.token_bytes(token or "")
        return found

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, eos_token={self.special_tokens.get('eos_token')!r})"


class _Decoding:
    """A decoder of tokenizer.json that turns each token into bytes, whatever tokens are around it.

    These are GPT-2's alphabet (ByteLevel), and byte fallback as sentencepiece has it: "\u2581" stands for a space, "<0x0A>"
    for a byte, and spaces at the start of the text are dropped.
    """

    def __init__(self, byte_level: bool, replacements: Sequence[tuple[str, str]] = (), strip: int = 0) -> None:
        self._alphabet = _bytes_of_char() if byte_level else None
        self._replacements = replacements
        self.strip = strip  # spaces dropped at the start of the text

    @staticmethod
    def of(backend: tokenizers.Tokenizer) -> _Decoding | None:
        """How this tokenizer decodes; None where it is another way."""
        if backend.decoder is None:
            return None
        decoder = json.loads(backend.decoder.__getstate__())
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return _Decoding(byte_level=True)
        replacing = [step for step in steps if step["type"] == "Replace"]
        if kinds[: len(replacing)] != ["Replace"] * len(replacing):
            return None
        if any("String" not in step["pattern"] for step in replacing):
            return None
        replacements = [(step["pattern"]["String"], step["content"]) for step in replacing]
        rest = steps[len(replacing) :]
        match kinds[len(replacing) :]:
            case ["ByteFallback"] | ["ByteFallback", "Fuse"]:
                return _Decoding(False, replacements)
            case ["ByteFallback", "Fuse", "Strip"] if rest[2]["content"] == " " and rest[2]["stop"] == 0:
                return _Decoding(False, replacements, strip=rest[2]["start"])
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


class _ByteDetokenizer:
    """Tokens are bytes here, and an incremental UTF-8 decoder makes them text."""

    def __init__(
        self, token_bytes: Callable[[int], bytes], skip: frozenset[int], strip: int, context: Sequence[int]
    ) -> None:
        self._token_bytes = token_bytes
        self._skip = skip
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in context:  # a prompt may end inside a character
            self.add(token_id)

    def add(self, token_id: int) -> str:
        return "" if token_id in self._skip else self._stripped(self._decoder.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
        self._strip = self._strip - spaces if spaces == len(text) else 0
        return text[spaces:]


class _WindowDetokenizer:
    """Any other vocabulary: decode a short window with and without the new tokens, and show the difference.

    The window starts with tokens whose text is out already, because a token's text can depend on the one before it
    (spaces between words). Text that ends in a replacement character is held back, since it may be the start of a
    character; after _MAX_PENDING tokens it cannot be (a character has at most four bytes), and it is shown.
    """

    _MAX_PENDING = 8

    def __init__(
        self, backend: tokenizers.Tokenizer, skip: frozenset[int], skip_special_tokens: bool, context: Sequence[int]
    ) -> None:
        self._backend = backend
        self._skip = skip
        self._skip_special_tokens = skip_special_tokens
        self._window = list(context)
        while self._decode(self._window).startswith(_REPLACEMENT):  # it begins inside a character
            self._window.pop(0)
        self._shown = len(self._window)  # tokens of the window whose text is out
        self._shown_text = self._decode(self._window)

    def add(self, token_id: int) -> str:
        if token_id in self._skip or self._backend.id_to_token(token_id) is None:
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
        # Of no tokens at all, some decoders panic.
        return self._backend.decode(ids, skip_special_tokens=self._skip_special_tokens) if ids else ""


def _bytes_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update((chr(0x100 + place), byte) for place, byte in enumerate(others))
    return table


def _load(path: Path) -> tuple[tokenizers.Tokenizer, Path]:
    """The tokenizer of a folder or file, and the folder that its other files lie in."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFoundError(
            f"{file} does not exist; pass tokenizer=... or skip_tokenizer_init=True to work with token ids only",
            "tokenizer",
        )
    try:
        return tokenizers.Tokenizer.from_file(str(file)), file.parent
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{file} is not a tokenizer: {error}", str(file)) from None

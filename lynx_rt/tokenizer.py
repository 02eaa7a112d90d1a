"""Text to token ids and back, on Hugging Face's `tokenizers`; with detokenizers that work token by token."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers.decoders import ByteLevel

from lynx_rt.errors import CheckpointError, ModelNotFoundError, ValidationError

_REPLACEMENT = "\ufffd"  # stands for bytes that are not a whole UTF-8 character
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


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
    """

    @staticmethod
    def of(tokenizer: Any, model: Path) -> Tokenizer:
        """`tokenizer` as one; None = the model's."""
        return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(model if tokenizer is None else tokenizer)

    def __init__(self, source: str | os.PathLike[str] | tokenizers.Tokenizer | Any) -> None:
        folder: Path | None = None
        chat_template: Any = None
        if isinstance(source, (str, os.PathLike)):
            self._backend, folder = _load(Path(source))
        elif isinstance(source, tokenizers.Tokenizer):
            self._backend = tokenizers.Tokenizer.from_str(source.to_str())
        elif isinstance(getattr(source, "backend_tokenizer", None), tokenizers.Tokenizer):
            self._backend = tokenizers.Tokenizer.from_str(source.backend_tokenizer.to_str())
            chat_template = getattr(source, "chat_template", None)
        else:
            raise ValidationError(
                f"tokenizer must be a path or a fast tokenizer, got {type(source).__name__}", "tokenizer"
            )
        # A tokenizer.json may carry the settings of its training; a prompt must never be cut or filled up.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.config = _read_config(folder)
        for name in _SPECIAL_NAMES:
            token = getattr(source, name, None) if folder is None else self.config.get(name)
            self.config[name] = token["content"] if isinstance(token, dict) else token
        self.chat_template = chat_template if folder is None else _read_chat_template(folder, self.config)
        added = self._backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._prepend_bos = self.bos_token_id if self.config.get("add_bos_token") else None
        self._byte_level = isinstance(self._backend.decoder, ByteLevel)
        self._bytes_of_char = _bytes_of_char() if self._byte_level else {}
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
    def special_tokens(self) -> dict[str, str]:
        """ "bos_token", "eos_token", ... -> the token's text, where there is one: what chat templates use."""
        return {name: self.config[name] for name in _SPECIAL_NAMES if self.config[name]}

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
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def piece(self, token_id: int) -> str:
        """The text of one token by itself, special or not."""
        piece = self._piece_of_id.get(token_id)
        if piece is None:
            piece = self._piece_of_id[token_id] = self.decode([token_id], skip_special_tokens=False)
        return piece

    def detokenizer(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for what follows `prompt_token_ids`."""
        skip = self.special_token_ids if skip_special_tokens else frozenset()
        if self._byte_level:
            return _ByteLevelDetokenizer(self._token_bytes, skip)
        return _WindowDetokenizer(lambda ids: self.decode(ids, skip_special_tokens), skip, prompt_token_ids)

    def _special_id(self, name: str) -> int | None:
        token = self.config[name]
        return self._backend.token_to_id(token) if token else None

    def _token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, before UTF-8 decoding (byte-level vocabularies)."""
        found = self._bytes_of_id.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id) or ""
            try:
                found = bytes(self._bytes_of_char[char] for char in token)
            except KeyError:  # an added token, which stands for itself
                found = token.encode()
            self._bytes_of_id[token_id] = found
        return found

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, eos_token={self.config['eos_token']!r})"


class _ByteLevelDetokenizer:
    """Byte-level vocabularies: tokens are bytes, so an incremental UTF-8 decoder gives exactly the full decode."""

    def __init__(self, token_bytes: Callable[[int], bytes], skip: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        return "" if token_id in self._skip else self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Any other vocabulary: decode a short window with and without the new tokens, and show the difference.

    The window starts with tokens whose text is out already, because a token's text can depend on the one before it
    (spaces in sentencepiece vocabularies). Text that ends in a replacement character is held back, since it may be the
    start of a character; after _MAX_PENDING tokens it cannot be (a character has at most four bytes), and it is shown.
    """

    _CONTEXT = 5  # tokens of the prompt that set the scene
    _MAX_PENDING = 8

    def __init__(self, decode: Callable[[list[int]], str], skip: frozenset[int], context: Sequence[int]) -> None:
        self._decode = decode
        self._skip = skip
        self._window = list(context[-self._CONTEXT :])
        self._shown = len(self._window)  # tokens of the window whose text is out
        self._shown_text = decode(self._window)

    def add(self, token_id: int) -> str:
        if token_id in self._skip:
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises CheckpointError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", str(path)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, got {type(value).__name__}", str(path))
    return value


def _read_config(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    return read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")


def _read_chat_template(folder: Path, config: dict[str, Any]) -> Any:
    """A template text, {name: text} where there are several, or None. The separate file wins, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template

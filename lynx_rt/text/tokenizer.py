"""Turns text into token ids and back with Hugging Face's `tokenizers`, and makes detokenizers that work token by token."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from lynx_rt.errors import ValidationError, encoding_fault, shown
from lynx_rt.library_errors import Guard
from lynx_rt.text.detokenizer import ByteDetokenizer, Decoding, Detokenizer, WindowDetokenizer, token_bytes_by_decoding
from lynx_rt.text.tokenizer_backend import Backend, SlowBackend
from lynx_rt.text.tokenizer_config import read_chat_template
from lynx_rt.text.tokenizer_files import load_tokenizer_files

_CONTEXT = 5  # tokens of the prompt before a token that its text can depend on


class Tokenizer:
    """A tokenizer with its special tokens. Thread-safe.

    source: a model folder; one file of it (tokenizer.json, vocab.json beside merges.txt, SentencePiece's tokenizer.model, a
    tiktoken file, tekken.json, a model in GGUF); a `tokenizers.Tokenizer`; or a tokenizer of transformers, fast or slow.

    Files are read as transformers 5 reads them, with the tokens and names that tokenizer_config.json,
    special_tokens_map.json and added_tokens.json add. Three things differ from transformers, because models rely on them:
    `add_bos_token: true` is heeded where tokenizer.json itself adds no start token (DeepSeek's); a tokenizer.model of a class
    other than LlamaTokenizer gets the prefix space and the white space that the model file asks for; and tiktoken files get
    the word pattern of their class (Kimi's, HunYuan's, Qwen's).
    Raises ModelNotFoundError, CheckpointError, ValidationError.
    """

    @staticmethod
    def of(tokenizer: Any, model: Path) -> Tokenizer:
        """Makes a Tokenizer of `tokenizer`; None = the model's."""
        return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(model if tokenizer is None else tokenizer)

    def __init__(self, source: str | os.PathLike[str] | tokenizers.Tokenizer | Any) -> None:
        special: Mapping[str, str | tokenizers.AddedToken] = {}
        self.chat_template: str | dict[str, str] | None = None
        self.response_template: Any = None  # what transformers 5 parses responses by, as written
        name, prepend_bos = "the given tokenizer", False
        if isinstance(source, (str, os.PathLike)):
            file, raw, config = load_tokenizer_files(Path(source))
            name, special = str(file), config.named
            prepend_bos = config.values.get("add_bos_token") is True
            own = config.file == file  # a GGUF file has everything; the files beside it are of other models
            self.chat_template = (
                config.values["chat_template"] if own else read_chat_template(file.parent, config.values)
            )
            self.response_template = config.values.get("response_template")
        elif isinstance(source, tokenizers.Tokenizer):
            raw = _copy(source)
        elif all(hasattr(source, attribute) for attribute in ("encode", "decode", "special_tokens_map")):
            raw = source
            if isinstance(getattr(source, "backend_tokenizer", None), tokenizers.Tokenizer):
                raw = _copy(source.backend_tokenizer)
                raw.encode_special_tokens = source.backend_tokenizer.encode_special_tokens
            special = {name: token for name, token in source.special_tokens_map.items() if isinstance(token, str)}
            self.chat_template = getattr(source, "chat_template", None)
            self.response_template = getattr(source, "response_template", None)
        else:
            raise ValidationError(
                f"tokenizer must be a path or a tokenizer of transformers or tokenizers, got {type(source).__name__}",
                "tokenizer",
            )
        if isinstance(raw, tokenizers.Tokenizer):
            # A tokenizer.json may hold truncation and padding of its training; a prompt must never be cut or padded.
            raw.no_truncation()
            raw.no_padding()
            if isinstance(raw.model, tokenizers.models.BPE):
                raw.model.dropout = None  # dropout leaves out merges at random
            self._backend = Backend(raw, name)
            self._decoding = Decoding.of(raw)
        else:
            self._backend, self._decoding = SlowBackend(raw, name), None
        # "bos_token", "eos_token", ... -> the token's text, where there is one, for chat templates.
        self.special_tokens = {name: str(getattr(token, "content", token)) for name, token in special.items()}
        self.special_token_ids = self._backend.special_ids()
        self._prepend_bos = self.bos_token_id if prepend_bos else None
        self._bytes_of_id: dict[int, bytes] = {}
        self.encode_batch([""])  # a post-processor may name a token that the vocabulary lacks: raise now

    @property
    def backend(self) -> Any:
        """The library's tokenizer: a `tokenizers.Tokenizer`, or the slow tokenizer of transformers that was given."""
        return self._backend.raw

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's vocabulary may be larger."""
        return self._backend.size

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text; None where the tokenizer names none."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text; None where the tokenizer names none."""
        return self._special_id("eos_token")

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """Texts of the special tokens, in the order of their ids."""
        texts = (self._backend.token_of(token_id) for token_id in sorted(self.special_token_ids))
        return tuple(text for text in texts if text)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of `text`. Raises ValidationError for text that is not valid Unicode."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Returns the token ids of each text."""
        for text in texts:
            if not isinstance(text, str):
                raise ValidationError(f"text must be a string, got {type(text).__name__}", "prompt")
            if (fault := encoding_fault(text)) is not None:
                raise ValidationError(fault, "prompt")
        encoded = self._backend.encode_batch(texts, add_special_tokens)
        if add_special_tokens and self._prepend_bos is not None:
            bos = self._prepend_bos
            encoded = [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]
        return encoded

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids`; ids that are not in the vocabulary add nothing."""
        given = list(ids)
        try:
            numbers = list(map(operator.index, given))
        except TypeError:
            numbers = [-1]
        if numbers and not 0 <= min(numbers) <= max(numbers) < 2**32:
            raise ValidationError(f"token ids must be integers from 0 on, got {shown(given)}", "ids")
        return self._backend.decode(numbers, skip_special_tokens) if numbers else ""

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token that is given as the vocabulary has it; None where there is none."""
        found = self._backend.id_of(token)
        return found if found is not None and self._backend.token_of(found) == token else None  # not that of "<unk>"

    def piece(self, token_id: int) -> str:
        """Returns the text of one token after others, special or not; bytes of an incomplete character read "\\xe6"."""
        return self.token_bytes(token_id).decode(errors="backslashreplace")

    def token_bytes(self, token_id: int) -> bytes:
        """Returns what the token adds to a text, as UTF-8. Joined over the tokens after a prompt, this is the text."""
        found = self._bytes_of_id.get(token_id)
        if found is None:
            token = self._backend.token_of(token_id) or ""
            if self._decoding is not None:
                found = self._decoding.token_bytes(token)
            else:
                found = token_bytes_by_decoding(self._backend, token_id, token)
            self._bytes_of_id[token_id] = found
        return found

    def detokenizer(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """Returns a detokenizer for the tokens after `prompt_token_ids`.

        Its pieces together are decode() of prompt and tokens, less decode() of the prompt. The exception is a run of
        byte tokens that is not valid UTF-8 (sentencepiece vocabularies): the pieces keep the characters that it
        completed, which decode() replaces.
        """
        skip = self.special_token_ids if skip_special_tokens else frozenset()
        context: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if token_id not in skip and self._backend.token_of(token_id) is not None:
                context.insert(0, token_id)
                if len(context) == _CONTEXT:
                    break
        if self._decoding is None:
            return WindowDetokenizer(self._backend, skip, skip_special_tokens, context)
        return ByteDetokenizer(self.token_bytes, skip, self._decoding.strip, context)

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return self._backend.id_of(token) if token else None

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, eos_token={self.special_tokens.get('eos_token')!r})"


def _copy(raw: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    with Guard("the given tokenizer cannot be copied", "tokenizer", ValidationError):
        return tokenizers.Tokenizer.from_str(raw.to_str())

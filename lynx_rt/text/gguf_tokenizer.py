"""Makes a `tokenizers.Tokenizer` of a GGUF file's metadata (keys "tokenizer.*").

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The pattern that cuts text into words is not in the file, only its
name, "tokenizer.ggml.pre": gguf_patterns.py has the patterns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from lynx_rt.errors import CheckpointError, UnsupportedModelError, shown
from lynx_rt.library_errors import Guard
from lynx_rt.text.gguf_patterns import WORDS, Words
from lynx_rt.text.sentencepiece_model import SentencePieceModel, check_charsmap
from lynx_rt.text.tokenizer_config import TokenizerConfig, add_tokens

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # types of tokens: as sentencepiece's
_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # so spelt in the format
    "pad_token": "padding",
    "mask_token": "mask",
}
_ADVICE = "; give the tokenizer of the model that the file was made of (tokenizer='FOLDER')"


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def read_gguf_tokenizer(file: Path) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
    """Returns the tokenizer, and in the form of tokenizer_config.json its special tokens and chat templates.

    The config's `values` have "add_bos_token", "add_eos_token" and "chat_template". "tokenizer.huggingface.json", where it is there, is
    used as it is. Raises CheckpointError, UnsupportedModelError.
    """
    from lynx_rt import _C

    metadata = _C.gguf_metadata(str(file))
    with Guard(f"{file}: its tokenizer cannot be read", str(file)):
        return _Reader(file, metadata).read()


class _Reader:
    def __init__(self, file: Path, metadata: Mapping[str, Any]) -> None:
        self._file, self._metadata = file, metadata

    def read(self) -> tuple[tokenizers.Tokenizer, TokenizerConfig]:
        kind = self._value("model", str)
        if kind is None:
            raise CheckpointError(
                f"{self._file} has no tokenizer: tokenizer.ggml.model is missing{_ADVICE}", "tokenizer"
            )
        tokens = self._list("tokens", str, None)
        types = self._list("token_type", int, len(tokens)) if "tokenizer.ggml.token_type" in self._metadata else []
        named = self._named(tokens)
        values: dict[str, Any] = {"chat_template": self._templates()}
        json = self._metadata.get("tokenizer.huggingface.json")
        add_bos = kind in ("llama", "gemma4")
        if isinstance(json, str) and json:
            raw = tokenizers.Tokenizer.from_str(json)
            add_bos = False  # the post-processor adds it
        elif kind == "gpt2":
            words = self._words()
            add_bos = words.add_bos
            raw = self._byte_level(tokens, types, words)
        elif kind == "llama":
            raw = self._sentencepiece(tokens, types, named)
        elif kind == "gemma4":
            raw = self._gemma(tokens, types, named)
        else:
            raise UnsupportedModelError(
                f"{self._file}: tokenizer.ggml.model {shown(kind)} is not supported; supported: 'gpt2' (byte-level BPE), 'llama' "
                f"(SentencePiece BPE), 'gemma4' (BPE of whole texts){_ADVICE}",
                "tokenizer.ggml.model",
            )
        values["add_bos_token"] = self._flag("add_bos_token", add_bos) and "bos_token" in named
        values["add_eos_token"] = self._flag("add_eos_token", False) and "eos_token" in named
        config = TokenizerConfig(self._file, values, named, [], None, {})
        add_tokens(raw, config)
        return raw, config

    def _vocab(self, tokens: list[str]) -> dict[str, int]:
        vocab = {token: place for place, token in enumerate(tokens)}
        if len(vocab) != len(tokens):
            twice = next(token for place, token in enumerate(tokens) if vocab[token] != place)
            raise CheckpointError(
                f"{self._file}: tokenizer.ggml.tokens has {shown(twice)} twice", "tokenizer.ggml.tokens"
            )
        return vocab

    def _byte_level(self, tokens: list[str], types: list[int], words: Words) -> tokenizers.Tokenizer:
        vocab = self._vocab(tokens)
        merges = [self._pair(merge) for merge in self._list("merges", str, None)]
        raw = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=words.ignore_merges))
        if words.nfc:
            raw.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in words.patterns]
        to_bytes = pre_tokenizers.ByteLevel(
            add_prefix_space=self._flag("add_space_prefix", False), use_regex=not splits
        )
        raw.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
        raw.decoder = decoders.ByteLevel()
        self._add(raw, tokens, types)
        return raw

    def _gemma(self, tokens: list[str], types: list[int], named: Mapping[str, AddedToken]) -> tokenizers.Tokenizer:
        """Merges run over a whole text, whose spaces are "▁", and characters that are no tokens become bytes. Source: transformers'
        GemmaTokenizer."""
        merges = [self._pair(merge) for merge in self._list("merges", str, None)]
        if not merges:
            raise CheckpointError(
                f"{self._file}: tokenizer.ggml.merges: expected a list of texts, got none", "tokenizer.ggml.merges"
            )
        model = models.BPE(self._vocab(tokens), merges, fuse_unk=True, byte_fallback=True)
        if "unk_token" in named:
            model.unk_token = named["unk_token"].content
        raw = tokenizers.Tokenizer(model)
        raw.normalizer = normalizers.Replace(" ", "▁")
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        self._add(raw, tokens, types)
        return raw

    @staticmethod
    def _add(raw: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
        """Adds the tokens that text is cut at before anything else."""
        kinds = zip(tokens, types, strict=True) if types else ()
        raw.add_tokens(
            [
                AddedToken(token, normalized=False, special=kind == _CONTROL)
                for token, kind in kinds
                if kind in (_CONTROL, _USER_DEFINED) and token
            ]
        )

    def _sentencepiece(
        self, tokens: list[str], types: list[int], named: Mapping[str, AddedToken]
    ) -> tokenizers.Tokenizer:
        if len(set(tokens)) != len(tokens):
            raise CheckpointError(f"{self._file}: tokenizer.ggml.tokens has a token twice", "tokenizer.ggml.tokens")
        charsmap = bytes(byte % 256 for byte in self._list("precompiled_charsmap", int, None))
        check_charsmap(charsmap)
        model = SentencePieceModel(
            pieces=tokens,
            scores=[float(score) for score in self._list("scores", (float, int), len(tokens))],
            types=types or [1] * len(tokens),
            model_type=2,
            byte_fallback=_BYTE in types,
            unk_id=tokens.index(named["unk_token"].content) if "unk_token" in named else 0,
            special_names={name: token.content for name, token in named.items()},
            charsmap=charsmap,
            add_dummy_prefix=self._flag("add_space_prefix", True),
            remove_extra_whitespaces=self._flag("remove_extra_whitespaces", False),
        )
        # As SentencePiece itself, which llama.cpp follows: each text between special tokens begins with the prefix space.
        return model.tokenizer(False, TokenizerConfig(self._file, {}, dict(named), [], None, {}))

    def _words(self) -> Words:
        name = self._value("pre", str) or "default"
        if name not in WORDS:
            what = (
                "does not say how text is cut into words (tokenizer.ggml.pre)"
                if name == "default"
                else f"has tokenizer.ggml.pre {shown(name)}, which is not known; known: {', '.join(sorted(WORDS))}"
            )
            raise UnsupportedModelError(f"{self._file} {what}{_ADVICE}", "tokenizer.ggml.pre")
        return WORDS[name]

    def _pair(self, merge: str) -> tuple[str, str]:
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise CheckpointError(
                f"{self._file}: tokenizer.ggml.merges: expected two tokens with a space between, got {shown(merge)}",
                "tokenizer.ggml.merges",
            )
        return left, right

    def _named(self, tokens: list[str]) -> dict[str, AddedToken]:
        named = {}
        for name, key in _NAMES.items():
            place = self._value(f"{key}_token_id", int)
            if place is None or place in (-1, 0xFFFFFFFF):
                continue
            if not 0 <= place < len(tokens):
                raise CheckpointError(
                    f"{self._file}: tokenizer.ggml.{key}_token_id: expected an id below {len(tokens)}, got {place}",
                    f"tokenizer.ggml.{key}_token_id",
                )
            if tokens[place]:
                named[name] = AddedToken(tokens[place], normalized=False, special=True)
        return named

    def _templates(self) -> str | dict[str, str] | None:
        main, names = self._text("tokenizer.chat_template"), self._metadata.get("tokenizer.chat_templates")
        others = {}
        for name in names if isinstance(names, list) else []:
            if text := self._text(f"tokenizer.chat_template.{name}"):
                others[str(name)] = text
        if not others:
            return main
        return ({"default": main} if main else {}) | others

    def _text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        if not isinstance(value, str | None):
            raise CheckpointError(f"{self._file}: {key}: expected a text, got {shown(value)}", key)
        return value

    def _flag(self, name: str, absent: bool) -> bool:
        value = self._value(name, bool)
        return absent if value is None else value

    def _value(self, name: str, kind: type) -> Any:
        """Returns the value of a key; None where it is absent."""
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is not None and type(value) is not kind:
            raise CheckpointError(f"{self._file}: {key}: expected {kind.__name__}, got {shown(value)}", key)
        return value

    def _list(self, name: str, kind: type | tuple[type, ...], length: int | None) -> list[Any]:
        """Returns a list of values; an empty one where the key is absent and no length is asked for."""
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise CheckpointError(
                f"{self._file}: {key}: expected a list of values of one type, got {shown(value)}", key
            )
        if length is not None and len(value) != length:
            raise CheckpointError(f"{self._file}: {key}: expected {length} values, got {len(value)}", key)
        return value

"""Reads the protobuf messages of SentencePiece's tokenizer.model, and makes a `tokenizers.Tokenizer` of it.

The messages are those of sentencepiece_model.proto; only the fields that change how text is encoded are read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from lynx_rt.text.tokenizer_config import TokenizerConfig
from lynx_rt.text.tokenizer_formats import json_of_llama, merges_of

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # types of pieces
_UNIGRAM, _BPE = 1, 2  # types of models


@dataclass
class SentencePieceModel:
    """Contents of a tokenizer.model. `pieces`, `scores` and `types` have an entry per piece, in order of id."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    model_type: int
    byte_fallback: bool
    unk_id: int
    special_names: dict[str, str]  # "bos_token", ... -> the piece, where the model has one
    charsmap: bytes  # precompiled normalization; b"" = none
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @staticmethod
    def parse(data: bytes) -> SentencePieceModel:
        """Parses a file. Raises ValueError for bytes that are no such model, and for a model of words or characters."""
        pieces: list[str] = []
        scores: list[float] = []
        types: list[int] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(data):
            if number == 1:
                piece: dict[int, Any] = dict(_fields(_bytes(value)))
                pieces.append(_bytes(piece.get(1, b"")).decode())
                (score,) = struct.unpack("<f", _bytes(piece.get(2, bytes(4))))
                scores.append(score)
                types.append(piece.get(3, _NORMAL))
            elif number == 2:
                trainer = dict(_fields(_bytes(value)))
            elif number == 3:
                normalizer = dict(_fields(_bytes(value)))
        model_type = trainer.get(3, _UNIGRAM)
        if model_type not in (_UNIGRAM, _BPE):
            raise ValueError(f"SentencePiece models of type {model_type} are not supported (1 = unigram, 2 = BPE)")
        if len(set(pieces)) != len(pieces):
            raise ValueError("the same piece comes twice")
        charsmap = _bytes(normalizer.get(2, b""))
        check_charsmap(charsmap)
        names = (
            ("unk_token", 40, 0, 45, b"<unk>"),
            ("bos_token", 41, 1, 46, b"<s>"),
            ("eos_token", 42, 2, 47, b"</s>"),
        )
        return SentencePieceModel(
            pieces,
            scores,
            types,
            model_type,
            byte_fallback=bool(trainer.get(35, 0)),
            unk_id=_signed(trainer.get(40, 0)),
            special_names={
                name: _bytes(trainer.get(text_field, default)).decode()
                for name, id_field, default_id, text_field, default in names
                if _signed(trainer.get(id_field, default_id)) >= 0
            },
            charsmap=charsmap,
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        )

    @property
    def is_bpe(self) -> bool:
        return self.model_type == _BPE

    def tokenizer(self, llama: bool, config: TokenizerConfig) -> tokenizers.Tokenizer:
        """Returns a tokenizer that encodes as LlamaTokenizer of transformers 5, or as SentencePiece itself."""
        pieces = self._named_pieces({} if llama else config.listed or {})
        vocab = {piece: place for place, piece in enumerate(pieces)}
        if self.is_bpe:
            normal = [place for place, kind in enumerate(self.types) if kind in (_NORMAL, _USER_DEFINED, _UNUSED)]
            order = sorted(normal, key=lambda place: (-self.scores[place], place))
            merges = merges_of((pieces[place] for place in order), vocab)
            fallback = self.byte_fallback or llama
            model: Any = models.BPE(vocab, merges, fuse_unk=True, byte_fallback=fallback)
            if not llama:
                model.unk_token = pieces[self.unk_id]
        else:
            scored = list(zip(pieces, self.scores, strict=True))
            model = models.Unigram(scored, unk_id=self.unk_id, byte_fallback=self.byte_fallback)
        backend = tokenizers.Tokenizer(model)
        if llama:
            parts = json_of_llama(config)
            shell = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
            shell |= {name: parts[name] for name in ("pre_tokenizer", "decoder")}
            made = tokenizers.Tokenizer.from_str(json.dumps(shell))
            backend.pre_tokenizer, backend.decoder = made.pre_tokenizer, made.decoder
        else:
            backend.normalizer = self._normalizer()
            backend.decoder = self._decoder()
        kinds = zip(pieces, self.types, strict=True)
        backend.add_tokens(
            [
                AddedToken(piece, normalized=False, special=kind == _CONTROL)
                for piece, kind in kinds
                if kind in (_CONTROL, _USER_DEFINED)
            ]
        )
        return backend

    def _named_pieces(self, listed: Mapping[int, tokenizers.AddedToken]) -> list[str]:
        """Returns the pieces, with the config's names in place of the model's placeholders."""
        pieces, known = list(self.pieces), set(self.pieces)
        for place, token in listed.items():
            if place < len(pieces) and token.content not in known:
                pieces[place] = token.content
                known.add(token.content)
        return pieces

    def _normalizer(self) -> Any:
        steps: list[Any] = [normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        if self.remove_extra_whitespaces:
            rules = ((r"\A +|[ ▁]+\z", ""), (" {2,}", " "))
            steps += [normalizers.Replace(tokenizers.Regex(pattern), content) for pattern, content in rules]
        if self.add_dummy_prefix:
            steps.append(normalizers.Prepend("▁"))
        return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])

    def _decoder(self) -> Any:
        steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if self.add_dummy_prefix else steps)


def check_charsmap(charsmap: bytes) -> None:
    """Raises ValueError for a precompiled normalization whose trie is longer than its data.

    The tokenizers library allocates the size in the first four bytes without a check, and a failed allocation ends the process.
    """
    if charsmap and (len(charsmap) < 4 or int.from_bytes(charsmap[:4], "little") > len(charsmap) - 4):
        raise ValueError("precompiled_charsmap ends inside its trie")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a message: number, and the value of a varint or the bytes of any other kind."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of unknown kind {kind} at byte {place}")
        if place + size > len(data):
            raise ValueError(f"it ends inside a field, at byte {place}")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"a number that does not end, at byte {place}")


def _signed(value: Any) -> int:
    """Returns an int32 field's value; messages write negative numbers as 64 bits."""
    return int(value - 2**64 if value >= 2**63 else value)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"expected bytes, got the number {value}")
    return value

"""All calls that this package makes into a tokenizer of another library, with one guard around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lynx_rt.library_errors import Guard


class Backend:
    """Wraps a `tokenizers.Tokenizer`. Whatever the library raises becomes a CheckpointError that names the source.

    raw: the tokenizer, which is not copied.  name: its file or a description, for errors.
    """

    def __init__(self, raw: Any, name: str) -> None:
        self.raw = raw
        self._encoding = Guard(f"{name}: this tokenizer cannot encode the text", name)
        self._decoding = Guard(f"{name}: this tokenizer cannot decode the tokens", name)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """Returns the token ids of each text."""
        with self._encoding:
            return [item.ids for item in self.raw.encode_batch(list(texts), add_special_tokens=add_special_tokens)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids; ids without a token add nothing."""
        with self._decoding:
            return str(self.raw.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_of(self, token_id: int) -> str | None:
        """Returns the token as the vocabulary writes it; None where there is none."""
        with self._decoding:
            token: str | None = self.raw.id_to_token(token_id)
            return token

    def id_of(self, token: str) -> int | None:
        with self._encoding:
            token_id: int | None = self.raw.token_to_id(token)
            return token_id

    def special_ids(self) -> frozenset[int]:
        """Returns the ids of special tokens, which decoding can skip."""
        with self._encoding:
            added = self.raw.get_added_tokens_decoder()
            return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def size(self) -> int:
        """Returns the number of tokens, added ones included."""
        with self._encoding:
            return int(self.raw.get_vocab_size(with_added_tokens=True))


class SlowBackend(Backend):
    """Wraps a tokenizer of transformers that is written in Python."""

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        with self._encoding:
            return [list(self.raw.encode(text, add_special_tokens=add_special_tokens)) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        size = self.size
        with self._decoding:
            known = [token_id for token_id in ids if token_id < size]
            return str(self.raw.decode(known, skip_special_tokens=skip_special_tokens)) if known else ""

    def token_of(self, token_id: int) -> str | None:
        if token_id >= self.size:
            return None
        with self._decoding:
            token = self.raw.convert_ids_to_tokens(token_id)
        return token.decode(errors="replace") if isinstance(token, bytes) else token

    def id_of(self, token: str) -> int | None:
        with self._encoding:
            token_id: int | None = self.raw.convert_tokens_to_ids(token)
            return token_id

    def special_ids(self) -> frozenset[int]:
        with self._encoding:
            return frozenset(self.raw.all_special_ids)

    @property
    def size(self) -> int:
        with self._encoding:
            return len(self.raw)

"""Log probabilities in the forms of OpenAI's two APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lynx_rt.engine.outputs import Logprob, TokenLogprobs

_LOWEST = -9999.0  # JSON has no infinity


class CompletionLogprobs:
    """Collects the `logprobs` object of one completion: four lists with an entry per token."""

    def __init__(self, count: int, as_ids: bool, piece: Callable[[int], str] | None) -> None:
        """count: of top_logprobs.  as_ids: tokens as "token_id:123".  piece: returns a token's text; None = no tokenizer."""
        self._count = count
        self._piece = None if as_ids else piece
        self._offset = 0

    def object(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """Returns the object of the next tokens. An entry of None is that of a text's first token, which nothing precedes."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, entry in zip(token_ids, entries, strict=True):
            own = None if entry is None else entry[token_id]
            text = self._text(token_id)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            values.append(None if own is None else max(own.logprob, _LOWEST))
            if entry is None:
                tops.append(None)
                continue
            # The token itself, then the most likely ones. Of two tokens with the same text, the likelier one stays.
            top: dict[str, float] = {}
            for other, item in sorted(entry.items(), key=lambda pair: -pair[1].logprob):
                top.setdefault(self._text(other), max(item.logprob, _LOWEST))
            tops.append(top)
        return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}

    def _text(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._piece is None else self._piece(token_id)


def chat_logprobs(
    token_ids: Sequence[int], entries: Sequence[TokenLogprobs], count: int, as_ids: bool
) -> list[dict[str, Any]]:
    """Returns the entries of a chat choice's logprobs.content.  count: of top_logprobs."""
    content = []
    for token_id, entry in zip(token_ids, entries, strict=True):
        ranked = sorted(entry.items(), key=lambda pair: (pair[1].rank or 0, pair[0]))
        content.append(
            {
                **_chat_entry(token_id, entry[token_id], as_ids),
                "top_logprobs": [_chat_entry(other, item, as_ids) for other, item in ranked[:count]],
            }
        )
    return content


def _chat_entry(token_id: int, entry: Logprob, as_ids: bool) -> dict[str, Any]:
    text = f"token_id:{token_id}" if as_ids or entry.decoded_token is None else entry.decoded_token
    return {"token": text, "logprob": max(entry.logprob, _LOWEST), "bytes": entry.bytes}


def prompt_logprobs(entries: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
    """Returns vLLM's `prompt_logprobs`: for each token of the prompt, an object by token id."""
    return [None if entry is None else {str(i): _prompt_entry(item) for i, item in entry.items()} for entry in entries]


def _prompt_entry(entry: Logprob) -> dict[str, Any]:
    return {"logprob": max(entry.logprob, _LOWEST), "rank": entry.rank, "decoded_token": entry.decoded_token}

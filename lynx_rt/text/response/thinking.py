"""Follows the reasoning of a text token by token: how long it is, and where it has to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lynx_rt.errors import ValidationError

if TYPE_CHECKING:
    from lynx_rt.text.tokenizer import Tokenizer


class ReasoningTracker:
    """Counts the tokens between the tags of reasoning.

    Reasoning begins where the prompt has begun it, at the start of the text, and after other reasoning, as ResponseParser reads it.
    The tags are found in the bytes of the tokens, so that any tokens may spell them.

    tags: the texts around reasoning.  token_bytes: what a token adds to the text.  inside: the prompt ends in reasoning.
    anywhere: reasoning begins wherever its start tag is.
    """

    def __init__(
        self, tags: tuple[str, str], token_bytes: Callable[[int], bytes], inside: bool, anywhere: bool = False
    ) -> None:
        self.inside = inside
        self.num_tokens = 0  # so far, tags left out
        self.tail = b""  # the end of the text: as much of it as may belong to the next tag
        self._token_bytes = token_bytes
        self._start, self._end = (tag.encode() for tag in tags)
        self._sizes: list[int] = []  # of the tokens that `tail` ends with
        self._may_begin = True
        self._anywhere = anywhere

    def expect(self) -> None:
        """Says that reasoning may begin here: a tool call has ended, say."""
        if not self._may_begin:
            self._may_begin, self.tail = True, b""

    def accept(self, token_id: int) -> None:
        """Goes on by a token."""
        if not self.inside and not self._may_begin:
            return
        self.tail += (added := self._token_bytes(token_id))
        if self.inside:
            self.num_tokens += 1
            self._sizes.append(len(added))
            self._find_end()
        if not self.inside:
            self._find_start()

    def _find_end(self) -> None:
        place = self.tail.find(self._end)
        if place >= 0:
            first = len(self.tail) - sum(self._sizes)  # of the oldest token in the list
            for size in self._sizes:
                self.num_tokens -= first >= place
                first += size
            self.tail = self.tail[place + len(self._end) :]
            self.inside = False
        else:
            self.tail = _end_of(self.tail, len(self._end) - 1)
        while self._sizes and (not self.inside or sum(self._sizes[1:]) >= len(self.tail)):
            del self._sizes[0]

    def _find_start(self) -> None:
        if self._anywhere:
            place = self.tail.find(self._start)
        else:
            self.tail = self.tail.lstrip()
            place = 0 if self.tail.startswith(self._start) else -1
            self._may_begin = place == 0 or self._start.startswith(self.tail)
        self.inside = place >= 0
        self.tail = self.tail[place + len(self._start) :] if self.inside else _end_of(self.tail, len(self._start) - 1)


def _end_of(text: bytes, size: int) -> bytes:
    return text[max(0, len(text) - size) :]


class ThinkingBudget:
    """Ends the reasoning of a text after a number of tokens, by its end tag.

    closing: returns the tokens that are forced after a text that ends like this, so that it ends with the tag.
    """

    def __init__(self, limit: int, tracker: ReasoningTracker, closing: Callable[[bytes], list[int]]) -> None:
        self._limit = limit
        self._tracker = tracker
        self._closing = closing
        self._forced: list[int] = []
        self._force()

    @property
    def forced(self) -> int | None:
        """The only token that may follow; None = the budget leaves the choice free."""
        return self._forced[0] if self._forced else None

    def accept(self, token_id: int) -> None:
        """Goes on by a token: by the forced one, if there is one."""
        self._tracker.accept(token_id)
        del self._forced[:1]
        self._force()

    def _force(self) -> None:
        if not self._forced and self._tracker.inside and self._tracker.num_tokens >= self._limit:
            self._forced = self._closing(self._tracker.tail)


class ThinkingTags:
    """The tags of one model's reasoning, as its tokens spell them. Thread-safe.

    vocab_size: the model's.  Raises ValidationError whose field is "thinking_token_budget" where no tokens spell the end tag.
    """

    def __init__(self, tags: tuple[str, str], tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tags = tags
        self._tokenizer = tokenizer
        self._end_ids = self._spelt(tags[1])
        if not self._end_ids or max(self._end_ids) >= vocab_size:
            raise ValidationError(
                f"thinking_token_budget: no tokens of this model spell {tags[1]!r}, which ends its reasoning",
                "thinking_token_budget",
            )

    def budget(self, limit: int, inside: bool) -> ThinkingBudget:
        """Returns the budget of a new text. inside: the prompt ends in reasoning."""
        return ThinkingBudget(limit, ReasoningTracker(self._tags, self._tokenizer.token_bytes, inside), self._closing)

    def _closing(self, tail: bytes) -> list[int]:
        """Returns the tokens of the end tag, less the part of it that the text has already. A tag that is one token is never split."""
        tag = self._tags[1]
        for size in range(len(tag) - 1 if len(self._end_ids) > 1 else 0, 0, -1):
            if tail.endswith(tag[:size].encode()) and (rest := self._spelt(tag[size:])):
                return rest
        return list(self._end_ids)

    def _spelt(self, text: str) -> list[int]:
        """Returns tokens that spell a text, apart from white space before it; [] = the tokenizer makes others of it."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ids if b"".join(map(self._tokenizer.token_bytes, ids)).lstrip() == text.encode() else []

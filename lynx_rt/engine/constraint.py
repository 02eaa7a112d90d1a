"""Holds one completion to its grammar and its thinking budget: keeps the mask of the tokens that may follow, read in a step by C++."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.text.response.thinking import ThinkingBudget
from lynx_rt.text.structured.compiler import Grammar
from lynx_rt.text.structured.spec import StructuredOutputs

if TYPE_CHECKING:
    from lynx_rt import _C


class Constraint:
    """One text under a grammar, a thinking budget or both. Used by one thread at a time, and refilled between steps only.

    The budget acts where the grammar, if there is one, has not begun.
    stop_token_ids: the tokens that end the text besides the model's own end; min_tokens holds them back as well.
    """

    def __init__(
        self,
        vocab_size: int,
        params: SamplingParams,
        stop_token_ids: list[int],
        grammar: Grammar | None,
        budget: ThinkingBudget | None,
    ) -> None:
        from lynx_rt import _C

        self.token_mask: _C.TokenMask = _C.TokenMask(vocab_size)
        self._words = self.token_mask.words
        self._budget = budget
        self._is_free = False  # the mask allows every token
        self._matcher = None
        if grammar is not None:
            spec = params.structured_outputs
            start_after = spec.start_after if isinstance(spec, StructuredOutputs) else None
            self._matcher = grammar.matcher(self._words, start_after, params.min_tokens, stop_token_ids)
        self.refill()

    @property
    def error(self) -> str:
        """Why no token can follow; "" = one can."""
        return "" if self._matcher is None else self._matcher.error

    def accept(self, token_id: int) -> None:
        """Takes in a token that was drawn. The mask is that of the token before until refill()."""
        if self._budget is not None:
            self._budget.accept(token_id)
        if self._matcher is not None:
            self._matcher.accept(token_id)

    def refill(self) -> None:
        """Makes the mask of the next token. Without a token to follow it is empty, and the step ends the request with an error."""
        forced = self._budget.forced if self._budget is not None else None
        if forced is not None and (self._matcher is None or not self._matcher.has_begun):
            self._words[:] = 0
            self._words.view("uint32")[forced // 32] = 1 << forced % 32
            self._is_free = False
        elif self._matcher is not None:
            self._matcher.fill()
        elif not self._is_free:
            self._words[:] = -1
            self._is_free = True

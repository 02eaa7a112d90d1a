"""Holds one completion to its grammar: keeps the mask of the tokens that may follow, which C++ reads in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.text.structured.compiler import Grammar
from lynx_rt.text.structured.spec import StructuredOutputs

if TYPE_CHECKING:
    from lynx_rt import _C


class Constraint:
    """One text under a grammar. Used by one thread at a time, and refilled between steps only.

    stop_token_ids: the tokens that end the text besides the model's own end; min_tokens holds them back as well.
    """

    def __init__(self, grammar: Grammar, params: SamplingParams, stop_token_ids: list[int]) -> None:
        from lynx_rt import _C

        spec = params.structured_outputs
        start_after = spec.start_after if isinstance(spec, StructuredOutputs) else None
        self.token_mask: _C.TokenMask = _C.TokenMask(grammar.vocab_size)
        self._matcher = grammar.matcher(self.token_mask.words, start_after, params.min_tokens, stop_token_ids)
        self.refill()

    @property
    def error(self) -> str:
        """Why no token can follow; "" = one can."""
        return self._matcher.error

    def accept(self, token_id: int) -> None:
        """Takes in a token that was drawn. The mask is that of the token before until refill()."""
        self._matcher.accept(token_id)

    def refill(self) -> None:
        """Makes the mask of the next token. Without a token to follow it is empty, and the step ends the request with an error."""
        self._matcher.fill()

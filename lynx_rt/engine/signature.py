"""Signatures of prompts: which experts a prompt's rows went to, in a few numbers, so that like prompts can be put on one engine.

Prompts of one kind use the same experts, also when they decode (arXiv 2607.00466), and decode steps whose rows agree read fewer. The
cosine of two signatures says how alike their use is. Signatures tell about the text: they are for the servers of one cluster only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURE_SIZE = 256
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64


def signature(routed_experts: NDArray[np.int16]) -> NDArray[np.float32]:
    """Returns float32 [256] of length 1: the counts of each layer's experts, as a count sketch.

    routed_experts: [rows, MoE layers, k], -1 = none. Every pair of a layer and an expert is hashed to a place and a sign, the same
    for every engine; the inner product of two sketches is that of the counts, but for noise of about 1/16. All zero without rows.
    """
    _, num_layers, _ = routed_experts.shape
    experts = routed_experts.astype(np.uint64) + np.arange(num_layers, dtype=np.uint64)[:, None] * np.uint64(1 << 16)
    mixed = experts[routed_experts >= 0] + np.uint64(0x9E3779B97F4A7C15)
    for factor, shift in zip(_MIX, (30, 27), strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    signs = np.where(mixed >> np.uint64(63), 1.0, -1.0)
    sketch = np.bincount((mixed % SIGNATURE_SIZE).astype(np.int64), signs, SIGNATURE_SIZE)
    return (sketch / max(float(np.linalg.norm(sketch)), 1e-30)).astype(np.float32)


def prompt_signature(routed_experts: Sequence[NDArray[np.int16]], num_prompt_tokens: int) -> NDArray[np.float32]:
    """Returns the signature of the prompt's rows, the first of those of a request, which come in parts."""
    return signature(np.concatenate(routed_experts)[:num_prompt_tokens])

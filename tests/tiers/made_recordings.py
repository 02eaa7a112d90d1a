"""Made-up recordings, and what tests of simulations on them share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lynx_rt.research.recording import Recording
from lynx_rt.research.simulate import batched_steps
from lynx_rt.research.tier_simulation import Tier

LAYERS, EXPERTS, TOP_K = 3, 12, 3
TIER = Tier(
    expert_bytes=1000, disk_rate=1e6, expert_seconds=4e-4, layer_seconds=5e-4, measured=1.0
)  # a read takes 1 ms
POLICIES = ["lfu", "lfu:decay=0.5", "lru", "lfru", "score:decay=0.9", "random", "none"]


def made_up(lengths: list[int], seed: int = 0, spread: float = 1.0) -> Recording:
    """Makes requests of these lengths whose tokens prefer some experts."""
    rng = np.random.default_rng(seed)
    order, offsets = batched_steps(np.repeat(np.arange(len(lengths)), lengths), 4)
    rows = len(order)
    taste = rng.normal(size=(7, LAYERS, EXPERTS))
    token = rng.integers(0, 7, rows).astype(np.int32)
    scores = taste[token] * 2 + rng.normal(size=(rows, LAYERS, EXPERTS)) * spread
    return Recording(
        model="made up",
        selection="topk",
        num_model_layers=LAYERS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        layers=np.arange(LAYERS, dtype=np.int32),
        scores=scores.astype(np.float32),
        routed_experts=np.zeros((rows, LAYERS, TOP_K), np.int16),
        step=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
        request=np.repeat(np.arange(len(lengths)), lengths)[order].astype(np.uint64),
        position=np.arange(rows, dtype=np.int32),
        exact=np.zeros(rows, np.uint8),
        token=token,
        next_scores=(scores[:, 1:] + rng.normal(size=(rows, LAYERS - 1, EXPERTS))).astype(np.float32),
    )


def unions(ids: Any, offsets: Any) -> list[list[list[int]]]:
    """Experts of each step [layers][steps], rising, from ids [N, L, k]."""
    steps = list(itertools.pairwise(offsets))
    return [
        [sorted({int(e) for e in ids[a:b, layer].ravel() if e >= 0}) for a, b in steps] for layer in range(ids.shape[1])
    ]

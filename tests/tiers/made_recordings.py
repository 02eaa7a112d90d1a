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


def one_row(experts: list[list[int]]) -> Recording:
    """Makes one request whose steps use these experts [steps][layers]; one expert per row and layer."""
    scores = np.zeros((len(experts), len(experts[0]), 4), np.float32)
    for step, layers in enumerate(experts):
        for layer, e in enumerate(layers):
            scores[step, layer, e] = 9
    rows = len(experts)
    return Recording(
        "made up", "topk", len(experts[0]), 1, True, np.arange(len(experts[0]), dtype=np.int32), scores,
        np.zeros((rows, len(experts[0]), 1), np.int16), np.arange(rows), np.zeros(rows, np.uint64), np.arange(rows, dtype=np.int32),
        np.zeros(rows, np.uint8), token=np.zeros(rows, np.int32), next_scores=np.ascontiguousarray(scores[:, 1:]),
    )  # fmt: skip


def add_prompts(recording: Recording, prompts: list[list[int]], experts: list[list[list[list[int]]]]) -> None:
    """Gives each request, in order of its number, tokens, and experts [tokens][layers][k]."""
    requests = np.unique(recording.request)
    recording.prompt_request = np.repeat(requests, [len(prompt) for prompt in prompts])
    recording.prompt_token = np.array([token for prompt in prompts for token in prompt], np.int32)
    recording.prompt_experts = np.array([token for prompt in experts for token in prompt], np.int16)

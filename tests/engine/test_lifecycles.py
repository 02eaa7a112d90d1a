"""Requests of every kind, made and ended in every way, from several threads at once: the bits of each alone.

Environment variables: LIFECYCLES is the number of requests, LIFECYCLES_SEED the seed of their choice.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import family_models_hybrid as hybrid
import pytest
from family_parity import write
from lifecycles import POLICIES, VOCAB, Cases, Lives

from lynx_rt import Engine

COUNT = int(os.environ.get("LIFECYCLES", "2400"))
SEED = int(os.environ.get("LIFECYCLES_SEED", "0"))
PER_ENGINE = 2000

# name -> options; `tokens` is how many the KV cache holds, of which states take half
ENGINES: dict[str, dict[str, Any]] = {
    "plenty": {"max_num_seqs": 64, "max_num_batched_tokens": 512},
    "preemption": {"max_num_seqs": 16, "max_num_batched_tokens": 40, "block_size": 4, "tokens": 240, "num_threads": 2},
    "policies": {
        "max_num_seqs": 24,
        "max_num_batched_tokens": 64,
        "block_size": 8,
        "tokens": 480,
        "enable_mixed_chunk": False,
    },
    "queue": {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 100,
        "max_num_queued_reqs": 12,
        "enable_prefix_caching": False,
    },
    "states": {
        "model": "hybrid",
        "max_num_seqs": 4,
        "max_num_batched_tokens": 40,
        "block_size": 4,
        "tokens": 300,
        "num_threads": 2,
    },
}


@pytest.fixture(scope="module")
def cases(tiny_path: Any, tmp_path_factory: Any) -> Callable[[str], tuple[str, Cases]]:
    @functools.cache
    def of_model(name: str) -> tuple[str, Cases]:
        if name == "hybrid":
            row = dataclasses.replace(hybrid.NEXT[0], keys=hybrid.NEXT[0].keys | {"vocab_size": VOCAB})
            path = write(row, tmp_path_factory.mktemp(name))
        else:
            path = tiny_path(name)
        return path, Cases(path, 200 if COUNT <= 10_000 else 2000)

    return of_model


@pytest.mark.parametrize("name", ENGINES)
def test_lifecycles(cases: Callable[[str], tuple[str, Cases]], name: str) -> None:
    options = {"num_threads": 1} | ENGINES[name]
    path, requests = cases(options.pop("model", "many"))
    if tokens := options.pop("tokens", 0):
        options["kv_cache_memory_bytes"] = tokens * requests.kv_bytes_per_token
    if name == "policies":
        options["expert_selection"] = POLICIES[0]
    ended: Counter[str] = Counter()
    left, preemptions, aborted, cached = COUNT // len(ENGINES), 0, 0, 0
    while left > 0:
        with Engine(path, tokenizer=requests.tokenizer, **options) as engine:
            seed = SEED + left
            ended += Lives(requests, engine, min(left, PER_ENGINE), seed, policies=name == "policies").run()
            stats = engine.stats()
            engine._core.check_integrity()
            assert stats.num_running == stats.num_waiting == 0
            assert stats.kv_blocks_used == 0
            preemptions += stats.preemptions
            aborted += stats.aborted
            cached += stats.cached_prompt_tokens
        left -= PER_ENGINE
        print(
            f"{name}: {sum(ended.values())} lives, {preemptions} preemptions, {cached} cached tokens, {dict(ended)}",
            flush=True,
        )
    assert aborted > 0, "aborts reach the engine"
    assert name != "preemption" or preemptions > 0
    assert COUNT < 1000 or (cached > 0) == (name != "queue")
    assert name != "queue" or ended["refused"] > 0
    assert COUNT < 1000 or len(ended) >= 8

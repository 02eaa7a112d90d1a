"""Pages of layers with a window are given back behind it: the bits stay, the pages in use are bounded, and more requests fit."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from family_parity import engine, greedy, written_once
from test_families import ROWS

from lynx_rt import _C, OutOfMemoryError

# All layers with a window; full ones between them; heads of two sizes; chunks; windows of one token.
NAMES = [
    "mixtral-window",
    "gpt_oss-windows",
    "exaone_moe-pattern",
    "gemma4_text-k_eq_v",
    "llama4_text-interleaved",
    "mistral-window_of_one",
]
PROMPTS = [np.random.default_rng(n).integers(0, 95, n).tolist() for n in (1, 19, 40, 63)]
PROMPTS += [[*PROMPTS[3][:50], 4, 5], PROMPTS[3][:33]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(id) -> folder of that row, made once."""
    written, rows = written_once(tmp_path_factory), {row.id: row for row in ROWS}
    return functools.cache(lambda name: written(rows[name]))


def used_pages(e, prompt, count):
    """Returns the pages in use after each step of a request."""
    params = _C.SamplingParams()
    params.temperature, params.max_tokens, params.ignore_eos = 0.0, count, True
    e.add_request(prompt, params)
    used = []
    while e.has_unfinished():
        e.step()
        e.check_integrity()
        used.append(e.stats()["kv_blocks_used"])
    return used


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_all_pages(checkpoint, name):
    """A page that holds the longest sequence is never given back. Small pages, preemption and the prefix cache give the same bits."""
    path = checkpoint(name)
    whole = engine(path, block_size=128, max_num_seqs=1, enable_prefix_caching=False)
    expected = [greedy(whole, [prompt], 32)[0] for prompt in PROMPTS]
    per_token = whole.model_info()["kv_bytes_per_token"]
    plain = engine(path, block_size=4, max_num_batched_tokens=16, enable_prefix_caching=False, num_threads=2)
    assert greedy(plain, PROMPTS, 32) == expected
    scarce = engine(
        path, block_size=4, max_model_len=100, kv_cache_memory_bytes=100 * per_token, max_num_batched_tokens=16
    )
    assert greedy(scarce, PROMPTS, 32) == expected
    assert scarce.stats()["kv_blocks_used"] == 0
    cached = engine(path, block_size=4, max_num_batched_tokens=16)
    for _ in range(2):
        assert greedy(cached, PROMPTS, 32) == expected
        cached.check_integrity()
    assert cached.stats()["cached_prompt_tokens"] > 100


def test_pages_in_use_are_bounded(checkpoint):
    options = {"block_size": 4, "max_num_seqs": 1, "max_num_batched_tokens": 8, "enable_prefix_caching": False}
    # A window of 7 tokens is in three pages at most, and a step has two or three more.
    used = used_pages(engine(checkpoint("mixtral-window"), **options), PROMPTS[2], 80)
    assert len(used) >= 84 and 3 <= max(used[5:]) <= max(used) <= 6
    assert max(used_pages(engine(checkpoint("mixtral-plain"), **options), PROMPTS[2], 80)) == 30
    # Two of three layers have a window of 3 tokens, in two pages at most.
    used = used_pages(engine(checkpoint("gpt_oss-windows"), **options), PROMPTS[2], 80)
    assert 10 <= max(used) <= math.ceil((30 + 2 * 5) / 3)


def test_more_requests_fit(checkpoint):
    """Four requests of 120 tokens run at once in half of the memory that all of their K and V would take."""
    path = checkpoint("gpt_oss-windows")
    memory = 2 * 120 * engine(path).model_info()["kv_bytes_per_token"]
    options = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, "enable_prefix_caching": False}
    e = engine(path, kv_cache_memory_bytes=memory, max_model_len=128, **options)
    assert e.model_info()["kv_bytes"] <= memory
    prompts = [PROMPTS[1][i:] + PROMPTS[1][:i] for i in range(4)]
    together = greedy(e, prompts, 101)
    assert e.stats()["preemptions"] == 0
    assert together == [greedy(e, [prompt], 101)[0] for prompt in prompts]


def test_longer_requests_fit(checkpoint):
    options = {"block_size": 4, "max_num_seqs": 1, "max_num_batched_tokens": 8, "enable_prefix_caching": False}
    for name, longer in (("mixtral-plain", 1.0), ("gpt_oss-windows", 2.0), ("mixtral-window", 3.0)):
        path = checkpoint(name)
        memory = 40 * engine(path).model_info()["kv_bytes_per_token"]
        info = engine(path, kv_cache_memory_bytes=memory, **options).model_info()
        assert info["max_model_len"] >= 40 * longer and info["kv_bytes"] <= memory
        assert longer > 1 or info["max_model_len"] == 40
    # Many short requests would want more windows; one long request of the given length comes first.
    many = options | {"max_num_seqs": 64, "max_num_batched_tokens": 64}
    path = checkpoint("gpt_oss-windows")
    per_layer = engine(path).model_info()["kv_bytes_per_token"] // 3
    least = (32 + 2 * (3 + 16)) * 4 * per_layer
    e = engine(path, max_model_len=128, kv_cache_memory_bytes=least, **many)
    assert len(greedy(e, [PROMPTS[3]], 64)[0]) == 64
    with pytest.raises(OutOfMemoryError, match=f"kv_cache_memory_bytes={least} or more, or max_model_len=124 or less"):
        engine(path, max_model_len=128, kv_cache_memory_bytes=least - 1, **many)


def test_inspect_tells_what_a_sequence_takes(checkpoint):
    for name, tokens in (("mixtral-plain", (128, 128)), ("mixtral-window", (7, 7)), ("gpt_oss-windows", (128, 3, 3))):
        facts = _C.inspect(checkpoint(name))
        assert facts["kv_bytes_per_sequence"] * len(tokens) == facts["kv_bytes_per_token"] * sum(tokens)

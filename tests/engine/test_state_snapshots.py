"""The prefix cache of models with states beside pages: requests that begin at a snapshot have the bits of a pass of their own, however
prefixes are shared, cut, ended, preempted or evicted."""

from __future__ import annotations

import dataclasses
import random

import family_models_hybrid as hybrid
import numpy as np
import pytest
from driving import Job, Result, alone, engine, params, record, run
from family_parity import write

from lynx_rt import _C

PAGE = 16
ROWS = [hybrid.NEXT[0], hybrid.MOE_TEXT[2], hybrid.DENSE_TEXT[3]]
LOGPROBS = {"max_tokens": 6, "logprobs": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(ROWS[0], tmp_path_factory.mktemp("hybrid"))


@pytest.fixture(scope="module")
def slot(path):
    """Bytes of a slot: the states of three layers, each padded to 64 bytes."""
    return 3 * -(-_C.inspect(path)["state_bytes_per_sequence"] // 3 // 64) * 64


def sequence(length, seed=0):
    return np.random.default_rng(seed).integers(0, 97, length).tolist()


def bits(results):
    return [r.bits for r in results]


def cached(e, prompt, **options):
    """Runs a prompt; returns how many of its tokens the cache had."""
    return run(e, [Job(prompt, {"max_tokens": 2} | options)], check=True)[0].num_cached_tokens


def shared_prompts():
    """Prompts that share prefixes of one page, of none, of whole pages, and of a token more or less."""
    base, lengths = sequence(100), (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 80, 96)
    return [base[:length] + sequence(5 * i % 37, 100 + i) for i, length in enumerate(lengths)] + [base, base[:48]]


def test_boundaries(path):
    e = engine(path, block_size=PAGE)
    base = sequence(100)
    assert cached(e, base[:50]) == 0
    assert cached(e, base[:50]) == 48  # the last page boundary of the first prompt
    assert cached(e, base[:48]) == 0  # the last token is computed for its logits, and two pages have no state yet
    assert cached(e, base[:48]) == 32
    assert cached(e, base[:40] + sequence(30, 1)) == 32
    assert cached(e, base[:20] + sequence(30, 2)) == 0  # leaves the prefix after a page without a state
    assert cached(e, base[:20] + sequence(30, 3)) == 16
    assert cached(e, base) == 48
    assert cached(e, base[:50], cache_salt="a") == 0
    assert cached(e, base[:50], cache_salt="a") == 48
    assert cached(e, base[:50], prompt_logprobs=1) == 0
    assert cached(engine(path, enable_prefix_caching=False), base) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_shared_prefixes(row, dtype, tmp_path):
    """One after the other, twice, and then all together."""
    model, jobs = write(row, tmp_path), [Job(prompt, LOGPROBS) for prompt in shared_prompts()]
    expected = bits(alone(model, jobs, dtype=dtype))
    e = engine(model, dtype=dtype, block_size=PAGE, num_threads=2, max_num_batched_tokens=40)
    for _ in range(2):
        results = [run(e, [job], check=True)[0] for job in jobs]
        assert bits(results) == expected
    assert all(r.num_cached_tokens == (len(j.prompt) - 1) // PAGE * PAGE for r, j in zip(results, jobs, strict=True))
    together = [dataclasses.replace(job, arrival=i // 3) for i, job in enumerate(jobs)]
    assert bits(run(e, together, check=True)) == expected
    e = engine(model, dtype=dtype, block_size=4, num_threads=2, max_num_batched_tokens=40, enable_mixed_chunk=False)
    assert bits(run(e, together, check=True)) == expected


def test_chat(path):
    """Every turn has the turns before it, and begins at the last one's prompt."""
    e, prompt, last = engine(path, block_size=PAGE), sequence(37), 0
    for turn in range(4):
        job = Job(prompt, {"max_tokens": 17, "logprobs": 1})
        result = run(e, [job], check=True)[0]
        assert result.bits == alone(path, [job])[0].bits
        assert result.num_cached_tokens == (last - 1 if last else 0) // PAGE * PAGE
        last, prompt = len(prompt), prompt + result.tokens + sequence(9, turn + 1)


@pytest.mark.parametrize("seqs, slots", [(1, 2), (2, 4), (3, 4), (4, 4), (5, 5)])
def test_few_slots(path, slot, seqs, slots):
    """Requests take the slots of snapshots, down to the last one."""
    options = {} if slots == 2 * seqs else {"kv_cache_memory_bytes": 2 * slots * slot}
    e = engine(path, block_size=4, max_num_seqs=seqs, **options)
    jobs = [Job(p, LOGPROBS) for p in shared_prompts() if len(p) + 6 <= e.model_info()["max_model_len"]]
    expected, order = bits(alone(path, jobs)), random.Random(slots)
    for _ in range(3):
        chosen = [order.randrange(len(jobs)) for _ in range(16)]
        results = run(e, [dataclasses.replace(jobs[i], arrival=2 * k) for k, i in enumerate(chosen)], check=True)
        assert bits(results) == [expected[i] for i in chosen]
    assert e.stats()["cached_prompt_tokens"] > 0


def test_one_slot(path, slot):
    """No snapshot is made where the request has the only slot."""
    e, job = engine(path, block_size=4, max_num_seqs=1, kv_cache_memory_bytes=3 * slot), Job(sequence(20), LOGPROBS)
    expected = alone(path, [job])[0].bits
    for _ in range(3):
        result = run(e, [job], check=True)[0]
        assert (result.bits, result.num_cached_tokens) == (expected, 0)


def test_few_pages(path, slot):
    """Snapshots go with their pages; preempted requests begin at what is left."""
    jobs = [Job(prompt[:70], {"max_tokens": 30, "logprobs": 1}) for prompt in shared_prompts()]
    expected = bits(alone(path, jobs))
    e = engine(path, block_size=4, max_num_seqs=4, kv_cache_memory_bytes=14 * slot)
    assert e.stats()["kv_blocks_total"] * 4 < 4 * 100
    for arrivals in (0, 2):
        results = run(e, [dataclasses.replace(job, arrival=arrivals * i) for i, job in enumerate(jobs)], check=True)
        assert bits(results) == expected
    assert e.stats()["preemptions"] > 0 and e.stats()["cached_prompt_tokens"] > 0


def test_aborts(path):
    """Requests that are aborted in the middle of a prompt or an answer leave whole snapshots or none."""
    jobs = [Job(prompt, LOGPROBS) for prompt in shared_prompts()]
    expected = bits(alone(path, jobs))
    e = engine(path, block_size=4, max_num_seqs=4, max_num_batched_tokens=8)
    order = random.Random(1)
    running, results = {}, {}
    for step in range(400):
        if step < 300 and len(running) < 6:
            i = order.randrange(len(jobs))
            request = e.add_request(jobs[i].prompt, params(**jobs[i].options))
            running[request], results[request] = i, Result()
        if step < 300 and order.random() < 0.1:
            doomed = order.choice(list(running))
            assert e.abort(doomed)
            running.pop(doomed)
        record(results, e.step())
        e.check_integrity()
        for request in [r for r in running if results[r].finish_reason]:
            assert results[request].bits == expected[running.pop(request)]
    assert not running and not e.has_unfinished()
    assert e.stats()["cached_prompt_tokens"] > 0


def test_selection(path):
    """States of rows that share experts with others are nobody else's; exact requests have their own bits."""
    jobs = [Job(prompt, LOGPROBS | {"exact": i % 2 == 0}) for i, prompt in enumerate(shared_prompts())]
    expected = bits(alone(path, jobs))
    e = engine(path, block_size=4, expert_selection="lynx:alpha=2,theta=1.5", max_num_batched_tokens=24)
    for _ in range(2):
        results = run(e, [dataclasses.replace(job, arrival=i) for i, job in enumerate(jobs)], check=True)
        assert bits(results)[::2] == expected[::2]
    assert e.stats()["cached_prompt_tokens"] > 0


def test_routed_experts(path):
    """Experts of tokens that a snapshot stands for are those of the pass that computed them."""
    e = engine(path, block_size=PAGE, enable_return_routed_experts=True)

    def experts():
        e.add_request(sequence(50), params(max_tokens=3))
        parts = []
        while e.has_unfinished():
            parts += [np.asarray(out.routed_experts) for out in e.step()]
        return np.concatenate([part for part in parts if part.size])

    first = experts()
    np.testing.assert_array_equal(experts(), first)
    assert e.stats()["cached_prompt_tokens"] == 48

"""The bookkeeping of KV pages, tested through the engine: gauges, check_integrity(), the prefix cache.

The state machine adds, steps and aborts at random on a cache that is far too small, verifies the bookkeeping after every
step, and at the end compares each request's output with its output alone.
"""

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, Result, alone, engine, params, record, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

NAME = "plain"
VOCAB = tm.ALL[NAME].vocab
BASE = np.random.default_rng(11).integers(0, VOCAB, 80).tolist()  # prompts are cut from it, so that many share a prefix


def kv_bytes(path, pages, block_size):
    return pages * block_size * engine(path).model_info()["kv_bytes_per_token"]


def small_engine(path, pages, block_size=4, **options):
    return engine(path, kv_cache_memory_bytes=kv_bytes(path, pages, block_size), block_size=block_size, **options)


def machine(path, mixed):
    expected: dict[tuple, tuple] = {}  # (prompt, options) -> bits alone

    def bits_alone(job):
        key = (*job.prompt, -1, *sorted(job.options.items()))
        if key not in expected:
            expected[key] = alone(path, [job])[0].bits
        return expected[key]

    class Machine(RuleBasedStateMachine):
        live = Bundle("live")

        def __init__(self):
            super().__init__()
            self.e = small_engine(path, 16, max_num_seqs=4, max_num_batched_tokens=11, enable_mixed_chunk=mixed)
            self.jobs, self.results, self.aborted = {}, {}, set()

        @rule(
            target=live,
            start=st.sampled_from([0, 0, 0, 1, 5]),
            length=st.integers(1, 48),
            count=st.integers(1, 40),
            seed=st.none() | st.integers(0, 3),
        )
        def add(self, start, length, count, seed):
            job = Job(BASE[start : start + length], {"max_tokens": count, "logprobs": 1})
            if seed is not None:
                job.options |= {"temperature": 0.9, "seed": seed}
            i = self.e.add_request(job.prompt, params(**job.options))
            self.jobs[i], self.results[i] = job, Result()
            return i

        @rule(count=st.integers(1, 12))
        def step(self, count):
            for _ in range(count):
                record({i: r for i, r in self.results.items() if i not in self.aborted}, self.e.step())
                self.e.check_integrity()

        @rule(i=consumes(live))
        def abort(self, i):
            assert self.e.abort(i) == (self.results[i].finish_reason is None)
            self.aborted.add(i)
            assert not self.e.abort(i)

        @invariant()
        def gauges(self):
            s = self.e.stats()
            unfinished = [i for i, r in self.results.items() if r.finish_reason is None and i not in self.aborted]
            assert s["num_running"] + s["num_waiting"] == len(unfinished)
            assert s["num_running"] <= 4 and s["kv_blocks_used"] <= s["kv_blocks_total"] == 16
            assert self.e.has_unfinished() == bool(unfinished)
            assert s["num_running"] or not s["kv_blocks_used"]

        def teardown(self):
            for _ in range(5000):
                if not self.e.has_unfinished():
                    break
                self.step(1)
            s = self.e.stats()
            assert (s["num_running"], s["num_waiting"], s["kv_blocks_used"]) == (0, 0, 0)
            done = [i for i, r in self.results.items() if r.finish_reason is not None]
            assert s["finished"] == len(done) and s["finished"] + s["aborted"] == len(self.jobs)
            for i in done:
                assert self.results[i].finish_reason == "length"
                # The context ends at 16 pages of 4 tokens here, and at 256 alone.
                job = self.jobs[i]
                job.options["max_tokens"] = min(job.options["max_tokens"], 64 - len(job.prompt))
                assert self.results[i].bits == bits_alone(job)

    return Machine


@pytest.mark.parametrize("mixed", [True, False])
def test_random_life(tiny_path, mixed):
    run_state_machine_as_test(
        machine(tiny_path(NAME), mixed), settings=settings(max_examples=20, stateful_step_count=30)
    )


@settings(max_examples=15)
@given(block_size=st.integers(1, 20), lengths=st.lists(st.integers(1, 60), min_size=2, max_size=5))
def test_hits_are_the_common_whole_pages(tiny_path, block_size, lengths):
    """One after the other in a cache that holds all: a prompt finds what any earlier request computed of its prefix."""
    e = engine(tiny_path(NAME), block_size=block_size)
    computed = 0
    for n in lengths:
        r = run(e, [Job(BASE[:n], {"max_tokens": 1})], check=True)[0]
        assert r.num_cached_tokens == min(computed, n - 1) // block_size * block_size
        computed = max(computed, n // block_size * block_size)


def test_answers_are_found_again_too(tiny_path):
    """A conversation that goes on finds the pages of the answer: all tokens but the last were computed."""
    e = engine(tiny_path(NAME), block_size=4)
    first = run(e, [Job(BASE[:10], {"max_tokens": 11})])[0]
    second = run(e, [Job(BASE[:10] + first.tokens + BASE[:3])])[0]
    assert second.num_cached_tokens == 20
    s = e.stats()
    assert s["cached_prompt_tokens"] == 20 and s["prompt_tokens"] == 10 + 24


def test_running_requests_share_pages(tiny_path):
    e = engine(tiny_path(NAME), block_size=8)
    e.add_request(BASE[:33], params(max_tokens=30))
    e.step()
    alone_used = e.stats()["kv_blocks_used"]
    for _ in range(3):
        e.add_request(BASE[:33], params(max_tokens=30))
    e.step()
    assert alone_used == 5 and e.stats()["kv_blocks_used"] == 5 + 3  # four pages in common, one each of their own
    while e.has_unfinished():
        e.step()
        e.check_integrity()
    assert e.stats()["kv_blocks_used"] == 0


def test_a_differing_token_hides_what_follows(tiny_path):
    e = engine(tiny_path(NAME), block_size=4)
    run(e, [Job(BASE[:21], {"max_tokens": 1})])
    for position, cached in [(0, 0), (3, 0), (4, 4), (11, 8), (19, 16), (20, 20)]:
        prompt = BASE[:21]
        prompt[position] = (prompt[position] + 1) % VOCAB
        assert run(e, [Job(prompt, {"max_tokens": 1})])[0].num_cached_tokens == cached
    # The same tokens elsewhere are other pages.
    assert run(e, [Job(BASE[4:21], {"max_tokens": 1})])[0].num_cached_tokens == 0


def cached(e, prompt):
    return run(e, [Job(prompt, {"max_tokens": 1})], check=True)[0].num_cached_tokens


def test_least_recently_used_pages_go_first(tiny_path):
    """Eight pages of 4: A and B leave two and three behind, a third prompt needs four."""
    e = small_engine(tiny_path(NAME), 8)
    a, b, c = BASE[:9], BASE[20:33], BASE[40:56]
    assert (cached(e, a), cached(e, b)) == (0, 0)
    assert (cached(e, a), cached(e, b)) == (8, 12)
    assert cached(e, c) == 0
    assert cached(e, b) == 12, "the most recently used prompt is still there"


def test_the_ends_of_prefixes_go_before_their_beginnings(tiny_path):
    """Eight pages of 4: a prompt leaves six full ones and a seventh; another takes four, of which three were the first one's last."""
    e = small_engine(tiny_path(NAME), 8)
    assert cached(e, BASE[:25]) == 0 and cached(e, BASE[40:56]) == 0
    assert cached(e, BASE[:25]) == 16


def test_without_prefix_cache(tiny_path):
    e = engine(tiny_path(NAME), enable_prefix_caching=False)
    assert [run(e, [Job(BASE[:40])], check=True)[0].num_cached_tokens for _ in range(2)] == [0, 0]
    assert e.stats()["cached_prompt_tokens"] == 0


def test_prompt_logprobs_need_every_row(tiny_path):
    e = engine(tiny_path(NAME), block_size=4)
    job = Job(BASE[:21], {"max_tokens": 1, "prompt_logprobs": 1})
    first, second = run(e, [job])[0], run(e, [job])[0]
    assert second.num_cached_tokens == 0 and first.bits == second.bits and len(first.prompt_logprobs) == 21

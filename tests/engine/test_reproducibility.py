"""With topk, a request's tokens and logprobs are the same bits in any batch and with any split of its work.

The reference is each request alone, with prefix cache off, prefill in one piece, and one thread. Everything that may differ is
then varied, one thing at a time and at random together.
"""

import functools

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, alone, engine, params, run
from hypothesis import given, settings
from hypothesis import strategies as st
from isas import ISAS

from lynx_rt import ValidationError

MODELS = ["groups3", "bf16", "f16_fused"]
SHARED = list(range(10, 58))  # a prefix that several prompts begin with
ACTING = ["lynx:alpha=8,beta=4,theta=1", "oea:k0=2"]


def mixed_jobs(vocab):
    """Short and long prompts, some with a common prefix; greedy and sampled; with and without prompt logprobs."""
    rng = np.random.default_rng(7)
    sampled = {"temperature": 0.8, "top_p": 0.95, "top_k": 40}
    prompts = [rng.integers(0, vocab, n).tolist() for n in (1, 3, 16, 17, 61)]
    prompts += [SHARED[:30], [*SHARED[:32], 5, 6], [*SHARED, 9]]
    options = [{"logprobs": 3, "max_tokens": 10 + 3 * i} for i in range(len(prompts))]
    for i in (1, 4, 6):
        options[i] |= sampled | {"seed": 100 + i}
    options[4]["prompt_logprobs"] = 2
    options[7]["prompt_logprobs"] = 0
    options[2] |= {"repetition_penalty": 1.3, "frequency_penalty": 0.4}
    return [Job(p, o) for p, o in zip(prompts, options)]


@pytest.fixture(scope="module")
def case(tiny_path):
    """Returns case(model) -> path, jobs, the bits of each job alone."""

    @functools.cache
    def make(model):
        path, jobs = tiny_path(model), mixed_jobs(tm.ALL[model].vocab)
        return path, jobs, [r.bits for r in alone(path, jobs)]

    return make


def check(case, e, arrivals=None):
    _, jobs, expected = case
    if arrivals:
        jobs = [Job(j.prompt, j.options, a) for j, a in zip(jobs, arrivals)]
    results = run(e, jobs, check=True)
    for i, (r, bits) in enumerate(zip(results, expected)):
        assert r.bits == bits, f"request {i} differs"
    return results


def kv_bytes(path, tokens):
    info = engine(path).model_info()
    return tokens * info["kv_bytes_per_token"]


@pytest.mark.parametrize("model", MODELS)
def test_the_yardstick_is_not_trivial(case, model):
    _, jobs, expected = case(model)
    assert all(len(tokens) == j.options["max_tokens"] for j, (tokens, *_) in zip(jobs, expected))
    assert len({t for tokens, *_ in expected for t in tokens}) > 30


@pytest.mark.parametrize("model", MODELS)
def test_in_one_batch(case, model):
    check(case(model), engine(case(model)[0]))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("arrivals", [range(8), range(8, 0, -1), [0, 0, 9, 9, 3, 3, 20, 2]])
def test_arrival_times(case, model, arrivals):
    check(case(model), engine(case(model)[0]), list(arrivals))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rows, seqs", [(1, 1), (2, 2), (5, 3), (8, 3), (8, 8), (33, 8)])
def test_chunked_prefill(case, model, rows, seqs):
    check(case(model), engine(case(model)[0], max_num_batched_tokens=rows, max_num_seqs=seqs))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("block_size", [1, 5, 16])
@pytest.mark.parametrize("caching", [False, True])
def test_preemption(case, model, block_size, caching):
    path = case(model)[0]
    e = engine(path, kv_cache_memory_bytes=kv_bytes(path, 112), block_size=block_size, enable_prefix_caching=caching)
    results = check(case(model), e)
    assert e.stats()["preemptions"] == sum(r.num_preemptions for r in results) > 0
    e.reset_stats()
    assert e.stats()["preemptions"] == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tokens", [112, 4096])
def test_prompts_in_steps_of_their_own(case, model, tokens):
    path = case(model)[0]
    options = {
        "enable_mixed_chunk": False,
        "kv_cache_memory_bytes": kv_bytes(path, tokens),
        "max_num_batched_tokens": 24,
    }
    check(case(model), engine(path, **options), [0, 0, 9, 9, 3, 3, 20, 2])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads(case, model, threads):
    check(case(model), engine(case(model)[0], num_threads=threads, max_num_batched_tokens=64))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("block_size", [1, 5, 16, 256])
def test_block_size_and_prefix_cache(case, model, block_size):
    path = case(model)[0]
    check(case(model), engine(path, block_size=block_size, enable_prefix_caching=False))
    e = engine(path, block_size=block_size)
    check(case(model), e)
    again = check(case(model), e)
    # The whole pages of a prompt, but for its last token's, unless prompt logprobs are asked for.
    expected = [
        0 if "prompt_logprobs" in j.options else (len(j.prompt) - 1) // block_size * block_size for j in case(model)[1]
    ]
    assert [r.num_cached_tokens for r in again] == expected


@pytest.mark.parametrize("isa", ISAS)
def test_every_isa(tiny_path, isa):
    path = tiny_path("bf16")
    jobs = mixed_jobs(tm.ALL["bf16"].vocab)
    expected = [r.bits for r in alone(path, jobs, isa=isa)]
    check((path, jobs, expected), engine(path, isa=isa, max_num_batched_tokens=9, max_num_seqs=5, num_threads=2))


@settings(max_examples=25)
@given(
    model=st.sampled_from(MODELS),
    seqs=st.integers(1, 9),
    rows=st.integers(0, 40),
    tokens=st.sampled_from([96, 128, 200, 4096]),
    block_size=st.integers(1, 24),
    caching=st.booleans(),
    mixed=st.booleans(),
    threads=st.integers(1, 2),
    arrivals=st.lists(st.integers(0, 30), min_size=8, max_size=8),
)
def test_everything_at_once(case, model, seqs, rows, tokens, block_size, caching, mixed, threads, arrivals):
    path = case(model)[0]
    e = engine(
        path,
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + rows,
        kv_cache_memory_bytes=kv_bytes(path, (tokens // block_size) * block_size),
        block_size=block_size,
        enable_prefix_caching=caching,
        enable_mixed_chunk=mixed,
        num_threads=threads,
    )
    check(case(model), e, arrivals)


@pytest.mark.parametrize(
    "name, dtype", [("plain", "float32"), ("bf16_legacy", "bfloat16"), ("f16", "float16"), ("dense", "float32")]
)
def test_forward_in_chunks(tiny_path, name, dtype):
    ids = np.random.default_rng(1).integers(0, tm.ALL[name].vocab, 45).tolist()
    e = engine(tiny_path(name), dtype=dtype)
    whole = e.forward(ids)
    for chunk in range(1, 47):
        np.testing.assert_array_equal(e.forward(ids, chunk=chunk).view(np.uint32), whole.view(np.uint32))
    np.testing.assert_array_equal(e.forward(ids[:20]), whole[:20])
    for options in ({"num_threads": 3}, {"block_size": 7}, {"max_num_batched_tokens": 16, "max_num_seqs": 1}):
        np.testing.assert_array_equal(engine(tiny_path(name), dtype=dtype, **options).forward(ids), whole)


def test_sampling_seeds(tiny_path):
    """A seed repeats, in any company; other seeds differ; without one the engine's seed and the request's number decide."""
    path = tiny_path("plain")
    options = {"temperature": 0.8, "max_tokens": 24}
    jobs = [Job([3, 4, 5], options | {"seed": s}) for s in (1, 2, 1, 2**64 - 1)]
    tokens = [r.tokens for r in run(engine(path), jobs)]
    assert tokens == [r.tokens for r in alone(path, jobs)]
    assert tokens[0] == tokens[2] and len(set(map(tuple, tokens))) == 3

    unseeded = [Job([3, 4, 5], options)] * 3
    first = [r.tokens for r in run(engine(path, seed=5), unseeded)]
    assert first == [r.tokens for r in run(engine(path, seed=5, max_num_seqs=1), unseeded)]
    assert first != [r.tokens for r in run(engine(path, seed=6), unseeded)]
    assert len(set(map(tuple, first))) == 3


def remapped(e):
    return sum(layer["remapped_pairs"] for layer in e.stats()["layers"])


def many_jobs(exact=(), count=8):
    rng = np.random.default_rng(3)
    vocab = tm.ALL["many"].vocab
    return [
        Job(rng.integers(0, vocab, 6 + i).tolist(), {"logprobs": 2, "max_tokens": 40, "exact": i in exact})
        for i in range(count)
    ]


@pytest.mark.parametrize("selection", ["lynx:theta=0", "oea:k0=8", "lynx:alpha=8,beta=4,theta=0", "off", ""])
def test_identity_selections(tiny_path, selection):
    path = tiny_path("many")
    expected = [r.bits for r in alone(path, many_jobs())]
    e = engine(path, expert_selection=selection)
    assert [r.bits for r in run(e, many_jobs())] == expected
    assert remapped(e) == 0


@pytest.mark.parametrize("selection", ACTING)
@pytest.mark.parametrize("mixed", [False, True])
def test_exact_requests_in_a_selecting_batch(tiny_path, selection, mixed):
    path, exact = tiny_path("many"), (1, 4, 7)
    expected = [r.bits for r in alone(path, many_jobs())]
    e = engine(path, expert_selection=selection, enable_mixed_chunk=mixed)
    results = [r.bits for r in run(e, many_jobs(exact), check=True)]
    assert remapped(e) > 0, "the selection never acted: this test shows nothing"
    assert [results[i] for i in exact] == [expected[i] for i in exact]
    assert any(results[i] != expected[i] for i in range(8) if i not in exact)


@pytest.mark.parametrize("selection", ACTING)
def test_a_request_alone_is_never_changed(tiny_path, selection):
    path = tiny_path("many")
    jobs = many_jobs()[:3]
    assert [r.bits for r in alone(path, jobs, expert_selection=selection)] == [r.bits for r in alone(path, jobs)]


@pytest.mark.parametrize("selection", ACTING)
@pytest.mark.parametrize("block_size, count", [(4, 8), (16, 8), (4, 3), (4, 2)])
def test_pages_computed_under_selection_are_not_shared(tiny_path, selection, block_size, count):
    path = tiny_path("many")
    e = engine(path, expert_selection=selection, block_size=block_size)
    first = run(e, many_jobs(exact=(2,), count=count))
    assert remapped(e) > 0
    for i, (job, r) in enumerate(zip(many_jobs(), first)):
        # Goes on from what the first request said: its prompt's pages may be found again, those of its answer may not, unless it
        # was exact.
        follow = Job(job.prompt + r.tokens + [1], {"logprobs": 2, "exact": True})
        got = run(e, [follow, *many_jobs()], check=True)[0]
        assert got.bits == alone(path, [follow])[0].bits, f"after request {i}"
        own = len(job.prompt + r.tokens) if i == 2 else len(job.prompt) + 1
        assert got.num_cached_tokens <= own // block_size * block_size
        if i == 2:
            assert got.num_cached_tokens >= (own - 1) // block_size * block_size


def test_selecting_requests_after_preemption_leave_exact_ones_alone(tiny_path):
    path = tiny_path("many")
    jobs = many_jobs(exact=(0, 5))
    expected = [r.bits for r in alone(path, many_jobs())]
    e = engine(path, expert_selection=ACTING[0], block_size=4, kv_cache_memory_bytes=kv_bytes(path, 160))
    results = [r.bits for r in run(e, jobs, check=True)]
    assert e.stats()["preemptions"] > 0 and remapped(e) > 0
    assert [results[0], results[5]] == [expected[0], expected[5]]


def test_selection_at_run_time(tiny_path):
    path = tiny_path("many")
    expected = [r.bits for r in alone(path, many_jobs())]
    e = engine(path, enable_prefix_caching=False)
    assert e.expert_selection() == "topk"
    for selection, acts in [("oea:k0=1", True), ("topk", False), ("lynx", True), ("off", False)]:
        e.set_expert_selection(selection)
        e.reset_stats()
        same = [r.bits for r in run(e, many_jobs())] == expected
        assert same != acts and (remapped(e) > 0) == acts
    e.set_expert_selection("oea:k0=3")
    for wrong in ("oea:k0=9", "oea:k0=0", "lynx:gamma=1", "best", "topk:k=1", "lynx:theta=nan"):
        with pytest.raises(ValidationError):
            e.set_expert_selection(wrong)
        assert e.expert_selection() == "oea:k0=3"

    # From the next step on: what was said before the switch stands.
    e.set_expert_selection("topk")
    ids = [e.add_request(j.prompt, params(**j.options)) for j in many_jobs()]
    said = {i: [] for i in ids}
    for step in range(60):
        if step == 10:
            e.set_expert_selection("oea:k0=1")
        for o in e.step():
            said[o.request_id] += o.token_ids
    assert [said[i][:10] for i in ids] == [bits[0][:10] for bits in expected]
    assert [said[i] for i in ids] != [bits[0] for bits in expected]


def test_nano(nano_path):
    rng = np.random.default_rng(0)
    jobs = [Job(rng.integers(3, 4096, n).tolist(), {"logprobs": 1, "max_tokens": 12}) for n in (2, 19, 40, 75)]
    expected = [r.bits for r in alone(nano_path, jobs)]
    e = engine(nano_path, num_threads=2, max_num_batched_tokens=24, max_num_seqs=4, block_size=8)
    assert [r.bits for r in run(e, jobs)] == expected

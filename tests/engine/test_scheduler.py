"""Order, budgets, limits and errors of the engine: what is refused with which text, and that everything else goes on."""

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, Result, alone, engine, params, record, run

from lynx_rt import EngineClosedError, OutOfMemoryError, QueueFullError, ValidationError

NAME = "plain"
VOCAB = tm.ALL[NAME].vocab
PROMPT = np.random.default_rng(2).integers(0, VOCAB, 60).tolist()


def kv_bytes(path, tokens):
    return tokens * engine(path).model_info()["kv_bytes_per_token"]


def steps_until(e, i, count=1000):
    """Steps until request i has an output."""
    for n in range(1, count):
        if any(o.request_id == i for o in e.step()):
            return n
    raise AssertionError(f"request {i} said nothing in {count} steps")


@pytest.mark.parametrize("rows, length, steps", [(8, 8, 1), (8, 9, 2), (8, 40, 5), (1, 7, 7), (64, 60, 1)])
def test_prefill_takes_the_whole_budget(tiny_path, rows, length, steps):
    e = engine(tiny_path(NAME), max_num_seqs=1, max_num_batched_tokens=rows)
    assert steps_until(e, e.add_request(PROMPT[:length], params())) == steps


def test_decode_rows_come_first(tiny_path):
    """A running request gets a token in every step, whatever prompts arrive meanwhile."""
    e = engine(tiny_path(NAME), max_num_seqs=4, max_num_batched_tokens=8)
    first = e.add_request(PROMPT[:5], params(max_tokens=30))
    e.step()
    others = [e.add_request(PROMPT[i:], params(max_tokens=2)) for i in range(3)]
    said = []
    for _ in range(25):
        out = e.step()
        assert sum(o.request_id == first for o in out) == 1
        said += [o.request_id for o in out if o.request_id in others]
    assert said[0] == others[0] and e.stats()["num_running"] <= 4


def test_prompts_in_steps_of_their_own(tiny_path):
    """Without mixed chunks a step works on prompts or on running requests, and selection acts on every decode row."""
    e = engine(tiny_path("many"), enable_mixed_chunk=False, max_num_batched_tokens=16, expert_selection="lynx")
    tokens = {}
    for i in range(6):
        tokens[e.add_request([t % 71 for t in PROMPT[: 10 + i]], params(max_tokens=12))] = 0
        for _ in range(3):
            out = e.step()
            assert len({tokens[o.request_id] > 0 for o in out}) <= 1, "a first token beside a later one"
            for o in out:
                tokens[o.request_id] += 1
    while e.has_unfinished():
        e.step()
    s = e.stats()
    assert s["decode_rows"] == 6 * 11 and all(layer["rows"] == s["decode_rows"] for layer in s["layers"])
    assert all(layer["active"] < layer["union_before"] for layer in s["layers"])


def test_first_come_first_served(tiny_path):
    e = engine(tiny_path(NAME), max_num_seqs=2, max_num_batched_tokens=16)
    ids = [e.add_request(PROMPT[: 3 + i], params(max_tokens=4)) for i in range(7)]
    finished = []
    while e.has_unfinished():
        assert e.stats()["num_running"] <= 2
        finished += [o.request_id for o in e.step() if o.finish_reason]
    assert finished == ids


@pytest.mark.parametrize("mixed", [True, False])
def test_short_requests_do_not_starve_a_long_prompt(tiny_path, mixed):
    """A long prompt that has begun and waits for pages comes before requests that arrive later, however small."""
    path = tiny_path(NAME)
    e = engine(path, max_num_seqs=6, max_num_batched_tokens=40, block_size=4, enable_prefix_caching=False,
               kv_cache_memory_bytes=kv_bytes(path, 56), enable_mixed_chunk=mixed)  # fmt: skip
    for i in range(4):  # twelve of fourteen pages, which fall free one request after the other
        e.add_request(PROMPT[i:11], params(max_tokens=2 + i))
    long = e.add_request(PROMPT[:50], params(max_tokens=2))
    for n in range(200):
        for i in range(2):
            e.add_request(PROMPT[(n + i) % 40 :][:1], params(max_tokens=4))
        if any(o.request_id == long for o in e.step()):
            break
    assert n < 30


def test_counters(tiny_path):
    e = engine(tiny_path(NAME), block_size=4)
    run(e, [Job(PROMPT[:9], {"max_tokens": 3}), Job(PROMPT[:2], {"max_tokens": 5})])
    run(e, [Job(PROMPT[:9], {"max_tokens": 1})])
    e.abort(e.add_request(PROMPT, params()))
    s = e.stats()
    expected = {
        "prompt_tokens": 20, "cached_prompt_tokens": 8, "generation_tokens": 9, "finished": 3, "aborted": 1, "preemptions": 0,
        "steps": 6, "decode_steps": 4, "decode_rows": 2 + 2 + 1 + 1,
    }  # fmt: skip
    assert {k: s[k] for k in expected} == expected
    assert s["bytes_read"] == sum(op["bytes"] for op in s["ops"]) > 0
    assert len(s["layers"]) == 2 and all(layer["rows"] == 6 and layer["steps"] == 4 for layer in s["layers"])
    e.reset_stats()
    s = e.stats()
    assert all(not v for k, v in s.items() if k not in ("kv_blocks_total", "layers", "ops"))
    assert all(op["calls"] == 0 for op in s["ops"]) and [layer["layer"] for layer in s["layers"]] == [0, 1]


def test_abort(tiny_path):
    e = engine(tiny_path(NAME), max_num_seqs=2)
    ids = [e.add_request(PROMPT[:20], params(max_tokens=50)) for _ in range(4)]
    e.step()
    assert e.abort(ids[0]) and e.abort(ids[3])  # one runs, one waits
    assert not e.abort(ids[0]) and not e.abort(12345)
    seen = set()
    while e.has_unfinished():
        seen |= {o.request_id for o in e.step()}
        e.check_integrity()
    assert seen == {ids[1], ids[2]} and not e.abort(ids[1])
    assert e.step() == []


def test_queue_limit(tiny_path):
    e = engine(tiny_path(NAME), max_num_seqs=1, max_num_queued_reqs=2)
    first, *_ = [e.add_request(PROMPT[:3], params()) for _ in range(3)]  # one has a place
    with pytest.raises(QueueFullError, match="2") as error:
        e.add_request(PROMPT[:3], params())
    assert error.value.field == "max_num_queued_reqs"
    e.step()  # the same three, of which one runs now
    with pytest.raises(QueueFullError):
        e.add_request(PROMPT[:3], params())
    e.abort(first)
    e.add_request(PROMPT[:3], params())
    with pytest.raises(QueueFullError):
        e.add_request(PROMPT[:3], params())
    while e.has_unfinished():
        e.step()
    assert e.stats()["finished"] == 3


def test_max_model_len_is_cut_to_the_cache(tiny_path):
    path = tiny_path(NAME)
    e = engine(path, kv_cache_memory_bytes=kv_bytes(path, 50), block_size=16)
    assert e.model_info()["max_model_len"] == 48 and e.stats()["kv_blocks_total"] == 3
    r = run(e, [Job(PROMPT[:40], {"max_tokens": 1000})])[0]
    assert len(r.tokens) == 8 and r.finish_reason == "length"
    assert engine(path).model_info()["max_model_len"] == tm.CONTEXT
    assert engine(path, max_model_len=20).model_info()["max_model_len"] == 20
    assert len(run(engine(path, max_model_len=20), [Job(PROMPT[:19])])[0].tokens) == 1


def test_too_small_a_cache_says_what_would_do(tiny_path):
    path = tiny_path(NAME)
    per_token = engine(path).model_info()["kv_bytes_per_token"]
    with pytest.raises(OutOfMemoryError) as error:
        engine(path, kv_cache_memory_bytes=100, block_size=16)
    assert error.value.field == "kv_cache_memory_bytes"
    assert all(str(n) in str(error.value) for n in (100, 16 * per_token))
    with pytest.raises(OutOfMemoryError) as error:
        engine(path, kv_cache_memory_bytes=64 * per_token, max_model_len=100)
    text = str(error.value)
    assert all(
        str(n) in text for n in (100, 64 * per_token, f"kv_cache_memory_bytes={112 * per_token}", "max_model_len=64")
    )
    engine(path, kv_cache_memory_bytes=112 * per_token, max_model_len=100)
    with pytest.raises(OutOfMemoryError) as error:  # less than one page: there is no max_model_len that would fit
        engine(path, kv_cache_memory_bytes=per_token, max_model_len=100)
    assert f"kv_cache_memory_bytes={112 * per_token} or more" in str(error.value)
    assert "max_model_len=" not in str(error.value)
    engine(path, kv_cache_memory_bytes=64 * per_token, max_model_len=64)


def test_a_cache_beyond_all_memory_is_refused(tiny_path):
    with pytest.raises(OutOfMemoryError, match="kv_cache_memory_bytes"):
        engine(tiny_path(NAME), kv_cache_memory_bytes=10**15)


@pytest.mark.parametrize(
    "options",
    [{"max_model_len": -1}, {"max_num_seqs": 0}, {"max_num_seqs": 70000}, {"max_num_batched_tokens": 3, "max_num_seqs": 4},
     {"max_num_batched_tokens": 1 << 21}, {"max_num_queued_reqs": -1}, {"max_num_queued_tokens": -1},
     {"kv_cache_memory_bytes": -1}, {"block_size": 0}, {"block_size": 5000}, {"num_threads": -1}, {"dtype": "int8"}, {"isa": "sse"}, {"device": "tpu"}, {"expert_selection": "best"}],
    ids=str,
)  # fmt: skip
def test_wrong_options(tiny_path, options):
    with pytest.raises(ValidationError) as error:
        engine(tiny_path(NAME), **options)
    assert error.value.field in options or error.value.field == "selection"
    assert next(iter(options)).split("_")[-1] in str(error.value)


def test_unknown_option(tiny_path):
    with pytest.raises(TypeError, match="kv_cache_size"):
        engine(tiny_path(NAME), kv_cache_size=3)


BAD_PROMPTS = [[], [VOCAB], [3, -1], [3] * 64, [3] * 1000]


def test_the_engine_goes_on_after_every_error(tiny_path):
    path = tiny_path(NAME)
    jobs = [Job(PROMPT[:10], {"max_tokens": 20, "logprobs": 1}), Job(PROMPT[:30], {"max_tokens": 20, "logprobs": 1})]
    expected = [r.bits for r in alone(path, jobs)]
    e = engine(path, max_model_len=64, max_num_seqs=1, max_num_queued_reqs=1)
    ids = [e.add_request(j.prompt, params(**j.options)) for j in jobs]
    results = {i: Result() for i in ids}
    with pytest.raises(QueueFullError):
        e.add_request(PROMPT[:3], params())
    wrong = [lambda p=p: e.add_request(p, params()) for p in BAD_PROMPTS]
    wrong += [lambda p=p: e.forward(p) for p in ([], [VOCAB], [-3], [3] * 65)]
    wrong += [lambda: e.forward([3], chunk=-1), lambda: e.set_expert_selection("lynx:theta=-1")]
    wrong += [lambda: e.add_request([3], params(top_p=0.0))]
    while e.has_unfinished():
        record(results, e.step())
        for call in wrong:
            with pytest.raises(ValidationError) as error:
                call()
            assert error.value.field and "expected" in str(error.value)
        e.forward(PROMPT[:8])
        e.check_integrity()
    assert [results[i].bits for i in ids] == expected


def poisoned(path, folder, token):
    """Returns a copy of a checkpoint in which `token` has no finite embedding."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(path, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][token, 0] = np.nan
    save_file(tensors, file)
    return str(folder)


def test_not_a_number_in_a_dense_model_ends_one_request(tiny_path, tmp_path):
    path = poisoned(tiny_path("dense"), tmp_path / "m", 50)
    jobs = [Job([3, 4]), Job([3, 50]), Job([5])]
    banned = {"logit_bias": [(50, -1e9)]}
    results = run(engine(path), [Job(j.prompt, banned) for j in jobs], check=True)
    assert [r.finish_reason for r in results] == ["length", "error", "length"] and "NaN" in results[1].error
    assert len(results[0].tokens) == len(results[2].tokens) == 16


def test_not_a_number_in_a_router_ends_one_request(tiny_path, tmp_path):
    """The other requests of the step go on, bit for bit as without it."""
    path = poisoned(tiny_path(NAME), tmp_path / "m", 50)
    banned = {"logit_bias": [(50, -1e9)], "logprobs": 1}
    jobs = [Job([3, 4], banned), Job([8, 50, 9], arrival=2), Job([5, 6, 7], banned)]
    expected = [r.bits for r in alone(path, [jobs[0], jobs[2]])]
    e = engine(path)
    results = run(e, jobs, check=True)
    assert results[1].finish_reason == "error" and results[1].tokens == []
    assert "request 3: router scores: row 3, expert 0: expected a finite value, got" in results[1].error
    assert [results[i].bits for i in (0, 2)] == expected
    assert e.stats()["kv_blocks_used"] == 0
    with pytest.raises(ValidationError, match="row 1, expert 0"):
        e.forward([8, 50, 9])


def test_closed(tiny_path):
    e = engine(tiny_path(NAME))
    e.add_request(PROMPT[:4], params())
    e.close()
    e.close()
    calls = [
        e.step, e.has_unfinished, e.expert_selection, e.stats, e.reset_stats, e.model_info, e.check_integrity,
        lambda: e.add_request([3], params()), lambda: e.abort(1), lambda: e.forward([3]), lambda: e.set_expert_selection("topk"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(EngineClosedError, match="closed"):
            call()


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_load_and_close_five_times_keeps_memory_flat(nano_path):
    sizes = []
    for _ in range(6):
        e = engine(nano_path, num_threads=2)
        run(e, [Job(list(range(5, 60)), {"max_tokens": 4})])
        e.close()
        gc.collect()
        sizes.append(resident_bytes())
    # The file alone is 43 MB. What may remain is what the allocator keeps for itself.
    assert sizes[-1] - sizes[0] < 4 << 20, [s >> 20 for s in sizes]


def test_config_is_read_anew(tiny_path, tmp_path):
    """Nothing is remembered between engines: another config in the same folder counts at once."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_path(NAME), folder)
    before = engine(str(folder)).forward(PROMPT[:5])
    config = json.loads((folder / "config.json").read_text())
    config["num_experts_per_tok"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert not np.array_equal(engine(str(folder)).forward(PROMPT[:5]), before)

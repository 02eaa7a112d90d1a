"""What a server sets per request: priority, timeout, cache salt, progress of the prompt; limits and counters of the queue and the steps."""

import shutil
import threading
import time

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, alone, engine, params, run

from lynx_rt import CheckpointError, QueueFullError, ValidationError

NAME = "plain"
PROMPT = np.random.default_rng(2).integers(0, tm.ALL[NAME].vocab, 60).tolist()


def kv_bytes(path, tokens):
    return tokens * engine(path).model_info()["kv_bytes_per_token"]


# --- priority


def test_the_queue_is_ordered_by_priority_then_arrival(tiny_path):
    e = engine(tiny_path(NAME), max_num_seqs=1)
    ids = [e.add_request(PROMPT[:3], params(max_tokens=2, priority=p)) for p in (0, 5, -1, 0, -1, -(2**31))]
    finished = []
    while e.has_unfinished():
        finished += [o.request_id for o in e.step() if o.finish_reason]
    assert finished == [ids[i] for i in (5, 2, 4, 0, 3, 1)]


def test_a_request_that_runs_keeps_its_place(tiny_path):
    e = engine(tiny_path(NAME), max_num_seqs=1)
    first = e.add_request(PROMPT[:3], params(max_tokens=5, priority=9))
    e.step()
    e.add_request(PROMPT[:3], params(max_tokens=1, priority=-9))
    ended = [o.request_id for _ in range(5) for o in e.step() if o.finish_reason]
    assert ended[0] == first and len(ended) == 2


@pytest.mark.parametrize("priorities, preempted", [((0, 0), 1), ((1, 0), 0), ((-1, 0), 1)])
def test_the_worst_priority_is_preempted_first(tiny_path, priorities, preempted):
    """Two requests outgrow the cache. Both give the tokens of a run alone, whoever had to start again."""
    path = tiny_path(NAME)
    jobs = [Job(PROMPT[i:][:20], {"max_tokens": 20, "logprobs": 0, "priority": p}) for i, p in enumerate(priorities)]
    expected = [r.bits for r in alone(path, jobs)]
    e = engine(path, block_size=4, kv_cache_memory_bytes=kv_bytes(path, 56), enable_prefix_caching=False)
    results = run(e, jobs, check=True)
    assert [r.bits for r in results] == expected
    assert [r.num_preemptions > 0 for r in results] == [i == preempted for i in range(2)]


# --- timeout


def test_a_timeout_ends_running_and_waiting_requests(tiny_path):
    path = tiny_path(NAME)
    job = Job(PROMPT[:10], {"max_tokens": 12, "logprobs": 1})
    [expected] = alone(path, [job])
    e = engine(path, max_num_seqs=2)
    running = e.add_request(PROMPT[:20], params(max_tokens=100, timeout=60.0))
    goes_on = e.add_request(job.prompt, params(**job.options))
    tokens = [o.token_ids for _ in range(3) for o in e.step() if o.request_id == goes_on]
    waiting = e.add_request(PROMPT[:5], params(timeout=0.01))
    unlimited = e.add_request(PROMPT[:5], params(max_tokens=1))
    time.sleep(0.011)
    [out] = e.step()
    assert (out.request_id, out.finish_reason, out.token_ids) == (waiting, "abort", [])
    assert out.error == "timeout: the request's 0.01 seconds are over, 0 tokens were generated"
    assert out.finish_time - out.arrival_time >= 0.01 and out.first_scheduled_time == 0
    e.abort(running)
    seen = set()
    while e.has_unfinished():
        for o in e.step():
            seen.add(o.request_id)
            tokens += [o.token_ids] if o.request_id == goes_on else []
        e.check_integrity()
    assert seen == {goes_on, unlimited} and [t for ids in tokens for t in ids] == expected.tokens
    assert e.stats()["kv_blocks_used"] == 0


def test_a_timeout_gives_the_tokens_so_far_and_frees_the_pages(tiny_path):
    e = engine(tiny_path(NAME), enable_return_routed_experts=True)
    ids = [e.add_request(PROMPT[:9], params(max_tokens=100, timeout=limit)) for limit in (0.05, 1e300)]
    tokens = dict.fromkeys(ids, 0)
    ended = []
    while e.has_unfinished():
        for o in e.step():
            tokens[o.request_id] += len(o.token_ids)
            if o.finish_reason == "abort":
                ended.append(o)
        if tokens[ids[0]] == 3:
            time.sleep(0.051)
        e.check_integrity()
    [out] = ended
    assert out.request_id == ids[0] and tokens == {ids[0]: 3, ids[1]: 100}
    assert out.error.endswith(" 3 tokens were generated") and out.num_computed_prompt_tokens == 9
    s = e.stats()
    assert (s["aborted"], s["finished"], s["kv_blocks_used"], s["num_waiting_tokens"]) == (1, 1, 0, 0)


@pytest.mark.parametrize("field, value", [("timeout", -1.0), ("timeout", float("nan")), ("timeout", float("inf")),
                                          ("cache_salt", "x" * 1025)])  # fmt: skip
def test_wrong_values(tiny_path, field, value):
    with pytest.raises(ValidationError, match="expected") as error:
        engine(tiny_path(NAME)).add_request([3], params(**{field: value}))
    assert error.value.field == field


# --- cache salt


def test_only_equal_salts_share_pages(tiny_path):
    e = engine(tiny_path(NAME), block_size=4)
    for salt, cached in [("", 0), ("a", 0), ("a", 8), ("", 8), ("ab", 0), ("b", 0), ("ab", 8), ("a", 8)]:
        [result] = run(e, [Job(PROMPT[:11], {"max_tokens": 1, "cache_salt": salt})], check=True)
        assert result.num_cached_tokens == cached, salt


def test_a_salt_does_not_change_the_output(tiny_path):
    e = engine(tiny_path(NAME), block_size=4)
    jobs = [Job(PROMPT[:30], {"logprobs": 1, "cache_salt": salt}) for salt in ("", "a", "a", "b")]
    assert len({str(run(e, [job])[0].bits) for job in jobs}) == 1


# --- progress of the prompt


def test_progress(tiny_path):
    e = engine(tiny_path(NAME), max_num_batched_tokens=16, block_size=4, enable_return_routed_experts=True)

    def progress(**options):
        i = e.add_request(PROMPT, params(max_tokens=3, **options))
        outputs = []
        while e.has_unfinished():
            outputs += [o for o in e.step() if o.request_id == i]
        return outputs

    outputs = progress(report_progress=True)
    assert [o.num_computed_prompt_tokens for o in outputs] == [16, 32, 48, 60, 60, 60]
    assert [len(o.token_ids) for o in outputs] == [0, 0, 0, 1, 1, 1]
    assert [o.finish_reason for o in outputs] == [None] * 5 + ["length"]
    assert [len(o.routed_experts) for o in outputs] == [16, 16, 16, 12, 1, 1]
    outputs = progress()
    assert [o.num_computed_prompt_tokens for o in outputs] == [60, 60, 60] and outputs[0].num_cached_tokens == 56
    assert [len(o.routed_experts) for o in outputs] == [60, 1, 1]


def test_progress_does_not_change_the_output(tiny_path):
    path = tiny_path(NAME)
    jobs = [Job(PROMPT[i:], {"logprobs": 1, "prompt_logprobs": 1}, arrival=i) for i in range(6)]
    expected = [r.bits for r in alone(path, jobs)]
    for job in jobs:
        job.options["report_progress"] = True
    e = engine(path, max_num_batched_tokens=16, block_size=4, kv_cache_memory_bytes=kv_bytes(path, 160))
    results = run(e, jobs, check=True)
    assert [r.bits for r in results] == expected and e.stats()["preemptions"] > 0


# --- the queue and the steps


def test_limit_on_queued_tokens(tiny_path):
    e = engine(tiny_path(NAME), max_num_seqs=1, max_num_queued_tokens=20)
    first = e.add_request(PROMPT[:40], params(max_tokens=30))  # longer than the limit, but nothing else waits
    assert e.stats()["num_waiting_tokens"] == 40
    with pytest.raises(QueueFullError) as error:
        e.add_request(PROMPT[:1], params())
    assert error.value.field == "max_num_queued_tokens"
    assert all(text in str(error.value) for text in ("40 prompt tokens", "the 1 of this", "limit of 20"))
    e.step()  # it runs now
    waiting = [e.add_request(PROMPT[:n], params(max_tokens=1)) for n in (12, 8)]
    with pytest.raises(QueueFullError, match="20 prompt tokens"):
        e.add_request(PROMPT[:1], params())
    e.abort(waiting[0])
    assert e.stats()["num_waiting_tokens"] == 8
    e.add_request(PROMPT[:12], params(max_tokens=1))
    e.abort(first)
    while e.has_unfinished():
        e.step()
    assert e.stats()["finished"] == 2 and e.stats()["num_waiting_tokens"] == 0


def decode_rows(e):
    s = e.stats()
    return [s[f"decode_rows{kind}"] for kind in ("", "_selected", "_exact", "_mixed")]


def test_decode_rows_by_the_way_their_experts_were_chosen(tiny_path):
    e = engine(tiny_path("many"), expert_selection="lynx")
    prompt = [t % 71 for t in PROMPT]
    for exact in (False, False, True):
        e.add_request(prompt[:5], params(max_tokens=6, exact=exact))
    e.step()  # prompts
    assert decode_rows(e) == [0, 0, 0, 0]
    e.step()
    assert decode_rows(e) == [3, 2, 1, 0]
    late = e.add_request(prompt[:7], params(max_tokens=1))
    e.step()  # three decode rows beside a prompt
    assert decode_rows(e) == [3, 2, 1, 3]
    e.step()
    assert decode_rows(e) == [6, 4, 2, 3]
    e.set_expert_selection("topk")
    e.step()
    assert decode_rows(e) == [9, 4, 3, 3]
    assert late and not [o for o in e.step() if o.finish_reason is None]
    e.set_expert_selection("lynx")
    run(e, [Job(prompt[:5], {"max_tokens": 3})])  # lynx does not act on a single row
    assert decode_rows(e) == [14, 4, 4, 3]


def test_bytes_read_by_kind(tiny_path):
    e = engine(tiny_path(NAME))
    run(e, [Job(PROMPT[:20])])
    s = e.stats()
    op = {op["name"]: op["bytes"] for op in s["ops"]}
    assert s["bytes_read_experts"] == op["expert_ffn"] > 0 and s["bytes_read_kv"] == op["attention"] > 0
    assert s["bytes_read_experts"] + s["bytes_read_dense"] + s["bytes_read_kv"] == s["bytes_read"]
    assert s["bytes_read_dense"] >= op["linear"] + op["logits"]


def test_step_times_are_read_without_the_lock(nano_path):
    """Another thread sees the step in progress, which holds the engine's lock, and no call of this one waits for it."""
    e = engine(nano_path, num_threads=1)
    assert (e.last_step_time, e.step_start_time) == (0, 0)
    seen: list[tuple[float, float]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if start := e.step_start_time:
                seen.append((start, time.monotonic()))

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.monotonic()
    try:
        while not seen and time.monotonic() < begin + 60:
            run(e, [Job([3] * 400, {"max_tokens": 1})])
    finally:
        stop.set()
        thread.join()
    assert seen and all(begin <= start <= at for start, at in seen)
    assert begin < e.last_step_time <= time.monotonic() and e.step_start_time == 0
    before = e.last_step_time
    e.close()
    assert e.last_step_time == before


def test_a_failed_step_is_no_last_step(tiny_path, tmp_path):
    shutil.copytree(tiny_path(NAME), tmp_path / "m")
    e = engine(str(tmp_path / "m"))
    e.add_request([3, 4], params(max_tokens=50))
    e.step()
    before = e.last_step_time
    weights = tmp_path / "m" / "model.safetensors"
    with weights.open("ab") as file:
        file.write(b"x")
    time.sleep(0.3)  # files are looked at four times a second
    with pytest.raises(CheckpointError):
        e.step()
    assert 0 < e.last_step_time == before and e.step_start_time == 0

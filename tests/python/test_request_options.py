"""Priority, timeout, cache salt and progress of single requests through the Python API, and the times of steps."""

import time

import pytest

from lynx_rt import Engine, QueueFullError, SamplingParams, ValidationError, shipped_model

LONG = "How much is 17 times 23? Think about it step by step. " * 8


@pytest.fixture(scope="module")
def engine():
    with Engine(shipped_model(), num_threads=1, max_num_seqs=2, max_num_batched_tokens=32, seed=1) as engine:
        yield engine


def test_a_timeout_is_an_abort_with_the_text_so_far(engine):
    limited, free = engine.generate(
        ["1 + 1 = ", "2 + 2 = "],
        [{"timeout": 0.2, "max_tokens": 100_000, "ignore_eos": True}, {"max_tokens": 3, "ignore_eos": True}],
        use_tqdm=False,
    )
    out = limited.outputs[0]
    assert out.finish_reason in ("abort", "length") and limited.finished
    if out.finish_reason == "abort":  # else the whole context took less time
        assert out.error is not None and out.error.startswith("timeout: ")
    assert len(free.outputs[0].token_ids) == 3 and free.outputs[0].error is None


def test_a_timeout_that_is_over_at_once(engine):
    started = time.monotonic()
    [output] = engine.generate(LONG, SamplingParams(timeout=1e-6, n=2, temperature=1), use_tqdm=False)
    assert [out.finish_reason for out in output.outputs] == ["abort", "abort"]
    assert all((out.error or "").startswith("timeout: the request's 1e-06 seconds") for out in output.outputs)
    assert output.text == "" and time.monotonic() - started < 30
    assert engine.stats().num_running == engine.stats().num_waiting == 0


def test_progress_of_a_prompt(engine):
    ids = engine.encode(LONG)[:100]
    done, texts = [], []
    for output in engine.stream(ids, {"report_progress": True, "max_tokens": 2, "cache_salt": "p", "ignore_eos": True}):
        done.append(output.metrics.num_computed_prompt_tokens)
        texts.append(len(output.outputs[0].token_ids))
        assert output.metrics.num_prompt_tokens == 100
    assert done == [32, 64, 96, 100, 100] and texts == [0, 0, 0, 1, 2]
    quiet = list(engine.stream(ids, {"max_tokens": 2, "cache_salt": "q", "ignore_eos": True}))
    assert [output.metrics.num_computed_prompt_tokens for output in quiet] == [100, 100]


def test_priorities_and_salts(engine):
    jobs = [(0, None), (1, None), (-1, "salt"), (-1, "salt")]
    ids = [
        engine.add_request(LONG, {"priority": p, "cache_salt": salt, "max_tokens": 1}, request_id=f"r{i}")
        for i, (p, salt) in enumerate(jobs)
    ]
    ended = {}
    while engine.has_unfinished_requests():
        ended |= {output.request_id: output for output in engine.step() if output.finished}
    assert list(ended)[:2] in ([ids[2], ids[3]], [ids[3], ids[2]]) and list(ended)[-1] == ids[1]
    assert engine.generate(LONG, {"max_tokens": 1, "cache_salt": "salt"})[0].num_cached_tokens > 0
    assert engine.generate(LONG, {"max_tokens": 1, "cache_salt": "pepper"})[0].num_cached_tokens == 0


@pytest.mark.parametrize(
    "field, value",
    [("priority", 2**31), ("priority", 1.5), ("priority", None), ("timeout", 0), ("timeout", -1), ("timeout", float("nan")),
     ("timeout", float("inf")), ("timeout", "1"), ("cache_salt", ""), ("cache_salt", 3), ("cache_salt", "\ud800"),
     ("cache_salt", "ä" * 513), ("report_progress", 1)],
)  # fmt: skip
def test_wrong_values_are_named(field, value):
    with pytest.raises(ValidationError, match=field) as error:
        SamplingParams(**{field: value})
    assert error.value.field == field


def test_queued_tokens_and_step_times():
    with Engine(shipped_model(), num_threads=1, max_num_seqs=1, max_num_queued_tokens=8) as engine:
        assert engine.last_step_time == 0
        with pytest.raises(QueueFullError, match=r"max_num_queued_tokens: 5 prompt tokens .* the 4 of .* limit of 8"):
            engine.generate([[5] * 5, [6] * 4], {"max_tokens": 1}, use_tqdm=False)
        assert engine.stats().num_waiting_tokens == 0
        engine.generate([5] * 50, {"max_tokens": 1})
        assert 0 < engine.last_step_time <= time.monotonic() and engine.step_start_time == 0
        stats = engine.stats()
        assert stats.bytes_read == stats.bytes_read_experts + stats.bytes_read_dense + stats.bytes_read_kv > 0

"""Metrics of a server over a live engine: names as vLLM's, counts that agree with the requests, and nothing that fails."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import mmap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metered import Served, families, samples, serve_all, total

from lynx_rt import _C, Engine, SamplingParams
from lynx_rt.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput
from lynx_rt.server import metric_names
from lynx_rt.server.engine_metrics import anonymous_memory
from lynx_rt.server.metric_names import token_buckets
from lynx_rt.server.metrics import Metrics

PROMPT = "Q: 345 + 678 = ?\nA:"
LONG = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)

# What dashboards, llm-d and autoscalers read of vLLM 0.33.
REPLICA = {"model_name", "engine"}
GAUGES = {
    "vllm:num_requests_running": REPLICA,
    "vllm:num_requests_waiting": REPLICA,
    "vllm:num_requests_waiting_by_reason": REPLICA | {"reason"},
    "vllm:kv_cache_usage_perc": REPLICA,
    "vllm:cache_config_info": REPLICA | {"block_size", "num_gpu_blocks"},
}
COUNTERS = {
    "vllm:prefix_cache_queries": REPLICA,
    "vllm:prefix_cache_hits": REPLICA,
    "vllm:num_preemptions": REPLICA,
    "vllm:prompt_tokens": REPLICA,
    "vllm:prompt_tokens_by_source": REPLICA | {"source"},
    "vllm:prompt_tokens_cached": REPLICA,
    "vllm:generation_tokens": REPLICA,
    "vllm:request_success": REPLICA | {"finished_reason"},
    "vllm:admission_rejections": {"model_name", "reason"},
}
TOKEN_LATENCY = ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80"
LATENCY = ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
TOKENS = "1 2 5 10 20 50 100 200 500 1000"  # max_model_len of lynx-nano is 1024
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560",
    "vllm:inter_token_latency_seconds": TOKEN_LATENCY,
    "vllm:request_time_per_output_token_seconds": TOKEN_LATENCY,
    "vllm:e2e_request_latency_seconds": LATENCY,
    "vllm:request_queue_time_seconds": LATENCY,
    "vllm:request_inference_time_seconds": LATENCY,
    "vllm:request_prefill_time_seconds": LATENCY,
    "vllm:request_decode_time_seconds": LATENCY,
    "vllm:iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    "vllm:request_prompt_tokens": TOKENS,
    "vllm:request_generation_tokens": TOKENS,
    "vllm:request_max_num_generation_tokens": TOKENS,
    "vllm:request_params_max_tokens": TOKENS,
    "vllm:request_params_n": "1 2 5 10 20",
    "vllm:request_prefill_kv_computed_tokens": TOKENS,
    "vllm:request_num_preemptions": "0 1 2 5 10 20 50",
}


@pytest.fixture
def engine(nano_path: str) -> Iterator[Engine]:
    with Engine(nano_path, expert_selection="lynx", max_num_seqs=8, enable_mixed_chunk=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def idle(nano_path: str) -> Iterator[Engine]:
    """An engine that runs no requests here."""
    with Engine(nano_path, max_num_seqs=8) as engine:
        yield engine


def test_names_types_labels_and_buckets_are_those_of_vllm(idle: Engine) -> None:
    metrics = Metrics(idle, "nano")
    found = families(metrics)
    for name, labels in GAUGES.items():
        assert found[name].type == "gauge"
        assert {frozenset(sample.labels) for sample in found[name].samples} == {frozenset(labels)}, name
    for name, labels in COUNTERS.items():
        assert found[name].type == "counter"
        assert {sample.name for sample in found[name].samples} == {f"{name}_total"}
        assert {frozenset(sample.labels) for sample in found[name].samples} == {frozenset(labels)}, name
    for name, bounds in HISTOGRAMS.items():
        assert found[name].type == "histogram"
        buckets = [sample for sample in found[name].samples if sample.name == f"{name}_bucket"]
        assert [float(sample.labels["le"]) for sample in buckets] == [*map(float, bounds.split()), float("inf")], name
        assert all(set(sample.labels) == REPLICA | {"le"} for sample in buckets)
    assert {name for name in found if name.startswith("vllm:")} == {*GAUGES, *COUNTERS, *HISTOGRAMS}
    replicas = {
        (s.labels["model_name"], s.labels["engine"]) for f in found.values() for s in f.samples if "engine" in s.labels
    }
    assert replicas == {("nano", "0")}


def test_exposition_has_the_table_of_names(idle: Engine) -> None:
    found = families(Metrics(idle, "nano"))
    table = [*metric_names.ENGINE, *metric_names.REQUESTS, *metric_names.SERVER]
    for metric in table:
        name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert (found[name].type, found[name].documentation) == (metric.kind, metric.help)
    others = set(found) - {m.name.removesuffix("_total") if m.kind == "counter" else m.name for m in table}
    assert others and all(name.startswith("process_") for name in others)


def test_cache_is_described_as_it_is(nano_path: str) -> None:
    with Engine(nano_path, block_size=32, max_num_seqs=2) as engine:
        [info] = families(Metrics(engine, "nano"))["vllm:cache_config_info"].samples
        assert info.labels["block_size"] == "32"
        assert info.labels["num_gpu_blocks"] == str(engine.stats().kv_blocks_total)


def test_counts_agree_with_the_requests(engine: Engine) -> None:
    """Finished, left by their client in both states, refused: every request is counted once, and every token."""
    metrics = Metrics(engine, "nano")
    requests = [Served(f"Q: {i} + {i} = ?\nA:", SamplingParams(temperature=0, max_tokens=8)) for i in range(12, 18)]
    requests += [Served(PROMPT, LONG), Served(PROMPT, dataclasses.replace(LONG, n=3, temperature=1))]
    requests += [Served(PROMPT, dataclasses.replace(LONG, max_tokens=900), leave_after=5) for _ in range(3)]
    requests += [Served(PROMPT, LONG, leave_after=0) for _ in range(3)]
    serve_all(engine, metrics, requests)
    metrics.on_rejected("max_num_queued_reqs")

    values = samples(metrics)
    finished = [r.output for r in requests if r.output is not None and r.output.finished]
    assert len(finished) == 8
    assert total(values, "lynx:accepted_requests_total") == len(requests)
    assert total(values, "vllm:request_success_total") == len(finished)
    assert total(values, "lynx:aborted_requests_total", reason="client") == 6
    assert total(values, "lynx:aborted_requests_total") == 6
    assert total(values, "vllm:admission_rejections_total") == 1
    reasons = [output.outputs[0].finish_reason for output in finished]
    for reason in ("stop", "length"):
        assert total(values, "vllm:request_success_total", finished_reason=reason) == reasons.count(reason) > 0
    with_tokens = [r.output for r in requests if r.output is not None]
    assert total(values, "vllm:time_to_first_token_seconds_count") == len(with_tokens) == 11
    assert total(values, "vllm:e2e_request_latency_seconds_count") == len(finished)
    assert total(values, "vllm:num_requests_running") == total(values, "vllm:num_requests_waiting") == 0
    assert total(values, "vllm:kv_cache_usage_perc") == 0

    prompt = sum(len(output.prompt_token_ids) for output in finished)
    tokens = sum(len(out.token_ids) for output in finished for out in output.outputs)
    assert total(values, "vllm:request_prompt_tokens_sum") == prompt
    assert total(values, "vllm:request_generation_tokens_sum") == tokens
    gaps = sum(len(out.token_ids) - 1 for output in with_tokens for out in output.outputs)
    assert total(values, "vllm:inter_token_latency_seconds_count") == gaps
    assert total(values, "vllm:request_params_n_sum") == len(finished) + 2
    assert total(values, "vllm:request_params_max_tokens_count") == len(finished)
    assert total(values, "vllm:request_max_num_generation_tokens_sum") == tokens - 2 * 48
    times = [output.metrics for output in finished]
    assert total(values, "vllm:request_inference_time_seconds_sum") == pytest.approx(
        sum(m.finish_time - m.first_scheduled_time for m in times)
    )
    assert total(values, "vllm:request_time_per_output_token_seconds_count") == len(finished)


def test_token_counters_are_the_sums_of_usage(engine: Engine) -> None:
    metrics = Metrics(engine, "nano")
    requests = [Served(PROMPT, SamplingParams(temperature=0, max_tokens=2 + i)) for i in range(6)]
    requests += [Served(PROMPT * 6, SamplingParams(temperature=0, max_tokens=20, stop=["1"])) for _ in range(2)]
    serve_all(engine, metrics, requests[:-1])
    serve_all(engine, metrics, requests[-1:])  # its prompt is in the prefix cache now
    outputs = [request.output for request in requests if request.output is not None]
    values = samples(metrics)
    prompt, cached = sum(len(o.prompt_token_ids) for o in outputs), sum(o.num_cached_tokens for o in outputs)
    assert cached > 0
    assert total(values, "vllm:prompt_tokens_total") == total(values, "vllm:prefix_cache_queries_total") == prompt
    assert total(values, "vllm:prompt_tokens_cached_total") == total(values, "vllm:prefix_cache_hits_total") == cached
    assert total(values, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == cached
    assert total(values, "vllm:prompt_tokens_by_source_total", source="local_compute") == prompt - cached
    assert total(values, "vllm:generation_tokens_total") == sum(len(o.outputs[0].token_ids) for o in outputs)


def test_experts_bytes_and_time_are_those_of_the_engine(engine: Engine) -> None:
    metrics = Metrics(engine, "nano")
    exact = Served("Q: 2 + 3 = ?\nA:", LONG.clone(expert_selection="exact"))
    serve_all(engine, metrics, [*(Served(f"Q: {i} + {i} = ?\nA:", LONG) for i in range(12, 18)), exact])
    values, stats = samples(metrics), engine.stats()
    for name, field in (
        ("layer_steps", "steps"),
        ("rows", "rows"),
        ("experts_read", "active"),
        ("experts_union_before", "union_before"),
        ("remapped_pairs", "remapped_pairs"),
        ("retained_mass", "retained_mass"),
        ("guard_hits", "guard_hits"),
    ):
        for layer in stats.layers:
            assert total(values, f"lynx:moe_{name}_total", layer=str(layer.layer)) == getattr(layer, field)
    assert total(values, "lynx:moe_experts_read_total") < total(values, "lynx:moe_experts_union_before_total")
    assert total(values, "lynx:bytes_read_total") == stats.bytes_read
    for kind in ("experts", "dense", "kv"):
        assert total(values, "lynx:bytes_read_total", kind=kind) == getattr(stats, f"bytes_read_{kind}") > 0
    assert total(values, "lynx:decode_rows_total", mode="selected") == stats.decode_rows_selected > 0
    assert total(values, "lynx:decode_rows_total", mode="exact") == stats.decode_rows_exact > 0
    assert total(values, "lynx:decode_rows_total", mode="mixed_step") == stats.decode_rows_mixed
    assert total(values, "lynx:decode_rows_total") == stats.decode_rows + stats.decode_rows_mixed
    experts = next(op for op in stats.ops if op.name == "expert_ffn")
    assert total(values, "lynx:step_seconds_total") == pytest.approx(stats.step_seconds)
    assert total(values, "lynx:step_seconds_total", phase="experts") == experts.seconds > 0
    assert total(values, "lynx:step_seconds_total", phase="sampling") == stats.sampling_seconds
    assert total(values, "lynx:steps_total", kind="decode_only") == stats.decode_steps
    assert total(values, "lynx:steps_total") == stats.steps
    assert total(values, "lynx:policy_info", policy=engine.expert_selection) == 1
    assert 0 <= time.time() - total(values, "lynx:engine_last_step_timestamp_seconds") < 60


def test_layers_can_be_summed(engine: Engine) -> None:
    apart, together = Metrics(engine, "nano"), Metrics(engine, "nano", per_layer=False)
    serve_all(engine, apart, [Served(PROMPT, LONG), Served("Q: 12 times 22 = ?\nA:", LONG)])
    name = "lynx:moe_experts_read_total"
    values = samples(together)
    assert [labels for key, labels in values if key == name] == [frozenset({("layer", "all")})]
    assert total(values, name) == total(samples(apart), name) > 0


def test_single_steps_are_measured(engine: Engine) -> None:
    """The thread that steps tells of each step, whether or not a scrape comes in between."""
    metrics = Metrics(engine, "nano")
    for i in range(4):
        engine.add_request(f"Q: {i} + {i} = ?\nA:", LONG)
    steps = 0
    while engine.has_unfinished_requests():
        engine.step()
        steps += 1
        if steps % 3 == 0:
            metrics.render_now()
        metrics.on_step()
    values, stats = samples(metrics), engine.stats()
    assert total(values, "lynx:decode_step_seconds_count", policy=engine.expert_selection) == stats.decode_steps
    assert total(values, "lynx:decode_step_seconds_sum") == pytest.approx(stats.decode_seconds)
    assert total(values, "lynx:batch_rows_sum") == stats.decode_rows
    assert total(values, "vllm:iteration_tokens_total_count") == stats.steps == steps
    assert total(values, "vllm:iteration_tokens_total_sum") == stats.prompt_tokens + stats.generation_tokens
    per_step = sum(layer.active for layer in stats.layers) / len(stats.layers)
    assert total(values, "lynx:experts_read_per_layer_step_sum") == pytest.approx(per_step)


def test_counters_never_fall(engine: Engine) -> None:
    """reset_stats() starts the engine's sums again, and a change of the policy those of its governor, but no metric."""
    engine.set_expert_selection("slo:tpot_ms=0.0001")
    metrics = Metrics(engine, "nano")
    before = samples(metrics)
    for action in (lambda: None, engine.reset_stats, lambda: engine.set_expert_selection("slo:tpot_ms=0.0002")):
        action()
        metrics.render_now()  # sees the reset; unseen, a busier time after it would hide it
        serve_all(engine, metrics, [Served(PROMPT, LONG), Served("Q: 12 times 22 = ?\nA:", LONG)])
        now = samples(metrics)
        counters = [key for key in now if key[0].endswith(("_total", "_count", "_bucket", "_sum"))]
        assert [key for key in counters if now[key] < before.get(key, 0)] == []
        assert total(now, "vllm:generation_tokens_total") == total(before, "vllm:generation_tokens_total") + 96
        assert total(now, "lynx:steps_total") > total(before, "lynx:steps_total")
        over = "lynx:slo_steps_over_target_total"
        assert total(now, over) > (total(before, over) if (over, frozenset()) in before else 0)
        before = now


def test_governor_is_shown_only_while_it_is_in_force(engine: Engine) -> None:
    metrics = Metrics(engine, "nano")
    assert families(metrics)["lynx:slo_target_seconds"].samples == []
    engine.set_expert_selection("slo:tpot_ms=20")
    values = samples(metrics)
    assert total(values, "lynx:slo_target_seconds") == pytest.approx(0.02)
    assert total(values, "lynx:slo_level") >= 0


def test_experts_on_the_disk(nano_path: str, tmp_path: Path) -> None:
    assert _C.pack_experts(nano_path, str(tmp_path / "experts"))["num_records"] == 256
    with Engine(nano_path, expert_file=tmp_path / "experts", expert_memory=0.25) as engine:
        metrics = Metrics(engine, "nano")
        serve_all(engine, metrics, [Served(PROMPT, LONG)])
        values, tier = samples(metrics), engine.stats().tier
    assert tier is not None and tier.misses > 0
    assert values["lynx:tier_experts_total", frozenset({("result", "miss")})] == tier.misses
    assert values["lynx:tier_experts_total", frozenset({("result", "hit")})] == tier.hits
    assert total(values, "lynx:tier_bytes_read_total") == tier.bytes_read
    assert total(values, "lynx:tier_wait_seconds_total") == pytest.approx(tier.wait_seconds)
    assert total(values, "lynx:tier_resident_experts") == tier.resident
    assert total(values, "lynx:tier_failed_reads_total") == 0


class StuckEngine:
    """An engine with a step in progress that does not end, until `release` is set."""

    def __init__(self, engine: Engine) -> None:
        self.release = threading.Event()
        self.max_model_len, self.model_config = engine.max_model_len, engine.model_config
        self.expert_selection = "topk"
        self.stalled_seconds = 0.0
        self._engine = engine
        self.fault: Exception | None = None
        self.reads = 0
        self.step_sums, self.last_step_time = engine.step_sums, engine.last_step_time

    def stats(self) -> Any:
        self.reads += 1
        if self.reads > 1:  # the first is that of Metrics itself
            assert self.release.wait(30)
        if self.fault is not None:
            raise self.fault
        return dataclasses.replace(self._engine.stats(), num_running=self.reads)


def test_a_scrape_does_not_wait_for_a_long_step(idle: Engine) -> None:
    stuck = StuckEngine(idle)
    metrics = Metrics(stuck, "nano")  # type: ignore[arg-type]

    async def scrape() -> tuple[bytes, str, int]:
        """Renders, and returns how often another task ran meanwhile."""
        rendering = asyncio.ensure_future(metrics.render())
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0.001)
            turns += 1
        return (*rendering.result(), turns)

    for _ in range(3):
        start = time.monotonic()
        body, content_type, turns = asyncio.run(scrape())
        assert time.monotonic() - start < 10
        assert turns >= 3, "the event loop waited for the step"
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert b'vllm:num_requests_running{engine="0",model_name="nano"} 1.0' in body
    stuck.stalled_seconds = 42.0
    assert total(samples(metrics), "lynx:engine_stalled_seconds") == 42
    assert stuck.reads == 2, "one thread waits for the engine, not one per scrape"
    stuck.release.set()
    assert total(samples(metrics), "vllm:num_requests_running") >= 2


def test_an_engine_that_fails_leaves_the_last_numbers(idle: Engine, caplog: pytest.LogCaptureFixture) -> None:
    broken = StuckEngine(idle)
    metrics = Metrics(broken, "nano")  # type: ignore[arg-type]
    broken.release.set()
    broken.fault = RuntimeError("a broken counter")
    for _ in range(3):
        assert total(samples(metrics), "vllm:num_requests_running") == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    metrics.on_step()
    broken.fault = None
    assert total(samples(metrics), "vllm:num_requests_running") > 1


def test_metrics_outlive_the_engine(nano_path: str, caplog: pytest.LogCaptureFixture) -> None:
    with Engine(nano_path) as engine:
        metrics = Metrics(engine, "nano")
        engine.generate(PROMPT, LONG)
        assert total(samples(metrics), "vllm:generation_tokens_total") == 48
    assert total(samples(metrics), "vllm:generation_tokens_total") == 48
    assert caplog.records == []


def test_hooks_never_raise(idle: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a hook is called with, its caller goes on, and the log has one line per hook."""
    metrics: Any = Metrics(idle, "nano")
    for _ in range(3):
        metrics.on_first_token(None)
        metrics.on_tokens(None, "soon")
        metrics.on_finished(None, None, 1)
        metrics.on_http()
        metrics.on_grammar_compile("long")
        metrics.set_event_loop_lag(object())
    assert len(caplog.records) == 6
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    metrics.on_accepted()
    assert total(samples(metrics), "lynx:accepted_requests_total") == 1


def test_unknown_times_are_left_out(idle: Engine) -> None:
    metrics = Metrics(idle, "nano")
    nan = float("nan")
    for times in (RequestMetrics(), RequestMetrics(nan, nan, nan, nan, 5, 1)):
        metrics.on_first_token(times)
        outputs = [CompletionOutput(0, "", [7], finish_reason="stop")]
        metrics.on_finished(RequestOutput("a", None, [1], outputs, True, times), SamplingParams(max_tokens=None), 1)
    metrics.on_tokens(1, nan)
    values = samples(metrics)
    assert total(values, "vllm:request_success_total") == 2
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert total(values, f"vllm:{name}_count") == 0
        assert total(values, f"vllm:{name}_sum") == 0
    assert total(values, "vllm:request_params_max_tokens_count") == 0


@pytest.mark.parametrize(
    ("reasons", "counted"),
    [
        (["stop"], ("vllm:request_success_total", {"finished_reason": "stop"})),
        (["stop", "length"], ("vllm:request_success_total", {"finished_reason": "length"})),
        (["length", "error", "stop"], ("vllm:request_success_total", {"finished_reason": "error"})),
        (["stop", "abort"], ("lynx:aborted_requests_total", {"reason": "client"})),
        (["timed out", "stop"], ("lynx:aborted_requests_total", {"reason": "timeout"})),
    ],
)
def test_a_request_has_one_end(idle: Engine, reasons: list[str], counted: tuple[str, dict[str, str]]) -> None:
    metrics = Metrics(idle, "nano")
    outputs = [
        CompletionOutput(i, "", [7], finish_reason="abort", error="timeout: it had 2 s")
        if reason == "timed out"
        else CompletionOutput(i, "", [7], finish_reason=reason)
        for i, reason in enumerate(reasons)
    ]
    output = RequestOutput("a", None, [1], outputs, True, RequestMetrics(1, 2, 3, 4, 1, len(outputs)))
    metrics.on_finished(output, SamplingParams(), len(outputs))
    values = samples(metrics)
    assert total(values, counted[0], **counted[1]) == 1
    assert total(values, "vllm:request_success_total") + total(values, "lynx:aborted_requests_total") == 1


def test_server_metrics_exist_before_the_model(idle: Engine) -> None:
    metrics = Metrics(None, "nano")
    metrics.on_http("/v1/models", "GET", 503, 0.01)
    metrics.set_startup_seconds("load", 12.5)
    metrics.set_event_loop_lag(0.25)
    metrics.on_step()
    values = samples(metrics)
    assert total(values, "http_requests_total", handler="/v1/models", method="GET", status="503") == 1
    assert total(values, "http_request_duration_seconds_sum") == 0.01
    assert total(values, "lynx:startup_seconds", phase="load") == 12.5
    assert total(values, "lynx:event_loop_lag_seconds") == 0.25
    assert not any(name.startswith("vllm:") for name, _ in values)
    assert not any(name == "lynx:queue_limit_requests" for name, _ in values), "no limit is not a limit of 0"
    metrics.attach(idle)
    metrics.set_memory_bandwidth(2e10)
    metrics.on_grammar_compile(0.03)
    metrics.on_tool_parse_failure("hermes")
    metrics.on_aborted("drain")
    values = samples(metrics)
    assert total(values, "vllm:num_requests_running") == 0
    assert total(values, "lynx:memory_bandwidth_bytes") == 2e10
    assert total(values, "lynx:grammar_compile_seconds_count") == 1
    assert total(values, "lynx:tool_parse_failures_total", parser="hermes") == 1
    assert total(values, "lynx:aborted_requests_total", reason="drain") == 1


def test_two_servers_in_a_process_share_nothing(idle: Engine) -> None:
    first, second = Metrics(idle, "a"), Metrics(idle, "b")
    first.on_accepted()
    assert total(samples(second), "lynx:accepted_requests_total") == 0
    first.close()
    first.close()
    assert asyncio.run(second.render())[0]


def test_series_of_reasons_exist_from_the_start(idle: Engine) -> None:
    values = samples(Metrics(idle, "nano"))
    for reason in ("stop", "length", "error"):
        assert total(values, "vllm:request_success_total", finished_reason=reason) == 0
    for reason in ("client", "timeout", "drain", "error"):
        assert total(values, "lynx:aborted_requests_total", reason=reason) == 0


def test_anonymous_memory_grows_with_the_process() -> None:
    before = anonymous_memory()
    if not Path("/proc/self/status").exists():
        assert before is None
        return
    # New pages: an array may take memory that the process has freed.
    with mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        kept.write(b"x" * len(kept))
        after = anonymous_memory()
    assert before is not None and after is not None and after - before > 48 << 20


def test_token_buckets() -> None:
    assert token_buckets(1) == (1,)
    assert token_buckets(100) == (1, 2, 5, 10, 20, 50, 100)
    assert token_buckets(4999)[-1] == 2000


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, idle: Engine) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'lynx_rt\[serve\]'"):
        Metrics(idle, "nano")


def test_per_layer_series_stop_at_64_layers(idle: Engine) -> None:
    """A model with more MoE layers has one series for all, unless asked for."""
    layers = [dataclasses.replace(idle.stats().layers[0], layer=i, steps=1) for i in range(65)]
    deep: Any = SimpleNamespace(
        stats=lambda: dataclasses.replace(idle.stats(), layers=layers),
        step_sums=idle.step_sums,
        expert_selection="topk",
        model_config=idle.model_config,
        max_model_len=64,
        stalled_seconds=0.0,
        last_step_time=0.0,
    )
    steps = "lynx:moe_layer_steps_total"
    assert [v for (name, _), v in samples(Metrics(deep, "deep")).items() if name == steps] == [65]
    assert len([name for name, _ in samples(Metrics(deep, "deep", per_layer=True)) if name == steps]) == 65

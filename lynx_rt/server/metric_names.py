"""The metrics of the server: name, type, labels, buckets and help text of each. docs/metrics.md explains them to people.

The `vllm:` ones have vLLM's names, types, labels and buckets, so that its dashboards and the routers and autoscalers that read
it work here. The `lynx:` ones are sums, so that any mean over time is a ratio of two rate()s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

REPLICA = ("model_name", "engine")

FINISHED_REASONS = ("stop", "length", "error")
ABORTED_REASONS = ("client", "timeout", "drain", "error")
REJECTED_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens")
STEP_PHASES = ("attention", "router", "experts", "dense", "sampling", "other")

_TTFT = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
_PER_TOKEN = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_LATENCY = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)  # fmt: skip
_STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
_HTTP = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # fmt: skip
_STEP = (.0005, .001, .002, .004, .008, .016, .032, .064, .128, .256, .512)  # fmt: skip
_GRAMMAR = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10)  # fmt: skip
_EXPERTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)


@dataclass(frozen=True)
class Metric:
    """One metric. buckets: upper bounds; "tokens" = 1, 2, 5, 10, ... up to the model's max_model_len."""

    name: str  # as Prometheus shows it: a counter's ends in _total
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = REPLICA
    buckets: tuple[float, ...] | Literal["tokens"] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "counter", text, REPLICA + labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", text, REPLICA + labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...] | Literal["tokens"], *labels: str) -> Metric:
    return Metric(name, "histogram", text, REPLICA + labels, buckets)


# Read from the engine at a scrape.
ENGINE = (
    _gauge("vllm:num_requests_running", "Completions that the engine works on."),
    _gauge("vllm:num_requests_waiting", "Completions that wait for a place in the batch."),
    _gauge(
        "vllm:num_requests_waiting_by_reason",
        "Completions that wait, by reason: capacity (places or KV pages), deferred (always 0 here).",
        "reason",
    ),
    _gauge("vllm:kv_cache_usage_perc", "Share of the KV cache's memory in use, 0 to 1."),
    _gauge(
        "vllm:cache_config_info",
        "Always 1; the labels say how the KV cache is divided. num_gpu_blocks: its pages, on a CPU too.",
        "block_size",
        "num_gpu_blocks",
    ),
    _counter(
        "vllm:prompt_tokens_total",
        "Prompt tokens, cached ones included, once per completion; counted at its first token, so an aborted prefill adds nothing.",
    ),
    _counter(
        "vllm:prompt_tokens_by_source_total",
        "Prompt tokens by origin: local_compute, local_cache_hit.",
        "source",
    ),
    _counter("vllm:prompt_tokens_cached_total", "Prompt tokens that were found in the prefix cache."),
    _counter(
        "vllm:generation_tokens_total",
        "Generated tokens, counted step by step: those of requests that are still running or were aborted included.",
    ),
    _counter("vllm:prefix_cache_queries_total", "Prompt tokens that were looked up in the prefix cache."),
    _counter("vllm:prefix_cache_hits_total", "Prompt tokens that the prefix cache had."),
    _counter("vllm:num_preemptions_total", "Completions whose KV pages were taken for others, to be computed again."),
    _counter("lynx:steps_total", "Engine steps by kind: decode_only, mixed (with rows of prompts).", "kind"),
    _counter(
        "lynx:step_seconds_total",
        "Time inside engine steps by phase. dense: all other linear layers and the embedding; other: norms, scheduling, the rest.",
        "phase",
    ),
    _counter(
        "lynx:bytes_read_total",
        "Bytes that the steps had to read by kind: experts, kv, dense (all other weights).",
        "kind",
    ),
    _counter(
        "lynx:decode_rows_total",
        "Decode rows by mode: selected, exact (the request asked for the model's own routing), topk (the policy is that, or did not "
        "act), mixed_step (the step had prompts).",
        "mode",
    ),
    _counter("lynx:moe_layer_steps_total", "Decode-only steps of an MoE layer.", "layer"),
    _counter("lynx:moe_rows_total", "Rows of the decode-only steps of an MoE layer.", "layer"),
    _counter("lynx:moe_experts_read_total", "Experts that decode-only steps read.", "layer"),
    _counter(
        "lynx:moe_experts_union_before_total",
        "Experts that decode-only steps would have read with the model's own routing.",
        "layer",
    ),
    _counter(
        "lynx:moe_remapped_pairs_total", "Pairs of row and slot that got another expert than the model chose.", "layer"
    ),
    _counter(
        "lynx:moe_retained_mass_total", "Gate mass that selection kept, summed over rows; 1 a row = all of it.", "layer"
    ),
    _counter(
        "lynx:moe_guard_hits_total",
        "Decode-only steps that kept the model's own routing, because selection would not have read fewer experts.",
        "layer",
    ),
    _gauge("lynx:policy_info", "Always 1; the label is the current expert selection.", "policy"),
    _gauge(
        "lynx:slo_level",
        "Level that the slo policy has chosen: 0 = the weakest selection. Absent under other policies.",
    ),
    _gauge(
        "lynx:slo_target_seconds", "Decode-only step time that the slo policy aims at. Absent under other policies."
    ),
    _counter("lynx:slo_steps_over_target_total", "Decode-only steps above the slo policy's target."),
    _counter(
        "lynx:tier_experts_total",
        "Experts of a layer and step where not all are in memory: hit, miss (read from the expert file, or computed from its copy in low "
        "precision). Prompts included.",
        "result",
    ),
    _counter("lynx:tier_bytes_read_total", "Bytes of experts that steps read from the expert file."),
    _counter(
        "lynx:tier_failed_reads_total", "Reads of experts that failed, each of which ended the requests of its step."
    ),
    _counter("lynx:tier_wait_seconds_total", "Time in which a step had nothing to compute before an expert was read."),
    _gauge("lynx:tier_resident_experts", "Experts that stay in memory. Absent where all do."),
    _counter("lynx:images_total", "Images of prompts, counted when the prompt is done."),
    _counter(
        "lynx:image_outputs_total",
        "What the vision tower says of an image, by how a request got it: encoded (the tower ran), cached. Neither where the image's pages "
        "were in the prefix cache.",
        "source",
    ),
    _counter("lynx:encoder_seconds_total", "Time in which the vision tower ran, within engine steps."),
    _gauge("lynx:encoder_cache_bytes", "Memory of the vision tower's results that are kept."),
    _gauge("lynx:num_waiting_tokens", "Prompt tokens of the completions that wait."),
    _gauge(
        "lynx:engine_stalled_seconds",
        "Time since a step ended while requests are in flight, else 0. Live also where a step hangs.",
    ),
    _gauge("lynx:engine_last_step_timestamp_seconds", "Unix time at which the last engine step ended; 0 = none yet."),
    _gauge(
        "lynx:anonymous_memory_bytes",
        "Anonymous memory of the process, in RAM and swap (RssAnon + VmSwap); Linux only.",
    ),
)

# Kept by the server as requests pass.
REQUESTS = (
    _counter(
        "vllm:request_success_total",
        "Requests that ended by themselves: stop, length, error. Aborted ones are in lynx:aborted_requests_total.",
        "finished_reason",
    ),
    Metric(
        "vllm:admission_rejections_total",
        "counter",
        "Requests that were refused because of load, by the limit that was reached.",
        ("model_name", "reason"),
    ),
    _histogram("vllm:time_to_first_token_seconds", "Arrival to the first token; once per request that has one.", _TTFT),
    _histogram("vllm:inter_token_latency_seconds", "Time between two tokens of a completion.", _PER_TOKEN),
    _histogram(
        "vllm:request_time_per_output_token_seconds",
        "Mean time per token after the first of a finished request, in its longest completion.",
        _PER_TOKEN,
    ),
    _histogram("vllm:e2e_request_latency_seconds", "Arrival to the last token of a finished request.", _LATENCY),
    _histogram("vllm:request_queue_time_seconds", "Arrival to the first step of a finished request.", _LATENCY),
    _histogram("vllm:request_inference_time_seconds", "First step to the last token of a finished request.", _LATENCY),
    _histogram("vllm:request_prefill_time_seconds", "First step to the first token of a finished request.", _LATENCY),
    _histogram("vllm:request_decode_time_seconds", "First token to the last of a finished request.", _LATENCY),
    _histogram("vllm:request_prompt_tokens", "Prompt tokens of a finished request.", "tokens"),
    _histogram("vllm:request_generation_tokens", "Tokens of all completions of a finished request.", "tokens"),
    _histogram(
        "vllm:request_max_num_generation_tokens", "Tokens of the longest completion of a finished request.", "tokens"
    ),
    _histogram("vllm:request_params_max_tokens", "max_tokens of a finished request, where it gave one.", "tokens"),
    _histogram("vllm:request_params_n", "Completions that a finished request asked for.", (1, 2, 5, 10, 20)),
    _histogram(
        "vllm:request_prefill_kv_computed_tokens",
        "Prompt tokens of a finished request that the prefix cache did not have.",
        "tokens",
    ),
    _histogram("vllm:request_num_preemptions", "Preemptions of a finished request.", (0, 1, 2, 5, 10, 20, 50)),
    _histogram(
        "vllm:iteration_tokens_total",
        "Tokens of an engine step: one per generated token, and the whole prompt in the step that ends it.",
        _STEP_TOKENS,
    ),
    _histogram("lynx:decode_step_seconds", "Time of a decode-only step.", _STEP, "policy"),
    _histogram(
        "lynx:experts_read_per_layer_step", "Experts that a decode-only step read, mean over the MoE layers.", _EXPERTS
    ),
    _histogram("lynx:batch_rows", "Rows of a decode-only step.", _ROWS),
    _counter("lynx:accepted_requests_total", "Requests that were queued. Each ends as succeeded or as aborted."),
    _counter(
        "lynx:aborted_requests_total",
        "Requests that were ended from outside: client (gone, or asked for it), timeout, drain, error (of the server).",
        "reason",
    ),
    _counter("lynx:tool_parse_failures_total", "Outputs that a tool parser could not read.", "parser"),
    _histogram("lynx:grammar_compile_seconds", "Compilation of a request's grammar or schema.", _GRAMMAR),
)

# Metrics of the server itself, which exist before a model is loaded.
SERVER = (
    Metric(
        "http_requests_total",
        "counter",
        "HTTP requests by route, method and status; not those to the probes and to /metrics.",
        ("handler", "method", "status"),
    ),
    Metric(
        "http_request_duration_seconds",
        "histogram",
        "Time from an HTTP request's head to the end of its answer, a stream's last event included.",
        ("handler", "method"),
        _HTTP,
    ),
    _gauge("lynx:event_loop_lag_seconds", "How much too late the event loop's last timer ran."),
    _gauge("lynx:startup_seconds", "Time that a phase of the start took.", "phase"),
    _gauge("lynx:queue_limit_requests", "Requests that may wait before others are refused. Absent without a limit."),
    _gauge(
        "lynx:memory_bandwidth_bytes",
        "Bytes per second of plain reading, measured at the start for models of 1 GiB and more on a CPU.",
    ),
)


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """Returns 1, 2, 5, 10, ... up to max_model_len, which must be positive."""

    def series() -> Iterator[float]:
        scale = 1
        while True:
            yield from (scale, 2 * scale, 5 * scale)
            scale *= 10

    bounds = []
    for bound in series():
        if bound > max_model_len:
            break
        bounds.append(bound)
    return tuple(bounds)

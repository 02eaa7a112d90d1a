"""What the server counts, in Prometheus' format. Hooks note what happens; the engine's own statistics are read at a scrape."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from lynx_rt.server import metric_names
from lynx_rt.server.engine_metrics import EngineMetrics
from lynx_rt.server.histogram import Histogram, Series
from lynx_rt.server.metric_names import Metric

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine
    from lynx_rt.engine.outputs import RequestMetrics, RequestOutput
    from lynx_rt.engine.sampling_params import SamplingParams

_LOG = logging.getLogger(__name__)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Hook = TypeVar("_Hook", bound=Callable[..., None])


def _safe(hook: _Hook) -> _Hook:
    """A hook whose errors are logged, once per hook, and go no further: a metric must not end a request."""

    @functools.wraps(hook)
    def safe(self: Metrics, *args: Any, **options: Any) -> None:
        try:
            hook(self, *args, **options)
        except Exception:
            if hook.__name__ not in self._failed:
                self._failed.add(hook.__name__)
                _LOG.exception("metrics: %s failed; its further errors are not logged", hook.__name__)

    return safe  # type: ignore[return-value]


class Metrics:
    """The metrics of one server, in a registry of their own. Hooks may be called from any thread and raise nothing.

    Every request that the engine takes calls on_accepted, then on_first_token if it has a token, and then one of on_finished and
    on_aborted.
    engine: None = not loaded yet; `attach` adds it, and until then only HTTP requests and the start are measured.
    model_name: the served name, the label of all `vllm:` and `lynx:` metrics.  per_layer: see EngineMetrics.
    Raises ImportError without prometheus_client.
    """

    def __init__(self, engine: Engine | None, model_name: str, *, per_layer: bool | None = None) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise ImportError("metrics need prometheus_client: pip install 'lynx_rt[serve]'") from error
        self.registry = prometheus_client.CollectorRegistry()
        self._client = prometheus_client
        self._labels = dict(zip(metric_names.REPLICA, (model_name, "0"), strict=True))
        self._per_layer = per_layer
        self._engine: EngineMetrics | None = None
        self._token_gaps: Series
        self._metrics: dict[str, Any] = {}  # counters and histograms with the replica's labels only
        self._labelled: dict[str, Callable[..., Any]] = {}  # the others, as functions of their own labels
        self._failed: set[str] = set()  # what has been logged already
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="lynx_rt-metrics")
        prometheus_client.ProcessCollector(registry=self.registry)
        self._add(metric_names.SERVER)
        if engine is not None:
            self.attach(engine)

    def attach(self, engine: Engine) -> None:
        """Adds the metrics of an engine that is idle. Once only."""
        self._add(metric_names.REQUESTS, metric_names.token_buckets(engine.max_model_len))
        self._engine = EngineMetrics(engine, self._labels, self._per_layer)
        self.registry.register(self._engine)
        self._token_gaps = self._metrics["vllm:inter_token_latency_seconds"]
        # Series that exist before their first event: rate() does not see the step from absent to 1.
        for name, values in (
            ("vllm:request_success_total", metric_names.FINISHED_REASONS),
            ("vllm:admission_rejections_total", metric_names.REJECTED_REASONS),
            ("lynx:aborted_requests_total", metric_names.ABORTED_REASONS),
        ):
            for value in values:
                self._labelled[name](value)

    async def render(self) -> tuple[bytes, str]:
        """Returns the body of /metrics and its content type. The event loop does not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._renderer, self.render_now)

    def render_now(self) -> tuple[bytes, str]:
        """`render` for callers that may wait, at most about 0.2 s."""
        if self._engine is not None:
            self._engine.refresh()
        return self._client.generate_latest(self.registry), _CONTENT_TYPE

    def close(self) -> None:
        """Ends the thread that renders. Idempotent."""
        self._renderer.shutdown(wait=False)

    # Hooks of a request's life

    @_safe
    def on_accepted(self) -> None:
        """The engine took a request."""
        self._metrics["lynx:accepted_requests_total"].inc()

    @_safe
    def on_rejected(self, reason: str) -> None:
        """A request was refused because of load. reason: one of metric_names.REJECTED_REASONS, or another fixed word."""
        self._labelled["vllm:admission_rejections_total"](reason).inc()

    @_safe
    def on_first_token(self, metrics: RequestMetrics) -> None:
        """A request has its first token, of any of its completions. metrics: those of the output that brings it."""
        self._observe("vllm:time_to_first_token_seconds", metrics.ttft)

    @_safe
    def on_tokens(self, count: int, gap_seconds: float) -> None:
        """A completion got `count` tokens, all of them after its first, `gap_seconds` after the ones before."""
        self._token_gaps.observe(gap_seconds / count, count)

    @_safe
    def on_finished(self, output: RequestOutput, params: SamplingParams, n: int) -> None:
        """A request has ended, `output` is its final one. One with an aborted completion counts as aborted by its client or timeout."""
        aborted = [out for out in output.outputs if out.finish_reason == "abort"]
        if aborted:
            self.on_aborted("timeout" if any((out.error or "").startswith("timeout") for out in aborted) else "client")
            return
        reasons = {out.finish_reason for out in output.outputs}
        reason = next((name for name in ("error", "length") if name in reasons), "stop")
        self._labelled["vllm:request_success_total"](reason).inc()
        metrics, observe = output.metrics, self._observe
        longest = max((len(out.token_ids) for out in output.outputs), default=0)
        if metrics.decode_time is not None and longest > 1:
            observe("vllm:request_time_per_output_token_seconds", metrics.decode_time / (longest - 1))
        if metrics.first_scheduled_time and metrics.finish_time:
            observe("vllm:request_inference_time_seconds", metrics.finish_time - metrics.first_scheduled_time)
        observe("vllm:e2e_request_latency_seconds", metrics.e2e)
        observe("vllm:request_queue_time_seconds", metrics.queue_time)
        observe("vllm:request_prefill_time_seconds", metrics.prefill_time)
        observe("vllm:request_decode_time_seconds", metrics.decode_time)
        observe("vllm:request_prompt_tokens", metrics.num_prompt_tokens)
        observe("vllm:request_generation_tokens", metrics.num_generation_tokens)
        observe("vllm:request_max_num_generation_tokens", longest)
        observe("vllm:request_params_max_tokens", params.max_tokens)
        observe("vllm:request_params_n", n)
        observe("vllm:request_prefill_kv_computed_tokens", metrics.num_prompt_tokens - metrics.num_cached_tokens)
        observe("vllm:request_num_preemptions", metrics.num_preemptions)

    @_safe
    def on_aborted(self, reason: str) -> None:
        """A request was ended from outside. reason: one of metric_names.ABORTED_REASONS."""
        self._labelled["lynx:aborted_requests_total"](reason).inc()

    # Hooks of the server and the engine

    @_safe
    def on_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request has been answered. handler: the route's template, since a client can make up any number of paths."""
        self._labelled["http_requests_total"](handler, method, str(status)).inc()
        self._labelled["http_request_duration_seconds"](handler, method).observe(seconds)

    @_safe
    def on_tool_parse_failure(self, parser: str) -> None:
        """A tool parser could not read an output."""
        self._labelled["lynx:tool_parse_failures_total"](parser).inc()

    @_safe
    def on_grammar_compile(self, seconds: float) -> None:
        """A grammar or schema has been compiled."""
        self._metrics["lynx:grammar_compile_seconds"].observe(seconds)

    @_safe
    def on_step(self) -> None:
        """The engine has made a step. Called by the thread that steps, before the next one, so that single steps are seen."""
        step = self._engine.read_step() if self._engine is not None else None
        if step is None:
            return
        self._observe("vllm:iteration_tokens_total", step.tokens)
        if step.decode_only:
            self._labelled["lynx:decode_step_seconds"](step.policy).observe(step.seconds)
            self._observe("lynx:batch_rows", step.rows)
            self._observe("lynx:experts_read_per_layer_step", step.experts_per_layer)

    @_safe
    def set_event_loop_lag(self, seconds: float) -> None:
        """How much too late the event loop's last timer ran."""
        self._labelled["lynx:event_loop_lag_seconds"]().set(seconds)

    @_safe
    def set_startup_seconds(self, phase: str, seconds: float) -> None:
        """A phase of the start is over."""
        self._labelled["lynx:startup_seconds"](phase).set(seconds)

    @_safe
    def set_queue_limit(self, requests: int) -> None:
        """The number of requests that may wait before others are refused. Not called where there is no limit."""
        self._labelled["lynx:queue_limit_requests"]().set(requests)

    @_safe
    def set_memory_bandwidth(self, bytes_per_second: float) -> None:
        """The machine's rate of plain reading has been measured."""
        self._labelled["lynx:memory_bandwidth_bytes"]().set(bytes_per_second)

    # Internals

    def _add(self, metrics: tuple[Metric, ...], token_buckets: tuple[float, ...] = ()) -> None:
        kinds = {"counter": self._client.Counter, "gauge": self._client.Gauge}
        for metric in metrics:
            made: Any
            if metric.kind == "histogram":
                bounds = token_buckets if metric.buckets == "tokens" else metric.buckets
                made = Histogram(metric.name, metric.help, metric.labels, bounds)
                self.registry.register(made)
            else:
                made = kinds[metric.kind](metric.name, metric.help, metric.labels, registry=self.registry)
            shared = [self._labels[label] for label in metric.labels if label in self._labels]
            # A gauge is absent until it is set: 0 would be a wrong value.
            if len(shared) < len(metric.labels) or metric.kind == "gauge":
                self._labelled[metric.name] = functools.partial(made.labels, *shared)
            else:
                self._metrics[metric.name] = made.labels(*shared)

    def _observe(self, name: str, value: float | None) -> None:
        if value is not None:
            self._metrics[name].observe(value)

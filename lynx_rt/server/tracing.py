"""OpenTelemetry spans of requests, sent to a collector over OTLP/HTTP. Needs the extra [trace]."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from lynx_rt.engine.outputs import RequestOutput
    from lynx_rt.engine.sampling_params import SamplingParams

_LOG = logging.getLogger(__name__)
_HEADERS = ("traceparent", "tracestate")
_Attributes = Mapping[str, Any]


class Tracing:
    """Makes one span `llm_request` per request, as a child of the caller's where its headers name one (W3C trace context).

    A span has times, numbers of tokens and parameters; no text of prompts or answers. Spans are sent by a thread in the background.
    Methods raise nothing and may be called from any thread.

    endpoint: URL of the collector ("http://localhost:4318"; without a path, /v1/traces); None = tracing is off. OpenTelemetry's
    own variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, ...) hold.
    Raises ImportError if tracing is on and OpenTelemetry is missing.
    """

    def __init__(self, endpoint: str | None, model_name: str) -> None:
        self._model_name = model_name
        self._provider: Any = None
        self._warned = False
        if endpoint is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ImportError("tracing needs OpenTelemetry: pip install 'lynx_rt[trace]'") from error
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + "/v1/traces"
        service = os.environ.get("OTEL_SERVICE_NAME", "lynx_rt")
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("lynx_rt")

    def on_end(
        self,
        output: RequestOutput,
        params: SamplingParams,
        headers: Mapping[str, str],
        *,
        operation: str = "chat",
        attributes: _Attributes | None = None,
    ) -> None:
        """Sends the span of a request that has ended, or was given up: then `output` is the last one that came.

        headers: of the HTTP request, names in lower case.  operation: "chat" or "text_completion".
        attributes: further ones (lynx.policy, lynx.exact, ...); None values are left out.
        """
        try:
            if self._provider is not None:
                self._send(output, params, headers, {"gen_ai.operation.name": operation, **(attributes or {})})
            elif not self._warned and any(name in headers for name in _HEADERS):
                self._warned = True
                _LOG.warning("a request has trace headers, but tracing is off: --otlp-traces-endpoint turns it on")
        except Exception:
            if not self._warned:
                self._warned = True
                _LOG.exception("tracing: a span could not be made; further errors are not logged")

    def close(self, timeout: float = 2.0) -> None:
        """Sends what is left and ends the thread. Waits at most `timeout` seconds for a collector that does not answer."""
        if self._provider is not None:
            closing = threading.Thread(target=self._provider.shutdown, name="lynx_rt-trace-end", daemon=True)
            closing.start()
            closing.join(timeout)

    def _send(
        self, output: RequestOutput, params: SamplingParams, headers: Mapping[str, str], attributes: _Attributes
    ) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        metrics = output.metrics
        now = time.monotonic()
        to_unix = time.time() - now
        start, end = metrics.arrival_time or now, metrics.finish_time or now
        reasons = [out.finish_reason or "abort" for out in output.outputs]
        found = {
            "gen_ai.system": "lynx_rt",
            "gen_ai.request.id": output.request_id,
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
            "gen_ai.request.n": params.n,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.response.finish_reasons": reasons,
            "gen_ai.usage.prompt_tokens": metrics.num_prompt_tokens,
            "gen_ai.usage.completion_tokens": metrics.num_generation_tokens,
            "gen_ai.usage.input_tokens": metrics.num_prompt_tokens,
            "gen_ai.usage.output_tokens": metrics.num_generation_tokens,
            "gen_ai.latency.time_in_queue": metrics.queue_time,
            "gen_ai.latency.time_in_scheduler": metrics.scheduler_time,
            "gen_ai.latency.time_to_first_token": metrics.ttft,
            "gen_ai.latency.time_in_model_prefill": metrics.prefill_time,
            "gen_ai.latency.time_in_model_decode": metrics.decode_time,
            "gen_ai.latency.time_in_model_inference": end - metrics.first_scheduled_time
            if metrics.first_scheduled_time
            else None,
            "gen_ai.latency.e2e": end - start,
            **attributes,
        }
        span = self._tracer.start_span(
            "llm_request",
            context=TraceContextTextMapPropagator().extract(
                {name: headers[name] for name in _HEADERS if name in headers}
            ),
            kind=SpanKind.SERVER,
            start_time=round((start + to_unix) * 1e9),
            attributes={name: value for name, value in found.items() if value is not None},
        )
        if errors := [out.error for out in output.outputs if out.error]:
            span.set_status(Status(StatusCode.ERROR, errors[0]))
        span.end(round((end + to_unix) * 1e9))

"""Spans as a collector receives them over HTTP."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lynx_rt import Engine, SamplingParams
from lynx_rt.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput
from lynx_rt.server.tracing import Tracing

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=x"}
SECRET = "Q: 12 times 22 = ?\nA:"


class Collector:
    """A collector of OTLP over HTTP."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.paths.append(self.path)
                outer.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def test_a_request_is_one_span(nano: Engine, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    tracing = Tracing(collector.url, "nano")
    params = SamplingParams(temperature=0.5, top_p=0.9, max_tokens=6, n=2, ignore_eos=True)
    began = time.time_ns()
    [output] = nano.generate(SECRET, params)
    tracing.on_end(
        output, params, PARENT, attributes={"lynx.policy": "topk", "lynx.exact": True, "lynx.retained_mass": None}
    )
    tracing.close()

    [span] = collector.spans()
    assert collector.paths == ["/v1/traces"]
    assert (span.name, span.kind) == ("llm_request", span.SPAN_KIND_SERVER)
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.trace_state == "vendor=x"
    found, metrics = attributes(span), output.metrics
    times = {name: found.pop(name) for name in list(found) if name.startswith("gen_ai.latency.")}
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "lynx_rt",
        "gen_ai.request.id": output.request_id,
        "gen_ai.request.model": "nano",
        "gen_ai.response.model": "nano",
        "gen_ai.request.n": 2,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.prompt_tokens": len(output.prompt_token_ids),
        "gen_ai.usage.completion_tokens": 12,
        "gen_ai.usage.input_tokens": len(output.prompt_token_ids),
        "gen_ai.usage.output_tokens": 12,
        "lynx.policy": "topk",
        "lynx.exact": True,
    }
    assert {name.removeprefix("gen_ai.latency."): value for name, value in times.items()} == pytest.approx(
        {
            "time_in_queue": metrics.queue_time,
            "time_in_scheduler": metrics.scheduler_time,
            "time_to_first_token": metrics.ttft,
            "time_in_model_prefill": metrics.prefill_time,
            "time_in_model_decode": metrics.decode_time,
            "time_in_model_inference": metrics.finish_time - metrics.first_scheduled_time,
            "e2e": metrics.e2e,
        }
    )
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(metrics.e2e, abs=1e-6)
    assert began - 10**9 < span.start_time_unix_nano <= span.end_time_unix_nano < time.time_ns() + 10**9
    [resource] = collector.requests[0].resource_spans
    assert ("service.name", "lynx_rt") in {(pair.key, pair.value.string_value) for pair in resource.resource.attributes}
    assert b"12 times" not in collector.requests[0].SerializeToString(), "a span must not hold text"


def test_ends_of_other_kinds(collector: Collector) -> None:
    """A request without a parent, one whose client left before anything happened, and one that failed."""
    tracing = Tracing(collector.url + "/custom", "nano")
    params = SamplingParams(max_tokens=None)

    def output(name: str, out: CompletionOutput, times: RequestMetrics) -> RequestOutput:
        return RequestOutput(name, None, [1, 2], [out], out.finished, times)

    now = time.monotonic()
    tracing.on_end(output("left", CompletionOutput(0, "", []), RequestMetrics()), params, {})
    broken = CompletionOutput(0, "", [3], finish_reason="error", error="it cannot be decoded")
    tracing.on_end(
        output("failed", broken, RequestMetrics(now - 3, now - 2, now - 1, now)), params, {"traceparent": "nonsense"}
    )
    tracing.close()
    assert set(collector.paths) == {"/custom"}
    left, failed = sorted(collector.spans(), key=lambda span: attributes(span)["gen_ai.request.id"] != "left")
    assert left.parent_span_id == failed.parent_span_id == b"" and left.trace_id != failed.trace_id
    assert attributes(left)["gen_ai.response.finish_reasons"] == ["abort"]
    assert "gen_ai.latency.time_to_first_token" not in attributes(left)
    assert "gen_ai.request.max_tokens" not in attributes(left)
    assert left.status.code == left.status.STATUS_CODE_UNSET
    assert (failed.status.code, failed.status.message) == (failed.status.STATUS_CODE_ERROR, "it cannot be decoded")
    assert attributes(failed)["gen_ai.latency.e2e"] == pytest.approx(3)


def test_a_parent_that_is_not_sampled_has_no_span(collector: Collector) -> None:
    tracing = Tracing(collector.url, "nano")
    output = RequestOutput("a", None, [1], [CompletionOutput(0, "", [])], False, RequestMetrics())
    tracing.on_end(output, SamplingParams(), {"traceparent": PARENT["traceparent"][:-2] + "00"})
    tracing.close()
    assert collector.spans() == []


def test_trace_headers_without_tracing_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    tracing = Tracing(None, "nano")
    output = RequestOutput("a", None, [1], [CompletionOutput(0, "", [])], False, RequestMetrics())
    tracing.on_end(output, SamplingParams(), {"host": "x"})
    assert caplog.records == []
    for _ in range(3):
        tracing.on_end(output, SamplingParams(), PARENT)
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "--otlp-traces-endpoint" in record.message
    tracing.close()


def test_errors_stay_inside(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    tracing: Any = Tracing(collector.url, "nano")
    for _ in range(3):
        tracing.on_end(None, None, None)
    assert len(caplog.records) == 1
    tracing.close()


def test_an_absent_collector_does_not_hold_up_the_end() -> None:
    """In a process of its own: its end must not wait for another try either."""
    code = (
        "from lynx_rt import SamplingParams\n"
        "from lynx_rt.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput\n"
        "from lynx_rt.server.tracing import Tracing\n"
        "tracing = Tracing('http://127.0.0.1:9', 'nano')\n"
        "output = RequestOutput('a', None, [1], [CompletionOutput(0, '', [])], False, RequestMetrics())\n"
        "tracing.on_end(output, SamplingParams(), {})\n"
        "tracing.close(0.1)\n"
        "import time; print(time.time())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert time.time() - float(done.stdout) < 4  # a try and its pauses take 7 seconds


def test_off_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    Tracing(None, "nano").close()
    with pytest.raises(ImportError, match=r"pip install 'lynx_rt\[trace\]'"):
        Tracing("http://127.0.0.1:1", "nano")

"""How a request's end is counted, by what ended it."""

from __future__ import annotations

import pytest
from metered import samples, total

from lynx_rt import Engine, SamplingParams
from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.errors import EngineClosedError, QueueFullError, ValidationError
from lynx_rt.server.metrics import Metrics
from lynx_rt.server.prompts import parse
from lynx_rt.server.request_metrics import RequestMeter
from lynx_rt.server.tracing import Tracing

COUNTS = {
    "accepted": "lynx:accepted_requests_total",
    "succeeded": "vllm:request_success_total",
    "aborted": "lynx:aborted_requests_total",
    "rejected": "vllm:admission_rejections_total",
    "first": "vllm:time_to_first_token_seconds_count",
    "gaps": "vllm:inter_token_latency_seconds_count",
}


@pytest.fixture
def metrics(nano: Engine) -> Metrics:
    return Metrics(nano, "nano")


@pytest.fixture
def request_of_two(nano: Engine) -> Request:
    """A request of two completions that is not queued."""
    [parsed] = parse(nano, "Q: 12 times 22 = ?\nA:")
    return nano.inputs.request([parsed], SamplingParams(n=2, max_tokens=4), None)


def meter(metrics: Metrics, request: Request) -> RequestMeter:
    return RequestMeter(metrics, Tracing(None, "nano"), request, {}, "chat")


def counted(metrics: Metrics) -> dict[str, float]:
    values = samples(metrics)
    return {name: count for name, metric in COUNTS.items() if (count := total(values, metric))}


def delta(index: int, *token_ids: int) -> CompletionDelta:
    return CompletionDelta(index, "", list(token_ids), None, None, None, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QueueFullError("full", "max_num_queued_tokens"), {"rejected": 1}),
        (ValidationError("request_id is in use", "request_id"), {}),
        (EngineClosedError("closed"), {"accepted": 1, "aborted": 1}),
    ],
)
def test_requests_that_the_engine_did_not_run(
    metrics: Metrics, request_of_two: Request, error: Exception, expected: dict[str, int]
) -> None:
    request_of_two.error = error
    meter(metrics, request_of_two).end("client")
    assert counted(metrics) == expected
    if "rejected" in expected:
        assert total(samples(metrics), COUNTS["rejected"], reason="max_num_queued_tokens") == 1
    if "aborted" in expected:
        assert total(samples(metrics), COUNTS["aborted"], reason="error") == 1


@pytest.mark.parametrize("cause", ["client", "drain", "error"])
def test_requests_that_were_ended(metrics: Metrics, request_of_two: Request, cause: str) -> None:
    """Before their first token, as some are that the engine has not seen yet."""
    meter(metrics, request_of_two).end(cause)
    assert counted(metrics) == {"accepted": 1, "aborted": 1}
    assert total(samples(metrics), COUNTS["aborted"], reason=cause) == 1


def test_every_gap_between_tokens_is_counted(metrics: Metrics, request_of_two: Request) -> None:
    """Also of tokens that came together because the event loop was late."""
    for completion in request_of_two.completions:
        completion.metrics.arrival_time, completion.metrics.first_token_time = 1.0, 2.0
    found = meter(metrics, request_of_two)
    for part in (delta(0), delta(0, 5), delta(1, 6, 7, 8), delta(0, 9, 10), delta(0)):
        found.note(part)
    for completion in request_of_two.completions:
        completion.abort()
    found.end("drain")
    assert counted(metrics) == {"accepted": 1, "aborted": 1, "first": 1, "gaps": 2 + 2}
    assert total(samples(metrics), COUNTS["aborted"], reason="drain") == 1

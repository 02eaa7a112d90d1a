"""The definitions of load tests, on recorded times."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fake_server import event, token, usage

from lynx_rt.bench.client import Reply
from lynx_rt.bench.measures import Outcome, details, events, good_requests, outcome, summarize

DONE = event(b"[DONE]")


def reply(*pieces: tuple[float, bytes], sent: float = 10.0, due: float = 9.5) -> Reply:
    return Reply(due=due, sent=sent, status=200, pieces=list(pieces))


def test_definitions() -> None:
    """TTFT, ITL, E2EL and TPOT of a stream whose times are known; usage and [DONE] come later and do not count."""
    one = outcome(reply((10.5, token("a")), (10.75, token("b")), (11.5, token("")), (12, usage(7, 4)), (13, DONE)), 5)
    assert (one.ttft, one.itls, one.latency, one.queued) == (0.5, [0.25, 0.75], 1.5, 0.5)
    assert (one.prompt_tokens, one.output_tokens, one.text, one.error) == (7, 4, "ab", "")
    assert one.tpot == pytest.approx((1.5 - 0.5) / 3)  # by the usage, which counts a token more than events came


def test_without_usage_events_are_counted() -> None:
    one = outcome(reply((11, token("a")), (12, token("b")), (12, DONE)), 5)
    assert (one.prompt_tokens, one.output_tokens, one.tpot) == (5, 2, 1.0)


def test_one_token_has_no_tpot() -> None:
    assert outcome(reply((11, token("a")), (12, DONE)), 5).tpot is None


def test_chat() -> None:
    """The role alone, and the end alone, are no tokens; reasoning and tool calls are."""

    def delta(finish: str | None = None, **fields: object) -> bytes:
        return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})

    one = outcome(
        reply(
            (11, delta(role="assistant", content="")),
            (12, delta(reasoning="r", reasoning_content="r")),
            (13, delta(content="c")),
            (14, delta(tool_calls=[{"index": 0}])),
            (15, delta("stop", content="")),
            (15.5, delta("stop")),
            (16, DONE),
        ),
        1,
    )
    assert (one.ttft, one.itls, one.latency, one.text) == (2.0, [1.0, 1.0], 4.0, "rc")


def test_events_have_the_time_of_their_last_piece() -> None:
    text = b": a comment\r\n\r\ndata: 1\r\n\r\ndata:2\n\ndata: 3\ndata: 4\n\n"
    assert [data for _, data in events([(0.0, text)])] == ["1", "2", "3\n4"]
    for cut in range(len(text)):
        found = list(events([(1.0, text[:cut]), (2.0, text[cut:])]))
        assert [data for _, data in found] == ["1", "2", "3\n4"], cut
        assert sorted(when for when, _ in found) == [when for when, _ in found]
    one_by_one = [(float(i), text[i : i + 1]) for i in range(len(text))]
    assert next(iter(events(one_by_one))) == (text.index(b"1\r\n\r\n") + 4.0, "1")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Reply(sent=1), "no answer"),
        (Reply(sent=1, error="ConnectionRefusedError: no"), "ConnectionRefusedError: no"),
        (Reply(sent=1, status=503, pieces=[(2, b'{"error": {"message": "full"}}')]), "HTTP 503: full"),
        (Reply(sent=1, status=401, pieces=[(2, b'{"error": "Unauthorized"}')]), "HTTP 401: Unauthorized"),
        (Reply(sent=1, status=502, pieces=[(2, b"<html>")]), "HTTP 502: <html>"),
        (reply((11, DONE)), "no token came"),
        (reply((11, token("a"))), "the stream ended without [DONE]"),
        (reply((11, token("a")), (12, event({"error": {"message": "broke"}})), (12, DONE)), "in the stream: broke"),
        (reply((11, token("a")), (12, b"data: {\n\n"), (12, DONE)), "an event is not JSON: {"),
    ],
)
def test_failures_are_named(answer: Reply, error: str) -> None:
    assert outcome(answer, 1).error == error


def made(count: int, seed: int = 0) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        itls = [float(gap) for gap in rng.exponential(0.02, int(rng.integers(0, 20)))]
        ttft = float(rng.exponential(0.1))
        made.append(Outcome(100 + 0.1 * i, 10, 0.001, ttft, ttft + sum(itls), itls, len(itls) + 1, "x"))
    return made


def test_summary_is_numpy_on_the_definitions() -> None:
    outcomes = [*made(50), Outcome(101, 10, error="HTTP 503: full"), Outcome(102, 10, error="HTTP 503: full")]
    result = summarize(outcomes, 8.0, (50, 99, 99.9), {"ttft": 100.0})
    good = outcomes[:50]
    assert (result["completed"], result["failed"], result["error_counts"]) == (50, 2, {"HTTP 503: full": 2})
    assert result["total_input_tokens"] == 500
    assert result["total_output_tokens"] == sum(one.output_tokens for one in good)
    assert result["request_throughput"] == 50 / 8
    assert result["total_token_throughput"] == pytest.approx((500 + result["total_output_tokens"]) / 8)
    tpots = [(one.latency - one.ttft) / (one.output_tokens - 1) for one in good if one.output_tokens > 1]
    itls = np.concatenate([one.itls for one in good])
    assert len(tpots) < 50
    for name, values in (("tpot", tpots), ("itl", itls), ("ttft", [one.ttft for one in good])):
        ms = 1e3 * np.asarray(values)
        assert result[f"mean_{name}_ms"] == pytest.approx(ms.mean())
        assert result[f"std_{name}_ms"] == pytest.approx(ms.std())
        for q, text in ((50, "p50"), (99, "p99"), (99.9, "p99.9")):
            assert result[f"{text}_{name}_ms"] == pytest.approx(np.percentile(ms, q))
    assert result["request_goodput"] == sum(one.ttft <= 0.1 for one in good) / 8


def test_names_of_vllm() -> None:
    """The fields that `vllm bench serve` 0.32 writes for a generation model."""
    result = {**summarize(made(3), 1.0), **details(made(3))}
    text = """duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput output_throughput
        total_token_throughput max_output_tokens_per_s max_concurrent_requests input_lens output_lens ttfts itls latencies
        start_times queue_times generated_texts errors rtfx"""
    names = set(text.split())
    for kind in ("mean", "median", "std", "p99"):
        names |= {f"{kind}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el", "client_queue_time")}
    assert names <= set(result)
    json.dumps(result, allow_nan=False)


def test_no_success_is_no_crash() -> None:
    result = summarize([Outcome(1, 1, error="x")], 1.0, (99,), {"tpot": 1.0})
    assert (result["completed"], result["request_goodput"], result["p99_ttft_ms"]) == (0, 0.0, 0.0)
    assert summarize([], 1.0)["completed"] == 0


def test_goodput_counts() -> None:
    """A request must meet all objectives; exactly at the limit is met; one token meets any TPOT; a failure meets none."""
    fast = Outcome(0, 1, ttft=0.1, latency=1.1, output_tokens=11)  # TPOT 0.1 s
    slow = Outcome(0, 1, ttft=0.1, latency=2.1, output_tokens=11)
    single = Outcome(0, 1, ttft=0.5, latency=0.5, output_tokens=1)
    failed = Outcome(0, 1, ttft=0.1, latency=0.2, output_tokens=11, error="x")
    everything = [fast, slow, single, failed]
    assert good_requests(everything, {"tpot": 100.0001}) == 2
    assert good_requests(everything, {"tpot": 99}) == 1
    assert good_requests(everything, {"ttft": 100}) == 2
    assert good_requests(everything, {"ttft": 500, "tpot": 150}) == 2
    assert good_requests(everything, {"ttft": 500, "tpot": 150, "e2el": 600}) == 1
    assert good_requests(everything, {}) == 3


def test_peaks() -> None:
    """Tokens and requests by whole seconds since the first was sent."""
    a = Outcome(5.0, 1, ttft=0.5, itls=[0.25, 0.5], latency=1.25, output_tokens=3)  # tokens at 0.5, 0.75, 1.25
    b = Outcome(6.0, 1, ttft=0.1, itls=[0.1], latency=0.2, output_tokens=2)  # tokens at 1.1, 1.2
    result = summarize([a, b], 2.0)
    assert (result["max_output_tokens_per_s"], result["max_concurrent_requests"]) == (3.0, 2)
    assert math.isclose(result["mean_e2el_ms"], 725)

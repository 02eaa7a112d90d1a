"""Metrics and traces of a live server: they agree with what its clients saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from live_server import LiveServer, serving
from metered import Samples, parse, total
from test_tracing import PARENT, Collector, attributes

LONG = {"prompt": "Q: 345 + 678 = ?\nA:", "max_tokens": 900, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def server() -> Iterator[LiveServer]:
    """A server of its own with four places: its counts start at 0."""
    with serving("--max-num-seqs", "2", "--max-num-queued-reqs", "2", "--selection", "lynx") as live:
        yield live


def scrape(server: LiveServer) -> Samples:
    answer = server.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.text)


def leave(server: LiveServer, events: int) -> None:
    """Opens a stream and goes after some events."""
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        data = (line for line in answer.iter_lines() if line.startswith("data:"))
        for _ in range(events):
            next(data)


def test_counts_agree_with_the_answers(server: LiveServer) -> None:
    """Answered, streamed, refused, wrong and abandoned requests."""
    usages = [
        server.complete(prompt=f"Q: {i} + {i} = ?\nA:", max_tokens=3 + i, temperature=0)["usage"] for i in range(6)
    ]
    usages.append(server.complete(prompt=["Q: 1 + 1 = ?\nA:", "Q: 2 + 2 = ?\nA:"], max_tokens=4)["usage"])
    usages.append(server.chat(max_tokens=5)["usage"])
    body = {"prompt": "Q: 12 times 22 = ?\nA:", "max_tokens": 9, "stream_options": {"include_usage": True}}
    usages.append(server.events("/v1/completions", body)[-2]["usage"])
    for _ in range(3):
        leave(server, 4)
    server.wait_idle()
    assert server.post("/v1/completions", {**LONG, "temperature": -1}).status_code == 400
    assert server.post("/v1/completions", {**LONG, "prompt": [1] * 5000}).status_code == 400
    assert server.client.get("/nothing").status_code == 404
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(leave, server, 40) for _ in range(4)]
        while server.num_sequences() < 4:
            time.sleep(0.001)
        assert server.post("/v1/completions", LONG).status_code == 503
        for future in waiting:
            future.result()
    server.wait_idle()

    values = scrape(server)
    assert total(values, "lynx:accepted_requests_total") == 17
    assert total(values, "vllm:request_success_total") == 10
    assert (
        total(values, "lynx:aborted_requests_total", reason="client")
        == total(values, "lynx:aborted_requests_total")
        == 7
    )
    assert total(values, "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert total(values, "vllm:time_to_first_token_seconds_count") == 17
    assert total(values, "vllm:num_requests_running") == total(values, "vllm:num_requests_waiting") == 0
    prompt, completion = (sum(usage[f"{kind}_tokens"] for usage in usages) for kind in ("prompt", "completion"))
    assert total(values, "vllm:request_prompt_tokens_sum") == prompt
    assert total(values, "vllm:request_generation_tokens_sum") == completion
    # The engine also counts what it computed for clients that went.
    assert total(values, "vllm:generation_tokens_total") >= completion + 3 * 4 + 4 * 40
    steps = total(values, "lynx:steps_total")
    assert total(values, "vllm:iteration_tokens_total_count") == steps > 0
    assert total(values, "vllm:iteration_tokens_total_sum") == sum(
        total(values, f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")
    )
    decode_steps = total(values, "lynx:steps_total", kind="decode_only")
    assert total(values, "lynx:batch_rows_count") == total(values, "lynx:decode_step_seconds_count") == decode_steps
    assert total(values, "lynx:queue_limit_requests") == 2
    assert total(values, "lynx:startup_seconds", phase="load") > 0
    posts = {
        status: total(values, "http_requests_total", handler="/v1/completions", status=status)
        for status in ("400", "503")
    }
    assert posts == {"400": 2, "503": 1}
    assert total(values, "http_requests_total", handler="none", status="404") == 1
    paths = {dict(labels)["handler"] for name, labels in values if name == "http_requests_total"}
    assert not paths & {"/metrics", "/ready", "/health"}


def test_a_timeout_is_counted_as_one() -> None:
    with serving("--request-timeout", "0.05") as live:
        live.complete(**LONG)
        values = scrape(live)
        assert total(values, "lynx:aborted_requests_total", reason="timeout") == 1
        assert total(values, "lynx:accepted_requests_total") == 1


def test_scrapes_while_it_runs(server: LiveServer) -> None:
    """Counters only rise, and gauges show what runs."""
    stop = threading.Event()
    running = set()
    fallen = []

    def watch() -> None:
        before: Samples = {}
        while not stop.is_set():
            now = scrape(server)
            fallen.extend(
                key for key, value in before.items() if key[0].endswith(("_total", "_count")) and now[key] < value
            )
            running.add(total(now, "vllm:num_requests_running"))
            before = now

    thread = threading.Thread(target=watch)
    thread.start()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: leave(server, 150), range(2)))
    stop.set()
    thread.join()
    assert fallen == []
    assert max(running) >= 1
    server.wait_idle()
    assert total(scrape(server), "vllm:num_requests_running") == 0


def test_spans_of_served_requests() -> None:
    collector = Collector()
    try:
        with serving("--otlp-traces-endpoint", collector.url) as live:
            chat = {"messages": [{"role": "user", "content": "12 times 22 = ?"}], "max_tokens": 4}
            answer = live.post("/v1/chat/completions", chat, headers=PARENT).json()
            live.complete(prompt="Q: 1 + 1 = ?\nA:", max_tokens=4)
            assert live.stop() == 0
        spans = {attributes(span)["gen_ai.operation.name"]: span for span in collector.spans()}
        assert set(spans) == {"chat", "text_completion"}
        assert spans["chat"].parent_span_id.hex() == PARENT["traceparent"].split("-")[2]
        found = attributes(spans["chat"])
        assert found["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
        assert found["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
        assert found["lynx.policy"] == "topk"
    finally:
        collector.close()


def test_trace_headers_with_tracing_off_are_one_warning(server: LiveServer) -> None:
    for _ in range(3):
        server.post("/v1/completions", {"prompt": "Q: 1 + 1 = ?\nA:", "max_tokens": 1}, headers=PARENT)
    assert server.stop() == 0
    assert server.log().count("--otlp-traces-endpoint") == 1

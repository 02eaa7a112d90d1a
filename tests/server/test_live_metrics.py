"""Metrics and traces of a live server: they agree with what its clients saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from live_server import LiveServer, serving
from metered import Samples, parse, total
from test_tracing import PARENT, Collector, attributes

from lynx_rt.server.metric_names import ABORTED_REASONS

LONG = {"prompt": "Q: 345 + 678 = ?\nA:", "max_tokens": 900, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[LiveServer]:
    """A server of its own, with four places."""
    options = ("--max-num-seqs", "2", "--max-num-queued-reqs", "2", "--selection", "lynx")
    with serving(*options, "--otlp-traces-endpoint", collector.url, env={"OTEL_BSP_SCHEDULE_DELAY": "20"}) as live:
        yield live


def scrape(server: LiveServer) -> Samples:
    answer = server.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.text)


def since(before: Samples, after: Samples) -> Samples:
    """Returns what was added in between."""
    return {key: value - before.get(key, 0) for key, value in after.items()}


def leave(server: LiveServer, events: int, meanwhile: Callable[[], None] = lambda: None, **body: object) -> None:
    """Opens a stream and goes after some events."""
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json={**LONG, **body, "stream": True}) as answer,
    ):
        data = (line for line in answer.iter_lines() if line.startswith("data:"))
        for _ in range(events):
            next(data)
        meanwhile()


def test_counts_agree_with_the_answers(server: LiveServer) -> None:
    """Answered, streamed, refused, wrong and abandoned requests, and one whose time was over."""
    before = scrape(server)
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
    statuses = []
    # Its completions take all places.
    leave(server, 1, lambda: statuses.append(server.post("/v1/completions", LONG).status_code), n=4, temperature=1)
    assert statuses == [503]
    server.wait_idle()
    choices = {"structured_outputs": {"choice": ["yes", "no"]}, "prompt": "Q: 1 + 1 = ?\nA:", "temperature": 0}
    usages += [server.complete(**choices)["usage"] for _ in range(2)]
    late = server.post("/v1/completions", {**LONG, "timeout": 0.1})
    assert late.status_code == 504 and late.json()["error"]["type"] == "timeout_error"

    now = scrape(server)
    values = since(before, now)
    assert total(values, "lynx:accepted_requests_total") == 17
    assert total(values, "vllm:request_success_total") == 12
    aborted = {reason: total(values, "lynx:aborted_requests_total", reason=reason) for reason in ABORTED_REASONS}
    assert aborted == {"client": 4, "timeout": 1, "drain": 0, "error": 0}
    assert total(values, "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert total(values, "vllm:time_to_first_token_seconds_count") in (16, 17), "the late one may have had no token"
    assert total(now, "vllm:num_requests_running") == total(now, "vllm:num_requests_waiting") == 0
    assert total(now, "lynx:num_waiting_tokens") == total(now, "lynx:engine_stalled_seconds") == 0
    assert total(now, "vllm:kv_cache_usage_perc") == 0
    prompt, completion = (sum(usage[f"{kind}_tokens"] for usage in usages) for kind in ("prompt", "completion"))
    assert total(values, "vllm:request_prompt_tokens_sum") == prompt
    assert total(values, "vllm:request_generation_tokens_sum") == completion
    # The engine also counts what it computed for clients that went.
    assert total(values, "vllm:generation_tokens_total") >= completion + 3 * 4 + 1
    steps = total(values, "lynx:steps_total")
    assert total(values, "vllm:iteration_tokens_total_count") == steps > 0
    assert total(values, "vllm:iteration_tokens_total_sum") == sum(
        total(values, f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")
    )
    decode_steps = total(values, "lynx:steps_total", kind="decode_only")
    assert total(values, "lynx:batch_rows_count") == total(values, "lynx:decode_step_seconds_count") == decode_steps
    assert total(values, "lynx:grammar_compile_seconds_count") == 1, "the second request finds the grammar compiled"
    assert total(now, "lynx:queue_limit_requests") == 2
    assert total(now, "lynx:startup_seconds", phase="load") > 0
    posts = {
        status: total(values, "http_requests_total", handler="/v1/completions", status=status)
        for status in ("400", "503")
    }
    assert posts == {"400": 2, "503": 1}
    assert total(values, "http_requests_total", handler="none", status="404") == 1
    paths = {dict(labels)["handler"] for name, labels in values if name == "http_requests_total"}
    assert not paths & {"/metrics", "/ready", "/health"}


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


def test_spans_of_served_requests(server: LiveServer, collector: Collector) -> None:
    chat = {"messages": [{"role": "user", "content": "12 times 22 = ?"}], "max_tokens": 4}
    answer = server.post("/v1/chat/completions", chat, headers=PARENT).json()
    end = time.monotonic() + 30
    parent = PARENT["traceparent"].split("-")[2]
    while not (found := [span for span in collector.spans() if span.parent_span_id.hex() == parent]):
        assert time.monotonic() < end, "no span came"
        time.sleep(0.01)
    [span] = map(attributes, found)
    assert span["gen_ai.operation.name"] == "chat"
    assert span["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert span["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert span["lynx.policy"].startswith("lynx")
    assert span["lynx.exact"] == (span["lynx.selected_rows"] == 0) == answer["lynx"]["exact"]
    assert 4 <= span["lynx.experts_read_per_layer"] <= 32  # of 32, 4 a token
    completions = [span for span in map(attributes, collector.spans()) if span["gen_ai.operation.name"] != "chat"]
    assert {span["gen_ai.operation.name"] for span in completions} <= {"text_completion"}


def test_answers_say_how_many_rows_were_selected(server: LiveServer) -> None:
    """Two prompts share all of their decode steps: rows of both were selected, but for an exact request."""
    body = {"prompt": ["Q: 1 + 2 = ?\nA:", "Q: 3 + 4 = ?\nA:"], "max_tokens": 20, "ignore_eos": True}
    answer = server.complete(**body)
    assert 0 < answer["lynx"]["selected_rows"] <= 38 and not answer["lynx"]["exact"]
    usage = server.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})[-2]
    assert 0 < usage["lynx"]["selected_rows"] <= 38 and not usage["lynx"]["exact"]
    answer = server.complete(**body, expert_selection="exact")
    assert answer["lynx"]["selected_rows"] == 0 and answer["lynx"]["exact"]
    assert "experts" not in str(answer["lynx"])

"""The client of load tests against a server with known delays and faults."""

from __future__ import annotations

import asyncio
import time

import pytest
from fake_server import Script, chunked, event, fake_server, head, json_answer, stream, token

from lynx_rt import LynxError
from lynx_rt.bench.client import Reply, Target, exchange, get, request_bytes
from lynx_rt.bench.measures import Outcome, outcome
from lynx_rt.bench.prompts import PromptSource
from lynx_rt.bench.run import Run, drive, first_model, plan, wait_ready
from lynx_rt.bench.traces import Arrival

SLACK = 5.0  # seconds that a loaded machine may add; delays below it are checked from below only


def send(url: str, body: dict | None = None, timeout_s: float = 60) -> Outcome:
    target = Target.parse(url)
    request = request_bytes(target, "POST", "/v1/completions", body or {})
    return outcome(asyncio.run(exchange(target, request, Reply(), timeout_s)), 1)


def run(url: str, arrivals: list[Arrival], **options: object) -> Run:
    target = Target.parse(url)
    planned = plan(target, "completions", "m", arrivals, PromptSource(100), 0, {"temperature": 0.0})
    return asyncio.run(drive(target, planned, **options))  # type: ignore[arg-type]


def test_delays_are_measured() -> None:
    delays = [0.2, 0.1, 0.0, 0.3]
    with fake_server(lambda route, body: stream(delays)) as url:
        one = send(url)
    assert (one.error, one.text, one.prompt_tokens, one.output_tokens) == ("", "t0t1t2t3", 3, 4)
    assert 0.2 <= one.ttft < 0.2 + SLACK
    assert 0.6 <= one.latency < 0.6 + SLACK
    # A late read makes one gap longer and the next one shorter, so gaps are compared in their sum.
    assert sum(one.itls) == pytest.approx(one.latency - one.ttft) and max(one.itls) > 0.2
    assert one.tpot == pytest.approx(sum(one.itls) / 3)


def test_request_is_what_was_planned() -> None:
    seen: list[tuple[str, dict]] = []

    def answer(route: str, body: dict) -> Script:
        seen.append((route, body))
        return stream([0.0])

    with fake_server(answer) as url:
        assert not run(f"{url}/prefix/v1", [Arrival(0, 5, 7)]).outcomes[0].error
    [(route, body)] = seen
    assert route == "/prefix/v1/completions"
    prompt = body.pop("prompt")
    assert len(prompt) == 5 and all(0 <= token < 100 for token in prompt)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert body == {"model": "m", "max_tokens": 7, "temperature": 0.0, **options}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_any_division_into_packets(size: int) -> None:
    whole = b"".join(piece for _, piece in stream([0] * 3))
    pieces = [(0.001, whole[at : at + size]) for at in range(0, len(whole), size)]
    with fake_server(lambda route, body: pieces) as url:
        one = send(url)
    assert (one.error, one.text, one.output_tokens) == ("", "t0t1t2", 3)


def test_other_framings() -> None:
    body = token("a") + event(b"[DONE]")
    for answer in (
        [(0, head(extra="Connection: close") + body), (0, b"")],  # until the connection closes
        [(0, head(extra=f"Content-Length: {len(body)}") + body), (60, b"")],
        [(0, b"HTTP/1.1 100 Continue\r\n\r\n" + head() + chunked(body)[0] + b"0;x=y\r\n\r\n"), (60, b"")],
    ):
        with fake_server(lambda route, body, answer=answer: answer) as url:
            assert send(url).error == ""


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([(0, b"")], "the connection was lost: closed in mid-answer"),
        ([(0, head() + chunked(token("a"))[0]), (0, b"")], "the connection was lost: closed in mid-answer"),
        (
            [(0, head(extra="Content-Length: 500") + token("a")), (0, b"")],
            "the connection was lost: closed in mid-answer",
        ),
        ([(0, b"SSH-2.0-x\r\n\r\n")], "the answer is not HTTP/1.1"),
        ([(0, head() + b"zz\r\n")], "the answer is not HTTP/1.1"),
        (json_answer({"error": {"message": "the queue is full"}}, 503), "HTTP 503: the queue is full"),
        ([(60, b"")], "no end of the answer within 0.3 s"),
    ],
)
def test_faults_are_named(answer: Script, error: str) -> None:
    with fake_server(lambda route, body: answer) as url:
        assert send(url, timeout_s=0.3 if "within" in error else 60).error == error


def test_nobody_listens() -> None:
    with fake_server(lambda route, body: []) as url:
        pass
    assert "ConnectionRefusedError" in send(url).error


def test_errors_do_not_stop_a_run() -> None:
    """Of ten requests, three fail, each in its way."""
    count = iter(range(10))

    def answer(route: str, body: dict) -> Script:
        number = next(count)
        broken = {2: json_answer({}, 500), 5: [(0, b"")], 7: stream([0], end=[event({"error": {"message": "x"}})])}
        return broken.get(number, stream([0, 0]))

    ended = []
    with fake_server(answer) as url:
        done = run(url, [Arrival(0, 1, 2)] * 10, max_concurrency=1, on_end=lambda: ended.append(1))
    errors = [one.error for one in done.outcomes if one.error]
    assert len(ended) == 10 and errors == [
        "HTTP 500: {}",
        "the connection was lost: closed in mid-answer",
        "in the stream: x",
    ]


def test_times_of_sending() -> None:
    """Requests go out at their times, however slow the answers are, and not before."""
    arrivals = [Arrival(at, 1, 1) for at in (0.0, 0.05, 0.2, 0.4)]
    with fake_server(lambda route, body: stream([0.5])) as url:
        done = run(url, arrivals)
    starts = [one.start for one in done.outcomes]
    for one, arrival in zip(done.outcomes, arrivals):
        assert one.start - one.queued == pytest.approx(starts[0] - done.outcomes[0].queued + arrival.at)
        assert 0 <= one.queued < SLACK
    assert 0.9 <= done.duration < 0.9 + SLACK and len(done.late) == 4


def test_concurrency_is_held() -> None:
    running, most = [0], [0]

    def answer(route: str, body: dict) -> Script:
        running[0] += 1
        most[0] = max(most[0], running[0])
        return Counted(stream([0.03]))

    class Counted(list):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from super().__iter__()
            running[0] -= 1

    with fake_server(answer) as url:
        done = run(url, [Arrival(0, 1, 1)] * 12, max_concurrency=3)
    assert not any(one.error for one in done.outcomes)
    # A server sees the end of an answer after the client does, so that it can count one too many per client.
    assert 3 <= most[0] <= 6
    assert done.duration >= 4 * 0.03 and max(one.queued for one in done.outcomes) >= 3 * 0.03


def test_cancellation_keeps_what_has_ended() -> None:
    def answer(route: str, body: dict) -> Script:
        return stream([0.0 if body["max_tokens"] == 1 else 60.0])

    async def cancelled(url: str) -> Run:
        target = Target.parse(url)
        arrivals = [Arrival(0, 1, 1), Arrival(0, 1, 2), Arrival(0, 1, 1), Arrival(60, 1, 1)]
        planned = plan(target, "completions", "m", arrivals, PromptSource(9), 0, {})
        ends = []
        task = asyncio.ensure_future(drive(target, planned, on_end=lambda: ends.append(1)))
        while len(ends) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        return await task

    with fake_server(answer) as url:
        done = asyncio.run(cancelled(url))
    assert done.interrupted and [one.error for one in done.outcomes] == ["", ""] and done.duration < 30


def test_the_client_measures_itself() -> None:
    """A loop that is held up shows in the lag."""

    async def held(url: str) -> Run:
        target = Target.parse(url)
        planned = plan(target, "completions", "m", [Arrival(0, 1, 1)], PromptSource(9), 0, {})
        asyncio.get_running_loop().call_later(0.1, time.sleep, 0.2)
        return await drive(target, planned)

    with fake_server(lambda route, body: stream([0.5])) as url:
        done = asyncio.run(held(url))
    assert max(done.lag) >= 0.18 and done.client()["client_lag_p99_ms"] > done.client()["client_lag_p50_ms"]
    assert 0 < done.cpu < done.duration + SLACK


def test_ready() -> None:
    """A server that loads is waited for; one that refuses is not."""
    tries = iter([json_answer({}, 503), json_answer({}, 503), stream([0])])
    target_of = Target.parse

    async def ready(url: str) -> None:
        target = target_of(url)
        [request] = plan(target, "completions", "m", [Arrival(0, 1, 1)], PromptSource(9), 0, {})
        await wait_ready(target, request, 60)

    with fake_server(lambda route, body: next(tries)) as url:
        asyncio.run(ready(url))
    with (
        fake_server(lambda route, body: json_answer({"error": {"message": "bad key"}}, 401)) as url,
        pytest.raises(LynxError, match="does not answer a request: HTTP 401: bad key"),
    ):
        asyncio.run(ready(url))


def test_first_model() -> None:
    with fake_server(lambda route, body: json_answer({"data": [{"id": "m", "max_model_len": 8}]})) as url:
        assert asyncio.run(first_model(Target.parse(url), 5))["id"] == "m"
        assert asyncio.run(get(Target.parse(url), "/x")).status == 200
    with (
        fake_server(lambda route, body: json_answer({}, 404)) as url,
        pytest.raises(LynxError, match="/v1/models: HTTP 404"),
    ):
        asyncio.run(first_model(Target.parse(url), 5))


def test_targets() -> None:
    assert Target.parse("http://h:80/v1/") == Target("h", 80)
    assert Target.parse("https://h/a/v1", "k") == Target("h", 443, "/a", True, "k")
    assert Target.parse("http://[::1]:8000").url == "http://[::1]:8000"
    for url in ("h:8000", "ftp://h", "http://", "http://h:x"):
        with pytest.raises(LynxError, match="--base-url"):
            Target.parse(url)
    request = request_bytes(Target("h", 1, "/p", key="k"), "GET", "/r")
    assert request == b"GET /p/r HTTP/1.1\r\nHost: h:1\r\nConnection: close\r\nAuthorization: Bearer k\r\n\r\n"

"""return_progress: a stream says how much of its prompt has been computed."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from live_server import LiveServer, serving

ROWS = 32  # of a step


@pytest.fixture(scope="module")
def slow_reader() -> Iterator[LiveServer]:
    with serving("--max-num-batched-tokens", str(ROWS)) as live:
        yield live


def messages(salt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": salt + " 12 times 22 = ?" * 20}]


@pytest.mark.parametrize("salt", ["a", "b"])
def test_progress_of_a_chat(slow_reader: LiveServer, salt: str) -> None:
    body = {"messages": messages(salt), "max_tokens": 4, "temperature": 1, "seed": 1, "n": 2}
    plain = slow_reader.events("/v1/chat/completions", body)
    assert not any("prompt_progress" in event for event in plain[:-1])
    body["messages"] = messages(salt + "!")
    options = {"include_usage": True}
    *events, usage, done = slow_reader.events(
        "/v1/chat/completions", {**body, "return_progress": True, "stream_options": options}
    )
    assert done == "[DONE]"
    total = usage["usage"]["prompt_tokens"]
    reports = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert [report["total"] for report in reports] == [total] * len(reports)
    assert {report["cache"] for report in reports} == {0}
    # the step thread may be ahead of the event loop, which then tells of several steps at once
    counts = [report["processed"] for report in reports]
    assert counts == sorted(set(counts)) and counts[-1] == total and all(c % ROWS == 0 for c in counts[:-1])
    assert len(counts) >= total // ROWS // 4
    times = [report["time_ms"] for report in reports]
    assert times == sorted(times) and times[0] >= 0
    for place, event in enumerate(events):
        assert event["usage"] is None
        if "prompt_progress" in event:
            assert event["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}]
            assert place < len(reports), "progress comes before the tokens"


def test_tokens_of_the_prefix_cache(slow_reader: LiveServer) -> None:
    body = {"prompt": "Q: 1 + 2 = ?" * 20, "max_tokens": 3, "return_progress": True}
    first = slow_reader.events("/v1/completions", body)
    second = slow_reader.events("/v1/completions", body)
    for events, cached in ((first, False), (second, True)):
        reports = [event["prompt_progress"] for event in events[:-1] if "prompt_progress" in event]
        assert all((report["cache"] > 0) == cached and report["processed"] > report["cache"] for report in reports)
        assert reports[-1]["processed"] == reports[-1]["total"]
        texts = [event["choices"][0]["text"] for event in events[:-1]]
        assert "".join(texts) and not any(texts[: len(reports)])


def test_several_prompts(slow_reader: LiveServer) -> None:
    body = {"prompt": ["x y z " * 20, "z y x " * 30], "max_tokens": 2, "return_progress": True, "cache_salt": "several"}
    events = slow_reader.events("/v1/completions", body)[:-1]
    last = {e["choices"][0]["index"]: e["prompt_progress"] for e in events if "prompt_progress" in e}
    assert set(last) == {0, 1} and all(report["processed"] == report["total"] for report in last.values())
    assert last[0]["total"] < last[1]["total"]


def test_the_official_client(slow_reader: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{slow_reader.url}/v1", api_key="none")
    extra = {"return_progress": True, "structured_outputs": {"choice": ["yes"]}}
    with client.chat.completions.stream(model="lynx-nano", messages=messages("c"), extra_body=extra) as stream:
        reports = [
            event.chunk.model_extra["prompt_progress"]
            for event in stream
            if event.type == "chunk" and "prompt_progress" in (event.chunk.model_extra or {})
        ]
        message = stream.get_final_completion().choices[0].message
    assert reports[-1]["processed"] == reports[-1]["total"]
    assert (message.role, message.content) == ("assistant", "yes")


def test_answers_that_are_no_stream_have_none(slow_reader: LiveServer) -> None:
    assert "prompt_progress" not in slow_reader.chat(return_progress=True, max_tokens=1)
    answer = slow_reader.post("/v1/completions", {"prompt": "a", "return_progress": "yes"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "return_progress")
    # streams of other APIs have no place for it
    body = {"input": "Hi", "max_output_tokens": 2, "stream": True, "return_progress": True}
    names = [event["type"] for event in slow_reader.events("/v1/responses", body)]
    assert names[0] == "response.created" and names[-1] in ("response.completed", "response.incomplete")


def test_timings(slow_reader: LiveServer) -> None:
    """llama-server's names; of a whole answer, and of every chunk."""
    body = {"prompt": "Q: 7 + 8 = ?" * 20, "max_tokens": 6, "ignore_eos": True, "timings_per_token": True}
    slow_reader.complete(**body)
    answer = slow_reader.complete(**body)
    timings, tokens = answer["timings"], answer["usage"]
    assert timings["cache_n"] == tokens["prompt_tokens_details"]["cached_tokens"] > 0
    assert timings["prompt_n"] + timings["cache_n"] == tokens["prompt_tokens"] and timings["predicted_n"] == 6
    assert timings["predicted_ms"] == pytest.approx(answer["lynx"]["generation_ms"])
    assert timings["predicted_per_second"] == pytest.approx(answer["lynx"]["tokens_per_second"])
    assert timings["predicted_per_token_ms"] == pytest.approx(timings["predicted_ms"] / 5, abs=1e-3)
    assert timings["prompt_per_token_ms"] == pytest.approx(timings["prompt_ms"] / timings["prompt_n"], abs=1e-3)
    del body["prompt"]
    events = slow_reader.events("/v1/chat/completions", {**body, "messages": messages("t"), "return_progress": True})
    counts = [event["timings"]["predicted_n"] for event in events[:-1]]
    assert counts == sorted(counts) and counts[-1] == 6
    assert "timings" in slow_reader.chat(max_tokens=1, timings_per_token=True)
    assert "timings" not in slow_reader.chat(max_tokens=1) and "timings" not in slow_reader.complete(prompt="a")

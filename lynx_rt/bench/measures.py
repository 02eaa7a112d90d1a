"""What a load test measures, computed after the run from the times at which pieces of answers came.

The definitions and the names of the results are those of `vllm bench serve` (vllm/benchmarks/serve.py, 0.32), so that what
reads its files reads these. For one request, with s = the time it was sent (before the connection is opened), t_1 .. t_m =
the times of its m token-bearing events, and n = its output tokens by the answer's `usage` (m where there is none):

    TTFT = t_1 - s              time to first token
    ITL  = t_i - t_(i-1)        inter-token latency; the gaps of all requests are pooled
    E2EL = t_m - s              end-to-end latency; the usage event and [DONE] do not count
    TPOT = (E2EL - TTFT) / (n - 1)    time per output token after the first; requests with n <= 1 have none

Throughputs are sums over the successful requests by the duration of the run. Goodput counts the successful requests that
meet every objective, where a request without TPOT meets that one. Percentiles interpolate linearly between order statistics.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lynx_rt.bench.client import Reply

METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass
class Outcome:
    """One request. Times are seconds; `start` is on the clock of time.perf_counter()."""

    start: float
    prompt_tokens: int
    queued: float = (
        0.0  # between the time it was due and `start`: the wait for --max-concurrency, and the client's lateness
    )
    ttft: float = 0.0
    latency: float = 0.0  # E2EL
    itls: list[float] = field(default_factory=list)
    output_tokens: int = 0
    text: str = ""
    error: str = ""  # "" = success

    @property
    def tpot(self) -> float | None:
        return (self.latency - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, str]]:
    """Yields the data of server-sent events, each with the time of the piece that completes it. Comments are left out."""
    rest = b""
    for when, piece in pieces:
        *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield when, b"\n".join(lines).decode(errors="replace")


def outcome(reply: Reply, prompt_tokens: int) -> Outcome:
    """Reads the answer to a streamed request of /v1/completions or /v1/chat/completions.

    prompt_tokens: as sent; the answer's `usage` goes before it. An answer fails where the connection or HTTP did, where an
    event is an error, where no token came, and where the stream ended without [DONE].
    """
    result = Outcome(reply.sent, prompt_tokens, queued=reply.sent - reply.due, error=reply.error)
    if reply.status not in (0, 200):
        result.error = f"HTTP {reply.status}: {_error_text(reply.body)}"
    if reply.status != 200:
        result.error = result.error or "no answer"
        return result
    times: list[float] = []
    done = False
    for when, data in events(reply.pieces):
        if data == "[DONE]":
            done = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            result.error = result.error or f"an event is not JSON: {data[:80]}"
            continue
        if "error" in event:
            result.error = f"in the stream: {_error_text(data.encode())}"
        usage = event.get("usage") or {}
        result.output_tokens = usage.get("completion_tokens") or result.output_tokens
        result.prompt_tokens = usage.get("prompt_tokens") or result.prompt_tokens
        text = _token_text(event)
        if text is not None:
            times.append(when)
            result.text += text
    result.output_tokens = result.output_tokens or len(times)
    if times:
        result.ttft = times[0] - reply.sent
        result.latency = times[-1] - reply.sent
        result.itls = [after - before for before, after in itertools.pairwise(times)]
    if not result.error and not (times and done):
        result.error = "the stream ended without [DONE]" if times else "no token came"
    return result


def _token_text(event: dict[str, Any]) -> str | None:
    """Returns the text of a token-bearing event, which may be empty; None for others: the role, usage, the end alone."""
    choices = event.get("choices") or [{}]
    choice = choices[0]
    delta = choice.get("delta", choice)
    texts = [delta.get(name) for name in ("text", "content", "reasoning", "reasoning_content")]
    text = next((text for text in texts if text is not None), None)
    if text == "" and "text" not in delta and ("role" in delta or choice.get("finish_reason")):
        return None
    return "" if text is None and delta.get("tool_calls") else text


def _error_text(body: bytes) -> str:
    text = body.decode(errors="replace")
    try:
        error = json.loads(text).get("error", text)
    except (ValueError, AttributeError):
        return text[:200]
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def good_requests(outcomes: Sequence[Outcome], goodput_ms: Mapping[str, float]) -> int:
    """Counts the successful requests that meet all objectives. goodput_ms: of GOODPUT_METRICS -> limit in milliseconds."""

    def meets(one: Outcome) -> bool:
        seconds = {"ttft": one.ttft, "tpot": one.tpot or 0.0, "e2el": one.latency}
        return all(seconds[name] * 1e3 <= limit for name, limit in goodput_ms.items())

    return sum(not one.error and meets(one) for one in outcomes)


def summarize(
    outcomes: Sequence[Outcome],
    duration: float,
    percentiles: Sequence[float] = (99,),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Returns the results of a run under the names of `vllm bench serve`. duration: seconds from the start to the last end."""
    good = [one for one in outcomes if not one.error]
    prompt, output = sum(one.prompt_tokens for one in good), sum(one.output_tokens for one in good)
    per_second, concurrent = _peaks(good)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": len(good) / duration,
        "request_goodput": good_requests(outcomes, goodput_ms) / duration if goodput_ms else None,
        "output_throughput": output / duration,
        "total_token_throughput": (prompt + output) / duration,
        "max_output_tokens_per_s": per_second,
        "max_concurrent_requests": concurrent,
        "rtfx": 0.0,  # of audio
    }
    values = {
        "ttft": [one.ttft for one in good],
        "tpot": [tpot for one in good if (tpot := one.tpot) is not None],
        "itl": [gap for one in good for gap in one.itls],
        "e2el": [one.latency for one in good],
        "client_queue_time": [one.queued for one in good],
    }
    for name, seconds in values.items():
        ms = np.asarray(seconds or [0.0]) * 1e3
        result |= {f"mean_{name}_ms": float(ms.mean()), f"median_{name}_ms": float(np.median(ms))}
        result[f"std_{name}_ms"] = float(ms.std())
        result |= {f"p{q:g}_{name}_ms": float(np.percentile(ms, q)) for q in percentiles}
    result["error_counts"] = dict(Counter(one.error for one in outcomes if one.error).most_common())
    return result


def details(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the lists per request that `vllm bench serve --save-detailed` keeps."""
    return {
        "input_lens": [one.prompt_tokens for one in outcomes],
        "output_lens": [0 if one.error else one.output_tokens for one in outcomes],
        "ttfts": [one.ttft for one in outcomes],
        "itls": [one.itls for one in outcomes],
        "latencies": [one.latency for one in outcomes],
        "start_times": [one.start for one in outcomes],
        "queue_times": [one.queued for one in outcomes],
        "generated_texts": [one.text for one in outcomes],
        "errors": [one.error for one in outcomes],
    }


def _peaks(good: Sequence[Outcome]) -> tuple[float, int]:
    """Returns the most token events, and the most requests in flight, within one of the seconds since the first was sent."""
    if not good:
        return 0.0, 0
    origin = min(one.start for one in good)
    tokens: Counter[int] = Counter()
    running: Counter[int] = Counter()
    for one in good:
        at = one.start - origin
        tokens.update(int(when) for when in np.cumsum([at + one.ttft, *one.itls]))
        running.update(range(int(at), math.floor(at + one.latency) + 1))
    return float(max(tokens.values())), max(running.values())

"""Sends the requests of one point of a load test at their times, and keeps what came back."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lynx_rt.bench.client import Reply, Target, exchange, get, request_bytes
from lynx_rt.bench.measures import Outcome, outcome
from lynx_rt.bench.prompts import PromptSource
from lynx_rt.bench.traces import Arrival
from lynx_rt.errors import LynxError

ROUTES = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_LAG_SECONDS = 0.005  # period of the timer that measures how late the client's event loop is


@dataclass(frozen=True)
class Planned:
    """A request that is ready to be sent. at: seconds since the start."""

    at: float
    data: bytes
    prompt_tokens: int


@dataclass
class Run:
    """What happened. Times are seconds of time.perf_counter()."""

    outcomes: list[Outcome]
    duration: float
    late: list[float] = field(
        default_factory=list
    )  # how late requests were sent that did not wait for --max-concurrency
    lag: list[float] = field(default_factory=list)  # how late the event loop's timer ran
    cpu: float = 0.0  # seconds of CPU that the client used
    interrupted: bool = False

    def client(self) -> dict[str, float]:
        """Returns what the client itself may have added, in milliseconds."""
        lag, late = np.asarray(self.lag or [0.0]) * 1e3, np.asarray(self.late or [0.0]) * 1e3
        return {
            "client_cpu_percent": 100 * self.cpu / self.duration,
            "client_lag_p50_ms": float(np.median(lag)),
            "client_lag_p99_ms": float(np.percentile(lag, 99)),
            "send_late_p99_ms": float(np.percentile(late, 99)),
        }


def plan(
    target: Target,
    endpoint: str,
    model: str,
    arrivals: Sequence[Arrival],
    source: PromptSource,
    seed: int,
    extra: Mapping[str, Any],
) -> list[Planned]:
    """Makes the requests before the run, so that making them costs no time in it.

    endpoint: of ROUTES.  seed: of the prompts.  extra: fields of every body.
    """
    rng = np.random.default_rng(seed)
    planned = []
    for one in arrivals:
        tokens = source.with_blocks(one.input_tokens, one.blocks, one.block_tokens, seed, rng)
        body: dict[str, Any] = {"model": model, "max_tokens": one.output_tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if endpoint == "chat":
            body["messages"] = [{"role": "user", "content": source.text(tokens)}]
        else:
            body["prompt"] = tokens
        data = request_bytes(target, "POST", ROUTES[endpoint], {**body, **extra})
        planned.append(Planned(one.at, data, len(tokens)))
    return planned


async def drive(
    target: Target,
    planned: Sequence[Planned],
    *,
    max_concurrency: int | None = None,
    timeout_s: float = 3600.0,
    on_end: Callable[[], object] = lambda: None,
) -> Run:
    """Sends all requests and waits for their ends. A cancellation ends it early, with what has come until then.

    max_concurrency: requests in flight; more wait in the client, which counts as queueing.
    """
    places = asyncio.Semaphore(max_concurrency) if max_concurrency else None
    start = time.perf_counter()
    replies: list[Reply] = []
    late: list[float] = []
    lag: list[float] = []

    async def one(request: Planned, reply: Reply) -> None:
        if places is None:
            late.append(time.perf_counter() - reply.due)
            await exchange(target, request.data, reply, timeout_s)
        else:
            async with places:
                await exchange(target, request.data, reply, timeout_s)
        on_end()

    tasks: list[asyncio.Task[None]] = []
    interrupted = False
    timer = asyncio.ensure_future(_measure_lag(lag))
    cpu = time.process_time()
    gc.collect()
    gc.freeze()  # a collection in the run has less to look at
    try:
        for request in planned:
            wait = start + request.at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            reply = Reply(due=start + request.at)
            replies.append(reply)
            tasks.append(asyncio.ensure_future(one(request, reply)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        interrupted = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        timer.cancel()
        gc.unfreeze()
    duration, cpu = time.perf_counter() - start, time.process_time() - cpu
    pairs = list(zip(replies, planned, strict=False))
    if interrupted:  # requests in flight are neither successes nor failures
        pairs = [(reply, request) for reply, request in pairs if _has_ended(reply)]
    outcomes = [outcome(reply, request.prompt_tokens) for reply, request in pairs]
    return Run(outcomes, duration, late, lag, cpu, interrupted)


def _has_ended(reply: Reply) -> bool:
    return bool(reply.error) or reply.body.rstrip().endswith(b"[DONE]") or reply.status not in (0, 200)


async def _measure_lag(lag: list[float]) -> None:
    while True:
        due = time.perf_counter() + _LAG_SECONDS
        await asyncio.sleep(_LAG_SECONDS)
        lag.append(time.perf_counter() - due)


async def wait_ready(target: Target, request: Planned, timeout_s: float) -> None:
    """Sends a request again and again until one succeeds. Raises LynxError with the last reason."""
    end = time.monotonic() + timeout_s
    while True:
        reply = await exchange(target, request.data, Reply(), max(1.0, end - time.monotonic()))
        reason = outcome(reply, request.prompt_tokens).error
        if not reason:
            return
        refused = 400 <= reply.status < 500 and reply.status != 429
        if refused or time.monotonic() > end:
            raise LynxError(f"{target.url} does not answer a request: {reason}", "base_url")
        await asyncio.sleep(0.2)


async def first_model(target: Target, timeout_s: float) -> dict[str, Any]:
    """Returns the first entry of /v1/models, for which it waits. Raises LynxError."""
    end = time.monotonic() + timeout_s
    while True:
        reply = await get(target, "/v1/models")
        if reply.status == 200:
            try:
                entry: dict[str, Any] = json.loads(reply.body)["data"][0]
                return entry
            except (ValueError, LookupError, TypeError):
                reply.error = "no model in the answer"
        if time.monotonic() > end or 400 <= reply.status < 500:
            raise LynxError(f"{target.url}/v1/models: {reply.error or f'HTTP {reply.status}'}", "base_url")
        await asyncio.sleep(0.2)

"""Measures points of a load test one after the other: rates and concurrencies, with each expert selection in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lynx_rt.bench import counters
from lynx_rt.bench.client import Reply, Target, exchange, request_bytes
from lynx_rt.bench.measures import details, summarize
from lynx_rt.bench.prompts import PromptSource
from lynx_rt.bench.run import Run, drive, plan
from lynx_rt.bench.traces import Arrival, scale
from lynx_rt.errors import LynxError


@dataclass(frozen=True)
class Workload:
    """What is sent, whatever the rate. extra: fields of every request.  goodput_ms: objectives in milliseconds."""

    endpoint: str
    model: str
    arrivals: Sequence[Arrival]
    source: PromptSource
    seed: int = 0
    trace_scale: float = 1.0
    max_tokens: int | None = None  # of prompt and output together
    extra: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "ignore_eos": True})
    percentiles: Sequence[float] = (50, 95, 99)
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    timeout_s: float = 3600.0

    def requests(self, rate: float | None, count: int | None = None) -> list[Arrival]:
        """Returns the first `count` requests at a rate per second; None = all, and at the trace's own times."""
        return scale(self.arrivals[:count], self.trace_scale, rate, self.max_tokens)


@dataclass(frozen=True)
class Point:
    """rate: requests per second, inf = all at once, None = the trace's times.  number: which point it is, a part of the seed."""

    rate: float | None
    max_concurrency: int | None = None
    selection: str | None = None  # None = as the server has it
    count: int | None = None  # requests; None = all of the workload
    number: int = 0


async def select(target: Target, selection: str) -> None:
    """Changes the policy of a server of lynx_rt that has API keys. Raises LynxError."""
    body = {"expert_selection": selection}
    reply = await exchange(target, request_bytes(target, "POST", "/v1/lynx/selection", body), Reply(), 60)
    if reply.status != 200:
        reason = reply.error or reply.body.decode(errors="replace")[:300]
        raise LynxError(f"--selection {selection}: {target.url} answers {reply.status}: {reason}", "selection")


async def measure(
    target: Target, work: Workload, point: Point, on_end: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], Run]:
    """Measures one point and returns its results, under the names of `vllm bench serve`, and the run.

    Prompts differ from point to point, so that none finds those of another in the server's prefix cache.
    """
    if point.selection is not None:
        await select(target, point.selection)
    arrivals = work.requests(point.rate, point.count)
    seed = work.seed * 1_000_003 + point.number
    planned = plan(target, work.endpoint, work.model, arrivals, work.source, seed, work.extra)
    before = await counters.read(target)
    run = await drive(target, planned, max_concurrency=point.max_concurrency, timeout_s=work.timeout_s, on_end=on_end)
    after = await counters.read(target) if before else {}
    offered = len(arrivals) / arrivals[-1].at if arrivals and arrivals[-1].at > 0 else None
    result: dict[str, Any] = {
        "num_prompts": len(arrivals),
        "request_rate": "inf" if offered is None else offered,
        "max_concurrency": point.max_concurrency,
        "selection": point.selection,
        "trace_scale": work.trace_scale,
        "interrupted": run.interrupted,
        **summarize(run.outcomes, run.duration, work.percentiles, work.goodput_ms),
        "client": run.client(),
        "lynx": counters.difference(before, after),
    }
    return result, run


def result_file(result: Mapping[str, Any], header: Mapping[str, Any], run: Run | None) -> str:
    """Returns the JSON text of one point, as `vllm bench serve --save-result` writes it. run: adds the lists per request."""
    return json.dumps({**header, **result, **(details(run.outcomes) if run is not None else {})})

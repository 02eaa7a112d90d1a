"""Requests through an engine with the hooks of Metrics, as a server calls them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from lynx_rt import Engine, RequestOutput, SamplingParams
from lynx_rt.server.metrics import Metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Served:
    """Requests to send: `leave_after` tokens of the first completion the client is gone; 0 = before the first one."""

    prompt: str
    params: SamplingParams
    leave_after: int | None = None
    output: RequestOutput | None = None  # the last one that came


async def serve(engine: Engine, metrics: Metrics, request: Served) -> None:
    """Runs one request to its end or until its client leaves."""
    metrics.on_accepted()
    stream = engine.agenerate(request.prompt, request.params)
    times: dict[int, float] = {}
    counts: dict[int, int] = {}
    async with contextlib.aclosing(stream) as outputs:
        if request.leave_after == 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(anext(outputs), 1e-9)
            metrics.on_aborted("client")
            return
        async for output in outputs:
            request.output = output
            now = time.monotonic()
            for out in output.outputs:
                added = len(out.token_ids) - counts.get(out.index, 0)
                if added and not counts:
                    metrics.on_first_token(output.metrics)
                if added and out.index in times:
                    metrics.on_tokens(added, now - times[out.index])
                elif added > 1:  # this coroutine ran late
                    metrics.on_tokens(added - 1, now - output.metrics.first_token_time)
                if added:
                    counts[out.index] = len(out.token_ids)
                    times[out.index] = now
            if output.finished:
                metrics.on_finished(output, request.params, request.params.n)
                return
            if request.leave_after is not None and len(output.outputs[0].token_ids) >= request.leave_after:
                metrics.on_aborted("client")
                return


def serve_all(engine: Engine, metrics: Metrics, requests: list[Served]) -> None:
    """Runs all requests at the same time."""

    async def run() -> None:
        await asyncio.gather(*(serve(engine, metrics, request) for request in requests))

    asyncio.run(run())


def families(metrics: Metrics) -> dict[str, Any]:
    """Returns the parsed exposition: name of a family without its _total -> family. Times of creation are left out."""
    return _families(metrics.render_now()[0].decode())


def samples(metrics: Metrics) -> Samples:
    """Returns (name, labels but the replica's) -> value of every sample."""
    return parse(metrics.render_now()[0].decode())


def parse(text: str) -> Samples:
    """`samples` of an exposition."""
    return {
        (
            sample.name,
            frozenset(pair for pair in sample.labels.items() if pair[0] not in ("model_name", "engine")),
        ): sample.value
        for family in _families(text).values()
        for sample in family.samples
    }


def _families(text: str) -> dict[str, Any]:
    found = text_string_to_metric_families(text)
    return {family.name: family for family in found if not family.name.endswith("_created")}


def total(values: Samples, name: str, **labels: str) -> float:
    """Returns the sum of the samples with this name and at least these labels. Fails where there are none."""
    found = [value for (key, own), value in values.items() if key == name and own >= set(labels.items())]
    assert found, f"no samples of {name}"
    return sum(found)

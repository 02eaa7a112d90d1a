"""Routes that only a batch-aware runtime has: what expert selection does, now and as a stream; ending and switching."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lynx_rt.engine.engine import Engine
from lynx_rt.engine.outputs import EngineStats
from lynx_rt.server.answer import EventAnswer
from lynx_rt.server.errors import ApiError
from lynx_rt.server.protocol import AbortBody, SelectionBody
from lynx_rt.server.state import ServerState, state_of

router = APIRouter(prefix="/v1/lynx", tags=["lynx"])
_EVENT_SECONDS = 0.5
_SUMS = ("steps", "rows", "union_before", "active", "remapped_pairs", "guard_hits", "retained_mass")


@router.get("/state")
async def state(request: Request) -> dict[str, Any]:
    """Gauges, limits, and the means of expert selection since the start. Sums over all requests; nothing about a single one."""
    server = state_of(request)
    engine = server.ready_engine()
    stats = await asyncio.to_thread(engine.stats)
    info = engine.model_config
    return {
        "model": server.settings.served_model_names[0],
        "policy": server.policy,
        "device": engine.device,
        "num_running": stats.num_running,
        "num_waiting": stats.num_waiting,
        "num_sequences": server.num_sequences,
        "kv_blocks_used": stats.kv_blocks_used,
        "kv_blocks_total": stats.kv_blocks_total,
        "limits": {
            "max_num_sequences": server.max_sequences,
            "max_model_len": engine.max_model_len,
            "max_body_bytes": server.settings.max_body_bytes,
        },
        "can_set_selection": bool(server.settings.api_keys),
        "memory_bandwidth": server.memory_bandwidth,
        "num_experts": info["num_experts"],
        "num_experts_per_tok": info["num_experts_per_tok"],
        **_window(None, stats),
    }


@router.get("/events")
async def events(request: Request) -> Response:
    """Server-sent events, two per second: what happened since the one before."""
    server = state_of(request)
    engine = server.ready_engine()
    return EventAnswer(_changes(server, engine), server.settings)


@router.get("/experts")
async def experts(request: Request) -> dict[str, Any]:
    """Decode-only steps in which each expert was read, and in which the model's own routing wanted it: [layers][experts].

    Of the last window of at least 128 rows, over all requests. Not for clients who must not learn of each other's texts.
    """
    server = state_of(request)
    server.ready_engine()
    windows = server.expert_windows
    if not server.settings.gives_expert_counts:
        raise ApiError(403, "counts of single experts tell of all clients' texts: --expert-counts on would give them")
    if windows is None or not windows.counts_experts:
        raise ApiError(501, "this device does not say which experts it reads; the CPU does")
    return await asyncio.to_thread(windows.look)


@router.post("/abort")
async def abort(body: AbortBody, request: Request) -> dict[str, int]:
    """Ends the requests with this id, which is that of their answers or their X-Request-Id."""
    server = state_of(request)
    found = [g for g in server.generations if body.request_id in g.names]
    for generation in found:
        generation.abort("client")
    if not found:
        raise ApiError(404, f"no request with the id {body.request_id!r} is in flight", param="request_id")
    return {"aborted": len(found)}


@router.post("/selection")
async def selection(body: SelectionBody, request: Request) -> dict[str, str]:
    """Changes the policy from the next step on. Needs a server with API keys, because it acts on everybody's requests."""
    server = state_of(request)
    if not server.settings.api_keys:
        raise ApiError(403, "this route needs a server that was started with --api-key")
    engine = server.ready_engine()
    await asyncio.to_thread(engine.set_expert_selection, body.expert_selection)
    server.policy = await asyncio.to_thread(lambda: engine.expert_selection)
    return {"policy": server.policy}


async def _changes(server: ServerState, engine: Engine) -> AsyncIterator[dict[str, Any]]:
    before = await asyncio.to_thread(engine.stats)
    start = time.monotonic()
    while server.phase == "ready":
        await asyncio.sleep(_EVENT_SECONDS)
        stats, now = await asyncio.to_thread(engine.stats), time.monotonic()
        gauges = {"num_running": stats.num_running, "num_waiting": stats.num_waiting, "kv_usage": stats.kv_usage}
        yield {"seconds": now - start, "policy": server.policy, **gauges, **_window(before, stats)}
        before, start = stats, now


def _window(before: EngineStats | None, after: EngineStats) -> dict[str, Any]:
    """Returns sums and means of what happened between two reports; None = since the start."""
    names = ("steps", "decode_steps", "decode_rows", "prompt_tokens", "generation_tokens", "bytes_read", "step_seconds")
    body: dict[str, Any] = {name: getattr(after, name) - (getattr(before, name) if before else 0) for name in names}
    layers = []
    for index, layer in enumerate(after.layers):
        old = before.layers[index] if before else None
        sums = {name: getattr(layer, name) - (getattr(old, name) if old else 0) for name in _SUMS}
        steps, rows = sums["steps"] or 1, sums["rows"] or 1
        means = {"experts_read": sums["active"] / steps, "experts_union_before": sums["union_before"] / steps}
        layers.append({"layer": layer.layer, **means, "retained_mass": sums["retained_mass"] / rows})
    for name in ("experts_read", "experts_union_before", "retained_mass"):
        body[name] = sum(layer[name] for layer in layers) / len(layers) if layers else 0.0
    return {**body, "layers": layers}

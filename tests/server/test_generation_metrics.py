"""How the end of a request is counted, by what ended it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
from metered import samples, total

from lynx_rt import Engine, SamplingParams
from lynx_rt.errors import EngineClosedError, QueueFullError
from lynx_rt.server.caller import Caller
from lynx_rt.server.errors import ApiError
from lynx_rt.server.generation import Generation
from lynx_rt.server.metric_names import ABORTED_REASONS, FINISHED_REASONS
from lynx_rt.server.prompts import parse
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState

Act = Callable[[ServerState, Generation], Awaitable[None]]


@pytest.fixture
def state(nano: Engine, nano_path: str) -> Iterator[ServerState]:
    state = ServerState(Settings(model=nano_path, served_model_names=("nano",)))
    state.set_ready(nano)
    yield state
    nano.on_step(None)
    state.metrics.close()


def run(state: ServerState, act: Act, max_tokens: int = 900) -> dict[str, float]:
    """Calls `act` at the first token, reads to the end, and returns what was counted."""
    engine = state.ready_engine()
    [parsed] = parse(engine, "Q: 345 + 678 = ?\nA:")
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    caller = Caller("id", None, None, {})
    generation = Generation(state, [engine.inputs.request([parsed], params, None)], "cmpl-1", caller, "text_completion")

    async def read() -> None:
        acted = False
        async with generation:
            async for _ in generation.deltas():
                if not acted:
                    acted = True
                    await act(state, generation)

    with contextlib.suppress(RuntimeError, asyncio.CancelledError, EngineClosedError, ApiError):
        asyncio.run(read())
    values = samples(state.metrics)
    found = {name: total(values, "lynx:aborted_requests_total", reason=name) for name in ABORTED_REASONS}
    found |= {name: total(values, "vllm:request_success_total", finished_reason=name) for name in FINISHED_REASONS[:2]}
    assert total(values, "lynx:accepted_requests_total") == sum(found.values())
    return {name: count for name, count in found.items() if count}


async def nothing(state: ServerState, generation: Generation) -> None:
    pass


async def cut_off(state: ServerState, generation: Generation) -> None:
    state.cut_off()


async def ask_to_end(state: ServerState, generation: Generation) -> None:
    generation.abort("client")


async def leave(state: ServerState, generation: Generation) -> None:
    raise asyncio.CancelledError


async def fail(state: ServerState, generation: Generation) -> None:
    raise RuntimeError("a fault of the server")


async def lose_the_engine(state: ServerState, generation: Generation) -> None:
    generation.requests[0].error = EngineClosedError("the engine has been closed")


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (nothing, "length"),
        (cut_off, "drain"),
        (ask_to_end, "client"),
        (leave, "client"),
        (fail, "error"),
        (lose_the_engine, "error"),
    ],
)
def test_the_end_of_a_request_has_one_reason(state: ServerState, act: Act, expected: str) -> None:
    assert run(state, act, max_tokens=3 if act is nothing else 900) == {expected: 1}


@pytest.mark.parametrize("limit", ["max_num_queued_reqs", "max_num_queued_tokens"])
def test_a_refusal_by_the_engine_is_none_of_the_ends(state: ServerState, limit: str) -> None:
    async def read() -> None:
        engine = state.ready_engine()
        [parsed] = parse(engine, "Q: 1 + 1 = ?\nA:")
        request = engine.inputs.request([parsed], SamplingParams(max_tokens=2), None)
        async with Generation(state, [request], "cmpl-1", Caller("id", None, None, {}), "text_completion"):
            request.error = QueueFullError("full", limit)

    asyncio.run(read())
    values = samples(state.metrics)
    assert total(values, "vllm:admission_rejections_total", reason=limit) == 1
    assert total(values, "lynx:accepted_requests_total") == total(values, "lynx:aborted_requests_total") == 0


def test_tokens_that_come_late_have_their_gaps(state: ServerState) -> None:
    """The event loop is busy while the first tokens are made, which then come in one delta."""
    engine = state.ready_engine()
    [parsed] = parse(engine, "Q: 345 + 678 = ?\nA:")
    params = SamplingParams(temperature=1, seed=1, n=2, max_tokens=12, ignore_eos=True)
    request = engine.inputs.request([parsed], params, None)
    sizes: list[int] = []

    async def read() -> None:
        async with Generation(
            state, [request], "cmpl-1", Caller("id", None, None, {}), "text_completion"
        ) as generation:
            while request.completions[0].num_tokens < 3:
                time.sleep(0.001)
            async for _, delta in generation.deltas():
                sizes.append(len(delta.token_ids))

    start = time.monotonic()
    asyncio.run(read())
    values = samples(state.metrics)
    assert sizes[0] >= 3 and sum(sizes) == 24
    assert total(values, "vllm:inter_token_latency_seconds_count") == 24 - 2
    assert 0 < total(values, "vllm:inter_token_latency_seconds_sum") < 2 * (time.monotonic() - start)
    assert total(values, "vllm:time_to_first_token_seconds_count") == 1

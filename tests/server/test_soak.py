"""Thousands of requests of all kinds: nothing stays behind, and each is answered as if it were alone."""

from __future__ import annotations

import asyncio
import random
import time

import httpx
import pytest
from live_server import LiveServer, serving

from lynx_rt import Engine, SamplingParams

pytestmark = pytest.mark.slow

WARM, REQUESTS = 1500, 5000  # the allocator and all caches have their size after the first ones
MAX_SLOPE = 1024  # bytes of anonymous memory per request


class Soak:
    """Sends requests with unique prompts and checks their answers. A sample of them is compared with the engine's own tokens."""

    def __init__(self, server: LiveServer, nano: Engine) -> None:
        self._url = server.url
        self._nano = nano
        self._random = random.Random(0)
        self.wrong: list[str] = []
        self.sampled: list[tuple[dict, list[int]]] = []

    async def run(self, begin: int, end: int) -> None:
        numbers = iter(range(begin, end))
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            await asyncio.gather(*[self._work(client, numbers) for _ in range(16)])

    async def _work(self, client: httpx.AsyncClient, numbers: object) -> None:
        for number in numbers:  # type: ignore[attr-defined]
            kind = ("whole", "stream", "error", "leave", "logprobs", "chat")[number % 6]
            try:
                await getattr(self, f"_{kind}")(client, number)
            except Exception as error:
                self.wrong.append(f"{kind} {number}: {error!r}")

    def _body(self, number: int) -> dict:
        return {"prompt": f"Q: {number} + {number * 7} = ?\nA:", "max_tokens": 4, "temperature": 1, "seed": number}

    async def _whole(self, client: httpx.AsyncClient, number: int) -> None:
        body = {**self._body(number), "return_token_ids": True}
        answer = await client.post("/v1/completions", json=body)
        ids = answer.json()["choices"][0]["token_ids"]
        if number % 60 == 0:
            self.sampled.append((body, ids))

    async def _stream(self, client: httpx.AsyncClient, number: int) -> None:
        async with client.stream("POST", "/v1/completions", json={**self._body(number), "stream": True}) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]" and "finish_reason" in lines[-2]

    async def _error(self, client: httpx.AsyncClient, number: int) -> None:
        wrong = (
            {"temperature": -1},
            {"prompt": "x " * 3000},
            {"structured_outputs": {"regex": f"({number}"}},
            {"n": 0},
        )
        answer = await client.post("/v1/completions", json={**self._body(number), **wrong[number // 6 % 4]})
        assert answer.status_code == 400

    async def _leave(self, client: httpx.AsyncClient, number: int) -> None:
        body = {**self._body(number), "max_tokens": 500, "ignore_eos": True, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if number % 2:
                await anext(answer.aiter_raw())

    async def _logprobs(self, client: httpx.AsyncClient, number: int) -> None:
        answer = await client.post("/v1/completions", json={**self._body(number), "logprobs": 5, "echo": True})
        choice = answer.json()["choices"][0]
        assert len(choice["logprobs"]["tokens"]) == answer.json()["usage"]["total_tokens"]

    async def _chat(self, client: httpx.AsyncClient, number: int) -> None:
        form = {"structured_outputs": {"choice": [f"a{number % 50}", "b"]}} if number % 12 == 5 else {}
        message = {"role": "user", "content": f"{number} times 3 = ?"}
        answer = await client.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 4, **form})
        assert answer.status_code == 200, answer.text


def test_soak(nano: Engine) -> None:
    with serving() as server:
        soak = Soak(server, nano)
        asyncio.run(soak.run(0, WARM))
        server.wait_idle()
        before = server.anonymous_memory()
        asyncio.run(soak.run(WARM, REQUESTS))
        server.wait_idle()
        time.sleep(0.5)
        slope = (server.anonymous_memory() - before) / (REQUESTS - WARM)
        assert soak.wrong == []
        state = server.client.get("/v1/lynx/state").json()
        assert (state["num_running"], state["num_waiting"], state["kv_blocks_used"]) == (0, 0, 0)
        print(f"{slope:.0f} bytes of anonymous memory per request")
        assert slope < MAX_SLOPE
    assert len(soak.sampled) > 50
    for body, ids in soak.sampled:
        params = SamplingParams(temperature=1, seed=body["seed"], max_tokens=4)
        assert nano.generate(body["prompt"], params)[0].outputs[0].token_ids == ids

"""Requests of one API key get the same bits whoever shares the batch with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from live_server import LiveServer, serving

PROMPTS = [f"Q: {a} times {b} = ?\nA:" for a, b in ((12, 22), (34, 5), (7, 81), (99, 3))]


async def tokens(url: str, key: str, prompts: list[str], **fields: object) -> list[list[int]]:
    """Returns the tokens of prompts that one request brings together, so that they run in step."""
    body = {
        "prompt": prompts,
        "max_tokens": 40,
        "temperature": 1,
        "seed": 3,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    async with httpx.AsyncClient(base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"}) as client:
        answer = await client.post("/v1/completions", json={**body, **fields})
        assert answer.status_code == 200, answer.text
        return [choice["token_ids"] for choice in answer.json()["choices"]]


async def crowd(url: str) -> list[list[int]]:
    """Returns the tokens of key "a" while those of two others are in the middle of their answers."""
    words = ("red", "blue", "green", "cat", "dog", "tree", "sun", "moon")
    long = {"max_tokens": 400, "temperature": 1}
    others = [
        asyncio.create_task(tokens(url, key, [f"{word} and {word}" for word in words], seed=9, **long)) for key in "bc"
    ]
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer a"}) as client:
        while (await client.get("/load")).json()["server_load"] < 16:
            await asyncio.sleep(0.01)
    own = await tokens(url, "a", PROMPTS)
    assert not any(other.done() for other in others)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return own


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    keys = [word for key in "abc" for word in ("--api-key", key)]
    with serving(*keys, "--selection", "lynx", "--batch-isolation", "key") as server:
        yield server


def test_bits_of_a_key(live: LiveServer) -> None:
    """tests/engine/test_isolation.py shows that the same load changes them without groups."""
    alone = asyncio.run(tokens(live.url, "a", PROMPTS))
    assert alone == asyncio.run(tokens(live.url, "a", PROMPTS))
    assert [asyncio.run(crowd(live.url)) for _ in range(3)] == [alone] * 3


def test_exact_is_exact(live: LiveServer) -> None:
    async def both() -> list[list[list[int]]]:
        others = tokens(live.url, "b", [f"{n} is" for n in range(8)])
        return list(await asyncio.gather(tokens(live.url, "a", PROMPTS, expert_selection="exact"), others))

    alone = asyncio.run(tokens(live.url, "c", PROMPTS, expert_selection="exact"))
    assert asyncio.run(both())[0] == alone


def test_a_group_within_a_key(live: LiveServer) -> None:
    """A name of a group does not let a client into another key's group."""
    alone = asyncio.run(tokens(live.url, "a", PROMPTS, isolation_group="x"))

    async def both() -> list[list[list[int]]]:
        other = tokens(live.url, "b", PROMPTS, isolation_group="x", seed=8)
        return list(await asyncio.gather(tokens(live.url, "a", PROMPTS, isolation_group="x"), other))

    assert asyncio.run(both())[0] == alone

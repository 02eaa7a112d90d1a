"""Requests that are opened together start in the same step, however slowly they are queued."""

from __future__ import annotations

import asyncio
import time

import pytest

import lynx_rt


def test_no_step_begins_between_requests(nano: lynx_rt.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = nano._driver.submit

    def submit_slowly(request: object) -> None:
        submit(request)
        time.sleep(0.02)

    monkeypatch.setattr(nano._driver, "submit", submit_slowly)
    params = lynx_rt.SamplingParams(max_tokens=2, ignore_eos=True)
    before = nano.stats()

    async def run() -> None:
        streams = nano.open_streams([nano._make_one(f"Q: {n}\nA:", params, None, None) for n in range(4)])
        for stream in streams:
            while not stream.finished:
                await stream.next_deltas()

    asyncio.run(run())
    after = nano.stats()
    assert after.steps - before.steps == 2  # all prompts with their first tokens, then all second tokens

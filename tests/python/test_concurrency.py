"""Several threads on one engine, Ctrl-C, and requests whose readers leave early."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from lynx_rt import CheckpointError, Engine, EngineClosedError, LynxError, SamplingParams
from lynx_rt.interrupts import DeferInterrupts
from lynx_rt.library_errors import Guard
from lynx_rt.text import chat_template

LONG = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


def idle(engine: Engine) -> bool:
    """Whether nothing runs and every page is accounted for, at the latest when the step in progress has ended."""
    end = time.monotonic() + 30
    while (engine.stats().num_running or engine.stats().num_waiting) and time.monotonic() < end:
        time.sleep(0.001)
    engine._core.check_integrity()
    return time.monotonic() < end


def params_of(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.3, seed=seed, max_tokens=10 + seed % 7, ignore_eos=True, stop=["the"])


def test_threads_get_their_own_results(nano: Engine) -> None:
    prompts = [f"The number {n}" for n in range(12)]
    alone = [nano.generate(prompt, params_of(n))[0].text for n, prompt in enumerate(prompts)]

    def generate(n: int) -> str:
        return nano.generate(prompts[n], params_of(n))[0].text

    def stream(n: int) -> str:
        return "".join(out.outputs[0].delta_text for out in nano.stream(prompts[n], params_of(n)))

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(stream if n % 2 else generate, n) for n in range(12)]
        assert [job.result(timeout=60) for job in jobs] == alone
    assert idle(nano)


def test_step_loop_beside_other_threads(nano: Engine) -> None:
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(nano.generate, ["a", "b"], params_of(3)) for _ in range(4)]
        ids = {nano.add_request("c", params_of(n)) for n in range(5)}
        finished = set()
        while nano.has_unfinished_requests():
            finished |= {output.request_id for output in nano.step() if output.finished}
        assert finished == ids
        assert all(len(job.result(timeout=60)) == 2 for job in others)
    assert idle(nano)


@pytest.mark.parametrize("how", ["close", "with", "break", "unused"])
def test_leaving_a_stream_aborts_it(nano: Engine, how: str) -> None:
    before = nano.stats().aborted
    stream = nano.stream("The", LONG)
    if how == "close":
        next(stream)
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            next(stream)
    elif how == "break":
        for _ in stream:
            break
    del stream
    gc.collect()
    assert idle(nano) and nano.stats().aborted == before + 1


def test_abort_from_another_thread_ends_a_wait(nano: Engine) -> None:
    stream = nano.stream("The", LONG)
    timer = threading.Timer(0.05, nano.abort, [stream.request_id])
    timer.start()
    outputs = list(stream)
    timer.join()
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert idle(nano)


def test_cancelled_tasks_abort(nano: Engine) -> None:
    async def read() -> None:
        async for _ in nano.agenerate("The", LONG):
            pass

    async def cancel() -> None:
        tasks = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    async def leave() -> None:
        outputs = nano.agenerate("The", LONG)
        await anext(outputs)
        await outputs.aclose()

    asyncio.run(cancel())
    asyncio.run(leave())
    assert idle(nano)


def test_a_generator_that_outlives_its_loop(nano: Engine) -> None:
    """Python drops it without running its `finally`."""
    loop, before = asyncio.new_event_loop(), nano.stats().aborted
    outputs = nano.agenerate("The", LONG)
    loop.run_until_complete(anext(outputs))
    loop.close()
    del outputs
    gc.collect()
    assert idle(nano) and nano.stats().aborted == before + 1


def test_close_ends_waiting_threads(nano_path: str) -> None:
    engine = Engine(nano_path)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(engine.generate, ["The"] * 16, LONG) for _ in range(3)]
        time.sleep(0.05)
        engine.close()
        for job in jobs:
            with pytest.raises(EngineClosedError):
                job.result(timeout=30)


class _HeldCore:
    """The C++ engine, with steps that last until they are let go, and then fail or go on."""

    def __init__(self, core: object, error: Exception | None) -> None:
        self._core = core
        self._error = error
        self.started, self.let_go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._core, name)

    def step(self) -> list:
        self.started.set()
        self.let_go.wait(30)
        if self._error is not None:
            raise self._error
        return self._core.step()  # type: ignore[attr-defined]


@pytest.mark.parametrize("ending", ["close", "failure"])
def test_a_request_that_waits_for_a_step_ends_with_the_engine(nano_path: str, ending: str) -> None:
    """It came during a step, so that C++ has not got it."""
    engine = Engine(nano_path)
    core = _HeldCore(engine._core, LynxError("no step today") if ending == "failure" else None)
    engine._driver._core = core  # type: ignore[assignment]

    async def read() -> None:
        async for _ in engine.agenerate("The", LONG):
            pass

    async def run() -> list:
        tasks = [asyncio.create_task(read())]
        await asyncio.to_thread(core.started.wait, 30)
        tasks.append(asyncio.create_task(read()))
        await asyncio.sleep(0.02)
        if ending == "close":
            await asyncio.to_thread(engine.close)
        core.let_go.set()
        return list(await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30))

    expected = EngineClosedError if ending == "close" else LynxError
    assert [type(result) for result in asyncio.run(run())] == [expected] * 2
    engine._driver._core = core._core  # type: ignore[assignment]
    engine.close()


class _FailingCore:
    """The C++ engine, with steps that fail."""

    def __init__(self, core: object) -> None:
        self._core = core

    def __getattr__(self, name: str) -> object:
        return getattr(self._core, name)

    def step(self) -> list:
        raise LynxError("no step today")


def test_a_failed_step_reaches_every_waiter(nano: Engine) -> None:
    async def read() -> None:
        async for _ in nano.agenerate("The", LONG):
            pass

    core = nano._driver._core
    nano._driver._core = _FailingCore(core)  # type: ignore[assignment]
    try:
        with ThreadPoolExecutor(3) as pool:
            for job in [pool.submit(nano.generate, "The", LONG) for _ in range(3)]:
                with pytest.raises(LynxError, match="no step today"):
                    job.result(timeout=30)
        with pytest.raises(LynxError, match="no step today"):
            asyncio.run(read())
    finally:
        nano._driver._core = core
    assert idle(nano)
    assert nano.generate("Q: 12 times 22 = ?\nA:")[0].text == " 264"


def test_interrupts_are_deferred_and_delivered() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), DeferInterrupts() as outer:
        with DeferInterrupts():
            os.kill(os.getpid(), signal.SIGINT)
            reached = True
        assert outer._pending
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The collector calls hypothesis, among others, and Python drops what a signal handler raises in such a call."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_signal_handlers_that_raise_lose_nothing_of_others(nano: Engine) -> None:
    """Also those of other signals than SIGINT: here as a time limit would be."""
    sampled = SamplingParams(temperature=1.3, seed=5, max_tokens=100, ignore_eos=True, logprobs=0)
    alone = nano.generate("The", sampled)[0].outputs[0]
    stop, others = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            others.extend(out for out in nano.stream("The", sampled) if out.finished)

    def handler(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGUSR1, handler)
    readers = [threading.Thread(target=read) for _ in range(2)]
    interrupted = 0
    try:
        for reader in readers:
            reader.start()
        for n in range(60):
            timer = threading.Timer(0.001 + n * 0.0003, os.kill, [os.getpid(), signal.SIGUSR1])
            try:
                timer.start()
                nano.generate(["a"] * 4, LONG)
            except TimeoutError:
                interrupted += 1
            finally:
                timer.join()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
        signal.signal(signal.SIGUSR1, before)
    assert interrupted == 60 and len(others) > 0
    for out in others:
        assert out.outputs[0].token_ids == alone.token_ids
        assert out.outputs[0].logprobs == alone.logprobs
    assert idle(nano)


def test_prompts_import_nothing(nano_path: str) -> None:
    """An exception that a signal handler raises inside an import is lost, or leaves the imported library half loaded."""
    code = (
        "import sys, asyncio, lynx_rt\n"
        "from lynx_rt import SamplingParams as P\n"
        "async def read(engine):\n"
        "    async for _ in engine.agenerate('The', P(max_tokens=2)): pass\n"
        "engine = lynx_rt.Engine(sys.argv[1])\n"
        "before = set(sys.modules)\n"
        "engine.generate(['The', 'a'], P(max_tokens=2, n=2, logprobs=1, stop=['x']))\n"
        "engine.generate([[1, 2]], P(max_tokens=2, prompt_logprobs=1))\n"
        "list(engine.stream('The', P(max_tokens=2)))\n"
        "more = set(sys.modules) - before\n"
        "asyncio.run(read(engine))\n"
        "print(sorted(more | {name for name in set(sys.modules) - before if name.startswith('lynx_rt')}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, nano_path], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class _Alarm:
    def __call__(self, number: int, frame: object) -> None:
        raise TimeoutError("time is up")

    def method(self, number: int, frame: object) -> None:
        self(number, frame)


@pytest.mark.parametrize("handler", [_Alarm(), _Alarm().method, functools.partial(_Alarm.method, _Alarm())])
def test_what_a_signal_handler_raises_is_no_fault_of_a_library(handler: Any) -> None:
    def call() -> None:
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(TimeoutError, match="time is up"), Guard("a library"):
            call()
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(CheckpointError, match="a library: time is up"), Guard("a library"):
        raise TimeoutError("time is up")


def test_a_time_limit_is_not_taken_for_a_template_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which contents a template takes is found out by rendering, and remembered."""
    template = SimpleNamespace(render=lambda **_: signal.raise_signal(signal.SIGUSR1))
    monkeypatch.setattr(chat_template, "compile_template", lambda text: template)
    before = signal.signal(signal.SIGUSR1, _Alarm())
    try:
        with pytest.raises(TimeoutError):
            chat_template.content_forms("a template that nobody has rendered", "user", ())
    finally:
        signal.signal(signal.SIGUSR1, before)


_CTRL_C = """
import sys, threading
import lynx_rt
engine = lynx_rt.Engine(sys.argv[1])
long = lynx_rt.SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
sampled = lynx_rt.SamplingParams(temperature=1.3, seed=5, max_tokens=60, ignore_eos=True)
alone = engine.generate("The", sampled)[0].text
other = []
thread = threading.Thread(target=lambda: other.extend(engine.generate("The", sampled)))
def work():
    if sys.argv[2] == "generate":
        engine.generate(["a"] * 64, long)
    else:
        while True:
            for _ in engine.stream("a", long): pass
thread.start()
print("ready", flush=True)
try:
    work()
    print("not interrupted")
except KeyboardInterrupt:
    thread.join()
    stats = engine.stats()
    engine._core.check_integrity()
    after = engine.generate("Q: 12 times 22 = ?\\nA:")[0].text
    print(stats.num_running, stats.num_waiting, other[0].text == alone, after)
"""


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_ctrl_c_ends_only_its_own_call(nano_path: str, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CTRL_C, nano_path, how], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out == "0 0 True  264\n"

"""However a program ends, its exit status is its own and the interpreter is gone at once, whatever the engine is doing.

Environment variables: EXIT_RUNS is the number of tries of each way, EXIT_SECONDS the time that the end may take (1 on an idle machine).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import pytest

RUNS = int(os.environ.get("EXIT_RUNS", "1"))
MAX_EXIT_S = float(os.environ.get("EXIT_SECONDS", "5"))  # from the last line of the program to the end of the process

START = """
import asyncio, atexit, gc, os, signal, sys, threading, time
if "before" in sys.argv: atexit.register(lambda: at_exit())
import lynx_rt
LONG = lynx_rt.SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
engine = lynx_rt.Engine(sys.argv[1])
def daemons(work, count=3):
    for _ in range(count): threading.Thread(target=work, daemon=True).start()
    while not engine.stats().steps > 5: time.sleep(0.002)
def forever():
    while True: engine.generate(["a", "b"], LONG)
def read():
    while True:
        for _ in engine.stream("a", LONG): pass
def read_until_closed():  # a daemon thread that prints a traceback when the interpreter ends may make Python abort
    try: read()
    except lynx_rt.EngineClosedError: pass
async def consume(tokens=10**9):
    async for out in engine.agenerate("a", LONG):
        if len(out.outputs[0].token_ids) >= tokens: break
def end():
    print("END", time.monotonic(), flush=True)
"""

# name -> program, exit status
WAYS: dict[str, tuple[str, int]] = {
    "return": ("engine.generate('a'); end()", 0),
    "exception": ("stream = engine.stream('a', LONG); next(stream); end(); raise RuntimeError('the program failed')", 1),
    "sys_exit": ("daemons(forever); stream = engine.stream('a', LONG); next(stream); end(); sys.exit(7)", 7),
    "os_exit": ("daemons(forever); end(); os._exit(3)", 3),
    "sigint": (
        "def kill(): time.sleep(0.1); end(); os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=kill, daemon=True).start(); forever()",
        -2,
    ),
    "sigterm": (
        "def kill(): time.sleep(0.1); end(); os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=kill, daemon=True).start(); forever()",
        -15,
    ),
    "sigterm_handler": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "def kill(): time.sleep(0.1); end(); os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=kill, daemon=True).start(); forever()",
        5,
    ),
    "daemon_generate": ("daemons(forever); end()", 0),
    "daemon_stream": ("daemons(read); end()", 0),
    "daemon_asyncio": ("daemons(lambda: asyncio.run(consume())); end()", 0),
    "daemon_calls": (
        "def calls():\n"
        "    while True:\n"
        "        engine.generate('a', {'max_tokens': 2}); engine.score(['a'], ['b']); engine._core.forward([1] * 50)\n"
        "        try: engine.set_expert_selection('best')\n"
        "        except lynx_rt.ValidationError: pass\n"
        "daemons(calls, 4); end()",
        0,
    ),
    "daemon_load": (
        "def load():\n"
        "    while True: lynx_rt.Engine(sys.argv[1], quantization='int8').generate('a', {'max_tokens': 2})\n"
        "daemons(forever, 1); daemons(load, 3); time.sleep(0.1); end()",
        0,
    ),
    "daemon_masks": (
        "import numpy\n"
        "choices = ' | '.join(f'\"{number}x\"' for number in range(5000))\n"
        "grammar = engine.inputs.grammar({'grammar': 'start: ' + choices})\n"
        "def fill():\n"
        "    words = numpy.zeros(128, numpy.int32)\n"
        "    try:\n"
        "        while True: grammar.matcher(words).fill()\n"
        "    except lynx_rt.EngineClosedError: pass\n"
        "for _ in range(2): threading.Thread(target=fill, daemon=True).start()\n"
        "time.sleep(0.1); end()",
        0,
    ),
    "daemon_structured": (
        "held = lynx_rt.SamplingParams(temperature=1, max_tokens=None, structured_outputs={'regex': '([a-z]{3} )*'})\n"
        "def generate():\n"
        "    while True: engine.generate(['a'] * 8, held)\n"
        "daemons(generate, 1); end()",
        0,
    ),
    "generators_left_open": (
        "def tokens(): yield from engine.stream('a', LONG)\n"
        "def closing():\n"
        "    with lynx_rt.Engine(sys.argv[1]) as other: yield from other.stream('a', LONG)\n"
        "a, b = tokens(), closing(); next(a); next(b); daemons(forever); end()",
        0,
    ),
    "async_break": ("asyncio.run(consume(2)); end()", 0),
    "async_cancelled": (
        "async def main():\n"
        "    tasks = [asyncio.create_task(consume()) for _ in range(4)]\n"
        "    await asyncio.sleep(0.1)\n"
        "    for task in tasks: task.cancel()\n"
        "    await asyncio.gather(*tasks, return_exceptions=True)\n"
        "asyncio.run(main()); end()",
        0,
    ),
    "async_sys_exit": (
        "async def main():\n"
        "    tasks = [asyncio.create_task(consume()) for _ in range(4)]\n"
        "    await asyncio.sleep(0.1); end(); sys.exit(4)\n"
        "asyncio.run(main())",
        4,
    ),
    "async_exception": (
        "async def main():\n"
        "    tasks = [asyncio.create_task(consume()) for _ in range(4)]\n"
        "    await asyncio.sleep(0.1); end(); raise RuntimeError('the program failed')\n"
        "asyncio.run(main())",
        1,
    ),
    "async_left_open": (
        "async def main():\n"
        "    global left\n"
        "    left = engine.agenerate('a', LONG); await anext(left)\n"
        "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close(); end()",
        0,
    ),
    "atexit_use": (
        "at_exit = lambda: print(engine.generate('a', {'max_tokens': 3})[0].finished, end())\n"
        "atexit.register(at_exit); daemons(read)",
        0,
    ),
    "atexit_close": ("at_exit = lambda: engine.close()\natexit.register(at_exit); daemons(read_until_closed); end()", 0),
    "two_engines_in_a_cycle": (
        "class Holder: pass\n"
        "a = Holder(); a.engine, a.itself, a.stream = lynx_rt.Engine(sys.argv[1]), a, engine.stream('a', LONG)\n"
        "next(a.stream); asyncio.run(consume(2)); del a, engine; end()",
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_exit(nano_path: str, way: str) -> None:
    program, status = WAYS[way]
    before = ["before"] if way.startswith("atexit") else []  # a hook that is older than the package runs after its own
    took = []
    for run in range(RUNS):
        command = [sys.executable, "-c", START + program, nano_path, *before]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        seconds = time.monotonic() - max(float(line.split()[1]) for line in done.stdout.splitlines() if "END" in line)
        took.append(seconds)
        assert done.returncode == status, f"run {run}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert seconds < MAX_EXIT_S, f"run {run}: {seconds:.2f} s\n{done.stderr}"
        noise = [line for line in done.stderr.splitlines() if "Exception ignored" in line or "terminate" in line]
        assert not noise, done.stderr
    print(f"{way}: {RUNS} runs, exit after {statistics.median(took):.2f} s, at most {max(took):.2f} s")

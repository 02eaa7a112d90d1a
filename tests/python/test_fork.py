"""A forked child: an engine of the parent raises at once, a new engine works, and nothing hangs."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import asyncio, multiprocessing, os, signal, subprocess, sys, threading, time
import lynx_rt
os.environ["TOKENIZERS_PARALLELISM"] = "false"
SUM = "Q: 12 times 22 = ?\\nA:"
LONG = lynx_rt.SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
engine = lynx_rt.Engine(sys.argv[1], num_threads=3)
alone = engine.generate("The", LONG)[0].text
open_stream = engine.stream("The", LONG)
next(open_stream)

async def read(): return [out async for out in engine.agenerate(SUM)]

def refused(call):
    start = time.monotonic()
    try: call()
    except lynx_rt.EngineClosedError as error:
        assert "made before fork()" in str(error) and "spawn" in str(error), error
        assert time.monotonic() - start < 5
    else: raise AssertionError("expected EngineClosedError")

def child():
    signal.alarm(60)
    refused(lambda: engine.generate(SUM))
    refused(lambda: engine.stream(SUM))
    refused(lambda: next(open_stream))
    refused(lambda: engine.add_request(SUM))
    refused(engine.step)
    refused(engine.has_unfinished_requests)
    refused(lambda: asyncio.run(read()))
    refused(lambda: engine.score([SUM], ["a"]))
    refused(engine.stats)
    refused(lambda: engine.set_expert_selection("lynx"))
    refused(lambda: engine.abort("0"))
    assert engine.is_closed and "closed" in repr(engine)
    open_stream.close()
    engine.close()
    with lynx_rt.Engine(sys.argv[1], num_threads=2) as own:
        assert own.generate(SUM)[0].outputs[0].text == " 264"
    own = lynx_rt.Engine(sys.argv[1], num_threads=2)  # left open
    assert asyncio.run(anext(own.agenerate(SUM))).outputs[0].token_ids

def fork(work=child):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
"""

PROGRAMS = {
    "idle": "fork()",
    "beside_another_thread": """
stop, texts = False, []
def work():
    while not stop: texts.append(engine.generate("The", LONG)[0].text)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for wait in range(3):
    time.sleep(wait * 0.003)
    fork()
    fork(lambda: refused(lambda: engine.generate(SUM)))
stop = True
for thread in threads: thread.join()
assert set(texts) == {alone}
""",
    "multiprocessing": """
context = multiprocessing.get_context("fork")
process = context.Process(target=child)
process.start(); process.join()
assert process.exitcode == 0
""",
    "in_the_middle_of_a_call": """
def handler(*_):
    if os.fork() == 0:
        signal.alarm(60)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        refused(lambda: engine.generate(SUM))
        os._exit(5)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02)
assert engine.generate("The", LONG)[0].text == alone
assert os.waitstatus_to_exitcode(os.wait()[1]) == 5
""",
    "subprocess": """
steps = threading.Thread(target=lambda: [engine.generate("The", LONG) for _ in range(3)])
steps.start()
for _ in range(5): assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True).stdout == b"1\\n"
steps.join()
""",
}

END = """
assert engine.generate("The", LONG)[0].text == alone
assert "".join([out.outputs[0].text for out in open_stream][-1:]) == alone
print("whole")
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_fork(nano_path: str, name: str) -> None:
    command = [sys.executable, "-c", START + PROGRAMS[name] + END, nano_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "whole\n", done.stdout + done.stderr

"""A disk that hangs: with io_timeout_s the requests of the step end with an error, the engine goes on, and closing it does not hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Runs in a process of its own, whose pread() hangs at the first expert while a file exists: see hang_reads.c.
SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tiered import GREEDY, PROMPTS, answers
from lynx_rt import Engine

model, experts, _ = sys.argv[1:]
hangs, said = Path(os.environ["HANG_WHILE"]), f"{experts}: the read of "
with Engine(model, expert_file=experts, expert_memory=0.25, expert_policy="none", io_timeout_s=0.5) as engine:
    before = answers(engine)
    for _ in range(2):
        hangs.touch()
        outputs = engine.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert all(o.outputs[0].finish_reason == "error" for o in outputs)
        assert all(said in o.outputs[0].error for o in outputs)
        assert all("at byte 4096 has not ended after 0.5 seconds (io_timeout_s)" in o.outputs[0].error for o in outputs)
        hangs.unlink()
        assert answers(engine) == before
    assert engine.stats().tier.failed_reads == 2
    hangs.touch()
    engine.generate(PROMPTS, GREEDY, use_tqdm=False)
    start = time.monotonic()
print("closed in", time.monotonic() - start)
assert 0.4 < time.monotonic() - start < 5  # it would wait for 10 s without io_timeout_s
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_steps_end_and_the_engine_goes_on(nano_path, packed, tmp_path) -> None:
    library = tmp_path / "hang_reads.so"
    here = Path(__file__).parent
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, here / "hang_reads.c"], check=True)
    experts = os.path.realpath(packed("none"))
    hang = {
        "HANG_WHILE": str(tmp_path / "hangs"),
        "HANG_FILE": experts,
        "HANG_OFFSET": "4096",
        "LD_PRELOAD": str(library),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, nano_path, experts, str(here)],
        env=os.environ | hang,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr

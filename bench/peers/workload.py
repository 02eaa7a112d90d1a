"""Shared by all workers: their command line, the prompts, and the lines that they print.

A worker measures one engine in a process of its own and prints a line of JSON per result: {"version": TEXT}, {"note": TEXT},
{"ready": true} at the first token, {"batch": B, "decode_ms": MS}, {"prefill_ms": MS}, {"batch": B, "bytes": N}, or
{"unavailable": REASON}. Decode steps are comparable: they come after prompts of --context random tokens and FIRST tokens of output.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST = 8  # tokens of output before the steps that are timed

Prompts = list[list[int]]


@dataclass(frozen=True)
class Workload:
    model: str
    variant: str  # what comes after the colon in the engine's name
    batches: list[int]
    prefill: int  # tokens; 0 = do not measure
    context: int
    steps: int
    repeats: int
    threads: int
    gguf: str  # file; llama.cpp only
    build: str  # folder; llama.cpp only

    @property
    def max_model_len(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(self.context + FIRST + self.steps, self.prefill + 1)

    def prompts(self, batch: int, length: int) -> Prompts:
        """Returns the prompts, which are the same for every engine."""
        config = json.loads((Path(self.model) / "config.json").read_text(encoding="utf-8"))
        generator = random.Random(f"{batch} {length}")
        return [[generator.randrange(3, config["vocab_size"]) for _ in range(length)] for _ in range(batch)]


class Reporter:
    """Prints results on what was stdout; whatever else the engine prints there goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def __call__(self, **record: Any) -> None:
        print(json.dumps(record), file=self._out, flush=True)


def begin(argv: list[str] | None = None) -> tuple[Workload, Reporter]:
    """Reads the command line and keeps this process, and those that it starts, to the first --threads cores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--variant", default="")
    parser.add_argument("--batch", dest="batches", type=lambda text: [int(b) for b in text.split(",")], default=[1])
    parser.add_argument("--prefill", type=int, default=0)
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gguf", default="")
    parser.add_argument("--build", default="")
    workload = Workload(**vars(parser.parse_args(argv)))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: workload.threads])
    return workload, Reporter()


def measure(workload: Workload, report: Reporter, generate: Callable[[Prompts, int], object]) -> None:
    """Measures engines with a call that continues all prompts together, greedily, by a number of tokens.

    A step's time is a longer call's less a shorter call's with the same prompts (medians of both), over the difference in tokens. So
    it has all of the engine's costs and none of the prefill's.
    """

    def seconds(prompts: Prompts, count: int) -> float:
        start = time.perf_counter()
        generate(prompts, count)
        return time.perf_counter() - start

    generate(workload.prompts(1, 2), 1)
    report(ready=True)
    for batch in workload.batches:
        prompts = workload.prompts(batch, workload.context)
        generate(prompts, 2)  # warm up
        calls = [(seconds(prompts, FIRST), seconds(prompts, FIRST + workload.steps)) for _ in range(workload.repeats)]
        short, long = (statistics.median(times) for times in zip(*calls, strict=True))
        report(batch=batch, decode_ms=(long - short) / workload.steps * 1e3, calls=calls)
    if workload.prefill:
        prompts = workload.prompts(1, workload.prefill)
        generate(prompts, 1)
        for _ in range(workload.repeats):
            report(prefill_ms=seconds(prompts, 1) * 1e3)

"""Finds how many requests per second each expert selection serves with its p99 TPOT under a target.

    python bench/serve_goodput.py [MODEL] --target-ms 20 --selection topk,lynx --out FILE.json [--limit-s 100]

Policies take turns. Each has its rate doubled until a trial misses the target, and then bisected on a logarithmic scale. A
trial sends Poisson arrivals for --seconds (or a drawn trace's lengths, --trace), and passes where the p99 TPOT is at most
--target-ms, the p99 TTFT at most --ttft-ms (without which a queue could grow without end) and no request failed. A rate is
missed where two trials miss: one may have been disturbed.

FILE keeps every trial. A call goes on where the one before ended, and stops before --limit-s, so that a measurement can be
made in pieces; --report prints the table of what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import lynx_rt
from lynx_rt.bench.client import Target
from lynx_rt.bench.own_server import own_server
from lynx_rt.bench.prompts import prompt_source
from lynx_rt.bench.run import drive, first_model, plan, wait_ready
from lynx_rt.bench.sweep import Point, Workload, measure
from lynx_rt.bench.traces import FITS, Arrival, arrival_times, synthesize
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import format_table, selections

MOST = 4000  # requests of a trial


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(lynx_rt.shipped_model()))
    parser.add_argument("--selection", type=selections, default=["topk", "lynx"])
    parser.add_argument("--target-ms", type=float, required=True, help="p99 TPOT")
    parser.add_argument("--ttft-ms", type=float, default=1000.0, help="p99 TTFT (default: 1000)")
    parser.add_argument("--start-rate", type=float, default=1.0, help="requests per second of the first trial")
    parser.add_argument("--bisections", type=int, default=4, help="after the doubling (default: 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of arrivals in a trial (default: 10)")
    parser.add_argument(
        "--trace", choices=list(FITS), help="lengths of this kind, with Poisson arrivals (default: fixed ones)"
    )
    parser.add_argument("--trace-scale", type=float, default=16.0, help="divides its lengths (default: 16)")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--prompts", help="JSONL that prompts are cut from (default: random tokens)")
    parser.add_argument("--serve-args", type=shlex.split, default=[], help="options of `lynx-rt serve`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit-s", type=float, default=1e9)
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def next_rate(trials: list[dict[str, Any]], start: float, bisections: int) -> float | None:
    """Returns the rate of a policy's next trial; None = its rate is found. trials: of that policy, in their order."""
    by_rate: dict[float, list[bool]] = {}
    for trial in trials:
        by_rate.setdefault(trial["rate"], []).append(trial["passed"])
    for rate, results in by_rate.items():
        if results == [False]:
            return rate
    passed = max((rate for rate, results in by_rate.items() if any(results)), default=None)
    missed = min((rate for rate, results in by_rate.items() if not any(results)), default=None)
    if missed is None:
        return start if passed is None else 2 * passed
    if passed is None:
        return missed / 2 if missed > start / 64 else None
    halved = round(-math.log2(math.log2(missed / passed)))  # 0 where the doubling ended
    return None if halved >= bisections else (passed * missed) ** 0.5


async def trials(args: argparse.Namespace, target: Target, state: dict[str, Any], end: float) -> bool:
    """Runs trials until all rates are found (returns True) or the time is over. state: is kept in --out."""
    entry = await first_model(target, 600)
    rng = np.random.default_rng(args.seed)
    if args.trace:
        arrivals = synthesize(args.trace, MOST, rng, burstiness=1.0)
    else:
        times = arrival_times(MOST, 1.0, 1.0, rng)
        arrivals = [Arrival(at, args.input_len, args.output_len) for at in times]
    work = Workload(
        "completions",
        entry["id"],
        arrivals,
        prompt_source(args.model, None, args.prompts),
        seed=args.seed,
        trace_scale=args.trace_scale if args.trace else 1.0,
        max_tokens=entry.get("max_model_len"),
        goodput_ms={"tpot": args.target_ms, "ttft": args.ttft_ms},
    )
    warm = plan(target, work.endpoint, work.model, work.requests(float("inf"), 16), work.source, 7, work.extra)
    await wait_ready(target, warm[0], 600)
    await drive(target, warm)
    while True:
        # The policy with the fewest trials is next, so that the machine's noise is shared.
        open_ = [
            (len(ts), name, rate)
            for name, ts in state.items()
            if (rate := next_rate(ts, args.start_rate, args.bisections))
        ]
        if not open_:
            return True
        if time.monotonic() + 2 * args.seconds > end:
            return False
        _, name, rate = min(open_)
        number = 1 + sum(map(len, state.values()))
        count = int(min(MOST, max(20, rate * args.seconds)))
        result, _ = await measure(target, work, Point(rate, selection=name, count=count, number=number))
        in_time = result["p99_tpot_ms"] <= args.target_ms and result["p99_ttft_ms"] <= args.ttft_ms
        state[name].append({"rate": rate, "passed": bool(in_time and not result["failed"]), **result})
        shown = (
            f"{name} {rate:.2f}/s",
            f"p99 TPOT {result['p99_tpot_ms']:.2f}",
            f"p99 TTFT {result['p99_ttft_ms']:.0f} ms",
        )
        print(*shown, "passed" if state[name][-1]["passed"] else "missed", sep=", ", flush=True)
        args.out.write_text(json.dumps({"command": shlex.join(sys.argv), **header(args), "policies": state}, indent=1))


def header(args: argparse.Namespace) -> dict[str, Any]:
    names = (
        "model",
        "target_ms",
        "ttft_ms",
        "seconds",
        "trace",
        "trace_scale",
        "input_len",
        "output_len",
        "prompts",
        "serve_args",
    )
    return {"measured_on": measured_on("cpu"), **{name: getattr(args, name) for name in names}}


def report(state: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a Markdown-like table: per policy the highest rate that passed, and what was measured there."""
    rows: list[list[str]] = []
    base: float | None = None
    for name, ts in state.items():
        passed = [t for t in ts if t["passed"]]
        if not passed:
            rows.append([name, "none", *["-"] * 9])
            continue
        best = max(passed, key=lambda t: t["rate"])
        missed = min((t["rate"] for t in ts if not t["passed"] and t["rate"] > best["rate"]), default=None)
        base = base or best["rate"]
        lynx = best["lynx"]
        numbers = [best["rate"] / base, best["output_throughput"], best["median_tpot_ms"]]
        numbers += [best["p99_tpot_ms"], best["p99_ttft_ms"], lynx["experts_read"], lynx["union_before"]]
        found = [f"{best['rate']:.2f}", "-" if missed is None else f"{missed:.2f}"]
        rows.append([name, *found, *(f"{number:.2f}" for number in numbers), f"{lynx['retained_mass']:.3f}"])
    head = ["policy", "req/s", "missed at", "x", "tok/s", "TPOT ms", "p99", "p99 TTFT", "experts", "before", "mass"]
    return format_table(head, rows)


def main() -> int:
    args = options().parse_args()
    end = time.monotonic() + args.limit_s
    state: dict[str, Any] = json.loads(args.out.read_text())["policies"] if args.out.exists() else {}
    for name in args.selection:
        state.setdefault(name, [])
    done = False
    if not args.report:
        with own_server(args.model, args.serve_args) as target:
            done = asyncio.run(trials(args, target, state, end))
    print(report(state))
    return 0 if done or args.report else 3  # 3 = call it again


if __name__ == "__main__":
    sys.exit(main())

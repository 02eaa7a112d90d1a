"""Measures servers that run beside each other on one machine, in turns: closed loops of 1, 8, 16, 32 streams.

    python bench/serve_peers.py --server lynx_rt=http://127.0.0.1:8102 --server vllm=http://127.0.0.1:8101 --out FILE.json

A server of lynx_rt that was started with --api-key (--key NAME=KEY) is measured once for each of --selection. Every round
measures each number of streams at each server; the order turns from round to round. While one is measured, the others have
no requests. FILE keeps what was measured; a call goes on where the one before ended, and stops before --limit-s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lynx_rt.bench.client import Target
from lynx_rt.bench.prompts import PromptSource
from lynx_rt.bench.run import drive, first_model, plan, wait_ready
from lynx_rt.bench.sweep import Point, Workload, measure
from lynx_rt.bench.traces import Arrival
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import format_table, positive_ints, selections


def pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=pair, action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--key", type=pair, action="append", default=[], metavar="NAME=KEY")
    parser.add_argument("--selection", type=selections, default=["topk", "lynx"])
    parser.add_argument("--streams", type=positive_ints, default=[1, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--waves", type=int, default=3, help="requests per stream (default: 3)")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit-s", type=float, default=1e9)
    parser.add_argument("--report", action="store_true", help="measure nothing")
    return parser


async def rounds(args: argparse.Namespace, state: dict[str, Any], end: float) -> bool:
    """Measures what is missing; returns whether all is there."""
    keys = dict(args.key)
    runs = []  # (name of the row, server, selection)
    for name, url in args.server:
        target = Target.parse(url, keys.get(name, ""))
        runs += [(f"{name} {s}", target, s) for s in args.selection] if name in keys else [(name, target, None)]
    longest: dict[tuple[str, int], float] = {}
    for number in range(args.rounds):
        for streams in args.streams:
            for turn in range(len(runs)):
                row, target, selection = runs[(turn + number) % len(runs)]
                key = f"{row}|{streams}|{number}"
                if key in state:
                    longest[row, streams] = state[key]["duration"]
                    continue
                if time.monotonic() + 1.3 * longest.get((row, streams), 20.0) > end:
                    return False
                count = max(4, args.waves * streams)
                model = (await first_model(target, 600))["id"]
                short = workload(args, model, streams, 4)
                warm = plan(target, "completions", model, short.requests(None), short.source, 5, short.extra)
                await wait_ready(target, warm[0], 600)
                await drive(target, warm)
                work = workload(args, model, count, args.output_len)
                seed = number * 1000 + streams
                result, _ = await measure(target, work, Point(float("inf"), streams, selection, count, seed))
                state[key] = result
                longest[row, streams] = result["duration"]
                kept = {"command": shlex.join(sys.argv), "measured_on": measured_on("cpu"), "points": state}
                args.out.write_text(json.dumps(kept, indent=1))
                shown = f"{result['output_throughput']:.1f} tok/s, p99 TPOT {result['p99_tpot_ms']:.1f} ms, {result['failed']} failed"
                print(f"round {number}, {row}, {streams} streams: {shown}, {result['duration']:.1f} s", flush=True)
    return True


def workload(args: argparse.Namespace, model: str, count: int, output: int) -> Workload:
    arrivals = [Arrival(0.0, args.input_len, output)] * count
    return Workload("completions", model, arrivals, PromptSource(args.vocab_size))


def report(state: dict[str, dict[str, Any]]) -> str:
    """Returns medians over the rounds."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for key, result in state.items():
        row, streams, _ = key.split("|")
        groups.setdefault((int(streams), row), []).append(result)
    rows = []
    for (streams, row), results in sorted(groups.items()):
        names = ("output_throughput", "median_tpot_ms", "p99_tpot_ms", "median_ttft_ms", "p99_ttft_ms")
        numbers = [f"{statistics.median(r[name] for r in results):.1f}" for name in names]
        rates = [r["output_throughput"] for r in results]
        lynx = results[-1]["lynx"]
        experts = [f"{lynx['experts_read']:.1f}", f"{lynx['retained_mass']:.3f}"] if lynx else ["-", "-"]
        spread = f"{100 * (max(rates) - min(rates)) / statistics.median(rates):.0f}"
        rows.append(
            [row, str(streams), str(len(results)), *numbers, spread, str(sum(r["failed"] for r in results)), *experts]
        )
    head = [
        "server",
        "streams",
        "rounds",
        "tok/s",
        "TPOT ms",
        "p99",
        "TTFT ms",
        "p99",
        "spread %",
        "failed",
        "experts",
        "mass",
    ]
    return format_table(head, rows)


def main() -> int:
    args = options().parse_args()
    state: dict[str, Any] = json.loads(args.out.read_text())["points"] if args.out.exists() else {}
    done = args.report or asyncio.run(rounds(args, state, time.monotonic() + args.limit_s))
    print(report(state))
    return 0 if done else 3  # 3 = call it again


if __name__ == "__main__":
    sys.exit(main())

"""Measures decode steps of a model whose experts are partly on the disk, against what their computing and their reading take alone.

    python bench/make_random_moe.py MODEL --hidden 2048 --layers 8 --experts 32 --topk 4 --inter 2048 --heads 16 --kv 4 --head-dim 128
    lynx-rt pack MODEL --quantization int8 --output EXPERTS
    python bench/tiers.py MODEL EXPERTS --quantization int8 --out DIR [--memory 10,25,50,75] [--batch 1,4,16] [--policy none,lru,lfu]

MODEL has the shape of lynx-nano (8 layers, 4 of 32 experts) with made-up weights. Its routing is a recorded one: lynx-nano decodes the
task sets in full batches of each size under each selection, and its choices are replayed. Columns:

    hits        share of the experts that steps used and that were in memory; misses: experts read per layer and step
    compute     ms of a step with all experts in memory
    io          ms that plain reading of the bytes takes: whole records at random, by the same reader, measured between the steps
    step        ms of a step; wait: ms of it in which there was nothing to compute
    of sum      step / (compute + io): at most 1.10 is the goal without prefetch
    of max      step / max(compute, io): at most 1.25 is the goal at batch 1 with prefetch
    read        what the process made the disk read, by /proc/self/io, against what the engine says: 1.00 is the goal
    ahead       experts whose reads began before they were known to be needed, per layer and step; needed: those of them that were
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from memory_cgroup import drop_page_cache, memory_limit
from recorded_routing import record

import lynx_rt
from lynx_rt import _C, _C_testing
from lynx_rt.cli.bench import start_sequences
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import format_table, positive_ints, selections

_TURN = 12  # steps between two measurements of the disk
_CONTEXT = 4  # tokens of a prompt: a prompt reads all experts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("experts", help="made by lynx-rt pack")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--memory", type=positive_ints, default=[10, 25, 50, 75], help="shares of the experts in %%")
    parser.add_argument("--batch", type=positive_ints, default=[1, 4, 16])
    parser.add_argument("--policy", default="none,lru,lfu", help="which experts stay (default: none,lru,lfu)")
    parser.add_argument("--prefetch", default="none", help="what is read ahead (default: none)")
    parser.add_argument("--selection", type=selections, default=["topk", "cover"])
    parser.add_argument(
        "--own-routing",
        action="store_true",
        help="routing by the made-up routers, which next_router can guess, instead of the recorded",
    )
    parser.add_argument(
        "--limit",
        type=_C.parse_memory,
        help="of a memory cgroup in which engines with a part of the experts run, beside the experts in memory: what the other weights, "
        "KV cache and workspace take; needs root",
    )
    parser.add_argument("--steps", type=int, default=48, help="timed steps of each (default: 48)")
    parser.add_argument("--warmup", type=int, default=60, help="steps before them (default: 60)")
    parser.add_argument("--tasks", type=Path, default=Path(__file__).parent / "tasks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    probe = _C_testing.ExpertReadProbe(args.experts)
    routing = {
        batch: {text: text for text in args.selection}
        if args.own_routing
        else record(args.out, lynx_rt.shipped_model(), args.tasks, args.selection, batch, 64 * batch + 200)
        for batch in args.batch
    }
    rows: list[dict[str, Any]] = []
    compute: dict[tuple[int, str], float] = {}
    variants = [(m, p, f) for m in args.memory for p in args.policy.split(",") for f in args.prefetch.split(",")]
    for memory, policy, prefetch in [(100, "lfu", "none"), *variants]:
        with_store = (
            {"expert_memory": f"{memory}%", "expert_policy": policy, "expert_prefetch": prefetch}
            if memory < 100
            else {}
        )
        limit = None
        if args.limit is not None and memory < 100:
            drop_page_cache()
            limit = args.limit + Path(args.experts).stat().st_size * memory // 100
        with memory_limit(limit):
            core = _C.Engine(
                args.model,
                quantization=args.quantization,
                expert_file=args.experts,
                max_num_seqs=max(args.batch),
                max_model_len=512,
                enable_prefix_caching=False,
                **with_store,
            )
            for batch in args.batch:
                for selection, replay in routing[batch].items():
                    row = _measure(core, probe if memory < 100 else None, batch, replay, args.steps, args.warmup)
                    row |= {
                        "memory": memory,
                        "policy": policy,
                        "prefetch": prefetch,
                        "batch": batch,
                        "selection": selection,
                    }
                    if memory == 100:
                        compute[batch, selection] = row["step_ms"]
                    row["compute_ms"] = compute[batch, selection]
                    rows.append(row)
                    print(row, file=sys.stderr)
            core.close()
            del core
    text = f"{measured_on('cpu')}\n\n{_table(rows)}\n\ncommand: python {' '.join(sys.argv)}\n"
    (args.out / "tiers.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (args.out / "tiers.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _measure(core: Any, probe: Any, batch: int, replay: str, steps: int, warmup: int) -> dict[str, Any]:
    generator = random.Random(0)

    def prompt(count: int, length: int) -> list[int]:
        return start_sequences(core, [[generator.randrange(1000) for _ in range(length)] for _ in range(count)], 500)

    if probe is None:  # all experts are mapped: a prompt that uses them all has their pages there
        for number in prompt(1, 400):
            core.abort(number)
    core.set_expert_selection(replay)
    ids = prompt(batch, _CONTEXT)
    for _ in range(warmup if probe else 8):
        core.step()
    times: list[float] = []
    rates: list[float] = []
    tier = {
        "prefetched": 0,
        "prefetch_used": 0,
        "decode_hits": 0,
        "decode_misses": 0,
        "bytes_read": 0,
        "wait_seconds": 0.0,
    }
    active = from_disk = 0
    while len(times) < steps:
        core.reset_stats()
        from_disk -= _bytes_from_disk()
        for _ in range(_TURN):
            start = time.perf_counter()
            core.step()
            times.append(time.perf_counter() - start)
        from_disk += _bytes_from_disk()
        stats = core.stats()
        active += sum(layer["active"] for layer in stats["layers"])
        if probe is not None:
            tier = {key: value + stats["tier"][key] for key, value in tier.items()}
            rates.append(probe.measure(32))
    for number in ids:
        core.abort(number)
    count, layers = len(times), len(stats["layers"])
    row = {"step_ms": 1e3 * statistics.mean(times), "used": active / count / layers}
    if probe is None:
        return row
    rate = statistics.median(rates)
    return row | {
        "hits": tier["decode_hits"] / (tier["decode_hits"] + tier["decode_misses"]),
        "misses": tier["decode_misses"] / count / layers,
        "mb": tier["bytes_read"] / count / 1e6,
        "read_share": from_disk / max(tier["bytes_read"], 1),
        "wait_ms": 1e3 * tier["wait_seconds"] / count,
        "rate": rate,
        "prefetched": tier["prefetched"] / count / layers,
        "prefetch_used": tier["prefetch_used"] / count / layers,
        "io_ms": 1e3 * tier["bytes_read"] / count / rate,
    }


def _bytes_from_disk() -> int:
    """Returns what this process has made the disk read, in bytes."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["memory", "policy", "prefetch", "batch", "selection", "used", "hits", "misses", "MB", "read", "GB/s"]
    header += ["compute", "io", "step", "wait", "of sum", "of max", "ahead", "needed"]
    cells = []
    for r in rows:
        cell = [f"{r['memory']} %", r["policy"], r["prefetch"], r["batch"], r["selection"], f"{r['used']:.1f}"]
        if "hits" in r:
            io, both = r["io_ms"], r["compute_ms"]
            cell += [
                f"{100 * r['hits']:.1f} %",
                f"{r['misses']:.2f}",
                f"{r['mb']:.0f}",
                f"{r['read_share']:.2f}",
                f"{r['rate'] / 1e9:.2f}",
                f"{both:.1f}",
            ]
            cell += [f"{io:.1f}", f"{r['step_ms']:.1f}", f"{r['wait_ms']:.1f}"]
            cell += [f"{r['step_ms'] / (io + both):.2f}", f"{r['step_ms'] / max(io, both):.2f}"]
            cell += [f"{r['prefetched']:.2f}", f"{r['prefetch_used']:.2f}"]
        else:
            cell += ["-"] * 5 + [f"{r['compute_ms']:.1f}", "0.0", f"{r['step_ms']:.1f}", "0.0", "-", "-", "-", "-"]
        cells.append(cell)
    return format_table(header, cells)


if __name__ == "__main__":
    sys.exit(main())

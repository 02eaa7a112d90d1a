"""What the order of admission does: experts read, retained mass, accuracy, and the time to the first token. All rows are from one run.

    python bench/admission.py MODEL --tasks bench/tasks [--items 1600] [--batch 16] [--rate 0.5]

The items of all tasks, mixed, arrive at `rate` requests per engine step (0 = all at once), and are answered greedily. Arrivals are counted
in steps, so every figure but the milliseconds is the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

import lynx_rt
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import selections
from lynx_rt.research.eval import Item, is_correct, load_items


def run(engine: lynx_rt.Engine, items: Sequence[Item], rate: float) -> dict[str, float]:
    """Answers all items. Returns accuracy (mean over tasks), and times to the first token in steps and milliseconds."""
    params = lynx_rt.SamplingParams(temperature=0.0, max_tokens=64, stop=["\n"])
    engine.reset_stats()
    arrived: dict[str, tuple[Item, int, float]] = {}
    waits: list[tuple[int, float]] = []
    correct: dict[str, list[bool]] = defaultdict(list)
    first: set[str] = set()
    step = 0
    while len(arrived) < len(items) or engine.has_unfinished_requests():
        due = len(items) if rate == 0 else min(len(items), int(step * rate) + 1)
        while len(arrived) < due:
            item = items[len(arrived)]
            arrived[engine.add_request(item.prompt, params)] = (item, step, time.perf_counter())
        for output in engine.step():
            item, begin, since = arrived[output.request_id]
            if output.request_id not in first and (output.finished or output.outputs[0].token_ids):
                first.add(output.request_id)
                waits.append((step - begin + 1, time.perf_counter() - since))
            if output.finished:
                correct[item.task].append(is_correct(item, output.text))
        step += 1
    out = {"accuracy": sum(sum(marks) / len(marks) for marks in correct.values()) / len(correct), "steps": float(step)}
    for share in (0.5, 0.99):
        out[f"ttft_steps_p{100 * share:g}"] = float(np.percentile([wait for wait, _ in waits], 100 * share))
        out[f"ttft_ms_p{100 * share:g}"] = 1e3 * float(np.percentile([wait for _, wait in waits], 100 * share))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--items", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--selection", type=selections, default=["topk", "lynx", "xshare:m=8"])
    parser.add_argument("--admission", type=selections, default=["first_come", "affinity"])
    args = parser.parse_args()
    items = load_items(args.tasks)[: args.items]
    print(
        "| selection | admission | experts read | without selection | retained mass | accuracy % | TTFT p50, p99 in steps | in ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for selection in args.selection:
        for admission in args.admission:
            options = {"max_num_seqs": args.batch, "enable_mixed_chunk": False, "enable_prefix_caching": False}
            with lynx_rt.Engine(args.model, expert_selection=selection, admission=admission, **options) as engine:
                result = run(engine, items, args.rate)
                experts = engine.expert_stats()
                figures = f"{experts.active:.2f} | {experts.union_before:.2f} | {experts.retained_mass:.4f}"
                steps = f"{result['ttft_steps_p50']:.0f}, {result['ttft_steps_p99']:.0f}"
                ms = f"{result['ttft_ms_p50']:.0f}, {result['ttft_ms_p99']:.0f}"
                accuracy = f"{100 * result['accuracy']:.2f}"
                print(f"| `{selection}` | `{admission}` | {figures} | {accuracy} | {steps} | {ms} |", flush=True)
                where = measured_on(engine.device)
    print(f"\n{where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

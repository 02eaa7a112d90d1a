"""Which of two engines gets a request: experts read per token, retained mass and time per token. All rows are from one run.

    python bench/placement.py MODEL --tasks bench/tasks [--rate 0.25] [--items 800] [--selection topk,lynx]

Items of all tasks, mixed, arrive as a Poisson process with `rate` requests per step, and generate 32 tokens each. Both engines make a step in
turn, with one thread, as if each had a machine of its own: a request's time is the processor time of its engine's steps. Counts are the same
on every machine. The policies are those of lynx_rt.integrations.placement; Ray is not between them and the engines.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

import numpy as np

import lynx_rt
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import selections
from lynx_rt.engine.outputs import layer_mean
from lynx_rt.integrations.placement import Placement, prompt_key
from lynx_rt.research.eval import load_items

TOKENS = 32


def run(engines: Sequence[lynx_rt.Engine], policy: str, prompts: Sequence[str], rate: float, fill: int) -> str:
    """Answers the prompts; returns a row of the table."""
    placement, draw = Placement(policy, fill), random.Random(0)
    params = lynx_rt.SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    clock = [0.0] * len(engines)  # seconds of each engine's steps
    begun: dict[str, float] = {}
    waits: list[int] = []
    arrived: dict[str, int] = {}
    per_token: list[float] = []
    step, sent, due = 0, 0, draw.expovariate(rate)
    for engine in engines:
        engine.reset_stats()
    while sent < len(prompts) or any(engine.has_unfinished_requests() for engine in engines):
        while sent < len(prompts) and due <= step:
            key = prompt_key({"prompt": prompts[sent]})
            place = int(str(placement.ranked(range(len(engines)), key)[0]))
            placement.add(place, str(sent), key)
            engines[place].add_request(prompts[sent], params, request_id=str(sent))
            arrived[str(sent)] = step
            due += draw.expovariate(rate)
            sent += 1
        for place, engine in enumerate(engines):
            if not engine.has_unfinished_requests():
                continue
            start = time.process_time()
            outputs = engine.step()
            clock[place] += time.process_time() - start
            for output in outputs:
                name = output.request_id
                if name not in begun:
                    begun[name] = clock[place]
                    waits.append(step - arrived[name] + 1)
                if output.finished:
                    placement.remove(place, name)
                    per_token.append((clock[place] - begun[name]) / (TOKENS - 1))
        step += 1
    stats = [engine.stats() for engine in engines]
    layers = [layer for one in stats for layer in one.layers]
    rows = sum(one.decode_rows for one in stats)
    experts = sum(layer.active for layer in layers) / len(stats[0].layers) / rows
    batch = rows / sum(one.decode_steps for one in stats)
    mass = layer_mean(layers, "retained_mass", "rows")
    median, high = 1e3 * np.percentile(per_token, [50, 99])
    times = f"{median:.2f} | {high:.2f} | {np.percentile(waits, 99):.0f}"
    share = 100 * stats[0].decode_rows / rows
    return f"| `{policy}` | {batch:.1f} | {share:.0f} | {experts:.2f} | {mass:.4f} | {sum(clock):.1f} | {times} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument("--fill", type=int, default=16)
    parser.add_argument("--selection", type=selections, default=["topk", "lynx"])
    parser.add_argument("--policies", default="spread,pack,expert,prefix")
    args = parser.parse_args()
    prompts = [item.prompt for item in load_items(args.tasks)[: args.items]]
    options = {"max_num_seqs": args.fill, "num_threads": 1, "enable_mixed_chunk": False, "enable_prefix_caching": False}
    engines = [lynx_rt.Engine(args.model, **options) for _ in range(2)]
    for selection in args.selection:
        for engine in engines:
            engine.set_expert_selection(selection)
        print(f"\n`{selection}`, {args.rate:g} requests per step:\n")
        print("| policy | rows per step | of the first engine % | experts per token and layer | retained mass | processor s | TPOT p50 ms "
              "| p99 ms | TTFT p99 steps |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for policy in args.policies.split(","):
            print(run(engines, policy, prompts, args.rate, args.fill), flush=True)
    print(f"\n{measured_on(engines[0].device)}")
    for engine in engines:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which of two engines gets a request: experts read per token, retained mass and time per token. All rows are from one run.

    python bench/placement.py MODEL --tasks bench/tasks [--rate 40] [--seconds 10] [--selection topk,lynx]

Items of all tasks, mixed, arrive as a Poisson process at `rate` per second and generate 32 tokens each. Two engines with a thread each run
side by side in this process, without Ray between them and the requests: the policies are those of lynx_rt.integrations.placement.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

import lynx_rt
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import selections
from lynx_rt.engine.outputs import layer_mean
from lynx_rt.integrations.placement import Placement, prompt_key
from lynx_rt.research.eval import load_items

TOKENS = 32


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def run(engines: list[lynx_rt.Engine], policy: str, prompts: list[str], rate: float, fill: int) -> str:
    """Answers the prompts; returns a row of the table."""
    placement, draw = Placement(policy, fill), random.Random(0)
    params = lynx_rt.SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    first: list[float] = []
    per_token: list[float] = []
    for engine in engines:
        engine.reset_stats()

    async def answer(number: int) -> None:
        key = prompt_key({"prompt": prompts[number]})
        place = placement.ranked(range(len(engines)), key)[0]
        placement.add(place, number, key)
        begin, begun = time.perf_counter(), 0.0
        async for _ in engines[int(str(place))].agenerate(prompts[number], params):
            begun = begun or time.perf_counter()
        placement.remove(place, number)
        first.append(begun - begin)
        per_token.append((time.perf_counter() - begun) / (TOKENS - 1))

    tasks, due = [], time.perf_counter()
    for number in range(len(prompts)):
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(answer(number)))
    await asyncio.gather(*tasks)
    stats = [engine.stats() for engine in engines]
    layers = [layer for one in stats for layer in one.layers]
    rows = sum(one.decode_rows for one in stats)
    experts = sum(layer.active for layer in layers) / len(stats[0].layers) / max(rows, 1)
    batch = rows / max(sum(one.decode_steps for one in stats), 1)
    mass = layer_mean(layers, "retained_mass", "rows")
    share = stats[0].decode_rows / max(rows, 1)
    times = [f"{1e3 * percentile(values, at):.2f}" for values in (per_token, first) for at in (0.5, 0.99)]
    return f"| `{policy}` | {batch:.1f} | {100 * share:.0f} | {experts:.2f} | {mass:.4f} | {' | '.join(times)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fill", type=int, default=16)
    parser.add_argument("--selection", type=selections, default=["topk", "lynx"])
    parser.add_argument("--policies", default="spread,pack,expert,prefix")
    args = parser.parse_args()
    prompts = [item.prompt for item in load_items(args.tasks)[: int(args.rate * args.seconds)]]
    options = {"max_num_seqs": args.fill, "num_threads": 1, "enable_mixed_chunk": False, "enable_prefix_caching": False}
    engines = [lynx_rt.Engine(args.model, **options) for _ in range(2)]
    print("| policy | rows per step | rows of the first engine % | experts per token and layer | retained mass | TPOT p50 ms | p99 ms "
          "| TTFT p50 ms | p99 ms |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for selection in args.selection:
        for engine in engines:
            engine.set_expert_selection(selection)
        print(f"| **{selection}** | | | | | | | | |")
        for policy in args.policies.split(","):
            print(asyncio.run(run(engines, policy, prompts, args.rate, args.fill)), flush=True)
    print(f"\n{measured_on(engines[0].device)}")
    for engine in engines:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

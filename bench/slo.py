"""Shows what the governor ("slo:tpot_ms=...") does on a model. Targets are shares of the step time of the model's own routing.

    python bench/slo.py MODEL [--batch 16] [--shares 1.2,0.8,0.65,0.5]

Random prompts of 64 tokens are continued by 70 greedy tokens each; decode-only steps are timed. All rows are from one run.
"""

from __future__ import annotations

import argparse
import random
import sys

import lynx_rt
from lynx_rt.cli.machine import measured_on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shares", default="1.2,0.8,0.65,0.5")
    args = parser.parse_args()
    options = {"max_num_seqs": args.batch, "enable_mixed_chunk": False, "enable_prefix_caching": False}
    with lynx_rt.Engine(args.model, skip_tokenizer_init=True, **options) as engine:
        draw, vocab = random.Random(0), engine.model_config["vocab_size"]
        prompts = [{"prompt_token_ids": [draw.randrange(vocab) for _ in range(64)]} for _ in range(args.batch)]
        params = lynx_rt.SamplingParams(temperature=0, max_tokens=70, ignore_eos=True, detokenize=False)

        def measure(selection: str) -> lynx_rt.EngineStats:
            engine.set_expert_selection(selection)
            engine.reset_stats()
            engine.generate(prompts, params, use_tqdm=False)
            return engine.stats()

        measure("topk")  # brings the weights into memory
        stats = measure("topk")
        base_ms = 1e3 * stats.decode_seconds / stats.decode_steps
        print(f"{measured_on(engine.device)}\n")
        print(f"topk: {base_ms:.1f} ms per step\n")
        print(
            "| target ms | mean ms | steps over target | retained mass | steps at each level |\n|---|---|---|---|---|"
        )
        for share in map(float, args.shares.split(",")):
            stats = measure(f"slo:tpot_ms={share * base_ms:.3f}")
            used = ", ".join(f"{text.split(',')[0]} {steps}" for text, steps in stats.slo.levels if steps)
            mass = engine.expert_stats().retained_mass
            mean_ms = 1e3 * stats.decode_seconds / stats.decode_steps
            over = f"{stats.slo.steps_over_target} of {stats.decode_steps}"
            print(f"| {share * base_ms:.1f} | {mean_ms:.1f} | {over} | {mass:.3f} | {used} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

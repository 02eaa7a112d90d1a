"""Decodes a GGUF file with less memory than it has bytes, by llama.cpp (which maps it) and by lynx_rt (which reads experts), in turns.

    lynx-rt pack MODEL.gguf --output EXPERTS
    python bench/tiers_llama_cpp.py MODEL.gguf EXPERTS --llama-batched-bench PATH --limit 1710MB --expert-memory 1200MB [--batch 1,8]

Both run in one memory cgroup (v1 or v2, which root may make), whose limit counts the page cache too, and begin with empty caches. Prints
tokens/s of decoding, after a prompt of 16 tokens for each sequence, and lynx_rt's hits, bytes read and waits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from memory_cgroup import drop_page_cache, memory_cgroup

from lynx_rt import _C
from lynx_rt.cli.bench import start_sequences
from lynx_rt.cli.machine import measured_on
from lynx_rt.cli.options import positive_ints, selections

_PROMPT = 16


def _run(command: list[str], procs: Path, environment: dict[str, str]) -> str:
    drop_page_cache()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env=os.environ | environment,
        preexec_fn=lambda: procs.write_text(str(os.getpid())),
    )
    return done.stdout


def _llama(args: argparse.Namespace, batch: int, steps: int, procs: Path) -> float:
    """Returns tokens/s."""
    command = [args.llama_batched_bench, "-m", args.model, "-t", str(args.threads), "-npp", str(_PROMPT)]
    text = _run([*command, "-ntg", str(steps), "-npl", str(batch), "-c", "512"], procs, {})
    cells = [cell.strip() for cell in text.strip().splitlines()[-1].strip("|").split("|")]
    return float(cells[7])  # S_TG t/s


def _worker(model: str, experts: str, memory: str, batch: int, steps: int, policies: list[str]) -> None:
    from lynx_rt import _C

    core = _C.Engine(
        model,
        expert_file=experts,
        expert_memory=memory,
        max_num_seqs=batch,
        max_model_len=512,
        enable_prefix_caching=False,
    )
    generator = random.Random(0)
    for policy in policies:
        core.set_expert_selection(policy)
        prompts = [[generator.randrange(1000) for _ in range(_PROMPT)] for _ in range(batch)]
        ids = start_sequences(core, prompts, 400)
        for _ in range(steps // 2):
            core.step()
        core.reset_stats()
        start = time.perf_counter()
        for _ in range(steps):
            core.step()
        seconds = time.perf_counter() - start
        tier = core.stats()["tier"]
        row = {
            "policy": policy,
            "tokens_per_s": steps * batch / seconds,
            "hits": tier["decode_hits"] / (tier["decode_hits"] + tier["decode_misses"]),
            "mb_per_step": tier["bytes_read"] / steps / 1e6,
            "wait_share": tier["wait_seconds"] / seconds,
        }
        print(json.dumps(row))
        for number in ids:
            core.abort(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("experts")
    parser.add_argument("--llama-batched-bench", required=True, metavar="PATH")
    parser.add_argument("--limit", type=_C.parse_memory, required=True, help="of the cgroup")
    parser.add_argument("--expert-memory", required=True, help="of lynx_rt: the limit without all other memory")
    parser.add_argument("--batch", type=positive_ints, default=[1])
    parser.add_argument("--selection", type=selections, default=["topk"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48, help="timed steps of lynx_rt (default: 48)")
    parser.add_argument("--llama-steps", type=int, default=12, help="tokens per sequence of llama.cpp (default: 12)")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(measured_on("cpu"))
    with memory_cgroup(args.limit) as procs:
        for batch in args.batch:
            for _ in range(args.rounds):
                theirs = _llama(args, batch, args.llama_steps, procs)
                print(f"batch {batch}: llama.cpp {theirs:.2f} tok/s")
                work = [args.model, args.experts, args.expert_memory, batch, args.steps, args.selection]
                code = f"import tiers_llama_cpp as t; t._worker(*{work!r})"
                for line in _run(
                    [sys.executable, "-c", code],
                    procs,
                    {"PYTHONPATH": f"{Path(__file__).resolve().parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
                ).splitlines():
                    row = json.loads(line)
                    print(
                        f"batch {batch}: lynx_rt, {row['policy']}: {row['tokens_per_s']:.2f} tok/s ({row['tokens_per_s'] / theirs:.1f} x), "
                        f"hits {100 * row['hits']:.0f} %, {row['mb_per_step']:.0f} MB a step, waits {100 * row['wait_share']:.0f} %"
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures vLLM's CPU backend, set up for speed as in its manual: compiled (not eager), with Intel's OpenMP and tcmalloc if found.

Everything runs in this process. See workload.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import workload as shared

_LIBRARIES = [Path(sys.prefix) / "lib", Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")]


def main() -> None:
    if "LD_PRELOAD" not in os.environ:  # it must be set before the process starts, so the process starts over
        found = [_find(name) for name in ("libtcmalloc_minimal.so.4", "libiomp5.so")]
        os.environ["LD_PRELOAD"] = ":".join(path for path in found if path)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    workload, report = shared.begin()
    preloaded = [Path(path).name for path in os.environ["LD_PRELOAD"].split(":") if path]
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM 0.32 saves compiled models in a form that it cannot load with torch 2.13, so it would compile at every start.
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores)))
    import torch
    import vllm

    report(version=f"{vllm.__version__}, torch {torch.__version__}")
    report(
        note=f"compiled, {', '.join(preloaded) or 'nothing'} preloaded, {os.environ['VLLM_CPU_KVCACHE_SPACE']} GiB of KV cache"
    )
    llm = vllm.LLM(
        workload.model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=workload.max_model_len,
        max_num_seqs=max(workload.batches),
        enable_prefix_caching=False,
    )

    def generate(prompts: shared.Prompts, count: int) -> None:
        params = vllm.SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    shared.measure(workload, report, generate)


def _find(name: str) -> str:
    return next((str(path / name) for path in _LIBRARIES if (path / name).is_file()), "")


if __name__ == "__main__":
    main()

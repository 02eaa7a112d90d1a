"""Measures transformers: a loop of greedy steps with a KV cache. See workload.py.

Every way to run the experts is tried at every batch size and for the prefill, and the fastest one is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import workload as shared

EXPERTS = ("grouped_mm", "batched_mm", "eager")
TRIAL = 4  # steps of each way to run the experts


def main() -> None:
    workload, report = shared.begin()
    import torch
    import transformers

    torch.set_num_threads(workload.threads)
    report(version=f"{transformers.__version__}, torch {torch.__version__}")
    model = transformers.AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.bfloat16).eval()

    def prefill(prompts: shared.Prompts) -> tuple[torch.Tensor, object]:
        out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def decode(tokens: torch.Tensor, cache: object, count: int) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        for _ in range(count):
            out = model(tokens, past_key_values=cache, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        return tokens, (time.perf_counter() - start) / count * 1e3

    def step_ms(prompts: shared.Prompts, first: int, count: int) -> float:
        tokens, cache = prefill(prompts)
        tokens, _ = decode(tokens, cache, first)
        return decode(tokens, cache, count)[1]

    def prefill_ms(prompts: shared.Prompts) -> float:
        start = time.perf_counter()
        prefill(prompts)
        return (time.perf_counter() - start) * 1e3

    def choose(time_once: Callable[[], float]) -> str:
        """Sets the model to its fastest way to run the experts."""
        times = {}
        for name in EXPERTS:
            model.set_experts_implementation(name)
            time_once()  # warm up
            times[name] = time_once()
        best = min(times, key=times.__getitem__)
        model.set_experts_implementation(best)
        return best

    with torch.inference_mode():
        prefill(workload.prompts(1, 2))
        report(ready=True)
        for batch in workload.batches:
            prompts = workload.prompts(batch, workload.context)
            best = choose(lambda prompts=prompts: step_ms(prompts, 1, TRIAL))
            report(note=f"{best} at batch {batch}")
            for _ in range(workload.repeats):
                report(batch=batch, decode_ms=step_ms(prompts, shared.FIRST, workload.steps))
        if workload.prefill:
            prompts = workload.prompts(1, workload.prefill)
            best = choose(lambda: prefill_ms(prompts))
            report(note=f"{best} for the prefill")
            for _ in range(workload.repeats):
                report(prefill_ms=prefill_ms(prompts))


if __name__ == "__main__":
    main()

"""Measures lynx_rt: decode steps through Engine.generate. The variant, if any, is its quantization. See workload.py."""

from __future__ import annotations

import inspect

import workload as shared


def main() -> None:
    workload, report = shared.begin()
    import lynx_rt

    options = {}
    if workload.variant:
        if "quantization" not in inspect.signature(lynx_rt.Engine.__init__).parameters:
            report(unavailable="this build of lynx_rt has no quantization")
            return
        options["quantization"] = workload.variant
    report(version=lynx_rt.__version__)
    with lynx_rt.Engine(
        workload.model,
        skip_tokenizer_init=True,
        device="cpu",
        dtype="bfloat16",
        num_threads=workload.threads,
        max_model_len=workload.max_model_len,
        max_num_seqs=max(workload.batches),
        enable_prefix_caching=False,
        **options,
    ) as engine:
        report(note=engine.device)

        def generate(prompts: shared.Prompts, count: int) -> None:
            params = {"max_tokens": count, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
            engine.generate(prompts, params, use_tqdm=False)

        shared.measure(workload, report, generate)
        for batch in workload.batches:
            report(batch=batch, bytes=bytes_per_step(engine, workload, batch, generate))


def bytes_per_step(engine, workload, batch, generate) -> float:
    """Returns the bytes that a step has to read: weights and KV."""
    prompts = workload.prompts(batch, workload.context)
    read = []
    for count in (shared.FIRST, shared.FIRST + workload.steps):
        engine.reset_stats()
        generate(prompts, count)
        read.append(engine.stats().bytes_read)
    return (read[1] - read[0]) / workload.steps


if __name__ == "__main__":
    main()

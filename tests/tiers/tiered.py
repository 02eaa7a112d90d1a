"""What tests of engines with experts on the disk share."""

from __future__ import annotations

from typing import Any

from lynx_rt import Engine

EXPERTS, LAYERS = 32, 8  # of lynx-nano
PROMPTS = ["12 + 7 = ", "Sort: 5 3 9 1\n", "abcabc", "The capital", "x", "2, 4, 6, ", "(()", "7 * 8 = "]
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "logprobs": 2}


def answers(engine: Engine, prompts: list[str] = PROMPTS) -> list[tuple[Any, Any]]:
    outputs = engine.generate(prompts, GREEDY, use_tqdm=False)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]

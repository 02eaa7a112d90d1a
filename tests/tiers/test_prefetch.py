"""Experts that are read before a layer is known to need them: the same results, and guesses that are better than chance."""

from __future__ import annotations

import pytest
from tiered import GREEDY, PROMPTS, answers

from lynx_rt import Engine, SamplingParams, ValidationError


@pytest.mark.parametrize("prefetch", ["next_router", "next_router:n=1", "next_router:n=32"])
@pytest.mark.parametrize("memory", ["1%", 0.3])
def test_same_results(nano_path, packed, expected, prefetch, memory) -> None:
    options = {"expert_file": packed("int8"), "expert_memory": memory, "quantization": "int8"}
    with Engine(nano_path, expert_prefetch=prefetch, **options) as engine:
        assert answers(engine) == expected(quantization="int8")


def test_guesses_are_good(nano_path, packed) -> None:
    """The next layer's router finds 77 % of the experts; half of them is far above chance (1/8)."""
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.3, expert_prefetch="next_router") as engine:
        answers(engine, PROMPTS[:1])
        tier = engine.stats().tier
        assert tier.prefetched > 20 and tier.prefetch_used > 0.5 * tier.prefetched


def test_no_guesses_in_large_steps(nano_path, packed) -> None:
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.3, expert_prefetch="next_router") as engine:
        engine.generate(PROMPTS + PROMPTS[:1], GREEDY, use_tqdm=False)
        assert engine.stats().tier.prefetched == 0


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_pregated(nano_path, packed, expected, quantization) -> None:
    """What is read ahead is what is used, and results are the same with whatever memory, but not those of the model's own routing."""
    options = {"quantization": quantization, "expert_prefetch": "pregated"}
    pregated = expected(**options)
    assert pregated != expected(quantization=quantization)
    for memory in ("1%", 0.3, 1.0):
        with Engine(nano_path, expert_file=packed(quantization), expert_memory=memory, **options) as engine:
            assert answers(engine) == pregated
            engine.reset_stats()
            alone = answers(engine, PROMPTS[:1])
            tier = engine.stats().tier
            assert alone == pregated[:1]
            # The first layer is not read ahead, nor are prompts.
            assert memory != 0.3 or tier.prefetched == tier.prefetch_used > 20
            with pytest.raises(ValidationError, match="pregated") as caught:
                engine.generate("x", SamplingParams(expert_selection="exact"), use_tqdm=False)
            assert caught.value.field == "exact"


@pytest.mark.parametrize(
    "text", ["best", "pregated:n=2", "next_router:n=", "next_router:n=0", "next_router:n=33", "next_router:n=1.5"]
)
def test_refused(nano_path, packed, text) -> None:
    with pytest.raises(ValidationError, match="expected") as caught:
        Engine(nano_path, expert_file=packed("none"), expert_memory=0.3, expert_prefetch=text)
    assert caught.value.field == "expert_prefetch"

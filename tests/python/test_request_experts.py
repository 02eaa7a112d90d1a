"""What a request's metrics say about the experts of its steps, against the engine's sums."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lynx_rt import Engine, SamplingParams

PROMPTS = [f"Q: {number} times {number + 3} = ?\nA:" for number in range(11, 17)]
LONG = SamplingParams(temperature=1, seed=5, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(nano_path: str) -> Iterator[Engine]:
    with Engine(nano_path, expert_selection="lynx", enable_mixed_chunk=False, max_num_seqs=8) as engine:
        yield engine


def test_alone_all_steps_are_its_own(engine: Engine) -> None:
    engine.reset_stats()
    (output,) = engine.generate(PROMPTS[0], LONG)
    metrics, stats = output.metrics, engine.stats()
    assert metrics.num_selected_rows == stats.decode_rows_selected
    assert metrics.num_decode_steps == stats.decode_steps == 19
    assert metrics.num_experts_read == sum(layer.active for layer in stats.layers) > 0
    assert 0 < metrics.scheduler_time < stats.step_seconds - stats.model_seconds


def test_rows_are_counted_for_the_request_that_has_them(engine: Engine) -> None:
    exact = LONG.clone(expert_selection="exact")
    params = [exact if place == 2 else LONG for place in range(len(PROMPTS))]
    engine.reset_stats()
    outputs = engine.generate(PROMPTS, params)
    stats, each = engine.stats(), [output.metrics for output in outputs]
    assert [metrics.num_selected_rows for metrics in each] == [0 if place == 2 else 19 for place in range(6)]
    assert sum(metrics.num_selected_rows for metrics in each) == stats.decode_rows_selected
    # they begin and end together, so every step counts for all of them
    assert {metrics.num_decode_steps for metrics in each} == {stats.decode_steps} == {19}
    assert {metrics.num_experts_read for metrics in each} == {sum(layer.active for layer in stats.layers)}


def test_completions_add_up(engine: Engine) -> None:
    engine.reset_stats()
    (output,) = engine.generate(PROMPTS[0], LONG.clone(n=3))
    assert output.metrics.num_selected_rows == engine.stats().decode_rows_selected > 0
    assert output.metrics.num_decode_steps == 3 * 19


def test_the_models_own_routing_selects_nothing(nano: Engine) -> None:
    nano.reset_stats()
    for output in nano.generate(PROMPTS, LONG):
        assert output.metrics.num_selected_rows == 0 < output.metrics.num_experts_read
    (output,) = nano.generate(PROMPTS[0], LONG.clone(max_tokens=1))
    assert output.metrics.num_decode_steps == output.metrics.num_experts_read == 0


def test_a_policy_for_all_phases_selects_rows_of_prompts_too(nano_path: str) -> None:
    with Engine(nano_path, expert_selection="lynx:phase=all", enable_prefix_caching=False) as engine:
        (output,) = engine.generate(PROMPTS[0], LONG.clone(max_tokens=1))
        assert output.metrics.num_selected_rows == output.metrics.num_prompt_tokens

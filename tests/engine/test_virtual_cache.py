"""The virtual cache of experts, and selection that knows what is resident, in the engine."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lynx_rt import Engine, EngineStats, SamplingParams, ValidationError, _C_testing, shipped_model
from lynx_rt.research.recording import own_experts, take_recording

PROMPTS = [f"Q: {a} + {a * 7 % 23} = ? A:" for a in range(3, 19)]
OPTIONS: dict[str, Any] = {
    "max_num_seqs": 4, "enable_prefix_caching": False, "enable_mixed_chunk": False, "num_threads": 1,
}  # fmt: skip


def answers(engine: Engine, count: int = 12, **params: Any) -> list[tuple[int, ...]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, **params)
    outputs = engine.generate(PROMPTS[:count], sampling, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def total(stats: EngineStats, name: str) -> int:
    return sum(getattr(layer, name) for layer in stats.layers)


def run(selection: str | None = None, **options: Any) -> tuple[list[tuple[int, ...]], EngineStats]:
    with Engine(shipped_model(), expert_selection=selection, **OPTIONS | options) as engine:
        return answers(engine), engine.stats()


def unions(ids: Any, offsets: Any) -> list[list[list[int]]]:
    """Experts of each step [layers][steps], rising, from ids [N, L, k]."""
    steps = list(itertools.pairwise(offsets))
    return [
        [sorted({int(e) for e in ids[a:b, layer].ravel() if e >= 0}) for a, b in steps] for layer in range(ids.shape[1])
    ]


@pytest.mark.parametrize("residents", [0.25, 3])
@pytest.mark.parametrize("policy", ["lfu", "lfu:decay=0.9", "lru", "none"])
def test_counts_are_those_of_the_simulation(residents: float, policy: str) -> None:
    """And the cache changes nothing but the counts."""
    plain, _ = run()
    with Engine(
        shipped_model(),
        virtual_residents=residents,
        virtual_residency=policy,
        record_router_logits=True,
        **OPTIONS,
    ) as engine:
        assert answers(engine) == plain
        recording, layers = take_recording(engine), engine.stats().layers
    used = unions(recording.routed_experts, recording.step_offsets)
    quota = int(residents * 32) if residents < 1 else residents
    counts = _C_testing.simulate_residency(policy, [quota] * 8, 32, used, [])["counts"]
    assert [layer.misses for layer in layers] == [count[2] for count in counts]
    assert [layer.misses_before for layer in layers] == [layer.misses for layer in layers]
    assert all(layer.changed_rows == 0 for layer in layers)


@pytest.mark.parametrize("selection", ["topk:resident=1", "cover:resident=1", "oea:k0=2,resident=0.5"])
def test_residents_are_preferred(selection: str) -> None:
    """Selection reads less; what it reads and what stays is a function of the history, by the model's own choices."""
    _, own = run(virtual_residents=0.25)
    with Engine(
        shipped_model(), expert_selection=selection, virtual_residents=0.25, record_router_logits=True, **OPTIONS
    ) as engine:
        first = answers(engine)
        recording, stats = take_recording(engine), engine.stats()
    misses, before = total(stats, "misses"), total(stats, "misses_before")
    assert misses < before and misses < 0.8 * total(own, "misses")
    assert stats.decode_rows_selected == stats.decode_rows > 0
    assert 0 < total(stats, "changed_rows") <= total(stats, "rows")
    # Replayed by hand: the policy sees uses of own choices, and reads of those that ran.
    used = unions(recording.routed_experts, recording.step_offsets)
    wanted = unions(own_experts(recording), recording.step_offsets)
    expected = _C_testing.simulate_residency("lfu", [8] * 8, 32, used, [], wanted)["counts"]
    assert [layer.misses for layer in stats.layers] == [count[2] for count in expected]
    again, twice = run(selection, virtual_residents=0.25, num_threads=2)
    assert again == first
    assert twice.layers == stats.layers


def test_a_single_row_is_selected_for() -> None:
    for selection in ("topk:resident=1", "cover:resident=1"):
        _, stats = run(selection, virtual_residents=0.25, max_num_seqs=1)
        assert total(stats, "misses") < total(stats, "misses_before")


def test_without_a_cache_there_is_nothing_to_know() -> None:
    plain, _ = run()
    got, stats = run("topk:resident=1")
    assert got == plain
    assert stats.decode_rows_selected == 0 and total(stats, "misses_before") == 0
    assert run("cover:resident=1")[0] == run("cover")[0]


def test_exact_requests_and_groups_do_not_depend_on_residents() -> None:
    plain, _ = run()
    with Engine(shipped_model(), expert_selection="topk:resident=2", virtual_residents=0.25, **OPTIONS) as engine:
        assert answers(engine) != plain, "selection changes nothing: the test would say nothing"
        assert answers(engine, expert_selection="exact") == plain
        assert answers(engine, isolation_group="a") == plain


def test_pages_of_selected_rows_are_not_found_again() -> None:
    options = {**OPTIONS, "enable_prefix_caching": True, "block_size": 4}
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    for selection, shared in (("topk", True), ("topk:resident=1", False)):
        with Engine(shipped_model(), expert_selection=selection, virtual_residents=0.25, **options) as engine:
            prompt = engine.encode(PROMPTS[0])
            said = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0].token_ids
            longer = [*prompt, *said]
            again = engine.generate([{"prompt_token_ids": [*longer, 1]}], params, use_tqdm=False)[0]
            found = (len(longer) - 1 if shared else len(prompt)) // 4 * 4
            assert again.num_cached_tokens == found


def test_the_selection_can_be_changed_and_the_cache_stays() -> None:
    with Engine(shipped_model(), virtual_residents=0.5, **OPTIONS) as engine:
        answers(engine)
        engine.reset_stats()
        engine.set_expert_selection("topk:resident=1")
        assert engine.expert_selection == "topk:resident=1,refill=0,damp=0.5"
        answers(engine)
        stats = engine.stats()
        assert 0 < total(stats, "misses") < total(stats, "misses_before") < total(stats, "union_before")


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"virtual_residents": -1}, "virtual_residents", "a number of them from 1 to 32, got -1"),
        ({"virtual_residents": 1.5}, "virtual_residents", "got 1.5"),
        ({"virtual_residents": 33}, "virtual_residents", "got 33"),
        ({"virtual_residents": "all"}, "virtual_residents", "must be a number"),
        ({"virtual_residents": 1, "virtual_residency": "lfo"}, "expert_policy", "expected one of lfu"),
        ({"virtual_residents": 1, "virtual_residency": "static:file=x"}, "virtual_residency", "without lists"),
        ({"virtual_residents": 1, "virtual_residency": "belady"}, "virtual_residency", "without lists"),
    ],
)
def test_mistakes(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Engine(shipped_model(), **options)
    assert error.value.field == field and said in str(error.value)

"""ExpertFlow's memory of experts on a virtual clock, against traces by hand; what prompts say of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_recordings import EXPERTS, LAYERS, TIER, TOP_K, add_prompts, made_up, one_row

from lynx_rt import Engine, SamplingParams, ValidationError, shipped_model
from lynx_rt.research.predictors import parse_predictor, predict, prompt_uses
from lynx_rt.research.recording import Recording, take_recording
from lynx_rt.research.tier_simulation import Tier, TierSimulation, TierSimulator, simulate_tier


def run(folder: Path, experts: list[list[int]], guesses: list[list[list[int]]], seconds: float) -> TierSimulation:
    """Runs one request of 2 layers with 2 slots in all, guesses [steps][layers], the likeliest first. A read takes `seconds`, a layer 2,
    an expert 1."""
    recording = one_row(experts)
    scores = np.full(recording.scores.shape, -np.inf, np.float32)
    for step, layers in enumerate(guesses):
        for layer, named in enumerate(layers):
            scores[step, layer, named] = -np.arange(len(named))
    np.save(folder / "scores.npy", scores)
    tier = Tier(expert_bytes=10, disk_rate=10 / seconds, expert_seconds=1, layer_seconds=2, measured=1)
    return simulate_tier(
        recording, tier, residents=1, policy="plec", prefetch=f"external:file={folder / 'scores.npy'},n=4"
    )


def test_guesses_are_read_ahead(tmp_path: Path) -> None:
    found = run(tmp_path, [[0, 1], [0, 2]], [[[0], [1]], [[0], [2]]], 10)
    # Step 0: 2 s of expert 0 are read when its layer knows it; 8 are left. Then 1 + 2 s of expert 1, of which 7 are left.
    # Step 1: expert 0 is there; 2 + 1 + 2 s of expert 2, in the place of expert 1.
    assert found.misses.tolist() == [[1, 1], [0, 1]] and found.needed.tolist() == [[1, 1], [0, 1]]
    assert found.in_time.sum() == 0 and found.wait.tolist() == [15, 5] and found.seconds.tolist() == [21, 11]
    assert found.wasted.sum() == 0 and found.disk.tolist() == [20, 10] and found.hit_rate == found.there == 0.25


def test_a_wrong_read_under_way_is_dropped(tmp_path: Path) -> None:
    found = run(tmp_path, [[0, 1], [0, 1]], [[[0], [3]], [[], []]], 10)
    assert found.seconds.tolist() == [11 + 13, 6] and found.wasted.tolist() == [3, 0]
    assert found.misses.tolist() == [[1, 1], [0, 0]] and found.needed.tolist() == [[1, 0], [0, 0]]
    assert found.guessed_used.tolist() == [[1, 0], [0, 0]] and found.disk.tolist() == [23, 0]


def test_what_was_guessed_in_vain_is_evicted_first(tmp_path: Path) -> None:
    found = run(tmp_path, [[0, 1], [0, 1]], [[[2], [1]], [[], []]], 1)
    # Expert 2 of layer 0 and expert 1 of layer 1 fill memory. Expert 0 takes the place of 2, not that of a guess for a layer to come.
    assert found.misses.tolist() == [[1, 1], [0, 0]] and found.in_time.tolist() == [[0, 1], [0, 0]]
    assert found.seconds.tolist() == [7, 6] and found.wait.tolist() == [1, 0] and found.wasted.tolist() == [1, 0]
    assert found.there == 0.75


def test_slots_follow_guesses_and_are_free_when_a_layer_is_done(tmp_path: Path) -> None:
    found = run(tmp_path, [[0, 3]], [[[0, 1, 2], [3]]], 1)
    # 2 slots for 3 + 1 guesses: 1.5 and 0.5, so both go to layer 0; when it is done, layer 1 gets what it guesses.
    assert found.ahead.tolist() == [[2, 1]] and found.in_time.tolist() == [[1, 1]] and found.seconds.tolist() == [6]
    assert found.wasted.tolist() == [1] and found.disk.tolist() == [3] and found.guessed.tolist() == [[3, 1]]


def test_experts_pass_through_where_slots_are_too_few(tmp_path: Path) -> None:
    recording = made_up([1] * 4)  # one step of four rows, which use more than 3 experts of a layer
    np.save(tmp_path / "none.npy", np.full(recording.scores.shape, -np.inf, np.float32))
    found = simulate_tier(
        recording, TIER, residents=1, policy="plec", prefetch=f"external:file={tmp_path / 'none.npy'}"
    )
    assert (found.misses == found.used).all() and found.used.min() > LAYERS
    assert found.disk[0] == pytest.approx(1e-3 * found.used.sum())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, EXPERTS), st.integers(0, 9)
)
def test_laws(lengths: list[int], batch: int, residents: int, seed: int) -> None:
    simulator = TierSimulator(made_up(lengths, seed), TIER, batch=batch)
    simulator._train[:] = True
    none = simulator.run("topk", "none", residents)
    for prefetch in ("token_table", "ewma:n=5"):
        found = simulator.run("topk", "plec", residents, prefetch)
        assert (found.used == none.used).all() and (found.misses <= found.used).all()
        assert (found.in_time <= found.needed).all() and (found.needed <= found.misses).all()
        assert (found.seconds <= none.seconds + 1e-9).all()
        # Reads from the disk are those of missed experts, of unused ones, and of those guessed a step too early or not used yet.
        assert found.disk.sum() >= 1e-3 * found.misses.sum() + found.wasted.sum() - 1e-9


def test_a_fast_disk_has_all_guesses_there() -> None:
    fast = Tier(expert_bytes=1, disk_rate=1e12, expert_seconds=1e-4, layer_seconds=1e-3, measured=1.0)
    simulator = TierSimulator(made_up([9, 7, 8]), fast, batch=1)
    simulator._train[:] = True
    found = simulator.run("topk", "plec", 4, f"token_table:n={TOP_K}")  # slots for what a row may use
    assert (found.in_time == found.needed).all() and found.there >= found.recall > 0.5


def test_it_needs_guesses_at_the_beginning() -> None:
    simulator = TierSimulator(made_up([4, 4, 4, 4]), Tier(expert_bytes=1), batch=1)
    for prefetch in ("none", "next_router", "transition"):
        with pytest.raises(ValidationError, match="plec needs guesses that are known when a step begins"):
            simulator.run("topk", "plec", 4, prefetch)


# Prompts


def with_prompts() -> Recording:
    """One request of 3 rows: its prompt uses expert 0 twice in layer 0, then 1 and 2 in layer 1."""
    recording = one_row([[3, 1], [3, 1], [0, 2]])
    add_prompts(recording, [[5, 6]], [[[[0], [1]], [[0], [2]]]])
    return recording


def test_prompts_guess_answers(tmp_path: Path) -> None:
    recording = with_prompts()
    assert prompt_uses(recording).tolist() == [[[1, 0, 0, 0], [0, 0.5, 0.5, 0]]]
    train = np.ones(3, bool)
    plain, mixed = (predict(recording, parse_predictor(text), train) for text in ("prefill", "prefill:decay=0.5"))
    assert plain is not None and mixed is not None
    assert plain.round(2).tolist() == [[[1, 0, 0, 0], [0, 0.5, 0.5, 0]]] * 3
    assert mixed[1].round(2).tolist() == [[0.5, 0, 0, 0.5], [0, 0.75, 0.25, 0]]
    recording.save(tmp_path / "r.npz")
    again = predict(Recording.load(tmp_path / "r.npz"), parse_predictor("prefill"), train)
    assert np.array_equal(plain, again)  # type: ignore[arg-type]


def test_prompts_choose_residents() -> None:
    recording = with_prompts()
    tier = Tier(expert_bytes=1, measured=1.0)
    # One resident of each layer. lfu: nothing is there first; a use more does not push out expert 3 of layer 0 in step 2.
    assert simulate_tier(recording, tier, residents=1, policy="lfu").misses.tolist() == [[1, 1], [0, 0], [1, 1]]
    # The prompt as 4 tokens: 4 uses of expert 0 stay ahead of two of expert 3; experts 1 and 2 of layer 1 have two each.
    found = simulate_tier(recording, tier, residents=1, policy="prefill:weight=4")
    assert found.misses.tolist() == [[1, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize("policy", ["prefill:weight=0", "prefill:weight=x", "prefill:w=1", "prefill:weight=inf"])
def test_bad_weights(policy: str) -> None:
    with pytest.raises(ValidationError, match="expected prefill:weight=10"):
        simulate_tier(with_prompts(), TIER, residents=1, policy=policy)


def test_recorded_prompts(tmp_path: Path) -> None:
    """Tokens and experts are those of the engine; a request that ends with its first token has a prompt and no rows."""
    prompts: list[Any] = ["Q: 3 + 4 = ? A:", "Q: 10 + 4 = ? A:", "Q: 1 + 1 = ? A:"]
    with Engine(
        shipped_model(), record_router_logits=True, enable_return_routed_experts=True, max_num_seqs=2, num_threads=1,
        enable_mixed_chunk=False,
    ) as engine:  # fmt: skip
        lengths = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (4, 1, 3)]
        outputs = engine.generate(prompts, lengths, use_tqdm=False)
        recording = take_recording(engine)
    recording.add_prompts(outputs)
    assert np.unique(recording.prompt_request).tolist() == [1, 2, 3] and np.unique(recording.request).tolist() == [1, 3]
    for number, output in enumerate(outputs, 1):
        mine = recording.prompt_request == number
        assert recording.prompt_token[mine].tolist() == output.prompt_token_ids
        rows = recording.request == number
        assert recording.token[rows].tolist() == output.outputs[0].token_ids[:-1]
        routed = output.outputs[0].routed_experts
        assert routed is not None
        assert np.array_equal(np.concatenate([recording.prompt_experts[mine], recording.routed_experts[rows]]), routed)
    assert prompt_uses(recording).sum(-1) == pytest.approx(4)
    recording.save(tmp_path / "r.npz")
    assert np.array_equal(Recording.load(tmp_path / "r.npz").prompt_experts, recording.prompt_experts)
    for output in outputs:
        output.outputs[0].routed_experts = None
    with pytest.raises(ValidationError, match="enable_return_routed_experts"):
        recording.add_prompts(outputs)
    recording.prompt_experts = recording.prompt_experts[:1]
    recording.save(tmp_path / "r.npz")
    with pytest.raises(ValidationError, match="prompt_experts: unexpected"):
        Recording.load(tmp_path / "r.npz")

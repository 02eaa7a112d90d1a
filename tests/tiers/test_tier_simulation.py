"""Simulation of experts on the disk: counts against the engine and a plain reference, the clock against one and against hand traces,
the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_recordings import EXPERTS, LAYERS, POLICIES, TIER, TOP_K, made_up, one_row, unions

from lynx_rt import _C, Engine, SamplingParams, ValidationError, _C_testing, shipped_model
from lynx_rt.cli.main import main
from lynx_rt.research.predictors import parse_predictor, predict
from lynx_rt.research.recording import Recording, take_recording, uses
from lynx_rt.research.simulate import simulate
from lynx_rt.research.tier_simulation import Tier, TierSimulator, save_static, simulate_tier

# Counts


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_counts_are_those_of_the_residency(policy: str, batch: int | None) -> None:
    recording = made_up([5, 9, 2, 7, 4, 8])
    own = simulate(recording, "topk", batch=batch)
    used = unions(own.routed_experts, own.offsets)
    found = simulate_tier(recording, TIER, policy=policy, residents=4, batch=batch)
    assert found.used.T.tolist() == [[len(step) for step in layer] for layer in used]
    if policy.startswith("score"):
        return  # test_score_counts_gate_mass
    counts = _C_testing.simulate_residency(policy, [4] * LAYERS, EXPERTS, used)["counts"]
    assert found.misses.sum(0).tolist() == [c[2] for c in counts]
    assert found.hit_rate == pytest.approx(sum(c[1] for c in counts) / sum(c[0] for c in counts))


def test_score_counts_gate_mass() -> None:
    """A plain reference: the experts with the largest decayed sums of the rows' own probabilities stay."""
    recording, quota, decay = made_up([6, 9, 3, 7]), 4, 0.9
    found = simulate_tier(recording, TIER, policy=f"score:decay={decay}", residents=quota)
    scores = np.exp(recording.scores.astype(np.float64))
    for layer in range(LAYERS):
        mass, last, residents, misses = np.zeros(EXPERTS), np.full(EXPERTS, -1), set(), []
        for step, (a, b) in enumerate(itertools.pairwise(recording.step_offsets)):
            mass *= decay
            now = set()
            for row in range(a, b):
                best = np.argsort(-recording.scores[row, layer], kind="stable")[:TOP_K]
                mass[best] += scores[row, layer, best] / scores[row, layer, best].sum()
                now |= set(best.tolist())
            last[sorted(now)] = step
            misses.append(len(now - residents))
            if not now <= residents:
                residents = set(sorted(residents | now, key=lambda e: (mass[e], last[e], -e), reverse=True)[:quota])
        assert found.misses[:, layer].tolist() == misses


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.integers(1, EXPERTS), st.integers(0, 99)
)
def test_laws(lengths: list[int], batch: int, residents: int, seed: int) -> None:
    """No policy hits more than belady, a larger LRU cache hits no less, and misses do not depend on the clock."""
    simulator = TierSimulator(made_up(lengths, seed), TIER, batch=batch)
    best = simulator.run("topk", "belady", residents).misses.sum(0)
    for policy in POLICIES:
        assert (simulator.run("topk", policy, residents).misses.sum(0) >= best).all(), policy
    if residents > 1:
        smaller, larger = (simulator.run("topk", "lru", c).misses for c in (residents - 1, residents))
        assert (smaller >= larger).all()
    slow = Tier(expert_bytes=1, disk_rate=1.0, expert_seconds=0.0, layer_seconds=0.0, measured=1.0)
    again = TierSimulator(made_up(lengths, seed), slow, batch=batch).run("topk", "lru", residents, "next_router")
    assert (again.misses == simulator.run("topk", "lru", residents).misses).all()


def test_belady_of_selections() -> None:
    """It knows what a selection uses; where that depends on residents, it goes by own choices and is no bound any more."""
    simulator = TierSimulator(made_up([9, 7, 8, 6, 5, 9]), TIER, batch=4)
    assert simulator.run("cover", "belady", 4).misses.sum() <= simulator.run("cover", "lfu", 4).misses.sum()
    own, aware = (simulator.run(s, "belady", 4) for s in ("topk", "topk:resident=1"))
    assert aware.misses.sum() < own.misses.sum() and 0 < aware.retained_mass < own.retained_mass == pytest.approx(1)


def test_static_and_its_file(tmp_path: Path) -> None:
    recording = made_up([9, 7, 8, 6, 5, 9, 9, 9])
    simulator = TierSimulator(recording, Tier(expert_bytes=1, measured=0.5), batch=2)
    lists = simulator.static_lists()
    first = simulator._order[: simulator._offsets[simulator._first]]
    counted = uses(recording)[[row for row in first if simulator._train[row]]].sum(0)
    assert [layer[0] for layer in lists] == np.argsort(-counted, kind="stable").tolist()
    file = tmp_path / "static.safetensors"
    save_static(file, lists)
    plain, read = (simulator.run("topk", policy, 5).misses for policy in ("static", f"static:file={file}"))
    assert (plain == read).all()
    used = unions(simulate(recording, "topk", batch=2).routed_experts, simulator._offsets)
    expected = [[len(set(step) - set(lists[i][0][:5])) for step in used[i]] for i in range(LAYERS)]
    assert plain.T.tolist() == [layer[simulator._first :] for layer in expected]


@pytest.mark.parametrize("selection", ["topk", "cover", "topk:resident=1", "cover:resident=1"])
@pytest.mark.parametrize("policy", ["lfu", "lru", "score"])
def test_counts_are_those_of_the_engine(selection: str, policy: str) -> None:
    """The virtual cache of an engine, step by step of what it decoded; with the trained model's routing."""
    prompts = [f"Q: {a} + {a * 7 % 23} = ? A:" for a in range(3, 15)]
    with Engine(
        shipped_model(), expert_selection=selection, virtual_residents=0.25, virtual_residency=policy, record_router_logits=True,
        max_num_seqs=4, enable_prefix_caching=False, enable_mixed_chunk=False, num_threads=1,
    ) as engine:  # fmt: skip
        engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), use_tqdm=False)
        recording, layers = take_recording(engine), engine.stats().layers
    found = simulate_tier(recording, TIER, selection=selection, policy=policy, residents=0.25)
    assert found.misses.sum(0).tolist() == [layer.misses for layer in layers]
    assert found.used.sum(0).tolist() == [layer.active for layer in layers]
    assert found.retained_mass == pytest.approx(
        np.mean([layer.retained_mass / layer.rows for layer in layers]), rel=1e-9
    )
    # Tokens and the next router's logits in a recording are those that the engine had.
    assert len(recording.token) == len(recording) and recording.next_scores.shape == (len(recording), 7, 32)
    guessed = predict(recording, parse_predictor("next_router"), np.ones(len(recording), bool))
    assert guessed is not None
    best = np.argsort(-guessed[:, 1:], -1)[..., :4]
    assert np.take_along_axis(uses(recording)[:, 1:], best, -1).mean() > 0.6  # chance: 1/8


# The clock


def clock(
    recording: Recording, used: Any, misses: Any, guesses: Any, n: int, d: int, tier: Tier
) -> tuple[list[float], list[float]]:
    """The clock in small pieces of time: at each moment the disk works on the first demand, or else on the first hint."""
    read = tier.expert_bytes / tier.disk_rate
    now, disk, hints = 0.0, 0.0, []  # hints: [layer, expert, seconds left]
    times, waits = [], []

    def hint(step: int, layer: int) -> None:
        if guesses is None:
            return
        a, b = recording.step_offsets[step : step + 2]
        best: dict[int, float] = {}
        for row in range(a, b):
            scores = guesses[row, layer]
            for e in np.argsort(-scores, kind="stable")[:n].tolist():
                if scores[e] > -np.inf:
                    best[e] = max(best.get(e, -np.inf), float(scores[e] - scores.max()))
        for e in sorted(best, key=lambda e: (-best[e], e)):
            if e in misses.absent[layer][step]:
                hints.append([layer, e, read])

    for step in range(len(recording.step_offsets) - 1):
        start, wait = now, 0.0
        disk = _work(hints, disk, now)
        for layer in range(min(d, LAYERS)):
            hint(step, layer)
        for layer in range(LAYERS):
            now += tier.layer_seconds
            disk = _work(hints, disk, now)
            needed = sorted(set(used[layer][step]) & set(misses.absent[layer][step]))
            mine = [h for h in hints if h[0] == layer]
            hints = [h for h in hints if h[0] != layer]
            ahead = {h[1]: h[2] for h in mine if h[1] in needed}
            queue = [left for left in ahead.values() if left > 0] + [read for e in needed if e not in ahead]
            there = len(used[layer][step]) - len(needed) + sum(left == 0 for left in ahead.values())
            now += there * tier.expert_seconds
            for left in queue:
                disk += left
                wait += max(0.0, disk - now)
                now = max(now, disk) + tier.expert_seconds
            if layer + d < LAYERS:
                hint(step, layer + d)
        times.append(now - start)
        waits.append(wait)
    return times, waits


def _work(hints: list[list[Any]], disk: float, now: float) -> float:
    for h in hints:
        took = min(h[2], max(0.0, now - disk))
        h[2] = 0.0 if h[2] - took < 1e-12 else h[2] - took
        disk += took
    return max(disk, now)


class Absent:
    """Experts that are not resident before each step, by the reference of the residency."""

    def __init__(self, policy: str, quota: int, used: list[list[list[int]]]) -> None:
        residents = _C_testing.simulate_residency(policy, [quota] * LAYERS, EXPERTS, used)["residents"]
        self.absent = [[set(range(EXPERTS)) - set(step) for step in layer] for layer in residents]


@pytest.mark.parametrize(
    "prefetch", ["none", "next_router", "next_router:n=6", "token_table:d=2", "token_table:n=5,d=3", "ewma", "linear"]
)
@pytest.mark.parametrize("milliseconds", [0.2, 1.0, 5.0])
def test_the_clock_is_its_reference(prefetch: str, milliseconds: float) -> None:
    recording = made_up([5, 9, 2, 7, 4])
    tier = Tier(
        expert_bytes=round(1000 * milliseconds), disk_rate=1e6, expert_seconds=4e-4, layer_seconds=5e-4, measured=1.0
    )
    simulator = TierSimulator(recording, tier)
    simulator._train = np.ones(len(recording), bool)
    found = simulator.run("topk", "lru", 4, prefetch)
    used = unions(simulate(recording, "topk").routed_experts, recording.step_offsets)
    predictor = parse_predictor(prefetch)
    guesses = predict(recording, predictor, simulator._train)
    times, waits = clock(recording, used, Absent("lru", 4, used), guesses, predictor.n or TOP_K, predictor.d, tier)
    assert found.seconds.tolist() == pytest.approx(times, rel=1e-9)
    assert found.wait.tolist() == pytest.approx(waits, rel=1e-9, abs=1e-12)
    assert (
        (found.needed <= found.misses).all()
        and (found.in_time <= found.needed).all()
        and (found.needed <= found.ahead).all()
    )
    plain = simulator.run("topk", "lru", 4)
    if prefetch != "none":
        assert found.ahead.sum() > 0 and found.wait.sum() < plain.wait.sum()
        assert found.bytes_per_step == pytest.approx(plain.bytes_per_step + found.wasted.mean() * 1e6)


def test_hand_traces(tmp_path: Path) -> None:
    recording = one_row([[0, 1], [0, 2], [3, 1]])
    tier = Tier(
        expert_bytes=10, disk_rate=1.0, expert_seconds=1.0, layer_seconds=2.0, measured=1.0
    )  # a read takes 10 s
    plain = simulate_tier(recording, tier, residents=1, policy="lru")
    assert plain.misses.tolist() == [[1, 1], [0, 1], [1, 1]]
    assert plain.seconds.tolist() == [26, 16, 26] and plain.wait.tolist() == [20, 10, 20]
    assert plain.bytes_per_step == pytest.approx(50 / 3) and plain.tokens_per_s == pytest.approx(3 / 68)
    # The next layer's expert is read from when the first knows its own: after that one's read, or at once; 3 s are left over.
    ahead = simulate_tier(recording, tier, residents=1, policy="lru", prefetch="next_router")
    assert ahead.seconds.tolist() == [2 + 10 + 1 + 2 + 7 + 1, 2 + 1 + 2 + 7 + 1, 23] and ahead.wait.tolist() == [
        17,
        7,
        17,
    ]
    assert ahead.needed.tolist() == [[0, 1], [0, 1], [0, 1]] and ahead.in_time.sum() == 0 and ahead.wasted.sum() == 0
    # A wrong guess is dropped when its layer is known.
    wrong = np.full(recording.scores.shape, -np.inf, np.float32)
    wrong[:, 1, 3] = 1
    np.save(tmp_path / "wrong.npy", wrong)
    found = simulate_tier(
        recording, tier, residents=1, policy="lru", prefetch=f"external:file={tmp_path / 'wrong.npy'},n=1"
    )
    assert found.seconds.tolist() == [26, 16, 26] and found.wasted.tolist() == [3, 3, 3] and found.precision == 0
    # A ring reads all 4 experts of the next layer while it computes this one: here it is always at reading.
    ring = simulate_tier(recording, tier, residents=1, policy="ring")
    assert ring.reads.tolist() == [[4, 4]] * 3 and ring.misses.tolist() == [[1, 1]] * 3
    assert ring.seconds[0] == 2 + 6 * 10 + 1  # expert 1 of layer 1 comes sixth


@pytest.mark.parametrize(
    ("values", "field"),
    [({"expert_bytes": 0}, "expert_bytes"), ({"disk_rate": 0}, "disk_rate"), ({"expert_seconds": -1}, "expert_seconds"),
     ({"layer_seconds": float("inf")}, "layer_seconds"), ({"measured": 0}, "measured"), ({"measured": 1.1}, "measured")],
)  # fmt: skip
def test_bad_machines(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as error:
        Tier(**{"expert_bytes": 1, **values})
    assert error.value.field == field


def test_bad_variants() -> None:
    recording = made_up([3, 3])
    for arguments, said in (
        ({"policy": "lfo"}, "expected one of lfu"),
        ({"residents": 13}, "residents: expected a share"),
        ({"residents": 0}, "residents"),
        ({"selection": "nonsense"}, "nonsense"),
        ({"policy": "static:file=/no/such"}, "/no/such"),
    ):
        with pytest.raises((ValidationError, OSError), match=said):
            simulate_tier(recording, TIER, **{"residents": 4, **arguments})
    assert simulate_tier(made_up([]), TIER, residents=4, batch=2).tokens_per_s == 0
    with pytest.raises(ValidationError, match="d: expected at least 1"):
        _C.simulate_tier(
            recording.native(), "topk", np.arange(6), recording.step_offsets, policy="lfu", residents=4.0, distance=0
        )


# The command


def test_simulate_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, report, static = tmp_path / "r.npz", tmp_path / "r.json", tmp_path / "s.safetensors"
    tasks = Path(__file__).parents[2] / "bench" / "tasks"
    assert (
        main(["record", "--tasks", str(tasks), "--batch", "4", "--items", "24", "--max-tokens", "6", "--out", str(npz)])
        == 0
    )
    capsys.readouterr()
    argv = ["simulate", str(npz), "--residents", "0.25,0.5", "--batch", "1,4", "--selection", "topk,topk:resident=1"]
    argv += ["--expert-policy", "lfu:decay=0.9,lru,static,belady", "--prefetch", "none,next_router:n=6", "--layers"]
    assert main([*argv, "--json", str(report), "--save-static", str(static)]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = 2 * 2 * 2 * 4 * 2
    assert len(lines) == 2 + count + 2 + 2 + count and lines[2].split()[:5] == [
        "topk",
        "1",
        "0.25",
        "lfu:decay=0.9",
        "none",
    ]
    results = json.loads(report.read_text())["results"]
    assert len(results) == count
    recording = Recording.load(npz)
    tier = Tier(expert_bytes=147456, measured=0.5)
    again = simulate_tier(
        recording,
        tier,
        selection="topk:resident=1",
        policy="static",
        residents=0.5,
        batch=4,
        prefetch="next_router:n=6",
    )
    assert again.to_dict() in results
    by_file = [
        "simulate",
        str(npz),
        "--residents",
        "0.5",
        "--batch",
        "4",
        "--expert-policy",
        f"static,static:file={static}",
    ]
    assert main([*by_file, "--expert-bytes", "2MB", "--disk", "2", "--compute-ms", "0.5", "--layer-ms", "0"]) == 0
    first, second = (line.split()[5:] for line in capsys.readouterr().out.splitlines()[2:])
    assert first == second
    recording.model = "made up"
    recording.save(npz)
    assert main(["simulate", str(npz), "--residents", "0.5"]) == 1
    assert "--expert-bytes is needed" in capsys.readouterr().err
    assert main(["simulate", str(npz), "--residents", "0.5", "--expert-bytes", "x"]) == 1
    assert main(["simulate", str(npz), "--residents", "0", "--expert-bytes", "1MB"]) == 1
    capsys.readouterr()
    for option, value in (("--prefetch", "ewma"), ("--expert-policy", "lru"), ("--plots", "x")):
        assert main(["simulate", str(npz), option, value]) == 1
        assert f"{option} needs --residents" in capsys.readouterr().err
    for more in (["--batch", "steps"], ["--batch", "2", "--seed", "1"]):
        assert (
            main(["simulate", str(npz), "--residents", "4", "--expert-bytes", "1MB", "--admission", "own", *more]) == 1
        )
        assert "own needs a batch size, and no seed" in capsys.readouterr().err


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made_up([4, 5, 6, 7, 8, 9]).save(tmp_path / "r.npz")
    argv = ["simulate", str(tmp_path / "r.npz"), "--residents", "0.25,6", "--batch", "steps,2", "--expert-bytes", "1MB"]
    assert (
        main([*argv, "--expert-policy", "lfu,belady", "--prefetch", "none,ewma", "--plots", str(tmp_path / "plots")])
        == 0
    )
    files = sorted((tmp_path / "plots").iterdir())
    assert [file.name for file in files] == ["misses.png", "speed.png"] and all(
        file.stat().st_size > 5000 for file in files
    )

"""Resident experts: every policy against a plain reference, and laws that hold between policies and capacities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_rt import ValidationError, _C_testing

History = list[list[list[int]]]  # [layers][steps][experts], rising
POLICIES = ["lfu", "lfu:decay=0.5", "lfu:decay=1", "lru", "lfru"]


def routing(seed: int, layers: int, steps: int, experts: int, most: int) -> History:
    """Experts of random steps: some are used more often than others, and the favourites change halfway."""
    rng = np.random.default_rng(seed)
    out: History = []
    for _ in range(layers):
        weights = rng.dirichlet(np.full(experts, 0.5), size=2)
        layer = []
        for step in range(steps):
            p = weights[step * 2 // steps] + 1e-3
            count = int(rng.integers(1, most + 1))
            layer.append(sorted(int(e) for e in rng.choice(experts, count, replace=False, p=p / p.sum())))
        out.append(layer)
    return out


def simulate(
    policy: str, quota: int, experts: int, used: History, lists: History | None = None, wanted: History | None = None
) -> dict[str, Any]:
    return _C_testing.simulate_residency(policy, [quota] * len(used), experts, used, lists or [], wanted or [])


def hits(policy: str, quota: int, experts: int, used: History, lists: History | None = None) -> int:
    return sum(counts[1] for counts in simulate(policy, quota, experts, used, lists)["counts"])


def reference(
    policy: str, quota: int, experts: int, used: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """The residents before each step of one layer: of the residents and the used, those with the largest key stay. Keys go by the
    wanted."""
    wanted = used if wanted is None else wanted
    decay = float(policy.partition("=")[2] or 0.99) if policy.startswith("lfu") else 1.0
    residents: set[int] = set()
    uses, last = [0.0] * experts, [-1] * experts
    out = []
    for step, now in enumerate(used):
        out.append(sorted(residents))
        for e in range(experts):
            uses[e] = uses[e] * decay + (e in wanted[step])
            last[e] = step if e in wanted[step] else last[e]

        def key(e: int, step: int = step) -> tuple[float, ...]:
            if policy == "lru":
                return last[e], uses[e], -e
            if policy == "lfru":
                return uses[e] / (step - last[e] + 1), last[e], -e
            if policy == "belady":
                following = [s for s in range(step + 1, len(used)) if e in used[s]]
                return -following[0] if following else -1e18, last[e], -e
            return uses[e], last[e], -e

        if not set(now) <= residents:
            residents = set(sorted(residents | set(now), key=key, reverse=True)[:quota])
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.data())
def test_policies_are_their_reference(seed: int, experts: int, most: int, data: st.DataObject) -> None:
    used = routing(seed, 2, 40, experts, min(most, experts))
    quota = data.draw(st.integers(0, experts))
    for policy in [*POLICIES, "belady"]:
        found = simulate(
            policy if policy != "belady" else "belady",
            quota,
            experts,
            used,
            used if policy == "belady" else None,
        )
        expected = [reference(policy, quota, experts, layer) for layer in used]
        assert found["residents"] == expected, policy
        for layer, residents, counts in zip(used, expected, found["counts"], strict=True):
            total = sum(len(now) for now in layer)
            hit = sum(len(set(now) & set(there)) for now, there in zip(layer, residents, strict=True))
            assert counts[:3] == (total, hit, total - hit)
            assert 0 <= counts[3] - counts[4] <= quota  # inserted less evicted: what is there at the end


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_uses_may_be_counted_by_what_rows_wanted(seed: int, experts: int, data: st.DataObject) -> None:
    used, wanted = routing(seed, 2, 40, experts, experts), routing(seed + 1, 2, 40, experts, experts)
    quota = data.draw(st.integers(0, experts))
    for policy in POLICIES:
        found = simulate(policy, quota, experts, used, wanted=wanted)
        expected = [reference(policy, quota, experts, u, w) for u, w in zip(used, wanted, strict=True)]
        assert found["residents"] == expected, policy
        for layer, residents, counts in zip(used, expected, found["counts"], strict=True):
            hit = sum(len(set(now) & set(there)) for now, there in zip(layer, residents, strict=True))
            assert counts[1:3] == (hit, sum(len(now) for now in layer) - hit)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 16), st.data())
def test_laws(seed: int, experts: int, data: st.DataObject) -> None:
    """No policy hits more than belady, nor than the quota allows; more memory never hurts lru and belady; residents of a smaller lru
    are residents of a larger one."""
    used = routing(seed, 1, 60, experts, data.draw(st.integers(1, experts)))
    quota = data.draw(st.integers(1, experts - 1))
    best = hits("belady", quota, experts, used, used)
    hot = [[list(range(experts))]]
    for policy in [*POLICIES, "random", "random:seed=7"]:
        assert hits(policy, quota, experts, used) <= best
    assert hits("static:file=h", quota, experts, used, hot) <= best + quota  # which it has before the first step
    assert best <= sum(min(quota, len(now)) for now in used[0])
    assert hits("belady", quota + 1, experts, used, used) >= best
    small, large = (simulate("lru", c, experts, used)["residents"][0] for c in (quota, quota + 1))
    assert all(set(a) <= set(b) for a, b in zip(small, large, strict=True))


def test_floors_and_static() -> None:
    used = routing(3, 3, 50, 8, 4)
    total = [sum(len(now) for now in layer) for layer in used]
    assert [c[1:] for c in simulate("none", 4, 8, used)["counts"]] == [(0, t, 0, 0) for t in total]
    assert [c[1:] for c in simulate("ring", 4, 8, used)["counts"]] == [(0, 8 * 50, 0, 0)] * 3
    lists = [[[5, 1, 3]], [[0, 2]], [[]]]
    found = simulate("static:file=hot", 2, 8, used, lists)
    assert [layer[0] for layer in found["residents"]] == [[1, 5], [0, 2], []]
    assert all(layer == [layer[0]] * 50 for layer in found["residents"])


def test_history_alone_decides() -> None:
    """The same routing gives the same residents, and a layer's are not those of another layer's routing."""
    used = routing(5, 2, 100, 16, 6)
    for policy in [*POLICIES, "random"]:
        whole = simulate(policy, 5, 16, used)
        assert whole == simulate(policy, 5, 16, used)
        if policy != "random":  # which draws by layer
            assert simulate(policy, 5, 16, used[1:])["residents"] == whole["residents"][1:]
    assert simulate("random", 5, 16, used) != simulate("random:seed=1", 5, 16, used)


def test_hand_trace() -> None:
    used = [[[0, 1], [2], [0], [3], [0]]]
    assert simulate("lru", 2, 4, used)["residents"] == [[[], [0, 1], [0, 2], [0, 2], [0, 3]]]
    assert simulate("lfu:decay=1", 2, 4, used)["residents"] == [[[], [0, 1], [0, 2], [0, 2], [0, 3]]]
    assert simulate("belady", 1, 4, used, used)["residents"] == [[[], [0], [0], [0], [0]]]


@pytest.mark.parametrize(
    ("slots", "layers", "experts", "quota"),
    [(10, 4, 8, [3, 3, 2, 2]), (0, 2, 8, [0, 0]), (99, 3, 8, [8, 8, 8]), (8, 1, 8, [8])],
)
def test_uniform_quota(slots: int, layers: int, experts: int, quota: list[int]) -> None:
    assert _C_testing.uniform_quota(slots, layers, experts) == quota


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("lfo", 'expected one of lfu, lru, lfru, score, random, static, none, hi_lo, ring, belady; got "lfo"'),
        ("lfu:decay=0", 'decay: expected a number above 0, at most 1, got "0"'),
        ("lfu:decay=nan", "decay: expected a number"),
        ("lfu:", 'expected lfu with decay=VALUE, miss=low, full=VALUE, skip=VALUE, got "lfu:"'),
        ("lru:miss=never", 'miss: expected wait or low, got "never"'),
        ("belady:miss=low", "expected belady alone, got"),
        ("hi_lo:seed=1", "expected hi_lo with decay=VALUE, period=N"),
        ("hi_lo:inflight=1.5", "inflight: expected a whole number from 1 on"),
        ("lfu:k=1", "expected lfu with decay=VALUE"),
        ("lru:decay=1", "expected lru alone"),
        ("static:list=x", "expected static with file=VALUE"),
        ("static", "expected lists of 1 layers, got 0"),
        ("score:decay=2", 'decay: expected a number above 0, at most 1, got "2"'),
        ("belady:file=x", "expected belady alone"),
        ("random:seed=1.5", "seed: expected a whole number"),
        ("static:file=x", "expected lists of 1 layers, got 0"),
    ],
)
def test_mistakes(policy: str, said: str) -> None:
    with pytest.raises(ValidationError, match="expert_policy") as error:
        simulate(policy, 1, 4, [[[0]]])
    assert said in str(error.value)


@pytest.mark.parametrize("hysteresis", [1.0, 1.5])
@pytest.mark.parametrize(("period", "inflight"), [(1, 1), (4, 2), (7, 100)])
def test_hi_lo(period: int, inflight: int, hysteresis: float) -> None:
    """Experts are exchanged in every period-th step alone; what comes is resident one exchange later."""
    experts, quota, layers = 12, 4, 2
    used = routing(3, layers, 60, experts, 5)
    policy = f"hi_lo:decay=0.9,period={period},hysteresis={hysteresis},inflight={inflight}"
    found = simulate(policy, quota, experts, used)
    for layer in range(layers):
        residents: set[int] = set()
        coming: list[int] = []
        uses = [0.0] * experts
        inserted = hits = 0
        for step, now in enumerate(used[layer]):
            assert found["residents"][layer][step] == sorted(residents)
            hits += len(residents & set(now))
            uses = [0.9 * count + (e in now) for e, count in enumerate(uses)]
            if (step + layer) % period != period - 1:
                continue
            residents |= set(coming)
            leavers = sorted(residents, key=lambda e: (uses[e], e))
            absent = sorted((e for e in range(experts) if uses[e] and e not in residents), key=lambda e: (-uses[e], e))
            coming, free = [], quota - len(residents)
            for e in absent[:inflight]:
                if free == 0:
                    if not leavers or uses[e] <= hysteresis * uses[leavers[0]]:
                        break
                    residents.remove(leavers.pop(0))
                else:
                    free -= 1
                coming.append(e)
            inserted += len(coming)
        assert found["counts"][layer][1] == hits > 0
        assert found["counts"][layer][2] == found["counts"][layer][3] == inserted > 0


def test_copies_do_not_change_who_stays() -> None:
    used = routing(4, 2, 60, 12, 5)
    for policy in ("lfu", "lru", "random"):
        plain, low = simulate(policy, 4, 12, used), simulate(f"{policy}:miss=low", 4, 12, used)
        assert plain["residents"] == low["residents"]
        for before, after in zip(plain["counts"], low["counts"], strict=True):
            assert after[2] == after[3] == before[3] < before[2]  # those that come to stay alone are read


def test_mistakes_of_lists() -> None:
    used = [[[0], [1, 2]]]
    for lists, said in (
        ([[[0], [2, 1]]], "rising"),
        ([[[4]]], "0..3"),
        ([[[0], [1]]], "step 1 of layer 0 used other experts"),
    ):
        with pytest.raises(ValidationError, match="expert_policy") as error:
            simulate("belady", 1, 4, used, lists)
        assert said in str(error.value)
    for quota in (-1, 5):
        with pytest.raises(ValidationError, match=r"quota of layer 0: expected 0\.\.4"):
            simulate("lru", quota, 4, used)

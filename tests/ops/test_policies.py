"""Policies of expert selection against the float64 oracle over a grid of shapes, hand-checked tables, and each policy's
guarantees. test_select_properties.py has the invariants that all policies share.
"""

import math
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import reference_policies as policies
import reference_select as ref
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_policies import POLICIES, REFILLS, exp_mass
from selection_cases import cases, draw_exact, draw_params, draw_tables, row_sets, rows, tables_for

from lynx_rt import _C_testing

examples = settings(derandomize=True, deadline=None, max_examples=100)

NUM_ROWS, NUM_EXPERTS, TOP_K = [0, 1, 2, 3, 7, 16, 33], [1, 2, 5, 8, 32, 60, 128], [1, 2, 4, 8]
PHASES = ["decode_only", "decode_only", "mixed", "prefill"]


def draw_scores(rng, num_rows, num_experts):
    """Scores of every kind: plain, tied, within rounding of each other, one expert for all, one for none, extreme."""
    normal = rng.normal(0, 1.5, (num_rows, num_experts))
    one = rng.integers(num_experts)
    kinds = dict(
        plain=normal, skewed=normal + rng.normal(0, 2, num_experts), coarse=np.round(normal), flat=np.zeros_like(normal),
        close=1 + rng.integers(0, 8, normal.shape) * 2.0**-23, wide=normal * 40 / 1.5,
        bounds=rng.choice([-80.0, 0.0, 80.0], normal.shape), huge=rng.choice([-1e30, 0.0, 3.0, 1e30], normal.shape),
        wanted=np.where(np.arange(num_experts) == one, 20, normal), unwanted=np.where(np.arange(num_experts) == one, -20, normal),
    )  # fmt: skip
    return kinds[rng.choice(list(kinds))].astype(np.float32)


@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_matches_the_oracle(policy, num_experts):
    rng = np.random.default_rng(num_experts)
    for k in [k for k in TOP_K if k <= num_experts]:
        for num_rows in NUM_ROWS:
            for _ in range(1 + (num_rows * num_experts <= 600)):
                scores, norm_topk = draw_scores(rng, num_rows, num_experts), bool(rng.integers(2))
                tables = draw_tables(rng, num_rows, num_experts, k, coarse=rng.random() < 0.5)
                params = draw_params(lambda items: items[rng.integers(len(items))], policy, num_experts, k)
                if policy in REFILLS and rng.integers(2):
                    params |= dict(
                        refill=float(rng.choice([0, 0.1, 0.25, 1])), damp=float(rng.choice([0, 0.5, 0.7, 1]))
                    )
                exact, phase, all_phases = draw_exact(rng, num_rows), PHASES[rng.integers(4)], bool(rng.integers(2))
                text = ref.text(policy, all_phases, **params)
                got = _C_testing.select(scores, k, norm_topk, text, phase, exact, **tables_for(policy, tables))
                want = ref.select(scores, k, norm_topk, policy, phase, exact, all_phases, tables, **params)
                ref.assert_matches(got, want)


# --- gates as integers

UNIT = Decimal(2) ** -32
EXACT = Context(prec=60)


def test_exp_mass_is_exp_to_one_unit_of_2_to_the_minus_32():
    edges = [n * 0.6931471805599453 for n in range(33)]  # where the power of two changes
    gaps = [0.0, 5e-324, 2.0**-53, 1e308, *np.linspace(0, 24, 3001)]
    gaps += [abs(np.nextafter(edge, to)) for edge in edges for to in (-np.inf, np.inf)] + edges
    for gap in map(float, gaps):
        exact = EXACT.divide(EXACT.exp(-Decimal(gap)), UNIT) if gap < 100 else 0
        assert abs(exp_mass(gap) - exact) <= 1 + UNIT, gap  # 2^-32 itself is 0 or 1, as gap * log2(e) is rounded
    assert exp_mass(0.0) == 2**32


def test_exp_mass_is_0_from_2_to_the_minus_32_on():
    last = 32 * math.log(2)
    assert exp_mass(last * (1 - 1e-15)) == 1
    assert [exp_mass(gap) for gap in (last * (1 + 1e-15), 23.0, 1e30, 1.7e308)] == [0] * 4


def test_exp_mass_is_monotone():
    gaps = {0.0}
    for n in range(34):  # at the edges in steps of one float, elsewhere in steps of random size
        gap = n * 0.6931471805599453
        below, above = [gap], [gap]
        for _ in range(50):
            below.append(float(np.nextafter(below[-1], -np.inf)))
            above.append(float(np.nextafter(above[-1], np.inf)))
        gaps.update(g for g in below + above if g >= 0)
    gaps.update(np.random.default_rng(0).uniform(0, 24, 20000).tolist())
    masses = [exp_mass(gap) for gap in sorted(gaps)]
    assert all(a >= b for a, b in pairwise(masses))


@examples
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40))
def test_gate_masses_are_softmax(row):
    masses = policies.gate_masses(row)
    gates = [EXACT.exp(Decimal(z) - Decimal(max(row))) for z in row]
    # A unit of 2^-32 in each of E masses, of which one alone is 2^32 at least; then rounded down to a unit of 2^-30.
    limit = Fraction(len(row) + 1, 4) + 1
    for mass, gate in zip(masses, gates):
        assert abs(mass - Fraction(EXACT.divide(gate, sum(gates))) * 2**30) <= limit
    assert all(a == b for a, x in zip(masses, row) for b, y in zip(masses, row) if x == y)
    assert len(row) == 1 or sum(masses) <= 2**30


@pytest.mark.parametrize("policy", ["xshare", "des_vote"])
@pytest.mark.parametrize("seed", range(20))
def test_sums_of_gates_are_exact(policy, seed):
    """Scores a few floats apart, far below those of expert 0: sums differ by single units or not at all, and every unit decides."""
    rng = np.random.default_rng(seed)
    scores = (1 + rng.integers(0, 8 ** (1 + seed % 3), (7, 48)) * 2.0**-23).astype(np.float32)
    scores[:, 0] += 5 + seed // 3
    params = dict(m=9.0, k0=0) if policy == "xshare" else dict(m=9.0)
    got = _C_testing.select(scores, 6, selection=ref.text(policy, **params))
    assert not got["stats"]["guard_hit"]
    ref.assert_matches(got, ref.select(scores, 6, policy=policy, **params))


# --- by hand


# Own choices {0, 1}, {0, 2}, {3, 1}.
SHARED = rows(6, {0: 5, 1: 4}, {0: 5, 2: 4}, {3: 5, 1: 4.5, 0: 3})


def ids_of(selection, scores=SHARED, k=2, **options):
    return _C_testing.select(scores, k, selection=selection, **options)["ids"].tolist()


def test_xshare_by_hand():
    assert ids_of("xshare:m=2,k0=0") == [[0, 1], [0, 1], [1, 0]]  # sums of gates: 1.51, 0.61, 0.27, 0.58
    assert ids_of("xshare:m=3,k0=1") == [[0, 1], [0, 1], [3, 1]]  # 0 and 3 are first choices; 1 fills
    assert ids_of("xshare:m=1,k0=1") == [[0, 3], [0, 3], [3, 0]]  # the first choices are more than m, and k
    assert ids_of("xshare:m=0.5") == ids_of("xshare:m=3")  # half of 6
    assert ids_of("xshare:m=4,k0=1") == ids_of("topk")  # all own choices: the guard


def test_xshare_admits_experts_that_nobody_chose_where_all_want_them_a_little():
    scores = rows(4, {0: 5, 3: 4.9}, {1: 5, 3: 4.9}, {2: 5, 3: 4.9})
    assert ids_of("xshare:m=1,k0=0", scores, k=1) == [[3]] * 3
    assert ids_of("des_vote:m=1", scores, k=1) == [[0]] * 3  # of those that rows chose; ties to the lower


def test_des_vote_by_hand():
    assert ids_of("des_vote:m=2") == [[0, 1], [0, 1], [1, 0]]
    # 3 loses to 1, which two rows chose with smaller gates each.
    assert ids_of("des_vote:m=3") == [[0, 1], [0, 1], [3, 1]]


def test_des_vote_never_admits_what_nobody_chose():
    # Gates of all but expert 5 are below 2^-32 and count as 0, those of 3 and 4 that rows chose as well as those of 0, 1 and 2.
    scores = rows(6, {5: 100, 3: 10}, {5: 100, 4: 10})
    assert ids_of("des_vote:m=2", scores) == [[5, 3], [5, 3]]
    assert ids_of("xshare:m=2", scores) == [[5, 0], [5, 0]]


@pytest.mark.parametrize("m, count", [("0.3", 3), ("0.39", 3), ("0.05", 1), ("0.999", 9), ("1", 1), ("7", 7)])
def test_a_budget_below_1_is_a_share_rounded_down(m, count):
    scores = rows(10, *[{e: 5} for e in range(10)])
    assert len(_C_testing.select(scores, 1, selection=f"des_vote:m={m}")["active"]) == count


def test_lynx_literal_by_hand():
    # k = 1. Rows 0 and 1 want 0 and have 1 near; row 2 wants 1 and has 0 near.
    scores = rows(4, {0: 5, 1: 4.5}, {0: 5, 1: 4.5}, {1: 5, 0: 4.75})
    # Two others vote for 0, and two for 1; of its own vote a row takes no notice.
    assert ids_of("lynx_literal:alpha=1,beta=1,lambda=0.5", scores, k=1) == [[0], [0], [1]]
    # Votes of bin 1 count a third: row 2 has 2 others in bin 0 of 0, and of 1 two in bin 1.
    apart = rows(4, {0: 5, 1: 3.5}, {0: 5, 1: 3.5}, {1: 5, 0: 4.75})
    assert ids_of("lynx_literal:alpha=1,beta=2,lambda=0.2", apart, k=1) == [[0], [0], [0]]
    assert ids_of("lynx_literal:alpha=1,beta=2,lambda=0.1", apart, k=1) == [
        [0],
        [0],
        [1],
    ]  # the guard: nothing is saved


def test_lynx_literal_a_rows_own_vote_does_not_count():
    # Both rows give all their votes to their own choice; counted, they would outweigh the other's.
    scores = rows(4, {0: 5, 1: 4.5, 2: 4.75}, {0: 4.5, 1: 4.25, 2: 5})
    assert ids_of("lynx_literal:alpha=1,beta=1,lambda=1", scores, k=1) == [[0], [2]]
    # Row 0 is alone with 3 in bin 0, so that nobody's vote helps 3 in row 0, where 0 has one and is near.
    scores = rows(4, {3: 5, 0: 4.5}, {0: 5})
    assert ids_of("lynx_literal:alpha=1,beta=1,lambda=0.6", scores, k=1) == [[0], [0]]


def test_lynx_literal_protects_the_first_choice_of_a_confident_row():
    scores = rows(5, {3: 9, 2: 1}, *[{0: 5, 1: 4.5}] * 6)
    got = ids_of("lynx_literal:alpha=1,beta=1,lambda=50", scores)
    assert got == [[0, 3]] + [[0, 1]] * 6  # in the place of 1, which the others want as much


SIMILARITY = np.eye(6, dtype=np.float32)
SIMILARITY[1] = [0.5, 1, 0.9, 0.5, 0.9, 0.9]
SIMILARITY[2] = [0.25, 0.9, 1, 0.75, 0.9, 0.9]


def sere(rho, s=1, similarity=SIMILARITY, **options):
    return _C_testing.select(SHARED, 2, selection=f"sere:s={s},rho={rho}", similarity=similarity, **options)


def test_sere_by_hand():
    # Primary: 0 and 3. 1 is as similar to either and goes to the lower; 2 goes to 3.
    got = sere(0)
    assert got["ids"].tolist() == [[0, -1], [0, 3], [3, 0]]
    own = _C_testing.select(SHARED, 2)["weights"]
    np.testing.assert_allclose(got["weights"], [[1, 0], own[1], own[2]], atol=1e-7)
    assert got["active"].tolist() == [0, 3]
    assert (got["stats"]["remapped_pairs"], got["stats"]["guard_hit"]) == (3, False)


@pytest.mark.parametrize("rho, ids", [
    (0.5, [[0, -1], [0, 3], [3, 0]]), (0.50000001, [[0, 1], [0, 3], [3, 1]]), (0.75, [[0, 1], [0, 3], [3, 1]]),
    (0.7500001, [[0, 1], [0, 2], [3, 1]]), (1.5, [[0, 1], [0, 2], [3, 1]]),
])  # fmt: skip
def test_sere_moves_from_rho_on(rho, ids):
    assert sere(rho)["ids"].tolist() == ids


def test_sere_with_rho_0_moves_to_whatever_is_most_similar():
    assert sere(0, similarity=SIMILARITY - 2)["ids"].tolist() == sere(0)["ids"].tolist()


def test_sere_all_choices_of_an_exact_row_are_primary():
    assert sere(0, exact=np.array([1, 0, 0], np.uint8))["ids"].tolist() == [[0, 1], [0, 1], [3, 1]]


def test_sere_adds_weights_that_meet_without_normalising():
    own = _C_testing.select(SHARED, 2, norm_topk=False)["weights"]
    got = _C_testing.select(SHARED, 2, False, "sere:s=1", similarity=SIMILARITY)["weights"]
    np.testing.assert_allclose(got[0], [own[0].sum(), 0], atol=1e-7)


@pytest.mark.parametrize("ratio, kept", [(0, 4), (0.05, 4), (0.2, 3), (0.5, 2), (0.999, 2), (1, 2)])
def test_skip_by_hand(ratio, kept):
    scores = rows(8, {2: 5, 7: 5, 1: 3.75, 0: 2.5})  # gates relative to the first: 1, 1, 0.29, 0.08
    want = [2, 7, 1, 0]
    assert ids_of(f"skip:ratio={ratio}", scores, k=4) == [want[:kept] + [-1] * (4 - kept)]


def test_skip_weights_are_those_of_the_rest():
    got = _C_testing.select(rows(8, {2: 5, 7: 4.5, 1: 1}), 3, selection="skip:ratio=0.5")
    np.testing.assert_allclose(got["weights"], [[*ref.softmax(np.array([5, 4.5])), 0]], atol=1e-7)
    assert got["stats"]["remapped_pairs"] == 1 and got["active"].tolist() == [2, 7]


def test_top_j_by_hand():
    assert ids_of("top_j:j=1") == ids_of("top1") == [[0, -1], [0, -1], [3, -1]]
    assert ids_of("top1", SHARED[:1]) == [[0, -1]]  # a single row too
    assert ids_of("top_j:j=2", k=4) == [[0, 1, -1, -1], [0, 2, -1, -1], [3, 1, -1, -1]]


@pytest.mark.parametrize("rank, ids", [(0, [2, 5, 1]), (1, [4, 5, 1]), (2, [4, 2, 1])])
def test_deny_rank_by_hand(rank, ids):
    scores = rows(6, {4: 5, 2: 4, 5: 3, 1: 2, 3: 2})
    assert ids_of(f"deny_rank:rank={rank}", scores, k=3) == [ids]
    got = _C_testing.select(scores, 3, selection=f"deny_rank:rank={rank}")
    np.testing.assert_allclose(got["weights"][0], ref.softmax(scores[0, ids].astype(float)), atol=1e-7)


def test_deny_rank_where_no_other_expert_is_left():
    assert ids_of("deny_rank:rank=1", rows(3, {2: 2, 0: 1}), k=3) == [[2, 1, -1]]


def test_deny_rank_leaves_no_row_with_none():
    assert ids_of("deny_rank:rank=0", rows(1, {0: 2}, {0: 1}), k=1) == [[0], [0]]  # E = 1: there is no other expert


CROWD = rows(4, *[{0: 5, 1: 4, 2: 3, 3: 2}] * 4)


def test_capacity_by_hand():
    # ceil(factor * 4 rows * 1 / 4 experts) rows for each.
    assert ids_of("capacity:factor=1", CROWD, k=1) == [[0], [1], [2], [3]]
    assert ids_of("capacity:factor=2", CROWD, k=1) == [[0], [0], [1], [1]]
    assert ids_of("capacity:factor=2.25", CROWD, k=1) == [[0], [0], [0], [1]]
    assert ids_of("capacity:factor=0.25", CROWD, k=1) == ids_of("capacity:factor=1", CROWD, k=1)
    # Two slots: all first choices are given before any second one.
    assert ids_of("capacity:factor=1", CROWD, k=2) == [[0, 2], [0, 2], [1, 3], [1, 3]]


def test_capacity_serves_exact_rows_first_and_above_the_limit():
    exact = np.array([0, 1, 1, 0], np.uint8)
    assert ids_of("capacity:factor=1", CROWD, k=1, exact=exact) == [[1], [0], [0], [2]]


def test_capacity_drops_what_has_no_room():
    scores = rows(3, {0: 2, 1: 1}, {0: 2, 1: 1}, {0: 2, 2: 1})
    assert ids_of("capacity:factor=0.5", scores, k=2) == [[0, -1], [1, -1], [2, -1]]


def test_capacity_gives_a_row_that_would_have_none_its_first_choice():
    scores = rows(2, {0: 1}, {0: 2}, {1: 3})
    assert ids_of("capacity:factor=0.5", scores, k=1) == [[0], [1], [1]]
    got = _C_testing.select(scores, 1, selection="capacity:factor=0.5")
    assert got["weights"].tolist() == [[1], [1], [1]] and got["active"].tolist() == [0, 1]
    assert got["stats"]["retained_mass"] == pytest.approx(2 + math.exp(-2)) and got["stats"]["remapped_pairs"] == 1


def test_capacity_may_read_more_experts_than_the_model():
    got = _C_testing.select(CROWD, 1, selection="capacity:factor=1")
    assert got["stats"]["union_before"] == 1 and got["stats"]["active"] == 4 and not got["stats"]["guard_hit"]


@pytest.mark.parametrize("factor", ["5e-324", "1e-300", "0.1"])
def test_capacity_is_one_row_at_least(factor):
    assert ids_of(f"capacity:factor={factor}", rows(64, {9: 1}, {9: 1}), k=1) == [[9], [0]]


def test_alias_by_hand():
    alias = np.array([1, 1, 4, 3, 4, 5], np.int32)
    got = _C_testing.select(SHARED, 2, selection="alias", alias=alias)
    assert got["ids"].tolist() == [[1, -1], [1, 4], [3, 1]]
    own = _C_testing.select(SHARED, 2)["weights"]
    np.testing.assert_allclose(got["weights"], [[1, 0], own[1], own[2]], atol=1e-7)
    assert got["active"].tolist() == [1, 3, 4]
    assert _C_testing.select(SHARED[1:2], 2, selection="alias", alias=alias)["ids"].tolist() == [[1, 4]]


def test_replay_by_hand():
    replay = np.array([[5, 0], [-1, 4], [-1, -1]], np.int32)
    got = _C_testing.select(SHARED, 2, selection="replay", replay=replay)
    assert got["ids"].tolist() == replay.tolist() and got["active"].tolist() == [0, 4, 5]
    np.testing.assert_allclose(got["weights"], [ref.softmax(np.array([0.0, 5])), [0, 1], [0, 0]], atol=1e-7)
    assert got["stats"]["remapped_pairs"] == 5


@pytest.mark.parametrize("policy", policies.PER_ROW)
def test_no_rows_is_nothing_to_act_on(policy):
    tables = tables_for(policy, draw_tables(np.random.default_rng(0), 0, 4, 2))
    for exact in (None, np.zeros(0, np.uint8)):
        got = _C_testing.select(np.zeros((0, 4), np.float32), 2, selection=policy, exact=exact, **tables)
        assert not got["stats"]["acted"] and got["active"].size == 0


# --- what each policy guarantees


def own_of(case):
    return case.own()["ids"]


@examples
@given(cases(["xshare", "des_vote"], min_rows=2))
def test_a_larger_budget_takes_no_choice_away(case):
    kept = []
    for m in range(1, case.num_experts + 1):
        got = case.select(m=float(m))
        if got["stats"]["guard_hit"]:
            continue
        kept.append([own & now for own, now in zip(row_sets(own_of(case)), row_sets(got["ids"]))])
        case.params["m"] = float(m)
        if case.exact is None:
            limit = max(m, case.k, len(set(own_of(case)[:, : case.params.get("k0", 0)].ravel())))
            assert len(got["active"]) <= len(case.oracle().admitted) <= limit
    for less, more in pairwise(kept):
        assert all(a <= b for a, b in zip(less, more))


@examples
@given(cases(["xshare"], min_rows=2))
def test_xshare_keeps_first_choices_and_no_swap_would_be_better(case):
    case.exact = None
    got, chosen = case.select(), case.oracle().admitted
    warm_up = set(own_of(case)[:, : case.params["k0"]].ravel())
    for own, now in zip(own_of(case), row_sets(got["ids"])):
        assert set(own[: case.params["k0"]]) <= now
    gates = sum(ref.softmax(row.astype(np.float64)) for row in case.scores)
    for admitted in chosen - warm_up:
        for rejected in set(range(case.num_experts)) - chosen:
            assert gates[admitted] >= gates[rejected] - len(case.scores) * (case.num_experts + 5) / 4 * 2**-30


@examples
@given(cases(["des_vote", "sere"], min_rows=2))
def test_active_experts_are_some_of_the_own_choices(case):
    assert set(case.select()["active"]) <= set(case.own()["active"])


@examples
@given(cases(["sere"], min_rows=2))
def test_sere_guarantees(case):
    got, own, s, rho = case.select(), case.own(), case.params["s"], case.params["rho"]
    assume(not got["stats"]["guard_hit"])
    exact = np.zeros(len(case.scores), bool) if case.exact is None else case.exact.astype(bool)
    primary = {e for t, row in enumerate(own["ids"]) for e in row[: case.k if exact[t] else s]}
    targets = {e: {e} for e in primary}
    for t, (wanted, ids) in enumerate(zip(own["ids"], got["ids"])):
        assert ids[:s].tolist() == wanted[:s].tolist()
        np.testing.assert_allclose(got["weights"][t].sum(), own["weights"][t].sum(), rtol=1e-6)
        for u, v in zip(wanted, ids):
            if v >= 0:
                targets.setdefault(u, set()).add(v)
            if v >= 0 and v != u:
                assert v in primary and case.tables["similarity"][u, v] >= rho
                assert case.tables["similarity"][u, v] == max(case.tables["similarity"][u, p] for p in primary)
            if v == u and u not in primary:
                assert max(case.tables["similarity"][u, p] for p in primary) < rho
    assert all(len(found) == 1 for found in targets.values())  # of the expert alone
    for found in targets.values():  # twice is once
        assert targets.get(next(iter(found)), found) == found


@examples
@given(cases(["capacity"], min_rows=2))
def test_capacity_guarantees(case):
    case.params["factor"] = float(case.rng.choice([0.125, 0.5, 1, 1.5]))
    got, own = case.select(), case.own()
    exact = np.zeros(len(case.scores), bool) if case.exact is None else case.exact.astype(bool)
    assume(not exact.all())
    limit = policies.capacity_limit(case.params["factor"], *case.scores.shape, case.k)
    for e in range(case.num_experts):
        of_exact = (got["ids"][exact] == e).sum()
        # Rows that would have none come on top, each with nothing but its first choice.
        rescued = ((got["ids"] == e).any(1) & ((got["ids"] >= 0).sum(1) == 1) & (own["ids"][:, 0] == e) & ~exact).sum()
        assert (got["ids"] == e).sum() <= max(limit, of_exact) + rescued
    full = {e for e in range(case.num_experts) if (got["ids"] == e).sum() >= limit}
    for t in np.flatnonzero(~exact):
        if (got["ids"][t] < 0).any():  # dropped only where all that the row does not have are full
            assert set(range(case.num_experts)) - set(got["ids"][t]) <= full
        assert (got["ids"][t] >= 0).any()
        np.testing.assert_allclose(got["weights"][t].sum(), own["weights"][t].sum(), rtol=1e-6)


@examples
@given(cases(["lynx_literal"], min_rows=2))
def test_lynx_literal_confident_rows_keep_their_first_choice(case):
    got = case.select()
    for row, ids in zip(case.scores.astype(np.float64), got["ids"]):
        if (case.params["alpha"] * (row.max() - row) < 1).sum() == 1:
            assert row.argmax() in ids

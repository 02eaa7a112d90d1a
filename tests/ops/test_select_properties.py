"""Invariants of expert selection, on generated batches. select() does not return the admitted set, so invariants of that set
are checked on the oracle; test_matches_the_oracle shows that both agree.
"""

import itertools
from functools import partial

import numpy as np
import pytest
import reference_policies as policies
import reference_select as ref
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_policies import ADMITTING, GUARDED, PER_ROW, POLICIES
from selection_cases import STEP, cases, row_sets

from lynx_rt import _C_testing

examples = settings(derandomize=True, deadline=None, max_examples=100)
more_examples = partial(settings, examples)

# A row that ends with fewer than k experts may come of these.
DROPPING = ("sere", "skip", "top_j", "deny_rank", "capacity", "alias", "replay")


# --- every policy


@more_examples(max_examples=400)
@given(cases())
def test_matches_the_oracle(case):
    ref.assert_matches(case.select(), case.oracle())


@more_examples(max_examples=400)
@given(cases(), st.integers(1, 4))
def test_matches_the_oracle_with_many_ties(case, levels):
    case.scores = case.rng.integers(0, levels, case.scores.shape).astype(np.float32)
    case.tables["similarity"] = np.round(case.tables["similarity"] * 4) / 4
    ref.assert_matches(case.select(), case.oracle())


@examples
@given(cases())
def test_where_no_policy_acts_the_bits_are_the_own_routing(case):
    own = case.own()
    for phase in ("prefill", "mixed"):
        ref.assert_same_bits(case.select(phase=phase), own)
    ref.assert_same_bits(case.select(exact=np.ones(len(case.scores), np.uint8)), own)
    if case.policy not in PER_ROW:
        ref.assert_same_bits(case.select(rows=[0], exact=None), case.own(case.scores[:1]))
    got = case.select()
    if got["stats"]["guard_hit"]:
        ref.assert_same_bits(got, own)


@examples
@given(cases())
def test_phase_all_does_in_prefill_what_the_policy_does_in_decode(case):
    for phase in ("prefill", "mixed", "decode_only"):
        ref.assert_same_bits(case.select(phase=phase, all_phases=True), case.select())


@examples
@given(cases())
def test_result_is_well_formed(case):
    got, own = case.select(), case.own()
    ids, weights = got["ids"], got["weights"]
    assert ids.shape == weights.shape == (len(case.scores), case.k)
    assert ((ids >= -1) & (ids < case.num_experts)).all()
    assert case.policy in DROPPING or case.params.get("refill") or (ids >= 0).all()
    assert all(len(experts) == (row >= 0).sum() for experts, row in zip(row_sets(ids), ids))  # distinct
    if case.policy in ADMITTING:
        for row, scores in zip(ids, case.scores):
            assert (np.diff(scores[row[row >= 0]]) < 0).all()  # rank order
    assert np.isfinite(weights).all() and (weights >= 0).all() and (weights[ids < 0] == 0).all()
    own_sums = own["weights"].sum(1) * (ids >= 0).any(1) * case.kept_mass(ids) ** case.params.get("damp", 0.0)
    np.testing.assert_allclose(weights.sum(1), own_sums, rtol=0, atol=1e-6)  # W0
    assert got["active"].tolist() == sorted(set().union(*row_sets(ids)))
    assert len(got["active"]) == got["stats"]["active"]
    assert got["stats"]["union_before"] == len(own["active"])
    assert case.policy not in GUARDED or len(got["active"]) <= len(own["active"])
    for t in range(len(ids)):
        if np.array_equal(ids[t], own["ids"][t]):
            assert weights[t].tobytes() == own["weights"][t].tobytes()


@examples
@given(cases([p for p in POLICIES if p != "capacity"], min_rows=2))  # capacity serves rows in their order
def test_permuting_rows_permutes_the_result(case):
    order = case.rng.permutation(len(case.scores))
    got, permuted = case.select(), case.select(rows=order)
    assert got["ids"][order].tobytes() == permuted["ids"].tobytes()
    assert got["weights"][order].tobytes() == permuted["weights"].tobytes()
    assert got["active"].tobytes() == permuted["active"].tobytes()


def has_equals(case):
    """Whether a policy has to choose between experts that its own values do not tell apart."""
    if case.policy == "lynx":
        return bool(case.lynx_sets().filled)
    if case.policy == "lynx_literal":
        keys, _ = policies.literal_keys(case.scores, **case.params)
        return any(len(set(row)) < len(row) for row in keys.tolist())
    values = [sum(column) for column in zip(*(policies.gate_masses(row) for row in case.scores))]
    return case.policy in ("xshare", "des_vote") and len(set(values)) < len(values)


@more_examples(max_examples=200)
@given(cases(min_rows=2))
def test_relabelling_experts_relabels_the_result(case):
    assume(not has_equals(case))
    label = case.rng.permutation(case.num_experts)  # expert e becomes label[e]
    relabelled, tables = np.empty_like(case.scores), {name: np.empty_like(table) for name, table in case.tables.items()}
    relabelled[:, label] = case.scores
    tables["similarity"][np.ix_(label, label)] = case.tables["similarity"]
    tables["alias"][label] = label[case.tables["alias"]]
    tables["replay"] = np.where(case.tables["replay"] < 0, -1, label[case.tables["replay"]]).astype(np.int32)
    got, want = case.select(relabelled, tables=tables), case.select()
    np.testing.assert_array_equal(got["ids"], np.where(want["ids"] < 0, -1, label[want["ids"]]))
    if case.norm_topk:  # otherwise the softmax is summed in another order
        assert got["weights"].tobytes() == want["weights"].tobytes()


@examples
@given(cases())
def test_what_lies_behind_the_last_row_is_not_read(case):
    padded = np.full((len(case.scores) + 3, case.num_experts), np.nan, np.float32)
    padded[: len(case.scores)] = case.scores
    ref.assert_same_bits(case.select(padded[: len(case.scores)]), case.select())


@examples
@given(
    cases([p for p in POLICIES if p != "lynx_literal"]), st.integers(-4000, 4000)
)  # lynx_literal rounds score + votes
def test_adding_a_constant_to_a_row_changes_nothing(case, steps):
    shifted = case.scores.copy()
    shifted[0] += np.float32(steps * STEP)
    ref.assert_same_bits(case.select(shifted), case.select())


@examples
@given(st.lists(cases(), min_size=2, max_size=4))
def test_running_again_gives_the_same_bits(batches):
    selector = _C_testing.Selector()
    first, again = ([case.select(select=selector.select) for case in batches] for _ in range(2))
    for a, b, case in zip(first, again, batches):
        ref.assert_same_bits(a, b)
        ref.assert_same_bits(a, case.select())
        assert a["stats"] == b["stats"]


@examples
@given(cases(min_rows=2))
def test_exact_rows_get_their_own_routing(case):
    case.exact = (case.rng.random(len(case.scores)) < 0.5).astype(np.uint8)
    got, own = case.select(), case.own()
    for t in np.flatnonzero(case.exact):
        assert got["ids"][t].tobytes() == own["ids"][t].tobytes()
        assert got["weights"][t].tobytes() == own["weights"][t].tobytes()


@examples
@given(cases(ADMITTING, min_rows=3))
def test_making_a_row_exact_never_removes_an_admitted_expert(case):
    case.exact = np.zeros(len(case.scores), np.uint8)
    before, was = case.oracle().admitted, case.select()
    case.exact[case.rng.integers(len(case.scores))] = 1
    assert before <= case.oracle().admitted
    got = case.select()
    if (
        not got["stats"]["guard_hit"] and not was["stats"]["guard_hit"]
    ):  # what rows kept of their own choices, they keep
        for own, less, more in zip(row_sets(case.own()["ids"]), row_sets(was["ids"]), row_sets(got["ids"])):
            assert own & less <= more


@examples
@given(cases(PER_ROW), st.data())
def test_what_a_policy_of_single_rows_gives_a_row_does_not_depend_on_the_others(case, data):
    together = case.select()
    rows = data.draw(st.lists(st.integers(0, len(case.scores) - 1), min_size=1, max_size=5))
    for part in ([rows[0]], rows):
        alone = case.select(rows=part)
        assert alone["ids"].tobytes() == together["ids"][part].tobytes()
        assert alone["weights"].tobytes() == together["weights"][part].tobytes()


def identity_limits(case):
    """Parameters with which each policy changes nothing."""
    k, num_experts = case.k, case.num_experts
    return {
        "lynx": [dict(theta=0.0)], "lynx_literal": [{"lambda": 0.0}], "oea": [dict(k0=k)], "xshare": [dict(m=float(num_experts))],
        "des_vote": [dict(m=float(num_experts))], "sere": [dict(s=k, rho=0.0), dict(rho=1.0000001)], "skip": [dict(ratio=0.0)],
        "top_j": [dict(j=k)], "capacity": [dict(factor=float(num_experts)), dict(factor=1e300)], "alias": [{}], "replay": [{}],
    }[case.policy]  # fmt: skip


@more_examples(max_examples=200)
@given(cases([p for p in POLICIES if p not in ("deny_rank", "cover")]))  # which have none
def test_identity_limits(case):
    case.tables["alias"] = np.arange(case.num_experts, dtype=np.int32)
    case.tables["replay"] = case.own()["ids"]
    for params in identity_limits(case):
        got = case.select(**params)
        ref.assert_same_bits(got, case.own())
        assert got["stats"]["remapped_pairs"] == 0
        assert got["stats"]["retained_mass"] == len(case.scores)


# --- lynx


@examples
@given(cases(["lynx"], min_rows=2))
def test_lynx_confident_rows_keep_their_first_choice(case):
    ids = case.select()["ids"]
    first = case.scores.argmax(1)
    for t, row in enumerate(case.scores):
        confident = (case.params["alpha"] * (row.max() - row.astype(np.float64)) < 1).sum() == 1
        if confident or case.params["theta"] <= 1:
            assert ids[t, 0] == first[t]


@examples
@given(cases(["lynx"], min_rows=2))
def test_lynx_keeps_what_is_admitted_and_gives_k_experts(case):
    got, own, oracle = case.select(), case.own(), case.oracle()
    assert case.params["refill"] or (got["ids"] >= 0).all()
    if oracle.admitted is None:  # all rows are exact
        return
    assert len(oracle.admitted) >= case.k
    if not got["stats"]["guard_hit"]:
        for kept, wanted in zip(row_sets(got["ids"]), row_sets(own["ids"])):
            assert wanted & oracle.admitted <= kept <= oracle.admitted  # refill drops nothing that the row chose


@examples
@given(cases(["lynx"], min_rows=2), st.integers(0, 2**16))
def test_lynx_votes_are_exact(case, pick):
    """theta at the vote sum of one expert, and one float below and above: any rounding of votes or threshold would show."""
    case.scores = np.repeat(case.scores, case.rng.integers(1, 20), axis=0)  # up to 266 rows: beta is lowered
    case.exact, case.params["beta"] = None, 16
    sets = case.lynx_sets()
    theta = sets.votes[pick % len(sets.votes)] / sets.top_vote
    for value in (theta, np.nextafter(theta, np.inf), np.nextafter(theta, 0.0)):
        case.params["theta"] = float(value)
        ref.assert_matches(case.select(), case.oracle())


@examples
@given(cases(["lynx"], min_rows=2))
def test_lynx_knobs_are_monotone(case):
    more_bins = case.lynx_sets(beta=min(case.params["beta"] + 1, 16)).thresholded
    thresholded = case.lynx_sets().thresholded
    assert thresholded <= more_bins
    assert case.lynx_sets(theta=case.params["theta"] + 0.5).thresholded <= thresholded
    assert case.lynx_sets(alpha=case.params["alpha"] * 1.5).thresholded <= thresholded


@examples
@given(cases(["lynx"], min_rows=2))
def test_lynx_repeating_the_batch_only_drops_undecided_experts(case):
    case.params.update(theta=1.0, beta=min(case.params["beta"], 8))  # no lowering of beta in either batch
    once, twice = case.lynx_sets(), case.lynx_sets(np.repeat(case.scores, 2, axis=0))
    gaps = case.scores.max(1, keepdims=True) - case.scores.astype(np.float64)
    undisputed = {int(e) for e in np.flatnonzero((case.params["alpha"] * gaps < 1).any(0))}
    assert undisputed <= twice.thresholded <= once.thresholded


# --- oea


@examples
@given(cases(["oea"], min_rows=2))
def test_oea_floor_is_kept_and_the_active_set_is_the_union_of_floors(case):
    case.exact = None
    got, own, k0 = case.select(), case.own(), case.params["k0"]
    while len(floors := set(own["ids"][:, :k0].ravel().tolist())) < case.k:
        k0 += 1
    for row, wanted in zip(got["ids"], own["ids"]):
        assert row[:k0].tolist() == wanted[:k0].tolist()
    if not got["stats"]["guard_hit"]:
        assert set(got["active"].tolist()) == floors
        for row, scores in zip(got["ids"], case.scores):  # the k best-scoring of them
            assert row.tolist() == sorted(floors, key=lambda e: -scores[e])[: case.k]


@examples
@given(cases(["oea"], min_rows=2))
def test_oea_k0_is_monotone(case):
    active = [set(case.select(k0=k0)["active"].tolist()) for k0 in range(1, case.k + 1)]
    for smaller, larger in itertools.pairwise(active):
        assert smaller <= larger


# What each policy's batches must have shown besides acting on some row and not on all.
BRANCHES = {
    "lynx": {"filled"}, "oea": {"raised"}, "xshare": {"over", "more"}, "sere": {"dropped", "kept"}, "skip": {"dropped"},
    "top_j": {"dropped"}, "capacity": {"dropped", "more"}, "alias": {"dropped"}, "replay": {"empty"},
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_generated_cases_reach_the_interesting_branches(policy):
    """Guards the generator: policies act, the guard fires, sets shrink, lynx fills up, oea raises k0, choices are dropped."""
    seen = set()

    @more_examples(max_examples=200)
    @given(cases([policy], min_rows=2))
    def collect(case):
        got, own = case.select(), case.own()
        stats, ids, own_ids = got["stats"], got["ids"], own["ids"]
        marks = dict(
            acted=stats["acted"], guard_hit=stats["guard_hit"], remapped=stats["remapped_pairs"] > 0,
            raised=policy == "oea" and len(set(own_ids[:, : case.params["k0"]].ravel())) < case.k,
            filled=policy == "lynx" and case.lynx_sets().filled, dropped=(ids < 0).any(), empty=(ids < 0).all(1).any(),
            kept=not stats["guard_hit"] and (ids == own_ids).any() and (ids != own_ids).any(),
            more=not set(got["active"]) <= set(own["active"]),
            over=policy == "xshare" and len(set(own_ids[:, : case.params["k0"]].ravel())) > case.params["m"] > case.k,
        )  # fmt: skip
        seen.update(name for name, holds in marks.items() if holds)

    collect()
    assert seen >= {"acted", "remapped"} | ({"guard_hit"} if policy in GUARDED else set()) | BRANCHES.get(policy, set())
    assert ("guard_hit" in seen) == (policy in GUARDED)


# --- cover


@examples
@given(cases(["cover"], min_rows=2))
def test_cover_keeps_an_expert_near_the_best_of_every_row(case):
    """At least exp(-delta) of the row's best gate, whatever the rest of the batch is."""
    for row, scores in zip(case.select()["ids"], case.scores.astype(np.float64)):
        assert scores.max() - scores[row[row >= 0]].max() <= case.params["delta"]


def test_cover_needs_fewer_experts_than_there_are_first_choices():
    scores = np.array([[5, 4.9, 0, 0], [0, 4.9, 5, 0], [0, 4.9, 0, 5]], np.float32)
    for delta, active in ((0.0, [0, 2, 3]), (0.2, [1])):
        assert _C_testing.select(scores, 1, selection=f"cover:delta={delta}")["active"].tolist() == active

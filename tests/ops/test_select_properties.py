"""Invariants of expert selection, on generated batches. Where an invariant speaks of the admitted set, which select() does not
return, it is checked on the oracle; test_matches_the_oracle ties the two together.
"""

import numpy as np
import pytest
import reference_select as ref
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lynx_rt import _C

STEP = 2.0**-10  # scores are multiples of this and small, so that shifts and differences are exact

examples = settings(derandomize=True, deadline=None, max_examples=100)


class Case:
    """A batch whose rows have no ties, and a policy."""

    def __init__(self, seed, num_rows, num_experts, k, spread, skew, norm_topk, policy, params):
        self.rng = np.random.default_rng(seed)
        self.k, self.norm_topk, self.policy, self.params = k, norm_topk, policy, params
        wish = spread * (self.rng.normal(size=(num_rows, num_experts)) + skew * self.rng.normal(size=num_experts))
        order = np.array([self.rng.permutation(num_experts) for _ in range(num_rows)])  # makes a row's scores distinct
        self.scores = ((np.round(wish / STEP / num_experts) * num_experts + order) * STEP).astype(np.float32)
        self.exact = (self.rng.random(num_rows) < 0.25).astype(np.uint8) if self.rng.random() < 0.5 else None

    def __repr__(self):
        return f"Case({self.policy} {self.params}, k={self.k}, norm={self.norm_topk}, exact={self.exact}, scores=\n{self.scores})"

    def select(self, scores=None, exact="same", phase="decode_only", select=_C.select, **params):
        return select(
            self.scores if scores is None else scores, self.k, self.norm_topk, ref.text(self.policy, **{**self.params, **params}),
            phase, self.exact if isinstance(exact, str) else exact,
        )  # fmt: skip

    def own(self, scores=None):
        return _C.select(self.scores if scores is None else scores, self.k, self.norm_topk)

    def oracle(self, **params):
        return ref.select(
            self.scores, self.k, self.norm_topk, self.policy, exact=self.exact, **{**self.params, **params}
        )  # fmt: skip

    def lynx_sets(self, scores=None, **params):
        return ref.lynx_sets(self.scores if scores is None else scores, self.k, **{**self.params, **params})


@st.composite
def cases(draw, policies=("lynx", "oea"), min_rows=1):
    num_experts = draw(st.integers(1, 24))
    k = draw(st.integers(1, min(num_experts, 8)))
    policy = draw(st.sampled_from(policies))
    if policy == "lynx":
        params = dict(
            alpha=draw(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.3, 8.0])), beta=draw(st.integers(1, 16)),
            theta=draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.1])),
        )  # fmt: skip
    else:
        params = dict(k0=draw(st.integers(1, k)))
    return Case(
        draw(st.integers(0, 2**32 - 1)), draw(st.integers(min_rows, 14)), num_experts, k, draw(st.sampled_from([0.3, 1.0, 3.0])),
        draw(st.sampled_from([0.0, 0.7, 2.0])), draw(st.booleans()), policy, params,
    )  # fmt: skip


def row_sets(ids):
    return [{int(e) for e in row} for row in ids]


# --- every policy


@examples
@given(cases())
def test_matches_the_oracle(case):
    ref.assert_matches(case.select(), case.oracle())


@examples
@given(cases(), st.integers(1, 4))
def test_matches_the_oracle_with_many_ties(case, levels):
    case.scores = case.rng.integers(0, levels, case.scores.shape).astype(np.float32)
    ref.assert_matches(case.select(), case.oracle())


@examples
@given(cases())
def test_where_no_policy_acts_the_bits_are_the_own_routing(case):
    own = case.own()
    for phase in ("prefill", "mixed"):
        ref.assert_same_bits(case.select(phase=phase), own)
    ref.assert_same_bits(case.select(exact=np.ones(len(case.scores), np.uint8)), own)
    first = case.scores[:1]
    ref.assert_same_bits(case.select(first, exact=None), case.own(first))
    got = case.select()
    if got["stats"]["guard_hit"]:
        ref.assert_same_bits(got, own)


@examples
@given(cases())
def test_result_is_well_formed(case):
    got, own = case.select(), case.own()
    ids, weights = got["ids"], got["weights"]
    num_experts = case.scores.shape[1]
    assert ids.shape == weights.shape == (len(case.scores), case.k)
    assert ((ids >= 0) & (ids < num_experts)).all()
    for row, scores in zip(ids, case.scores):
        assert (np.diff(scores[row]) < 0).all()  # rank order, hence distinct
    assert np.isfinite(weights).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), own["weights"].sum(1), rtol=0, atol=1e-6)  # W0
    assert got["active"].tolist() == sorted(set().union(*row_sets(ids)))
    assert len(got["active"]) == got["stats"]["active"] <= got["stats"]["union_before"] == len(own["active"])
    for t in range(len(ids)):
        if np.array_equal(ids[t], own["ids"][t]):
            assert weights[t].tobytes() == own["weights"][t].tobytes()


@examples
@given(cases(min_rows=2))
def test_permuting_rows_permutes_the_result(case):
    order = case.rng.permutation(len(case.scores))
    got, permuted = case.select(), case.select(case.scores[order], exact=None if case.exact is None else case.exact[order])
    assert got["ids"][order].tobytes() == permuted["ids"].tobytes()
    assert got["weights"][order].tobytes() == permuted["weights"].tobytes()
    assert got["active"].tobytes() == permuted["active"].tobytes()


@examples
@given(cases(min_rows=2))
def test_relabelling_experts_relabels_the_result(case):
    if case.policy == "lynx":
        assume(not case.lynx_sets().filled)  # equal votes are filled by index
    label = case.rng.permutation(case.scores.shape[1])  # expert e becomes label[e]
    relabelled = np.empty_like(case.scores)
    relabelled[:, label] = case.scores
    got, want = case.select(relabelled), case.select()
    np.testing.assert_array_equal(got["ids"], label[want["ids"]])
    if case.norm_topk:  # otherwise the softmax is summed in another order
        assert got["weights"].tobytes() == want["weights"].tobytes()


@examples
@given(cases())
def test_what_lies_behind_the_last_row_is_not_read(case):
    padded = np.full((len(case.scores) + 3, case.scores.shape[1]), np.nan, np.float32)
    padded[: len(case.scores)] = case.scores
    ref.assert_same_bits(case.select(padded[: len(case.scores)]), case.select())


@examples
@given(cases(), st.integers(-4000, 4000))
def test_adding_a_constant_to_a_row_changes_nothing(case, steps):
    shifted = case.scores.copy()
    shifted[0] += np.float32(steps * STEP)
    ref.assert_same_bits(case.select(shifted), case.select())


@examples
@given(st.lists(cases(), min_size=2, max_size=4))
def test_running_again_gives_the_same_bits(batches):
    selector = _C.Selector()
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
@given(cases(min_rows=3))
def test_making_a_row_exact_never_removes_an_admitted_expert(case):
    case.exact = np.zeros(len(case.scores), np.uint8)
    before = case.oracle().admitted
    case.exact[case.rng.integers(len(case.scores))] = 1
    assert before <= case.oracle().admitted


@examples
@given(cases())
def test_identity_limits(case):
    limit = dict(theta=0.0) if case.policy == "lynx" else dict(k0=case.k)
    ref.assert_same_bits(case.select(**limit), case.own())


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
    assert (got["ids"] >= 0).all()
    if oracle.admitted is None:  # all rows are exact
        return
    assert len(oracle.admitted) >= case.k
    if not got["stats"]["guard_hit"]:
        for kept, wanted in zip(row_sets(got["ids"]), row_sets(own["ids"])):
            assert wanted & oracle.admitted <= kept <= oracle.admitted


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
    for smaller, larger in zip(active, active[1:]):
        assert smaller <= larger


@pytest.mark.parametrize("policy", ["lynx", "oea"])
def test_generated_cases_reach_the_interesting_branches(policy):
    """Guards the generator: policies act, the guard fires, sets shrink, lynx fills up, oea raises k0."""
    seen = set()

    @settings(examples, max_examples=200)
    @given(cases([policy], min_rows=2))
    def collect(case):
        got = case.select()
        seen.update(key for key in ("acted", "guard_hit") if got["stats"][key])
        seen.update({"remapped"} if got["stats"]["remapped_pairs"] else ())
        own_ids = case.own()["ids"]
        seen.update({"raised"} if policy == "oea" and len(set(own_ids[:, : case.params["k0"]].ravel())) < case.k else ())
        seen.update({"filled"} if policy == "lynx" and case.lynx_sets().filled else ())

    collect()
    assert seen == {"acted", "guard_hit", "remapped", "filled" if policy == "lynx" else "raised"}

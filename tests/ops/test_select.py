"""Backend::select() against hand-checked tables and the float64 oracle of reference_select.py."""

import numpy as np
import pytest
import reference_select as ref
from selection_cases import rows

import lynx_rt
from lynx_rt import _C_testing

FLOAT32_MAX = np.finfo(np.float32).max


def random_scores(num_rows, num_experts, seed=0):
    return np.random.default_rng(seed).normal(0, 1.5, (num_rows, num_experts)).astype(np.float32)


def softmax(*scores):
    return ref.softmax(np.array(scores, np.float64))


# Three rows over six experts, own choices {0, 1}, {0, 2}, {1, 3}. With alpha = 1 bin 0 is a gap below 1, bin 1 below 2:
# votes in bin 0: expert 0 twice, expert 1 twice; in bin 1: expert 2 once, expert 3 once.
SHARED = rows(6, {0: 5, 1: 4.5}, {0: 5, 2: 3.5}, {1: 5, 3: 3.75, 0: 3})


# --- the model's own routing


def test_own_routing_by_hand():
    got = _C_testing.select(rows(4, {2: 1, 0: 3}), 2, norm_topk=True)
    assert got["ids"].tolist() == [[0, 2]]
    np.testing.assert_allclose(got["weights"], [softmax(3, 1)], atol=1e-7)
    assert got["active"].tolist() == [0, 2]
    assert got["stats"] == dict(
        rows=1, union_before=2, active=2, remapped_pairs=0, retained_mass=1.0, acted=False, guard_hit=False,
        changed_rows=0, misses_before=0, misses=0,
    )  # fmt: skip


def test_weights_that_are_not_normalised_are_softmax_over_all_experts():
    got = _C_testing.select(rows(4, {2: 1, 0: 3}), 2, norm_topk=False)
    np.testing.assert_allclose(got["weights"], [softmax(3, 0, 1, 0)[[0, 2]]], atol=1e-7)


def test_ties_go_to_the_lower_expert():
    got = _C_testing.select(np.array([[1, 2, 2, 1, 2], [0, 0, 0, 0, 0]], np.float32), 4)
    assert got["ids"].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def test_zeros_of_either_sign_tie():
    assert _C_testing.select(np.array([[-0.0, 0.0, -0.0]], np.float32), 2)["ids"].tolist() == [[0, 1]]


@pytest.mark.parametrize("norm_topk", [True, False])
@pytest.mark.parametrize(
    "num_rows, num_experts, k", [(0, 8, 2), (1, 1, 1), (1, 8, 2), (7, 5, 5), (33, 64, 8), (130, 512, 16)]
)
def test_own_routing_matches_the_oracle(num_rows, num_experts, k, norm_topk):
    scores = random_scores(num_rows, num_experts)
    ref.assert_matches(_C_testing.select(scores, k, norm_topk), ref.select(scores, k, norm_topk))


@pytest.mark.parametrize("norm_topk", [True, False])
def test_a_row_does_not_depend_on_the_others(norm_topk):
    scores = random_scores(65, 64)
    together = _C_testing.select(scores, 8, norm_topk)
    for t in range(len(scores)):
        alone = _C_testing.select(scores[t : t + 1], 8, norm_topk)
        assert alone["ids"].tobytes() == together["ids"][t].tobytes()
        assert alone["weights"].tobytes() == together["weights"][t].tobytes()


@pytest.mark.parametrize("selection", ["topk", "lynx", "lynx:theta=100,refill=0,damp=0", "oea:k0=1"])
@pytest.mark.parametrize("norm_topk", [True, False])
def test_extreme_scores_give_finite_weights(selection, norm_topk):
    scores = rows(6, {0: FLOAT32_MAX, 1: -FLOAT32_MAX}, {1: FLOAT32_MAX, 0: FLOAT32_MAX}, {2: -FLOAT32_MAX}, {3: 500})
    got = _C_testing.select(scores, 3, norm_topk, selection)
    own = _C_testing.select(scores, 3, norm_topk)
    assert np.isfinite(got["weights"]).all()
    np.testing.assert_allclose(got["weights"].sum(1), own["weights"].sum(1), atol=1e-6)


# --- lynx


def test_lynx_by_hand():
    got = _C_testing.select(SHARED, 2, selection="lynx:alpha=1,beta=2,theta=1,refill=0,damp=0")
    assert got["ids"].tolist() == [[0, 1], [0, 1], [1, 0]]
    np.testing.assert_allclose(got["weights"], [softmax(5, 4.5), softmax(5, 0), softmax(5, 3)], atol=1e-7)
    assert got["active"].tolist() == [0, 1]
    stats = got["stats"]
    assert (stats["rows"], stats["union_before"], stats["active"], stats["remapped_pairs"]) == (3, 4, 2, 2)
    assert stats["acted"] and not stats["guard_hit"]
    # Row 0 keeps its choice; row 1 swaps score 3.5 for 0; row 2 swaps 3.75 for 3.
    kept = (1 + np.exp(-5)) / (1 + np.exp(-1.5)), (1 + np.exp(-2)) / (1 + np.exp(-1.25))
    assert stats["retained_mass"] == pytest.approx(1 + sum(kept), abs=1e-6)


@pytest.mark.parametrize("votes_in_bin_1, admitted", [(4, True), (3, False)])
def test_lynx_as_many_votes_as_rows_in_one_bin_equal_one_vote_in_the_bin_above(votes_in_bin_1, admitted):
    # Row t's first choice is expert t; all want expert 8 second (bin 1), one of them only from further away.
    entries = [{t: 5, 8: 3.5, 4 + t: 1} for t in range(4)]
    for entry in entries[votes_in_bin_1:]:
        entry[8] = 2.5
    got = _C_testing.select(rows(9, *entries), 3, selection="lynx:alpha=1,beta=2,theta=1,refill=0,damp=0")
    assert got["active"].tolist() == [0, 1, 2, 3] + [8] * admitted


def test_lynx_above_theta_1_only_a_confident_row_keeps_its_first_choice():
    # Expert 1 has three votes. Row 0 has nothing near its choice 0 and keeps it; row 3 has, and loses its choice 3.
    scores = rows(4, {0: 9}, {1: 5, 2: 4.5}, {1: 5}, {3: 5, 1: 4.5})
    got = _C_testing.select(scores, 1, selection="lynx:alpha=1,beta=4,theta=2,refill=0,damp=0")
    assert got["ids"].tolist() == [[0], [1], [1], [1]]
    assert got["weights"].tolist() == [[1], [1], [1], [1]]


def test_lynx_fills_up_to_k_by_votes():
    scores = rows(5, {0: 5, 1: 4.5, 2: 4.25}, {3: 5, 1: 4.5, 2: 4.25})
    assert _C_testing.select(scores, 2, selection="lynx:alpha=1,theta=100,refill=0,damp=0")["ids"].tolist() == [
        [1, 2],
        [1, 2],
    ]


def test_lynx_fills_ties_by_the_lower_expert():
    scores = rows(6, {1: 5, 2: 4.5}, {3: 5, 4: 4.5})
    assert _C_testing.select(scores, 2, selection="lynx:alpha=1,theta=100,refill=0,damp=0")["ids"].tolist() == [
        [1, 2],
        [1, 2],
    ]


def test_lynx_bin_edges_belong_to_the_lower_bin():
    # With alpha = 1 a gap of exactly 1 is bin 1: with beta = 1 it has no vote, and row 0 counts as confident.
    scores = rows(4, {0: 5, 1: 4}, {0: 5, 2: 4})
    assert _C_testing.select(scores, 2, selection="lynx:alpha=1,beta=1,theta=1,refill=0,damp=0")["active"].tolist() == [
        0,
        1,
    ]


def test_lynx_bins_are_found_in_double_precision():
    # 1.1 * 0.9090909 is 0.99999996, but 1 in float32: experts 1 and 2 are in bin 0.
    scores = np.full((2, 4), -9, np.float32)
    scores[:, 0] = 0
    scores[0, 1] = scores[1, 2] = -0.9090909
    assert _C_testing.select(scores, 2, selection="lynx:alpha=1.1,beta=1,refill=0,damp=0")["active"].tolist() == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("num_rows, sixteenth_bin_votes", [(14, True), (15, False), (16, False)])
def test_lynx_lowers_beta_to_the_last_that_fits(num_rows, sixteenth_bin_votes):
    # All rows want expert 0 and nothing else; only a vote in bin 15 tells expert 5 from expert 1. 14^16 < 2^62 < 15^16.
    scores = rows(6, *[{0: 100}] * num_rows)
    scores[0, 5] = 100 - 15.5
    got = _C_testing.select(scores, 2, selection="lynx:alpha=1,beta=16,refill=0,damp=0")
    assert got["ids"].tolist() == [[0, 5 if sixteenth_bin_votes else 1]] * num_rows


@pytest.mark.parametrize("num_rows", [64, 300])
def test_lynx_lowers_beta_where_votes_would_overflow(num_rows):
    scores = random_scores(num_rows, 32)
    for theta in (1.0, 7.3, 40.0):
        got = _C_testing.select(scores, 4, selection=ref.text("lynx", alpha=2.0, beta=16, theta=theta))
        ref.assert_matches(got, ref.select(scores, 4, policy="lynx", alpha=2.0, beta=16, theta=theta))


@pytest.mark.parametrize("theta", [0.0, 5e-324, 1e-30, 1e18, 1.7e308])
def test_lynx_takes_any_theta(theta):
    scores = random_scores(5, 16)
    got = _C_testing.select(scores, 4, selection=ref.text("lynx", theta=theta))
    ref.assert_matches(got, ref.select(scores, 4, policy="lynx", theta=theta))


# --- oea


def test_oea_by_hand():
    got = _C_testing.select(SHARED, 2, selection="oea:k0=1")
    assert got["ids"].tolist() == [[0, 1], [0, 1], [1, 0]]
    assert got["active"].tolist() == [0, 1]


def test_oea_raises_k0_where_fewer_than_k_would_be_admitted():
    # k0 = 1 admits expert 0 alone; with k0 = 2 the rows need 0, 1, 2 and 3, which are the own choices: the guard.
    alike = rows(6, {0: 5, 1: 4}, {0: 5, 2: 4}, {0: 5, 3: 4})
    got = _C_testing.select(alike, 2, selection="oea:k0=1")
    ref.assert_same_bits(got, _C_testing.select(alike, 2))
    assert got["stats"]["guard_hit"]
    # k = 3: k0 = 1 admits 0, k0 = 2 admits 0, 1, 2, which is enough; third choices move there.
    third = rows(6, {0: 5, 1: 4, 3: 3}, {0: 5, 2: 4, 4: 3})
    got = _C_testing.select(third, 3, norm_topk=False, selection="oea:k0=1")
    assert [sorted(row) for row in got["ids"].tolist()] == [[0, 1, 2]] * 2
    own = _C_testing.select(third, 3, norm_topk=False)["weights"]
    np.testing.assert_allclose(got["weights"].sum(1), own.sum(1), rtol=1e-6)
    assert got["active"].tolist() == [0, 1, 2]
    assert got["stats"]["remapped_pairs"] == 2


# --- all policies

POLICIES = ["lynx:alpha=1,beta=2,theta=1,refill=0,damp=0", "oea:k0=1"]


@pytest.mark.parametrize("selection", POLICIES)
@pytest.mark.parametrize("phase", ["prefill", "mixed"])
def test_only_decode_steps_are_touched(selection, phase):
    got = _C_testing.select(SHARED, 2, selection=selection, phase=phase)
    ref.assert_same_bits(got, _C_testing.select(SHARED, 2))
    assert not got["stats"]["acted"]


@pytest.mark.parametrize("selection", POLICIES)
def test_no_rows_and_one_row(selection):
    empty = _C_testing.select(np.zeros((0, 4), np.float32), 2, selection=selection, exact=np.zeros(0, np.uint8))
    assert empty["ids"].shape == (0, 2) and empty["active"].size == 0
    assert empty["stats"] == dict(
        rows=0, union_before=0, active=0, remapped_pairs=0, retained_mass=0.0, acted=False, guard_hit=False,
        changed_rows=0, misses_before=0, misses=0,
    )  # fmt: skip
    one = _C_testing.select(SHARED[:1], 2, selection=selection)
    ref.assert_same_bits(one, _C_testing.select(SHARED[:1], 2))
    assert not one["stats"]["acted"]


@pytest.mark.parametrize("selection", POLICIES)
def test_exact_rows_keep_their_choice_and_others_may_share_it(selection):
    got = _C_testing.select(SHARED, 2, selection=selection, exact=np.array([0, 0, 1], np.uint8))
    assert got["ids"].tolist() == [[0, 1], [0, 1], [1, 3]]
    own = _C_testing.select(SHARED, 2)
    assert got["weights"][2].tobytes() == own["weights"][2].tobytes()
    assert got["active"].tolist() == [0, 1, 3]


@pytest.mark.parametrize("selection", POLICIES)
def test_all_rows_exact_is_the_own_routing(selection):
    got = _C_testing.select(SHARED, 2, selection=selection, exact=np.ones(3, np.uint8))
    ref.assert_same_bits(got, _C_testing.select(SHARED, 2))
    assert not got["stats"]["acted"]


@pytest.mark.parametrize("selection", ["oea:k0=2", "lynx:theta=0,refill=0,damp=0"])
def test_guard_returns_the_own_routing_where_nothing_is_saved(selection):
    got = _C_testing.select(SHARED, 2, selection=selection)
    ref.assert_same_bits(got, _C_testing.select(SHARED, 2))
    assert got["stats"]["acted"] and got["stats"]["guard_hit"]
    assert got["stats"]["active"] == got["stats"]["union_before"] == 4
    assert got["stats"]["retained_mass"] == 3 and got["stats"]["remapped_pairs"] == 0


@pytest.mark.parametrize("selection", POLICIES)
def test_guard_where_the_new_set_differs_but_is_not_smaller(selection):
    # Rows agree on all their experts, so the union is k and no set can be smaller.
    scores = rows(6, {0: 5, 1: 4.5}, {1: 5, 0: 4.5})
    got = _C_testing.select(scores, 2, selection=selection)
    ref.assert_same_bits(got, _C_testing.select(scores, 2))
    assert got["stats"]["guard_hit"]


@pytest.mark.parametrize("selection", [*POLICIES, "oea:k0=4"])
def test_all_experts_chosen_is_the_identity(selection):
    scores = random_scores(6, 4)
    got = _C_testing.select(scores, 4, selection=selection)
    ref.assert_same_bits(got, _C_testing.select(scores, 4))


@pytest.mark.parametrize("selection", POLICIES)
def test_one_expert_that_all_want_and_one_that_none_wants(selection):
    scores = random_scores(9, 8)
    scores[:, 3] += 20
    scores[:, 5] -= 20
    got = _C_testing.select(scores, 3, selection=selection)
    assert (got["ids"][:, 0] == 3).all()
    assert 5 not in got["active"]


@pytest.mark.parametrize("selection", POLICIES)
def test_rows_that_are_not_normalised_keep_their_mass(selection):
    got = _C_testing.select(SHARED, 2, norm_topk=False, selection=selection)
    own = _C_testing.select(SHARED, 2, norm_topk=False)
    assert not np.array_equal(got["ids"], own["ids"])
    assert (own["weights"].sum(1) < 0.999).all()
    np.testing.assert_allclose(got["weights"].sum(1), own["weights"].sum(1), atol=1e-6)
    # The two experts of row 1 share its mass as their own softmax says.
    np.testing.assert_allclose(got["weights"][1], own["weights"][1].sum() * softmax(5, 0), atol=1e-6)


@pytest.mark.parametrize("selection", POLICIES)
def test_a_row_that_keeps_its_choice_keeps_its_bits(selection):
    got, own = _C_testing.select(SHARED, 2, selection=selection), _C_testing.select(SHARED, 2)
    assert not np.array_equal(got["ids"], own["ids"])
    assert got["ids"][0].tobytes() == own["ids"][0].tobytes()
    assert got["weights"][0].tobytes() == own["weights"][0].tobytes()


@pytest.mark.parametrize("norm_topk", [True, False])
@pytest.mark.parametrize(
    "policy, params", [("lynx", {}), ("lynx", dict(alpha=1.0, beta=3, theta=1.5)), ("oea", dict(k0=2))]
)
@pytest.mark.parametrize("num_rows, num_experts, k", [(2, 4, 2), (7, 32, 4), (32, 64, 8), (64, 128, 8)])
def test_policies_match_the_oracle(num_rows, num_experts, k, policy, params, norm_topk):
    scores = random_scores(num_rows, num_experts, seed=num_rows)
    exact = (np.arange(num_rows) % 5 == 1).astype(np.uint8)
    got = _C_testing.select(scores, k, norm_topk, ref.text(policy, **params), exact=exact)
    ref.assert_matches(got, ref.select(scores, k, norm_topk, policy, exact=exact, **params))


def test_scratch_memory_carries_nothing_from_call_to_call():
    selector = _C_testing.Selector()
    for num_rows, num_experts, k in [(9, 32, 4), (2, 8, 2), (33, 64, 8), (3, 32, 4), (0, 4, 1), (9, 32, 4)]:
        scores = random_scores(num_rows, num_experts, seed=num_rows)
        for selection in ("lynx", "oea:k0=1", "topk", "lynx:theta=3,refill=0,damp=0"):
            again, fresh = (select(scores, k, selection=selection) for select in (selector.select, _C_testing.select))
            ref.assert_same_bits(again, fresh)
            assert again["stats"] == fresh["stats"]


# --- errors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("selection, phase", [("topk", "prefill"), ("lynx", "decode_only")])
def test_scores_must_be_finite(value, selection, phase):
    scores = random_scores(4, 40)
    scores[2, 33] = value
    with pytest.raises(
        lynx_rt.ValidationError, match=r"router scores: row 2, expert 33: expected a finite value"
    ) as error:
        _C_testing.select(scores, 2, selection=selection, phase=phase)
    assert error.value.field == "router scores"


@pytest.mark.parametrize("phase", ["prefill", "decode_only"])
def test_k0_above_k(phase):
    with pytest.raises(lynx_rt.ValidationError, match=r"selection: k0: expected 1\.\.2 .*, got 3"):
        _C_testing.select(SHARED, 2, selection="oea:k0=3", phase=phase)


@pytest.mark.parametrize(
    "arguments, field",
    [
        (dict(scores=np.zeros(4, np.float32), top_k=1), "scores"),
        (dict(scores=np.zeros((2, 4), np.float32), top_k=0), "top_k"),
        (dict(scores=np.zeros((2, 4), np.float32), top_k=5), "top_k"),
        (dict(scores=np.zeros((2, 4), np.float32), top_k=1, phase="decode"), "phase"),
        (dict(scores=np.zeros((2, 4), np.float32), top_k=1, exact=np.zeros(3, np.uint8)), "exact"),
    ],
)
def test_wrong_arguments(arguments, field):
    with pytest.raises(lynx_rt.ValidationError) as error:
        _C_testing.select(**arguments)
    assert error.value.field == field

"""Isolation groups of Backend::route(): each group's rows are routed as if they were alone, bit for bit; counters are of the whole step."""

import numpy as np
import pytest
import reference_select as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_policies import PER_ROW, POLICIES
from selection_cases import cases, rows, rule_cases, tables_for

from lynx_rt import ValidationError, _C_testing

examples = settings(derandomize=True, deadline=None, max_examples=300)


def select(case, groups):
    text = ref.text(case.policy, **case.params)
    groups = np.asarray(groups, np.int32)
    return _C_testing.select(
        case.scores, case.k, case.norm_topk, text, exact=case.exact, groups=groups, **tables_for(case.policy, case.tables),
        **case.rule,
    )  # fmt: skip


def draw_groups(case):
    return case.rng.integers(0, case.rng.integers(1, 6), len(case.scores)).astype(np.int32)


@examples
@given(cases(), st.sampled_from([None, 1, 3]))
def test_matches_the_oracle(case, levels):
    if levels:  # many ties
        case.scores = case.rng.integers(0, levels + 1, case.scores.shape).astype(np.float32)
        case.tables["similarity"] = np.round(case.tables["similarity"] * 4) / 4
    groups = draw_groups(case)
    ref.assert_matches(select(case, groups), case.oracle(groups=groups))


@examples
@given(rule_cases())
def test_a_group_has_the_bits_that_it_has_alone(case):
    groups = draw_groups(case)
    together = select(case, groups)
    for group in set(groups.tolist()):
        own = np.flatnonzero(groups == group)
        alone = case.select(rows=own)
        for key in ("ids", "weights"):
            assert alone[key].tobytes() == together[key][own].tobytes(), (key, group)


@examples
@given(rule_cases())
def test_one_group_is_no_group(case):
    got, want = select(case, np.full(len(case.scores), 3)), case.select()
    ref.assert_same_bits(got, want)
    assert got["stats"].pop("retained_mass") == pytest.approx(want["stats"].pop("retained_mass"))
    assert got["stats"] == want["stats"]


@examples
@given(rule_cases([policy for policy in POLICIES if policy not in PER_ROW]))
def test_a_group_of_one_row_has_the_own_routing(case):
    got = select(case, np.arange(len(case.scores))[::-1])
    ref.assert_same_bits(got, case.own())
    assert not got["stats"]["acted"] and not got["stats"]["guard_hit"]


def test_by_hand():
    """oea with k0 = 1, k = 2. Rows 0 and 2 agree on {0, 1} and drop 2 and 3; row 1, with the same wishes as row 2, keeps them."""
    scores = rows(6, {0: 5, 2: 4}, {1: 5, 3: 4}, {1: 5, 3: 4})
    got = _C_testing.select(scores, 2, selection="oea:k0=1", groups=np.array([0, 7, 0], np.int32))
    assert got["ids"].tolist() == [[0, 1], [1, 3], [1, 0]]
    assert got["active"].tolist() == [0, 1, 3]
    stats = got["stats"]
    assert (stats["rows"], stats["union_before"], stats["active"], stats["remapped_pairs"]) == (3, 4, 3, 2)
    assert stats["acted"] and not stats["guard_hit"] and 1 < stats["retained_mass"] < 3


def test_the_guard_is_each_groups_own():
    """Group 0 would not save anything and falls back; group 1 saves. The step counts as guarded only where all groups fall back."""
    same, apart = {0: 5, 1: 4}, [{2: 5, 3: 4}, {4: 5, 5: 4}]
    text = "oea:k0=1"
    groups = np.array([0, 0, 1, 1], np.int32)
    got = _C_testing.select(rows(6, same, same, *apart), 2, selection=text, groups=groups)
    assert got["ids"].tolist() == [[0, 1], [0, 1], [2, 4], [4, 2]] and not got["stats"]["guard_hit"]
    got = _C_testing.select(rows(6, same, same, same, same), 2, selection=text, groups=groups)
    assert got["ids"].tolist() == [[0, 1]] * 4
    assert got["stats"]["acted"] and got["stats"]["guard_hit"] and got["stats"]["retained_mass"] == 4


def test_exact_rows_vote_in_their_own_group_only():
    scores = rows(6, {0: 5, 2: 4}, {1: 5, 3: 4}, {3: 5, 2: 4})
    groups, exact = np.array([0, 0, 1], np.int32), np.array([0, 0, 1], np.uint8)
    got = _C_testing.select(scores, 2, selection="oea:k0=1", groups=groups, exact=exact)
    assert got["ids"].tolist() == [[0, 1], [1, 0], [3, 2]]


def test_a_bad_score_is_named_by_its_row_in_the_step():
    scores = rows(6, {0: 5}, {1: 5}, {2: 5})
    scores[2, 4] = np.nan
    with pytest.raises(ValidationError, match="row 2, expert 4"):
        _C_testing.select(scores, 2, selection="oea:k0=1", groups=np.array([1, 0, 1], np.int32))

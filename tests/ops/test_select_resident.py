"""Selection that knows what is resident, against the oracle, and its invariants."""

import itertools

import numpy as np
import pytest
import reference_select as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_cases import draw_exact, resident_cases, row_sets, rows

from lynx_rt import ValidationError, _C_testing

examples = settings(derandomize=True, deadline=None, max_examples=200)


def misses(case, ids):
    return sum(int(case.cost[e]) != 0 for e in set().union(*row_sets(ids)))


@settings(examples, max_examples=500)
@given(resident_cases())
def test_matches_the_oracle(case):
    case.exact = draw_exact(case.rng, len(case.scores))
    ref.assert_matches(case.select(), case.oracle())


@settings(examples, max_examples=400)
@given(resident_cases(), st.integers(1, 4))
def test_matches_the_oracle_with_many_ties(case, levels):
    case.scores = case.rng.integers(0, levels, case.scores.shape).astype(np.float32)
    case.rule.pop("bias", None)
    ref.assert_matches(case.select(), case.oracle())


@examples
@given(resident_cases(min_rows=2), st.integers(1, 3))
def test_groups_are_calls_of_their_own(case, count):
    groups = case.rng.integers(0, count, len(case.scores))
    groups = np.unique(groups, return_inverse=True)[1].astype(np.int32)
    text, common = ref.text(case.policy, **case.params), dict(exact=case.exact, groups=groups, cost=case.cost)
    got = _C_testing.select(case.scores, case.k, case.norm_topk, text, **common, **case.rule)
    want = ref.select(
        case.scores, case.k, case.norm_topk, case.policy, tables={}, rule=case.rule, **common, **case.params
    )
    ref.assert_matches(got, want)


@examples
@given(resident_cases())
def test_what_changes_nothing(case):
    """No nats; no costs; all experts resident; none resident where nothing is admitted; other phases."""
    own, cost = case.own(), case.cost
    without = case.select(resident=0.0)
    assert without["stats"]["misses"] == misses(case, without["ids"])
    for phase in ("prefill", "mixed"):
        ref.assert_same_bits(case.select(phase=phase), own)
    case.cost = None
    ref.assert_same_bits(case.select(), without)
    ref.assert_same_bits(case.select(resident=0.0), without)
    assert case.select()["stats"]["misses_before"] == 0
    case.cost = np.zeros_like(cost)
    ref.assert_same_bits(case.select(), own)
    if case.policy == "topk":
        case.exact, case.cost = None, np.ones_like(cost)
        ref.assert_same_bits(case.select(), own)


@examples
@given(resident_cases())
def test_never_more_misses_and_the_first_choice_stays(case):
    case.exact = draw_exact(case.rng, len(case.scores))
    got, own = case.select(), case.own()
    stats = got["stats"]
    assert stats["misses"] == misses(case, got["ids"])
    assert stats["misses_before"] == misses(case, own["ids"]) == own["stats"]["misses"]
    assert stats["misses"] <= stats["misses_before"]
    if stats["acted"] and not stats["guard_hit"]:
        assert stats["misses"] < stats["misses_before"]
    changed = 0
    for t, (row, wanted) in enumerate(zip(got["ids"], own["ids"])):
        assert wanted[0] in row
        if (row == wanted).all():
            assert got["weights"][t].tobytes() == own["weights"][t].tobytes()
        changed += (row != wanted).any()
        if case.exact is not None and case.exact[t]:
            assert (row == wanted).all()
        if case.policy == "topk" and case.exact is None:
            assert all(case.cost[e] == 0 for e in row if e >= 0 and e not in wanted)
    assert stats["changed_rows"] == changed
    assert got["wanted"].tolist() == sorted(set(own["ids"].ravel().tolist()))


@examples
@given(resident_cases(policies=("topk",)))
def test_a_larger_bonus_reads_less_for_a_single_row(case):
    """Without limit it reads the first choice, and others only where too few experts are resident."""
    case.exact, case.params["refill"], case.rule = None, 0.0, {}
    for t in range(len(case.scores)):
        counts = [
            case.select(rows=[t], resident=nats)["stats"]["misses"] for nats in (0.0, 0.25, 0.5, 1.0, 2.0, 1000.0)
        ]
        assert all(a >= b for a, b in itertools.pairwise(counts))
        first, free = case.own()["ids"][t, 0], int((case.cost == 0).sum())
        assert counts[-1] == max(int(case.cost[first] != 0), case.k - free)


def test_by_hand():
    scores = rows(6, {0: 3, 1: 2, 2: 1.5, 3: 1.2}, {1: 3, 4: 2.9, 3: 2})
    cost = np.array([1, 1, 1, 0, 1, 0], np.uint8)

    def ids(text, rows=slice(None)):
        return _C_testing.select(scores[rows], 2, selection=text, cost=cost)["ids"].tolist()

    assert ids("topk") == [[0, 1], [1, 4]]
    # Expert 3 is 0.8 behind the second choice of the first row, 0.9 behind that of the second one.
    assert ids("topk:resident=0.79") == [[0, 1], [1, 4]]
    assert ids("topk:resident=0.85", [0]) == [[0, 3]]
    assert ids("topk:resident=0.85") == [[0, 1], [1, 4]]  # expert 1 is read for the second row anyway: nothing is saved
    assert ids("topk:resident=1") == [[0, 3], [1, 3]]
    # oea pays for both first choices, so the first row keeps expert 1, which costs nothing more.
    assert ids("oea:k0=1,resident=1") == [[0, 1], [1, 3]]
    assert ids("oea:k0=1,resident=0.5") == [[0, 1], [1, 4]]
    assert ids("oea:k0=1,resident=1", [0]) == [[0, 3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topk:resident=-1", 'resident: expected a finite number from 0 to 1000, got "-1"'),
        ("topk:resident=nan", "resident: expected a finite number from 0 to 1000"),
        ("cover:resident=1001", "resident: expected a finite number from 0 to 1000"),
        ("topk:bonus=1", 'topk has no key "bonus"; its keys are resident, refill, damp, phase'),
        ("sere:resident=1", 'sere has no key "resident"'),
        ("skip:resident=1", 'skip has no key "resident"'),
    ],
)
def test_mistakes(text, said):
    with pytest.raises(ValidationError) as error:
        _C_testing.select(np.zeros((2, 4), np.float32), 2, selection=text)
    assert said in str(error.value)


def test_costs_are_of_all_experts():
    with pytest.raises(ValidationError, match=r"cost: expected \[4\], got \[3\]"):
        _C_testing.select(np.zeros((2, 4), np.float32), 2, cost=np.zeros(3, np.uint8))

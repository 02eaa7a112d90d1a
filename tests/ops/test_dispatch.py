"""Backend::dispatch() against the oracle and its invariants."""

import numpy as np
import pytest
import reference_select as ref

import lynx_rt
from lynx_rt import _C_testing


def random_ids(num_rows, k, num_experts, dropped, seed=0):
    """Distinct experts within a row; a share of the pairs `dropped` to -1."""
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(num_experts)[:k] for _ in range(num_rows)], np.int32).reshape(num_rows, k)
    ids[rng.random(ids.shape) < dropped] = -1
    return ids


def test_by_hand():
    plan = _C_testing.dispatch(np.array([[2, 0], [2, -1], [0, 3]], np.int32), 4)
    assert plan["offsets"].tolist() == [0, 2, 2, 4, 5]
    assert plan["pair_of_sorted"].tolist() == [1, 4, 0, 2, 5]
    assert plan["sorted_of_pair"].tolist() == [2, 0, 3, -1, 1, 4]


@pytest.mark.parametrize("dropped", [0, 0.3, 1])
@pytest.mark.parametrize(
    "num_rows, k, num_experts", [(0, 2, 4), (1, 1, 1), (1, 3, 7), (5, 4, 4), (33, 8, 64), (40, 16, 130)]
)
def test_matches_the_oracle(num_rows, k, num_experts, dropped):
    ids = random_ids(num_rows, k, num_experts, dropped)
    plan = _C_testing.dispatch(ids, num_experts)
    for got, want in zip(
        (plan["offsets"], plan["sorted_of_pair"], plan["pair_of_sorted"]), ref.dispatch(ids, num_experts)
    ):
        np.testing.assert_array_equal(got, want)


def test_round_trip_and_order():
    ids = random_ids(50, 6, 24, dropped=0.2)
    plan = _C_testing.dispatch(ids, 24)
    offsets, sorted_of_pair, pair_of_sorted = plan["offsets"], plan["sorted_of_pair"], plan["pair_of_sorted"]
    flat = ids.ravel()
    np.testing.assert_array_equal(sorted_of_pair[pair_of_sorted], np.arange(offsets[-1]))
    np.testing.assert_array_equal(sorted_of_pair == -1, flat == -1)
    np.testing.assert_array_equal(np.diff(offsets), [(flat == e).sum() for e in range(24)])
    for e in range(24):
        segment = pair_of_sorted[offsets[e] : offsets[e + 1]]
        assert (flat[segment] == e).all()
        assert (np.diff(segment) > 0).all()


def test_one_expert_takes_all_and_the_others_none():
    plan = _C_testing.dispatch(np.full((9, 1), 2, np.int32), 5)
    assert plan["offsets"].tolist() == [0, 0, 0, 9, 9, 9]
    assert plan["pair_of_sorted"].tolist() == list(range(9))


def test_pairs_without_an_expert_have_no_row():
    plan = _C_testing.dispatch(np.array([[0, -1]] * 3, np.int32), 6)
    assert plan["offsets"].tolist() == [0, 3, 3, 3, 3, 3, 3]
    assert plan["sorted_of_pair"].tolist() == [0, -1, 1, -1, 2, -1]


@pytest.mark.parametrize("expert", [-2, 4])
def test_ids_must_name_an_expert(expert):
    with pytest.raises(lynx_rt.ValidationError, match=rf"ids: pair 3: expected -1\.\.3, got {expert}"):
        _C_testing.dispatch(np.array([[0, 1], [2, expert]], np.int32), 4)

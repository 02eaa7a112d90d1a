"""Float64 oracles of expert selection and dispatch, written from the formulas and not from the C++ code.

Notation: scores [T, E], k experts per token, and for row t: own choice base[t], first choice top[t], gate g = softmax(scores[t]),
W0[t] = sum of its own weights. reference_policies.py says which experts a policy gives a row; here are the model's own routing
(softmax top-k as in transformers, modeling_qwen3_moe.py, Qwen3MoeTopKRouter), the weights, the guard and the statistics.
"""

from dataclasses import dataclass

import numpy as np
from reference_policies import ADMITTING, GUARDED, MOVES_WEIGHTS, PER_ROW, REFILLS, WEIGHING, admitted, assign, best


@dataclass
class Result:
    ids: np.ndarray  # [T, k] int, -1 = none
    weights: np.ndarray  # [T, k] float64
    active: list  # experts that some id names, ascending
    admitted: set | None  # None where no policy that admits experts acted
    stats: dict


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def own_routing(scores, k, norm_topk):
    """The model's own ids [T, k] and weights [T, k]: softmax, top-k, divided by the sum of the chosen where normalised."""
    scores = np.asarray(scores, np.float64)
    num_rows, num_experts = scores.shape
    ids = np.zeros((num_rows, k), np.int64)
    weights = np.zeros((num_rows, k))
    for t, row in enumerate(scores):
        ids[t] = best(row, range(num_experts), k)
        weights[t] = softmax(row)[ids[t]]
        if norm_topk:
            weights[t] = softmax(row[ids[t]])
    return ids, weights


def used(ids):
    return sorted({int(e) for e in np.ravel(ids) if e >= 0})


def settle(policy, row, chosen, own_weights):
    """Ids [k] and weights [k] of a row that a policy gave `chosen`: W0 * softmax over them alone, which does not underflow. Where
    the own weights move with the choices, those of choices that met are added in the first slot."""
    ids, weights = np.full(len(own_weights), -1), np.zeros(len(own_weights))
    for j, e in enumerate(chosen):
        first = list(chosen).index(e)
        ids[j] = e if j == first or e < 0 else -1
        weights[first] += own_weights[j] if policy in MOVES_WEIGHTS else 0
    if policy not in MOVES_WEIGHTS and (ids >= 0).any():
        weights[ids >= 0] = own_weights.sum() * softmax(row[ids[ids >= 0]])
    return ids, weights


def select(scores, k, norm_topk=True, policy="topk", phase="decode_only", exact=None, all_phases=False, tables=None, **params):
    """What one routing call gives. `params`: those of the policy, by their keys; `tables`: similarity, alias, replay."""
    scores = np.asarray(scores, np.float64)
    num_rows, _ = scores.shape
    exact = np.zeros(num_rows, bool) if exact is None else np.asarray(exact, bool)
    ids, weights = own_routing(scores, k, norm_topk)
    union = used(ids)
    stats = dict(rows=num_rows, union_before=len(union), active=len(union), remapped_pairs=0, retained_mass=float(num_rows),
                 acted=False, guard_hit=False)
    own = Result(ids, weights, union, None, stats)
    acts = phase == "decode_only" or all_phases
    if policy == "topk" or not acts or num_rows < (1 if policy in PER_ROW else 2) or exact.all():
        return own

    stats["acted"] = True
    if policy in ADMITTING:
        own.admitted = admitted(policy, scores, ids, exact, **{key: v for key, v in params.items() if key not in ("refill", "damp")})
    new_ids, new_weights = ids.copy(), weights.copy()
    retained, remapped = 0.0, 0
    for t, chosen in enumerate(assign(policy, scores, ids, exact, tables, **params)):
        if not exact[t]:
            new_ids[t], new_weights[t] = settle(policy, scores[t], chosen, weights[t])
        gates = softmax(scores[t])
        kept = gates[new_ids[t][new_ids[t] >= 0]].sum() / gates[ids[t]].sum()
        if policy in REFILLS:
            new_weights[t] *= min(kept, 1.0) ** params.get("damp", WEIGHING.get(policy, {}).get("damp", 0.0))
        retained += kept
        remapped += len(set(ids[t]) - set(new_ids[t]))
    active = used(new_ids)
    if policy in GUARDED and len(active) >= len(union):
        stats["guard_hit"] = True
        return own
    stats.update(active=len(active), remapped_pairs=remapped, retained_mass=retained)
    return Result(new_ids, new_weights, active, own.admitted, stats)


def dispatch(ids, num_experts):
    """Pairs t * k + j ordered by expert, ascending inside one: (offsets [E + 1], row_of_pair [T * k], pair_of_row)."""
    flat = np.asarray(ids).ravel()
    pair_of_row = [p for e in range(num_experts) for p in range(flat.size) if flat[p] == e]
    row_of_pair = np.full(flat.size, -1)
    for row, pair in enumerate(pair_of_row):
        row_of_pair[pair] = row
    offsets = [sum(1 for e in flat if 0 <= e < limit) for limit in range(num_experts + 1)]
    return np.array(offsets), row_of_pair, np.array(pair_of_row, int)


def text(policy, all_phases=False, **params):
    """The selection text that the C++ side parses: text("oea", k0=2) == "oea:k0=2"."""
    settings = [f"{key}={value!r}" for key, value in params.items()] + ["phase=all"] * all_phases
    return policy + (":" if settings else "") + ",".join(settings)


def assert_matches(got, want):
    """`got`: the dict that _C.select returns; `want`: a Result. Ids exactly, weights to 1e-6."""
    np.testing.assert_array_equal(got["ids"], want.ids)
    np.testing.assert_array_equal(got["active"], want.active)
    np.testing.assert_allclose(got["weights"], want.weights, rtol=0, atol=1e-6)
    got_stats, want_stats = dict(got["stats"]), dict(want.stats)
    np.testing.assert_allclose(got_stats.pop("retained_mass"), want_stats.pop("retained_mass"), rtol=1e-6, atol=1e-9)
    assert got_stats == want_stats


def assert_same_bits(a, b):
    """Two dicts of _C.select hold the same ids, weights and active list, bit for bit."""
    for key in ("ids", "weights", "active"):
        assert a[key].tobytes() == b[key].tobytes(), f"{key} differ:\n{a[key]}\n{b[key]}"

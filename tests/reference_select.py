"""Float64 oracles of expert selection and dispatch, written from the formulas and not from the C++ code.

Everything is sorted in full, counted in Python integers and compared as fractions. Notation: scores [T, E], k experts per
token, and for row t: own choice base[t], first choice top[t], gate g = softmax(scores[t]), W0[t] = sum of its own weights.

Sources: softmax top-k routing as in transformers (modeling_qwen3_moe.py, Qwen3MoeTopKRouter); LYNX arXiv 2411.08982 with the
open points read as in csrc/backend/cpu/select.h; OEA arXiv 2511.02237, simplified form.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MAX_VOTES = 2**62  # beta is lowered until B**beta fits, so that sums of votes fit a 64-bit integer


@dataclass
class Result:
    ids: np.ndarray  # [T, k] int, -1 = none
    weights: np.ndarray  # [T, k] float64
    active: list  # experts that some id names, ascending
    admitted: set | None  # None where no policy acted
    stats: dict


def best(row, candidates, count):
    """The `count` best of `candidates` by score, best first, ties to the lower expert."""
    return sorted(candidates, key=lambda e: (-row[e], e))[:count]


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


@dataclass
class LynxSets:
    votes: list  # [E] Python int
    top_vote: int  # value of one bin-0 vote
    thresholded: set
    confident: set
    filled: set

    @property
    def admitted(self):  # without exact rows
        return self.thresholded | self.confident | self.filled


def lynx_sets(scores, k, alpha=8.0, beta=4, theta=1.0):
    """LYNX threshold rule: S[e] = sum_j n_j[e] * B**(beta-1-j), admitted where S >= theta * B**(beta-1).

    n_j[e] rows have expert e in bin j = floor(alpha * (max z - z[e])). A row with one expert in bin 0 is confident and keeps it.
    The rest up to k is filled by best S, then lower expert.
    """
    scores = np.asarray(scores, np.float64)
    num_rows, num_experts = scores.shape
    while num_rows**beta > MAX_VOTES:
        beta -= 1
    votes = [0] * num_experts
    confident = set()
    for row in scores:
        bins = np.floor(np.minimum(alpha * (row.max() - row), beta)).astype(int)
        for e in range(num_experts):
            if bins[e] < beta:
                votes[e] += num_rows ** (beta - 1 - int(bins[e]))
        if (bins == 0).sum() == 1:
            confident.add(int(bins.argmin()))
    top_vote = num_rows ** (beta - 1)
    thresholded = {e for e in range(num_experts) if votes[e] >= Fraction(theta) * top_vote}
    admitted = thresholded | confident
    rest = sorted(set(range(num_experts)) - admitted, key=lambda e: (-votes[e], e))
    filled = set(rest[: max(0, k - len(admitted))])
    return LynxSets(votes, top_vote, thresholded, confident, filled)


def oea_floors(scores, k, k0):
    """OEA: the union of every row's first k0 choices, for the first k0 from the given one on whose union has k experts."""
    scores = np.asarray(scores, np.float64)
    unions = ({e for row in scores for e in best(row, range(scores.shape[1]), n)} for n in range(k0, k + 1))
    return next(union for union in unions if len(union) >= k)


def select(scores, k, norm_topk=True, policy="topk", phase="decode_only", exact=None, **params):
    """Own routing, or batch-aware selection with the never-worse guard. `params`: alpha, beta, theta or k0."""
    scores = np.asarray(scores, np.float64)
    num_rows, _ = scores.shape
    exact = np.zeros(num_rows, bool) if exact is None else np.asarray(exact, bool)
    ids, weights = own_routing(scores, k, norm_topk)
    union = {int(e) for e in ids.ravel()}
    stats = dict(rows=num_rows, union_before=len(union), active=len(union), remapped_pairs=0, retained_mass=float(num_rows),
                 acted=False, guard_hit=False)
    own = Result(ids, weights, sorted(union), None, stats)
    if policy == "topk" or phase != "decode_only" or num_rows < 2 or exact.all():
        return own

    stats["acted"] = True
    admitted = lynx_sets(scores, k, **params).admitted if policy == "lynx" else oea_floors(scores, k, params.get("k0", 1))
    admitted |= {int(e) for t in np.flatnonzero(exact) for e in ids[t]}
    own.admitted = admitted

    new_ids = np.full_like(ids, -1)
    new_weights = np.zeros_like(weights)
    retained, remapped = 0.0, 0
    for t, row in enumerate(scores):
        chosen = best(row, admitted, k)
        new_ids[t, : len(chosen)] = chosen
        # W0 * g[e] / sum of g over the chosen: softmax over the chosen alone, which does not underflow.
        new_weights[t, : len(chosen)] = weights[t].sum() * softmax(row[chosen])
        gates = softmax(row)
        retained += gates[chosen].sum() / gates[ids[t]].sum()
        remapped += len(set(ids[t]) - set(chosen))
    active = sorted({int(e) for e in new_ids.ravel() if e >= 0})
    if len(active) >= len(union):
        stats["guard_hit"] = True
        return own
    stats.update(active=len(active), remapped_pairs=remapped, retained_mass=retained)
    return Result(new_ids, new_weights, active, admitted, stats)


def dispatch(ids, num_experts):
    """Pairs t * k + j ordered by expert, ascending inside one: (offsets [E + 1], row_of_pair [T * k], pair_of_row)."""
    flat = np.asarray(ids).ravel()
    pair_of_row = [p for e in range(num_experts) for p in range(flat.size) if flat[p] == e]
    row_of_pair = np.full(flat.size, -1)
    for row, pair in enumerate(pair_of_row):
        row_of_pair[pair] = row
    offsets = [sum(1 for e in flat if 0 <= e < limit) for limit in range(num_experts + 1)]
    return np.array(offsets), row_of_pair, np.array(pair_of_row, int)


def text(policy, **params):
    """The selection text that the C++ side parses: text("oea", k0=2) == "oea:k0=2"."""
    return policy + (":" + ",".join(f"{key}={value!r}" for key, value in params.items()) if params else "")


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

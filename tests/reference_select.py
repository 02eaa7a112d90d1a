"""Float64 oracles of expert selection and dispatch, written from the formulas and not from the C++ code.

Notation: scores [T, E] router logits, k experts per token, and for row t: own choice base[t], first choice top[t], W0[t] = sum of
its own weights. reference_policies.py says which experts a policy gives a row. This file has the model's own routing, its
keys and gates (csrc/routing/router_keys.h), the weights, the guard and the statistics.

Sources of own routing: transformers, the routers of modeling_qwen3_moe.py, modeling_deepseek_v2.py, modeling_deepseek_v3.py,
modeling_ernie4_5_moe.py, and sparsemixer() of modeling_phimoe.py.
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


@dataclass
class Rule:
    """The members of RouterRule (csrc/routing/rule.h) beside sizes and norm_topk, as _C_testing.select takes them."""

    kind: str = "softmax"
    bias: np.ndarray | None = None
    num_groups: int = 1
    top_groups: int = 1
    group_top2: bool = False
    scale: float = 1.0
    min_sum: float = 0.0
    jitter: float = 0.01

    def ungated(self, row):
        """Returns the weights of a row before they are normalised: probabilities or sigmoids. [E]"""
        if self.kind == "sigmoid":
            e = np.exp(-np.abs(row))
            return np.where(row < 0, e, 1) / (1 + e)
        return softmax(row)

    def log_ungated(self, row):
        """Returns the logarithm of ungated(), for softmax up to a constant."""
        return np.minimum(row, 0) - np.log1p(np.exp(-np.abs(row))) if self.kind == "sigmoid" else row

    def ranked(self, row):
        """Returns the scores by which the row's experts are chosen: with the bias, -inf outside its groups. [E]"""
        value = self.log_ungated(row) if self.bias is None else self.ungated(row) + np.asarray(self.bias, np.float64)
        if self.num_groups == 1:
            return value
        sums = self.ungated(row) + (0 if self.bias is None else np.asarray(self.bias, np.float64))
        groups = np.sort(sums.reshape(self.num_groups, -1), axis=1)
        scores = groups[:, -2:].sum(1) if self.group_top2 else groups[:, -1]
        open_groups = best(scores, range(self.num_groups), self.top_groups)
        return np.where(np.isin(np.arange(len(row)) * self.num_groups // len(row), open_groups), value, -np.inf)

    def keys(self, row):
        """Returns the keys that policies compare, in nats, float32. [E]"""
        value = self.ranked(row)
        if self.bias is None:
            return value.astype(np.float32).astype(np.float64)
        first = int(value.argmax())
        r = 1 - (value[first] - value) / max(self.ungated(row)[first], 1e-12)
        least = 2.0**-20
        keys = np.where(r < least, np.log(least) + (r - least) / least, np.log(np.maximum(r, least)))
        return np.where(np.isneginf(value), -np.inf, np.maximum(keys, -3e38)).astype(np.float32).astype(np.float64)

    def weights(self, row, ids, norm_topk):
        """Returns the weights of the row's own choices."""
        if self.kind == "sparsemixer":
            weights, z = np.zeros(2), row.astype(np.float32)
            for j in range(2):
                top = z[ids[j]]
                with np.errstate(invalid="ignore"):
                    near = ~((top - z) / np.maximum(np.abs(z), top) > np.float32(2 * self.jitter))
                near[ids[:j]] = False
                weights[j] = 1 / np.exp(row[near] - row[ids[j]]).sum()
            return weights * self.scale
        ungated = self.ungated(row)[ids]
        if not norm_topk:
            return ungated * self.scale
        if ungated.sum() < self.min_sum:
            return ungated / self.min_sum * self.scale
        return softmax(self.log_ungated(row)[ids]) * self.scale


def own_routing(scores, k, norm_topk, rule):
    """Returns the model's own ids [T, k] and weights [T, k]."""
    ids = np.array([best(rule.ranked(row), range(len(row)), k) for row in scores], np.int64).reshape(-1, k)
    weights = np.array([rule.weights(row, chosen, norm_topk) for row, chosen in zip(scores, ids)]).reshape(-1, k)
    return ids, weights


def used(ids):
    return sorted({int(e) for e in np.ravel(ids) if e >= 0})


def settle(policy, gates, chosen, own_weights):
    """Ids [k] and weights [k] of a row that a policy gave `chosen`: W0 * softmax of `gates` [E] over them alone, which does not
    underflow. Where the own weights move with the choices, those of choices that met are added in the first slot."""
    ids, weights = np.full(len(own_weights), -1), np.zeros(len(own_weights))
    for j, e in enumerate(chosen):
        first = list(chosen).index(e)
        ids[j] = e if j == first or e < 0 else -1
        weights[first] += own_weights[j] if policy in MOVES_WEIGHTS else 0
    if policy not in MOVES_WEIGHTS and (ids >= 0).any():
        weights[ids >= 0] = own_weights.sum() * softmax(gates[ids[ids >= 0]])
    return ids, weights


def select(
    scores,
    k,
    norm_topk=True,
    policy="topk",
    phase="decode_only",
    exact=None,
    all_phases=False,
    tables=None,
    rule=None,
    groups=None,
    cost=None,
    **params,
):
    """Returns the result of one routing call. `params`: of the policy, by their keys; `tables`: similarity, alias, replay; `rule`: the
    members of Rule; `groups` [T]: isolation groups, each of which is a call of its own; `cost` [E]: 0 = resident."""
    if cost is None:
        params.pop("resident", None)
    resident = params.get("resident", 0) > 0
    if groups is not None:
        common = (k, norm_topk, policy, phase)
        return select_groups(
            groups, scores, common, exact, tables, all_phases=all_phases, rule=rule, cost=cost, **params
        )
    scores, rule = np.asarray(scores, np.float64), Rule(**(rule or {}))
    num_rows, _ = scores.shape
    exact = np.zeros(num_rows, bool) if exact is None else np.asarray(exact, bool)
    ids, weights = own_routing(scores, k, norm_topk, rule)
    keys = np.array([rule.keys(row) for row in scores]).reshape(scores.shape)
    union = used(ids)
    stats = dict(
        rows=num_rows,
        union_before=len(union),
        active=len(union),
        remapped_pairs=0,
        retained_mass=float(num_rows),
        acted=False,
        guard_hit=False,
        changed_rows=0,
        misses_before=misses(union, cost),
        misses=misses(union, cost),
    )
    own = Result(ids, weights, union, None, stats)
    acts = phase == "decode_only" or all_phases
    least = 1 if policy in PER_ROW or resident else 2
    if (policy == "topk" and not resident) or not acts or num_rows < least or exact.all():
        return own

    stats["acted"] = True
    if policy in ADMITTING and not resident:
        own.admitted = admitted(
            policy,
            keys,
            ids,
            exact,
            **{key: v for key, v in params.items() if key not in ("refill", "damp", "resident")},
        )
    new_ids, new_weights = ids.copy(), weights.copy()
    retained, remapped, changed = 0.0, 0, 0
    for t, chosen in enumerate(assign(policy, keys, ids, exact, tables, cost, **params)):
        if not exact[t] and list(chosen) != ids[t].tolist():  # a row that keeps its choices keeps its weights
            new_ids[t], new_weights[t] = settle(policy, rule.log_ungated(scores[t]), chosen, weights[t])
        gates = rule.log_ungated(scores[t])
        gates = np.exp(gates - gates[ids[t]].max())
        kept = min(gates[new_ids[t][new_ids[t] >= 0]].sum() / gates[ids[t]].sum(), 1.0)
        if policy in REFILLS:
            new_weights[t] *= kept ** params.get("damp", WEIGHING.get(policy, {}).get("damp", 0.0))
        retained += kept
        remapped += len(set(ids[t]) - set(new_ids[t]))
        changed += ids[t].tolist() != new_ids[t].tolist()
    active = used(new_ids)
    if resident:
        saves = misses(active, cost) < misses(union, cost)
    else:
        saves = len(active) < len(union) or policy not in GUARDED
    if not saves:
        stats["guard_hit"] = True
        return own
    stats.update(active=len(active), remapped_pairs=remapped, retained_mass=retained, changed_rows=changed)
    stats.update(misses=misses(active, cost))
    return Result(new_ids, new_weights, active, own.admitted, stats)


def misses(experts, cost):
    return 0 if cost is None else sum(int(cost[e]) != 0 for e in experts)


def select_groups(groups, scores, common, exact, tables, **params):
    """Selects for the rows of each group alone, and puts the results together."""
    own = select(scores, *common[:2], rule=params["rule"], cost=params["cost"])
    ids, weights, stats = own.ids.copy(), own.weights.copy(), dict(own.stats)
    guarded = []  # for each group that was selected for
    for group in set(np.asarray(groups).tolist()):
        rows = np.flatnonzero(np.asarray(groups) == group)
        of_rows = dict(tables or {})
        if "replay" in of_rows:
            of_rows["replay"] = of_rows["replay"][rows]
        part = select(
            np.asarray(scores)[rows], *common, None if exact is None else exact[rows], tables=of_rows, **params
        )
        ids[rows], weights[rows] = part.ids, part.weights
        stats["remapped_pairs"] += part.stats["remapped_pairs"]
        stats["retained_mass"] += part.stats["retained_mass"] - len(rows)
        stats["changed_rows"] += part.stats["changed_rows"]
        guarded += [part.stats["guard_hit"]] * part.stats["acted"]
    active = used(ids)
    stats.update(misses=misses(active, params["cost"]))
    stats.update(active=len(active), acted=bool(guarded), guard_hit=bool(guarded) and all(guarded))
    return Result(ids, weights, active, None, stats)


def dispatch(ids, num_experts):
    """Pairs t * k + j ordered by expert, ascending inside one: (offsets [E + 1], sorted_of_pair [T * k], pair_of_sorted)."""
    flat = np.asarray(ids).ravel()
    pair_of_sorted = [p for e in range(num_experts) for p in range(flat.size) if flat[p] == e]
    sorted_of_pair = np.full(flat.size, -1)
    for row, pair in enumerate(pair_of_sorted):
        sorted_of_pair[pair] = row
    offsets = [sum(1 for e in flat if 0 <= e < limit) for limit in range(num_experts + 1)]
    return np.array(offsets), sorted_of_pair, np.array(pair_of_sorted, int)


def text(policy, all_phases=False, **params):
    """Returns the selection text that the C++ side parses: text("oea", k0=2) == "oea:k0=2"."""
    settings = [f"{key}={value!r}" for key, value in params.items()] + ["phase=all"] * all_phases
    return policy + (":" if settings else "") + ",".join(settings)


def assert_matches(got, want):
    """Compares ids exactly and weights to 1e-6. `got`: the dict that _C_testing.select returns; `want`: a Result."""
    np.testing.assert_array_equal(got["ids"], want.ids)
    np.testing.assert_array_equal(got["active"], want.active)
    np.testing.assert_allclose(got["weights"], want.weights, rtol=0, atol=1e-6)
    got_stats, want_stats = dict(got["stats"]), dict(want.stats)
    np.testing.assert_allclose(got_stats.pop("retained_mass"), want_stats.pop("retained_mass"), rtol=1e-6, atol=1e-9)
    assert got_stats == want_stats


def assert_same_bits(a, b):
    """Checks that two dicts of _C_testing.select have the same ids, weights and active list, bit for bit."""
    for key in ("ids", "weights", "active"):
        assert a[key].tobytes() == b[key].tobytes(), f"{key} differ:\n{a[key]}\n{b[key]}"

"""Draws random batches with a policy: the cases of the tests of expert selection."""

import numpy as np
import reference_select as ref
from hypothesis import strategies as st
from reference_policies import POLICIES, RESIDENT, lynx_sets

from lynx_rt import _C_testing

STEP = 2.0**-10  # scores are multiples of this and small, so that shifts and differences are exact


def rows(num_experts, *entries):
    """Returns scores [T, E], 0 except for the given {expert: score} of each row."""
    scores = np.zeros((len(entries), num_experts), np.float32)
    for t, entry in enumerate(entries):
        for expert, score in entry.items():
            scores[t, expert] = score
    return scores


def draw_params(choose, policy, num_experts, k):
    """Draws parameters of a policy; `choose` takes a list and returns one of its items. Factors and shares are dyadic: no rounding."""
    if policy in ("lynx", "lynx_literal"):
        params = dict(alpha=choose([0.25, 0.5, 1.0, 2.0, 3.3, 8.0]), beta=choose(range(1, 17)))
        if policy == "lynx":
            weighing = dict(refill=choose([0.0, 0.25, 1.0]), damp=choose([0.0, 0.5, 1.0]))
            return params | dict(theta=choose([0.0, 0.5, 1.0, 1.5, 2.0, 3.1])) | weighing
        return params | {"lambda": choose([0.0, 0.25, 1.0, 2.7, 1e300])}
    m = [1e-9, 0.25, 0.5, 0.75, 1 - 2.0**-20, 1.0, float(-(-num_experts // 2)), float(num_experts)]
    return {
        "oea": lambda: dict(k0=choose(range(1, k + 1))),
        "xshare": lambda: dict(m=choose(m), k0=choose(range(k + 1))),
        "des_vote": lambda: dict(m=choose(m)),
        "cover": lambda: dict(
            delta=choose([0.0, 0.05, 0.3, 1.0, 1e300]),
            m=choose(m),
            refill=choose([0.0, 0.25, 1.0]),
            damp=choose([0.0, 0.5, 1.0]),
        ),
        "sere": lambda: dict(s=choose(range(1, k + 1)), rho=choose([0.0, 0.25, 0.5, 0.75, 1.0, 1.5])),
        "skip": lambda: dict(ratio=choose([0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])),
        "top_j": lambda: dict(j=choose(range(1, k + 1))),
        "deny_rank": lambda: dict(rank=choose(range(k))),
        "capacity": lambda: dict(factor=choose([5e-324, 0.25, 0.5, 1.0, 1.25, 2.0, 1e30])),
    }.get(policy, dict)()


def draw_tables(rng, num_rows, num_experts, k, coarse=False):
    """Draws a table for each policy that reads one. `coarse`: similarities from a few values, so that they tie, with rho too."""
    similarity = rng.random((num_experts, num_experts))
    if coarse:
        similarity = np.round(similarity * 4) / 4
    np.fill_diagonal(similarity, 1)
    replay = np.array([rng.permutation(num_experts)[:k] for _ in range(num_rows)]).reshape(num_rows, k)
    replay[rng.random(replay.shape) < 0.2] = -1
    return dict(
        similarity=similarity.astype(np.float32), alias=rng.integers(0, num_experts, num_experts).astype(np.int32),
        replay=replay.astype(np.int32),
    )  # fmt: skip


def tables_for(policy, tables):
    """Returns the table that a policy reads, under its name in select()."""
    name = {"sere": "similarity"}.get(policy, policy)
    return {name: tables[name]} if name in tables else {}


def draw_rule(choose, num_experts, k, rng):
    """Draws a routing rule that the sizes allow: the members of reference_select.Rule."""
    kind = choose(["softmax", "sigmoid", "sigmoid", "sparsemixer"])
    rule = dict(kind=kind, scale=choose([1.0, 2.5]), min_sum=choose([0.0, 0.0, 2.0**-66, 0.3125]))
    if kind == "sparsemixer":
        return rule | dict(kind=kind if k == 2 else "softmax", jitter=choose([0.0, 0.01, 0.25, 2.0]))
    num_groups = choose([n for n in range(1, num_experts + 1) if num_experts % n == 0])
    size = num_experts // num_groups
    rule |= dict(num_groups=num_groups, top_groups=choose(range(-(-k // size), num_groups + 1)))
    rule["group_top2"] = size > 1 and choose([False, True])
    spread = choose([None, 0.0, 0.02, 0.3, 3.0])
    if spread is not None:
        rule["bias"] = (choose([0.0, 0.0, 8.0]) + spread * rng.normal(size=num_experts)).astype(np.float32)
    return rule


def draw_exact(rng, num_rows):
    """Draws None, or which rows are exact: none of them, some, all."""
    return [None, *((rng.random(num_rows) < share).astype(np.uint8) for share in (0, 0.3, 0.3, 1))][rng.integers(5)]


class Case:
    """A batch whose rows have no ties, and a policy."""

    def __init__(self, seed, num_rows, num_experts, k, spread, skew, norm_topk, policy, params):
        self.rng = np.random.default_rng(seed)
        self.k, self.norm_topk, self.policy, self.params = k, norm_topk, policy, params
        wish = spread * (self.rng.normal(size=(num_rows, num_experts)) + skew * self.rng.normal(size=num_experts))
        order = np.array([self.rng.permutation(num_experts) for _ in range(num_rows)])  # makes a row's scores distinct
        self.scores = ((np.round(wish / STEP / num_experts) * num_experts + order) * STEP).astype(np.float32)
        self.exact = (self.rng.random(num_rows) < 0.25).astype(np.uint8) if self.rng.random() < 0.5 else None
        self.tables = draw_tables(self.rng, num_rows, num_experts, k)
        self.rule = {}  # members of reference_select.Rule
        self.cost = None  # [E] 0 = resident

    def __repr__(self):
        rule = f"norm={self.norm_topk}, {self.rule}"
        return f"Case({self.policy} {self.params}, k={self.k}, {rule}, exact={self.exact}, scores=\n{self.scores})"

    @property
    def num_experts(self):
        return self.scores.shape[1]

    def select(
        self, scores=None, exact="same", phase="decode_only", select=_C_testing.select, tables=None, rows=None, **params
    ):
        """Runs the policy. `rows`: those rows only, in that order."""
        scores = self.scores if scores is None else scores
        exact = self.exact if isinstance(exact, str) else exact
        tables = dict(self.tables if tables is None else tables)
        if rows is not None:
            scores, exact, tables["replay"] = (
                scores[rows],
                None if exact is None else exact[rows],
                tables["replay"][rows],
            )
        text = ref.text(self.policy, **{**self.params, **params})
        return select(
            scores,
            self.k,
            self.norm_topk,
            text,
            phase,
            exact,
            cost=self.cost,
            **tables_for(self.policy, tables),
            **self.rule,
        )

    def kept_mass(self, ids):
        """Returns the gate mass of each row's `ids` relative to its own choice. [T]"""
        gates = np.exp(self.scores.astype(np.float64) - self.scores.max(1, keepdims=True))
        kept = np.where(ids >= 0, np.take_along_axis(gates, np.maximum(ids, 0), 1), 0).sum(1)
        return kept / np.take_along_axis(gates, self.own()["ids"], 1).sum(1)

    def own(self, scores=None):
        scores = self.scores if scores is None else scores
        return _C_testing.select(scores, self.k, self.norm_topk, cost=self.cost, **self.rule)

    def oracle(self, **params):
        return ref.select(
            self.scores,
            self.k,
            self.norm_topk,
            self.policy,
            exact=self.exact,
            tables=self.tables,
            rule=self.rule,
            cost=self.cost,
            **{**self.params, **params},
        )

    def lynx_sets(self, scores=None, **params):
        params = {**self.params, **params}
        return lynx_sets(
            self.scores if scores is None else scores, self.k, params["alpha"], params["beta"], params["theta"]
        )


@st.composite
def cases(draw, policies=POLICIES, min_rows=1):
    num_experts = draw(st.integers(1, 24))
    k = draw(st.integers(1, min(num_experts, 8)))
    policy = draw(st.sampled_from(policies))
    params = draw_params(lambda options: draw(st.sampled_from(options)), policy, num_experts, k)
    return Case(
        draw(st.integers(0, 2**32 - 1)), draw(st.integers(min_rows, 14)), num_experts, k, draw(st.sampled_from([0.3, 1.0, 3.0])),
        draw(st.sampled_from([0.0, 0.7, 2.0])), draw(st.booleans()), policy, params,
    )  # fmt: skip


@st.composite
def rule_cases(draw, policies=POLICIES, min_rows=1):
    """Cases of any kind of router."""
    case = draw(cases(policies, min_rows))
    case.rule = draw_rule(lambda options: draw(st.sampled_from(options)), case.num_experts, case.k, case.rng)
    return case


@st.composite
def resident_cases(draw, min_rows=1, policies=RESIDENT):
    """Cases of any kind of router with `resident`, where some experts are resident."""
    case = draw(rule_cases(policies, min_rows))
    case.params["resident"] = draw(st.sampled_from([0.0009765625, 0.125, 0.5, 1.0, 1.7, 4.0, 1000.0]))
    if case.policy != "topk":
        case.params.setdefault("refill", draw(st.sampled_from([0.0, 0.0, 0.25])))
    case.cost = (case.rng.random(case.num_experts) >= draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))).astype(np.uint8)
    return case


def row_sets(ids):
    """Returns the experts of each row."""
    return [{int(e) for e in row if e >= 0} for row in ids]

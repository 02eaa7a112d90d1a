"""Float64 oracles of each expert-selection policy's choices, written from the formulas and not from the C++ code.

Everything is sorted in full, counted in Python integers and compared as fractions. Notation: scores [T, E] are the rows' keys
(reference_select.Rule.keys: the logits of plain softmax routers; -inf = outside the row's groups), k experts per token; ids
[T, k] are the model's own choices, best first; exact [T] says which rows keep their own choices.

Sources: LYNX arXiv 2411.08982, OEA arXiv 2511.02237 (simplified form), XShare arXiv 2602.07265, DES-Vote arXiv 2602.00879, SERE
arXiv 2602.07616, NAEE arXiv 2402.14800, GShard arXiv 2006.16668, MC-SMoE arXiv 2310.01334, with the open points read as in
routing/selector.h.
"""

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np

MAX_VOTES = 2**62  # beta is lowered until B**beta fits, so that sums of votes fit a 64-bit integer
DIGITS = Context(prec=400)  # float32 scores of any size are subtracted without rounding

# Rows choose among admitted experts; of all policies that look at the whole batch, all but capacity have the guard.
ADMITTING = ("lynx", "oea", "xshare", "des_vote", "cover")
RESIDENT = ("topk", *ADMITTING)  # policies that know resident
REFILLS = (*RESIDENT, "lynx_literal")  # policies that know refill and damp
WEIGHING = {
    "topk": dict(damp=0.5),
    "lynx": dict(refill=0.25, damp=0.5),
    "cover": dict(refill=1.0, damp=0.7),
}  # where these are not 0 unless given
GUARDED = (*ADMITTING, "lynx_literal", "sere")  # topk too where it is given `resident`
PER_ROW = ("skip", "top_j", "deny_rank", "alias", "replay")
POLICIES = (*GUARDED, "capacity", *PER_ROW)
MOVES_WEIGHTS = ("sere", "alias")


def best(row, candidates, count):
    """Returns the `count` best of `candidates` by score, best first, ties to the lower expert; none of score -inf."""
    return sorted((e for e in candidates if row[e] > -np.inf), key=lambda e: (-row[e], e))[:count]


# --- votes and gates


@dataclass
class Votes:
    votes: list  # [E] Python int
    top_vote: int  # value of one bin-0 vote
    of_row: list  # [T][E] votes that each row gave
    confident: list  # [T] the one expert in bin 0, or None


def lynx_votes(scores, alpha, beta=4):
    """S[e] = sum_j n_j[e] * B**(beta-1-j), where n_j[e] rows have expert e in bin j = floor(alpha * (max z - z[e]))."""
    scores = np.asarray(scores, np.float64)
    num_rows, num_experts = scores.shape
    while num_rows**beta > MAX_VOTES:
        beta -= 1
    of_row, confident = [], []
    for row in scores:
        bins = np.floor(np.minimum(alpha * (row.max() - row), beta)).astype(int)
        of_row.append([num_rows ** (beta - 1 - int(b)) if b < beta else 0 for b in bins])
        confident.append(int(bins.argmin()) if (bins == 0).sum() == 1 else None)
    return Votes([sum(votes) for votes in zip(*of_row)] or [0] * num_experts, num_rows ** (beta - 1), of_row, confident)


@dataclass
class LynxSets:
    votes: list
    top_vote: int
    thresholded: set
    confident: set
    filled: set

    @property
    def admitted(self):  # without exact rows
        return self.thresholded | self.confident | self.filled


def lynx_sets(scores, k, alpha=None, beta=4, theta=1.0):
    """LYNX threshold rule: admitted are S >= theta * B**(beta-1) and the first choices of confident rows, those with one expert
    in bin 0. The rest up to k is filled by best S, then lower expert."""
    v = lynx_votes(scores, round(96 / k**2, 2) if alpha is None else alpha, beta)
    experts = range(len(v.votes))
    thresholded = {e for e in experts if v.votes[e] >= Fraction(theta) * v.top_vote}
    confident = {e for e in v.confident if e is not None}
    filled = fill(thresholded | confident, experts, v.votes, k) - thresholded - confident
    return LynxSets(v.votes, v.top_vote, thresholded, confident, filled)


def fill(admitted, candidates, value, count):
    """Adds the best valued of the other candidates to `admitted`, until there are `count`; ties to the lower expert."""
    rest = sorted(set(candidates) - admitted, key=lambda e: (-value[e], e))
    return admitted | set(rest[: max(0, count - len(admitted))])


def exp_mass(gap):
    """exp(-gap) in units of 2**-32 (csrc/routing/gate_mass.h: the power of two apart, a Taylor series of the rest through the
    twelfth power). Python's floats are the same IEEE doubles, so these are the same bits."""
    power = gap * 1.4426950408889634
    if not power < 32:
        return 0
    whole = int(power)
    r = (whole - power) * 0.6931471805599453
    p = 0.0
    for i in range(12, -1, -1):
        p = p * r + 1.0 / math.factorial(i)
    return int(p * 2.0 ** (32 - whole) + 0.5)


def gate_masses(row):
    """softmax(row) in units of 2**-30, each rounded down."""
    top = max(map(float, row))
    masses = [exp_mass(top - float(z)) for z in row]
    return [(m << 30) // sum(masses) for m in masses]


# --- policies that admit experts


def oea_floors(scores, k, k0):
    """OEA: the union of every row's first k0 choices, for the first k0 from the given one on whose union has k experts."""
    scores = np.asarray(scores, np.float64)
    unions = ({e for row in scores for e in best(row, range(scores.shape[1]), n)} for n in range(k0, k + 1))
    return next(union for union in unions if len(union) >= k)


def budget(m, num_experts):
    """Returns the number of experts that m allows: below 1 a share of all (rounded down, at least one), else a number."""
    return min(num_experts, max(1, math.floor(m * num_experts)) if m < 1 else int(m))


def xshare_admitted(scores, ids, m=0.5, k0=1):
    """First choices, then the largest sums of gates over all rows."""
    num_experts, k = scores.shape[1], ids.shape[1]
    value = [sum(column) for column in zip(*(gate_masses(row) for row in scores))]
    return fill({int(e) for e in ids[:, :k0].ravel()}, range(num_experts), value, max(budget(m, num_experts), k))


def des_admitted(scores, ids, m=0.5):
    """Returns the experts with the largest sums of gates over the rows that chose them; never one that nobody chose."""
    value = dict.fromkeys(map(int, ids.ravel()), 0)
    for row, chosen in zip(scores, ids):
        gates = gate_masses(row)
        for e in chosen:
            value[int(e)] += gates[e]
    return fill(set(), value, value, max(budget(m, scores.shape[1]), ids.shape[1]))


def cover_admitted(scores, ids, delta=0.1, m=1):
    """Greedy set cover: an expert covers the rows whose best score is at most delta above its own; then sums of gates."""
    num_experts = scores.shape[1]
    value = [sum(column) for column in zip(*(gate_masses(row) for row in scores))]
    covers = [{t for t, row in enumerate(scores) if row.max() - row[e] <= delta} for e in range(num_experts)]
    chosen, left = set(), set(range(len(scores)))
    while left:
        e = max(range(num_experts), key=lambda e: (len(covers[e] & left), value[e], -e))
        chosen.add(e)
        left -= covers[e]
    return fill(chosen, range(num_experts), value, max(budget(m, num_experts), ids.shape[1]))


def admitted(policy, scores, ids, exact, **params):
    """Returns the admitted experts of a batch; exact rows add their own after everything else."""
    k = ids.shape[1]
    chosen = {
        "lynx": lambda: lynx_sets(scores, k, **params).admitted,
        "oea": lambda: oea_floors(scores, k, params.get("k0", 1)),
        "xshare": lambda: xshare_admitted(scores, ids, **params),
        "des_vote": lambda: des_admitted(scores, ids, **params),
        "cover": lambda: cover_admitted(scores, ids, **params),
    }[policy]()
    return chosen | {int(e) for t in np.flatnonzero(exact) for e in ids[t]}


# --- policies that choose for each row


def literal_keys(scores, alpha=16.0, beta=4, **params):
    """z + lambda * (votes of the other rows, in units of a bin-0 vote): double precision, then float32. [T, E]"""
    v = lynx_votes(scores, alpha, beta)
    factor = Fraction(params.get("lambda", 1.0))
    keys = np.zeros(scores.shape, np.float32)
    for t, row in enumerate(scores):
        for e, z in enumerate(row):
            if np.isneginf(z):
                keys[t, e] = z
                continue
            key = Fraction(float(z)) + factor * Fraction(v.votes[e] - v.of_row[t][e], v.top_vote)
            with np.errstate(over="ignore"):
                keys[t, e] = float(min(key, 10**300))
    return keys, v.confident


def assign_literal(scores, ids, exact, **params):
    keys, confident = literal_keys(scores, **params)
    for t, row in enumerate(keys):
        chosen = best(row, range(len(row)), ids.shape[1])
        if confident[t] is not None and confident[t] not in chosen:
            chosen[-1] = confident[t]
        yield chosen


def sere_targets(ids, exact, similarity, s=1, rho=0.0):
    """Returns the replacement of each expert: itself if it is primary or no primary is similar enough (rho = 0: always similar enough)."""
    similarity = np.asarray(similarity, np.float64)
    primary = {int(e) for t, row in enumerate(ids) for e in (row if exact[t] else row[:s])}
    targets = {}
    for u in range(len(similarity)):
        v = max(primary, key=lambda v: (similarity[u, v], -v))
        targets[u] = u if u in primary or (rho > 0 and similarity[u, v] < rho) else v
    return targets


def substitute(ids, targets):
    return [[int(targets[int(e)]) for e in row] for row in ids]


def keep_inside(scores, ids, targets):
    """Keeps a choice whose replacement would leave the row's groups."""
    return [
        [int(u) if row[v] == -np.inf else v for u, v in zip(own, new)] for row, own, new in zip(scores, ids, targets)
    ]


def assign_skip(scores, ids, exact, ratio=0.5):
    """Takes choices while gate_j >= ratio * gate_0, which is gap <= -ln ratio."""
    for row, chosen in zip(scores, ids):
        gaps = [DIGITS.subtract(Decimal(float(row[chosen[0]])), Decimal(float(row[e]))) for e in chosen]
        limit = -Decimal(ratio).ln() if ratio > 0 else Decimal("Infinity")
        yield [int(e) for e, gap in zip(chosen, gaps) if gap <= limit]


def assign_deny_rank(scores, ids, exact, rank=0):
    for row, chosen in zip(scores, ids):
        others = best(row, set(range(len(row))) - set(map(int, chosen)), 1)
        yield [int(e) for j, e in enumerate(chosen) if j != rank] + others


def capacity_limit(factor, num_rows, num_experts, k):
    return math.ceil(Fraction(factor) * num_rows * k / num_experts)


def assign_capacity(scores, ids, exact, factor=1.0):
    """Every row asks experts in the order of its scores; one slot of every row after the other, exact rows before all."""
    (num_rows, num_experts), k = scores.shape, ids.shape[1]
    limit = capacity_limit(factor, num_rows, num_experts, k)
    load = [0] * num_experts
    for e in ids[exact].ravel():
        load[e] += 1
    asks = [iter(best(row, range(num_experts), num_experts)) for row in scores]
    out = [[] for _ in scores]
    for _ in range(k):
        for t in np.flatnonzero(~exact):
            e = next((e for e in asks[t] if load[e] < limit), -1)
            out[t].append(e)
            load[e] += e >= 0
    return out


def drop_refills(row, taken, own, refill):
    """Drops (-1) experts that a row did not choose itself and whose gate is below `refill` of that of its best expert."""
    gap = -math.log(refill) if refill > 0 else math.inf
    most = max(row[e] for e in taken)
    return [e if e in own or most - row[e] <= gap else -1 for e in taken]


def assign_resident(policy, scores, ids, exact, cost, resident, **params):
    """Returns each row's k best, where free experts and the row's first choice are worth `resident` nats more. Free are experts that
    cost nothing, and what the policy or an exact row has others pay for."""
    free = {int(e) for e in np.flatnonzero(np.asarray(cost) == 0)}
    if policy in ADMITTING and len(scores) > 1:
        free |= admitted(policy, scores, ids, exact, **params)
    free |= {int(e) for t in np.flatnonzero(exact) for e in ids[t]}
    for row, own in zip(scores, ids):
        worth = {e: float(row[e]) + (resident if e in free or e == own[0] else 0.0) for e in range(len(row))}
        chosen = sorted(worth, key=lambda e: (-worth[e], -row[e], e))[: len(own)]
        yield sorted(chosen, key=lambda e: (-row[e], e))


def assign(policy, scores, ids, exact, tables, cost=None, **params):
    """Returns a policy's choices for each row [T][up to k]. -1 = dropped; sere and alias drop a choice that occurs twice. Entries of exact
    rows have no meaning. `tables`: similarity, alias, replay."""
    if policy in REFILLS:
        resident = params.pop("resident", 0)
        refill = params.pop("refill", WEIGHING.get(policy, {}).get("refill", 0.0))
        params.pop("damp", None)
        if resident and cost is not None:
            taken = assign_resident(policy, scores, ids, exact, cost, resident, **params)
        elif policy == "lynx_literal":
            taken = assign_literal(scores, ids, exact, **params)
        else:
            chosen = admitted(policy, scores, ids, exact, **params)
            taken = [best(row, chosen, ids.shape[1]) or [own[0]] for row, own in zip(scores, ids)]
        return [drop_refills(*row, refill) for row in zip(scores, taken, ids)]
    taken = list({
        "sere": lambda: keep_inside(scores, ids, substitute(ids, sere_targets(ids, exact, tables["similarity"], **params))),
        "alias": lambda: substitute(ids, tables["alias"]),
        "skip": lambda: assign_skip(scores, ids, exact, **params),
        "top_j": lambda: [row[: params.get("j", 1)] for row in ids],
        "deny_rank": lambda: assign_deny_rank(scores, ids, exact, **params),
        "capacity": lambda: assign_capacity(scores, ids, exact, **params),
        "replay": lambda: tables["replay"],
    }[policy]())  # fmt: skip
    if policy == "replay":
        return taken
    return [row if any(e >= 0 for e in row) else [own[0]] for row, own in zip(taken, ids)]  # no row is left with none

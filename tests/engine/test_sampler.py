"""Draws of the sampler against the exact distribution, computed in float64 from forward()'s logits.

Counts are taken over fixed seeds, so every test here gives the same result on every run. The chi-square limit is the 1 - 1e-6
quantile by the Wilson-Hilferty approximation: with some thirty tests, a correct sampler would fail one set of seeds in thirty thousand.
"""

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, engine, params, run

from lynx_rt import ValidationError

NAME = "plain"
VOCAB = tm.ALL[NAME].vocab
EOS = 2
PROMPT = [7, 30, 7, 55]
DRAWS = 3000


@pytest.fixture(scope="module")
def e(tiny_path):
    return engine(tiny_path(NAME), dtype="float32", max_num_seqs=64)


@pytest.fixture(scope="module")
def logits(e):
    """Returns the logits of the token after PROMPT in float64."""
    return e.forward(PROMPT)[-1].astype(np.float64)


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def first_tokens(e, **options):
    """Returns the counts of the first token over DRAWS seeds."""
    jobs = [Job(PROMPT, {"temperature": 1.0, "max_tokens": 1, "seed": s} | options) for s in range(DRAWS)]
    return np.bincount([r.tokens[0] for r in run(e, jobs)], minlength=VOCAB)


def assert_drawn_from(counts, p):
    """Chi-square of the counts, cells of less than 5 expected put together; what has probability 0 is never drawn."""
    assert counts[p == 0].sum() == 0, f"drew a token of probability 0: {np.flatnonzero((p == 0) & (counts > 0))}"
    expected = counts.sum() * p
    small = expected < 5
    observed, expected = (
        np.append(counts[~small], counts[small].sum()),
        np.append(expected[~small], expected[small].sum()),
    )
    keep = expected > 0
    chi2, df = ((observed - expected)[keep] ** 2 / expected[keep]).sum(), keep.sum() - 1
    limit = df * (1 - 2 / (9 * df) + 4.7534 * np.sqrt(2 / (9 * df))) ** 3 if df else 1e-9  # 4.7534 = normal quantile
    assert chi2 <= limit, f"chi-square {chi2:.1f} over {limit:.1f} with {df} degrees of freedom"


def top_k(p, k):
    out = np.zeros_like(p)
    keep = np.lexsort((np.arange(VOCAB), -p))[:k]
    out[keep] = p[keep]
    return out / out.sum()


def top_p(p, mass):
    order = np.lexsort((np.arange(VOCAB), -p))
    return top_k(p, int(np.searchsorted(np.cumsum(p[order]), mass) + 1))


def min_p(p, share):
    out = np.where(p >= share * p.max(), p, 0)
    return out / out.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature(e, logits, temperature):
    assert_drawn_from(first_tokens(e, temperature=temperature), softmax(logits / temperature))


@pytest.mark.parametrize("k", [1, 2, 7, VOCAB, VOCAB + 50, -1, 0])
def test_top_k(e, logits, k):
    p = softmax(logits / 2)
    assert_drawn_from(first_tokens(e, temperature=2.0, top_k=k), top_k(p, k if k > 0 else VOCAB))


@pytest.mark.parametrize("mass", [1e-6, 0.3, 0.8, 0.99, 1.0])
def test_top_p(e, logits, mass):
    p = softmax(logits / 2)
    assert_drawn_from(first_tokens(e, temperature=2.0, top_p=mass), top_p(p, mass) if mass < 1 else p)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_min_p(e, logits, share):
    assert_drawn_from(first_tokens(e, temperature=2.0, min_p=share), min_p(softmax(logits / 2), share))


def test_filters_in_order(e, logits):
    """Temperature, then top_k, then top_p of what is left, then min_p."""
    p = min_p(top_p(top_k(softmax(logits / 2), 20), 0.9), 0.1)
    assert 3 < (p > 0).sum() < 20
    assert_drawn_from(first_tokens(e, temperature=2.0, top_k=20, top_p=0.9, min_p=0.1), p)


def test_draws_at_later_positions_are_independent(e):
    """Pairs (first, second token) under a bias that leaves four equally likely tokens: all sixteen pairs alike."""
    options = {"temperature": 1.0, "max_tokens": 2, "allowed_token_ids": [5, 6, 7, 8], "logit_bias": []}
    row = e.forward(PROMPT)[-1]
    flat = [(t, float(1000 - row[t])) for t in (5, 6, 7, 8)]
    pairs = np.zeros((4, 4))
    for r in run(
        e, [Job(PROMPT, options | {"seed": s, "temperature": 100.0, "logit_bias": flat}) for s in range(DRAWS)]
    ):
        pairs[r.tokens[0] - 5, r.tokens[1] - 5] += 1
    # The first token is uniform to within the bias' rounding; the second nearly so, because of the temperature.
    expected = pairs.sum(1, keepdims=True) * pairs.sum(0, keepdims=True) / DRAWS
    assert ((pairs - expected) ** 2 / expected).sum() < 50  # df 9, the 1 - 1e-7 quantile
    assert abs(pairs.sum(1) - DRAWS / 4).max() < 5 * np.sqrt(DRAWS * 3 / 16)


def greedy(e, prompt=PROMPT, **options):
    return run(e, [Job(prompt, options)])[0]


def test_greedy_is_the_argmax_and_ties_go_to_the_lowest_id(e, logits):
    assert greedy(e, max_tokens=1).tokens == [int(logits.argmax())]
    # Adding 2^30 rounds every logit to the same float: an exact tie.
    for tied in ([90, 11, 40], [3], list(range(100, 20, -1))):
        assert greedy(e, max_tokens=1, logit_bias=[(t, 2.0**30) for t in tied]).tokens == [min(tied)]
    assert greedy(e, max_tokens=1, temperature=9e-6, seed=3).tokens == [int(logits.argmax())]


def test_ties_at_the_edge_of_top_k(e):
    counts = first_tokens(e, top_k=2, logit_bias=[(t, 2.0**30) for t in (90, 11, 40)])
    assert set(np.flatnonzero(counts)) == {11, 40} and abs(counts[11] - DRAWS / 2) < 5 * np.sqrt(DRAWS / 4)


def replay(e, tokens, prompt_len, repetition=1.0, frequency=0.0, presence=0.0):
    """The greedy choice at each step, by the formulas, from forward() of the whole sequence."""
    rows = e.forward(tokens).astype(np.float64)
    out = []
    for n in range(prompt_len, len(tokens)):
        row = rows[n - 1].copy()
        seen, generated = set(tokens[:n]), tokens[prompt_len:n]
        for t in seen:
            row[t] = row[t] / repetition if row[t] > 0 else row[t] * repetition
            row[t] -= frequency * generated.count(t) + presence * (t in generated)
        out.append(int(row.argmax()))
    return out


@pytest.mark.parametrize(
    "penalties",
    [{"repetition": 1.7}, {"repetition": 0.6}, {"frequency": 1.5}, {"frequency": -1.0}, {"presence": 2.0}, {"presence": -2.0},
     {"repetition": 1.3, "frequency": 0.7, "presence": 0.9}],
    ids=str,
)  # fmt: skip
def test_penalties(e, penalties):
    plain = greedy(e, max_tokens=40).tokens
    got = greedy(e, max_tokens=40, **{f"{k}_penalty": v for k, v in penalties.items()}).tokens
    assert got != plain, "the penalty changed nothing: this test shows nothing"
    assert got == replay(e, PROMPT + got, len(PROMPT), **penalties)


def test_presence_and_frequency_leave_the_prompt_alone(e, logits):
    """A token that stands in the prompt but was not generated keeps its logit."""
    best = int(logits.argmax())
    prompt = [best, *PROMPT]
    want = int(e.forward(prompt)[-1].argmax())
    assert greedy(e, prompt, max_tokens=1, presence_penalty=2.0, frequency_penalty=2.0).tokens == [want]


def test_logit_bias(e, logits):
    order = np.argsort(-logits)
    gap = float(logits[order[0]] - logits[order[4]])
    assert greedy(e, max_tokens=1, logit_bias=[(int(order[4]), gap + 0.01)]).tokens == [order[4]]
    assert greedy(e, max_tokens=1, logit_bias=[(int(order[4]), gap - 0.01)]).tokens == [order[0]]
    biased = logits.copy()
    biased[[3, 9]] += [2.5, -1.5]
    assert_drawn_from(first_tokens(e, logit_bias=[(3, 2.5), (9, -1.5)]), softmax(biased))


def test_allowed_token_ids(e, logits):
    allowed = [8, 3, 77, 50, 3]
    p = np.zeros(VOCAB)
    p[allowed] = softmax(logits)[allowed]
    assert_drawn_from(first_tokens(e, allowed_token_ids=allowed), p / p.sum())
    assert set(greedy(e, max_tokens=30, allowed_token_ids=allowed).tokens) <= set(allowed)


def test_bad_words(e):
    plain = greedy(e, max_tokens=20).tokens
    one = greedy(e, max_tokens=20, bad_words=[[plain[0]]]).tokens
    assert plain[0] not in one
    pair = plain[3:5]
    got = greedy(e, max_tokens=20, bad_words=[pair]).tokens
    assert got[:4] == plain[:4] and got[4] != plain[4]
    assert all(got[i : i + 2] != pair for i in range(19))
    # The last prompt token does not begin a bad word.
    assert greedy(e, max_tokens=1, bad_words=[[PROMPT[-1], plain[0]]]).tokens == [plain[0]]


def test_end_of_text(e):
    force = {"logit_bias": [(EOS, 1e4)], "max_tokens": 8}
    r = greedy(e, ignore_eos=False, **force)
    assert (r.tokens, r.finish_reason, r.stop_token_id) == ([EOS], "stop", EOS)
    r = greedy(e, ignore_eos=True, **force)
    assert (r.tokens, r.finish_reason, r.stop_token_id) == ([EOS] * 8, "length", None)
    r = greedy(e, ignore_eos=False, min_tokens=5, **force)
    assert len(r.tokens) == 6 and EOS not in r.tokens[:5] and r.tokens[5] == EOS and r.finish_reason == "stop"
    r = greedy(e, ignore_eos=False, min_tokens=8, **force)
    assert EOS not in r.tokens and len(r.tokens) == 8 and r.finish_reason == "length"


def test_stop_token_ids(e):
    plain = greedy(e, max_tokens=20).tokens
    stop = plain[6]
    cut = plain.index(stop) + 1
    r = greedy(e, max_tokens=20, stop_token_ids=[stop, 0])
    assert (r.tokens, r.finish_reason, r.stop_token_id) == (plain[:cut], "stop", stop)
    r = greedy(e, max_tokens=20, stop_token_ids=[stop], min_tokens=cut + 2)
    assert stop not in r.tokens[: cut + 2] and len(r.tokens) > cut
    # Not even where eos is ignored.
    assert greedy(e, max_tokens=20, stop_token_ids=[stop], ignore_eos=True).finish_reason == "stop"


def test_max_tokens(e):
    plain = greedy(e, max_tokens=12)
    assert len(plain.tokens) == 12 and plain.finish_reason == "length"
    # A stop token that is also the last one that fits is a stop.
    last = max(i for i, t in enumerate(plain.tokens) if plain.tokens.index(t) == i)
    assert last > 0
    assert greedy(e, max_tokens=last + 1, stop_token_ids=[plain.tokens[last]]).finish_reason == "stop"


@pytest.mark.parametrize("count", [0, 1, 5, VOCAB])
def test_logprobs(e, count):
    options = {"max_tokens": 6, "logprobs": count, "prompt_logprobs": count, "temperature": 1.5, "seed": 1, "top_k": 3}
    r = greedy(e, repetition_penalty=1.2, **options)
    tokens = PROMPT + r.tokens
    lp = log_softmax(e.forward(tokens).astype(np.float64))
    entries = [*r.prompt_logprobs, *r.logprobs]
    assert len(r.prompt_logprobs) == len(PROMPT) and r.prompt_logprobs[0] == [] and len(r.logprobs) == 6
    for n in range(1, len(tokens)):
        row, got = lp[n - 1], entries[n]
        order = np.lexsort((np.arange(VOCAB), -row))
        rank = {int(t): i + 1 for i, t in enumerate(order)}
        assert [t for t, _, _ in got] == [tokens[n], *[t for t in order[:count] if t != tokens[n]]]
        for token, logprob, r_ in got:
            assert r_ == rank[token] and abs(logprob - row[token]) < 1e-5


def test_forced_token_ids(e):
    forced = [9, EOS, 88, 9, 1, 40]
    against = {
        "max_tokens": 2,
        "ignore_eos": False,
        "stop_token_ids": [88],
        "allowed_token_ids": [3],
        "bad_words": [[9]],
    }
    against |= {"logit_bias": [(5, 100.0)], "repetition_penalty": 5.0, "temperature": 1.0}
    tokens = PROMPT + forced
    lp = log_softmax(e.forward(tokens).astype(np.float64))[len(PROMPT) - 1 :]
    for options in ({}, against):
        r = greedy(e, logprobs=2, forced_token_ids=forced, **options)
        assert (r.tokens, r.finish_reason, r.stop_token_id) == (forced, "length", None)
        for n, (token, entries) in enumerate(zip(forced, r.logprobs)):
            order = np.argsort(-lp[n], kind="stable")
            best = [int(t) for t in order[:2] if t != token]
            assert [t for t, _, _ in entries] == [token, *best]
            assert abs(entries[0][1] - lp[n][token]) < 1e-5 and entries[0][2] == 1 + list(order).index(token)
    assert greedy(e, forced_token_ids=forced).tokens == forced  # also where no logits are asked for
    # What follows is the same as after these tokens in a prompt, and others in the batch draw as they would alone.
    jobs = [Job(PROMPT, {"forced_token_ids": forced, "logprobs": 0}), Job(PROMPT, {"max_tokens": 9})]
    both = run(e, jobs)
    assert both[0].tokens == forced and both[1].tokens == greedy(e, max_tokens=9).tokens


def test_forced_tokens_fit_the_context_or_are_refused(e):
    room = tm.CONTEXT - len(PROMPT)
    assert len(greedy(e, forced_token_ids=[7] * room).tokens) == room
    with pytest.raises(ValidationError, match=f"expected at most {room} tokens after a prompt of 4") as caught:
        e.add_request(PROMPT, params(forced_token_ids=[7] * (room + 1)))
    assert caught.value.field == "forced_token_ids"


def test_forced_tokens_are_routed_by_the_policy(tiny_path):
    """Decode rows, so that batch-aware selection acts on them; the first token comes from the prompt and is not touched."""
    e = engine(tiny_path(NAME), dtype="float32", enable_mixed_chunk=False)
    jobs = [Job([7 + i, 30, 5 * i], {"forced_token_ids": [9 + i, 40, 41 + i, 12], "logprobs": 0}) for i in range(4)]
    results = {}
    for policy in ("topk", "oea:k0=1"):
        e.set_expert_selection(policy)
        results[policy] = [[entries[0][1] for entries in r.logprobs] for r in run(e, jobs)]
    plain, selected = np.array(results["topk"]), np.array(results["oea:k0=1"])
    assert (plain[:, 0] == selected[:, 0]).all() and (plain[:, 1:] != selected[:, 1:]).any(0).all()


def test_a_request_without_a_choice_ends_alone(e):
    ids = [e.add_request(PROMPT, params(max_tokens=10, allowed_token_ids=a, bad_words=b)) for a, b in
           [([], []), ([4, 9], [[4], [9]]), ([], [])]]  # fmt: skip
    out = {i: [] for i in ids}
    while e.has_unfinished():
        for o in e.step():
            out[o.request_id].append(o)
    (failed,) = out[ids[1]]
    assert failed.finish_reason == "error" and failed.token_ids == [] and "no token to choose" in failed.error
    for i in (ids[0], ids[2]):
        assert [t for o in out[i] for t in o.token_ids] == greedy(e, max_tokens=10).tokens and out[i][
            -1
        ].finish_reason == "length"
    e.check_integrity()


NAN, INF = float("nan"), float("inf")
WRONG = [
    *[("temperature", v) for v in (NAN, INF, -0.1)],
    *[("top_p", v) for v in (NAN, 0.0, -0.5, 1.01)],
    ("top_k", -2),
    *[("min_p", v) for v in (NAN, -0.1, 1.1)],
    *[(p, v) for p in ("presence_penalty", "frequency_penalty") for v in (NAN, 2.5, -2.5)],
    *[("repetition_penalty", v) for v in (NAN, INF, 0.0, -1.0)],
    *[("max_tokens", v) for v in (0, -5)],
    *[("min_tokens", v) for v in (-1, 17)],
    *[(p, v) for p in ("logprobs", "prompt_logprobs") for v in (-2, VOCAB + 1)],
    *[(p, v) for p in ("stop_token_ids", "allowed_token_ids", "forced_token_ids") for v in ([VOCAB], [3, -1])],
    *[("bad_words", v) for v in ([[]], [[1], [VOCAB]])],
    *[("logit_bias", v) for v in ([(VOCAB, 1.0)], [(-1, 1.0)], [(3, NAN)], [(3, INF)])],
]


@pytest.mark.parametrize("field, value", WRONG, ids=str)
def test_validation(e, field, value):
    with pytest.raises(ValidationError, match=field) as error:
        e.add_request(PROMPT, params(**{field: value}))
    assert error.value.field == field and "expected" in str(error.value)
    assert not e.has_unfinished()

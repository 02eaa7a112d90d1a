"""The text form of expert selection: POLICY[:key=value,...][@LAYERS=POLICY...]."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_policies import POLICIES, RESIDENT

import lynx_rt
from lynx_rt import _C, _C_testing

SCORES = np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    "given, canonical",
    [
        ("", "topk"),
        ("off", "topk"),
        ("topk", "topk"),
        ("topk:resident=0,damp=1,phase=all", "topk"),
        ("topk:resident=0.5", "topk:resident=0.5,refill=0,damp=0.5"),
        ("topk:damp=0,resident=1,phase=all", "topk:resident=1,refill=0,damp=0,phase=all"),
        ("oea:resident=2", "oea:k0=1,resident=2"),
        ("cover:resident=1", "cover:delta=0.1,m=1,refill=1,damp=0.7,resident=1"),
        ("lynx", "lynx:beta=4,theta=1,refill=0.25,damp=0.5"),
        ("lynx:theta=1.5", "lynx:beta=4,theta=1.5,refill=0.25,damp=0.5"),
        ("lynx:beta=16,alpha=0.1,theta=0", "lynx:alpha=0.1,beta=16,theta=0,refill=0.25,damp=0.5"),
        ("lynx:alpha=1e-3", "lynx:alpha=0.001,beta=4,theta=1,refill=0.25,damp=0.5"),
        ("oea", "oea:k0=1"),
        ("oea:k0=12", "oea:k0=12"),
        ("oea:damp=0.5,refill=0", "oea:k0=1,damp=0.5"),
        ("cover", "cover:delta=0.1,m=1,refill=1,damp=0.7"),
        ("cover:damp=0,delta=0,refill=0", "cover:delta=0,m=1,refill=0,damp=0"),
        ("top1", "top_j:j=1"),
        ("top_j", "top_j:j=1"),
        ("top_j:j=5000000", "top_j:j=5000000"),
        ("skip", "skip:ratio=0.5"),
        ("deny_rank", "deny_rank:rank=0"),
        ("capacity", "capacity:factor=1"),
        ("xshare:k0=0", "xshare:m=0.5,k0=0"),
        ("des_vote:m=12", "des_vote:m=12"),
        ("lynx_literal:lambda=0", "lynx_literal:alpha=16,beta=4,lambda=0"),
        ("lynx:phase=all", "lynx:beta=4,theta=1,refill=0.25,damp=0.5,phase=all"),
        ("top_j:phase=all,j=2", "top_j:j=2,phase=all"),
        ("oea:phase=decode", "oea:k0=1"),
        ("sere", "sere:s=1,rho=0"),
        ("sere:file=a b/c=d.safetensors,rho=0.1", "sere:s=1,rho=0.1,file=a b/c=d.safetensors"),
        ("alias:file=", "alias"),
        ("alias:phase=all,file=x:y", "alias:file=x:y,phase=all"),
        ("replay:file=/r.safetensors", "replay:file=/r.safetensors"),
        ("oea@0=off", "oea:k0=1@0=topk"),
        ("@3-5+7=top1", "topk@3-5+7=top_j:j=1"),
        ("oea@0=off@1=oea:k0=2", "oea:k0=1@0=topk@1=oea:k0=2"),
        ("topk@2-2=sere:file=a=b", "topk@2=sere:s=1,rho=0,file=a=b"),
    ],
)
def test_selection_text(given, canonical):
    assert _C.parse_selection(given) == canonical
    assert _C.parse_selection(canonical) == canonical


@pytest.mark.parametrize(
    "top_k, alpha", [(1, "96"), (2, "24"), (4, "6"), (6, "2.67"), (8, "1.5"), (10, "0.96"), (512, "0.01")]
)
def test_alpha_depends_on_the_experts_per_token(top_k, alpha):
    rest = "beta=4,theta=1,refill=0.25,damp=0.5"
    assert _C.parse_selection("lynx", top_k) == f"lynx:alpha={alpha},{rest}"
    assert _C.parse_selection("topk@1=lynx", top_k) == f"topk@1=lynx:alpha={alpha},{rest}"
    assert _C.parse_selection("lynx:alpha=6", top_k) == f"lynx:alpha=6,{rest}"


@pytest.mark.parametrize(
    "given, says",
    [
        ("lynks", 'unknown policy "lynks"; the policies are off, topk, lynx, lynx_literal, oea,'),
        ("lynks", "alias, replay, slo"),
        ("lynx@0=", 'expected a policy after "=" of "lynx@0=", got none'),
        ("lynx@0=@1=oea", 'expected a policy after "=" of "lynx@0=@1=oea", got none'),
        (
            "lynx@0=slo:tpot_ms=1",
            'slo: expected at the beginning of an engine\'s expert_selection, as in "slo:tpot_ms=20@0=topk"',
        ),
        ("LYNX", 'unknown policy "LYNX"'),
        (" lynx", 'unknown policy " lynx"'),
        ("topk:k0=1", 'topk has no key "k0"; its keys are resident, refill, damp, phase'),
        ("off:", "off has no keys"),
        (":alpha=1", 'unknown policy ""'),
        ("lynks:alpha", 'unknown policy "lynks"'),
        ("lynx:", 'expected key=value, got ""'),
        ("lynx:alpha", 'expected key=value, got "alpha"'),
        ("lynx:alpha=1,", 'expected key=value, got ""'),
        ("lynx:gamma=1", 'lynx has no key "gamma"; its keys are alpha, beta, theta, refill, damp, resident, phase'),
        ("oea:k=1", 'oea has no key "k"; its keys are k0, refill, damp, resident, phase'),
        ("lynx:alpha=1,alpha=2", 'key "alpha" is given twice'),
        ("lynx:alpha=", "alpha: expected a finite number > 0"),
        ("lynx:alpha=0", "alpha: expected a finite number > 0"),
        ("lynx:alpha=-1", "alpha: expected a finite number > 0"),
        ("lynx:alpha=inf", "alpha: expected a finite number > 0"),
        ("lynx:alpha=1e999", "alpha: expected a finite number > 0"),
        ("lynx:alpha=1x", "alpha: expected a finite number > 0"),
        ("lynx:beta=0", "beta: expected an integer from 1 to 16"),
        ("lynx:beta=17", "beta: expected an integer from 1 to 16"),
        ("lynx:beta=2.5", "beta: expected an integer from 1 to 16"),
        ("lynx:theta=-0.5", "theta: expected a finite number >= 0"),
        ("lynx:theta=nan", "theta: expected a finite number >= 0"),
        ("oea:k0=0", "k0: expected an integer >= 1"),
        ("oea:k0=99999999999", "k0: expected an integer >= 1"),
        ("top1:j=2", "top1 has no keys"),
        ("top10", 'unknown policy "top10"'),
        ("oea:phase=both", 'phase: expected decode or all, got "both"'),
        ("oea:phase=", 'phase: expected decode or all, got ""'),
        ("oea:file=x", 'oea has no key "file"; its keys are k0, refill, damp, resident, phase'),
        ("alias:s=1", 'alias has no key "s"; its keys are file, phase'),
        ("sere:k=1", 'sere has no key "k"; its keys are s, rho, file, phase'),
        ("sere:file=a,file=b", 'key "file" is given twice'),
        ("sere:s=0", "s: expected an integer >= 1"),
        ("sere:rho=-0.1", "rho: expected a finite number >= 0"),
        ("lynx_literal:lambda=-1", "lambda: expected a finite number >= 0"),
        (
            "lynx_literal:theta=1",
            'lynx_literal has no key "theta"; its keys are alpha, beta, lambda, refill, damp, phase',
        ),
        ("xshare:m=0", "m: expected a finite number > 0"),
        ("xshare:m=1.5", "m: expected a share of the experts below 1, or a whole number, got 1.5"),
        ("des_vote:k0=1", 'des_vote has no key "k0"; its keys are m, refill, damp, resident, phase'),
        ("xshare:k0=-1", "k0: expected an integer >= 0"),
        ("skip:ratio=1.01", "ratio: expected a finite number from 0 to 1"),
        ("skip:ratio=-0.01", "ratio: expected a finite number from 0 to 1"),
        ("top_j:j=0", "j: expected an integer >= 1"),
        ("deny_rank:rank=-1", "rank: expected an integer >= 0"),
        ("capacity:factor=0", "factor: expected a finite number > 0"),
        ("oea@", 'expected LAYERS=POLICY after "@", got ""'),
        ("oea@topk", 'expected LAYERS=POLICY after "@", got "topk"'),
        ("oea@=topk", 'layers: expected numbers and ranges like "0-2+7", got ""'),
        ("oea@1+=topk", 'got "1+"'),
        ("oea@2-1=topk", 'got "2-1"'),
        ("oea@-1=topk", 'got "-1"'),
        ("oea@1-=topk", 'got "1-"'),
        ("oea@1-2-3=topk", 'got "1-2-3"'),
        ("oea@a=topk", 'got "a"'),
        ("oea@0 =topk", 'got "0 "'),
        ("oea@99999999999=topk", 'got "99999999999"'),
        ("oea@0=lynks", 'unknown policy "lynks"'),
        ("oea@0=oea:k0=0", "k0: expected an integer >= 1"),
    ],
)
def test_selection_text_that_is_wrong(given, says):
    with pytest.raises(lynx_rt.ValidationError) as error:
        _C.parse_selection(given)
    assert str(error.value).startswith("selection: ") and says in str(error.value)
    assert error.value.field == "selection"


@pytest.mark.parametrize(
    "selection, says",
    [
        ("oea:k0=3", "k0: expected 1..2 (experts per token of this model), got 3"),
        ("xshare:k0=3", "k0: expected 0..2 (experts per token of this model), got 3"),
        ("xshare:m=5", "m: expected 1..4 (experts of this model), got 5"),
        ("des_vote:m=1e300", "m: expected 1..4 (experts of this model), got 1000000000"),
        ("sere:s=3", "s: expected 1..2 (experts per token of this model), got 3"),
        ("top_j:j=3", "j: expected 1..2 (experts per token of this model), got 3"),
        ("deny_rank:rank=2", "rank: expected 0..1 (ranks of this model's choices), got 2"),
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "decode_only"])
def test_parameters_that_do_not_fit_the_model(selection, says, phase):
    with pytest.raises(lynx_rt.ValidationError) as error:
        _C_testing.select(SCORES, 2, selection=selection, phase=phase, similarity=np.zeros((4, 4), np.float32))
    assert str(error.value) == f"selection: {says}"


# --- round trip

COUNTS, FINITE = st.integers(1, 2**31 - 1), st.floats(0, allow_infinity=False)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
BUDGETS = st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 2**60).map(float))
FILES = st.text(st.characters(exclude_characters=",@\0", exclude_categories=("Cs",)), min_size=1)
LYNX = dict(alpha=POSITIVE, beta=st.integers(1, 16))
SHARES = st.floats(0, 1)
KEYS = {
    "topk": {}, "lynx": LYNX | dict(theta=FINITE, refill=SHARES, damp=SHARES), "lynx_literal": LYNX | {"lambda": FINITE}, "oea": dict(k0=COUNTS),
    "xshare": dict(m=BUDGETS, k0=st.integers(0, 2**31 - 1)), "des_vote": dict(m=BUDGETS), "sere": dict(s=COUNTS, rho=FINITE),
    "skip": dict(ratio=st.floats(0, 1)), "top_j": dict(j=COUNTS), "deny_rank": dict(rank=st.integers(0, 2**31 - 1)),
    "capacity": dict(factor=POSITIVE), "alias": {}, "replay": {},
    "cover": dict(delta=FINITE, m=BUDGETS, refill=SHARES, damp=SHARES),
}  # fmt: skip
READS_FILE = ("sere", "alias", "replay")
WEIGHS = (
    "lynx_literal",
    "oea",
    "xshare",
    "des_vote",
)  # they know refill and damp too, and show them where they are not 0


@st.composite
def policy_texts(draw):
    """(name, {key: value}): all keys or some, in any order."""
    policy = draw(st.sampled_from(["topk", *POLICIES]))
    strategies = KEYS[policy] | ({"file": FILES} if policy in READS_FILE else {})
    if policy in WEIGHS:
        strategies = strategies | dict(refill=SHARES, damp=SHARES)
    if policy == "topk":
        strategies = strategies | dict(refill=SHARES, damp=SHARES)
    if policy in RESIDENT:
        strategies = strategies | dict(resident=st.floats(0, 1000))
    strategies = strategies | {"phase": st.sampled_from(["all", "decode"])}
    keys = draw(st.permutations(list(strategies)))[: draw(st.integers(0, len(strategies)))]
    return policy, {key: draw(strategies[key]) for key in keys}


def written(policy, settings):
    items = [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in settings.items()]
    return policy + (":" if items else "") + ",".join(items)


def read(text):
    """policy, {key: value} of a canonical text; numbers as numbers, so that spelling does not matter."""
    policy, _, rest = text.partition(":")
    settings = dict(item.split("=", 1) for item in rest.split(",")) if rest else {}
    return policy, {key: value if key in ("file", "phase") else float(value) for key, value in settings.items()}


def expected(policy, settings):
    """What the text of these settings says, defaults included."""
    _, defaults = read(_C.parse_selection(policy, 4))
    settings = {key: float(value) if not isinstance(value, str) else value for key, value in settings.items()}
    if settings.get("phase") == "decode":
        del settings["phase"]
    if not settings.get("resident"):
        settings.pop("resident", None)
        if policy == "topk":
            return policy, {}
    elif policy == "topk":
        defaults = dict(refill=0.0, damp=0.5)
    if policy in WEIGHS:
        settings = {key: value for key, value in settings.items() if key not in ("refill", "damp") or value != 0}
    return policy, defaults | settings


def test_every_policy_has_a_text():
    assert set(KEYS) == {"topk", *POLICIES}
    for policy, keys in KEYS.items():
        assert list(read(_C.parse_selection(policy, 4))[1]) == list(keys)  # all keys in their order, and no other


@given(policy_texts())
def test_a_policy_reads_back(policy_and_settings):
    canonical = _C.parse_selection(written(*policy_and_settings), 4)
    assert read(canonical) == expected(*policy_and_settings)
    assert _C.parse_selection(canonical, 4) == canonical


RANGES = st.tuples(st.integers(0, 200), st.integers(0, 5), st.booleans())
LAYERS = st.lists(RANGES, min_size=1, max_size=4)


@given(policy_texts(), st.lists(st.tuples(LAYERS, policy_texts()), max_size=4))
def test_a_plan_reads_back(first, parts):
    text, canonical = written(*first), []
    for layers, policy in parts:
        given = [f"{a}-{a + n}" if n or spelled_out else f"{a}" for a, n, spelled_out in layers]
        text += f"@{'+'.join(given)}={written(*policy)}"
        canonical.append("+".join(f"{a}-{a + n}" if n else f"{a}" for a, n, _ in layers))
    got = _C.parse_selection(text, 4)
    assert _C.parse_selection(got, 4) == got
    head, *rest = got.split("@")
    assert read(head) == expected(*first)
    assert [part.split("=", 1)[0] for part in rest] == canonical
    assert [read(part.split("=", 1)[1]) for part in rest] == [expected(*policy) for _, policy in parts]
